"""Tables of zero points that observatories measured, one row an exposure, and their splits by night.

A table is a CSV file, compressed or not, with the columns `REQUIRED` and, where known, `CONDITIONS`. Times are Modified
Julian Dates. The observing bots of the DESI Legacy Surveys write such tables (github.com/legacysurvey/obsbot).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from csstdask.core.errors import InputError

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

REQUIRED = ("campaign", "band", "mjd_obs", "exptime", "airmass", "nmatched", "zeropoint")
CONDITIONS = ("airmass", "ebv", "exptime", "seeing", "sky")
"""Known of an exposure before its stars are matched: none of them is computed from its zero point."""
POINTING = ("rabore", "decbore")
"""Direction of the telescope [deg]."""
NIGHT_START = 0.7
"""Fraction of a Modified Julian Date that is noon at the telescopes in Chile and Arizona [d]."""
J2000 = 51544.5
"""Modified Julian Date of 2000-01-01T12:00."""
LEAST = {"zeropoint": 15.0, "nmatched": 15.0, "exptime": 10.0, "airmass": 1.0}
"""Rows below are not usable: failed fits (zero point [mag]), too few stars, test exposures [s], no airmass."""
STRICT = ("zeropoint",)
"""Columns that must exceed their least value; others may be equal to it."""
TRAIN_SHARE = 0.6
"""Share of the nights of a campaign, the first ones, that methods learn from."""


@dataclass(frozen=True)
class ExposureTable:
    """Usable exposures of one campaign, in time order.

    Attributes
    ----------
    campaign : str
    days : float64 array (n,)
        Start of the exposure, days since J2000.
    night : int64 array (n,)
        floor(MJD - 0.7).
    band : str array (n,)
    zero_point : float64 array (n,)
        [mag]
    n_matched : float64 array (n,)
        Stars of the exposure's own fit: known only with the zero point.
    conditions : dict of str to float64 array (n,)
        ``airmass``, ``ebv``, ``exptime`` [s], ``seeing`` [arcsec], ``sky`` [mag arcsec-2], and ``rabore``, ``decbore``
        [deg]; NaN where unknown.
    n_rejected : int
        Rows that the cuts left out.
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
        """Return the nights, sorted."""
        return np.unique(self.night)

    def take(self, which: npt.NDArray[Any]) -> ExposureTable:
        """Return some of the exposures, by mask or index."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("days", "night", "band", "zero_point", "n_matched"):
            arrays[name] = arrays[name][which]
        arrays["conditions"] = {name: column[which] for name, column in self.conditions.items()}
        return ExposureTable(**arrays)


def night_number(mjd: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the night of Modified Julian Dates: floor(mjd - 0.7).

    Examples
    --------
    >>> night_of([57000.9, 57001.3, 57001.75]).tolist()
    [57000, 57000, 57001]
    """
    return np.floor(np.asarray(mjd, dtype=np.float64) - NIGHT_START).astype(np.int64)


def train_nights(nights: npt.ArrayLike, share: float = TRAIN_SHARE) -> npt.NDArray[np.int64]:
    """Return the first nights, rounded down, at least one where there are two.

    Examples
    --------
    >>> train_nights([5, 3, 3, 9, 7, 8]).tolist()
    [3, 5, 7]
    """
    unique = np.unique(np.asarray(nights, dtype=np.int64))
    # 0.6 * 5 = 3 exactly, but 0.6 * 15 = 8.999...: a hair is added before rounding down.
    n = int(share * len(unique) + 1e-9)
    return unique[: max(n, 1) if len(unique) > 1 else n]


def split_by_night(table: ExposureTable, share: float = TRAIN_SHARE) -> Bool:
    """Return which exposures are for training (n,): those of the first nights."""
    return np.isin(table.night, train_nights(table.night, share))


def read_exposures(path: Path) -> dict[str, ExposureTable]:
    """Read the usable exposures of each campaign of a table.

    Parameters
    ----------
    path : Path
        ``.csv`` or ``.csv.gz``.

    Returns
    -------
    dict
        `ExposureTable` by name of the campaign, in alphabetical order.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column, has text in a column of numbers, or no usable row.
    """
    columns = _columns(path)
    numbers = {name: _numbers(path, columns, name) for name in (*REQUIRED[2:], *CONDITIONS, *POINTING)}
    campaign, band = (np.array(_texts(columns[name])) for name in ("campaign", "band"))
    usable = np.isfinite(numbers["mjd_obs"]) & (campaign != "") & (band != "")
    for name, least in LEAST.items():
        with np.errstate(invalid="ignore"):
            usable &= (numbers[name] > least) if name in STRICT else (numbers[name] >= least)
        usable &= np.isfinite(numbers[name])
    if not usable.any():
        cuts = ", ".join(f"{name} {'>' if name in STRICT else '>='} {least:g}" for name, least in LEAST.items())
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
    index = np.flatnonzero(rows)
    index = index[np.argsort(numbers["mjd_obs"][index], kind="stable")]
    mjd = numbers["mjd_obs"][index]
    return ExposureTable(
        campaign=campaign,
        days=mjd - J2000,
        night=night_number(mjd),
        band=band[index],
        zero_point=numbers["zeropoint"][index],
        n_matched=numbers["nmatched"][index],
        conditions={name: numbers[name][index] for name in (*CONDITIONS, *POINTING)},
        n_rejected=n_rejected,
    )


def _columns(path: Path) -> dict[str, pa.ChunkedArray]:
    """Return the columns of a CSV file; `REQUIRED` are there."""
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
    return ["" if one is None else str(one) for one in column.to_pylist()]


def _numbers(path: Path, columns: dict[str, pa.ChunkedArray], name: str) -> Float:
    """Return a column as float64, NaN where empty; all NaN where the table lacks it."""
    if name not in columns:
        return np.full(len(columns[REQUIRED[0]]), np.nan)
    column = columns[name]
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(path, f"a column {name} of type {column.type}", "numbers, empty where unknown")
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
