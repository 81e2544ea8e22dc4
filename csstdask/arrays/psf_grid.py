"""The grid on which the PSF of a detector is stored: nodes over the detector, and half pixels at each of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Nodes along each axis of a detector: enough for a polynomial of degree 4.
N_NODES = 5
#: Samples along the edge of a PSF, two a native pixel.
OVERSAMPLED_SIZE = 64
#: Version of the files that hold a fitted field.
FIELD_FORMAT = 1


def node_positions(length: int) -> npt.NDArray[np.float64]:
    """Return the positions of the nodes along an axis of a number of pixels: the centres of equal parts [pixel]."""
    return (np.arange(N_NODES) + 0.5) / N_NODES * length - 0.5
