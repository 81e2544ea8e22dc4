r"""Robust fit of a zero point to the stars of one exposure and detector.

The model of star i is

    ref_mag_i - inst_mag_i = ZP + sum_k a_k P_k(x_i, y_i) + C color_i + noise,    variance s^2 + sigma_i^2,

with Legendre products P_k of mean 0 over the frame, and an intrinsic scatter s that is found by likelihood
(`csstdask.zeropoint.robust_fit`). The terms a_k and C have Gaussian priors: with many stars the priors do not matter,
and with one star the error of the zero point includes what is unknown. A prior on ZP itself combines stars and prior by
their precision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.numerics.polynomials import legendre_products, mean_squares, n_terms
from csstdask.numerics.robust import mad_scale
from csstdask.zeropoint.photometry import fill_unknown_errors, mask_bad_magnitudes
from csstdask.zeropoint.robust_fit import SCATTER_GUESS, RobustProblem, solve_robust

__all__ = [
    "COLOR_TERM", "FLAT_SIGMA", "SCATTER_FLOOR", "SCATTER_GUESS", "StarFit", "bootstrap_sigma", "fit_stars",
]  # fmt: skip

Float = npt.NDArray[np.float64]

COLOR_TERM = (0.0, 0.1)
"""Prior of the colour term: mean and 1 sigma [mag / mag], for a filter close to that of the reference."""
FLAT_SIGMA = 0.01
"""1 sigma of the prior of each term of F(x, y): what flat fields leave of large-scale structure [mag]."""
SCATTER_FLOOR = 0.002
"""Smallest intrinsic scatter [mag]: no catalogue agrees better with an instrument."""
_NAN_KEY = 1e300
"""Replaces NaN where rows are compared: NaN is not equal to itself."""


@dataclass(frozen=True)
class StarFit:
    """A zero point from stars alone, or from stars and a prior."""

    value: float
    """Zero point of stars of colour 0, mean over the frame [mag]; NaN without a usable star or prior."""
    sigma: float
    """1-sigma error [mag]; inf without a usable star or prior."""
    n_matched: int
    """Number of different stars with both magnitudes."""
    n_used: int
    """Number of stars with a positive robust weight."""
    chi2: float
    """Sum over used stars of squared residuals over their variances, intrinsic scatter included."""
    dof: int
    """Number of used stars minus fitted parameters, at least 0."""
    color_term: float
    """Colour term C [mag / mag]; the mean of its prior where no star has a colour."""
    color_term_err: float
    """Its 1-sigma error."""
    scatter: float
    """Intrinsic scatter s [mag]; NaN without a usable star."""
    coefficients: Float
    """(term,) Coefficients a_k of F(x, y) [mag], in the order of `csstdask.numerics.polynomials`, without term 0."""
    coefficient_covariance: Float
    """(term, term) Covariance of the a_k [mag^2]; their prior where no star is usable."""
    weights: Float
    """(n,) Robust weights of the stars given, 0 to 1; 0 for unusable ones and repeated rows."""
    residuals: Float
    """(n,) ref_mag - inst_mag - model [mag]; NaN for unusable stars."""
    shape: tuple[int, int] | None
    """(y, x) of the frame of F [pixel]; None without positions."""

    @property
    def solved(self) -> bool:
        """Whether any star was used."""
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
        Reference magnitudes (AB) and their errors [mag]. Stars with a non-finite or sentinel magnitude are not used. An
        unknown error (0, negative, not finite, sentinel) is replaced by the median of the known ones.
    color : array-like (n,), optional
        Colour in the reference [mag]. A star of unknown colour (not finite, a sentinel) gets the mean colour and a
        larger variance.
    x, y : array-like (n,), optional
        Zero-based positions [pixel]; without them there is no F. A star of unknown position gets F = 0 and a larger
        variance.
    degree : int
        Total degree of F.
    shape : (int, int), optional
        (y, x) of the frame [pixel]; by default the smallest frame that contains the stars.
    color_term : (float, float)
        Prior of C: mean and 1 sigma [mag / mag].
    flat_sigma : float
        1 sigma of the prior of each a_k [mag].
    scatter_floor : float
        Smallest intrinsic scatter [mag].
    prior : (float, float), optional
        Value and 1 sigma of an independent estimate of the zero point [mag]. Stars and prior are combined by precision,
        and stars that contradict both the others and the prior are rejected.

    Returns
    -------
    StarFit
        Repeated rows count once; the order of rows does not matter.

    Examples
    --------
    >>> inst = np.linspace(-10, -6, 21)
    >>> fit = fit_stars(inst, np.full(21, 0.01), inst + 25.5, np.full(21, 0.01))
    >>> round(fit.value, 6), round(fit.sigma, 4), fit.n_used
    (25.5, 0.0032, 21)
    """
    columns = _Columns.from_arrays(inst_mag, inst_mag_err, ref_mag, ref_mag_err, color, x, y)
    rows = columns.usable_rows()
    stars = columns.take(rows)
    shape = stars.smallest_frame() if shape is None else shape
    design = stars.design(degree, shape)
    mean, precision = _priors(design.shape[1], columns.color is not None, color_term, flat_sigma, prior)
    variance = stars.variance(degree, color_term[1], flat_sigma)
    problem = RobustProblem(design, stars.ref_mag - stars.inst_mag, variance, mean, precision, scatter_floor)
    return _fit(problem, rows, columns, shape=None if columns.x is None else shape, prior=prior)


