"""Reference catalogues: positions, proper motions and AB magnitudes in several bands, from a Parquet table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from csstdask.core.errors import InputError
from csstdask.zeropoint.photometry import mask_bad_errors, mask_bad_magnitudes

Float = npt.NDArray[np.float64]

DEFAULT_EPOCH = 2016.0
"""Epoch of positions where a catalogue has no column ``ref_epoch``: that of Gaia DR3 [Julian year]."""
DAYS_A_YEAR = 365.25
FASTEST = 11_000.0
"""Proper motions above are not real [mas/yr]: Barnard's star has 10,400. -9999 is a sentinel as well."""
_SENTINEL = -9999.0
COLOR_BANDS = (("g", "r"), ("g", "i"), ("r", "i"), ("i", "z"), ("u", "g"), ("z", "y"), ("NUV", "u"))
"""Pairs whose difference is the colour, in order of preference."""
_PREFIX = "mag_"
_ERROR = "_err"
_WANTED = "columns ra, dec [deg], mag_BAND, mag_BAND_err [AB mag], and pmra, pmdec [mas/yr] if known"


@dataclass(frozen=True)
class ReferenceCatalogue:
    """Stars, one a row."""

    ra: Float
    """(n,) At `epoch`, ICRS [deg]; NaN where unknown."""
    dec: Float
    pmra: Float
    """(n,) Proper motion in right ascension times cos(dec) [mas/yr]; 0 where unknown."""
    pmdec: Float
    epoch: Float
    """(n,) Of the positions [Julian year]."""
    magnitudes: Mapping[str, Float]
    """AB magnitudes (n,) by band; NaN where missing or a sentinel."""
    errors: Mapping[str, Float]
    """Their 1-sigma errors; NaN where unknown."""
    source: str = "reference catalogue"
    """Name, for messages."""

    def __len__(self) -> int:
        return len(self.ra)

    @property
    def bands(self) -> list[str]:
        """Return the bands with magnitudes."""
        return list(self.magnitudes)

    def at(self, days: float) -> tuple[Float, Float]:
        """Return right ascension and declination at a time [deg], proper motions applied.

        Parameters
        ----------
        days : float
            Since J2000; NaN: positions are returned as they are.
        """
        if not np.isfinite(days):
            return self.ra, self.dec
        years = 2000.0 + days / DAYS_A_YEAR - self.epoch
        cosine = np.maximum(np.cos(np.radians(self.dec)), 1e-6)
        ra, dec = self.ra + self.pmra * years / (3.6e6 * cosine), self.dec + self.pmdec * years / 3.6e6
        beyond = np.abs(dec) > 90  # carried over a pole
        return np.where(beyond, ra + 180, ra) % 360, np.where(beyond, np.sign(dec) * 180 - dec, dec)

    def magnitude(self, band: str) -> tuple[Float, Float]:
        """Return magnitudes and errors in a band.

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
        """Return the difference of magnitudes in two bands.

        Parameters
        ----------
        bands : (str, str), optional
            By default the first pair of `COLOR_BANDS` that the catalogue has.

        Returns
        -------
        float64 array (n,), or None if the catalogue has no such pair.

        Raises
        ------
        InputError
            If a band that is named is absent.
        """
        pair = bands or next((pair for pair in COLOR_BANDS if set(pair) <= set(self.magnitudes)), None)
        if pair is None:
            return None
        return self.magnitude(pair[0])[0] - self.magnitude(pair[1])[0]


def check_reference(path: Path) -> list[str]:
    """Return the bands of a reference catalogue; its schema alone is read.

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
    """Return proper motions; 0, which means unknown, for sentinels."""
    return np.where((np.abs(values) < FASTEST) & (values != _SENTINEL), values, 0.0)


def _bands(names: Sequence[str]) -> list[str]:
    return [name[len(_PREFIX) :] for name in names if name.startswith(_PREFIX) and not name.endswith(_ERROR)]


def read_reference(path: Path) -> ReferenceCatalogue:
    """Read a reference catalogue.

    Parameters
    ----------
    path : Path
        Parquet with ``ra``, ``dec`` [deg] and for each band ``mag_BAND`` and ``mag_BAND_err`` [AB mag]; optional
        ``pmra``, ``pmdec`` [mas/yr] and ``ref_epoch`` [Julian year].

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
    wrong = ~(np.isfinite(ra) & (np.abs(dec) <= 90))
    ra[wrong], dec[wrong] = np.nan, np.nan
    return ReferenceCatalogue(
        ra=ra % 360,
        dec=dec,
        pmra=_proper_motion(column("pmra", 0.0)),
        pmdec=_proper_motion(column("pmdec", 0.0)),
        epoch=column("ref_epoch", DEFAULT_EPOCH),
        magnitudes={band: mask_bad_magnitudes(column(f"{_PREFIX}{band}", np.nan)) for band in bands},
        errors={band: mask_bad_errors(column(f"{_PREFIX}{band}{_ERROR}", np.nan)) for band in bands},
        source=str(path),
    )
