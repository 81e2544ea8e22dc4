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

TRAIN_SHARE = 0.6
"""First part of the days of a survey: training."""
VALIDATION_SHARE = 0.1
"""The next part: validation and calibration. The rest is the test."""
_SHUFFLE = 31
"""Seed of the split by rows."""


@dataclass(frozen=True)
class SurveyInputs:
    """One survey as inputs of a network; arrays are over its exposures (n,)."""

    exposures: MockSurvey
    inputs: PriorInputs
    """Images as their statistics."""
    split: npt.NDArray[np.str_]
    """``train``, ``validation`` or ``test``."""

    @property
    def truth(self) -> Float:
        """Return the true zero point minus nominal [mag]."""
        return np.asarray(self.exposures.truth - self.exposures.nominal)

    @property
    def solved(self) -> Float:
        """Return the solved zero point minus nominal [mag]; NaN where unsolved."""
        return np.asarray(self.exposures.solved - self.exposures.nominal)

    def arrays(self, memory: int, telemetry: Sequence[str] = TELEMETRY_NAMES) -> PriorArrays:
        """Return the inputs in the layout of a network."""
        return prior_arrays(self.inputs, telemetry, memory=memory)


@dataclass(frozen=True)
class Examples:
    """Exposures of several surveys; see `SurveyInputs`. Arrays (n,), offsets from nominal in mag."""

    arrays: PriorArrays
    solved: Float
    sigma: Float
    truth: Float
    survey: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.truth)


def survey_inputs(
    exposures: MockSurvey, *, memory: int = 16, image: bool = True, row_split: bool = False
) -> SurveyInputs:
    """Return the inputs of a survey: telemetry and memory as they were known, stars, statistics of images.

    Parameters
    ----------
    exposures : ZeroPointSet
    memory : int
        Solved zero points that are remembered; 0: neither memory nor star lists.
    image : bool
        Whether images are rendered for their statistics (2 ms each).
    row_split : bool
        Split at random and not by time, as most articles do: test exposures then have neighbours in the training.
    """
    s, n = exposures, len(exposures)
    past = build_memory(s.days, s.solved, s.solved_sigma, length=max(memory, 1))
    inputs = PriorInputs(
        np.full(n, s.nominal), s.days, s.telemetry, past, {name: past.lookup(v) for name, v in s.telemetry.items()},
        build_star_lists([s.stars(i) for i in range(n)], shape=s.shape) if memory else None,
        np.stack([image_statistics(s.patch(i)) for i in range(n)]) if image else None,
    )  # fmt: skip
    return SurveyInputs(s, inputs, assign_split(s.days, row_split=row_split))


def assign_split(days: Float, *, row_split: bool = False) -> npt.NDArray[np.str_]:
    """Return ``train``, ``validation`` or ``test`` for each exposure, by time or at random."""
    split = split_by_time(days, TRAIN_SHARE, VALIDATION_SHARE)
    return np.random.default_rng(_SHUFFLE).permutation(split) if row_split else split


def load_surveys(recipe: str, exposures: int | None, *, memory: int, image: bool = True) -> dict[str, SurveyInputs]:
    """Return all surveys of a recipe as inputs, the same for every call."""
    sets = make_surveys(recipe, exposures=exposures)
    return {name: survey_inputs(one, memory=memory, image=image) for name, one in sets.items()}


def collect_examples(
    surveys: Mapping[str, SurveyInputs],
    part: str,
    *,
    memory: int,
    names: Sequence[str] | None = None,
    split: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Examples:
    """Return the exposures of a part (``train``, ``validation``, ``test``) of some surveys, by default of all."""
    chosen = [(k, name, one) for k, (name, one) in enumerate(surveys.items()) if names is None or name in names]
    rows = [np.flatnonzero((one.split if split is None else split[name]) == part) for _, name, one in chosen]
    pairs = list(zip(chosen, rows, strict=True))
    return Examples(
        concatenate_arrays([one.arrays(memory).take(some) for (_, _, one), some in pairs]),
        np.concatenate([one.solved[some] for (_, _, one), some in pairs]),
        np.concatenate([one.exposures.solved_sigma[some] for (_, _, one), some in pairs]),
        np.concatenate([one.truth[some] for (_, _, one), some in pairs]),
        np.concatenate([np.full(len(some), k) for (k, _, _), some in pairs]),
    )
