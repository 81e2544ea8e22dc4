"""Baselines of zero-point prediction on arrays: regression, persistence, trees, a local level, and their errors.

All are fitted to the rows of `train` and predict every row. The memory is causal by construction
(`csstdask.zeropoint.memory.Memory`). The features of trees (`tree_features`) contain the same conditions and memory
that networks read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.optional import install_hint
from csstdask.numerics.probability import WITHIN_ONE_SIGMA, WITHIN_TWO_SIGMA
from csstdask.numerics.robust import NORMAL_MAD, nan_median, robust_linear_fit
from csstdask.zeropoint.local_level import LocalLevel, fit_local_level
from csstdask.zeropoint.memory import Memory, build_memory
from csstdask.zeropoint.recalibration import online_scale

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

SCATTER = 0.03
"""Scatter of zero points about a regression [mag]; residuals are down-weighted from about 1.3 times that."""
MIN_ROWS = 20
"""Rows that the regression of a group needs; smaller groups get the median of all rows."""
N_TREES = 40
"""Trees of a random forest."""
BOOSTING_ROUNDS = 250
"""Trees of a boosted model."""
N_STEPS = 30
"""Reweightings of the robust regression."""
N_CHANGES = 3
"""Earlier exposures from which changes of the conditions are features of trees."""
PRIOR_COUNT = 2.0
"""Weight of the typical error of the training in a recent scatter, in exposures."""
MIN_ERROR = 1e-3
"""Smallest predicted error [mag]."""
MIN_FIRST_EXPOSURES = 5
"""First exposures of a series from which their typical error is their own."""


def linear_regression(
    conditions: npt.ArrayLike, value: npt.ArrayLike, train: Bool, *, groups: npt.ArrayLike | None = None
) -> Float:
    """Predict by robust linear regression on conditions (an extinction fit, or look-up table).

    Parameters
    ----------
    conditions : array-like (n, condition)
        Conditions; gaps are filled with the median of the training rows.
    value : array-like (n,)
        Zero points [mag]; only those of training rows are used.
    train : bool array (n,)
        Rows to learn from.
    groups : array-like (n,), optional
        Labels (bands) with separate regressions.

    Returns
    -------
    float64 array (n,)
        Predictions [mag].
    """
    filled, value = _fill_gaps(conditions, train), np.asarray(value, dtype=np.float64)
    label = np.zeros(len(value)) if groups is None else np.asarray(groups)
    solved = train & np.isfinite(value)
    out = np.full(len(value), float(nan_median(value[solved])))
    for group in np.unique(label):
        rows = label == group
        used = rows & solved
        if used.sum() < MIN_ROWS:
            continue
        centre, scale = filled[used].mean(axis=0), filled[used].std(axis=0)
        terms = np.column_stack([np.ones(len(value)), (filled - centre) / np.where(scale > 0, scale, 1.0)])
        terms = terms[:, np.concatenate([[True], scale > 0])]
        coefficients, _ = robust_linear_fit(
            terms[used], value[used], np.full(int(used.sum()), SCATTER**2), n_steps=N_STEPS
        )
        out[rows] = terms[rows] @ coefficients
    return out


def _fill_gaps(conditions: npt.ArrayLike, train: Bool) -> Float:
    """Return conditions (n, condition) with gaps replaced by the median of the training rows."""
    columns = _as_columns(conditions)
    median = nan_median(columns[train], axis=0)
    return np.where(np.isfinite(columns), columns, np.nan_to_num(median))


def _as_columns(conditions: npt.ArrayLike) -> Float:
    """Return conditions as a float64 array (n, condition)."""
    columns = np.asarray(conditions, dtype=np.float64)
    return columns[:, None] if columns.ndim == 1 else columns


def previous(memory: Memory, fallback: npt.ArrayLike, *, fallback_then: npt.ArrayLike | None = None) -> Float:
    """Predict the zero point of the previous exposure (persistence).

    Parameters
    ----------
    memory : Memory
        Earlier zero points of n exposures.
    fallback : array-like (n,)
        Prediction for exposures without memory [mag].
    fallback_then : array-like (n,), optional
        Fallback of the exposures of the history, if the difference from it persists; previous exposures may then have
        other bands and airmasses.

    Returns
    -------
    float64 array (n,)
        Predictions [mag].
    """
    fallback = np.asarray(fallback, dtype=np.float64)
    last = memory.value[:, 0]
    if fallback_then is not None:
        last = fallback + last - memory.lookup(fallback_then)[:, 0]
    return np.where(np.isfinite(last), last, fallback)


def local_level(
    days: npt.ArrayLike, offset: npt.ArrayLike, sigma: npt.ArrayLike, train: Bool, *,
    series: npt.ArrayLike | None = None, gap: float = np.inf, dof: float = np.inf,
) -> tuple[Float, Float, LocalLevel]:  # fmt: skip
    """Predict offsets by a Kalman filter whose noise is fitted to the training rows.

    Parameters
    ----------
    days, offset, sigma : array-like (n,)
        Start of the exposures [days], offsets and their errors [mag].
    train : bool array (n,)
        Rows to learn from.
    series : array-like (n,), optional
        Labels of independent series.
    gap, dof : float
        As for `csstdask.zeropoint.local_level.fit_local_level`.

    Returns
    -------
    mean, sigma : float64 array (n,)
        Predictions and their errors [mag].
    model : LocalLevel
        Fitted model.
    """
    days, offset, sigma = (np.asarray(column, dtype=np.float64) for column in (days, offset, sigma))
    labels = None if series is None else np.asarray(series)
    train_labels = None if labels is None else labels[train]
    try:
        model = fit_local_level(days[train], offset[train], sigma[train], train_labels, gap=gap, dof=dof)
    except ValueError:  # no series of three: too short to show how it varies
        scatter = float(np.nanstd(offset[train])) or SCATTER
        model = LocalLevel(
            walk=scatter,
            white=scatter / 2,
            gap=gap,
            initial_mean=float(np.nanmedian(offset[train])),
            initial_sigma=scatter,
        )
    mean, error = model.predict(days, offset, sigma, series=labels)
    return mean, error, model


def tree_features(
    conditions: npt.ArrayLike,
    memory: Memory | None = None,
    *,
    level: npt.ArrayLike | None = None,
    categories: Sequence[int] = (),
) -> Float:
    """Return the features of trees: conditions, and the memory as differences.

    Parameters
    ----------
    conditions : array-like (n, condition)
        Conditions of the exposures.
    memory : Memory, optional
        Earlier zero points; its rows and its history are the same exposures.
    level : array-like (n,), optional
        Level to subtract from zero points in the memory (an extinction fit, a nominal value) [mag].
    categories : sequence of int
        Columns for which the feature is equality with earlier exposures instead of the difference.

    Returns
    -------
    float64 array (n, feature)
        NaN where unknown. Offsets are relative to the newest one, which is also a feature.
    """
    columns = _as_columns(conditions)
    if memory is None:
        return columns
    offset = memory.value if level is None else memory.value - memory.lookup(level)
    newest = offset[:, :1]
    parts = [columns, newest, offset[:, 1:] - newest, memory.age, memory.count[:, None].astype(float)]
    parts += [_mean_step(offset)[:, None], _mean(offset)[:, None] - newest]
    for k, column in enumerate(columns.T):
        change = column[:, None] - memory.lookup(column)[:, :N_CHANGES]
        is_equal = np.where(np.isfinite(change), (change == 0).astype(float), np.nan)
        parts.append(is_equal if k in categories else change)
    return np.concatenate(parts, axis=1)


def _mean(values: Float) -> Float:
    """Return means of the finite values along the last axis; NaN without any."""
    count = np.isfinite(values).sum(axis=1)
    total = np.where(np.isfinite(values), values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean_step(values: Float) -> Float:
    """Return the mean absolute step along the last axis; NaN with fewer than two values."""
    return _mean(np.abs(np.diff(values, axis=1)))


def random_forest(
    features: npt.ArrayLike, value: npt.ArrayLike, train: Bool, *, base: npt.ArrayLike | None = None, seed: int = 1
) -> Float:
    """Predict by a random forest that is fitted to value - base (by default value); see `boosted_trees`."""
    ensemble = _scikit_learn("ensemble")
    model = ensemble.RandomForestRegressor(
        n_estimators=N_TREES, min_samples_leaf=5, max_features=1 / 3, max_samples=0.5, random_state=seed, n_jobs=1
    )
    return _fit_and_predict([model], features, value, train, base)


def boosted_trees(
    features: npt.ArrayLike, value: npt.ArrayLike, train: Bool, *, base: npt.ArrayLike | None = None,
    seed: int = 1, members: int = 1,
) -> Float:  # fmt: skip
    """Predict by gradient-boosted trees with absolute-error loss, fitted to value - base (by default value).

    Parameters
    ----------
    features : array-like (n, feature)
        Output of `tree_features`.
    value : array-like (n,)
        Zero points [mag].
    train : bool array (n,)
        Rows to learn from.
    base : array-like (n,), optional
        Prediction to improve, such as persistence [mag].
    seed : int
        Seed of the random choices.
    members : int
        Number of models with different seeds, whose predictions are averaged.

    Returns
    -------
    float64 array (n,)
        Predictions [mag].
    """
    ensemble = _scikit_learn("ensemble")
    models = [
        ensemble.HistGradientBoostingRegressor(
            loss="absolute_error", max_iter=BOOSTING_ROUNDS, learning_rate=0.05, max_leaf_nodes=15,
            min_samples_leaf=40, l2_regularization=1.0, max_features=0.5, random_state=seed + k,
        )
        for k in range(members)
    ]  # fmt: skip
    return _fit_and_predict(models, features, value, train, base)


def _scikit_learn(name: str) -> Any:
    """Return a module of scikit-learn."""
    import importlib  # noqa: PLC0415

    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError:
        raise ImportError(f"baselines need scikit-learn: {install_hint('peers')}") from None


def _fit_and_predict(
    models: Sequence[Any], features: npt.ArrayLike, value: npt.ArrayLike, train: Bool, base: npt.ArrayLike | None
) -> Float:
    """Fit models to value - base, and return base plus the mean of their predictions."""
    x, value = np.asarray(features, dtype=np.float64), np.asarray(value, dtype=np.float64)
    start = np.zeros(len(value)) if base is None else np.asarray(base, dtype=np.float64)
    used = train & np.isfinite(value) & np.isfinite(start)
    x = x[:, np.isfinite(x[used]).any(axis=0)]  # drop columns without a training value
    change = [model.fit(x[used], (value - start)[used]).predict(x) for model in models]
    return np.asarray(start + np.mean(change, axis=0))


@dataclass(frozen=True)
class Intervals:
    """Intervals of n exposures."""

    sigma_68: Float
    """Half-width of the interval of 68.3 % [mag]."""
    sigma_95: Float
    """Half of the half-width of the interval of 95.4 % [mag]."""


def recent_scatter(
    days: npt.ArrayLike, error: npt.ArrayLike, train: Bool, *, series: npt.ArrayLike | None = None, length: int = 8
) -> Float:
    """Estimate the standard deviation of each exposure's error from the errors of earlier exposures.

    It is the mean absolute error of the last exposures of the series, combined with that of the training rows
    (`PRIOR_COUNT` exposures). First exposures of a series use the errors of first exposures in the training.

    Parameters
    ----------
    days, error : array-like (n,)
        Start of the exposures [days], and errors of a method, which become known after each exposure [mag].
    train : bool array (n,)
        Training rows.
    series : array-like (n,), optional
        Labels of independent series.
    length : int
        Number of earlier exposures.

    Returns
    -------
    float64 array (n,)
        Standard deviations [mag].
    """
    error = np.asarray(error, dtype=np.float64)
    memory = build_memory(days, error, np.zeros(len(error)), length=length, series=series)
    first = memory.count == 0
    size = np.abs(error)
    typical = float(nan_median(size[train & ~first])) if (train & ~first).any() else float(nan_median(size))
    has_first = (train & first).sum() >= MIN_FIRST_EXPOSURES
    typical_first = float(nan_median(size[train & first])) if has_first else typical
    total = np.where(np.isfinite(memory.value), np.abs(memory.value), 0.0).sum(axis=1)
    mean = (PRIOR_COUNT * typical + total) / (PRIOR_COUNT + memory.count)
    return np.maximum(np.where(first, typical_first, mean) / NORMAL_MAD, MIN_ERROR)


def recalibrated(
    days: npt.ArrayLike, error: npt.ArrayLike, sigma: npt.ArrayLike, *, after: float = -np.inf,
    groups: npt.ArrayLike | None = None,
) -> Intervals:  # fmt: skip
    """Return intervals whose widths are recalibrated online by past errors.

    Parameters
    ----------
    days, error, sigma : array-like (n,)
        Start of the exposures [days], errors, which become known after each exposure, and predicted standard
        deviations [mag].
    after : float
        Time from which errors are used [days]; those of training rows may be too small.
    groups : array-like (n,), optional
        Labels that are known in advance and recalibrated separately.
    """
    days, error, sigma = (np.asarray(column, dtype=np.float64) for column in (days, error, sigma))
    known = np.where(days >= after, error, np.nan)
    factors = [
        online_scale(known, sigma, level=level, days=days, groups=groups)
        for level in (WITHIN_ONE_SIGMA, WITHIN_TWO_SIGMA)
    ]
    return Intervals(*(factor * sigma for factor in factors))
