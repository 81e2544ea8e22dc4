"""Measure the quality of cosmic-ray masks without truth.

Cosmic rays hit random positions once. Events at the same pixel of a detector in several exposures are unflagged hot
pixels; events at the same position on the sky in dithered exposures are stars. A third test adds cosmic rays of known
charge to a real frame and counts how many are found.
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

from csstdask.arrays.morphology import dilate, label_components
from csstdask.metrics.detection import visible_pixels
from csstdask.numerics.probability import poisson_binomial

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]
Positions = tuple[npt.NDArray[Any], npt.NDArray[Any]]
Find = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32]], Bool]

#: Positions are listed if fewer than this many of them are expected by chance.
_MAX_EXPECTED_BY_CHANCE = 0.05
#: Largest distance of two events at the same position [pixel].
_MATCH_RADIUS = 1.0
#: Smallest dither at which a star and a hot pixel can be told apart [pixel].
_MIN_DITHER = 3.0
#: Largest distance of the centres of two exposures of one field [deg].
_FIELD_RADIUS = 1.0
#: Shifts of the positions with which chance coincidences are counted [pixel].
_SHIFTS = ((11.0, 7.0), (-7.0, 11.0), (-11.0, -7.0), (7.0, -11.0))
#: Bin edges of the charge of injected events [e-].
CHARGE_BINS = 10.0 ** np.arange(2.0, 5.6, 0.5)
#: Distance of injected events from pixels that are flagged already [pixel]; with more, long tracks would not fit.
_CLEARANCE = 2


@dataclass(frozen=True)
class Recurrence:
    """Events that recur at the same position in several exposures."""

    table: dict[str, npt.NDArray[Any]]
    """Positions with events in significantly many exposures."""
    min_exposures: int | None
    """Smallest significant number of exposures; None: there are too few exposures."""
    n_events: int
    """Number of events."""
    n_shared: int
    """Number of events at a position with an event in another exposure."""
    by_chance: float
    """Expected number of those by chance."""

    @property
    def share(self) -> float:
        """Return the fraction of events that recur, in excess of chance; NaN without events."""
        return (self.n_shared - self.by_chance) / self.n_events if self.n_events else float("nan")

    @property
    def share_err(self) -> float:
        """Return the 1 sigma Poisson error of `share`; each coincidence consists of two events."""
        counted = max(1.0, 2.0 * max(float(self.n_shared), self.by_chance))
        return float(np.sqrt(counted)) / self.n_events if self.n_events else float("nan")


def detector_recurrence(events: Sequence[Positions], shape: tuple[int, int]) -> Recurrence:
    """Find pixels of one detector with events in significantly many exposures.

    Parameters
    ----------
    events : sequence of (x, y)
        Centroids of the events of each exposure [pixel]. The position of an event is the pixel of its centroid.
    shape : (int, int)
        Shape (y, x) of the frames.

    Returns
    -------
    Recurrence
        Its table has ``x``, ``y``, ``n_exposures``, and ``by_chance``, the number of such pixels expected by chance.

    Notes
    -----
    By chance, the number of exposures with an event at a pixel has a Poisson-binomial distribution, whose
    probabilities are the densities of events of the exposures. The result is a lower limit: the centroid of a hot
    pixel moves where a cosmic ray touches it or its neighbours are warm.
    """
    pixels = shape[0] * shape[1]
    exposures = [np.unique(_pixel_of(x, y, shape)) for x, y in events]
    position, count = np.unique(np.concatenate([np.empty(0, int), *exposures]), return_counts=True)
    probability = poisson_binomial(len(pixels_hit) / pixels for pixels_hit in exposures)
    expected = pixels * probability[::-1].cumsum()[::-1]  # pixels with events in at least 0, 1, 2, ... exposures
    rare = np.flatnonzero(expected < _MAX_EXPECTED_BY_CHANCE)
    min_exposures = max(2, int(rare[0])) if rare.size else len(probability)
    listed = count >= min_exposures
    row, column = np.divmod(position[listed], shape[1])
    order = np.argsort(-count[listed], kind="stable")
    table = {"x": column, "y": row, "n_exposures": count[listed], "by_chance": expected[count[listed]]}
    number = np.arange(len(probability))
    return Recurrence(
        {name: values[order] for name, values in table.items()},
        min_exposures if min_exposures < len(probability) else None,
        int(count.sum()),
        int(count[count > 1].sum()),
        float(pixels * (number * probability)[2:].sum()),
    )


def _pixel_of(x: npt.NDArray[Any], y: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    column = np.clip(np.rint(x).astype(np.int64), 0, shape[1] - 1)
    return np.clip(np.rint(y).astype(np.int64), 0, shape[0] - 1) * shape[1] + column


def sky_recurrence(events: Sequence[Positions], wcs: Sequence[WCS]) -> Recurrence | None:
    """Find positions on the sky with events in several dithered exposures of one detector: stars.

    Parameters
    ----------
    events : sequence of (x, y)
        Centroids of the events of each exposure [pixel].
    wcs : sequence of WCS
        Celestial WCS of each exposure, in any frame and with any order of the axes.

    Returns
    -------
    Recurrence or None
        Its table has ``ra``, ``dec`` [deg, ICRS] and ``n_exposures``. None if no two exposures are dithered by at
        least 3 pixels: a star cannot be distinguished from a hot pixel.

    Notes
    -----
    Chance coincidences are measured: the events are also matched with four shifts of some pixels.
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
            there = _sky_to_pixel(wcs[j], wcs[i].pixel_to_world(x, y))
            if there is None:
                continue
            if float(np.median(np.hypot(there[:, 0] - x, there[:, 1] - y))) < _MIN_DITHER:
                continue
            compared = True
            for k, shift in enumerate(shifts):
                distance, _ = tree.query(there + shift, distance_upper_bound=_MATCH_RADIUS)
                shared[i][k] += np.isfinite(distance)
                if k == 0 and j < i:
                    first[i] &= ~np.isfinite(distance)  # listed with the earlier exposure
    return _on_sky(events, wcs, shared, first) if compared else None


