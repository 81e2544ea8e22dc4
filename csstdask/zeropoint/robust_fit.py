"""Robust linear fit with Gaussian priors and an intrinsic scatter, as used for the stars of one exposure.

The target of star i is ``sum_k design_ik p_k + noise`` with the variance ``variance_i + s^2``. Weights are Huber's
until the fit settles and Tukey's after that (Huber & Ronchetti 2009, Robust Statistics, chapter 7). The scatter s is
found by likelihood. The covariance is the sandwich A^-1 B A^-1 of M-estimators, and with few stars at least that of
the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.numerics.robust import TUKEY_CUTOFF, huber_weights, mad_scale, tukey_weights

Float = npt.NDArray[np.float64]

SCATTER_GUESS = 0.005
"""Intrinsic scatter that the prior expects [mag]; it counts as one star."""
SCATTER_CEILING = 1.0
"""Largest intrinsic scatter [mag]."""
_HUBER_STEPS = 6
_MAX_TUKEY_STEPS = 30
_SANDWICH_STARS = 30
"""Stars per parameter from which the sandwich covariance is used without a lower limit."""
_MIN_SANDWICH_STARS = 3
"""Stars per parameter below which the sandwich covariance is not computed."""
_MIN_SLOPE = 0.2
"""Smallest mean derivative of Tukey's psi in the sandwich covariance."""
_TOLERANCE = 1e-4
"""Change of the zero point at which the iteration ends, in units of its error."""
_TUKEY_SCATTER = 0.661
"""E[w^2 z^2] / E[w] of Tukey weights for standard normal z: robust weights remove some of the scatter."""
_MIN_STARS_FOR_MAD = 4
"""Smallest number of stars whose scatter is estimated from their deviations from a prior."""
_BISECTIONS = 18
"""Halvings of the logarithmic interval of the scatter: an accuracy of 2e-5."""


@dataclass(frozen=True)
class RobustProblem:
    """A linear model with Gaussian priors."""

    design: Float
    """(star, parameter) Design matrix, the constant first."""
    target: Float
    """(star,) Measured values [mag]."""
    variance: Float
    """(star,) Quoted variance [mag^2]."""
    prior_mean: Float
    """(parameter,) Means of the priors."""
    prior_precision: Float
    """(parameter,) Precisions of the priors; 0: free."""
    scatter_floor: float
    """Smallest intrinsic scatter [mag]."""

    @property
    def has_level_prior(self) -> bool:
        """Whether the constant has a prior."""
        return bool(self.prior_precision[0] > 0)


@dataclass(frozen=True)
class RobustSolution:
    """Solution of a `RobustProblem`."""

    parameters: Float
    """(parameter,) Best fit."""
    covariance: Float
    """(parameter, parameter) Covariance; inf if every star is rejected."""
    weights: Float
    """(star,) Robust weights, 0 to 1."""
    scatter: float
    """Intrinsic scatter [mag]."""


def solve_robust(problem: RobustProblem) -> RobustSolution:
    """Iterate weights, parameters and scatter of a robust fit.

    Parameters
    ----------
    problem : RobustProblem
        Model and measurements of at least one star.

    Returns
    -------
    RobustSolution
        Best fit, its covariance, weights and scatter.
    """
    target, design, quoted = problem.target, problem.design, problem.variance
    start = target - design[:, 1:] @ problem.prior_mean[1:]
    level = _start_level(problem, start) if problem.has_level_prior else float(np.median(start))
    parameters = problem.prior_mean.copy()
    parameters[0] = level
    residual = start - level
    scatter = _initial_scatter(problem, residual)
    weights = np.ones(len(target))
    for step in range(_HUBER_STEPS + _MAX_TUKEY_STEPS):
        use_tukey = step >= _HUBER_STEPS
        total = quoted + scatter**2
        z = residual / np.sqrt(total)
        weights = tukey_weights(z, _tukey_cutoff(problem, z)) if use_tukey else huber_weights(z)
        hessian = (design.T * (weights / total)) @ design + np.diag(problem.prior_precision)
        right = design.T @ (weights / total * target) + problem.prior_precision * problem.prior_mean
        if hessian[0, 0] <= 0:  # every star is rejected, and there is no prior
            break
        previous, parameters = parameters[0], np.asarray(np.linalg.solve(hessian, right), dtype=np.float64)
        residual = target - design @ parameters
        if not use_tukey:  # the first scatter is kept: re-estimated, it would follow one-sided outliers
            continue
        inverse = np.linalg.inv(hessian)
        # Parameters that their priors determine take no degrees of freedom from the residuals.
        n_free = len(parameters) - float(np.diag(inverse) @ problem.prior_precision)
        scatter = _likely_scatter(problem, residual, weights, n_free)
        if abs(parameters[0] - previous) < _TOLERANCE * float(np.sqrt(inverse[0, 0])):
            break
    return RobustSolution(parameters, _covariance(problem, residual, weights, scatter), weights, scatter)


