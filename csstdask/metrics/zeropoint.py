"""Measures of predicted zero points: errors, correlation, failures, coverage, and a paired bootstrap of nights.

Errors are prediction minus truth [mag]; exposures without a number on either side are left out, and counted.
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
"""Error above which a zero point counts as failed [mag]; that of the AZP-RC article."""
COVERAGE_LEVELS = {"coverage_68": (WITHIN_ONE_SIGMA, 1.0), "coverage_95": (WITHIN_TWO_SIGMA, 2.0)}
"""Share of exposures that an interval shall hold, and its half width in standard deviations."""
N_QUARTILES = 4
DRAWS = 2000
"""Bootstrap samples: standard error of a 2.5 % quantile about 0.35 %."""


@dataclass(frozen=True)
class Errors:
    """Errors of predicted zero points [mag].

    Attributes
    ----------
    n, n_missing : int
        Exposures with and without both numbers.
    rmse, mae, bias : float
        Root mean square, mean absolute and mean error.
    mad : float
        1.4826 median abs(error - median error).
    failures : float
        Share of exposures with an error above 0.05 mag.
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
    """Return the errors of predictions (n,); NaN where there is no pair of numbers.

    Examples
    --------
    >>> found = errors_of([25.0, 25.1, 25.0], [25.0, 25.0, 25.0])
    >>> round(found.mae, 4), round(found.failures, 4)
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
    """Return ``pearson`` and ``spearman``; NaN with fewer than three pairs, or where one side is constant."""
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
    """Return 1 where abs(error) <= z sigma, 0 elsewhere, NaN where unknown; a sigma of inf holds all errors."""
    error, sigma = np.asarray(error, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    known = np.isfinite(error) & ~np.isnan(sigma)
    return np.where(known, np.abs(error) <= z * np.where(np.isnan(sigma), 0.0, sigma), np.nan)


def coverage(error: npt.ArrayLike, sigma_68: npt.ArrayLike, sigma_95: npt.ArrayLike | None = None) -> dict[str, float]:
    """Return the shares of errors within the intervals of 68.3 and 95.4 %.

    Parameters
    ----------
    error : array-like (n,)
    sigma_68, sigma_95 : array-like (n,)
        Half width of the interval of 68.3 %, and half of that of 95.4 %. By default they are equal, as for normal
        errors.

    Returns
    -------
    dict
        ``coverage_68``, ``coverage_95``; NaN without an error.
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

    Returns
    -------
    list of dict
        ``n``, ``sigma`` (median of `sigma_68`), ``coverage_68``, ``coverage_95`` a quartile. Quartiles are by rank, so
        that equal sigmas are divided too.
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
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


@dataclass(frozen=True)
class PairedDifference:
    """Difference of the mean absolute errors of two methods on the same exposures [mag].

    Attributes
    ----------
    difference : float
        MAE of the first less MAE of the second: negative where the first is better.
    relative : float
        The same over the MAE of the second.
    interval_68, interval_95 : tuple of float
        Percentiles of the bootstrap.
    probability_better : float
        Share of bootstrap samples in which the first is better.
    n_nights : int
    """

    difference: float
    relative: float
    interval_68: tuple[float, float]
    interval_95: tuple[float, float]
    probability_better: float
    n_nights: int

    @property
    def not_worse(self) -> bool:
        """Return whether the data allow that the first is as good: the interval of 95 % reaches 0 or below."""
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
    first: npt.ArrayLike, second: npt.ArrayLike, groups: npt.ArrayLike, *, draws: int = DRAWS, seed: int = 1
) -> PairedDifference:
    """Compare the mean absolute errors of two methods by drawing whole nights.

    Exposures of a night share their weather; nights are the independent samples.

    Parameters
    ----------
    first, second : array-like (n,)
        Errors of the two methods on the same exposures; exposures with a NaN in either are left out.
    groups : array-like (n,)
        Nights (or other blocks).
    draws, seed : int

    Raises
    ------
    ValueError
        Without a pair of errors.
    """
    one, two = (np.abs(np.asarray(errors, dtype=np.float64)) for errors in (first, second))
    finite = np.isfinite(one) & np.isfinite(two)
    if not finite.any():
        raise ValueError("found no exposure with errors of both methods; wanted at least one")
    code = np.unique(np.asarray(groups)[finite], return_inverse=True)[1].ravel()
    one, two = one[finite], two[finite]
    count, sums, others = (np.bincount(code, weights=values) for values in (np.ones(len(one)), one, two))
    n = len(count)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    differences = (drawn @ (sums - others)) / (drawn @ count)
    low_95, low_68, high_68, high_95 = np.quantile(differences, [0.02275, 0.15865, 0.84135, 0.97725])
    return PairedDifference(
        difference=float(one.mean() - two.mean()),
        relative=float(one.mean() / two.mean() - 1) if two.mean() > 0 else math.nan,
        interval_68=(float(low_68), float(high_68)),
        interval_95=(float(low_95), float(high_95)),
        probability_better=float(np.mean(differences < 0)),
        n_nights=n,
    )
