"""Look up the solved zero points that precede each exposure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Memory:
    """The last K solved zero points before each of n exposures, most recent first.

    Attributes
    ----------
    value, sigma : float64 array (n, K)
        Zero points and their errors [mag]; NaN where fewer than K precede the exposure.
    age : float64 array (n, K)
        Time since the earlier exposure [days], positive.
    index : int64 array (n, K)
        Row of each zero point in the history; -1 where there is none.
    """

    value: Float
    sigma: Float
    age: Float
    index: Int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def count(self) -> Int:
        """Number of zero points in the memory of each exposure, int64 array (n,)."""
        return np.asarray((self.index >= 0).sum(axis=1))

    def lookup(self, column: npt.ArrayLike) -> Float:
        """Return another column of the history for the same entries.

        Parameters
        ----------
        column : array-like (m,)
            One value for each row of the history.

        Returns
        -------
        float64 array (n, K)
            NaN where the memory has no entry.
        """
        return _values_at(self.index, np.asarray(column, dtype=np.float64))


def build_memory(
    days: npt.ArrayLike,
    value: npt.ArrayLike,
    sigma: npt.ArrayLike,
    *,
    length: int = 8,
    series: npt.ArrayLike | None = None,
    at: npt.ArrayLike | None = None,
    at_series: npt.ArrayLike | None = None,
) -> Memory:
    """Return the last solved zero points before each exposure.

    Parameters
    ----------
    days, value, sigma : array-like (m,)
        History in any order: start of each exposure [days, any origin], zero point and its error [mag]. Rows with a
        non-finite number are unsolved and are never remembered.
    length : int
        Number K of zero points per exposure.
    series : array-like (m,), optional
        Labels (detector, band, night ...). Each exposure remembers zero points of its own series only.
    at : array-like (n,), optional
        Start of the exposures for which the memory is built [days]; by default those of the history.
    at_series : array-like (n,), optional
        Labels of these exposures; required if both `series` and `at` are given.

    Returns
    -------
    Memory
        Causal: it contains exposures that began strictly earlier, and none of the same moment.

    Raises
    ------
    ValueError
        If `series` and `at` are given without `at_series`.

    Examples
    --------
    >>> memory = build_memory([0.0, 0.1, 0.2], [25.0, float("nan"), 25.1], [0.01, 0.01, 0.01], length=2)
    >>> memory.index.tolist()
    [[-1, -1], [0, -1], [0, -1]]
    """
    days, value, sigma = (np.asarray(column, dtype=np.float64) for column in (days, value, sigma))
    at_days = days if at is None else np.asarray(at, dtype=np.float64)
    code, at_code = _series_pair(series, at_series, len(days), len(at_days), separate=at is not None)
    moment, rank = np.unique(np.concatenate([days, at_days]), return_inverse=True)
    rank = rank.ravel()
    # One sorted key per (series, moment): the entries of an exposure are a slice of the sorted history.
    key = code * (len(moment) + 1) + rank[: len(days)]
    at_key = at_code * (len(moment) + 1) + rank[len(days) :]
    solved = np.flatnonzero(np.isfinite(days) & np.isfinite(value) & np.isfinite(sigma))
    order = solved[np.argsort(key[solved], kind="stable")]
    end = np.searchsorted(key[order], at_key, side="left")
    start = np.searchsorted(key[order], at_code * (len(moment) + 1), side="left")
    position = end[:, None] - 1 - np.arange(length)
    exists = (position >= start[:, None]) & np.isfinite(at_days)[:, None]
    index = np.full(position.shape, -1, dtype=np.int64)
    index[exists] = order[position[exists]]
    age = np.where(exists, at_days[:, None], np.nan) - _values_at(index, days)
    return Memory(_values_at(index, value), _values_at(index, sigma), age, index)


def _values_at(index: Int, column: Float) -> Float:
    """Return a column at the rows of an index, NaN where the index is -1."""
    if len(column) == 0:
        return np.full(index.shape, np.nan)
    return np.where(index >= 0, column[index], np.nan)


def series_codes(series: npt.ArrayLike | None, n: int) -> Int:
    """Return an integer code for each label of a series, int64 array (n,); zeros without labels."""
    if series is None:
        return np.zeros(n, dtype=np.int64)
    return np.unique(np.asarray(series), return_inverse=True)[1].ravel()


def _series_pair(
    series: npt.ArrayLike | None, at_series: npt.ArrayLike | None, n: int, n_at: int, *, separate: bool
) -> tuple[Int, Int]:
    """Return codes of the series of the history and of the exposures for which the memory is built."""
    if series is None:
        return series_codes(None, n), series_codes(None, n_at)
    if not separate:
        code = series_codes(series, n)
        return code, code
    if at_series is None:
        raise ValueError("found `series` and `at` without `at_series`; wanted the series of the exposures at `at`")
    code = series_codes(np.concatenate([np.asarray(series), np.asarray(at_series)]), n + n_at)
    return code[:n], code[n:]
