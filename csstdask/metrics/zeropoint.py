"""Metrics of predicted zero points: errors, correlations, failures, coverage, and a paired bootstrap of nights.

Errors are prediction minus truth [mag]. Exposures without a prediction or without a truth are left out, and counted.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from csstdask.numerics.probability import WITHIN_ONE_SIGMA, WITHIN_TWO_SIGMA
from csstdask.numerics.robust import mad_scale

Float = npt.NDArray[np.float64]

FAILURE = 0.05
"""Error above which a zero point counts as failed [mag], as in the AZP-RC article."""
COVERAGE_LEVELS = {"coverage_68": (WITHIN_ONE_SIGMA, 1.0), "coverage_95": (WITHIN_TWO_SIGMA, 2.0)}
"""Nominal fraction of exposures within an interval, and its half-width in standard deviations."""
N_QUARTILES = 4
N_DRAWS = 2000
"""Bootstrap samples: the standard error of a 2.5 % quantile is about 0.35 %."""
_TWO_SIDED_QUANTILES = (
    0.5 - WITHIN_TWO_SIGMA / 2,
    0.5 - WITHIN_ONE_SIGMA / 2,
    0.5 + WITHIN_ONE_SIGMA / 2,
    0.5 + WITHIN_TWO_SIGMA / 2,
)


@dataclass(frozen=True)
class Errors:
    """Errors of predicted zero points.

    Attributes
    ----------
    n, n_missing : int
        Number of exposures with and without both prediction and truth.
    rmse, mae, bias : float
        Root mean square, mean absolute and mean error [mag].
    mad : float
        Scaled median absolute deviation, 1.4826 median abs(error - median error) [mag].
    failures : float
        Fraction of exposures with an error above 0.05 mag.
    """

    n: int
    n_missing: int
    rmse: float
    mae: float
    mad: float
    bias: float
    failures: float

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)


def error_statistics(prediction: npt.ArrayLike, truth: npt.ArrayLike, *, failure: float = FAILURE) -> Errors:
    """Summarise the errors of predictions.

    Parameters
    ----------
    prediction, truth : array-like (n,)
        Zero points [mag]; NaN where unknown.
    failure : float
        Error above which a prediction counts as failed [mag].

    Returns
    -------
    Errors
        NaN if no exposure has both numbers.

    Examples
    --------
    >>> errors = error_statistics([25.0, 25.1, 25.0], [25.0, 25.0, 25.0])
    >>> round(errors.mae, 4), round(errors.failures, 4)
    (0.0333, 0.3333)
    """
    error = np.asarray(prediction, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    finite = np.isfinite(error)
    n = int(finite.sum())
    if n == 0:
        return Errors(0, error.size, *[math.nan] * 5)
    error = error[finite]
    return Errors(
        n=n,
        n_missing=int((~finite).sum()),
        rmse=float(np.sqrt(np.mean(error**2))),
        mae=float(np.mean(np.abs(error))),
        mad=float(mad_scale(error)),
        bias=float(np.mean(error)),
        failures=float(np.mean(np.abs(error) > failure)),
    )


def correlations(prediction: npt.ArrayLike, truth: npt.ArrayLike) -> dict[str, float]:
    """Return the ``pearson`` and ``spearman`` correlation; NaN with fewer than three pairs or a constant column."""
    predicted, true = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    finite = np.isfinite(predicted) & np.isfinite(true)
    predicted, true = predicted[finite], true[finite]
    if len(true) < 3 or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return {"pearson": math.nan, "spearman": math.nan}
    return {
        "pearson": float(np.corrcoef(predicted, true)[0, 1]),
        "spearman": float(spearmanr(predicted, true).statistic),
    }


def within_interval(error: npt.ArrayLike, sigma: npt.ArrayLike, z: float) -> Float:
    """Return 1 where abs(error) <= z sigma, 0 elsewhere, NaN where unknown; a sigma of inf covers all errors."""
    error, sigma = np.asarray(error, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    known = np.isfinite(error) & ~np.isnan(sigma)
    return np.where(known, np.abs(error) <= z * np.where(np.isnan(sigma), 0.0, sigma), np.nan)


def coverage(error: npt.ArrayLike, sigma_68: npt.ArrayLike, sigma_95: npt.ArrayLike | None = None) -> dict[str, float]:
    """Return the fractions of errors within the intervals of 68.3 and 95.4 %.

    Parameters
    ----------
    error : array-like (n,)
        Errors [mag]; NaN where unknown.
    sigma_68, sigma_95 : array-like (n,)
        Half-width of the interval of 68.3 %, and half of that of 95.4 % [mag]. By default they are equal, as for normal
        errors.

    Returns
    -------
    dict
        ``coverage_68`` and ``coverage_95``; NaN without an error.

    Examples
    --------
    >>> coverage([0.01, -0.03], [0.02, 0.02])
    {'coverage_68': 0.5, 'coverage_95': 1.0}
    """
    widths = (sigma_68, sigma_68 if sigma_95 is None else sigma_95)
    return {
        name: _mean(within_interval(error, width, z))
        for width, (name, (_, z)) in zip(widths, COVERAGE_LEVELS.items(), strict=True)
    }


def coverage_by_quartile(
    error: npt.ArrayLike, sigma_68: npt.ArrayLike, sigma_95: npt.ArrayLike | None = None
) -> list[dict[str, float]]:
    """Return the coverage in each quartile of the predicted scatter, smallest first.

    Parameters
    ----------
    error, sigma_68, sigma_95 : array-like (n,)
        As for `coverage`.

    Returns
    -------
    list of dict
        ``n``, ``sigma`` (median of `sigma_68`), ``coverage_68`` and ``coverage_95`` for each quartile. Quartiles are
        defined by rank, so that equal sigmas are divided too.
    """
    error, first = np.asarray(error, dtype=np.float64), np.asarray(sigma_68, dtype=np.float64)
    second = first if sigma_95 is None else np.asarray(sigma_95, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(error) & ~np.isnan(first))
    ordered = known[np.argsort(first[known], kind="stable")]
    return [
        {
            "n": len(rows),
            "sigma": float(np.median(first[rows])) if len(rows) else math.nan,
            **coverage(error[rows], first[rows], second[rows]),
        }
        for rows in np.array_split(ordered, N_QUARTILES)
    ]


def _mean(values: Float) -> float:
    """Return the mean of the finite values; NaN without any."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