@dataclass(frozen=True)
class _Columns:
    """Star table as arrays (n,), NaN for sentinels and unknown values."""

    inst_mag: Float
    inst_mag_err: Float
    ref_mag: Float
    ref_mag_err: Float
    color: Float | None
    x: Float | None
    y: Float | None

    @classmethod
    def from_arrays(
        cls, inst_mag: npt.ArrayLike, inst_mag_err: npt.ArrayLike, ref_mag: npt.ArrayLike, ref_mag_err: npt.ArrayLike,
        color: npt.ArrayLike | None, x: npt.ArrayLike | None, y: npt.ArrayLike | None,
    ) -> _Columns:  # fmt: skip
        inst, inst_err, ref, ref_err = (_ravel(column) for column in (inst_mag, inst_mag_err, ref_mag, ref_mag_err))
        position: tuple[Float | None, Float | None] = (None, None)
        if x is not None and y is not None:
            both = np.stack([_ravel(x), _ravel(y)])
            both[:, ~np.isfinite(both).all(axis=0)] = np.nan
            position = both[0], both[1]
        return cls(
            mask_bad_magnitudes(inst), inst_err, mask_bad_magnitudes(ref), ref_err,
            None if color is None else mask_bad_magnitudes(_ravel(color)), *position,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.inst_mag)

    def usable_rows(self) -> npt.NDArray[np.intp]:
        """Return the rows with both magnitudes, repeated rows once, in an order that does not depend on the input."""
        rows = np.flatnonzero(np.isfinite(self.inst_mag) & np.isfinite(self.ref_mag))
        columns = [column for column in vars(self).values() if column is not None]
        table = np.nan_to_num(np.stack(columns)[:, rows].T, nan=_NAN_KEY)
        # Sorted rows make sums, and so the last bits, independent of the order given.
        _, first = np.unique(table, axis=0, return_index=True)
        return np.asarray(rows[first])

    def take(self, rows: npt.NDArray[np.intp]) -> _Columns:
        """Return some of the rows."""
        parts: dict[str, Any] = {name: None if column is None else column[rows] for name, column in vars(self).items()}
        return _Columns(**parts)

    def smallest_frame(self) -> tuple[int, int] | None:
        """Return (y, x) of the smallest frame that contains the stars; None without positions."""
        if self.x is None or self.y is None:
            return None
        known = np.isfinite(self.y)
        if not known.any():
            return None
        return int(self.y[known].max()) + 1, int(self.x[known].max()) + 1

    def design(self, degree: int, shape: tuple[int, int] | None) -> Float:
        """Return the design matrix (star, parameter): constant, colour, terms of F."""
        terms = [np.ones((len(self), 1))]
        if self.color is not None:
            known = np.isfinite(self.color)
            mean = self.color[known].mean() if known.any() else 0.0
            terms.append(np.where(known, self.color, mean)[:, None])
        if self.x is None or self.y is None or degree == 0:
            return np.concatenate(terms, axis=1)
        if shape is not None:
            terms.append(np.nan_to_num(legendre_products(self.x, self.y, degree, shape)[:, 1:]))
        else:
            terms.append(np.zeros((len(self), n_terms(degree) - 1)))
        return np.concatenate(terms, axis=1)

    def variance(self, degree: int, color_term_sigma: float, flat_sigma: float) -> Float:
        """Return the quoted variances, larger for stars of unknown colour or position [mag^2]."""
        variance = fill_unknown_errors(self.inst_mag_err) ** 2 + fill_unknown_errors(self.ref_mag_err) ** 2
        if self.color is not None:
            unknown = np.isnan(self.color)
            spread = np.nanstd(self.color) if not unknown.all() else 0.0
            variance[unknown] += (color_term_sigma * spread) ** 2
        if self.y is not None:
            variance[np.isnan(self.y)] += flat_sigma**2 * (mean_squares(degree)[1:].sum())
        return variance


