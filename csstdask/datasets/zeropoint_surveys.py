"""Exposures of two mock surveys with true zero points, telemetry, reference stars and pixels.

The part that nothing explains is known: `oracle` predicts zero points from the true conditions and the true noise
model, and `unexplained_floor` returns its errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.mock import Recipe, load_recipe
from csstdask.mock.conditions import survey_days, true_conditions
from csstdask.mock.telemetry import reported_telemetry
from csstdask.mock.throughput import explained_offset, throughput
from csstdask.mock.zeropoint_settings import Survey, ZeroPoints
from csstdask.mock.zeropoint_stars import COLUMNS, FRAME, exposure_patch, exposure_stars, star_counts, true_flat
from csstdask.numerics.robust import mad_scale
from csstdask.zeropoint.fit_stars import fit_stars

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

STAR_COUNT_BINS = (0, 1, 3, 10, 30, 100, 300)
"""Least number of stars of each class in tables over the number of stars."""
_FEW = 2
"""Of so few stars, a fit cannot tell which one is an outlier."""


@dataclass(frozen=True)
class MockSurvey:
    """Exposures of one detector of one survey, in time order; arrays are (n,)."""

    survey: str
    exposure: npt.NDArray[np.str_]
    days: Float
    """Beginning of each exposure [days since J2000]."""
    telemetry: dict[str, Float]
    """As reported; NaN in gaps."""
    conditions: dict[str, Float]
    """True values of the same names."""
    nominal: float
    """Zero point in the camera's description [mag]."""
    truth: Float
    """True zero point [mag]."""
    explained: Float
    """Part of truth - nominal that true conditions decide [mag]."""
    walk: Float
    jumps: Float
    white: Float
    solved: Float
    """Zero point of the exposure's own stars [mag]; NaN without a usable one."""
    solved_sigma: Float
    """Its error [mag]; inf without a usable star."""
    n_stars: npt.NDArray[np.int64]
    settings: ZeroPoints
    seed: int

    def __len__(self) -> int:
        return len(self.days)

    @property
    def about(self) -> Survey:
        """Return the survey's settings."""
        return self.settings.survey(self.survey)

    @property
    def color_term(self) -> tuple[float, float]:
        """Return mean and scatter of the colour term: the prior of fits, known from thousands of exposures."""
        return self.about.color_term, self.about.color_term_scatter

    @property
    def flat_sigma(self) -> float:
        """Return the size of the terms of F(x, y) [mag]: the prior of fits."""
        return self.about.flat_sigma

    @property
    def shape(self) -> tuple[int, int]:
        """Return (y, x) of the detector that star positions are on."""
        return FRAME

    def stars(self, i: int) -> dict[str, Float]:
        """Return the stars of an exposure: inst_mag, inst_mag_err, ref_mag, ref_mag_err, color, x, y."""
        flat = true_flat(self.settings, self.survey, self.seed)
        background = float(self.conditions["background"][i])
        return exposure_stars(
            self.settings, self.survey, self.seed, i,
            n_stars=int(self.n_stars[i]), zero_point=float(self.truth[i]), background=background, flat=flat,
        )  # fmt: skip

    def patch(self, i: int) -> Float32:
        """Return a cut-out of an exposure, float32 (256, 256) [electron s-1]."""
        now = {name: float(values[i]) for name, values in self.conditions.items()}
        return exposure_patch(
            self.settings, self.survey, self.seed, i,
            zero_point=float(self.truth[i]), background=now["background"], focus=now["focus"], jitter=now["jitter"],
        )  # fmt: skip


def make_surveys(recipe: str | Path | Recipe = "zeropoint", *, exposures: int | None = None) -> dict[str, MockSurvey]:
    """Make the surveys of a recipe.

    Parameters
    ----------
    recipe : path, str or Recipe
        With a table ``[zeropoint]``.
    exposures : int, optional
        Number of exposures of each survey, from its start; they do not depend on this number.

    Returns
    -------
    mapping of the surveys' names to ZeroPointSet

    Raises
    ------
    InputError
        If the recipe has no table ``[zeropoint]``.
    """
    known = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if known.zeropoint is None:
        raise InputError(f"{known.name}", "a recipe without a table [zeropoint]", "one such as zeropoint")
    settings = known.zeropoint
    return {
        survey.name: make_survey(settings, survey.name, known.seed, exposures or survey.exposures)
        for survey in settings.surveys
    }


