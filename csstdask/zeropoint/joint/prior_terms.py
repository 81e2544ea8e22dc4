"""The prior of the zero points: the exposure and the detector terms of each unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from csstdask.zeropoint.joint.solution import JointSettings

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

MIN_SHARED_SIGMA = 1e-4
"""Smallest error common to the magnitudes of a unit that is modelled [mag]; smaller ones cost numerical precision."""


@dataclass(frozen=True)
class PriorTerms:
    """Exposure, terms and prior errors of each unit.

    The unknowns are the levels of the units, the exposure terms, the terms of the detectors, and the zero points of
    units whose magnitudes share an error; see `csstdask.zeropoint.joint.normal_equations`.
    """

    exposure: Int
    """(unit,) Number of the exposure."""
    terms: Int
    """(unit, k) Numbers of the terms: that of the detector in an epoch, and that of the detector if there is one."""
    n_exposures: int
    """Number of exposures."""
    term_sigma: Float
    """(term,) 1 sigma of each term [mag]."""
    unit_sigma: Float
    """(unit,) 1 sigma of the small term of each unit [mag]."""
    shared_sigma: Float
    """(unit,) 1 sigma of the error that all magnitudes of a unit share [mag]; 0: none."""
    pin: float
    """1 sigma that fixes the first exposure of a component without reference stars [mag]."""

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.exposure)

    @property
    def n_terms(self) -> int:
        """Number of terms of detectors."""
        return len(self.term_sigma)

    @property
    def shared(self) -> Int:
        """Units whose magnitudes share an error."""
        return np.flatnonzero(self.shared_sigma > 0).astype(np.int64)

    @property
    def zero_point(self) -> Int:
        """(unit,) Index of the unknown that is the zero point: the level itself, or one after all other unknowns."""
        index = np.arange(self.n_units, dtype=np.int64)
        shared = self.shared
        index[shared] = self.n_units + self.n_exposures + self.n_terms + np.arange(len(shared))
        return index

    @property
    def design(self) -> sp.csr_array:
        """(prior, unknown) Linear forms of the unknowns whose prior is 0 +- `sigma`.

        First the small term of each unit, z - e - d - g; then the errors that magnitudes of a unit share, y - z.
        """
        n, k, shared, zero_point = self.n_units, self.terms.shape[1], self.shared, self.zero_point
        first_term = n + self.n_exposures
        unit_columns = np.column_stack([zero_point, n + self.exposure, first_term + self.terms])
        shared_columns = np.column_stack([shared, zero_point[shared]])
        values = np.concatenate([np.tile([1.0, -1.0] + [-1.0] * k, n), np.tile([1.0, -1.0], len(shared))])
        start = np.concatenate([(2 + k) * np.arange(n), (2 + k) * n + 2 * np.arange(len(shared) + 1)])
        shape = (n + len(shared), first_term + self.n_terms + len(shared))
        columns = np.concatenate([unit_columns.ravel(), shared_columns.ravel()])
        return sp.csr_array((values, columns, start), shape=shape)

    @property
    def sigma(self) -> Float:
        """(prior,) 1 sigma of the forms of `design` [mag]."""
        return np.concatenate([self.unit_sigma, self.shared_sigma[self.shared]])


def unit_terms(
    exposure: npt.ArrayLike,
    detector: npt.ArrayLike,
    epoch: npt.ArrayLike,
    unit_sigma: npt.ArrayLike | None,
    small_sigma: npt.ArrayLike | None,
    settings: JointSettings,
) -> tuple[Int, PriorTerms]:
    """Return the canonical order of the units, by exposure, detector and epoch, and their prior in this order.

    Parameters
    ----------
    exposure, detector, epoch : array-like (unit,)
        Labels of the units: numbers or names.
    unit_sigma, small_sigma : array-like (unit,), optional
        As for `csstdask.zeropoint.joint.solve_joint`.
    settings : JointSettings
        Prior errors.
    """
    exposures, exposure_number = np.unique(np.asarray(exposure), return_inverse=True)
    detectors, detector_number = np.unique(np.asarray(detector), return_inverse=True)
    epoch_number = np.unique(np.asarray(epoch), return_inverse=True)[1]
    order = np.lexsort((epoch_number, detector_number, exposure_number)).astype(np.int64)
    grey_labels, grey = np.unique(epoch_number * max(len(detectors), 1) + detector_number, return_inverse=True)
    terms, term_sigma = [grey], [np.full(len(grey_labels), settings.grey_sigma)]
    if settings.detector_sigma > 0:
        terms.append(len(grey_labels) + detector_number)
        term_sigma.append(np.full(len(detectors), settings.detector_sigma))
    shared = np.zeros(len(order)) if unit_sigma is None else np.asarray(unit_sigma, dtype=np.float64)[order]
    small = settings.small_sigma if small_sigma is None else np.asarray(small_sigma, dtype=np.float64)[order]
    prior = PriorTerms(
        exposure=exposure_number[order].astype(np.int64),
        terms=np.column_stack(terms)[order].astype(np.int64),
        n_exposures=len(exposures),
        term_sigma=np.concatenate(term_sigma),
        unit_sigma=np.broadcast_to(np.asarray(small, dtype=np.float64), len(order)),
        shared_sigma=np.where(shared >= MIN_SHARED_SIGMA, shared, 0.0),
        pin=settings.small_sigma,
    )
    return order, prior
