"""Connected components of exposures, and which of them reference stars anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from csstdask.zeropoint.joint_observations import StarRows
from csstdask.zeropoint.joint_robust import Precision

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Components:
    """Which exposures are tied together by stars."""

    label: Int
    """(exposure,) Component, numbered by first exposure."""
    anchored: Bool
    """(component,) Whether a star with a reference magnitude was observed."""

    @property
    def free(self) -> Int:
        """First exposure of each component that is not anchored."""
        first = np.unique(self.label, return_index=True)[1]
        return np.asarray(first[~self.anchored], dtype=np.int64)


def exposure_components(rows: StarRows, precision: Precision, exposure: npt.ArrayLike, n_exposures: int) -> Components:
    """Return the connected components of the overlap graph.

    Two exposures are neighbours if they observed the same star; units of one exposure are tied by their common term.
    A grey term common to two exposures does not tie them: it is known only relative to the mean of all detectors.
    Observations and reference magnitudes of precision 0 do not count.

    Parameters
    ----------
    rows : StarRows
        Observations by star.
    precision : Precision
        Precision of each measurement.
    exposure : array-like of int (unit,)
        Exposure of each unit.
    n_exposures : int
        Number of exposures.

    Examples
    --------
    >>> nothing = np.array([np.nan, 25.0])
    >>> rows = StarRows(np.array([0, 2, 3]), np.array([0, 1, 2]), np.full(3, 20.0), np.ones(3), nothing, nothing)
    >>> found = exposure_components(rows, Precision(np.ones(3), np.array([0.0, 1.0])), [0, 1, 2], 3)
    >>> found.label.tolist(), found.anchored.tolist(), found.free.tolist()
    ([0, 0, 1], [False, True], [0])
    """
    exposure = np.asarray(exposure, dtype=np.int64)
    root, anchored = _join(rows.start, rows.unit, precision.observation, precision.reference, exposure, n_exposures)
    first, label = np.unique(root, return_inverse=True)
    of_component = np.zeros(len(first), dtype=np.bool_)
    of_component[label[anchored]] = True
    return Components(label.astype(np.int64), of_component)


@njit(cache=True, nogil=True)
def _root(parent: Any, i: int) -> Any:  # pragma: no cover
    """Return the least member of the set of i, and shorten the way to it."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def _join(start: Any, unit: Any, precision: Any, of_reference: Any, exposure: Any, n: int) -> Any:  # pragma: no cover
    parent = np.arange(n)
    anchored = np.zeros(n, dtype=np.bool_)
    for s in range(len(start) - 1):
        first = -1
        for i in range(start[s], start[s + 1]):
            if precision[i] > 0.0:
                here = _root(parent, exposure[unit[i]])
                if first < 0:
                    first = here
                elif here != first:
                    parent[max(here, first)] = min(here, first)
                    first = min(here, first)
        if first >= 0 and of_reference[s] > 0.0:
            anchored[first] = True
    for i in range(n):
        parent[i] = _root(parent, i)
    return parent, anchored