def _ravel(column: npt.ArrayLike) -> Float:
    return np.asarray(column, dtype=np.float64).ravel()


def _priors(
    n: int, has_color: bool, color_term: tuple[float, float], flat_sigma: float, prior: tuple[float, float] | None
) -> tuple[Float, Float]:
    """Return means and precisions of the priors of n parameters."""
    mean, precision = np.zeros(n), np.full(n, flat_sigma**-2.0)
    mean[0], precision[0] = (prior[0], prior[1] ** -2.0) if prior is not None else (0.0, 0.0)
    if has_color:
        mean[1], precision[1] = color_term[0], color_term[1] ** -2.0
    return mean, precision


def _fit(
    problem: RobustProblem,
    rows: npt.NDArray[np.intp],
    columns: _Columns,
    *,
    shape: tuple[int, int] | None,
    prior: tuple[float, float] | None,
) -> StarFit:
    """Solve the problem, and return the fit with weights and residuals in the order of the input."""
    weights, residuals = np.zeros(len(columns)), np.full(len(columns), np.nan)
    has_color = columns.color is not None
    first = 2 if has_color else 1
    unsolved = StarFit(
        value=np.nan if prior is None else prior[0],
        sigma=np.inf if prior is None else prior[1],
        n_matched=len(rows), n_used=0, chi2=0.0, dof=0,
        color_term=float(problem.prior_mean[1]) if has_color else np.nan,
        color_term_err=float(problem.prior_precision[1] ** -0.5) if has_color else np.nan,
        scatter=np.nan, coefficients=np.zeros(len(problem.prior_mean) - first),
        coefficient_covariance=np.diag(1 / problem.prior_precision[first:]), weights=weights, residuals=residuals,
        shape=shape,
    )  # fmt: skip
    if not len(rows):
        return unsolved
    solution = solve_robust(problem)
    residual = problem.target - problem.design @ solution.parameters
    weights[rows], residuals[rows] = solution.weights, residual
    used = solution.weights > 0
    if not used.any():
        return replace(unsolved, residuals=residuals)
    errors = np.sqrt(np.diag(solution.covariance))
    return replace(
        unsolved,
        value=float(solution.parameters[0]),
        sigma=float(errors[0]),
        n_used=int(used.sum()),
        chi2=float((residual**2 / (problem.variance + solution.scatter**2))[used].sum()),
        dof=max(int(used.sum()) - len(solution.parameters), 0),
        color_term=float(solution.parameters[1]) if has_color else np.nan,
        color_term_err=float(errors[1]) if has_color else np.nan,
        scatter=solution.scatter,
        coefficients=solution.parameters[first:],
        coefficient_covariance=solution.covariance[first:, first:],
    )


def bootstrap_sigma(n_samples: int = 200, seed: int = 1, /, **columns: Any) -> float:
    """Estimate the error of a zero point by resampling its stars: a check of `StarFit.sigma`.

    Parameters
    ----------
    n_samples : int
        Number of resamplings.
    seed : int
        Seed of the random choices.
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
        sample = {name: column[rows] for name, column in arrays.items()}
        # Rows drawn twice count twice: they must not be equal.
        sample["inst_mag"] = sample["inst_mag"] + 1e-9 * np.arange(n)
        values.append(fit_stars(**sample).value)
    return float(mad_scale(values))
