r"""Robust fit of a zero point to the stars of one exposure and detector.

The model of star i is

    ref_mag_i - inst_mag_i = ZP + sum_k a_k P_k(x_i, y_i) + C color_i + noise,    variance s^2 + sigma_i^2,

with Legendre products P_k of mean 0 over the frame, and an intrinsic scatter s that is found by likelihood. The terms
a_k and C have Gaussian priors: with many stars the priors do not matter, and with one star the error of the zero point
is honest about what is unknown. A prior on ZP itself joins stars and prior by their precision.

Weights are Huber's until the fit settles and Tukey's after that (Huber & Ronchetti 2009, Robust Statistics,
chapter 7). The covariance is the sandwich A^-1 B A^-1 of M-estimators, and with few stars at least that of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.numerics.polynomials import legendre_products, mean_squares
from csstdask.numerics.robust import TUKEY_CUTOFF, huber_weights, mad_scale, tukey_weights
from csstdask.zeropoint.photometry import fill_unknown_errors, mask_bad_magnitudes

Float = npt.NDArray[np.float64]

COLOR_TERM = (0.0, 0.1)
"""Prior of the colour term: mean and 1 sigma [mag / mag], for a filter close to that of the reference."""
FLAT_SIGMA = 0.01
"""1 sigma of the prior of each term of F(x, y): what flat fields leave of large-scale structure [mag]."""
SCATTER_FLOOR = 0.002
"""Least intrinsic scatter [mag]: no catalogue agrees better with an instrument."""
SCATTER_GUESS = 0.005
"""Intrinsic scatter that the prior expects [mag]; it counts as one star."""
SCATTER_CEILING = 1.0
"""Largest intrinsic scatter [mag]."""
_HUBER_STEPS = 6
_TUKEY_STEPS = 30
_STARS_A_TERM = 30
"""Stars a parameter from which the sandwich is trusted alone."""
_TOLERANCE = 1e-4
"""Change of the zero point, in its errors, at which the iteration ends."""
_TUKEY_SCATTER = 0.661
"""E[w^2 z^2] / E[w] of Tukey weights for standard normal z: robust weights remove some of the scatter."""
_UNKNOWN = 1e300
"""Stands for NaN where rows are compared."""
_FEWEST_FOR_MAD = 4
"""Fewest stars whose scatter is estimated from their deviations from a prior."""


@dataclass(frozen=True)
class StarFit:
    """A zero point from stars alone, or from stars and a prior."""

    value: float
    """Zero point of stars of colour 0, mean over the frame [mag]; NaN without a usable star or prior."""
    sigma: float
    """Its 1-sigma error [mag]; inf without a usable star or prior."""
    n_matched: int
    """Different stars with both magnitudes."""
    n_used: int
    """Stars with a positive robust weight."""
    chi2: float
    """Sum over used stars of squared residuals over their variances, intrinsic scatter included."""
    dof: int
    """Used stars less fitted parameters, at least 0."""
    color_term: float
    """C; its prior's mean where no star has a colour."""
    color_term_err: float
    """Its 1-sigma error."""
    scatter: float
    """Intrinsic scatter s [mag]; NaN without a usable star."""
    coefficients: Float
    """(term,) a_k of F(x, y) [mag], in the order of `csstdask.numerics.polynomials` without the constant."""
    coefficient_covariance: Float
    """(term, term) Of the a_k; their prior where no star is usable [mag^2]."""
    weights: Float
    """(n,) Robust weights of the stars given, 0 to 1; 0 for unusable ones and repeated rows."""
    residuals: Float
    """(n,) ref_mag - inst_mag - model [mag]; NaN for unusable stars."""
    shape: tuple[int, int] | None
    """(y, x) of the frame that F is about; None without positions."""

    @property
    def solved(self) -> bool:
        """Tell whether stars take part."""
        return self.n_used > 0


