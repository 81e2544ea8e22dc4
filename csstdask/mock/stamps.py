"""Choose the sources of stamps, aim cosmic rays at them, and cut the stamps out of a unit.

The unit is rendered like any other. Aimed cosmic rays pass through the detector and the calibration like all charge: a
stamp and its truth share photons and read noise, and weights follow from the contaminated counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import label
from scipy.spatial import cKDTree

from csstdask.mock.catalogue import APERTURE_PIXELS, Catalogue
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
from csstdask.mock.sensor import Frame

Float = npt.NDArray[np.float64]

_NEIGHBOUR_FLUX = 0.01
"""Flux above which a neighbour spoils the isolation of a star, relative to the star."""
_EXTENT_SIGMA = 1.5
"""Threshold of the pixels of a source [sigma of the sky]."""
_MAX_CENTRAL_COUNTS = 60_000.0
"""Sources with more counts in the central pixel are too close to full well [e-]."""
_TRACK_MARGIN = 40
"""Distance between stamps with aimed cosmic rays, so that few tracks reach another stamp [pixel]."""


@dataclass(frozen=True)
class Targets:
    """Sources of the stamps of a unit."""

    source: npt.NDArray[np.intp]
    """Indices into the catalogue (n,)."""
    snr: Float
    """Signal-to-noise ratio in an aperture of 49 pixels (n,)."""
    x: Float | None = None
    """Position of the aimed cosmic ray along x (n,) [pixel]; None without cosmic rays."""
    y: Float | None = None
    """Position of the aimed cosmic ray along y (n,) [pixel]."""
    electrons: npt.NDArray[np.int64] | None = None
    """Charge of the cosmic ray (n,) [e-], set after it is drawn."""


@dataclass(frozen=True)
class StampSet:
    """Stamps of one unit, one row per source."""

    planes: dict[str, npt.NDArray[Any]]
    """``sci``, ``wht``, ``flag``, ``truth/sci``, ``truth/cr`` (n, size, size), for stars ``truth/psf`` (n, 64, 64)."""
    columns: dict[str, npt.NDArray[np.float64]]
    """Position and true source of each stamp (n,)."""

    def __len__(self) -> int:
        return len(self.columns["x"])


def signal_to_noise(flux: Float, exptime: float, sky_noise: float) -> Float:
    """Return the signal-to-noise ratio of sources in an aperture of 49 pixels.

    Parameters
    ----------
    flux : float64 array (n,)
        Flux [e-/s].
    exptime : float
        Exposure time [s].
    sky_noise : float
        Noise of a sky pixel, including read noise [e-].

    Examples
    --------
    >>> float(signal_to_noise(np.array(100.0), 150.0, 10.0).round(1))
    106.3
    """
    counts = flux * exptime
    return np.asarray(counts / np.sqrt(counts + APERTURE_PIXELS * sky_noise**2))


def choose_targets(
    recipe: Recipe, index: int, detector: int, catalogue: Catalogue, clean: Frame, read_noise: float
) -> Targets:
    """Choose the sources of stamps by their true properties, and aim cosmic rays if the recipe asks for them.

    Parameters
    ----------
    recipe : Recipe
        Recipe with a table [stamps].
    index : int
        Index of the exposure.
    detector : int
        Detector id.
    catalogue : Catalogue
        True sources of the unit.
    clean : float32 array (y, x)
        Photons and dark current, without cosmic rays [e-].
    read_noise : float
        Read noise [e-].

    Returns
    -------
    Targets
    """
    wanted = recipe.stamps
    if wanted is None:
        raise ValueError("a recipe without stamps")
    rng = stream(recipe.seed, Purpose.STAMPS, index, detector)
    sky = float(np.median(clean[::7, ::7]))
    noise = float(np.sqrt(sky + read_noise**2))
    snr = signal_to_noise(catalogue.flux, recipe.exptime, noise)
    usable = _fits(catalogue, clean.shape, wanted.size) & (snr >= wanted.snr)
    row, column = (
        np.clip(np.rint(position), 0, side - 1).astype(np.int64)
        for position, side in zip((catalogue.y, catalogue.x), clean.shape, strict=True)
    )
    unsaturated = clean[row, column] < _MAX_CENTRAL_COUNTS
    if wanted.kind == "isolated":
        usable &= unsaturated & catalogue.is_star & _is_isolated(catalogue, wanted.separation)
    elif wanted.kind == "injected":
        usable &= unsaturated & _is_extended(catalogue, clean, sky, noise, wanted.extent)
    source = np.flatnonzero(usable)
    if wanted.kind == "injected":
        source = _separated(rng, catalogue, source, wanted.size + _TRACK_MARGIN)
    if len(source) > wanted.per_unit:
        source = np.sort(rng.choice(source, wanted.per_unit, replace=False))
    if wanted.kind == "isolated":
        return Targets(source, snr[source])
    low, high = wanted.offset
    if wanted.kind == "injected":  # an offset along each axis, as in the paper
        dx, dy = rng.uniform(low, high, (2, len(source))) * rng.choice([-1, 1], (2, len(source)))
    else:
        distance, azimuth = rng.uniform(low, high, len(source)), rng.uniform(0, 2 * np.pi, len(source))
        dx, dy = distance * np.cos(azimuth), distance * np.sin(azimuth)
    return Targets(source, snr[source], catalogue.x[source] + dx, catalogue.y[source] + dy)


def _fits(catalogue: Catalogue, shape: tuple[int, ...], size: int) -> npt.NDArray[np.bool_]:
    """Return which sources have a complete stamp on the frame."""
    x, y, half = np.floor(catalogue.x + 0.5), np.floor(catalogue.y + 0.5), size // 2
    return np.asarray((x >= half) & (y >= half) & (x <= shape[1] - half) & (y <= shape[0] - half))


def _is_isolated(catalogue: Catalogue, separation: float) -> npt.NDArray[np.bool_]:
    """Return which sources have no significant neighbour within a distance [pixel]."""
    positions = np.column_stack([catalogue.x, catalogue.y])
    isolated = np.ones(len(catalogue), dtype=bool)
    for i, j in cKDTree(positions).query_pairs(separation, output_type="ndarray"):
        isolated[i] &= catalogue.flux[j] < _NEIGHBOUR_FLUX * catalogue.flux[i]
        isolated[j] &= catalogue.flux[i] < _NEIGHBOUR_FLUX * catalogue.flux[j]
    return isolated


def _separated(
    rng: np.random.Generator, catalogue: Catalogue, source: npt.NDArray[np.intp], distance: float
) -> npt.NDArray[np.intp]:
    """Return a random subset of sources of which no two are closer than a distance [pixel]."""
    order = rng.permutation(source)
    positions = np.column_stack([catalogue.x[order], catalogue.y[order]])
    near = cKDTree(positions).query_ball_point(positions, distance) if len(order) else []
    kept = np.zeros(len(order), dtype=bool)
    for i, others in enumerate(near):
        kept[i] = not any(kept[j] for j in others)
    return np.sort(order[kept])


def _is_extended(catalogue: Catalogue, clean: Frame, sky: float, noise: float, pixels: int) -> npt.NDArray[np.bool_]:
    """Return which sources lie in a connected region of more than `pixels` pixels above the noise."""
    regions, _ = label(clean > sky + _EXTENT_SIGMA * noise)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    x = np.clip(np.rint(catalogue.x).astype(np.int64), 0, clean.shape[1] - 1)
    y = np.clip(np.rint(catalogue.y).astype(np.int64), 0, clean.shape[0] - 1)
    return np.asarray(sizes[regions[y, x]] > pixels)


def cut_stamps(plane: npt.NDArray[Any], x: Float, y: Float, size: int) -> npt.NDArray[Any]:
    """Return stamps (n, size, size) of a plane; element ``[size // 2, size // 2]`` is the pixel of (x, y)."""
    rows = np.floor(y + 0.5).astype(np.int64) - size // 2
    columns = np.floor(x + 0.5).astype(np.int64) - size // 2
    axis = np.arange(size)
    return np.asarray(plane[rows[:, None, None] + axis[None, :, None], columns[:, None, None] + axis[None, None, :]])
