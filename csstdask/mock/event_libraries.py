"""Libraries of real cosmic-ray events, cut from dark frames or stacks, to be injected into other scenes.

An event is a small group of pixels with their charge. Two public libraries can be read: HST/STIS, one night of 1999
(pixels of 42 x 21 um, so that events may be mirrored in x but not rotated), and LSST ITL darks (DESC imSim; pixels of
10 um, many long tracks).
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

# CR-SPLIT pairs of the STIS night for training, validation and test.
STIS_PAIRS: dict[Split, tuple[str, ...]] = {
    "training": ("o56502020", "o56502030"),
    "validation": ("o56502040",),
    "test": ("o56502050",),
}
# Fractions of the rows of the ITL detector for the same purposes.
ITL_BANDS: dict[Split, tuple[float, float]] = {
    "training": (0.0, 0.6),
    "validation": (0.6, 0.8),
    "test": (0.8, 1.0),
}
# Paths of the libraries in the folder of real data.
STIS_EVENTS = Path("hst_stis", "cr_events_stis_1999.npz")
ITL_EVENTS = Path("lsst_itl_darks", "cosmic_rays_itl_2017.fits.gz")

_MIN_PIXELS = 2
"""Smallest number of pixels of an ITL event; smaller ones include hot pixels."""
_MIN_CHARGE = 100.0
"""Smallest charge of an ITL event; fainter ones include hot pixels [e-]."""


@dataclass(frozen=True)
class EventLibrary:
    """Events as ragged arrays: event ``i`` has the pixels ``offset[i]:offset[i + 1]``."""

    name: str
    offset: npt.NDArray[np.int64]
    dy: npt.NDArray[np.int64]
    """Row relative to the corner of the bounding box of the event."""
    dx: npt.NDArray[np.int64]
    """Column relative to this corner."""
    charge: npt.NDArray[np.float32]
    """Charge of each pixel [e-]."""
    weight: npt.NDArray[np.float64]
    """Probability of each event to be drawn; sums to 1."""
    turns: bool
    """Whether events may be rotated by 90 degrees and mirrored in y, which requires square pixels."""

    def __len__(self) -> int:
        return len(self.weight)

    def select(self, keep: npt.NDArray[np.bool_]) -> EventLibrary:
        """Return a library of the events of a mask (event,)."""
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
        """Return the charge of events at random positions of a frame [e-].

        Parameters
        ----------
        rng : numpy.random.Generator
            Random stream.
        shape : (int, int)
            Shape (y, x) of the frame.
        pixel_fraction : float
            Expected fraction of pixels with charge, neglecting overlaps.
        brightness : array-like
            Factors of the charge; each event gets one at random.

        Returns
        -------
        float32 array (y, x)
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
    """Return the names of both exposures of CR-SPLIT pairs.

    Examples
    --------
    >>> pair_exposures(("o56502040",))
    ('o56502040_1', 'o56502040_2')
    """
    return tuple(f"{pair}_{half}" for pair in pairs for half in (1, 2))


@lru_cache(maxsize=8)
def load_event_library(name: str, split: Split | None, data: Path | None) -> EventLibrary:
    """Read the part of an event library that a recipe may use.

    Parameters
    ----------
    name : str
        ``stis`` or ``itl``.
    split : str or None
        Permitted use of the recipe or field.
    data : Path or None
        Folder of real data.

    Raises
    ------
    InputError
        If the split, the folder or the library is missing.
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
        File to write (``.npz``).
    library : EventLibrary
        Events.
    place : float64 array (n,)
        Position of each event along all frames and their rows, from 0 to 1, by which splits are separated.
    """
    stream = io.BytesIO()
    arrays = {name: getattr(library, name) for name in ("offset", "dy", "dx", "charge", "weight", "turns")}
    np.savez_compressed(stream, allow_pickle=False, name=np.array(library.name), place=place, **arrays)
    write_atomic(path, stream.getvalue())


def read_event_library(path: Path, split: Split | None = None) -> EventLibrary:
    """Read an event library written by `write_event_library`.

    Parameters
    ----------
    path : Path
        File of the library.
    split : str, optional
        Split to read; default: all events.

    Raises
    ------
    InputError
        If the file is not an event library, or has no event of this split.
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
    """Read the STIS events of given exposures.

    Events on hot pixels are left out. The weight of an event is the inverse of the probability that an event of its
    size was cut completely.

    Parameters
    ----------
    path : Path
        File of the library.
    exposures : sequence of str
        Names of the exposures.

    Raises
    ------
    InputError
        If the file is not an event library, or lacks one of the exposures.
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
    """Read the events of the LSST ITL darks that start in a range of rows.

    Parameters
    ----------
    path : Path
        FITS table of spans.
    band : (float, float)
        Range of rows, as fractions, so that training and test use different parts of the detector.

    Raises
    ------
    InputError
        If the file is not such a table.
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
    return library.select(inside & (counts >= _MIN_PIXELS) & (total >= _MIN_CHARGE))
