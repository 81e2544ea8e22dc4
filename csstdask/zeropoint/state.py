"""Memory of solved zero points, a local-level filter, and recalibration of errors while exposures arrive.

Everything here is causal: the numbers of an exposure depend on exposures that began earlier, and on nothing else.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.optimize import minimize
from scipy.stats import norm

from csstdask.numerics.robust import mad_scale, nan_median

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

ONE_SIGMA = 0.6826894921370859
"""Probability of |z| < 1 for a standard normal z."""
LEAST_SIGMA = 1e-6
"""Floor of fitted standard deviations [mag, mag day^-1/2]: far below any measurement."""
_LEAST_VARIANCE = LEAST_SIGMA**2
_STEPS = 400
"""Limit of the optimiser's iterations; two or three parameters need about 100."""
_PSEUDO_SCORES = 30
"""Normal scores that a recalibration starts from; they are forgotten as errors arrive."""


@dataclass(frozen=True)
class Memory:
    """The last K solved zero points before each of n exposures, most recent first.

    Attributes
    ----------
    value, sigma : float64 array (n, K)
        Zero points and their errors [mag]; NaN where fewer than K are known.
    age : float64 array (n, K)
        Time between the two exposures [days], positive.
    index : int64 array (n, K)
        Rows of the history; -1 where there is none.
    """

    value: Float
    sigma: Float
    age: Float
    index: Int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def count(self) -> Int:
        """Return how many zero points each exposure remembers (n,)."""
        return np.asarray((self.index >= 0).sum(axis=1))

    def of(self, column: npt.ArrayLike) -> Float:
        """Return another column of the history at the remembered rows (n, K), NaN where there is none."""
        return _remembered(self.index, np.asarray(column, dtype=np.float64))


def build_memory(
    days: npt.ArrayLike,
    value: npt.ArrayLike,
    sigma: npt.ArrayLike,
    *,
    last: int = 8,
    series: npt.ArrayLike | None = None,
    at: npt.ArrayLike | None = None,
    at_series: npt.ArrayLike | None = None,
) -> Memory:
    """Return the last solved zero points before each exposure.

    Parameters
    ----------
    days, value, sigma : array-like (m,)
        History: start of the exposures [days, any origin], zero points and their errors [mag], in any order. Rows
        where any of them is not finite are unsolved and left out.
    last : int
        Number K of zero points to remember.
    series : array-like (m,), optional
        Labels (detector, band, night ...); exposures remember those of their own series only.
    at : array-like (n,), optional
        Start of the exposures that remember; by default those of the history.
    at_series : array-like (n,), optional
        Their labels; needed where both `series` and `at` are given.

    Returns
    -------
    Memory
        Only exposures that began earlier are remembered, never those of the same moment.

    Examples
    --------
    >>> memory = recent([0.0, 0.1, 0.2], [25.0, float("nan"), 25.1], [0.01, 0.01, 0.01], last=2)
    >>> memory.index.tolist()
    [[-1, -1], [0, -1], [0, -1]]
    """
    days, value, sigma = (np.asarray(one, dtype=np.float64) for one in (days, value, sigma))
    when = days if at is None else np.asarray(at, dtype=np.float64)
    code, code_at = _series_codes(series, at_series, len(days), len(when), apart=at is not None)
    moment, rank = np.unique(np.concatenate([days, when]), return_inverse=True)
    rank = rank.ravel()
    key = code * (len(moment) + 1) + rank[: len(days)]
    wanted = code_at * (len(moment) + 1) + rank[len(days) :]
    solved = np.flatnonzero(np.isfinite(days) & np.isfinite(value) & np.isfinite(sigma))
    order = solved[np.argsort(key[solved], kind="stable")]
    end = np.searchsorted(key[order], wanted, side="left")
    start = np.searchsorted(key[order], code_at * (len(moment) + 1), side="left")
    position = end[:, None] - 1 - np.arange(last)
    known = (position >= start[:, None]) & np.isfinite(when)[:, None]
    index = np.full(position.shape, -1, dtype=np.int64)
    index[known] = order[position[known]]
    age = np.where(known, when[:, None], np.nan) - _remembered(index, days)
    return Memory(_remembered(index, value), _remembered(index, sigma), age, index)


def _remembered(index: Int, column: Float) -> Float:
    """Return a column at the rows of an index, NaN where it is -1."""
    if len(column) == 0:
        return np.full(index.shape, np.nan)
    return np.where(index >= 0, column[index], np.nan)


