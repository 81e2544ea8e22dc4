"""Real cosmic rays: libraries of events that were cut from darks and stacks, to be added to other scenes.

An event is a handful of pixels with their charge. Two published-data libraries can be read: HST/STIS, one night
of 1999 (the pixels are 42 x 21 um, so its events are mirrored in x and never turned), and LSST ITL darks
(DESC imSim; 10 um pixels, many long tracks).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import InputError
from csstdask.core.warnings import suppress_warnings
from csstdask.mock.recipe_tables import Split

#: CR-SPLIT pairs of the STIS night: what learns, what thresholds are chosen on, what is held out of both.
STIS_PAIRS: dict[Split, tuple[str, ...]] = {
    "training": ("o56502020", "o56502030"),
    "validation": ("o56502040",),
    "test": ("o56502050",),
}
#: Rows of the ITL detector, as shares of their range: the same three.
ITL_BANDS: dict[Split, tuple[float, float]] = {
    "training": (0.0, 0.6),
    "validation": (0.6, 0.8),
    "test": (0.8, 1.0),
}
#: Where the libraries lie in the folder of real data.
STIS_EVENTS = Path("hst_stis", "cr_events_stis_1999.npz")
ITL_EVENTS = Path("lsst_itl_darks", "cosmic_rays_itl_2017.fits.gz")

#: Footprints of fewer pixels or less charge [e-] than this are, in part, hot pixels.
_LEAST_PIXELS = 2
_LEAST_CHARGE = 100.0


@dataclass(frozen=True)
class EventLibrary:
    """Events as ragged arrays: event ``i`` holds the pixels ``offset[i]:offset[i + 1]``."""

    name: str
    offset: npt.NDArray[np.int64]
    dy: npt.NDArray[np.int64]
    dx: npt.NDArray[np.int64]
    """From the corner of the event's box."""
    charge: npt.NDArray[np.float32]
    """[e-]"""
    weight: npt.NDArray[np.float64]
    """Chance of each event to be drawn; sums to 1."""
    turns: bool
    """Whether an event may be turned by 90 degrees and mirrored in y: only where pixels are square."""

    def __len__(self) -> int:
        return len(self.weight)

    def select(self, keep: npt.NDArray[np.bool_]) -> EventLibrary:
        """Return a library of some of the events."""
        counts = np.diff(self.offset)
        pixels = np.repeat(keep, counts)
        weight = self.weight[keep] / self.weight[keep].sum()
        offset = np.concatenate([[0], np.cumsum(counts[keep])])
        return EventLibrary(
            self.name, offset, self.dy[pixels], self.dx[pixels], self.charge[pixels], weight, self.turns
        )

    def scatter(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int],
        pixel_fraction: float,
        *,
        brightness: npt.ArrayLike = 1.0,
    ) -> npt.NDArray[np.float32]:
        """Return the charge of events at random places of a frame, some cut off by its edges [e-].

        Parameters
        ----------
        rng : numpy.random.Generator
        shape : (int, int)
            (y, x)
        pixel_fraction : float
            Wanted share of pixels that hold charge; overlaps are not counted out.
        brightness : array-like
            Factors on the charge, of which each event gets one at random.
        """
        counts = np.diff(self.offset)
        wanted = pixel_fraction * shape[0] * shape[1] / float(counts @ self.weight)
        event = rng.choice(len(self), rng.poisson(wanted), p=self.weight)
        pixels = np.concatenate([np.arange(self.offset[i], self.offset[i + 1]) for i in event] or [np.empty(0, int)])
        owner = np.repeat(np.arange(len(event)), counts[event])
        n = len(event)
        dy, dx = self.dy[pixels], self.dx[pixels] * rng.choice([-1, 1], n)[owner]
        if self.turns:
            dy = dy * rng.choice([-1, 1], n)[owner]
            turned = rng.random(n)[owner] < 0.5
            dy, dx = np.where(turned, dx, dy), np.where(turned, dy, dx)
        y = rng.integers(-8, shape[0] + 8, n)[owner] + dy
        x = rng.integers(-8, shape[1] + 8, n)[owner] + dx
        charge = self.charge[pixels] * rng.choice(np.atleast_1d(np.asarray(brightness, dtype=np.float64)), n)[owner]
        inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
        flat = np.bincount(y[inside] * shape[1] + x[inside], weights=charge[inside], minlength=shape[0] * shape[1])
        return flat.reshape(shape).astype(np.float32)


def pair_exposures(pairs: Sequence[str]) -> tuple[str, ...]:
    """Return the names of both halves of CR-SPLIT pairs."""
    return tuple(f"{pair}_{half}" for pair in pairs for half in (1, 2))


@lru_cache(maxsize=8)
def load_event_library(name: str, split: Split | None, data: Path | None) -> EventLibrary:
    """Return the part of a library that a recipe may see.

    Parameters
    ----------
    name : str
        ``stis`` or ``itl``.
    split : str or None
        The recipe's.
    data : Path or None
        Folder of real data.

    Raises
    ------
    InputError
        Without a split, a folder, or a library in it.
    """
    if split is None:
        raise InputError(f"cosmic rays {name!r}", "a recipe without split", "split, or cosmic_rays.events_from")
    if data is None:
        raise InputError(f"cosmic rays {name!r}", "no folder of real events", "--data FOLDER")
    if name == "stis":
        return read_stis_events(data / STIS_EVENTS, pair_exposures(STIS_PAIRS[split]))
    return read_itl_events(data / ITL_EVENTS, ITL_BANDS[split])


