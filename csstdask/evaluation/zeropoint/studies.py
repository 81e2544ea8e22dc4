"""Study the zero-point network: ablations, adaptation between surveys, permutation importance, leaks of row splits.

Each study trains single networks for a few epochs. They are compared with each other, not with the shipped ensemble.
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
ProgressCallback = Callable[[str], None]
Blank = Callable[[PriorArrays], PriorArrays]

ADVERSARIAL = 1.0
"""Weight of the reversed gradient in the study of adaptation between surveys."""


def train_network(
    surveys: Mapping[str, SurveyInputs],
    settings: FitSettings,
    *,
    memory: int,
    labelled: tuple[str, ...] | None = None,
    unlabelled: tuple[str, ...] = (),
    split: Mapping[str, npt.NDArray[Any]] | None = None,
    blank: Blank | None = None,
    **architecture: Any,
) -> PriorNetwork:
    """Train one network on one or several surveys.

    Parameters
    ----------
    surveys : mapping of SurveyInputs
        Surveys by name.
    settings : FitSettings
        Settings of the training.
    memory : int
        Number of earlier zero points that the network reads.
    labelled : tuple of str, optional
        Surveys with targets; by default all.
    unlabelled : tuple of str
        Surveys that are used by the discriminator only.
    split : mapping, optional
        Part of each exposure, by survey; by default the split by time.
    blank : callable, optional
        Removes inputs.
    **architecture
        Further arguments of `PriorNetwork`.

    Returns
    -------
    PriorNetwork
        Trained network.
    """
    names = tuple(surveys) if labelled is None else labelled
    known = collect_examples(surveys, "train", memory=memory, names=(*names, *unlabelled), split=split)
    checked = collect_examples(surveys, "validation", memory=memory, names=names, split=split)
    order = list(surveys)
    target = np.where(np.isin(known.survey, [order.index(name) for name in names]), known.solved, np.nan)
    torch.manual_seed(settings.seed)
    network = PriorNetwork(memory=memory, **architecture)
    remove = blank or (lambda arrays: arrays)
    fit_prior(
        network, remove(known.arrays), target, target_sigma=known.sigma,
        validation=(remove(checked.arrays), checked.solved), validation_sigma=checked.sigma, survey=known.survey,
        settings=settings, on_progress=_silent,
    )  # fmt: skip
    return network


def _silent(_: str) -> None:
    """Report nothing."""


def _rmse(network: PriorNetwork, examples: Examples, blank: Blank | None = None) -> float:
    """Return the root mean square error of a network [mag], without the inputs that `blank` removes."""
    arrays = examples.arrays if blank is None else blank(examples.arrays)
    return error_statistics(predict_offsets(network, arrays)[0], examples.truth).rmse


def no_memory(arrays: PriorArrays) -> PriorArrays:
    """Remove the memory."""
    return replace(
        arrays,
        memory=np.full_like(arrays.memory, np.nan),
        memory_telemetry=np.full_like(arrays.memory_telemetry, np.nan),
    )


def no_telemetry(arrays: PriorArrays) -> PriorArrays:
    """Remove the telemetry."""
    return replace(
        arrays, telemetry=np.full_like(arrays.telemetry, np.nan),
        memory_telemetry=np.full_like(arrays.memory_telemetry, np.nan),
    )  # fmt: skip


def no_image(arrays: PriorArrays) -> PriorArrays:
    """Remove the images."""
    return replace(arrays, image=np.full_like(arrays.image, np.nan))


def no_stars(arrays: PriorArrays) -> PriorArrays:
    """Remove the stars."""
    return replace(arrays, stars=np.full_like(arrays.stars, np.nan), n_stars=np.zeros_like(arrays.n_stars))


def ablations(
    surveys: Mapping[str, SurveyInputs],
    shipped: PriorNetwork,
    settings: FitSettings,
    *,
    memory: int,
    on_progress: ProgressCallback,
) -> dict[str, dict[str, float]]:
    """Return the error of the prior on test exposures without parts of the network or of its inputs [mag].

    ``retrained`` is a network trained without the part; ``withheld`` is the shipped network without the input.
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
    for name, (blank, architecture, case_settings) in cases.items():
        network = train_network(surveys, case_settings, memory=memory, blank=blank, **architecture)
        out[name] = {"retrained": _rmse(network, test, blank)}
        if blank is not None or name == "full":
            out[name]["withheld"] = _rmse(shipped, test, blank)
        on_progress(f"ablation, {name}: {out[name]['retrained']:.4f} mag")
    return out