def _series_codes(
    series: npt.ArrayLike | None, at_series: npt.ArrayLike | None, n: int, n_at: int, *, apart: bool
) -> tuple[Int, Int]:
    """Return integer labels of the history and of the exposures that remember."""
    if series is None:
        return np.zeros(n, dtype=np.int64), np.zeros(n_at, dtype=np.int64)
    label = np.asarray(series)
    if not apart:
        code = np.unique(label, return_inverse=True)[1].ravel()
        return code, code
    if at_series is None:
        raise ValueError("found `series` and `at` without `at_series`; wanted the series of the exposures at `at`")
    code = np.unique(np.concatenate([label, np.asarray(at_series)]), return_inverse=True)[1].ravel()
    return code[:n], code[n:]


@dataclass(frozen=True)
class LocalLevel:
    """A level that walks at random, and exposures that scatter about it.

    zero point of exposure i = level(t_i) + white noise, measured with the error sigma_i; over dt days the variance of
    the level grows by walk^2 dt, and by jump^2 more where dt exceeds `gap`. The filter is Kalman's; with a finite
    `dof`, measurements far from their prediction count less: their variance is multiplied by
    (dof + z^2) / (dof + 1) if that is above 1, as of Student's t.

    Attributes
    ----------
    walk : float
        [mag day^-1/2]
    white, jump : float
        [mag]
    gap : float
        Time without exposures after which `jump` is added [days].
    mean, spread : float
        Mean and standard deviation of the first level of a series [mag]; without them (NaN, inf) nothing is
        predicted before a series' first measurement.
    dof : float
        Degrees of freedom; inf: normal errors.
    """

    walk: float
    white: float
    jump: float = 0.0
    gap: float = math.inf
    mean: float = math.nan
    spread: float = math.inf
    dof: float = math.inf

    def predict(
        self, days: npt.ArrayLike, value: npt.ArrayLike, sigma: npt.ArrayLike, *, series: npt.ArrayLike | None = None
    ) -> tuple[Float, Float]:
        """Predict each zero point from exposures of its series that began earlier.

        Parameters
        ----------
        days, value, sigma : array-like (n,)
            In any order. Unsolved exposures (a value or an error that is not finite) are predicted, and teach
            nothing.
        series : array-like (n,), optional

        Returns
        -------
        mean, sigma : float64 array (n,)
            Prediction of the true zero point and its standard deviation [mag], white noise included; NaN and inf
            where nothing is known.
        """
        history = _History.of(days, value, sigma, series)
        mean, variance = history.filter(self)
        return history.back(mean, np.nan), np.sqrt(history.back(variance, np.inf))


@dataclass(frozen=True)
class _History:
    """Exposures sorted by series and time."""

    value: Float
    """NaN where unsolved."""
    variance: Float
    dt: Float
    """Time since the exposure before [days]; NaN at the start of a series."""
    source: Int
    """Rows of the input."""
    n: int
    """Number of rows of the input."""

    @classmethod
    def of(
        cls, days: npt.ArrayLike, value: npt.ArrayLike, sigma: npt.ArrayLike, series: npt.ArrayLike | None
    ) -> _History:
        when, value, sigma = (np.asarray(one, dtype=np.float64) for one in (days, value, sigma))
        code = _series_codes(series, None, len(when), len(when), apart=False)[0]
        source = np.flatnonzero(np.isfinite(when))
        source = source[np.lexsort((when[source], code[source]))]
        solved = np.isfinite(value[source]) & np.isfinite(sigma[source])
        same = np.diff(code[source], prepend=-1) == 0
        dt = np.where(same, np.diff(when[source], prepend=np.nan), np.nan)
        variance = np.where(solved, sigma[source], 0.0) ** 2
        return cls(np.where(solved, value[source], np.nan), variance, dt, source, len(when))

    @property
    def series(self) -> Int:
        """Return the series of each exposure, counted from 0."""
        return np.asarray(np.cumsum(np.isnan(self.dt)) - 1)

    def filter(self, model: LocalLevel) -> tuple[Float, Float]:
        """Return one-step-ahead means and variances of the true zero points."""
        spread2 = model.spread**2 if math.isfinite(model.mean) else math.inf
        return _filtered(
            self.value,
            self.variance,
            self.dt,
            np.array([model.walk**2, model.white**2, model.jump**2, model.gap, model.mean, spread2, model.dof]),
        )

    def back(self, values: Float, fill: float) -> Float:
        """Return values in the order of the input (n,)."""
        out = np.full(self.n, fill)
        out[self.source] = values
        return out