def make_survey(settings: ZeroPoints, name: str, seed: int, n: int) -> MockSurvey:
    """Make the first n exposures of a survey, and solve each with its stars alone."""
    about = settings.survey(name)
    days = survey_days(settings, name, seed, n)
    conditions = true_conditions(settings, name, seed, days)
    parts = throughput(settings, name, seed, days, conditions)
    truth = about.nominal + parts.offset
    counts = star_counts(settings, name, seed, n)
    flat = true_flat(settings, name, seed)
    color_term = (about.color_term, about.color_term_scatter)
    solved, sigma = np.full(n, np.nan), np.full(n, np.inf)
    for i in np.flatnonzero(counts):
        stars = exposure_stars(
            settings, name, seed, int(i),
            n_stars=int(counts[i]), zero_point=truth[i], background=conditions["background"][i], flat=flat,
        )  # fmt: skip
        fit = fit_stars(
            *(stars[one] for one in COLUMNS), shape=FRAME, color_term=color_term, flat_sigma=about.flat_sigma
        )
        solved[i], sigma[i] = fit.value, fit.sigma
    return MockSurvey(
        survey=name,
        exposure=np.array([f"{name}{i:06d}" for i in range(n)]),
        days=days,
        telemetry=reported_telemetry(settings, name, seed, days),
        conditions=conditions,
        nominal=about.nominal,
        truth=truth,
        explained=parts.explained,
        walk=parts.walk,
        jumps=parts.jumps,
        white=parts.white,
        solved=solved,
        solved_sigma=sigma,
        n_stars=counts,
        settings=settings,
        seed=seed,
    )


def split_by_time(days: npt.ArrayLike, train: float = 0.6, validation: float = 0.1) -> npt.NDArray[np.str_]:
    """Return "train", "validation" or "test" for each exposure: the first part of the days, the next, the rest.

    Parameters
    ----------
    days : array-like (n,)
        In days; any order. Exposures of one day stay together.
    train, validation : float
        Shares of the days that have exposures.

    Examples
    --------
    >>> split_by_time([0.1, 0.2, 1.5, 2.5, 3.5], train=0.5, validation=0.25).tolist()
    ['train', 'train', 'train', 'validation', 'test']
    """
    whole = np.floor(np.asarray(days, dtype=np.float64))
    _, number = np.unique(whole, return_inverse=True)
    share = (number + 0.5) / (number.max(initial=0) + 1)
    return np.where(share < train, "train", np.where(share < train + validation, "validation", "test"))


@dataclass(frozen=True)
class Oracle:
    """Predictions that know the true conditions and the noise model; arrays (n,) [mag]."""

    prior: Float
    """From earlier exposures and the conditions."""
    prior_sigma: Float
    joined: Float
    """Joined with the exposure's own stars."""
    joined_sigma: Float


def oracle(exposures: MockSurvey, *, reported: bool = False) -> Oracle:
    """Predict each zero point as well as can be, from earlier exposures and from its own stars.

    The state is walk + jumps; its measurements are solved - nominal - explained. A Kalman filter (Kalman 1960) with
    the true walk, white noise, times of jumps and their mean square predicts it. A fit to one or two stars may
    be an outlier's: it is a mixture of a right and a wrong measurement, and moments are kept.

    Parameters
    ----------
    exposures : ZeroPointSet
    reported : bool
        Know how the throughput responds, but only the reported telemetry, with gaps filled by the last value. Errors
        of telemetry count as white noise and walk of their typical size.
    """
    explained, more_white, more_walk = exposures.explained, 0.0, 0.0
    if reported:
        explained = reported_explanation(exposures)
        more_white, more_walk = _telemetry_noise(exposures, explained - exposures.explained)
    about, settings = exposures.about, exposures.settings
    now, stars = settings.conditions, settings.stars
    n = len(exposures)
    gap = np.diff(exposures.days, prepend=exposures.days[:1])
    change = np.diff(exposures.jumps, prepend=exposures.jumps[:1])
    up, down = now.decontamination_jump, now.step
    growth = (about.walk**2 + more_walk) * gap
    growth += np.where(change > 0, (up[1] - up[0]) ** 2 / 12, 0) + np.where(
        change < 0, (down[1] - down[0]) ** 2 / 12, 0
    )
    expected = np.where(change > 0, np.mean(up), 0) + np.where(change < 0, np.mean(down), 0)
    measured = exposures.solved - exposures.nominal - explained
    white = about.white**2 + more_white
    out = np.empty((4, n))
    mean, variance = 0.0, 0.0
    for i in range(n):
        mean, variance = mean + expected[i], variance + growth[i]
        total = variance + white
        out[0, i], out[1, i] = mean, total
        own, own_variance = mean, total
        noise = exposures.solved_sigma[i] ** 2
        if np.isfinite(measured[i]):
            share = stars.outlier_share if exposures.n_stars[i] <= _FEW else 0.0
            wrong = noise + stars.outlier_size**2
            own, own_variance = _joined(mean, total, measured[i], (noise, wrong), share)
            mean, variance = _joined(mean, variance, measured[i], (noise + white, wrong + white), share)
        out[2, i], out[3, i] = own, own_variance
    base = exposures.nominal + explained
    return Oracle(base + out[0], np.sqrt(out[1]), base + out[2], np.sqrt(out[3]))


