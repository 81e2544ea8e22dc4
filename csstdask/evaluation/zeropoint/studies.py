"""Studies of the zero-point network: ablations, adaptation between surveys, permutation importance, leak of row splits.

Each study trains single networks for a few epochs, so that they are compared with one another and not with the shipped
ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from csstdask.evaluation.zeropoint.methods import classical, latents
from csstdask.metrics.zeropoint import error_statistics
from csstdask.training.zeropoint.fit import FitSettings, fit_prior, predict_offsets
from csstdask.training.zeropoint.surveys import Examples, SurveyInputs, assign_split, collect_examples
from csstdask.zeropoint.prior import TELEMETRY_NAMES, PriorArrays
from csstdask.zeropoint.prior.network import PriorNetwork

Float = npt.NDArray[np.float64]
Say = Callable[[str], None]

ADVERSARIAL = 1.0
"""Weight of the reversed gradient in the study of adaptation."""


def train_network(
    surveys: Mapping[str, SurveyInputs],
    settings: FitSettings,
    *,
    memory: int,
    labelled: tuple[str, ...] | None = None,
    unlabelled: tuple[str, ...] = (),
    split: Mapping[str, npt.NDArray[Any]] | None = None,
    blank: Callable[[PriorArrays], PriorArrays] | None = None,
    **architecture: Any,
) -> PriorNetwork:
    """Train one network on some surveys.

    Parameters
    ----------
    surveys : mapping of SurveyInputs
    settings : FitSettings
    memory : int
    labelled : tuple of str, optional
        Surveys with targets; by default all.
    unlabelled : tuple of str
        Surveys that only teach the discriminator.
    split : mapping, optional
        Another split than that by time.
    blank : callable, optional
        Withholds inputs.
    **architecture
        Of `PriorNetwork`.
    """
    names = tuple(surveys) if labelled is None else labelled
    known = collect_examples(surveys, "train", memory=memory, names=(*names, *unlabelled), split=split)
    checked = collect_examples(surveys, "validation", memory=memory, names=names, split=split)
    order = list(surveys)
    target = np.where(np.isin(known.survey, [order.index(one) for one in names]), known.solved, np.nan)
    network = _network(settings.seed, memory, architecture)
    withhold = blank or (lambda arrays: arrays)
    fit_prior(
        network, withhold(known.arrays), target, target_sigma=known.sigma,
        validation=(withhold(checked.arrays), checked.solved), validation_sigma=checked.sigma, survey=known.survey,
        settings=settings, on_progress=_silent,
    )  # fmt: skip
    return network


def _network(seed: int, memory: int, architecture: Mapping[str, Any]) -> PriorNetwork:
    torch.manual_seed(seed)
    return PriorNetwork(memory=memory, **architecture)


def _silent(_: str) -> None:
    """Report nothing."""


def _rmse(network: PriorNetwork, some: Examples, blank: Callable[[PriorArrays], PriorArrays] | None = None) -> float:
    arrays = some.arrays if blank is None else blank(some.arrays)
    return error_statistics(predict_offsets(network, arrays)[0], some.truth).rmse


def no_memory(arrays: PriorArrays) -> PriorArrays:
    """Return inputs without memory."""
    return replace(
        arrays,
        memory=np.full_like(arrays.memory, np.nan),
        memory_telemetry=np.full_like(arrays.memory_telemetry, np.nan),
    )


def no_telemetry(arrays: PriorArrays) -> PriorArrays:
    """Return inputs without telemetry."""
    return replace(
        arrays, telemetry=np.full_like(arrays.telemetry, np.nan),
        memory_telemetry=np.full_like(arrays.memory_telemetry, np.nan),
    )  # fmt: skip


def no_image(arrays: PriorArrays) -> PriorArrays:
    """Return inputs without images."""
    return replace(arrays, image=np.full_like(arrays.image, np.nan))


def no_stars(arrays: PriorArrays) -> PriorArrays:
    """Return inputs without stars."""
    return replace(arrays, stars=np.full_like(arrays.stars, np.nan), n_stars=np.zeros_like(arrays.n_stars))


def ablations(
    surveys: Mapping[str, SurveyInputs], shipped: PriorNetwork, settings: FitSettings, *, memory: int, on_progress: Say
) -> dict[str, dict[str, float]]:
    """Return the error of the prior on test exposures without parts of the network or of its inputs.

    ``retrained`` was trained without the part; ``withheld`` is the shipped network without the input.
    """
    test = collect_examples(surveys, "test", memory=memory)
    cases: dict[str, tuple[Any, dict[str, Any], FitSettings]] = {
        "full": (None, {}, settings),
        "no image": (no_image, {"image": False}, settings),
        "no catalogue": (no_stars, {"stars": False}, settings),
        "no telemetry": (no_telemetry, {}, settings),
        "no memory": (no_memory, {}, settings),
        "no ranking": (None, {}, replace(settings, ranking=0.0)),
        "same response for all cameras": (None, {"by_camera": False}, settings),
    }
    out = {}
    for name, (blank, architecture, how) in cases.items():
        network = train_network(surveys, how, memory=memory, blank=blank, **architecture)
        out[name] = {"retrained": _rmse(network, test, blank)}
        if blank is not None or name == "full":
            out[name]["withheld"] = _rmse(shipped, test, blank)
        on_progress(f"ablation, {name}: {out[name]['retrained']:.4f} mag")
    return out


def adaptation(
    surveys: Mapping[str, SurveyInputs], settings: FitSettings, *, memory: int, on_progress: Say
) -> dict[str, dict[str, float]]:
    """Return errors on each survey, and how well its latents show the survey, with and without adaptation.

    Networks do not know the camera here. ``first exposures`` have no memory, which otherwise hides a wrong level.
    """
    names = tuple(surveys)
    adapted = replace(settings, adversarial=ADVERSARIAL)
    plain = replace(settings, adversarial=0.0)
    cases: dict[str, tuple[tuple[str, ...], tuple[str, ...], FitSettings]] = {
        f"trained on {names[0]}": (names[:1], (), plain),
        f"trained on {names[0]}, adapted to {names[1]} without labels": (names[:1], names[1:], adapted),
        "trained on both": (names, (), plain),
        "trained on both, adapted": (names, (), adapted),
    }
    out = {}
    for case, (labelled, unlabelled, how) in cases.items():
        network = train_network(surveys, how, memory=memory, labelled=labelled, unlabelled=unlabelled, by_camera=False)
        row = {}
        for name in names:
            some = collect_examples(surveys, "test", memory=memory, names=(name,))
            row[name] = _rmse(network, some)
            row[f"{name}, first exposures"] = _rmse(network, some, no_memory)
        row |= survey_classifier(network, surveys, memory=memory)
        out[case] = row
        on_progress(f"adaptation, {case}: {row[names[0]]:.4f}, {row[names[-1]]:.4f} mag")
    return out


def survey_classifier(network: PriorNetwork, surveys: Mapping[str, SurveyInputs], *, memory: int) -> dict[str, float]:
    """Return the balanced accuracy of classifiers that tell the survey from the latents; chance is 0.5.

    They learn from latents of training exposures and are scored on those of test exposures.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.metrics import balanced_accuracy_score  # noqa: PLC0415

    parts = {part: collect_examples(surveys, part, memory=memory) for part in ("train", "test")}
    x = {part: latents(network, some.arrays) for part, some in parts.items()}
    models = {
        "linear classifier": LogisticRegression(max_iter=500, class_weight="balanced"),
        "boosted classifier": HistGradientBoostingClassifier(max_iter=60, random_state=1, class_weight="balanced"),
    }
    return {
        name: float(
            balanced_accuracy_score(
                parts["test"].survey, model.fit(x["train"], parts["train"].survey).predict(x["test"])
            )
        )
        for name, model in models.items()
    }


