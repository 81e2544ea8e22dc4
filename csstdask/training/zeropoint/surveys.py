"""Exposures of mock surveys as inputs and targets of zero-point networks, split by time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.datasets.zeropoint_surveys import MockSurvey, make_surveys, split_by_time
from csstdask.zeropoint.memory import build_memory
from csstdask.zeropoint.prior import (
    TELEMETRY_NAMES,
    PriorArrays,
    PriorInputs,
    build_star_lists,
    concatenate_arrays,
    image_statistics,
    prior_arrays,
)

Float = npt.NDArray[np.float64]

TRAIN_FRACTION = 0.6
"""Fraction of the days of a survey, the first ones, for training."""
VALIDATION_FRACTION = 0.1
"""Fraction of the following days for validation and calibration; the rest is for the test."""
_SHUFFLE_SEED = 31
"""Seed of the split by rows."""


@dataclass(frozen=True)
class SurveyInputs:
    """The n exposures of one survey as inputs of a network."""

    exposures: MockSurvey
    """Exposures with their true and solved zero points."""
    inputs: PriorInputs
    """Inputs of the network, with the statistics of the images."""
    split: npt.NDArray[np.str_]
    """(n,) ``train``, ``validation`` or ``test``."""

    @property
    def truth(self) -> Float:
        """True zero points minus nominal, float64 array (n,) [mag]."""
        return np.asarray(self.exposures.truth - self.exposures.nominal)

    @property
    def solved(self) -> Float:
        """Solved zero points minus nominal, float64 array (n,) [mag]; NaN where unsolved."""
        return np.asarray(self.exposures.solved - self.exposures.nominal)

    def arrays(self, memory: int, telemetry: Sequence[str] = TELEMETRY_NAMES) -> PriorArrays:
        """Return the inputs in the layout of a network that reads `memory` zero points."""
        return prior_arrays(self.inputs, telemetry, memory=memory)


@dataclass(frozen=True)
class Examples:
    """Exposures (n,) of several surveys."""

    arrays: PriorArrays
    """Inputs in the layout of a network."""
    solved: Float
    """Solved zero points minus nominal [mag]; NaN where unsolved."""
    sigma: Float
    """Errors of the solved zero points [mag]."""
    truth: Float
    """True zero points minus nominal [mag]."""
    survey: npt.NDArray[np.int64]
    """Number of the survey."""

    def __len__(self) -> int:
        return len(self.truth)


def survey_inputs(
    exposures: MockSurvey, *, memory: int = 16, image: bool = True, row_split: bool = False
) -> SurveyInputs:
    """Return the inputs of a survey: reported telemetry, causal memory, stars, and statistics of images.

    Parameters
    ----------
    exposures : MockSurvey
        Exposures of the survey.
    memory : int
        Length of the memory; 0: neither memory nor star lists.
    image : bool
        Whether images are rendered for their statistics (2 ms each).
    row_split : bool
        Split at random instead of by time, as most articles do: test exposures then have neighbours in the training.
    """
    n = len(exposures)
    past = build_memory(exposures.days, exposures.solved, exposures.solved_sigma, length=max(memory, 1))
    inputs = PriorInputs(
        nominal=np.full(n, exposures.nominal),
        days=exposures.days,
        telemetry=exposures.telemetry,
        memory=past,
        memory_telemetry={name: past.lookup(values) for name, values in exposures.telemetry.items()},
        stars=build_star_lists([exposures.stars(i) for i in range(n)], shape=exposures.shape) if memory else None,
        image=np.stack([image_statistics(exposures.patch(i)) for i in range(n)]) if image else None,
    )
    return SurveyInputs(exposures, inputs, assign_split(exposures.days, row_split=row_split))


def assign_split(days: Float, *, row_split: bool = False) -> npt.NDArray[np.str_]:
    """Return ``train``, ``validation`` or ``test`` for each exposure, by time or at random."""
    split = split_by_time(days, TRAIN_FRACTION, VALIDATION_FRACTION)
    return np.random.default_rng(_SHUFFLE_SEED).permutation(split) if row_split else split


def load_surveys(recipe: str, exposures: int | None, *, memory: int, image: bool = True) -> dict[str, SurveyInputs]:
    """Return the inputs of all surveys of a recipe, reproducibly; `exposures` limits their number."""
    surveys = make_surveys(recipe, exposures=exposures)
    return {name: survey_inputs(survey, memory=memory, image=image) for name, survey in surveys.items()}


def collect_examples(
    surveys: Mapping[str, SurveyInputs],
    part: str,
    *,
    memory: int,
    names: Sequence[str] | None = None,
    split: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Examples:
    """Collect the exposures of one part of the split from several surveys.

    Parameters
    ----------
    surveys : mapping of SurveyInputs
        Surveys by name.
    part : str
        ``train``, ``validation`` or ``test``.
    memory : int
        Number of earlier zero points that the network reads.
    names : sequence of str, optional
        Surveys to use; by default all.
    split : mapping of arrays, optional
        Part of each exposure, by survey; by default the split of the surveys.
    """
    parts = []
    for number, (name, survey) in enumerate(surveys.items()):
        if names is not None and name not in names:
            continue
        rows = np.flatnonzero((survey.split if split is None else split[name]) == part)
        parts.append((number, survey, rows))
    return Examples(
        arrays=concatenate_arrays([survey.arrays(memory).take(rows) for _, survey, rows in parts]),
        solved=np.concatenate([survey.solved[rows] for _, survey, rows in parts]),
        sigma=np.concatenate([survey.exposures.solved_sigma[rows] for _, survey, rows in parts]),
        truth=np.concatenate([survey.truth[rows] for _, survey, rows in parts]),
        survey=np.concatenate([np.full(len(rows), number) for number, _, rows in parts]),
    )
