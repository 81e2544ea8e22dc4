"""Stamps: cut-outs of a unit round chosen sources, for recipes that keep no frames.

The unit is rendered as any other; only what is kept differs. Cosmic rays of the injected kinds are aimed at sources
and then go the way of all charge: through the detector and the making of Level 1. So a stamp with a cosmic ray and its
clean twin share photons and read noise, and weights come from the contaminated counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import label
from scipy.spatial import cKDTree

from csstdask.mock.catalogue import Catalogue
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
from csstdask.mock.sensor import Frame

Float = npt.NDArray[np.float64]

#: Pixels of an aperture in which a source's signal to noise is reckoned.
_APERTURE = 49
#: A neighbour disturbs from this share of a star's light on.
_NEIGHBOUR = 0.01
#: A pixel belongs to a source from so many sigma of the sky on.
_EXTENT_SIGMA = 1.5
#: Sources with more in their middle pixel are too close to full well [e-].
_FULL = 60_000.0
#: Sources that cosmic rays are aimed at are a stamp and this much apart: few tracks reach a neighbour's stamp [pixel].
_TRACK = 40


@dataclass(frozen=True)
class Targets:
    """The sources that stamps are cut round."""

    source: npt.NDArray[np.intp]
    """(n,) Into the catalogue."""
    snr: Float
    """(n,) Of the source's light in an aperture of 49 pixels."""
    x: Float | None = None
    """(n,) Where a cosmic ray is aimed [pixel]; None: none is."""
    y: Float | None = None
    electrons: npt.NDArray[np.int64] | None = None
    """(n,) That it sets free, known once it is drawn [e-]."""


@dataclass(frozen=True)
class StampSet:
    """Stamps of one unit; row ``i`` of everything is one source."""

    planes: dict[str, npt.NDArray[Any]]
    """``sci``, ``wht``, ``flag``, ``truth/sci``, ``truth/cr`` (n, size, size), perhaps ``truth/psf`` (n, 64, 64)."""
    columns: dict[str, npt.NDArray[np.float64]]
    """Of each stamp: where it lies, and the truth of its source."""

    def __len__(self) -> int:
        return len(self.columns["x"])


def signal_to_noise(flux: Float, exptime: float, sky_noise: float) -> Float:
    """Return the S/N of sources in an aperture of 49 pixels.

    Parameters
    ----------
    flux : float64 array
        [e-/s]
    exptime : float
        [s]
    sky_noise : float
        Of one pixel of sky, read noise included [e-].
    """
    counts = flux * exptime
    return np.asarray(counts / np.sqrt(counts + _APERTURE * sky_noise**2))


def choose_targets(
    recipe: Recipe, index: int, detector: int, catalogue: Catalogue, clean: Frame, read_noise: float
) -> Targets:
    """Choose sources by what is true of them, and aim a cosmic ray at each where the recipe wants that.

    Parameters
    ----------
    recipe : Recipe
        With stamps.
    index, detector : int
        Of the unit.
    catalogue : Catalogue
        Its sources.
    clean : float32 array (y, x)
        Photons and dark current, without cosmic rays [e-].
    read_noise : float
        [e-]
    """
    wanted = recipe.stamps
    if wanted is None:
        raise ValueError("a recipe without stamps")
    rng = stream(recipe.seed, Purpose.STAMPS, index, detector)
    sky = float(np.median(clean[::7, ::7]))
    noise = float(np.sqrt(sky + read_noise**2))
    snr = signal_to_noise(catalogue.flux, recipe.exptime, noise)
    usable = _inside(catalogue, clean.shape, wanted.size) & (snr >= wanted.snr)
    row, column = (
        np.clip(np.rint(place), 0, side - 1).astype(np.int64)
        for place, side in zip((catalogue.y, catalogue.x), clean.shape, strict=True)
    )
    unsaturated = clean[row, column] < _FULL
    if wanted.kind == "isolated":
        usable &= unsaturated & catalogue.is_star & _isolated(catalogue, wanted.separation)
    elif wanted.kind == "injected":
        usable &= unsaturated & _extended(catalogue, clean, sky, noise, wanted.extent)
    source = np.flatnonzero(usable)
    if wanted.kind == "injected":
        source = _apart(rng, catalogue, source, wanted.size + _TRACK)
    if len(source) > wanted.per_unit:
        source = np.sort(rng.choice(source, wanted.per_unit, replace=False))
    if wanted.kind == "isolated":
        return Targets(source, snr[source])
    low, high = wanted.offset
    if wanted.kind == "injected":  # moved in both axes, as the paper has it
        dx, dy = rng.uniform(low, high, (2, len(source))) * rng.choice([-1, 1], (2, len(source)))
    else:
        distance, turn = rng.uniform(low, high, len(source)), rng.uniform(0, 2 * np.pi, len(source))
        dx, dy = distance * np.cos(turn), distance * np.sin(turn)
    return Targets(source, snr[source], catalogue.x[source] + dx, catalogue.y[source] + dy)


def _inside(catalogue: Catalogue, shape: tuple[int, ...], size: int) -> npt.NDArray[np.bool_]:
    x, y, half = np.floor(catalogue.x + 0.5), np.floor(catalogue.y + 0.5), size // 2
    return np.asarray((x >= half) & (y >= half) & (x <= shape[1] - half) & (y <= shape[0] - half))


def _isolated(catalogue: Catalogue, separation: float) -> npt.NDArray[np.bool_]:
    """Tell which sources have no neighbour that matters within a distance [pixel]."""
    places = np.column_stack([catalogue.x, catalogue.y])
    alone = np.ones(len(catalogue), dtype=bool)
    for i, j in cKDTree(places).query_pairs(separation, output_type="ndarray"):
        alone[i] &= catalogue.flux[j] < _NEIGHBOUR * catalogue.flux[i]
        alone[j] &= catalogue.flux[i] < _NEIGHBOUR * catalogue.flux[j]
    return alone


def _apart(
    rng: np.random.Generator, catalogue: Catalogue, source: npt.NDArray[np.intp], distance: float
) -> npt.NDArray[np.intp]:
    """Return sources of which no two are closer than a distance [pixel], those that come first at random."""
    order = rng.permutation(source)
    places = np.column_stack([catalogue.x[order], catalogue.y[order]])
    near = cKDTree(places).query_ball_point(places, distance) if len(order) else []
    kept = np.zeros(len(order), dtype=bool)
    for i, others in enumerate(near):
        kept[i] = not any(kept[j] for j in others)
    return np.sort(order[kept])


def _extended(catalogue: Catalogue, clean: Frame, sky: float, noise: float, pixels: int) -> npt.NDArray[np.bool_]:
    """Tell which sources lie in a connected region of enough pixels above the noise."""
    regions, _ = label(clean > sky + _EXTENT_SIGMA * noise)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    x = np.clip(np.rint(catalogue.x).astype(np.int64), 0, clean.shape[1] - 1)
    y = np.clip(np.rint(catalogue.y).astype(np.int64), 0, clean.shape[0] - 1)
    return np.asarray(sizes[regions[y, x]] > pixels)


def cut_stamps(plane: npt.NDArray[Any], x: Float, y: Float, size: int) -> npt.NDArray[Any]:
    """Return stamps (n, size, size); element ``[size // 2, size // 2]`` is the pixel of (x, y)."""
    rows = np.floor(y + 0.5).astype(np.int64) - size // 2
    columns = np.floor(x + 0.5).astype(np.int64) - size // 2
    axis = np.arange(size)
    return np.asarray(plane[rows[:, None, None] + axis[None, :, None], columns[:, None, None] + axis[None, None, :]])
