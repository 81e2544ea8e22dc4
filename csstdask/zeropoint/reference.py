"""Read reference catalogues: positions, proper motions and AB magnitudes in several bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from csstdask.core.constants import CATALOGUE_EPOCH, DAYS_PER_YEAR
from csstdask.core.errors import InputError
from csstdask.zeropoint.photometry import mask_bad_errors, mask_bad_magnitudes

Float = npt.NDArray[np.float64]

MAX_PROPER_MOTION = 11_000.0
"""Larger proper motions are sentinels [mas/yr]: Barnard's star has 10,400."""
_SENTINEL = -9999.0
COLOR_BANDS = (("g", "r"), ("g", "i"), ("r", "i"), ("i", "z"), ("u", "g"), ("z", "y"), ("NUV", "u"))
"""Pairs of bands whose difference is the colour, in order of preference."""
_PREFIX = "mag_"
_ERROR = "_err"
_WANTED = "columns ra, dec [deg], mag_BAND, mag_BAND_err [AB mag], and pmra, pmdec [mas/yr] if known"


@dataclass(frozen=True)
class ReferenceCatalogue:
    """Stars of a reference catalogue, one per row."""

    ra: Float
    """(n,) Right ascension at `epoch` (ICRS) [deg]; NaN where unknown."""
    dec: Float
    """(n,) Declination at `epoch` (ICRS) [deg]; NaN where unknown."""
    pmra: Float
    """(n,) Proper motion in right ascension times cos(dec) [mas/yr]; 0 where unknown."""
    pmdec: Float
    """(n,) Proper motion in declination [mas/yr]; 0 where unknown."""
    epoch: Float
    """(n,) Epoch of the positions [Julian year]."""
    magnitudes: Mapping[str, Float]
    """AB magnitudes (n,) by band; NaN where missing or a sentinel."""
    errors: Mapping[str, Float]
    """1-sigma errors (n,) by band [mag]; NaN where unknown."""
    source: str = "reference catalogue"
    """Name of the catalogue in error messages."""

    def __len__(self) -> int:
        return len(self.ra)

    @property
    def bands(self) -> list[str]:
        """Bands with magnitudes."""
        return list(self.magnitudes)

    def at(self, days: float) -> tuple[Float, Float]:
        """Return right ascension and declination at a time, with proper motions applied [deg].

        Parameters
        ----------
        days : float
            Days since J2000; with NaN, positions are returned unchanged.
        """
        if not np.isfinite(days):
            return self.ra, self.dec
        years = 2000.0 + days / DAYS_PER_YEAR - self.epoch
        cosine = np.maximum(np.cos(np.radians(self.dec)), 1e-6)
        ra, dec = self.ra + self.pmra * years / (3.6e6 * cosine), self.dec + self.pmdec * years / 3.6e6
        over_pole = np.abs(dec) > 90
        return np.where(over_pole, ra + 180, ra) % 360, np.where(over_pole, np.sign(dec) * 180 - dec, dec)

    def magnitude(self, band: str) -> tuple[Float, Float]:
        """Return magnitudes and errors in a band, arrays (n,) [mag].

        Raises
        ------
        InputError
            If the catalogue has no such band.
        """
        if band not in self.magnitudes:
            known = ", ".join(self.magnitudes) or "none"
            raise InputError(self.source, f"no column {_PREFIX}{band} (bands: {known})", f"magnitudes in {band}")
        return self.magnitudes[band], self.errors[band]

    def color(self, bands: Sequence[str] | None = None) -> Float | None:
        """Return the colour of the stars: the difference of magnitudes in two bands.

        Parameters
        ----------
        bands : (str, str), optional
            Pair of bands; by default the first of `COLOR_BANDS` that the catalogue has.

        Returns
        -------
        float64 array (n,) or None
            Colours [mag]; None if the catalogue has no such pair.

        Raises
        ------
        InputError
            If a given band is absent.
        """
        pair = bands or next((pair for pair in COLOR_BANDS if set(pair) <= set(self.magnitudes)), None)
        if pair is None:
            return None
        return self.magnitude(pair[0])[0] - self.magnitude(pair[1])[0]


def check_reference(path: Path) -> list[str]:
    """Return the bands of a reference catalogue; only its schema is read.

    Raises
    ------
    InputError
        If the file is not a readable reference catalogue.
    """
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise InputError(path, f"no readable Parquet table ({type(error).__name__})", _WANTED) from None
    absent = [name for name in ("ra", "dec") if name not in names]
    if absent:
        raise InputError(path, f"no column {', '.join(absent)}", _WANTED)
    bands = _bands(names)
    if not bands:
        raise InputError(path, "no column of magnitudes", _WANTED)
    return bands


def _proper_motion(values: Float) -> Float:
    """Replace sentinels of proper motions by 0 (unknown)."""
    return np.where((np.abs(values) < MAX_PROPER_MOTION) & (values != _SENTINEL), values, 0.0)


def _bands(names: Sequence[str]) -> list[str]:
    """Return the bands that columns of magnitudes belong to."""
    return [name[len(_PREFIX) :] for name in names if name.startswith(_PREFIX) and not name.endswith(_ERROR)]


def read_reference(path: Path) -> ReferenceCatalogue:
    """Read a reference catalogue.

    Parameters
    ----------
    path : Path
        Parquet table with ``ra``, ``dec`` [deg] and, for each band, ``mag_BAND`` and ``mag_BAND_err`` [AB mag].
        Optional: ``pmra``, ``pmdec`` [mas/yr] and ``ref_epoch`` [Julian year].

    Returns
    -------
    ReferenceCatalogue
        Stars in the order of the table, sentinels replaced.

    Raises
    ------
    InputError
        If the file is not a readable reference catalogue, or a column holds no numbers.
    """
    bands = check_reference(path)
    table = pq.read_table(path)

    def column(name: str, default: float) -> Float:
        if name not in table.column_names:
            return np.full(table.num_rows, default)
        try:
            values = table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowException:
            raise InputError(path, f"column {name} of type {table[name].type}", "numbers") from None
        return np.nan_to_num(values, nan=default)

    ra, dec = column("ra", np.nan), column("dec", np.nan)
    invalid = ~(np.isfinite(ra) & (np.abs(dec) <= 90))
    ra[invalid], dec[invalid] = np.nan, np.nan
    return ReferenceCatalogue(
        ra=ra % 360,
        dec=dec,
        pmra=_proper_motion(column("pmra", 0.0)),
        pmdec=_proper_motion(column("pmdec", 0.0)),
        epoch=column("ref_epoch", CATALOGUE_EPOCH),
        magnitudes={band: mask_bad_magnitudes(column(f"{_PREFIX}{band}", np.nan)) for band in bands},
        errors={band: mask_bad_errors(column(f"{_PREFIX}{band}{_ERROR}", np.nan)) for band in bands},
        source=str(path),
    )