@dataclass(frozen=True)
class PairedDifference:
    """Difference of the mean absolute errors (MAE) of two methods on the same exposures.

    Attributes
    ----------
    difference : float
        MAE of the first minus MAE of the second [mag]: negative if the first is better.
    relative : float
        The difference over the MAE of the second.
    interval_68, interval_95 : tuple of float
        Intervals of the difference by the bootstrap [mag].
    probability_better : float
        Fraction of bootstrap samples in which the first is better.
    n_nights : int
        Number of nights.
    """

    difference: float
    relative: float
    interval_68: tuple[float, float]
    interval_95: tuple[float, float]
    probability_better: float
    n_nights: int

    @property
    def not_worse(self) -> bool:
        """Whether the first may be as good as the second: the interval of 95 % reaches 0 or below."""
        return self.interval_95[0] <= 0.0

    def as_dict(self) -> dict[str, float | list[float] | bool]:
        """Return the numbers by name, with ``not_worse``."""
        return {
            **asdict(self),
            "interval_68": list(self.interval_68),
            "interval_95": list(self.interval_95),
            "not_worse": self.not_worse,
        }


def paired_bootstrap(
    first: npt.ArrayLike, second: npt.ArrayLike, groups: npt.ArrayLike, *, draws: int = N_DRAWS, seed: int = 1
) -> PairedDifference:
    """Compare the mean absolute errors of two methods by a bootstrap of nights.

    Exposures of a night share their weather, so nights are the independent samples.

    Parameters
    ----------
    first, second : array-like (n,)
        Errors of the two methods on the same exposures [mag]; exposures with a NaN in either are left out.
    groups : array-like (n,)
        Labels of the nights (or other blocks).
    draws, seed : int
        Number of bootstrap samples, and seed of the random numbers.

    Returns
    -------
    PairedDifference
        Difference with its intervals.

    Raises
    ------
    ValueError
        If no exposure has both errors.
    """
    size_1, size_2 = (np.abs(np.asarray(errors, dtype=np.float64)) for errors in (first, second))
    finite = np.isfinite(size_1) & np.isfinite(size_2)
    if not finite.any():
        raise ValueError("found no exposure with errors of both methods; wanted at least one")
    code = np.unique(np.asarray(groups)[finite], return_inverse=True)[1].ravel()
    size_1, size_2 = size_1[finite], size_2[finite]
    count, sum_1, sum_2 = (np.bincount(code, weights=values) for values in (np.ones(len(size_1)), size_1, size_2))
    n = len(count)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    differences = (drawn @ (sum_1 - sum_2)) / (drawn @ count)
    low_95, low_68, high_68, high_95 = np.quantile(differences, _TWO_SIDED_QUANTILES)
    return PairedDifference(
        difference=float(size_1.mean() - size_2.mean()),
        relative=float(size_1.mean() / size_2.mean() - 1) if size_2.mean() > 0 else math.nan,
        interval_68=(float(low_68), float(high_68)),
        interval_95=(float(low_95), float(high_95)),
        probability_better=float(np.mean(differences < 0)),
        n_nights=n,
    )