@njit(cache=True, nogil=True)
def _filtered(value: Float, variance: Float, dt: Float, parameters: Float) -> tuple[Float, Float]:
    """Filter sorted exposures; see `LocalLevel`. Exposures of one moment are predicted from those before it."""
    walk2, white2, jump2, gap, mean, spread2, dof = parameters
    n = len(value)
    predicted, uncertain = np.empty(n), np.empty(n)
    level, spread = mean, spread2
    for i in range(n):
        if np.isnan(dt[i]):
            level, spread = mean, spread2
        else:
            spread += walk2 * dt[i] + (jump2 if dt[i] > gap else 0.0)
        if dt[i] == 0:
            predicted[i], uncertain[i] = predicted[i - 1], uncertain[i - 1]
        else:
            predicted[i], uncertain[i] = level, spread + white2
        if np.isnan(value[i]):
            continue
        noise = max(variance[i] + white2, _LEAST_VARIANCE)
        if np.isinf(spread):
            level, spread = value[i], noise
            continue
        error = value[i] - level
        if np.isfinite(dof):
            noise *= max((dof + error**2 / (spread + noise)) / (dof + 1), 1.0)
        gain = spread / (spread + noise)
        level += gain * error
        spread *= 1 - gain
    return predicted, uncertain


def fit_local_level(
    days: npt.ArrayLike,
    value: npt.ArrayLike,
    sigma: npt.ArrayLike,
    series: npt.ArrayLike | None = None,
    *,
    gap: float = math.inf,
    dof: float = math.inf,
) -> LocalLevel:
    """Fit a `LocalLevel` by the likelihood of its innovations (prediction errors one step ahead).

    Parameters
    ----------
    days, value, sigma : array-like (n,)
        As for `LocalLevel.predict`.
    series : array-like (n,), optional
    gap : float
        Time after which a jump is allowed [days]; its size is fitted where a series has such gaps.
    dof : float
        Degrees of freedom of the innovations; inf: normal.

    Returns
    -------
    LocalLevel
        Its mean and spread are the median and the scatter of the series' first zero points, or of all zero points
        where there are fewer than five series.

    Raises
    ------
    ValueError
        If no series has three solved zero points.
    """
    history = _History.of(days, value, sigma, series)
    solved = np.isfinite(history.value)
    if not solved.any() or np.bincount(history.series[solved]).max() < 3:
        raise ValueError("found no series with three solved zero points; wanted a longer history to fit a local level")
    start = _start_of(history, gap, dof)
    jumps = bool((history.dt > gap).any())
    names = ("walk", "white", "jump") if jumps else ("walk", "white")

    def model_of(parameters: Float) -> LocalLevel:
        sizes = np.exp(np.clip(parameters, math.log(LEAST_SIGMA), 5.0))
        return replace(start, **dict(zip(names, map(float, sizes), strict=True)))

    def cost(parameters: Float) -> float:
        return _negative_log_likelihood(model_of(parameters), history)

    guess = np.log([getattr(start, name) for name in names])
    found = min(
        (
            minimize(
                cost, guess + shift, method="Nelder-Mead", options={"maxiter": _STEPS, "xatol": 1e-3, "fatol": 1e-3}
            )
            for shift in _starts(len(names))
        ),
        key=lambda one: float(one.fun),
    )
    return model_of(found.x)


def _starts(n_parameters: int) -> list[Float]:
    """Return offsets of the first guess: most of the scatter in the walk, or in white noise."""
    shift = np.zeros(n_parameters)
    shift[:2] = 1.0, -1.0
    return [shift, -shift]


def _start_of(history: _History, gap: float, dof: float) -> LocalLevel:
    """Return a first guess from differences of neighbours, with the mean and spread of the first levels."""
    solved = np.isfinite(history.value)
    value, series = history.value[solved], history.series[solved]
    same = np.diff(series) == 0
    scatter = max(float(mad_scale(np.diff(value)[same], center=0.0)), 1e-4)
    steps = history.dt[history.dt > 0]
    firsts = value[np.concatenate([[True], ~same])]
    chosen = firsts if len(firsts) >= 5 else value
    return LocalLevel(
        walk=scatter / math.sqrt(2 * float(np.median(steps)) if len(steps) else 1.0),
        white=scatter / 2,
        jump=scatter if math.isfinite(gap) else 0.0,
        gap=gap,
        mean=float(nan_median(chosen)),
        spread=max(float(np.std(chosen)), scatter),
        dof=dof,
    )


