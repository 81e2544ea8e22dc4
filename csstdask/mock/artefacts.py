"""Draw artefacts: satellite trails and ghosts of bright stars."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.mock.catalogue import Catalogue
from csstdask.mock.recipe_tables import Artefacts

Frame = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_TRAIL_LOG_PEAK = (1.0, 2.8)
"""Range of log10 of the counts along the centre of a trail [e-/pixel]."""
_TRAIL_SIGMA = (1.0, 4.0)
"""Range of the width of a trail, 1 sigma [pixel]."""
_GHOST_RADIUS = (25, 70)
"""Range of the radius of a ghost, an image of the open pupil out of focus [pixel]."""
_FLAG_THRESHOLD = 8.0
"""Counts above which a trail or ghost is flagged [e-/pixel]."""


def draw_trails(
    rng: np.random.Generator, settings: Artefacts, shape: tuple[int, int], exptime: float
) -> tuple[Frame | float, Mask]:
    """Return the light of satellites that cross the frame [e-/s/pixel] and the flagged pixels.

    Parameters
    ----------
    rng : numpy.random.Generator
        Random stream.
    settings : Artefacts
        Table of the recipe.
    shape : (int, int)
        Shape (y, x) of the frame.
    exptime : float
        Exposure time [s].
    """
    ny, nx = shape
    flagged = np.zeros(shape, dtype=bool)
    n = int(rng.poisson(settings.satellites))
    if n == 0:
        return 0.0, flagged
    light = np.zeros(shape, dtype=np.float32)
    x, y = np.arange(nx, dtype=np.float32)[None, :], np.arange(ny, dtype=np.float32)[:, None]
    for _ in range(n):
        angle, sigma = rng.uniform(0, np.pi), rng.uniform(*_TRAIL_SIGMA)
        px, py = rng.uniform(0, nx), rng.uniform(0, ny)
        peak = 10 ** rng.uniform(*_TRAIL_LOG_PEAK)
        counts = np.float32(peak) * trail_profile(x, y, px, py, angle, sigma)
        light += counts / np.float32(exptime)
        flagged |= counts > _FLAG_THRESHOLD
    return light, flagged


def trail_profile(x: Frame, y: Frame, px: float, py: float, angle: float, sigma: float) -> Frame:
    """Return the light of a straight trail relative to its centre, a Gaussian across it, float32 (y, x).

    Parameters
    ----------
    x, y : float32 arrays (1, x) and (y, 1)
        Coordinates of the pixels.
    px, py : float
        A point on the trail [pixel].
    angle : float
        Position angle, from +x towards +y [rad].
    sigma : float
        Width, 1 sigma [pixel].
    """
    distance = (x - np.float32(px)) * np.float32(np.sin(angle)) - (y - np.float32(py)) * np.float32(np.cos(angle))
    profile: Frame = np.exp(-0.5 * (distance / np.float32(sigma)) ** 2)
    return profile


def draw_ghosts(
    rng: np.random.Generator, settings: Artefacts, catalogue: Catalogue, shape: tuple[int, int], exptime: float
) -> tuple[Frame | float, Mask]:
    """Return the ghosts of bright stars [e-/s/pixel] and the flagged pixels.

    A ghost lies opposite its star with respect to the centre of the frame. Parameters as for `draw_trails`.
    """
    ny, nx = shape
    flagged = np.zeros(shape, dtype=bool)
    bright = np.flatnonzero(catalogue.is_star & (catalogue.mag < settings.ghosts_above))
    if bright.size == 0 or settings.ghost_share == 0:
        return 0.0, flagged
    light = np.zeros(shape, dtype=np.float32)
    radius = float(rng.uniform(*_GHOST_RADIUS))
    for i in bright:
        cx, cy = nx - 1 - catalogue.x[i], ny - 1 - catalogue.y[i]
        low_y, high_y = np.clip([int(cy - radius), int(cy + radius) + 2], 0, ny)
        low_x, high_x = np.clip([int(cx - radius), int(cx + radius) + 2], 0, nx)
        rows, columns = slice(low_y, high_y), slice(low_x, high_x)
        y, x = np.ogrid[rows, columns]
        distance = np.hypot(x - cx, y - cy)
        disk = np.clip(radius - distance, 0, 1)
        rate = settings.ghost_share * catalogue.flux[i] / (np.pi * radius**2) * disk
        light[rows, columns] += rate.astype(np.float32)
        flagged[rows, columns] |= rate * exptime > _FLAG_THRESHOLD
    return light, flagged
