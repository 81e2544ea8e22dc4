"""Matching of sources to a reference catalogue that tolerates an offset of the WCS."""

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
LARGEST_SHIFT = 5.0
"""Largest offset of the WCS that is looked for along each axis [arcsec]."""
CHANCE_OF_SHIFT = 1e-4
"""Probability that chance pairs alone look like an offset of the WCS."""
FEWEST_FOR_SHIFT = 3
"""Pairs at one offset that make an offset of the WCS."""


@dataclass(frozen=True)
class Match:
    """Pairs of sources and reference stars, each in one pair at most."""

    reference: Int
    """(n,) Row of the reference for each source; -1: none."""
    shift: tuple[float, float]
    """Reference less sources, along right ascension times cos(dec) and along declination [arcsec]."""
    distance: Float
    """(n,) After the shift [arcsec]; NaN without a match."""

    @property
    def n_matched(self) -> int:
        """Return the number of pairs."""
        return int((self.reference >= 0).sum())


def match_sources(
    ra: npt.ArrayLike,
    dec: npt.ArrayLike,
    ref_ra: npt.ArrayLike,
    ref_dec: npt.ArrayLike,
    *,
    radius: float = MATCH_RADIUS,
    largest_shift: float = LARGEST_SHIFT,
) -> Match:
    """Match the sources of one frame to reference stars.

    A common offset of all sources, as a wrong pointing in the header gives, is found first from the distribution of
    pair offsets. Then each source is paired with its nearest reference star if it is in turn the nearest to it.

    Parameters
    ----------
    ra, dec : array-like (n,)
        Of the sources, within a few degrees of each other [deg]; those that are not on the sky have no match.
    ref_ra, ref_dec : array-like (m,)
        Of the reference at the time of the exposure [deg].
    radius : float
        Largest distance of a pair [arcsec].
    largest_shift : float
        Largest offset looked for along each axis [arcsec]; 0: none.

    Examples
    --------
    >>> match_sources([10.0, 10.1], [0.0, 0.0], [10.1, 50.0], [0.0, 0.0]).reference.tolist()
    [-1, 0]
    """
    ra, dec, ref_ra, ref_dec = (np.asarray(one, dtype=np.float64) for one in (ra, dec, ref_ra, ref_dec))
    nothing = Match(np.full(len(ra), -1, dtype=np.int64), (0.0, 0.0), np.full(len(ra), np.nan))
    sources, stars = (np.flatnonzero(_on_sky(*one)) for one in ((ra, dec), (ref_ra, ref_dec)))
    if not len(sources) or not len(stars):
        return nothing
    seen = SkyCoord(ra[sources], dec[sources], unit="deg")
    listed = SkyCoord(ref_ra[stars], ref_dec[stars], unit="deg")
    centre = SkyCoord(seen.cartesian.mean(), frame="icrs")
    reach = seen.separation(centre).max() + 2 * (radius + largest_shift) * u.arcsec
    close = listed.separation(centre) < reach
    stars, listed = stars[close], listed[close]
    if not len(stars):
        return nothing
    here, there = (_offsets(positions, centre) for positions in (seen, listed))
    shift = _common_shift(here, there, radius, largest_shift) if largest_shift > 0 else np.zeros(2)
    distance, nearest = cKDTree(there).query(here + shift, distance_upper_bound=radius)
    _, back = cKDTree(here + shift).query(there)
    found = np.isfinite(distance)
    found[found] = back[nearest[found]] == np.flatnonzero(found)
    nothing.reference[sources[found]] = stars[nearest[found]]
    nothing.distance[sources[found]] = distance[found]
    return Match(nothing.reference, (float(shift[0]), float(shift[1])), nothing.distance)


def apply_shift(ra: npt.ArrayLike, dec: npt.ArrayLike, shift: tuple[float, float]) -> tuple[Float, Float]:
    """Return positions [deg] moved by an offset [arcsec] along right ascension times cos(dec) and declination."""
    ra, dec = np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64)
    cosine = np.maximum(np.cos(np.radians(dec)), 1e-6)
    return (ra + shift[0] / 3600 / cosine) % 360, dec + shift[1] / 3600


def _on_sky(ra: Float, dec: Float) -> npt.NDArray[np.bool_]:
    """Return which positions are finite and within the range of declinations."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(ra) & (np.abs(dec) <= 90)


def _offsets(positions: SkyCoord, centre: SkyCoord) -> Float:
    """Return offsets (n, 2) from a centre, east and north [arcsec]."""
    seen = positions.transform_to(centre.skyoffset_frame())
    return np.stack([seen.lon.wrap_at(180 * u.deg).arcsec, seen.lat.arcsec], axis=1)


def _common_shift(here: Float, there: Float, radius: float, largest: float) -> Float:
    """Return the offset that most pairs share [arcsec]; 0 if none stands out."""
    reach = largest + radius
    pairs = cKDTree(here).sparse_distance_matrix(cKDTree(there), np.sqrt(2) * reach, output_type="coo_matrix")
    offsets = there[pairs.col] - here[pairs.row]
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
    expected = 9 * (len(offsets) - n_pairs + 1) / counts.size  # of chance pairs: those elsewhere
    chance = counts.size * float(poisson.sf(n_pairs - 1, expected))
    if n_pairs < FEWEST_FOR_SHIFT or chance > CHANCE_OF_SHIFT:
        return np.zeros(2)
    shift = np.array([edges[row], edges[column]]) + cell / 2
    for reach in (2.2, 1.5, 1.5, 1.5, 1.5):  # in cells; the first holds all nine that were added up
        close = np.hypot(*(offsets - shift).T) < reach * cell
        shift = np.median(offsets[close], axis=0) if close.any() else shift
    return np.asarray(shift)
