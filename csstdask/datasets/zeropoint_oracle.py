"""The best possible prediction of zero points of mock surveys: true conditions and the true noise model are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.datasets.zeropoint_surveys import MockSurvey
from csstdask.mock.throughput import explained_offset
from csstdask.numerics.robust import mad_scale

Float = npt.NDArray[np.float64]

STAR_COUNT_BINS = (0, 1, 3, 10, 30, 100, 300)
"""Smallest number of stars of each class in tables over the number of stars."""
MAX_AMBIGUOUS_STARS = 2
"""Largest number of stars among which a fit cannot identify an outlier."""


@dataclass(frozen=True)
class Oracle:
    """Predictions from the true conditions and the true noise model; arrays (n,) [mag]."""

    prior: Float
    """Prediction from earlier exposures and the conditions."""
    prior_sigma: Float
    """Its error."""
    joined: Float
    """The same, combined with the exposure's own stars."""
    joined_sigma: Float
    """Its error."""


def oracle(exposures: MockSurvey, *, reported: bool = False) -> Oracle:
    """Predict each zero point as well as possible, from earlier exposures and from its own stars.

    The state is walk + jumps; its measurements are solved - nominal - explained. It is predicted by a Kalman filter
    (Kalman 1960) with the true walk, white noise, times of jumps and their mean square. A fit to one or two stars may
    be dominated by an outlier: it is a mixture of a right and a wrong measurement, whose moments are kept.

    Parameters
    ----------
    exposures : MockSurvey
        Exposures of the survey.
    reported : bool
        Use the true response of the throughput with the reported telemetry, gaps filled by the last value, instead of
        the true conditions. Errors of telemetry count as white noise and walk of their typical size.

    Returns
    -------
    Oracle
        Predictions of the exposures.
    """
    explained, more_white, more_walk = exposures.explained, 0.0, 0.0
    if reported:
        explained = reported_explanation(exposures)
        more_white, more_walk = _telemetry_noise(exposures, explained - exposures.explained)
    survey, settings = exposures.survey_settings, exposures.settings
    stars = settings.stars
    n = len(exposures)
    gap = np.diff(exposures.days, prepend=exposures.days[:1])
    change = np.diff(exposures.jumps, prepend=exposures.jumps[:1])
    up, down = settings.conditions.decontamination_jump, settings.conditions.step
    growth = (survey.walk**2 + more_walk) * gap
    growth += np.where(change > 0, (up[1] - up[0]) ** 2 / 12, 0) + np.where(
        change < 0, (down[1] - down[0]) ** 2 / 12, 0
    )
    expected = np.where(change > 0, np.mean(up), 0) + np.where(change < 0, np.mean(down), 0)
    measured = exposures.solved - exposures.nominal - explained
    white = survey.white**2 + more_white
    out = np.empty((4, n))
    mean, variance = 0.0, 0.0
    for i in range(n):
        mean, variance = mean + expected[i], variance + growth[i]
        total = variance + white
        out[0, i], out[1, i] = mean, total
        joined, joined_variance = mean, total
        noise = exposures.solved_sigma[i] ** 2
        if np.isfinite(measured[i]):
            p_wrong = stars.outlier_share if exposures.n_stars[i] <= MAX_AMBIGUOUS_STARS else 0.0
            wrong = noise + stars.outlier_size**2
            joined, joined_variance = _update(mean, total, measured[i], (noise, wrong), p_wrong)
            mean, variance = _update(mean, variance, measured[i], (noise + white, wrong + white), p_wrong)
        out[2, i], out[3, i] = joined, joined_variance
    base = exposures.nominal + explained
    return Oracle(base + out[0], np.sqrt(out[1]), base + out[2], np.sqrt(out[3]))


def reported_explanation(exposures: MockSurvey) -> Float:
    """Return the offsets that follow from the reported telemetry, gaps filled by the last value (n,) [mag]."""
    filled = {}
    for name, values in exposures.telemetry.items():
        last = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), -1))
        filled[name] = np.where(last >= 0, values[last], np.nanmedian(values))
    # Jitter is independent from exposure to exposure: gaps get its typical value.
    jitter = exposures.telemetry["jitter"]
    filled["jitter"] = np.where(np.isfinite(jitter), jitter, exposures.settings.conditions.jitter)
    return explained_offset(exposures.settings, exposures.survey_settings.response, filled)


