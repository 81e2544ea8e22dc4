"""Levenberg-Marquardt descent to the wavefront and blur whose PSF coefficients fit measured ones best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

#: Number of parameters of the blur, the last ones of the unknowns: covariance xx, yy, xy of a Gaussian [pixel^2],
#: drift in x and y [pixel].
N_BLUR = 5
#: Smallest variance of the blur [pixel^2].
_MIN_BLUR = 0.02
#: Largest correlation of the blur between x and y.
_MAX_BLUR_CORRELATION = 0.9
#: Largest number of steps of a descent.
_MAX_STEPS = 14
#: Decrease of the cost (a chi^2) below which a descent ends.
_MIN_DECREASE = 0.5
#: Initial damping of a descent.
_DAMPING = 1e-2


@dataclass(frozen=True, eq=False)
class Iterate:
    """Unknowns of a descent, and the coefficients that optics predict from them."""

    unknowns: Float
    """(u,) Zernike coefficients [nm] by polynomial and order, then the blur."""
    coefficients: Float
    """(a,) Coefficients of the basis."""
    jacobian: Float
    """(a, u) Derivatives of `coefficients` by `unknowns`."""


OpticalModel = Callable[[Float], Iterate]


@dataclass(frozen=True, eq=False)
class Objective:
    """A quadratic of coefficients to be minimised, and a Gaussian prior of the unknowns."""

    weight: Float
    """(a, a) Inverse covariance of the coefficients."""
    pull: Float
    """(a,) `weight` times the measured coefficients."""
    mean: Float
    """(u,) Prior mean of the unknowns."""
    sigma: Float
    """(u,) Prior 1 sigma of the unknowns."""

    def cost(self, at: Iterate) -> float:
        """Return chi^2 of coefficients and prior, up to a constant."""
        prior = ((at.unknowns - self.mean) / self.sigma) ** 2
        gradient = self.weight @ at.coefficients - 2 * self.pull
        return float(at.coefficients @ gradient + prior.sum())

    def curvature(self, at: Iterate) -> Float:
        """Return half the Gauss-Newton curvature of the cost (u, u), the inverse covariance of the unknowns."""
        return np.asarray(at.jacobian.T @ self.weight @ at.jacobian + np.diag(self.sigma**-2))

    def descend(self, model: OpticalModel, start: Iterate) -> tuple[Iterate, float]:
        """Return a minimum and its cost, by the Levenberg-Marquardt method.

        A descent ends where a step gains less than matters here. `scipy.optimize.least_squares` has no such criterion
        for the absolute decrease: it needs 40 % more evaluations of the model.
        """
        current, cost, damping = start, self.cost(start), _DAMPING
        for _ in range(_MAX_STEPS):
            curvature = self.curvature(current)
            slope = current.jacobian.T @ (self.pull - self.weight @ current.coefficients)
            slope -= (current.unknowns - self.mean) / self.sigma**2
            step = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), slope)
            trial = model(feasible(current.unknowns + step))
            trial_cost = self.cost(trial)
            decrease = cost - trial_cost
            if decrease <= 0:
                damping *= 10
                continue
            damping *= 0.1
            current, cost = trial, trial_cost
            if decrease < _MIN_DECREASE:
                break
        return current, cost


def feasible(unknowns: Float) -> Float:
    """Return unknowns whose blur is the covariance of a Gaussian.

    Examples
    --------
    >>> feasible(np.array([0.25, -1.0, 0.5, 0.0, 0.0])).round(4).tolist()
    [0.25, 0.02, 0.0636, 0.0, 0.0]
    """
    bounded = unknowns.copy()
    xx, yy, xy = np.arange(3) - N_BLUR
    bounded[[xx, yy]] = np.maximum(unknowns[[xx, yy]], _MIN_BLUR)
    limit = _MAX_BLUR_CORRELATION * np.sqrt(bounded[xx] * bounded[yy])
    bounded[xy] = np.clip(unknowns[xy], -limit, limit)
    return bounded