def reported_explanation(exposures: MockSurvey) -> Float:
    """Return what the true response makes of the reported telemetry, gaps filled by the last value (n,) [mag]."""
    filled = {}
    for name, values in exposures.telemetry.items():
        last = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), -1))
        filled[name] = np.where(last >= 0, values[last], np.nanmedian(values))
    # The last jitter says nothing about the next one.
    jitter = exposures.telemetry["jitter"]
    filled["jitter"] = np.where(np.isfinite(jitter), jitter, exposures.settings.conditions.jitter)
    return explained_offset(exposures.settings, exposures.about.response, filled)


def _telemetry_noise(exposures: MockSurvey, error: Float) -> tuple[float, float]:
    """Return the variances that errors of telemetry add to the white noise [mag^2] and to the walk [mag^2 / day]."""
    visit = np.arange(len(error)) // exposures.about.visit
    same = np.diff(visit) == 0
    if same.all() or not same.any():
        return 0.0, 0.0
    white = float(mad_scale(np.diff(error)[same])) ** 2 / 2
    number = np.bincount(visit)
    change = np.diff(np.bincount(visit, error) / number)
    gap = np.diff(np.bincount(visit, exposures.days) / number)
    # What is white within a visit moves the means of visits, too.
    of_white = 2 * white / exposures.about.visit / float(np.median(gap))
    return white, max(float(mad_scale(change / np.sqrt(gap))) ** 2 - of_white, 0.0)


def _joined(
    mean: float, variance: float, measured: float, noise: tuple[float, float], share: float
) -> tuple[float, float]:
    """Return mean and variance after a measurement whose variance is the first, or with a share the second."""
    total = variance + np.array(noise)
    innovation = measured - mean
    weight = np.array([1 - share, share]) * np.exp(-0.5 * innovation**2 / total) / np.sqrt(total)
    weight = weight / weight.sum() if weight.sum() > 0 else np.array([0.0, 1.0])
    gain = variance / total
    means, variances = mean + gain * innovation, variance * (1 - gain)
    joined = float(weight @ means)
    return joined, float(weight @ (variances + (means - joined) ** 2))


@dataclass(frozen=True)
class Floor:
    """Root mean square errors of the oracle by number of stars; arrays (class,)."""

    least: npt.NDArray[np.int64]
    """Least number of stars of each class."""
    n: npt.NDArray[np.int64]
    """Exposures in it."""
    prior: Float
    """Without the exposure's own stars [mag]."""
    joined: Float
    """With them [mag]."""
    prior_all: float
    """Over all exposures [mag]."""
    joined_all: float


def unexplained_floor(
    exposures: MockSurvey,
    *,
    which: npt.NDArray[np.bool_] | None = None,
    classes: Sequence[int] = STAR_COUNT_BINS,
    reported: bool = False,
) -> Floor:
    """Return what nothing explains: the error of `oracle`, by number of stars.

    Parameters
    ----------
    exposures : ZeroPointSet
    which : bool array (n,), optional
        Exposures to count, by default all. Earlier ones serve as memory all the same.
    classes : sequence of int
        Least number of stars of each class, ascending.
    reported : bool
        As for `oracle`: the errors then contain what noise, lag and gaps of telemetry cost.
    """
    best = oracle(exposures, reported=reported)
    keep = np.ones(len(exposures), dtype=bool) if which is None else which
    least = np.array(classes, dtype=np.int64)
    label = np.searchsorted(least, exposures.n_stars, side="right") - 1
    errors = np.stack([best.prior - exposures.truth, best.joined - exposures.truth])
    rms = np.full((2, len(least)), np.nan)
    count = np.array([int((keep & (label == k)).sum()) for k in range(len(least))], dtype=np.int64)
    for k in np.flatnonzero(count):
        rms[:, k] = np.sqrt((errors[:, keep & (label == k)] ** 2).mean(axis=1))
    overall = np.sqrt((errors[:, keep] ** 2).mean(axis=1)) if keep.any() else np.full(2, np.nan)
    return Floor(least, count, rms[0], rms[1], float(overall[0]), float(overall[1]))
