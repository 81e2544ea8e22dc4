"""Connected components of the overlap graph of exposures, and whether reference stars anchor them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from csstdask.zeropoint.joint.observations import GroupedObservations
from csstdask.zeropoint.joint.robust import Precision

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Components:
    """Connected components of exposures."""

    label: Int
    """(exposure,) Number of the component, in the order of their first exposures."""
    anchored: Bool
    """(component,) Whether a star with a reference magnitude was observed in it."""

    @property
    def free(self) -> Int:
        """(k,) First exposure of each component that is not anchored."""
        first = np.unique(self.label, return_index=True)[1]
        return np.asarray(first[~self.anchored], dtype=np.int64)


def exposure_components(
    grouped: GroupedObservations, precision: Precision, exposure: npt.ArrayLike, n_exposures: int
) -> Components:
    """Return the connected components of the overlap graph.

    Two exposures are neighbours if they observed the same star. Units of one exposure are tied by their common term. A
    grey term common to two exposures does not tie them: it is known only relative to the mean of all detectors.
    Observations and reference magnitudes of precision 0 do not count.

    Parameters
    ----------
    grouped : GroupedObservations
        Observations, grouped by star.
    precision : Precision
        Precision of each measurement.
    exposure : array-like of int (unit,)
        Exposure of each unit.
    n_exposures : int
        Number of exposures.

    Examples
    --------
    >>> start, unit, reference = np.array([0, 2, 3]), np.array([0, 1, 2]), np.array([np.nan, 25.0])
    >>> grouped = GroupedObservations(start, unit, np.full(3, 20.0), np.ones(3), reference, reference)
    >>> components = exposure_components(grouped, Precision(np.ones(3), np.array([0.0, 1.0])), [0, 1, 2], 3)
    >>> components.label.tolist(), components.anchored.tolist(), components.free.tolist()
    ([0, 0, 1], [False, True], [0])
    """
    exposure = np.asarray(exposure, dtype=np.int64)
    root, anchored = _join(
        grouped.start, grouped.unit, precision.observation, precision.reference, exposure, n_exposures
    )
    first, label = np.unique(root, return_inverse=True)
    component_anchored = np.zeros(len(first), dtype=np.bool_)
    component_anchored[label[anchored]] = True
    return Components(label.astype(np.int64), component_anchored)


@njit(cache=True, nogil=True)
def find_root(parent: Any, i: int) -> Any:  # pragma: no cover
    """Return the smallest member of the set of i in a union-find forest, and shorten the path to it."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def _join(
    start: Any, unit: Any, precision: Any, reference_precision: Any, exposure: Any, n: int
) -> Any:  # pragma: no cover
    """Join exposures that observed the same star; return the root of each one, and which roots are anchored."""
    parent = np.arange(n)
    anchored = np.zeros(n, dtype=np.bool_)
    for s in range(len(start) - 1):
        first = -1
        for i in range(start[s], start[s + 1]):
            if precision[i] > 0.0:
                root = find_root(parent, exposure[unit[i]])
                if first < 0:
                    first = root
                elif root != first:
                    parent[max(root, first)] = min(root, first)
                    first = min(root, first)
        if first >= 0 and reference_precision[s] > 0.0:
            anchored[first] = True
    for i in range(n):
        parent[i] = find_root(parent, i)
    return parent, anchored
