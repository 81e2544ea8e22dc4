"""Label cosmic rays in real frames: dithered exposures and darks."""
