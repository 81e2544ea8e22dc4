"""Select the stars of a detector that a PSF can be fitted to, and those that are held out to test it."""

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
#: Flags of SEP: blended, cut by an edge, with saturated or interpolated pixels.
_BLENDED, _TRUNCATED, _SATURATED = 1, 2, 4
#: S/N of the sources that define the stellar locus of half-light radii.
_LOCUS_MIN_SNR = 50.0
#: Half-width of the locus, in standard deviations.
_LOCUS_SIGMA = 4.0
#: Smallest half-width of the locus, as a share of its radius.
_MIN_LOCUS_WIDTH = 0.05
#: Distance from the mode within which the scatter of the locus is measured, as a share of its radius.
_LOCUS_REACH = 0.2
#: Smallest number of sources that define the locus.
_MIN_LOCUS_SOURCES = 10
#: Cells along each axis of the detector...
_CELLS = 10
#: ...of which every fifth holds stars that are held out; no two of these are adjacent.
_HELD_OUT_EVERY = 5
#: Bins of the sub-pixel position of stars along each axis.
_PHASE_BINS = 4
#: A warning is given where a bin has less than this share of the mean...
_MIN_PHASE_SHARE = 0.25
#: ...and is this many standard deviations of a Poisson number below it.
_MIN_PHASE_SIGMA = 3.0


@dataclass(frozen=True, eq=False)
class Selection:
    """Stars of one detector, among n sources."""

    fitted: Mask
    """(n,) Stars that a PSF is fitted to."""
    held_out: Mask
    """(n,) Stars of the same quality in separate cells of the detector, which the fit does not use."""
    rejected: dict[str, int]
    """Number of other sources by the first reason for their rejection."""
    radius: tuple[float, float]
    """Limits of the stellar locus of half-light radii [pixel]."""
    phases: npt.NDArray[np.int64]
    """(4, 4) Number of fitted stars by sub-pixel position, y and x: an undersampled PSF needs all of them."""


def select_stars(
    sources: Mapping[str, Any],
    shape: tuple[int, int],
    *,
    min_snr: float = 30.0,
    separation: float = 12.0,
    neighbour: float = 0.01,
    max_ellipticity: float = 0.3,
    saturation: float | None = None,
    stamp: int = 32,
) -> Selection:
    """Select the stars of a detector by size, shape and isolation.

    Parameters
    ----------
    sources : mapping
        Columns (n,) of a source table: ``x, y`` [pixel], ``flux, flux_err`` (any unit), ``half_light_radius`` [pixel],
        ``ellipticity``, ``flag`` (of SEP), and ``peak`` if `saturation` is given.
    shape : (int, int)
        Shape of the detector (y, x) [pixel].
    min_snr : float
        Smallest ``flux / flux_err``.
    separation : float
        Radius within which no other source may lie [pixel]...
    neighbour : float
        ...that has more than this share of the star's flux.
    max_ellipticity : float
        Largest ellipticity.
    saturation : float, optional
        Stars whose ``peak`` reaches this value, in its unit, are saturated.
    stamp : int
        Width of the stamps that will be cut, which must lie on the detector [pixel].

    Returns
    -------
    Selection
        A warning is logged if the stars do not sample all sub-pixel positions.

    Raises
    ------
    InputError
        If a column is absent.
    """
    wanted = (*_COLUMNS, *(("peak",) if saturation is not None else ()))
    present = getattr(sources, "colnames", sources)  # an astropy table, or any mapping
    if absent := [name for name in wanted if name not in present]:
        raise InputError("sources", f"no column {', '.join(absent)}", f"a source table with {', '.join(wanted)}")
    units = {"x": "pix", "y": "pix", "half_light_radius": "pix"}  # of other columns, any
    x, y, flux, error, radius, ellipticity = (
        convert_column(sources[name], name, units.get(name)) for name in _COLUMNS[:-1]
    )
    flags = convert_column(sources["flag"], "flag")
    flag = np.where(np.isfinite(flags), flags, _SATURATED).astype(np.int64)  # unknown: rejected
    snr = np.divide(flux, error, out=np.zeros_like(flux), where=error > 0)
    half = stamp // 2
    inside = (x >= half) & (y >= half) & (x < shape[1] - half) & (y < shape[0] - half)
    saturated = np.zeros(len(x), bool)
    if saturation is not None:
        saturated = ~(convert_column(sources["peak"], "peak") < saturation)
    reasons = {
        "faint": ~(snr >= min_snr),
        "near edge": ~inside,
        "flagged": (flag & (_BLENDED | _TRUNCATED | _SATURATED)) != 0,
        "saturated": saturated,
        "elongated": ~(ellipticity <= max_ellipticity),
        "blended neighbour": ~_isolated(x, y, flux, separation, neighbour),
    }
    good = ~np.logical_or.reduce(list(reasons.values())) & np.isfinite(radius)
    low, high = _stellar_locus(radius[good], snr[good])
    reasons["off the stellar locus"] = ~((radius >= low) & (radius <= high))
    rejected, stars = {}, np.ones(len(x), bool)
    for reason, failed in reasons.items():
        rejected[reason] = int((stars & failed).sum())
        stars &= ~failed
    in_cell = in_held_out_cell(x, y, shape)
    fitted = stars & ~in_cell
    phases = _count_phases(x[fitted], y[fitted])
    mean = phases.mean()
    if phases.min() < min(_MIN_PHASE_SHARE * mean, mean - _MIN_PHASE_SIGMA * mean**0.5):
        log.warning(
            "only %d of %d stars lie in one sixteenth of a pixel: the PSF between samples is poorly constrained",
            phases.min(),
            phases.sum(),
        )
    return Selection(fitted, stars & in_cell, rejected, (low, high), phases)


