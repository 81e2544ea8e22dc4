"""Exposures of two mock surveys with true zero points, telemetry, reference stars and pixels.

The best possible prediction is known; see `csstdask.datasets.zeropoint_oracle`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.mock import Recipe, load_recipe
from csstdask.mock.conditions import survey_days, true_conditions
from csstdask.mock.telemetry import reported_telemetry
from csstdask.mock.throughput import throughput
from csstdask.mock.zeropoint_settings import Survey, ZeroPoints
from csstdask.mock.zeropoint_stars import COLUMNS, FRAME, exposure_patch, exposure_stars, star_counts, true_flat
from csstdask.zeropoint.fit_stars import fit_stars

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MockSurvey:
    """Exposures (n,) of one detector of one survey, in time order."""

    survey: str
    """Name of the survey."""
    exposure: npt.NDArray[np.str_]
    """Ids of the exposures."""
    days: Float
    """Start of each exposure [days since J2000]."""
    telemetry: dict[str, Float]
    """Reported telemetry by name; NaN in gaps."""
    conditions: dict[str, Float]
    """True values of the same names."""
    nominal: float
    """Zero point in the camera's description [mag]."""
    truth: Float
    """True zero point [mag]."""
    explained: Float
    """Part of truth - nominal that follows from the true conditions [mag]."""
    walk: Float
    """Random walk [mag]."""
    jumps: Float
    """Steps at decontaminations and at other times [mag]."""
    white: Float
    """White noise [mag]."""
    solved: Float
    """Zero point of the exposure's own stars [mag]; NaN without a usable one."""
    solved_sigma: Float
    """Its error [mag]; inf without a usable star."""
    n_stars: npt.NDArray[np.int64]
    """Number of stars."""
    settings: ZeroPoints
    """Settings of the recipe."""
    seed: int
    """Seed of the recipe."""

    def __len__(self) -> int:
        return len(self.days)

    @property
    def survey_settings(self) -> Survey:
        """Settings of the survey."""
        return self.settings.survey(self.survey)

    @property
    def color_term(self) -> tuple[float, float]:
        """Mean and scatter of the colour term, known from thousands of exposures: the prior of fits [mag / mag]."""
        return self.survey_settings.color_term, self.survey_settings.color_term_scatter

    @property
    def flat_sigma(self) -> float:
        """Scatter of the terms of F(x, y), the prior of fits [mag]."""
        return self.survey_settings.flat_sigma

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of the detector [pixel]."""
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
        """Return a cut-out of an exposure, float32 array (256, 256) [electron s-1]."""
        conditions = {name: float(values[i]) for name, values in self.conditions.items()}
        return exposure_patch(
            self.settings, self.survey, self.seed, i,
            zero_point=float(self.truth[i]), background=conditions["background"],
            focus=conditions["focus"], jitter=conditions["jitter"],
        )  # fmt: skip


def make_surveys(recipe: str | Path | Recipe = "zeropoint", *, exposures: int | None = None) -> dict[str, MockSurvey]:
    """Simulate the surveys of a recipe.

    Parameters
    ----------
    recipe : path, str or Recipe
        Recipe with a table ``[zeropoint]``.
    exposures : int, optional
        Number of exposures of each survey, from its start; they do not depend on this number. By default all.

    Returns
    -------
    dict of MockSurvey
        Surveys by name.

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
    """Simulate the first n exposures of a survey, and fit the zero point of each to its stars."""
    survey = settings.survey(name)
    days = survey_days(settings, name, seed, n)
    conditions = true_conditions(settings, name, seed, days)
    parts = throughput(settings, name, seed, days, conditions)
    truth = survey.nominal + parts.offset
    counts = star_counts(settings, name, seed, n)
    flat = true_flat(settings, name, seed)
    color_term = (survey.color_term, survey.color_term_scatter)
    solved, sigma = np.full(n, np.nan), np.full(n, np.inf)
    for i in np.flatnonzero(counts):
        stars = exposure_stars(
            settings, name, seed, int(i),
            n_stars=int(counts[i]), zero_point=truth[i], background=conditions["background"][i], flat=flat,
        )  # fmt: skip
        fit = fit_stars(
            *(stars[one] for one in COLUMNS), shape=FRAME, color_term=color_term, flat_sigma=survey.flat_sigma
        )
        solved[i], sigma[i] = fit.value, fit.sigma
    return MockSurvey(
        survey=name,
        exposure=np.array([f"{name}{i:06d}" for i in range(n)]),
        days=days,
        telemetry=reported_telemetry(settings, name, seed, days),
        conditions=conditions,
        nominal=survey.nominal,
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
    """Split exposures by time: the first days are for training, the next ones for validation, the rest for the test.

    Parameters
    ----------
    days : array-like (n,)
        Times [days], in any order. Exposures of one day stay together.
    train, validation : float
        Fractions of the days with exposures.

    Returns
    -------
    str array (n,)
        ``train``, ``validation`` or ``test``.

    Examples
    --------
    >>> split_by_time([0.1, 0.2, 1.5, 2.5, 3.5], train=0.5, validation=0.25).tolist()
    ['train', 'train', 'train', 'validation', 'test']
    """
    _, number = np.unique(np.floor(np.asarray(days, dtype=np.float64)), return_inverse=True)
    fraction = (number + 0.5) / (number.max(initial=0) + 1)
    return np.where(fraction < train, "train", np.where(fraction < train + validation, "validation", "test"))