def adaptation(
    surveys: Mapping[str, SurveyInputs], settings: FitSettings, *, memory: int, on_progress: ProgressCallback
) -> dict[str, dict[str, float]]:
    """Return errors on each survey, and how well the latents reveal the survey, with and without adaptation.

    These networks do not read the nominal zero point of the camera. ``first exposures`` are predicted without memory,
    which otherwise hides a wrong level.
    """
    names = tuple(surveys)
    adapted = replace(settings, adversarial=ADVERSARIAL)
    unadapted = replace(settings, adversarial=0.0)
    cases: dict[str, tuple[tuple[str, ...], tuple[str, ...], FitSettings]] = {
        f"trained on {names[0]}": (names[:1], (), unadapted),
        f"trained on {names[0]}, adapted to {names[1]} without labels": (names[:1], names[1:], adapted),
        "trained on both": (names, (), unadapted),
        "trained on both, adapted": (names, (), adapted),
    }
    out = {}
    for case, (labelled, unlabelled, case_settings) in cases.items():
        network = train_network(
            surveys, case_settings, memory=memory, labelled=labelled, unlabelled=unlabelled, by_camera=False
        )
        row = {}
        for name in names:
            test = collect_examples(surveys, "test", memory=memory, names=(name,))
            row[name] = _rmse(network, test)
            row[f"{name}, first exposures"] = _rmse(network, test, no_memory)
        row |= survey_classifier(network, surveys, memory=memory)
        out[case] = row
        on_progress(f"adaptation, {case}: {row[names[0]]:.4f}, {row[names[-1]]:.4f} mag")
    return out


def survey_classifier(network: PriorNetwork, surveys: Mapping[str, SurveyInputs], *, memory: int) -> dict[str, float]:
    """Return the balanced accuracy of classifiers that predict the survey from the latents; chance is 0.5.

    They are trained on the latents of training exposures and scored on those of test exposures.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.metrics import balanced_accuracy_score  # noqa: PLC0415

    parts = {part: collect_examples(surveys, part, memory=memory) for part in ("train", "test")}
    x = {part: latents(network, examples.arrays) for part, examples in parts.items()}
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
    """Return the increase of the error of the prior on test exposures when an input is permuted [mag]."""
    sets = [collect_examples(surveys, "test", memory=memory, names=(name,)) for name in surveys]
    truth = np.concatenate([examples.truth for examples in sets])

    def error(permute: Callable[[PriorArrays, npt.NDArray[np.int64]], PriorArrays]) -> float:
        offsets = []
        for k, examples in enumerate(sets):
            order = np.random.default_rng([seed, k]).permutation(len(examples))
            offsets.append(predict_offsets(network, permute(examples.arrays, order))[0])
        return error_statistics(np.concatenate(offsets), truth).rmse

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
    surveys: Mapping[str, SurveyInputs], settings: FitSettings, *, memory: int, on_progress: ProgressCallback
) -> dict[str, dict[str, float]]:
    """Return errors on test exposures of a split by time and of a random split [mag].

    With a random split, the training contains neighbours of the test exposures, as in most published evaluations.
    """
    out: dict[str, dict[str, float]] = {}
    for column, shuffled in (("by time", False), ("by row", True)):
        split = {name: assign_split(survey.exposures.days, row_split=shuffled) for name, survey in surveys.items()}
        errors: dict[str, list[Float]] = {}
        for name, survey in surveys.items():
            test = split[name] == "test"
            for method, prediction in classical(survey, split[name]).items():
                errors.setdefault(method, []).append((prediction.value - survey.exposures.truth)[test])
        network = train_network(surveys, settings, memory=memory, split=split)
        examples = collect_examples(surveys, "test", memory=memory, split=split)
        errors["prior"] = [predict_offsets(network, examples.arrays)[0] - examples.truth]
        for method, parts in errors.items():
            error = np.concatenate(parts)
            out.setdefault(method, {})[column] = error_statistics(error, np.zeros(len(error))).rmse
        on_progress(f"split {column}: prior {out['prior'][column]:.4f} mag")
    return out
