"""Predict zero points from earlier ones: a random walk with white noise, filtered by Kalman's equations.

The zero point of exposure i is ``level(t_i) + white noise``, measured with the error sigma_i. Predictions are causal:
each one uses exposures that began earlier, and no others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.optimize import minimize

from csstdask.numerics.robust import mad_scale, nan_median
from csstdask.zeropoint.memory import series_codes

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

MIN_SIGMA = 1e-6
"""Smallest fitted standard deviation [mag, mag day^-1/2]: far below any measurement."""
_MIN_VARIANCE = MIN_SIGMA**2
_MAX_ITERATIONS = 400
"""Iteration limit of the optimiser; two or three parameters need about 100."""
_MIN_SERIES = 5
"""Series from which the first zero points alone determine the initial level."""
_MIN_SCATTER = 1e-4
"""Smallest first guess of the scatter between neighbours [mag]."""


@dataclass(frozen=True)
class LocalLevel:
    """A level that performs a random walk, and exposures that scatter about it.

    Over dt days the variance of the level grows by ``walk^2 dt``, and by a further ``jump^2`` if dt exceeds `gap`.
    With a finite `dof`, the variance of a measurement far from its prediction is multiplied by
    ``(dof + z^2) / (dof + 1)``, if that is above 1, as for Student's t.

    Attributes
    ----------
    walk : float
        Random walk of the level [mag day^-1/2].
    white, jump : float
        Scatter of exposures about the level, and extra scatter after a gap [mag].
    gap : float
        Time without exposures after which `jump` is added [days].
    initial_mean, initial_sigma : float
        Mean and standard deviation of the first level of a series [mag]. By default (NaN, inf) nothing is predicted
        before the first measurement of a series.
    dof : float
        Degrees of freedom of the errors; inf for normal errors.
    """

    walk: float
    white: float
    jump: float = 0.0
    gap: float = math.inf
    initial_mean: float = math.nan
    initial_sigma: float = math.inf
    dof: float = math.inf

    def predict(
        self, days: npt.ArrayLike, value: npt.ArrayLike, sigma: npt.ArrayLike, *, series: npt.ArrayLike | None = None
    ) -> tuple[Float, Float]:
        """Predict each zero point from earlier exposures of its series.

        Parameters
        ----------
        days, value, sigma : array-like (n,)
            Start of the exposures [days], zero points and errors [mag], in any order. Exposures with a non-finite
            value or error are predicted but not learned from.
        series : array-like (n,), optional
            Labels of independent series.

        Returns
        -------
        mean, sigma : float64 array (n,)
            Prediction of the true zero point and its standard deviation [mag], white noise included; NaN and inf
            where there is no earlier exposure.

        Examples
        --------
        >>> mean, sigma = LocalLevel(walk=0.02, white=0.0).predict([0.0, 1.0], [25.0, 25.1], [0.0, 0.01])
        >>> mean.tolist(), sigma.round(3).tolist()
        ([nan, 25.0], [inf, 0.02])
        """
        history = _History.from_columns(days, value, sigma, series)
        mean, variance = history.filter(self)
        return history.unsort(mean, np.nan), np.sqrt(history.unsort(variance, np.inf))


@dataclass(frozen=True)
class _History:
    """Exposures sorted by series and time; arrays (n_finite,)."""

    value: Float
    """Zero point; NaN where unsolved."""
    variance: Float
    """Measurement variance."""
    dt: Float
    """Time since the previous exposure [days]; NaN at the start of a series."""
    source: Int
    """Row of the input."""
    n: int
    """Number of rows of the input."""

    @classmethod
    def from_columns(
        cls, days: npt.ArrayLike, value: npt.ArrayLike, sigma: npt.ArrayLike, series: npt.ArrayLike | None
    ) -> _History:
        time, value, sigma = (np.asarray(column, dtype=np.float64) for column in (days, value, sigma))
        code = series_codes(series, len(time))
        source = np.flatnonzero(np.isfinite(time))
        source = source[np.lexsort((time[source], code[source]))]
        solved = np.isfinite(value[source]) & np.isfinite(sigma[source])
        same_series = np.diff(code[source], prepend=-1) == 0
        dt = np.where(same_series, np.diff(time[source], prepend=np.nan), np.nan)
        variance = np.where(solved, sigma[source], 0.0) ** 2
        return cls(np.where(solved, value[source], np.nan), variance, dt, source, len(time))

    @property
    def series(self) -> Int:
        """Number of the series of each exposure, from 0."""
        return np.asarray(np.cumsum(np.isnan(self.dt)) - 1)

    def filter(self, model: LocalLevel) -> tuple[Float, Float]:
        """Return one-step-ahead means and variances of the true zero points."""
        initial_variance = model.initial_sigma**2 if math.isfinite(model.initial_mean) else math.inf
        parameters = (
            model.walk**2, model.white**2, model.jump**2, model.gap, model.initial_mean, initial_variance, model.dof,
        )  # fmt: skip
        return _filter(self.value, self.variance, self.dt, np.array(parameters))

    def unsort(self, values: Float, fill: float) -> Float:
        """Return values in the order of the input, float64 array (n,)."""
        out = np.full(self.n, fill)
        out[self.source] = values
        return out


@njit(cache=True, nogil=True)
def _filter(value: Float, variance: Float, dt: Float, parameters: Float) -> tuple[Float, Float]:
    """Filter sorted exposures; see `LocalLevel`. Exposures of one moment share the prediction from earlier ones."""
    walk2, white2, jump2, gap, initial_mean, initial_variance, dof = parameters
    n = len(value)
    mean, mean_variance = np.empty(n), np.empty(n)
    level, level_variance = initial_mean, initial_variance
    for i in range(n):
        if np.isnan(dt[i]):
            level, level_variance = initial_mean, initial_variance
        else:
            level_variance += walk2 * dt[i] + (jump2 if dt[i] > gap else 0.0)
        if dt[i] == 0:
            mean[i], mean_variance[i] = mean[i - 1], mean_variance[i - 1]
        else:
            mean[i], mean_variance[i] = level, level_variance + white2
        if np.isnan(value[i]):
            continue
        noise = max(variance[i] + white2, _MIN_VARIANCE)
        if np.isinf(level_variance):
            level, level_variance = value[i], noise
            continue
        innovation = value[i] - level
        if np.isfinite(dof):
            noise *= max((dof + innovation**2 / (level_variance + noise)) / (dof + 1), 1.0)
        gain = level_variance / (level_variance + noise)
        level += gain * innovation
        level_variance *= 1 - gain
    return mean, mean_variance


def fit_local_level(
    days: npt.ArrayLike,
    value: npt.ArrayLike,
    sigma: npt.ArrayLike,
    series: npt.ArrayLike | None = None,
    *,
    gap: float = math.inf,
    dof: float = math.inf,
) -> LocalLevel:
    """Fit a `LocalLevel` by the likelihood of its innovations (one-step-ahead prediction errors).

    Parameters
    ----------
    days, value, sigma : array-like (n,)
        As for `LocalLevel.predict`.
    series : array-like (n,), optional
        Labels of independent series.
    gap : float
        Time after which a jump is allowed [days]. Its size is fitted if a series has such gaps.
    dof : float
        Degrees of freedom of the innovations; inf for normal ones.

    Returns
    -------
    LocalLevel
        The initial mean and sigma are the median and the scatter of the first zero points of the series, or of all
        zero points if there are fewer than five series.

    Raises
    ------
    ValueError
        If no series has three solved zero points.
    """
    history = _History.from_columns(days, value, sigma, series)
    solved = np.isfinite(history.value)
    if not solved.any() or np.bincount(history.series[solved]).max() < 3:
        raise ValueError("found no series with three solved zero points; wanted a longer history to fit a local level")
    start = _first_guess(history, gap, dof)
    names = ("walk", "white", "jump") if (history.dt > gap).any() else ("walk", "white")

    def to_model(log_sizes: Float) -> LocalLevel:
        sizes = np.exp(np.clip(log_sizes, math.log(MIN_SIGMA), 5.0))
        return replace(start, **dict(zip(names, map(float, sizes), strict=True)))

    def cost(log_sizes: Float) -> float:
        return _negative_log_likelihood(to_model(log_sizes), history)

    guess = np.log([getattr(start, name) for name in names])
    shift = np.zeros(len(names))
    shift[:2] = 1.0, -1.0  # most of the scatter in the walk, or in the white noise
    options = {"maxiter": _MAX_ITERATIONS, "xatol": 1e-3, "fatol": 1e-3}
    fits = [minimize(cost, guess + side * shift, method="Nelder-Mead", options=options) for side in (1, -1)]
    return to_model(min(fits, key=lambda fit: float(fit.fun)).x)


def _first_guess(history: _History, gap: float, dof: float) -> LocalLevel:
    """Estimate the parameters from differences of neighbours, and the initial level from the first zero points."""
    solved = np.isfinite(history.value)
    value, series = history.value[solved], history.series[solved]
    same_series = np.diff(series) == 0
    scatter = max(float(mad_scale(np.diff(value)[same_series], center=0.0)), _MIN_SCATTER)
    steps = history.dt[history.dt > 0]
    first_values = value[np.concatenate([[True], ~same_series])]
    initial_values = first_values if len(first_values) >= _MIN_SERIES else value
    return LocalLevel(
        walk=scatter / math.sqrt(2 * float(np.median(steps)) if len(steps) else 1.0),
        white=scatter / 2,
        jump=scatter if math.isfinite(gap) else 0.0,
        gap=gap,
        initial_mean=float(nan_median(initial_values)),
        initial_sigma=max(float(np.std(initial_values)), scatter),
        dof=dof,
    )


def _negative_log_likelihood(model: LocalLevel, history: _History) -> float:
    """Return -log likelihood of all innovations except those of the first zero point of each series."""
    mean, variance = history.filter(model)
    solved = np.flatnonzero(np.isfinite(history.value))
    counted = solved[1:][np.diff(history.series[solved]) == 0]
    total = np.maximum(variance[counted] + history.variance[counted], _MIN_VARIANCE)
    z2 = (history.value[counted] - mean[counted]) ** 2 / total
    if math.isfinite(model.dof):
        z2 = (model.dof + 1) * np.log1p(z2 / model.dof)
    return float(0.5 * (np.log(total) + z2).sum())
