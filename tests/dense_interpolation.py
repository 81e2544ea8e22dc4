"""Kaiser-windowed sinc interpolation by dense matrices: the brute-force twin of `csstdask.psf.pixels`."""

from __future__ import annotations

import numpy as np

from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING

#: Samples on each side of a position that enter, and the parameter of the window.
REACH, BETA = 8, 9.5


def kernel(distance):
    """Return the windowed sinc at distances in samples."""
    window = np.i0(BETA * np.sqrt(np.clip(1 - (distance / REACH) ** 2, 0, 1))) / np.i0(BETA)
    return np.sinc(distance) * np.where(np.abs(distance) < REACH, window, 0)


def interpolation_matrix(offset, size, *, slope=False):
    """Return the matrices (n, size, BASIS_SIZE) from samples along one axis to the pixels of stars at offsets (n,).

    With `slope`, their derivatives by the offset [1/pixel].
    """
    pixels = np.arange(size) - size // 2 + np.asarray(offset, dtype=float)[:, None]
    position = BASIS_SIZE // 2 + OVERSAMPLING * (pixels - 2 * np.asarray(offset, dtype=float)[:, None])
    distance = position[..., None] - np.arange(BASIS_SIZE)
    if not slope:
        return kernel(distance)
    step = 1e-3 * OVERSAMPLING
    return (kernel(distance - step) - kernel(distance + step)) / 2e-3