def _tukey_cutoff(problem: RobustProblem, z: Float) -> float:
    """Return the cut-off of Tukey weights; without a prior of the level, half of the stars are always kept."""
    if problem.has_level_prior:
        return TUKEY_CUTOFF
    half = (len(z) + 1) // 2
    return max(TUKEY_CUTOFF, 1.1 * float(np.partition(np.abs(z), half - 1)[half - 1]))


def _start_level(problem: RobustProblem, start: Float) -> float:
    """Return the level from which weights start: the median of the stars with the prior among them.

    The prior counts as many times as it is more precise than a typical star, at most as all stars together and one.
    """
    star_variance = float(np.median(problem.variance)) + SCATTER_GUESS**2
    copies = int(np.clip(round(star_variance * problem.prior_precision[0]), 1, len(start) + 1))
    return float(np.median(np.concatenate([start, np.full(copies, problem.prior_mean[0])])))


def _initial_scatter(problem: RobustProblem, residual: Float) -> float:
    """Return the scatter from the median absolute deviation, which up to half of the stars do not inflate."""
    floor = max(problem.scatter_floor, SCATTER_GUESS)
    if problem.has_level_prior and len(residual) < _MIN_STARS_FOR_MAD:
        return floor
    excess = float(mad_scale(residual, center=0.0)) ** 2 - float(np.median(problem.variance))
    return float(np.clip(np.sqrt(max(excess, 0.0)), floor, SCATTER_CEILING))


def _likely_scatter(problem: RobustProblem, residual: Float, weights: Float, n_free: float) -> float:
    """Return the intrinsic scatter of maximum likelihood, by bisection of the derivative.

    Residuals count as far as their weights bound them (Huber's proposal 2), so that outliers do not inflate it. The
    prior, one star with a residual of `SCATTER_GUESS`, keeps it from 0 where few stars happen to agree.
    """
    quoted, floor = problem.variance, problem.scatter_floor
    consistency = _TUKEY_SCATTER * max(1.0 - n_free / max(float(weights.sum()), 1.0), 0.5)
    bounded = (weights * residual) ** 2 / consistency

    def slope(variance: float) -> float:
        total = quoted + variance
        return float(((bounded - weights * total) / total**2).sum()) + (SCATTER_GUESS**2 - variance) / variance**2

    low, high = np.log(floor), np.log(SCATTER_CEILING)
    if slope(floor**2) <= 0:
        return floor
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(2 * middle))) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def _covariance(problem: RobustProblem, residual: Float, weights: Float, scatter: float) -> Float:
    """Return the covariance: the sandwich of the M-estimator, and with few stars at least that of the model."""
    design, total = problem.design, problem.variance + scatter**2
    prior = np.diag(problem.prior_precision)
    model = (design.T * (weights / total)) @ design + prior
    if not model[0, 0] > 0:
        return np.full(prior.shape, np.inf)
    model_covariance = np.linalg.inv(model)
    n, p = float(np.count_nonzero(weights)), design.shape[1]
    if n < _MIN_SANDWICH_STARS * p:
        return np.asarray(model_covariance)
    z = residual / np.sqrt(total)
    t = np.clip((z / TUKEY_CUTOFF) ** 2, 0.0, 1.0)
    slope = float(((1 - t) * (1 - 5 * t)).mean())  # mean derivative of psi(z) = z (1 - t)^2
    bread = np.linalg.inv((design.T * (max(slope, _MIN_SLOPE) / total)) @ design + prior)
    meat = (design.T * ((weights * z) ** 2 / total)) @ design * (n / (n - p)) + prior
    sandwich = bread @ meat @ bread
    # Stars that happen to agree are not better than their quoted errors and the smallest scatter.
    best = np.linalg.inv((design.T * (weights / (problem.variance + problem.scatter_floor**2))) @ design + prior)
    sandwich = sandwich if sandwich[0, 0] > best[0, 0] else best
    # With few stars the sandwich itself is noisy, and sometimes too small.
    reliable = n >= _SANDWICH_STARS * p or sandwich[0, 0] > model_covariance[0, 0]
    return np.asarray(sandwich if reliable else model_covariance)
