"""Baselines of zero-point prediction on plain arrays: regression, persistence, trees, a local level, and their errors.

All learn from the rows of `train` alone and return a prediction of every row. Memory is causal by construction
(`csstdask.zeropoint.memory.Memory`). What trees read is made by `tree_features` from the conditions and the memory that
networks get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.optional import install_hint
from csstdask.numerics.robust import NORMAL_MAD, nan_median, robust_linear_fit
from csstdask.zeropoint.local_level import LocalLevel, fit_local_level
from csstdask.zeropoint.memory import Memory, build_memory
from csstdask.zeropoint.recalibration import online_scale

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

SCATTER = 0.03
"""Least scatter of zero points about a regression [mag]; residuals are down-weighted from about 1.3 times that."""
FEWEST = 20
"""Rows that a regression of a group needs; smaller groups get the median of all."""
N_TREES = 40
BOOSTING_ROUNDS = 250
N_STEPS = 30
"""Reweightings of the robust regression."""
N_CHANGES = 3
"""Earlier exposures against which changes of the conditions are given to trees."""
PRIOR_COUNT = 2.0
"""Weight of the typical error of the training in a recent scatter, in exposures."""
LEAST_ERROR = 1e-3
"""Floor of predicted errors [mag]."""


def linear_regression(
    conditions: npt.ArrayLike, value: npt.ArrayLike, train: Bool, *, groups: npt.ArrayLike | None = None
) -> Float:
    """Predict by robust linear regression on conditions: the extinction fit, or look-up table.

    Parameters
    ----------
    conditions : array-like (n, condition)
        Gaps are filled with the median of the training rows.
    value : array-like (n,)
        Zero points; read where `train` is True.
    train : bool array (n,)
    groups : array-like (n,), optional
        Labels (bands) that have a regression each.

    Returns
    -------
    float64 array (n,)
    """
    given, value = _filled(conditions, train), np.asarray(value, dtype=np.float64)
    label = np.zeros(len(value)) if groups is None else np.asarray(groups)
    learnt = train & np.isfinite(value)
    out = np.full(len(value), float(nan_median(value[learnt])))
    for one in np.unique(label):
        rows = label == one
        used = rows & learnt
        if used.sum() < FEWEST:
            continue
        centre, scale = given[used].mean(axis=0), given[used].std(axis=0)
        terms = np.column_stack([np.ones(len(value)), (given - centre) / np.where(scale > 0, scale, 1.0)])
        terms = terms[:, np.concatenate([[True], scale > 0])]
        coefficients, _ = robust_linear_fit(
            terms[used], value[used], np.full(int(used.sum()), SCATTER**2), n_steps=N_STEPS
        )
        out[rows] = terms[rows] @ coefficients
    return out


def _filled(conditions: npt.ArrayLike, train: Bool) -> Float:
    """Return conditions (n, condition) with gaps replaced by the median of the training rows."""
    given = np.asarray(conditions, dtype=np.float64)
    given = given[:, None] if given.ndim == 1 else given
    middle = nan_median(given[train], axis=0)
    return np.where(np.isfinite(given), given, np.nan_to_num(middle))


def previous(memory: Memory, fallback: npt.ArrayLike, *, fallback_then: npt.ArrayLike | None = None) -> Float:
    """Predict the zero point of the exposure before (persistence).

    Parameters
    ----------
    memory : Memory
    fallback : array-like (n,)
        Prediction without memory.
    fallback_then : array-like (n,), optional
        The fallback's prediction of the same n exposures, if what persists is the difference from it: exposures of
        other bands and airmasses can then be used.

    Returns
    -------
    float64 array (n,)
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

    Returns
    -------
    mean, sigma : float64 array (n,)
    model : LocalLevel
    """
    days, offset, sigma = (np.asarray(one, dtype=np.float64) for one in (days, offset, sigma))
    labels = None if series is None else np.asarray(series)
    of_train = None if labels is None else labels[train]
    try:
        model = fit_local_level(days[train], offset[train], sigma[train], of_train, gap=gap, dof=dof)
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
    """Return what trees read (n, feature): conditions, and memory as differences that trees can use.

    Parameters
    ----------
    conditions : array-like (n, condition)
        Of the same exposures as the memory's history.
    memory : Memory, optional
        Its rows are those of `conditions`.
    level : array-like (n,), optional
        Zero points less this are remembered (an extinction fit, a nominal value).
    categories : sequence of int
        Columns of which trees learn whether they are equal to those of the exposures before, not the difference.

    Returns
    -------
    float64 array (n, feature)
        NaN where unknown. Offsets are relative to the newest one, which is a feature itself.
    """
    given = np.asarray(conditions, dtype=np.float64)
    given = given[:, None] if given.ndim == 1 else given
    parts = [given]
    if memory is not None:
        offset = memory_offsets(memory, level)
        parts += [offset[:, :1], offset[:, 1:] - offset[:, :1], memory.age, memory.count[:, None].astype(float)]
        parts += [_scatter(offset)[:, None], _mean(offset)[:, None] - offset[:, :1]]
        plain = [k for k in range(given.shape[1]) if k not in categories]
        for k in range(given.shape[1]):
            change = given[:, k, None] - memory.lookup(given[:, k])[:, :N_CHANGES]
            parts.append(change if k in plain else np.where(np.isfinite(change), (change == 0).astype(float), np.nan))
    return np.concatenate(parts, axis=1)


def memory_offsets(memory: Memory, level: npt.ArrayLike | None = None) -> Float:
    """Return remembered zero points less the level of their exposures (n, K)."""
    return memory.value if level is None else memory.value - memory.lookup(level)


def _mean(values: Float) -> Float:
    """Return means along the last axis without NaN; NaN where there is none."""
    count = np.isfinite(values).sum(axis=1)
    total = np.where(np.isfinite(values), values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _scatter(values: Float) -> Float:
    """Return mean absolute steps along the last axis; NaN with fewer than two values."""
    return _mean(np.abs(np.diff(values, axis=1)))


def random_forest(
    features: npt.ArrayLike, value: npt.ArrayLike, train: Bool, *, base: npt.ArrayLike | None = None, seed: int = 1
) -> Float:
    """Predict by a random forest that learns value - base (by default value)."""
    ensemble = _scikit_learn("ensemble")
    model = ensemble.RandomForestRegressor(
        n_estimators=N_TREES, min_samples_leaf=5, max_features=1 / 3, max_samples=0.5, random_state=seed, n_jobs=1
    )
    return _fitted([model], features, value, train, base)


def boosted_trees(
    features: npt.ArrayLike, value: npt.ArrayLike, train: Bool, *, base: npt.ArrayLike | None = None,
    seed: int = 1, members: int = 1,
) -> Float:  # fmt: skip
    """Predict by gradient-boosted trees with absolute-error loss that learn value - base (by default value).

    Parameters
    ----------
    features : array-like (n, feature)
    value : array-like (n,)
    train : bool array (n,)
    base : array-like (n,), optional
        Prediction to improve, such as persistence.
    seed : int
    members : int
        Models with other seeds, whose predictions are averaged.
    """
    ensemble = _scikit_learn("ensemble")
    models = [
        ensemble.HistGradientBoostingRegressor(
            loss="absolute_error", max_iter=BOOSTING_ROUNDS, learning_rate=0.05, max_leaf_nodes=15,
            min_samples_leaf=40, l2_regularization=1.0, max_features=0.5, random_state=seed + k,
        )
        for k in range(members)
    ]  # fmt: skip
    return _fitted(models, features, value, train, base)


def _scikit_learn(name: str) -> Any:
    """Return a module of scikit-learn."""
    import importlib  # noqa: PLC0415

    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError:
        raise ImportError(f"baselines need scikit-learn: {install_hint('peers')}") from None


def _fitted(
    models: Sequence[Any], features: npt.ArrayLike, value: npt.ArrayLike, train: Bool, base: npt.ArrayLike | None
) -> Float:
    x, value = np.asarray(features, dtype=np.float64), np.asarray(value, dtype=np.float64)
    start = np.zeros(len(value)) if base is None else np.asarray(base, dtype=np.float64)
    used = train & np.isfinite(value) & np.isfinite(start)
    x = x[:, np.isfinite(x[used]).any(axis=0)]  # a column that no training row has is no feature
    change = [model.fit(x[used], (value - start)[used]).predict(x) for model in models]
    return np.asarray(start + np.mean(change, axis=0))


@dataclass(frozen=True)
class Intervals:
    """Half widths of intervals of 68.3 %, and half of those of 95.4 % [mag] (n,)."""

    sigma_68: Float
    sigma_95: Float


def recent_scatter(
    days: npt.ArrayLike, error: npt.ArrayLike, train: Bool, *, series: npt.ArrayLike | None = None, last: int = 8
) -> Float:
    """Return a scatter of each exposure's error from errors of the exposures before, in standard deviations.

    The mean absolute error of the last exposures of the series, joined with that of the training rows (`PRIOR_COUNT`
    exposures), which is that of first exposures where there is no memory.

    Parameters
    ----------
    days, error : array-like (n,)
        Errors of a method, known after each exposure.
    train : bool array (n,)
    series : array-like (n,), optional
    last : int

    Returns
    -------
    float64 array (n,)
    """
    error = np.asarray(error, dtype=np.float64)
    memory = build_memory(days, error, np.zeros(len(error)), length=last, series=series)
    first = memory.count == 0
    size = np.abs(error)
    typical = float(nan_median(size[train & ~first])) if (train & ~first).any() else float(nan_median(size))
    of_first = float(nan_median(size[train & first])) if (train & first).sum() >= 5 else typical
    total = np.where(np.isfinite(memory.value), np.abs(memory.value), 0.0).sum(axis=1)
    mean = (PRIOR_COUNT * typical + total) / (PRIOR_COUNT + memory.count)
    return np.maximum(np.where(first, of_first, mean) / NORMAL_MAD, LEAST_ERROR)


def recalibrated(
    days: npt.ArrayLike, error: npt.ArrayLike, sigma: npt.ArrayLike, *, after: float = -np.inf,
    groups: npt.ArrayLike | None = None,
) -> Intervals:  # fmt: skip
    """Return intervals whose widths follow the errors seen so far.

    Parameters
    ----------
    days, error, sigma : array-like (n,)
        Errors that became known after each exposure, predicted standard deviations.
    after : float
        Errors of exposures before are not used (those of training rows are too small).
    groups : array-like (n,), optional
        Labels known in advance, each recalibrated apart.
    """
    days, error, sigma = (np.asarray(one, dtype=np.float64) for one in (days, error, sigma))
    known = np.where(days >= after, error, np.nan)
    factors = [
        online_scale(known, sigma, level=level, days=days, groups=groups) for level in (0.6826894921, 0.9544997361)
    ]
    return Intervals(*(factor * sigma for factor in factors))
