"""Match sources to a reference catalogue, allowing for an offset of the WCS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy import units as u
from astropy.coordinates import SkyCoord
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree
from scipy.stats import poisson

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

MATCH_RADIUS = 1.0
"""Largest distance of a match [arcsec]."""
MAX_SHIFT = 5.0
"""Largest offset of the WCS along each axis [arcsec]."""
MAX_CHANCE = 1e-4
"""Largest probability that chance pairs alone would give an accepted offset of the WCS."""
MIN_PAIRS_FOR_SHIFT = 3
"""Smallest number of pairs at one offset for an offset of the WCS."""
_CELL_RADII = (2.2, 1.5, 1.5, 1.5, 1.5)
"""Radii within which the offset is refined [histogram cells]; the first contains all cells that were added up."""


@dataclass(frozen=True)
class Match:
    """Pairs of sources and reference stars; each is in one pair at most."""

    reference: Int
    """(n,) Row of the reference for each source; -1: none."""
    shift: tuple[float, float]
    """Reference minus source positions, along right ascension times cos(dec) and along declination [arcsec]."""
    distance: Float
    """(n,) Distance after the shift [arcsec]; NaN without a match."""

    @property
    def n_matched(self) -> int:
        """Number of pairs."""
        return int((self.reference >= 0).sum())


def match_sources(
    ra: npt.ArrayLike,
    dec: npt.ArrayLike,
    ref_ra: npt.ArrayLike,
    ref_dec: npt.ArrayLike,
    *,
    radius: float = MATCH_RADIUS,
    max_shift: float = MAX_SHIFT,
) -> Match:
    """Match the sources of one frame to reference stars.

    A common offset of all sources, caused by a wrong pointing in the header, is determined first from the distribution
    of pair offsets. Then each source is paired with its nearest reference star, if they are mutually nearest.

    Parameters
    ----------
    ra, dec : array-like (n,)
        Positions of the sources, within a few degrees of each other [deg]. Invalid positions have no match.
    ref_ra, ref_dec : array-like (m,)
        Positions of the reference at the time of the exposure [deg].
    radius : float
        Largest distance of a pair [arcsec].
    max_shift : float
        Largest offset along each axis [arcsec]; 0: no offset is fitted.

    Returns
    -------
    Match
        Reference row of each source, and the offset.

    Examples
    --------
    >>> match_sources([10.0, 10.1], [0.0, 0.0], [10.1, 50.0], [0.0, 0.0]).reference.tolist()
    [-1, 0]
    """
    ra, dec, ref_ra, ref_dec = (np.asarray(column, dtype=np.float64) for column in (ra, dec, ref_ra, ref_dec))
    reference, distances = np.full(len(ra), -1, dtype=np.int64), np.full(len(ra), np.nan)
    sources, stars = np.flatnonzero(_is_valid(ra, dec)), np.flatnonzero(_is_valid(ref_ra, ref_dec))
    if not len(sources) or not len(stars):
        return Match(reference, (0.0, 0.0), distances)
    source_sky = SkyCoord(ra[sources], dec[sources], unit="deg")
    star_sky = SkyCoord(ref_ra[stars], ref_dec[stars], unit="deg")
    centre = SkyCoord(source_sky.cartesian.mean(), frame="icrs")
    field_radius = source_sky.separation(centre).max() + 2 * (radius + max_shift) * u.arcsec
    in_field = star_sky.separation(centre) < field_radius
    stars, star_sky = stars[in_field], star_sky[in_field]
    if not len(stars):
        return Match(reference, (0.0, 0.0), distances)
    source_offsets, star_offsets = _tangent_offsets(source_sky, centre), _tangent_offsets(star_sky, centre)
    shift = _common_shift(source_offsets, star_offsets, radius, max_shift) if max_shift > 0 else np.zeros(2)
    distance, nearest = cKDTree(star_offsets).query(source_offsets + shift, distance_upper_bound=radius)
    _, nearest_source = cKDTree(source_offsets + shift).query(star_offsets)
    matched = np.isfinite(distance)
    matched[matched] = nearest_source[nearest[matched]] == np.flatnonzero(matched)
    reference[sources[matched]] = stars[nearest[matched]]
    distances[sources[matched]] = distance[matched]
    return Match(reference, (float(shift[0]), float(shift[1])), distances)


def apply_shift(ra: npt.ArrayLike, dec: npt.ArrayLike, shift: tuple[float, float]) -> tuple[Float, Float]:
    """Shift positions [deg] by an offset along right ascension times cos(dec) and declination [arcsec].

    Examples
    --------
    >>> ra, dec = apply_shift([10.0], [0.0], (3.6, 7.2))
    >>> ra.round(6).tolist(), dec.round(6).tolist()
    ([10.001], [0.002])
    """
    ra, dec = np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64)
    cosine = np.maximum(np.cos(np.radians(dec)), 1e-6)
    return (ra + shift[0] / 3600 / cosine) % 360, dec + shift[1] / 3600


def _is_valid(ra: Float, dec: Float) -> npt.NDArray[np.bool_]:
    """Return which positions are finite and have a declination between -90 and 90 degrees."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(ra) & (np.abs(dec) <= 90)


def _tangent_offsets(positions: SkyCoord, centre: SkyCoord) -> Float:
    """Return offsets from a centre, east and north, float64 array (n, 2) [arcsec]."""
    offset = positions.transform_to(centre.skyoffset_frame())
    return np.stack([offset.lon.wrap_at(180 * u.deg).arcsec, offset.lat.arcsec], axis=1)


def _common_shift(source: Float, star: Float, radius: float, max_shift: float) -> Float:
    """Return the offset that most pairs share, float64 array (2,) [arcsec]; 0 if none is significant."""
    reach = max_shift + radius
    pairs = cKDTree(source).sparse_distance_matrix(cKDTree(star), np.sqrt(2) * reach, output_type="coo_matrix")
    offsets = star[pairs.col] - source[pairs.row]
    offsets = offsets[(np.abs(offsets) <= reach).all(axis=1)]
    if not len(offsets):
        return np.zeros(2)
    cell = min(radius / 2, 0.5)
    edges = np.arange(-reach, reach + cell, cell)
    counts = np.histogram2d(offsets[:, 0], offsets[:, 1], bins=(edges, edges))[0]
    # Pairs within one cell of each cell: the peak may lie on an edge.
    sums = uniform_filter(counts, size=3, mode="constant") * 9
    row, column = np.unravel_index(int(np.argmax(sums)), sums.shape)
    n_pairs = round(float(sums[row, column]))
    expected = 9 * (len(offsets) - n_pairs + 1) / counts.size  # chance pairs, estimated from those elsewhere
    chance = counts.size * float(poisson.sf(n_pairs - 1, expected))
    if n_pairs < MIN_PAIRS_FOR_SHIFT or chance > MAX_CHANCE:
        return np.zeros(2)
    shift = np.array([edges[row], edges[column]]) + cell / 2
    for cells in _CELL_RADII:
        close = np.hypot(*(offsets - shift).T) < cells * cell
        shift = np.median(offsets[close], axis=0) if close.any() else shift
    return np.asarray(shift)