def write_event_library(path: Path, library: EventLibrary, place: npt.NDArray[np.float64]) -> None:
    """Write a library of events.

    Parameters
    ----------
    path : Path
        ``.npz``
    library : EventLibrary
    place : float64 array (n,)
        Where each event was found, from 0 to 1 along all frames and their rows: what parts splits.
    """
    stream = io.BytesIO()
    arrays = {name: getattr(library, name) for name in ("offset", "dy", "dx", "charge", "weight", "turns")}
    np.savez_compressed(stream, allow_pickle=False, name=np.array(library.name), place=place, **arrays)
    write_atomic(path, stream.getvalue())


def read_event_library(path: Path, split: Split | None = None) -> EventLibrary:
    """Read a library of events that `write_event_library` wrote: all of it, or one split's.

    Raises
    ------
    InputError
        If the file is none, or has no event of that split.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = ("offset", "dy", "dx", "charge", "weight")
            arrays = {name: stored[name] for name in names}
            library = EventLibrary(name=str(stored["name"]), turns=bool(stored["turns"]), **arrays)
            place = stored["place"]
    except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
        raise InputError(path, f"no event library ({error})", "one that `csstdask label` wrote") from None
    low, high = (0.0, 1.0) if split is None else ITL_BANDS[split]
    keep = (place >= low) & ((place < high) | (high == 1.0))
    if not keep.any():
        raise InputError(path, f"no event for {split}", f"events from {low:.0%} to {high:.0%} of the frames' rows")
    return library.select(keep)


def read_stis_events(path: Path, exposures: Sequence[str]) -> EventLibrary:
    """Read events of the STIS night, those of some exposures alone.

    Events on hot pixels are left out. They are drawn with one over the chance that an event of their size
    survived the cutting.

    Raises
    ------
    InputError
        If the file is none, or lacks one of the exposures.
    """
    try:
        with np.load(path) as stored:
            names = [str(name) for name in stored["exposure_name"]]
            keep = np.isin(stored["exposure"], [names.index(name) for name in exposures]) & (stored["quality"] == 0)
            weight = 1 / stored["accept"].astype(np.float64)
            library = EventLibrary(
                "HST/STIS 1999",
                stored["offset"].astype(np.int64),
                stored["pix_dy"].astype(np.int64),
                stored["pix_dx"].astype(np.int64),
                stored["pix_value"].astype(np.float32),
                weight,
                turns=False,
            )
    except (OSError, KeyError, ValueError) as error:
        raise InputError(path, f"no event library ({error})", f"one with exposures {', '.join(exposures)}") from None
    return library.select(keep)


def read_itl_events(path: Path, band: tuple[float, float] = (0.0, 1.0)) -> EventLibrary:
    """Read footprints of the LSST ITL darks, those that begin in a band of the detector's rows alone.

    Parameters
    ----------
    path : Path
        The table of spans.
    band : (float, float)
        Shares of the range of rows, so that training and test see other places of the detector.

    Raises
    ------
    InputError
        If the file is no such table.
    """
    try:
        with suppress_warnings(), fits.open(path) as hdus:
            table = hdus["COSMIC_RAYS"].data
            identity = np.asarray(table["fp_id"])
            y0, x0 = np.asarray(table["y0"], dtype=np.int64), np.asarray(table["x0"], dtype=np.int64)
            spans = [np.asarray(values, dtype=np.float32) for values in table["pixel_values"]]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(path, f"no table of footprints ({error})", "COSMIC_RAYS with fp_id, x0, y0") from None
    lengths = np.array([len(span) for span in spans])
    event = np.repeat(np.unique(identity, return_inverse=True)[1], lengths)
    y = np.repeat(y0, lengths)
    x = np.concatenate([first + np.arange(n) for first, n in zip(x0, lengths, strict=True)])
    charge = np.concatenate(spans)
    order = np.argsort(event, kind="stable")
    event, y, x, charge = event[order], y[order], x[order], charge[order]
    counts = np.bincount(event)
    offset = np.concatenate([[0], np.cumsum(counts)])
    first = offset[:-1]
    y_min, x_min = np.minimum.reduceat(y, first), np.minimum.reduceat(x, first)
    total = np.add.reduceat(charge, first)
    n_events = len(counts)
    library = EventLibrary(
        "LSST ITL darks",
        offset,
        y - y_min[event],
        x - x_min[event],
        charge,
        np.full(n_events, 1 / n_events),
        turns=True,
    )
    place = (y_min - y.min()) / max(1, int(np.ptp(y)))
    inside = (place >= band[0]) & ((place < band[1]) | (band[1] == 1.0))
    return library.select(inside & (counts >= _LEAST_PIXELS) & (total >= _LEAST_CHARGE))