def _sky_to_pixel(wcs: WCS, positions: SkyCoord) -> Float | None:
    """Return positions on the sky as pixels (n, 2) of an exposure; None if it shows another field."""
    centre = wcs.pixel_to_world(*(wcs.wcs.crpix - 1.0))
    if float(np.median(positions.separation(centre).deg)) > _FIELD_RADIUS:
        return None
    return np.stack(wcs.world_to_pixel(positions), axis=1)


def _on_sky(
    events: Sequence[Positions], wcs: Sequence[WCS], shared: Sequence[npt.NDArray[np.int64]], first: Sequence[Bool]
) -> Recurrence:
    counts = np.concatenate(shared, axis=1)
    by_chance = [(counts[1:] >= n).sum() / len(_SHIFTS) for n in range(1, len(events) + 1)]
    min_exposures = 1 + next((n for n, expected in enumerate(by_chance, 1) if expected < 1), len(events))
    rows: list[Float] = []
    for (x, y), one, matched, is_first in zip(events, wcs, shared, first, strict=True):
        listed = is_first & (matched[0] + 1 >= min_exposures)
        sky = one.pixel_to_world(x[listed], y[listed]).icrs
        rows.append(np.stack([sky.ra.wrap_at("360d").deg, sky.dec.deg, matched[0][listed] + 1], axis=1))
    ra, dec, n = np.concatenate(rows).T
    order = np.argsort(-n, kind="stable")
    return Recurrence(
        {"ra": ra[order], "dec": dec[order], "n_exposures": n[order].astype(np.int64)},
        min_exposures if min_exposures <= len(events) else None,
        counts.shape[1],
        int((counts[0] > 0).sum()),
        float(by_chance[0]),
    )


@dataclass(frozen=True)
class Recovery:
    """Counts of injected events, and how many of them are found."""

    n_visible: int
    """Visible pixels of injected events."""
    n_visible_found: int
    """Visible pixels of injected events that are found."""
    n_events: npt.NDArray[np.int64]
    """Injected events by charge, in `CHARGE_BINS`."""
    n_events_found: npt.NDArray[np.int64]
    """Injected events of which at least half of the charge is found."""
    n_flagged: int
    """Pixels that were flagged before the injection."""
    n_lost: int
    """Those of them that are no longer flagged."""
    n_gained: int
    """Pixels that are flagged only after the injection, not next to an injected event."""

    def __add__(self, other: Recovery) -> Recovery:
        return Recovery(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def recall(self) -> float:
        """Return the recall of visible pixels; NaN without visible pixels."""
        return self.n_visible_found / self.n_visible if self.n_visible else float("nan")


def injection_recovery(
    data: npt.NDArray[np.float32],
    error: npt.NDArray[np.float32],
    ignore: Bool,
    flagged: Bool,
    charge: npt.NDArray[Any],
    find: Find,
) -> Recovery:
    """Add events of known charge to a real frame, and detect them.

    Parameters
    ----------
    data, error : float32 arrays (y, x)
        Pixels and their 1 sigma [e-].
    ignore, flagged : bool arrays (y, x)
        Ignored pixels, and pixels that are flagged as cosmic rays in the original frame.
    charge : array (y, x)
        Charge of the injected events [e-]; they should cover a small part of the frame. Events near ignored or
        flagged pixels are not injected, which affects long events more often.
    find : callable
        Takes data and error, and returns the mask of the cosmic rays.
    """
    excluded = dilate(flagged | ignore, _CLEARANCE)
    parts, n = label_components(charge > 0)
    rejected = np.bincount(parts[excluded], minlength=n + 1) > 0
    rejected[0] = True
    injected = np.where(rejected[parts], 0, charge).astype(np.float32)
    # Errors are derived from the measured pixels, so they include the Poisson noise of the added charge.
    found = find(data + injected, np.sqrt(error**2 + injected))
    visible = visible_pixels(injected, error, 0.0)
    event = parts[injected > 0]
    total = np.bincount(event, injected[injected > 0], n + 1)[~rejected]
    found_charge = np.bincount(event, (injected * found)[injected > 0], n + 1)[~rejected]
    near_injected = dilate(injected > 0)
    return Recovery(
        int(visible.sum()),
        int((visible & found).sum()),
        np.histogram(total, CHARGE_BINS)[0].astype(np.int64),
        np.histogram(total[found_charge >= 0.5 * total], CHARGE_BINS)[0].astype(np.int64),
        int(flagged.sum()),
        int((flagged & ~found).sum()),
        int((found & ~flagged & ~near_injected & ~ignore).sum()),
    )