def fit_stars(
    inst_mag: npt.ArrayLike,
    inst_mag_err: npt.ArrayLike,
    ref_mag: npt.ArrayLike,
    ref_mag_err: npt.ArrayLike,
    color: npt.ArrayLike | None = None,
    x: npt.ArrayLike | None = None,
    y: npt.ArrayLike | None = None,
    *,
    degree: int = 1,
    shape: tuple[int, int] | None = None,
    color_term: tuple[float, float] = COLOR_TERM,
    flat_sigma: float = FLAT_SIGMA,
    scatter_floor: float = SCATTER_FLOOR,
    prior: tuple[float, float] | None = None,
) -> StarFit:
    """Fit the zero point of one exposure and detector.

    Parameters
    ----------
    inst_mag, inst_mag_err : array-like (n,)
        Instrumental magnitudes -2.5 log10(electron s-1) and their errors [mag].
    ref_mag, ref_mag_err : array-like (n,)
        Reference magnitudes (AB) and their errors. Stars with a magnitude that is not finite or a sentinel are not
        used; an unknown error (0, negative, not finite, sentinel) counts as the median of the known ones.
    color : array-like (n,), optional
        Colour of the reference [mag]. A star of unknown colour (not finite, a sentinel) has the mean colour, with a
        larger variance.
    x, y : array-like (n,), optional
        Zero-based positions [pixel]; without them there is no F. A star of unknown position has F = 0, with a larger
        variance.
    degree : int
        Total degree of F.
    shape : (int, int), optional
        (y, x) of the frame; by default the least frame that holds the stars.
    color_term : (float, float)
        Prior of C: mean and 1 sigma.
    flat_sigma : float
        1 sigma of the prior of each a_k [mag].
    scatter_floor : float
        Least intrinsic scatter [mag].
    prior : (float, float), optional
        Value and 1 sigma of the zero point from elsewhere [mag]: stars and prior are joined by precision, and stars
        that contradict both the others and the prior are rejected.

    Returns
    -------
    StarFit
        Rows that repeat another row count once; the order of rows does not matter.

    Examples
    --------
    >>> inst = np.linspace(-10, -6, 21)
    >>> fit = fit_stars(inst, np.full(21, 0.01), inst + 25.5, np.full(21, 0.01))
    >>> round(fit.value, 6), round(fit.sigma, 4), fit.n_used
    (25.5, 0.0033, 21)
    """
    given = [np.asarray(one, dtype=np.float64).ravel() for one in (inst_mag, inst_mag_err, ref_mag, ref_mag_err)]
    n = len(given[0])
    have_color, have_position = color is not None, x is not None and y is not None
    extra = [color] if have_color else []
    extra += [x, y] if have_position else []
    columns = np.stack([*given, *(np.asarray(one, dtype=np.float64).ravel() for one in extra)])
    magnitude, reference = mask_bad_magnitudes(columns[0]), mask_bad_magnitudes(columns[2])
    if have_color:
        columns[4] = mask_bad_magnitudes(columns[4])
    if have_position:
        columns[-2:, ~np.isfinite(columns[-2:]).all(axis=0)] = np.nan
    rows = np.flatnonzero(np.isfinite(magnitude) & np.isfinite(reference))
    # Equal rows are one star; sorted rows make sums, and so the last bits, independent of the order given.
    _, first = np.unique(np.nan_to_num(columns[:, rows].T, nan=_UNKNOWN), axis=0, return_index=True)
    rows = rows[first]
    placed = columns[-2:, rows][:, np.isfinite(columns[-1, rows])] if have_position else np.zeros((2, 0))
    if shape is None and placed.size:
        shape = (int(placed[1].max()) + 1, int(placed[0].max()) + 1)
    design = _design(columns[:, rows], n_color=int(have_color), degree=degree if have_position else 0, shape=shape)
    mean, precision = _priors(design.shape[1], int(have_color), color_term, flat_sigma, prior)
    variance = fill_unknown_errors(columns[1, rows]) ** 2 + fill_unknown_errors(columns[3, rows]) ** 2
    if have_color:
        unknown = np.isnan(columns[4, rows])
        spread = np.nanstd(columns[4, rows]) if not unknown.all() else 0.0
        variance[unknown] += (color_term[1] * spread) ** 2
    if have_position:
        unplaced = np.isnan(columns[-1, rows])
        variance[unplaced] += flat_sigma**2 * (mean_squares(degree)[1:].sum())
    parameters = _Problem(design, reference[rows] - magnitude[rows], variance, mean, precision, scatter_floor)
    return _result(parameters, rows, n, have_color=have_color, shape=shape if have_position else None, prior=prior)


@dataclass(frozen=True)
class _Problem:
    """A linear model with Gaussian priors; equation in the module's description."""

    design: Float
    """(star, parameter) The constant first."""
    target: Float
    """(star,) ref_mag - inst_mag."""
    variance: Float
    """(star,) Quoted."""
    mean: Float
    """(parameter,) Of the priors."""
    precision: Float
    """(parameter,) Of the priors; 0: free."""
    scatter_floor: float


@dataclass(frozen=True)
class _Solution:
    parameters: Float
    covariance: Float
    weights: Float
    scatter: float


