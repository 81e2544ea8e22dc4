"""Which sources of a detector are stars that a PSF can be learnt from, and which of them are kept to judge it by."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from csstdask.arrays.adapter import convert_column
from csstdask.core.errors import InputError
from csstdask.numerics.robust import mad_scale

log = logging.getLogger("csstdask")

Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_COLUMNS = ("x", "y", "flux", "flux_err", "half_light_radius", "ellipticity", "flag")
#: SEP's flags of blends, of what an edge cuts off, and of pixels that are not what they were.
_BLENDED, _CUT, _OVERFLOWN = 1, 2, 4
#: The locus of stars: from radii of sources so bright, so many sigma wide, at least a share of their radius.
_LOCUS_SNR, _LOCUS_SIGMA, _LEAST_LOCUS = 50.0, 4.0, 0.05
_FEWEST = 10
#: Cells along each axis of the detector, of which every fifth holds stars in reserve, none beside another.
_CELLS, _EVERY = 10, 5
#: Bins of a star's place within its pixel along each axis; how far below the mean of all a bin is worth a warning, as a
#: share of it and in sigmas of its chance.
_PHASES, _LEAST_SHARE, _CHANCE = 4, 0.25, 3.0


@dataclass(frozen=True)
class Selection:
    """Stars of one detector."""

    fitted: Mask
    """(n,) Of all sources: those that a PSF is fitted to."""
    reserve: Mask
    """(n,) Stars as good, in cells of the detector of their own: a fit never sees them."""
    left_out: dict[str, int]
    """Why the others are not among them, and how many: the first reason counts."""
    radius: tuple[float, float]
    """Half-light radii between which stars lie [pixel]."""
    phases: npt.NDArray[np.int64]
    """(4, 4) Fitted stars by their place within a pixel, y and x: an undersampled PSF wants them all."""


def select_stars(
    sources: Mapping[str, Any],
    shape: tuple[int, int],
    *,
    least_snr: float = 30.0,
    separation: float = 12.0,
    neighbour: float = 0.01,
    most_ellipticity: float = 0.3,
    full: float | None = None,
    stamp: int = 32,
) -> Selection:
    """Select the stars of a detector by their looks.

    Parameters
    ----------
    sources : mapping
        Columns (n,) of a source table: ``x, y`` [pixel], ``flux, flux_err`` (any unit), ``half_light_radius`` [pixel],
        ``ellipticity``, ``flag`` (SEP's), perhaps ``peak``.
    shape : (int, int)
        Of the detector (y, x) [pixel].
    least_snr : float
        Of ``flux / flux_err``.
    separation : float
        Within which no other source may lie [pixel]...
    neighbour : float
        ...that has such a share of the star's flux.
    most_ellipticity : float
    full : float, optional
        Stars whose ``peak`` reaches it are saturated, in its unit.
    stamp : int
        Edge of the stamps that will be cut, which must lie on the detector [pixel].

    Returns
    -------
    Selection
        A warning is given where places within a pixel are missing among the stars.

    Raises
    ------
    InputError
        If a column is absent.
    """
    wanted = (*_COLUMNS, *(("peak",) if full is not None else ()))
    present = getattr(sources, "colnames", sources)  # an astropy table, or any mapping
    if absent := [name for name in wanted if name not in present]:
        raise InputError("sources", f"no column {', '.join(absent)}", f"a source table with {', '.join(wanted)}")
    units = {"x": "pix", "y": "pix", "half_light_radius": "pix"}  # of other columns, any
    x, y, flux, error, radius, ellipticity = (
        convert_column(sources[name], name, units.get(name)) for name in _COLUMNS[:-1]
    )
    flags = convert_column(sources["flag"], "flag")
    flag = np.where(np.isfinite(flags), flags, _OVERFLOWN).astype(np.int64)  # unknown: not trusted
    snr = np.divide(flux, error, out=np.zeros_like(flux), where=error > 0)
    half = stamp // 2
    inside = (x >= half) & (y >= half) & (x < shape[1] - half) & (y < shape[0] - half)
    reasons = {
        "faint": ~(snr >= least_snr),
        "beside the edge": ~inside,
        "flagged": (flag & (_BLENDED | _CUT | _OVERFLOWN)) != 0,
        "saturated": np.zeros(len(x), bool) if full is None else ~(convert_column(sources["peak"], "peak") < full),
        "long": ~(ellipticity <= most_ellipticity),
        "not alone": ~_alone(x, y, flux, separation, neighbour),
    }
    good = ~np.logical_or.reduce(list(reasons.values()))
    low, high = _locus(radius[good & np.isfinite(radius)], snr[good & np.isfinite(radius)])
    reasons["not of a star's size"] = ~((radius >= low) & (radius <= high))
    left_out, left = {}, np.ones(len(x), bool)
    for reason, out in reasons.items():
        left_out[reason] = int((left & out).sum())
        left &= ~out
    kept = in_held_out_cell(x, y, shape)
    fitted, reserve = left & ~kept, left & kept
    phases = _phases(x[fitted], y[fitted])
    usual = phases.mean()
    if phases.min() < min(_LEAST_SHARE * usual, usual - _CHANCE * usual**0.5):
        log.warning(
            "of %d stars only %d lie in one sixteenth of a pixel: the PSF between samples is poorly told",
            phases.sum(), phases.min(),
        )  # fmt: skip
    return Selection(fitted, reserve, left_out, (low, high), phases)


def in_held_out_cell(x: Float, y: Float, shape: tuple[int, int]) -> Mask:
    """Return whether places (n,) lie in the cells of a detector of a shape (y, x) whose stars are in reserve."""
    column, row = (
        np.clip(place / length * _CELLS, 0, _CELLS - 1).astype(int) for place, length in ((x, shape[1]), (y, shape[0]))
    )
    return np.asarray((column + 2 * row) % _EVERY == 0)


def _alone(x: Float, y: Float, flux: Float, separation: float, neighbour: float) -> Mask:
    alone = np.ones(len(x), dtype=bool)
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(known) > 1:
        for a, b in cKDTree(np.column_stack([x[known], y[known]])).query_pairs(separation, output_type="ndarray"):
            i, j = known[a], known[b]
            alone[i] &= flux[j] < neighbour * flux[i]
            alone[j] &= flux[i] < neighbour * flux[j]
    return alone


def _locus(radius: Float, snr: Float) -> tuple[float, float]:
    """Return between which half-light radii stars lie: bright sources are mostly stars, and stars are all alike."""
    bright = np.sort(radius[snr >= _LOCUS_SNR]) if (snr >= _LOCUS_SNR).sum() >= _FEWEST else np.sort(radius)
    if not len(bright):
        return np.nan, np.nan
    # The shortest interval with half of what is left, again and again: the half-sample mode (Bickel & Fruehwirth 2006).
    core = bright
    while len(core) > _FEWEST:
        half = (len(core) + 1) // 2
        first = int(np.argmin(core[half - 1 :] - core[: len(core) - half + 1]))
        core = core[first : first + half]
    middle = float(core[len(core) // 2])  # one of them: of two that are far apart, the mean is near neither
    near = bright[np.abs(bright - middle) < 0.2 * middle]
    sigma = float(mad_scale(near))
    width = max(_LOCUS_SIGMA * sigma, _LEAST_LOCUS * middle)
    return middle - width, middle + width


def _phases(x: Float, y: Float) -> npt.NDArray[np.int64]:
    row, column = (np.minimum(((place + 0.5) % 1 * _PHASES).astype(int), _PHASES - 1) for place in (y, x))
    counts = np.bincount(row * _PHASES + column, minlength=_PHASES**2)
    return counts.reshape(_PHASES, _PHASES)
