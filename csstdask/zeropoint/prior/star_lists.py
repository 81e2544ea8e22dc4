"""Pad the star tables of exposures to arrays, in an order that does not depend on that of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.zeropoint.photometry import mask_bad_errors, mask_bad_magnitudes

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

STAR_COLUMNS = ("inst_mag", "inst_mag_err", "ref_mag", "ref_mag_err", "color", "x", "y")
"""Columns of padded star lists; x and y run from -1 to 1 over the frame."""
MAX_STARS = 64
"""Stars per exposure that the encoder reads: those with the smallest errors."""
_NAN_KEY = 1e300
"""Replaces NaN where rows are compared: NaN is not equal to itself."""


@dataclass(frozen=True)
class StarLists:
    """Stars of n exposures, at most m each.

    Attributes
    ----------
    values : float32 array (n, m, 7)
        `STAR_COLUMNS`; NaN where unknown or padded.
    count : int64 array (n,)
        Usable stars of each exposure, including those that were dropped because there are more than m.
    """

    values: Float32
    count: npt.NDArray[np.int64]

    def take(self, index: Any) -> StarLists:
        """Return a subset of the exposures, by mask, slice or index array."""
        return StarLists(self.values[index], self.count[index])


def build_star_lists(
    tables: Sequence[Mapping[str, npt.ArrayLike] | None],
    *,
    shape: tuple[int, int] | None = None,
    max_stars: int = MAX_STARS,
) -> StarLists:
    """Sort and pad the star tables of exposures.

    Parameters
    ----------
    tables : sequence of mappings
        Columns `STAR_COLUMNS`; colour, x and y are optional. None or an empty table where there is no star. Stars
        without both magnitudes, or with sentinels, are dropped.
    shape : (int, int), optional
        (y, x) of the frame [pixel]. By default x and y are scaled by their own range.
    max_stars : int
        Stars to keep per exposure, those with the smallest errors.

    Returns
    -------
    StarLists
        Sorted by error, then magnitude and position.

    Examples
    --------
    >>> table = {"inst_mag": [-8.0, 99.0], "inst_mag_err": [0.01, 0.01], "ref_mag": [17.0, 18.0], "ref_mag_err": [0, 0]}
    >>> build_star_lists([table, None]).count.tolist()
    [1, 0]
    """
    rows = [_usable_rows(table, shape) for table in tables]
    longest = max([1, *(min(len(stars), max_stars) for stars in rows)])
    values = np.full((len(rows), longest, len(STAR_COLUMNS)), np.nan, np.float32)
    for k, stars in enumerate(rows):
        values[k, : min(len(stars), max_stars)] = stars[:max_stars]
    return StarLists(values, np.array([len(stars) for stars in rows], dtype=np.int64))


def _usable_rows(table: Mapping[str, npt.ArrayLike] | None, shape: tuple[int, int] | None) -> Float:
    """Return the usable stars of a table, float64 array (star, 7), those with the smallest errors first."""
    if table is None or "inst_mag" not in table:
        return np.zeros((0, len(STAR_COLUMNS)))
    inst_mag = np.asarray(table["inst_mag"], dtype=float)
    rows = np.stack(
        [
            np.asarray(table[name], dtype=float) if name in table else np.full(inst_mag.shape, np.nan)
            for name in STAR_COLUMNS
        ],
        axis=1,
    )
    rows[:, [0, 2, 4]] = mask_bad_magnitudes(rows[:, [0, 2, 4]])
    rows[:, [1, 3]] = mask_bad_errors(rows[:, [1, 3]])
    rows = rows[np.isfinite(rows[:, [0, 2]]).all(axis=1)]
    _, first = np.unique(np.nan_to_num(rows, nan=_NAN_KEY), axis=0, return_index=True)  # repeated rows are one star
    rows = rows[first]
    for column, axis in ((5, 1), (6, 0)):
        if len(rows):
            rows[:, column] = _scale_position(rows[:, column], None if shape is None else shape[axis])
    order = np.lexsort((rows[:, 6], rows[:, 5], rows[:, 0], np.nan_to_num(rows[:, 1], nan=np.inf)))
    return np.asarray(rows[order])


def _scale_position(position: Float, size: int | None) -> Float:
    """Scale positions to -1 ... 1 over the frame, or over their own range if the size of the frame is unknown."""
    if size is not None:
        return (position + 0.5) / size * 2 - 1
    known = position[np.isfinite(position)]
    if len(known) == 0 or np.ptp(known) == 0:
        return np.where(np.isfinite(position), 0.0, np.nan)
    return (position - known.min()) / np.ptp(known) * 2 - 1