def in_held_out_cell(x: Float, y: Float, shape: tuple[int, int]) -> Mask:
    """Return whether positions (n,) lie in cells of a detector of a shape (y, x) whose stars are held out.

    Examples
    --------
    >>> in_held_out_cell(np.array([5.0, 15.0]), np.array([5.0, 5.0]), (100, 100)).tolist()
    [True, False]
    """
    column, row = (
        np.clip(position / length * _CELLS, 0, _CELLS - 1).astype(int)
        for position, length in ((x, shape[1]), (y, shape[0]))
    )
    return np.asarray((column + 2 * row) % _HELD_OUT_EVERY == 0)


def _isolated(x: Float, y: Float, flux: Float, separation: float, neighbour: float) -> Mask:
    """Return which sources have no neighbour with a share of their flux within a separation."""
    isolated = np.ones(len(x), dtype=bool)
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(known) > 1:
        for a, b in cKDTree(np.column_stack([x[known], y[known]])).query_pairs(separation, output_type="ndarray"):
            i, j = known[a], known[b]
            isolated[i] &= flux[j] < neighbour * flux[i]
            isolated[j] &= flux[i] < neighbour * flux[j]
    return isolated


def _stellar_locus(radius: Float, snr: Float) -> tuple[float, float]:
    """Return limits of the half-light radii of stars: most bright sources are stars, all of about one size.

    The locus is centred on the half-sample mode (Bickel & Fruehwirth 2006).
    """
    bright = snr >= _LOCUS_MIN_SNR
    sample = np.sort(radius[bright] if bright.sum() >= _MIN_LOCUS_SOURCES else radius)
    if not len(sample):
        return np.nan, np.nan
    core = sample
    while len(core) > _MIN_LOCUS_SOURCES:
        half = (len(core) + 1) // 2
        first = int(np.argmin(core[half - 1 :] - core[: len(core) - half + 1]))
        core = core[first : first + half]
    mode = float(core[len(core) // 2])  # one of them: the mean of two distant values is near neither
    near = sample[np.abs(sample - mode) < _LOCUS_REACH * mode]
    sigma = float(mad_scale(near))
    width = max(_LOCUS_SIGMA * sigma, _MIN_LOCUS_WIDTH * mode)
    return mode - width, mode + width


def _count_phases(x: Float, y: Float) -> npt.NDArray[np.int64]:
    """Return the number of stars (4, 4) in bins of their sub-pixel position, y and x."""
    row, column = (np.minimum(((position + 0.5) % 1 * _PHASE_BINS).astype(int), _PHASE_BINS - 1) for position in (y, x))
    counts = np.bincount(row * _PHASE_BINS + column, minlength=_PHASE_BINS**2)
    return counts.reshape(_PHASE_BINS, _PHASE_BINS)
