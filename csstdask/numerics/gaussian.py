"""Gaussian priors, and their posteriors and evidence given a quadratic likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GaussianPrior:
    """A Gaussian prior of p parameters.

    Examples
    --------
    One measurement of 3 with variance 1, of a parameter with prior 0 +- 1:

    >>> posterior = GaussianPrior(np.zeros(1), np.eye(1)).given(np.eye(1), np.array([3.0]))
    >>> posterior.mean.round(6).tolist(), posterior.covariance.round(6).tolist()
    ([1.5], [[0.5]])
    """

    mean: Float
    """(p,)"""
    covariance: Float
    """(p, p)"""

    def given(self, normal: Float, right: Float) -> GaussianPosterior:
        """Return the posterior given a likelihood.

        Parameters
        ----------
        normal : float64 array (p, p)
            Curvature of minus the log likelihood: the inverse covariance of the data's own estimate.
        right : float64 array (p,)
            `normal` times the maximum-likelihood parameters.
        """
        return GaussianPosterior(self, normal, right)

    @cached_property
    def root(self) -> Float:
        """(p, p) Lower Cholesky factor of the covariance."""
        return np.asarray(np.linalg.cholesky(self.covariance), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """A prior and a likelihood; mean, covariance and evidence share one factorisation."""

    prior: GaussianPrior
    normal: Float
    """(p, p) As `GaussianPrior.given` takes it."""
    right: Float
    """(p,)"""

    @cached_property
    def mean(self) -> Float:
        """(p,) Posterior mean."""
        step = solve_triangular(self._triangle, self._half, lower=True, trans="T")
        return np.asarray(self.prior.mean + self.prior.root @ step, dtype=np.float64)

    @cached_property
    def covariance(self) -> Float:
        """(p, p) Posterior covariance."""
        half = solve_triangular(self._triangle, self.prior.root.T, lower=True)
        return np.asarray(half.T @ half, dtype=np.float64)

    @cached_property
    def evidence(self) -> float:
        """Natural logarithm of the evidence, up to a constant that depends on the data only."""
        mean = self.prior.mean
        at_mean = float(mean @ self.right - mean @ self.normal @ mean / 2)
        return at_mean + float(self._half @ self._half) / 2 - float(np.log(np.diag(self._triangle)).sum())

    @cached_property
    def _triangle(self) -> Float:
        """(p, p) Lower Cholesky factor of ``1 + root' normal root``."""
        root = self.prior.root
        return np.asarray(np.linalg.cholesky(np.eye(len(root)) + root.T @ self.normal @ root), dtype=np.float64)

    @cached_property
    def _half(self) -> Float:
        slope = self.prior.root.T @ (self.right - self.normal @ self.prior.mean)
        return np.asarray(solve_triangular(self._triangle, slope, lower=True), dtype=np.float64)
