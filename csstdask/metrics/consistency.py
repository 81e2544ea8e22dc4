"""How good masks are where nobody knows the truth: three questions to real data.

Cosmic rays come anywhere, once. What is found at one pixel of a detector in exposure after exposure is a hot pixel
that nobody flagged; what is found at one place of the sky in exposures that were dithered is a star. And cosmic rays
of known charge, added to a real frame, are found again or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from scipy.spatial import KDTree

from csstdask.arrays.morphology import EIGHT_NEIGHBOURS
from csstdask.metrics.detection import visible_pixels
from csstdask.arrays.morphology import dilate, label_components
from csstdask.numerics.probability import poisson_binomial

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]
Positions = tuple[npt.NDArray[Any], npt.NDArray[Any]]
Find = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32]], Bool]

#: Places are listed from where fewer than this many are expected by chance.
_FEW = 0.05
#: How near is the same place [pixel]; exposures that are dithered by less say nothing about the sky.
_SAME_PLACE, _LEAST_DITHER = 1.0, 3.0
#: Exposures whose centres are further apart see other skies [deg].
_SAME_FIELD = 1.0
#: By how much positions are moved to see what coincides by chance [pixel].
_SHIFTS = ((11.0, 7.0), (-7.0, 11.0), (-11.0, -7.0), (7.0, -11.0))
#: Of known events [e-].
CHARGE_BINS = 10.0 ** np.arange(2.0, 5.6, 0.5)
#: Known events stay this far from what was flagged before [pixel]: further, and no long track would find a place.
_CLEARANCE = 2


@dataclass(frozen=True)
class Recurrence:
    """Events that share their place with events of other exposures."""

    table: dict[str, npt.NDArray[Any]]
    """Places where more exposures have an event than chance allows."""
    least: int | None
    """Exposures from which a place is listed; None: too few exposures for any to stand out."""
    n_events: int
    n_shared: int
    """Events at a place that another exposure has an event at too."""
    by_chance: float
    """How many of those are expected by chance."""

    @property
    def share(self) -> float:
        """Return the share of events that are at such a place, less what chance does; NaN without any."""
        return (self.n_shared - self.by_chance) / self.n_events if self.n_events else float("nan")

    @property
    def share_err(self) -> float:
        """Return its 1 sigma: coincidences are counted, and each has two events."""
        counted = max(1.0, 2.0 * max(float(self.n_shared), self.by_chance))
        return float(np.sqrt(counted)) / self.n_events if self.n_events else float("nan")


def detector_recurrence(events: Sequence[Positions], shape: tuple[int, int]) -> Recurrence:
    """Find pixels of one detector that have an event in more exposures than chance allows.

    Parameters
    ----------
    events : sequence of (x, y)
        Centroids of the events of each exposure [pixel]; an event is at the pixel that its centroid is in.
    shape : (int, int)
        (y, x) of the frames.

    Returns
    -------
    Recurrence
        Its table: ``x``, ``y``, ``n_exposures``, and ``by_chance``, how many such pixels chance has on the frame.

    Notes
    -----
    By chance the number of exposures that have an event at a pixel is Poisson-binomial, with each exposure's
    density. Hot pixels that a cosmic ray's skirt covers, or whose neighbours are warm, move their centroid: the share
    is a lower limit.
    """
    pixels = shape[0] * shape[1]
    exposures = [np.unique(_pixel_of(x, y, shape)) for x, y in events]
    place, count = np.unique(np.concatenate([np.empty(0, int), *exposures]), return_counts=True)
    chance = poisson_binomial(len(one) / pixels for one in exposures)
    at_least = pixels * chance[::-1].cumsum()[::-1]
    rare = np.flatnonzero(at_least < _FEW)
    least = max(2, int(rare[0])) if rare.size else None
    listed = count >= (len(chance) if least is None else least)
    row, column = np.divmod(place[listed], shape[1])
    order = np.argsort(-count[listed], kind="stable")
    table = {"x": column, "y": row, "n_exposures": count[listed], "by_chance": at_least[count[listed]]}
    number = np.arange(len(chance))
    return Recurrence(
        {name: values[order] for name, values in table.items()},
        least if least is not None and least < len(chance) else None,
        int(count.sum()),
        int(count[count > 1].sum()),
        float(pixels * (number * chance)[2:].sum()),
    )


def _pixel_of(x: npt.NDArray[Any], y: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    column = np.clip(np.rint(x).astype(np.int64), 0, shape[1] - 1)
    return np.clip(np.rint(y).astype(np.int64), 0, shape[0] - 1) * shape[1] + column


def sky_recurrence(events: Sequence[Positions], wcs: Sequence[WCS]) -> Recurrence | None:
    """Find places of the sky that have an event in several exposures of one detector: stars, not cosmic rays.

    Parameters
    ----------
    events : sequence of (x, y)
        Centroids of the events of each exposure [pixel].
    wcs : sequence of WCS
        Of each exposure, celestial; their frames and the order of their axes may be any.

    Returns
    -------
    Recurrence or None
        Its table: ``ra``, ``dec`` [deg, ICRS], ``n_exposures``. None if no two exposures are dithered against
        each other by 3 pixels or more: there a hot pixel cannot be told from a star.

    Notes
    -----
    Chance is measured: the same is counted with the positions moved by some pixels, four ways.
    """
    trees = [KDTree(np.stack([x, y], axis=1)) if len(x) else None for x, y in events]
    shifts = ((0.0, 0.0), *_SHIFTS)
    shared = [np.zeros((len(shifts), len(x)), dtype=np.int64) for x, _ in events]
    first = [np.ones(len(x), dtype=bool) for x, _ in events]
    compared = False
    for i, (x, y) in enumerate(events):
        for j, tree in enumerate(trees):
            if i == j or tree is None or not len(x):
                continue
            there = _places_on(wcs[j], wcs[i].pixel_to_world(x, y))
            if there is None:
                continue
            if float(np.median(np.hypot(there[:, 0] - x, there[:, 1] - y))) < _LEAST_DITHER:
                continue
            compared = True
            for k, shift in enumerate(shifts):
                distance, _ = tree.query(there + shift, distance_upper_bound=_SAME_PLACE)
                shared[i][k] += np.isfinite(distance)
                if k == 0 and j < i:
                    first[i] &= ~np.isfinite(distance)  # it is listed with the earlier exposure
    return _on_sky(events, wcs, shared, first) if compared else None


def _places_on(wcs: WCS, positions: SkyCoord) -> Float | None:
    """Return where positions on the sky fall on an exposure [pixel]; None where it sees another field."""
    centre = wcs.pixel_to_world(*(wcs.wcs.crpix - 1.0))
    if float(np.median(positions.separation(centre).deg)) > _SAME_FIELD:
        return None
    return np.stack(wcs.world_to_pixel(positions), axis=1)


def _on_sky(
    events: Sequence[Positions], wcs: Sequence[WCS], shared: Sequence[npt.NDArray[np.int64]], first: Sequence[Bool]
) -> Recurrence:
    counts = np.concatenate(shared, axis=1)
    by_chance = [(counts[1:] >= n).sum() / len(_SHIFTS) for n in range(1, len(events) + 1)]
    least = 1 + next((n for n, expected in enumerate(by_chance, 1) if expected < 1), len(events))
    rows: list[Float] = []
    for (x, y), one, matched, is_first in zip(events, wcs, shared, first, strict=True):
        listed = is_first & (matched[0] + 1 >= least)
        sky = one.pixel_to_world(x[listed], y[listed]).icrs
        rows.append(np.stack([sky.ra.wrap_at("360d").deg, sky.dec.deg, matched[0][listed] + 1], axis=1))
    ra, dec, n = np.concatenate(rows).T
    order = np.argsort(-n, kind="stable")
    return Recurrence(
        {"ra": ra[order], "dec": dec[order], "n_exposures": n[order].astype(np.int64)},
        least if least <= len(events) else None,
        counts.shape[1],
        int((counts[0] > 0).sum()),
        float(by_chance[0]),
    )


@dataclass(frozen=True)
class Recovery:
    """Known events in a real frame, looked for."""

    n_visible: int
    """Pixels of known events above 3 sigma of their noise."""
    n_visible_found: int
    n_events: npt.NDArray[np.int64]
    """Known events, by charge."""
    n_events_found: npt.NDArray[np.int64]
    """Those of which at least half of the charge is found."""
    n_flagged: int
    """Pixels flagged before."""
    n_lost: int
    """Of those, not flagged now."""
    n_gained: int
    """Flagged now, not before, and not beside a known event."""

    def __add__(self, other: Recovery) -> Recovery:
        return Recovery(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def recall(self) -> float:
        """Return the share of visible pixels that are found; NaN without any."""
        return self.n_visible_found / self.n_visible if self.n_visible else float("nan")


def recovered(
    data: npt.NDArray[np.float32],
    error: npt.NDArray[np.float32],
    ignore: Bool,
    flagged: Bool,
    charge: npt.NDArray[Any],
    find: Find,
) -> Recovery:
    """Add known events to a real frame and look for them.

    Parameters
    ----------
    data, error : float32 arrays (y, x)
        [e-]; 1 sigma.
    ignore, flagged : bool arrays (y, x)
        Pixels that take no part; those where cosmic rays were found before.
    charge : array (y, x)
        Of events, few enough to leave the frame as it is [e-]. Those near ignored or flagged pixels are left out, and
        so more of the long ones.
    find : callable
        Returns the mask of a frame, from data and error.
    """
    taken = dilate(flagged | ignore, _CLEARANCE)
    parts, n = label_components(charge > 0)
    spoilt = np.bincount(parts[taken], minlength=n + 1) > 0
    spoilt[0] = True
    known = np.where(spoilt[parts], 0, charge).astype(np.float32)
    # Weights are made from what is measured: whoever wrote them would have seen the charge too.
    found = find(data + known, np.sqrt(error**2 + known))
    visible = visible_pixels(known, error, 0.0)
    event = parts[known > 0]
    total = np.bincount(event, known[known > 0], n + 1)[~spoilt]
    seen = np.bincount(event, (known * found)[known > 0], n + 1)[~spoilt]
    beside = dilate(known > 0)
    return Recovery(
        int(visible.sum()),
        int((visible & found).sum()),
        np.histogram(total, CHARGE_BINS)[0].astype(np.int64),
        np.histogram(total[seen >= 0.5 * total], CHARGE_BINS)[0].astype(np.int64),
        int(flagged.sum()),
        int((flagged & ~found).sum()),
        int((found & ~flagged & ~beside & ~ignore).sum()),
    )