def _negative_log_likelihood(model: LocalLevel, history: _History) -> float:
    """Return -log likelihood of all innovations but those of the series' first zero points."""
    mean, variance = history.filter(model)
    solved = np.flatnonzero(np.isfinite(history.value))
    counted = solved[1:][np.diff(history.series[solved]) == 0]
    total = np.maximum(variance[counted] + history.variance[counted], _LEAST_VARIANCE)
    z2 = (history.value[counted] - mean[counted]) ** 2 / total
    if math.isfinite(model.dof):
        z2 = (model.dof + 1) * np.log1p(z2 / model.dof)
    return float(0.5 * (np.log(total) + z2).sum())


def online_scale(
    error: npt.ArrayLike,
    sigma: npt.ArrayLike,
    *,
    level: float = ONE_SIGMA,
    rate: float = 0.01,
    window: int = 300,
    days: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
) -> Float:
    """Return the factor on sigma with which intervals hold the stated share of exposures.

    Adaptive conformal inference (Gibbs & Candes 2021, eq. 2): scores are |error| / sigma; the factor of an exposure is
    the (1 - alpha_t) quantile of the last `window` scores over the normal one, and
    alpha_{t+1} = alpha_t + rate (1 - level - miss_t). The window begins with the quantiles of a normal distribution, so
    that the factor begins at 1.

    Parameters
    ----------
    error, sigma : array-like (n,)
        Errors that became known after each exposure, and predicted standard deviations; rows where either is not
        finite, or sigma is not positive, teach nothing.
    level : float
        Share of exposures that are within factor * z * sigma, z the normal quantile of the level.
    rate : float
        Step of alpha; 0 leaves the quantile of the window alone.
    window : int
        Number of scores that are remembered.
    days : array-like (n,), optional
        Start of the exposures; by default rows are in time order. Errors of the same moment are not used.
    groups : array-like (n,), optional
        Labels known in advance (quartiles of sigma, bands ...), each of which is recalibrated apart.

    Returns
    -------
    float64 array (n,)
        1 before any error is known.
    """
    error, sigma = np.asarray(error, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    factor = np.ones(len(error))
    if groups is not None:
        label = np.asarray(groups)
        for one in np.unique(label):
            rows = np.flatnonzero(label == one)
            when = None if days is None else np.asarray(days)[rows]
            factor[rows] = online_scale(error[rows], sigma[rows], level=level, rate=rate, window=window, days=when)
        return factor
    moment = np.arange(len(error)) if days is None else np.unique(np.asarray(days), return_inverse=True)[1].ravel()
    order = np.argsort(moment, kind="stable")
    usable = np.isfinite(error) & np.isfinite(sigma) & (sigma > 0)
    score = np.where(usable, np.abs(error) / np.where(usable, sigma, 1.0), np.nan)
    tracker = _Quantile(level, rate, window)
    waiting: list[float] = []
    before = -1
    for row in order:
        if moment[row] != before:
            for one in waiting:
                tracker.add(one)
            waiting, before = [], int(moment[row])
        factor[row] = tracker.factor
        if usable[row]:
            waiting.append(float(score[row]))
    return factor


class _Quantile:
    """The quantile of the last scores at a level that adapts."""

    def __init__(self, level: float, rate: float, window: int) -> None:
        self.normal = float(norm.ppf(0.5 + level / 2))
        self.level, self.rate = level, rate
        self.alpha = 1 - level
        n = min(_PSEUDO_SCORES, window)
        first = norm.ppf(0.5 + (np.arange(n) + 0.5) / (2 * n))
        self.ordered = [float(one) for one in first]
        self.queue = deque(np.random.default_rng(0).permutation(self.ordered).tolist())
        self.window = window
        self.unit = self._quantile()

    @property
    def factor(self) -> float:
        """Return the quantile of the window over the one that it began with, which is the normal one."""
        return self._quantile() / self.unit

    def _quantile(self) -> float:
        position = min(max(1 - self.alpha, 0.0), 1.0) * (len(self.ordered) - 1)
        low = int(position)
        high = min(low + 1, len(self.ordered) - 1)
        share = position - low
        return (1 - share) * self.ordered[low] + share * self.ordered[high]

    def add(self, score: float) -> None:
        """Learn a score: step alpha, and let the oldest score go where the window is full."""
        missed = score > self.factor * self.normal
        self.alpha += self.rate * (1 - self.level - missed)
        self.queue.append(score)
        insort(self.ordered, score)
        if len(self.queue) > self.window:
            del self.ordered[bisect_left(self.ordered, self.queue.popleft())]
