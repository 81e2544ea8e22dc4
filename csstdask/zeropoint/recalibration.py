"""Recalibrate predicted errors online, while the true errors of earlier exposures become known."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from csstdask.numerics.probability import WITHIN_ONE_SIGMA

Float = npt.NDArray[np.float64]

_N_PSEUDO_SCORES = 30
"""Scores of a normal distribution that a recalibration starts from; they leave the window as errors arrive."""


def online_scale(
    error: npt.ArrayLike,
    sigma: npt.ArrayLike,
    *,
    level: float = WITHIN_ONE_SIGMA,
    rate: float = 0.01,
    window: int = 300,
    days: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
) -> Float:
    """Return the factor on sigma with which intervals cover the stated fraction of exposures.

    Adaptive conformal inference (Gibbs & Candes 2021, eq. 2). Scores are ``|error| / sigma``. The factor of an exposure
    is the ``1 - alpha_t`` quantile of the last `window` scores over that of a normal distribution, and
    ``alpha_{t+1} = alpha_t + rate (1 - level - miss_t)``. The window starts with quantiles of a normal distribution,
    so the factor starts at 1.

    Parameters
    ----------
    error, sigma : array-like (n,)
        Errors, which become known after each exposure, and predicted standard deviations. Rows with a non-finite
        number, or a sigma that is not positive, are not learned from.
    level : float
        Fraction of exposures to cover with ``factor * z * sigma``, z being the normal quantile of the level.
    rate : float
        Step of alpha; 0 uses the plain quantile of the window.
    window : int
        Number of scores in the window.
    days : array-like (n,), optional
        Start of the exposures; by default rows are in time order. Errors of the same moment are not used.
    groups : array-like (n,), optional
        Labels that are known in advance (quartiles of sigma, bands ...). Each group is recalibrated separately.

    Returns
    -------
    float64 array (n,)
        1 before any error is known.

    Examples
    --------
    >>> online_scale([0.1, 5.0, 0.1], [1.0, 1.0, 1.0]).round(2).tolist()
    [1.0, 0.97, 1.03]
    """
    error, sigma = np.asarray(error, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    if groups is None:
        return _scale_of_group(error, sigma, None if days is None else np.asarray(days), level, rate, window)
    factor = np.ones(len(error))
    labels = np.asarray(groups)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        group_days = None if days is None else np.asarray(days)[rows]
        factor[rows] = _scale_of_group(error[rows], sigma[rows], group_days, level, rate, window)
    return factor


def _scale_of_group(
    error: Float, sigma: Float, days: npt.NDArray[np.generic] | None, level: float, rate: float, window: int
) -> Float:
    """Return the factors of one group; scores are learned when time moves on to a later moment."""
    factor = np.ones(len(error))
    moment = np.arange(len(error)) if days is None else np.unique(days, return_inverse=True)[1].ravel()
    usable = np.isfinite(error) & np.isfinite(sigma) & (sigma > 0)
    score = np.where(usable, np.abs(error) / np.where(usable, sigma, 1.0), np.nan)
    quantile = _AdaptiveQuantile(level, rate, window)
    waiting: list[float] = []
    current_moment = -1
    for row in np.argsort(moment, kind="stable"):
        if moment[row] != current_moment:
            for past_score in waiting:
                quantile.add(past_score)
            waiting, current_moment = [], int(moment[row])
        factor[row] = quantile.factor
        if usable[row]:
            waiting.append(float(score[row]))
    return factor


class _AdaptiveQuantile:
    """Quantile of the last scores at a level that adapts to the misses."""

    def __init__(self, level: float, rate: float, window: int) -> None:
        self.normal_quantile = float(norm.ppf(0.5 + level / 2))
        self.level, self.rate, self.window = level, rate, window
        self.alpha = 1 - level
        n = min(_N_PSEUDO_SCORES, window)
        pseudo_scores = norm.ppf(0.5 + (np.arange(n) + 0.5) / (2 * n))
        self.ordered = [float(score) for score in pseudo_scores]
        self.queue = deque(np.random.default_rng(0).permutation(self.ordered).tolist())
        self.initial_quantile = self._quantile()

    @property
    def factor(self) -> float:
        """Quantile of the window over its initial value, which is that of a normal distribution."""
        return self._quantile() / self.initial_quantile

    def _quantile(self) -> float:
        position = min(max(1 - self.alpha, 0.0), 1.0) * (len(self.ordered) - 1)
        low = int(position)
        high = min(low + 1, len(self.ordered) - 1)
        fraction = position - low
        return (1 - fraction) * self.ordered[low] + fraction * self.ordered[high]

    def add(self, score: float) -> None:
        """Add a score: step alpha, and drop the oldest score if the window is full."""
        missed = score > self.factor * self.normal_quantile
        self.alpha += self.rate * (1 - self.level - missed)
        self.queue.append(score)
        insort(self.ordered, score)
        if len(self.queue) > self.window:
            del self.ordered[bisect_left(self.ordered, self.queue.popleft())]