def _telemetry_noise(exposures: MockSurvey, error: Float) -> tuple[float, float]:
    """Return the variances that errors of telemetry add to the white noise [mag^2] and to the walk [mag^2 / day]."""
    visit = np.arange(len(error)) // exposures.survey_settings.visit
    same = np.diff(visit) == 0
    if same.all() or not same.any():
        return 0.0, 0.0
    white = float(mad_scale(np.diff(error)[same])) ** 2 / 2
    number = np.bincount(visit)
    change = np.diff(np.bincount(visit, error) / number)
    gap = np.diff(np.bincount(visit, exposures.days) / number)
    # White noise within a visit also moves the means of visits.
    white_part = 2 * white / exposures.survey_settings.visit / float(np.median(gap))
    return white, max(float(mad_scale(change / np.sqrt(gap))) ** 2 - white_part, 0.0)


def _update(
    mean: float, variance: float, measured: float, noise: tuple[float, float], p_wrong: float
) -> tuple[float, float]:
    """Return mean and variance after a measurement whose variance is noise[0], or noise[1] with probability p_wrong."""
    total = variance + np.array(noise)
    innovation = measured - mean
    weight = np.array([1 - p_wrong, p_wrong]) * np.exp(-0.5 * innovation**2 / total) / np.sqrt(total)
    weight = weight / weight.sum() if weight.sum() > 0 else np.array([0.0, 1.0])
    gain = variance / total
    means, variances = mean + gain * innovation, variance * (1 - gain)
    new_mean = float(weight @ means)
    return new_mean, float(weight @ (variances + (means - new_mean) ** 2))


@dataclass(frozen=True)
class Floor:
    """Root mean square errors of the oracle by number of stars; arrays (class,)."""

    min_stars: npt.NDArray[np.int64]
    """Smallest number of stars of each class."""
    n: npt.NDArray[np.int64]
    """Number of exposures in each class."""
    prior: Float
    """Error without the exposure's own stars [mag]."""
    joined: Float
    """Error with them [mag]."""
    prior_all: float
    """Error of all exposures without their own stars [mag]."""
    joined_all: float
    """Error of all exposures with their own stars [mag]."""


def unexplained_floor(
    exposures: MockSurvey,
    *,
    which: npt.NDArray[np.bool_] | None = None,
    classes: Sequence[int] = STAR_COUNT_BINS,
    reported: bool = False,
) -> Floor:
    """Return the smallest possible error, that of `oracle`, by number of stars.

    Parameters
    ----------
    exposures : MockSurvey
        Exposures of the survey.
    which : bool array (n,), optional
        Exposures to count; by default all. Others still serve as earlier exposures.
    classes : sequence of int
        Smallest number of stars of each class, ascending.
    reported : bool
        As for `oracle`: the errors then include those of noise, lag and gaps of telemetry.

    Returns
    -------
    Floor
        Errors of each class.
    """
    best = oracle(exposures, reported=reported)
    keep = np.ones(len(exposures), dtype=bool) if which is None else which
    min_stars = np.array(classes, dtype=np.int64)
    label = np.searchsorted(min_stars, exposures.n_stars, side="right") - 1
    errors = np.stack([best.prior - exposures.truth, best.joined - exposures.truth])
    rms = np.full((2, len(min_stars)), np.nan)
    count = np.array([int((keep & (label == k)).sum()) for k in range(len(min_stars))], dtype=np.int64)
    for k in np.flatnonzero(count):
        rms[:, k] = np.sqrt((errors[:, keep & (label == k)] ** 2).mean(axis=1))
    overall = np.sqrt((errors[:, keep] ** 2).mean(axis=1)) if keep.any() else np.full(2, np.nan)
    return Floor(min_stars, count, rms[0], rms[1], float(overall[0]), float(overall[1]))
