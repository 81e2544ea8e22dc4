"""Read tables of measured zero points, one row per exposure, and split them by night.

A table is a CSV file, plain or compressed, with the columns `REQUIRED` and, where known, `CONDITIONS`. Times are
Modified Julian Dates. The observing bots of the DESI Legacy Surveys write such tables
(github.com/legacysurvey/obsbot).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from csstdask.core.constants import J2000_MJD
from csstdask.core.errors import InputError

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

REQUIRED = ("campaign", "band", "mjd_obs", "exptime", "airmass", "nmatched", "zeropoint")
"""Columns that a table must have."""
CONDITIONS = ("airmass", "ebv", "exptime", "seeing", "sky")
"""Conditions that are known before the stars of an exposure are matched; none is computed from its zero point."""
POINTING = ("rabore", "decbore")
"""Direction of the telescope [deg]."""
NIGHT_START = 0.7
"""Fraction of a Modified Julian Date at noon at the telescopes in Chile and Arizona [d]."""
MIN_VALUES = {"zeropoint": 15.0, "nmatched": 15.0, "exptime": 10.0, "airmass": 1.0}
"""Smallest values of usable rows; others are failed fits [mag], have few stars, are tests [s], or lack an airmass."""
EXCLUSIVE = ("zeropoint",)
"""Columns that must exceed their smallest value; others may be equal to it."""
TRAIN_FRACTION = 0.6
"""Fraction of the nights of a campaign, the first ones, for training."""


@dataclass(frozen=True)
class ExposureTable:
    """Usable exposures of one campaign, in time order.

    Attributes
    ----------
    campaign : str
        Name of the campaign.
    days : float64 array (n,)
        Start of the exposure, days since J2000.
    night : int64 array (n,)
        Number of the night, floor(MJD - 0.7).
    band : str array (n,)
        Name of the band.
    zero_point : float64 array (n,)
        Measured zero point [mag].
    n_matched : float64 array (n,)
        Number of stars of the fit, which becomes known with the zero point.
    conditions : dict of str to float64 array (n,)
        ``airmass``, ``ebv``, ``exptime`` [s], ``seeing`` [arcsec], ``sky`` [mag arcsec-2], and ``rabore``, ``decbore``
        [deg]; NaN where unknown.
    n_rejected : int
        Number of rows that were rejected.
    """

    campaign: str
    days: Float
    night: npt.NDArray[np.int64]
    band: npt.NDArray[np.str_]
    zero_point: Float
    n_matched: Float
    conditions: dict[str, Float]
    n_rejected: int = 0

    def __len__(self) -> int:
        return len(self.days)

    @property
    def nights(self) -> npt.NDArray[np.int64]:
        """Numbers of the nights, sorted."""
        return np.unique(self.night)

    def take(self, index: npt.NDArray[Any]) -> ExposureTable:
        """Return a subset of the exposures, by mask or index array."""
        names = ("days", "night", "band", "zero_point", "n_matched")
        columns: dict[str, Any] = {name: getattr(self, name)[index] for name in names}
        conditions = {name: column[index] for name, column in self.conditions.items()}
        return replace(self, **columns, conditions=conditions)


def night_number(mjd: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the number of the night of Modified Julian Dates, floor(mjd - 0.7), int64 array.

    Examples
    --------
    >>> night_number([57000.9, 57001.3, 57001.75]).tolist()
    [57000, 57000, 57001]
    """
    return np.floor(np.asarray(mjd, dtype=np.float64) - NIGHT_START).astype(np.int64)


def train_nights(nights: npt.ArrayLike, fraction: float = TRAIN_FRACTION) -> npt.NDArray[np.int64]:
    """Return the first nights, which are for training: a fraction, rounded down, at least one if there are two.

    Examples
    --------
    >>> train_nights([5, 3, 3, 9, 7, 8]).tolist()
    [3, 5, 7]
    """
    unique = np.unique(np.asarray(nights, dtype=np.int64))
    # 0.6 * 15 = 8.999... in floating point: a small number is added before rounding down.
    n = int(fraction * len(unique) + 1e-9)
    return unique[: max(n, 1) if len(unique) > 1 else n]