def permutation_importance(
    surveys: Mapping[str, SurveyInputs], network: PriorNetwork, *, memory: int, seed: int
) -> dict[str, float]:
    """Return by how much the error of the prior on test exposures grows when an input is permuted [mag]."""
    sets = [collect_examples(surveys, "test", memory=memory, names=(name,)) for name in surveys]
    truth = np.concatenate([some.truth for some in sets])

    def error(change: Callable[[PriorArrays, npt.NDArray[np.int64]], PriorArrays]) -> float:
        found = []
        for k, some in enumerate(sets):
            order = np.random.default_rng([seed, k]).permutation(len(some))
            found.append(predict_offsets(network, change(some.arrays, order))[0])
        return error_statistics(np.concatenate(found), truth).rmse

    start = error(lambda arrays, _: arrays)
    out = {}
    for k, name in enumerate(TELEMETRY_NAMES):
        out[name] = error(partial(_permuted_channel, k=k)) - start
    out["image"] = error(lambda arrays, order: replace(arrays, image=arrays.image[order])) - start
    out["stars"] = (
        error(lambda arrays, order: replace(arrays, stars=arrays.stars[order], n_stars=arrays.n_stars[order])) - start
    )
    out["memory"] = (
        error(
            lambda arrays, order: replace(
                arrays, memory=arrays.memory[order], memory_telemetry=arrays.memory_telemetry[order]
            )
        )
        - start
    )
    return dict(sorted(out.items(), key=lambda item: -item[1]))


def _permuted_channel(arrays: PriorArrays, order: npt.NDArray[np.int64], *, k: int) -> PriorArrays:
    telemetry = arrays.telemetry.copy()
    telemetry[:, k] = telemetry[order, k]
    return replace(arrays, telemetry=telemetry)


def row_split(
    surveys: Mapping[str, SurveyInputs], settings: FitSettings, *, memory: int, on_progress: Say
) -> dict[str, dict[str, float]]:
    """Return errors on test exposures of a split by time, and of one at random.

    With a random split neighbours of the test exposures are learnt from, as in most published evaluations.
    """
    out: dict[str, dict[str, float]] = {}
    for column, shuffled in (("by time", False), ("by row", True)):
        split = {name: assign_split(one.exposures.days, row_split=shuffled) for name, one in surveys.items()}
        errors: dict[str, list[Float]] = {}
        for name, one in surveys.items():
            test = split[name] == "test"
            for method, prediction in classical(one, split[name]).items():
                errors.setdefault(method, []).append((prediction.value - one.exposures.truth)[test])
        network = train_network(surveys, settings, memory=memory, split=split)
        some = collect_examples(surveys, "test", memory=memory, split=split)
        errors["prior"] = [predict_offsets(network, some.arrays)[0] - some.truth]
        for method, parts in errors.items():
            every = np.concatenate(parts)
            out.setdefault(method, {})[column] = error_statistics(every, np.zeros(len(every))).rmse
        on_progress(f"split {column}: prior {out['prior'][column]:.4f} mag")
    return out


__all__ = ["ablations", "adaptation", "permutation_importance", "row_split", "survey_classifier", "train_network"]