def _design(columns: Float, *, n_color: int, degree: int, shape: tuple[int, int] | None) -> Float:
    """Return the design matrix: constant, colour, terms of F."""
    terms = [np.ones((columns.shape[1], 1))]
    if n_color:
        color = columns[4]
        known = np.isfinite(color)
        terms.append(np.where(known, color, color[known].mean() if known.any() else 0.0)[:, None])
    if degree > 0 and shape is not None:
        terms.append(np.nan_to_num(legendre_products(columns[-2], columns[-1], degree, shape)[:, 1:]))
    elif degree > 0:
        terms.append(np.zeros((columns.shape[1], (degree + 1) * (degree + 2) // 2 - 1)))
    return np.concatenate(terms, axis=1)


def _priors(
    n: int, n_color: int, color_term: tuple[float, float], flat_sigma: float, prior: tuple[float, float] | None
) -> tuple[Float, Float]:
    mean, precision = np.zeros(n), np.full(n, flat_sigma**-2.0)
    mean[0], precision[0] = (prior[0], prior[1] ** -2.0) if prior is not None else (0.0, 0.0)
    if n_color:
        mean[1], precision[1] = color_term[0], color_term[1] ** -2.0
    return mean, precision


def _solve(problem: _Problem) -> _Solution:
    """Iterate weights, parameters and scatter."""
    target, design, quoted = problem.target, problem.design, problem.variance
    start = target - design[:, 1:] @ problem.mean[1:]
    level = float(np.median(start)) if problem.precision[0] == 0 else _start_level(problem, start)
    parameters = problem.mean.copy()
    parameters[0] = level
    residual = start - level
    scatter = _first_scatter(problem, residual)
    weights = np.ones(len(target))
    sigma = np.inf
    for step in range(_HUBER_STEPS + _TUKEY_STEPS):
        tukey = step >= _HUBER_STEPS
        total = quoted + scatter**2
        z = residual / np.sqrt(total)
        weights = tukey_weights(z, _cutoff(problem, z)) if tukey else huber_weights(z)
        hessian = (design.T * (weights / total)) @ design + np.diag(problem.precision)
        right = design.T @ (weights / total * target) + problem.precision * problem.mean
        if hessian[0, 0] <= 0:  # every star rejected, and no prior
            break
        before, parameters = parameters[0], np.asarray(np.linalg.solve(hessian, right), dtype=np.float64)
        residual = target - design @ parameters
        inverse = np.linalg.inv(hessian)
        if tukey:  # before, the first scatter is kept: re-estimated, it would follow one-sided outliers
            # Terms that their priors hold take no freedom from the residuals.
            n_free = len(parameters) - float(np.diag(inverse) @ problem.precision)
            scatter = _scatter(problem, residual, weights, n_free)
        sigma = float(np.sqrt(inverse[0, 0]))
        if tukey and abs(parameters[0] - before) < _TOLERANCE * sigma:
            break
    return _Solution(parameters, _covariance(problem, residual, weights, scatter), weights, scatter)


def _cutoff(problem: _Problem, z: Float) -> float:
    """Return the cut-off of Tukey weights; without a prior half of the stars are kept, however they disagree."""
    if problem.precision[0] > 0:
        return TUKEY_CUTOFF
    half = (len(z) + 1) // 2
    return max(TUKEY_CUTOFF, 1.1 * float(np.partition(np.abs(z), half - 1)[half - 1]))


def _start_level(problem: _Problem, start: Float) -> float:
    """Return the level from which weights begin: the median of the stars with the prior among them.

    The prior counts as many times as it is more precise than a typical star, at most as all stars together and one.
    """
    star = float(np.median(problem.variance)) + SCATTER_GUESS**2
    copies = int(np.clip(round(star * problem.precision[0]), 1, len(start) + 1))
    return float(np.median(np.concatenate([start, np.full(copies, problem.mean[0])])))


def _first_scatter(problem: _Problem, residual: Float) -> float:
    """Return the scatter from the median absolute deviation: outliers, up to half of the stars, do not inflate it."""
    least = max(problem.scatter_floor, SCATTER_GUESS)
    if problem.precision[0] > 0 and len(residual) < _FEWEST_FOR_MAD:
        return least
    excess = float(mad_scale(residual, center=0.0)) ** 2 - float(np.median(problem.variance))
    return float(np.clip(np.sqrt(max(excess, 0.0)), least, SCATTER_CEILING))


def _scatter(problem: _Problem, residual: Float, weights: Float, n_free: float) -> float:
    """Return the intrinsic scatter of greatest likelihood, by bisection of its derivative.

    Residuals count as far as their weights bound them (Huber's proposal 2), so that outliers do not inflate it. The
    prior, one star with a residual of `SCATTER_GUESS`, keeps it from 0 where few stars happen to agree.
    """
    quoted, floor = problem.variance, problem.scatter_floor
    lost = _TUKEY_SCATTER * max(1.0 - n_free / max(float(weights.sum()), 1.0), 0.5)
    bounded = (weights * residual) ** 2 / lost

    def slope(variance: float) -> float:
        total = quoted + variance
        return float(((bounded - weights * total) / total**2).sum()) + (SCATTER_GUESS**2 - variance) / variance**2

    low, high = np.log(floor), np.log(SCATTER_CEILING)
    if slope(floor**2) <= 0:
        return floor
    for _ in range(18):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(2 * middle))) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def _covariance(problem: _Problem, residual: Float, weights: Float, scatter: float) -> Float:
    """Return the covariance of the parameters: sandwich of the M-estimator, with few stars at least the model's."""
    design, total = problem.design, problem.variance + scatter**2
    prior = np.diag(problem.precision)
    model = (design.T * (weights / total)) @ design + prior
    if not model[0, 0] > 0:
        return np.full(prior.shape, np.inf)
    of_model = np.linalg.inv(model)
    n, p = float(np.count_nonzero(weights)), design.shape[1]
    if n < 3 * p:
        return np.asarray(of_model)
    z = residual / np.sqrt(total)
    t = np.clip((z / TUKEY_CUTOFF) ** 2, 0.0, 1.0)
    slope = float(((1 - t) * (1 - 5 * t)).mean())  # mean derivative of psi(z) = z (1 - t)^2
    bread = np.linalg.inv((design.T * (max(slope, 0.2) / total)) @ design + prior)
    meat = (design.T * ((weights * z) ** 2 / total)) @ design * (n / (n - p)) + prior
    sandwich = bread @ meat @ bread
    # Stars that happen to agree are not better than their quoted errors and the least scatter.
    best = np.linalg.inv((design.T * (weights / (problem.variance + problem.scatter_floor**2))) @ design + prior)
    sandwich = sandwich if sandwich[0, 0] > best[0, 0] else best
    # With few stars the sandwich itself is noisy, and at times too small.
    return np.asarray(sandwich if n >= _STARS_A_TERM * p or sandwich[0, 0] > of_model[0, 0] else of_model)


def _result(
    problem: _Problem,
    rows: npt.NDArray[np.intp],
    n: int,
    *,
    have_color: bool,
    shape: tuple[int, int] | None,
    prior: tuple[float, float] | None,
) -> StarFit:
    weights, residuals = np.zeros(n), np.full(n, np.nan)
    first = 2 if have_color else 1
    empty = StarFit(
        value=np.nan if prior is None else prior[0],
        sigma=np.inf if prior is None else prior[1],
        n_matched=len(rows), n_used=0, chi2=0.0, dof=0,
        color_term=float(problem.mean[1]) if have_color else np.nan,
        color_term_err=float(problem.precision[1] ** -0.5) if have_color else np.nan,
        scatter=np.nan, coefficients=np.zeros(len(problem.mean) - first),
        coefficient_covariance=np.diag(1 / problem.precision[first:]), weights=weights, residuals=residuals,
        shape=shape,
    )  # fmt: skip
    if not len(rows):
        return empty
    solution = _solve(problem)
    residual = problem.target - problem.design @ solution.parameters
    weights[rows], residuals[rows] = solution.weights, residual
    used = solution.weights > 0
    if not used.any():
        return replace(empty, residuals=residuals)
    errors = np.sqrt(np.diag(solution.covariance))
    return StarFit(
        value=float(solution.parameters[0]),
        sigma=float(errors[0]),
        n_matched=len(rows),
        n_used=int(used.sum()),
        chi2=float((residual**2 / (problem.variance + solution.scatter**2))[used].sum()),
        dof=max(int(used.sum()) - len(solution.parameters), 0),
        color_term=float(solution.parameters[1]) if have_color else np.nan,
        color_term_err=float(errors[1]) if have_color else np.nan,
        scatter=solution.scatter,
        coefficients=solution.parameters[first:],
        coefficient_covariance=solution.covariance[first:, first:],
        weights=weights,
        residuals=residuals,
        shape=shape,
    )


def bootstrap_sigma(n_samples: int = 200, seed: int = 1, /, **columns: Any) -> float:
    """Return the error of a zero point by resampling its stars: a check of `StarFit.sigma`.

    Parameters
    ----------
    n_samples : int
        Number of resamplings.
    seed : int
    **columns
        Arguments of `fit_stars`.

    Returns
    -------
    float
        Standard deviation of the zero points [mag], from the median absolute deviation.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    n = len(arrays["inst_mag"])
    values = []
    for _ in range(n_samples):
        rows = rng.integers(0, n, n)
        sample = {name: one[rows] for name, one in arrays.items()}
        # Rows drawn twice count twice: they must not be equal.
        sample["inst_mag"] = sample["inst_mag"] + 1e-9 * np.arange(n)
        values.append(fit_stars(**sample).value)
    return float(mad_scale(values))