def split_by_night(table: ExposureTable, fraction: float = TRAIN_FRACTION) -> Bool:
    """Return which exposures are for training, those of the first nights, bool array (n,)."""
    return np.isin(table.night, train_nights(table.night, fraction))


def read_exposures(path: Path) -> dict[str, ExposureTable]:
    """Read the usable exposures of each campaign from a table.

    Parameters
    ----------
    path : Path
        File of type ``.csv`` or ``.csv.gz``.

    Returns
    -------
    dict of ExposureTable
        Exposures by name of the campaign, in alphabetical order.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column, has text in a column of numbers, or has no usable row.
    """
    columns = _columns(path)
    numbers = {name: _numbers(path, columns, name) for name in (*REQUIRED[2:], *CONDITIONS, *POINTING)}
    campaign, band = (np.array(_texts(columns[name])) for name in ("campaign", "band"))
    usable = np.isfinite(numbers["mjd_obs"]) & (campaign != "") & (band != "")
    for name, minimum in MIN_VALUES.items():
        with np.errstate(invalid="ignore"):
            usable &= (numbers[name] > minimum) if name in EXCLUSIVE else (numbers[name] >= minimum)
        usable &= np.isfinite(numbers[name])
    if not usable.any():
        cuts = ", ".join(
            f"{name} {'>' if name in EXCLUSIVE else '>='} {minimum:g}" for name, minimum in MIN_VALUES.items()
        )
        raise InputError(path, f"no usable row among {len(usable)}", f"exposures with {cuts}")
    return {
        str(name): _table(
            str(name), usable & (campaign == name), int((~usable & (campaign == name)).sum()), band, numbers
        )
        for name in np.unique(campaign[usable])
    }


def _table(
    campaign: str, rows: Bool, n_rejected: int, band: npt.NDArray[np.str_], numbers: dict[str, Float]
) -> ExposureTable:
    """Return the given rows of a table, in time order."""
    index = np.flatnonzero(rows)
    index = index[np.argsort(numbers["mjd_obs"][index], kind="stable")]
    mjd = numbers["mjd_obs"][index]
    return ExposureTable(
        campaign=campaign,
        days=mjd - J2000_MJD,
        night=night_number(mjd),
        band=band[index],
        zero_point=numbers["zeropoint"][index],
        n_matched=numbers["nmatched"][index],
        conditions={name: numbers[name][index] for name in (*CONDITIONS, *POINTING)},
        n_rejected=n_rejected,
    )


def _columns(path: Path) -> dict[str, pa.ChunkedArray]:
    """Read the columns of a CSV file, and check that it has those of `REQUIRED`, each once."""
    try:
        table = csv.read_csv(path)
    except FileNotFoundError:
        raise InputError(path, "no file", "a table of exposures, .csv or .csv.gz") from None
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(path, f"a file that cannot be read ({reason})", "a CSV file, plain or compressed") from None
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise InputError(path, f"no column {', '.join(missing)}", f"a header with {', '.join(REQUIRED)}")
    repeated = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if repeated:
        raise InputError(path, f"several columns {', '.join(repeated)}", "each column once")
    return {name: table.column(name) for name in table.column_names}


def _texts(column: pa.ChunkedArray) -> Sequence[str]:
    """Return a column as text, empty where it has no value."""
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _numbers(path: Path, columns: dict[str, pa.ChunkedArray], name: str) -> Float:
    """Return a column as float64 array, NaN where it is empty; all NaN if the table lacks it."""
    if name not in columns:
        return np.full(len(columns[REQUIRED[0]]), np.nan)
    column = columns[name]
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(path, f"a column {name} of type {column.type}", "numbers, empty where unknown")
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
