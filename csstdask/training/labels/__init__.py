"""Label cosmic rays in real frames, from repeated exposures or from darks."""
