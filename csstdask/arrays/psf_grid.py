"""Grid on which the PSF of a detector is stored: positions on the detector, and half-pixel samples of each image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Number of nodes along each axis of a detector: enough for a polynomial of degree 4.
N_NODES = 5
#: Size of a PSF image [half pixel].
OVERSAMPLED_SIZE = 64
#: Version of the format of files with a fitted PSF field.
FIELD_FORMAT = 1


def node_positions(length: int) -> npt.NDArray[np.float64]:
    """Return the positions of the nodes along an axis, the centres of equal parts [pixel]."""
    return (np.arange(N_NODES) + 0.5) / N_NODES * length - 0.5
