"""Light that is neither a source nor a cosmic ray: satellite trails, and ghosts of bright stars."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.mock.catalogue import Catalogue
from csstdask.mock.recipe_tables import Artefacts

Frame = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: A trail's brightness along its middle [e-/pixel] (log10), and its width, one sigma [pixel].
_TRAIL_LOG, _TRAIL_SIGMA = (1.0, 2.8), (1.0, 4.0)
#: A ghost's radius [pixel]: the open pupil, out of focus.
_GHOST_RADIUS = (25, 70)
#: A trail or ghost is flagged where it is above this [e-].
_NOTICED = 8.0


def draw_trails(
    rng: np.random.Generator, settings: Artefacts, shape: tuple[int, int], exptime: float
) -> tuple[Frame | float, Mask]:
    """Return the light of satellites that cross the frame [e-/s/pixel], and where it is noticed."""
    ny, nx = shape
    noticed = np.zeros(shape, dtype=bool)
    n = int(rng.poisson(settings.satellites))
    if n == 0:
        return 0.0, noticed
    light = np.zeros(shape, dtype=np.float32)
    x, y = np.arange(nx, dtype=np.float32)[None, :], np.arange(ny, dtype=np.float32)[:, None]
    for _ in range(n):
        angle, sigma = rng.uniform(0, np.pi), rng.uniform(*_TRAIL_SIGMA)
        px, py = rng.uniform(0, nx), rng.uniform(0, ny)
        bright = 10 ** rng.uniform(*_TRAIL_LOG)
        distance = (x - np.float32(px)) * np.float32(np.sin(angle)) - (y - np.float32(py)) * np.float32(np.cos(angle))
        counts = np.float32(bright) * np.exp(-0.5 * (distance / np.float32(sigma)) ** 2)
        light += counts / np.float32(exptime)
        noticed |= counts > _NOTICED
    return light, noticed


def draw_ghosts(
    rng: np.random.Generator, settings: Artefacts, catalogue: Catalogue, shape: tuple[int, int], exptime: float
) -> tuple[Frame | float, Mask]:
    """Return the ghosts of bright stars, mirrored at the frame's middle [e-/s/pixel], and where they are noticed."""
    ny, nx = shape
    noticed = np.zeros(shape, dtype=bool)
    bright = np.flatnonzero(catalogue.is_star & (catalogue.mag < settings.ghosts_above))
    if bright.size == 0 or settings.ghost_share == 0:
        return 0.0, noticed
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
        noticed[rows, columns] |= rate * exptime > _NOTICED
    return light, noticed
