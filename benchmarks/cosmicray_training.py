"""What is it worth to train differently? Answered by short trainings that go on from `unet-fast`:

* the charge above which training calls a pixel hit: 0, 1 or 5 e- (CSST rejection paper, section 4.1);
* a model for each detector, as that paper has it, against one for all, with as many further steps;
* a camera that no training saw, learnt from repeated exposures without a simulator: how much is gained against the
  number of labelled frames, and what the errors of the labels cost beside the truth itself.

All are scored on frames of the test recipes, drawn as `csstdask evaluate cosmicray` draws them.
``python benchmarks/cosmicray_training.py CR_DETECTION.zarr`` (the campaign of stores/cr-detection.toml; some twenty
minutes on two cores) writes ``results/cosmicray_training.json``; ``--quick`` tries the way and writes nothing.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from environment import save

from csstdask.evaluation.cosmicray.evaluate import tally
from csstdask.evaluation.cosmicray.frames import EvaluationRequest, evaluate_frames, sum_counts
from csstdask.evaluation.cosmicray.methods import Method, network_method
from csstdask.evaluation.cosmicray.survey import at_equal_precision, pooled_rates
from csstdask.mock.recipe import Recipe, load_recipe
from csstdask.nn.models import find_card
from csstdask.pipeline.mock_survey import mock
from csstdask.training.cosmicray.config import load_cosmicray_config
from csstdask.training.cosmicray.train import train_cosmicray
from csstdask.training.labels.dithered_exposures import label_repeats

STORES = Path(__file__).parent.parent / "stores"
#: The network that all go on from: the one that learns most in a minute.
BEFORE = "unet-fast"
ARCHITECTURE = {key: value for key, value in find_card("cosmicray", BEFORE).architecture.items() if key != "inputs"}
#: Of every training that goes on; the camera's own defects need no more.
FURTHER: dict[str, Any] = ARCHITECTURE | {
    "start_from": BEFORE, "skies": 0, "frames": 16, "passes": 2, "batch": 8, "epochs": 12, "freeze_norm": 0.0,
    "validation_frames": 8, "learning_rate": 5e-4, "shares": {"rendered": 1.0},
}  # fmt: skip
QUICK: dict[str, Any] = {"frames": 1, "epochs": 1, "patches": 8, "validation_frames": 1}
DETECTORS = (6, 8, 25)
LABELLED = (1, 3, 8)


def further(folder: Path, name: str, **settings: Any) -> Method:
    """Go on with a training; return what came of it as a method."""
    config = load_cosmicray_config(None, **FURTHER | {"name": name} | settings)
    card = train_cosmicray(config, folder / name, on_progress=lambda line: print(f"{name}: {line}", flush=True))
    return network_method(str(card), name)


def scores(recipe: Recipe, methods: list[Method]) -> dict[str, Any]:
    """Return rates of methods on a recipe, and how many fewer visible pixels each misses at the first's precision."""
    look = EvaluationRequest(tuple(methods))
    counts = sum_counts(list(evaluate_frames(recipe, lambda _: look, on_progress=print)), "counts")
    first = tally.at(tally.rates(counts[methods[0].name]), tally.bin_of(methods[0].threshold))
    return {
        method.name: pooled_rates(counts[method.name], method.threshold)
        | {"fewer_missed_visible": at_equal_precision(tally.rates(counts[method.name]), first)["fewer_missed_visible"]}
        for method in methods
    }


def held_out(name: str, detectors: tuple[int, ...]) -> Recipe:
    exposures = 1 if "--quick" in sys.argv else 10
    recipe = load_recipe(STORES / f"{name}.toml", scale=0.0625)
    return recipe.model_copy(update={"exposures": exposures, "detectors": detectors})


def main() -> None:
    campaign = sys.argv[1]
    if "--quick" in sys.argv:
        FURTHER.update(QUICK)
    before = network_method(BEFORE, BEFORE)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        levels = [further(folder, f"above {e} e-", campaign=campaign, hit_above=float(e)) for e in (0, 1, 5)]
        results["training_threshold"] = scores(held_out("cr-detection-test", DETECTORS), [before, *levels])
        every = replace(levels[1], name="all detectors")
        results["per_detector"] = {}
        for detector in DETECTORS:
            own = further(folder, f"detector {detector}", campaign=campaign, detectors=(detector,))
            recipe = held_out("cr-detection-test", (detector,))
            results["per_detector"][str(detector)] = scores(recipe, [before, every, own])
        results["repeats"] = from_repeats(folder, before)
    if "--quick" not in sys.argv:
        save("cosmicray_training", {"settings": {key: str(value) for key, value in FURTHER.items()}, **results})


def from_repeats(folder: Path, before: Method) -> dict[str, Any]:
    """Learn another camera from its repeated exposures, with labels and with the truth."""
    repeats = folder / "repeats.zarr"
    recipe = load_recipe(STORES / "cr-repeats-foreign.toml", scale=0.05 if "--quick" in sys.argv else None)
    mock(recipe.model_copy(update={"split": None}), repeats)  # of a real field nobody says what it is for
    label_repeats(repeats)
    methods = [before]
    for truth in ("labels", "truth"):
        for exposures in LABELLED:
            name = f"{exposures} exposures, {truth}"
            methods.append(further(folder, name, campaign=str(repeats), truth=truth, exposures=exposures))
    return scores(held_out("cr-detection-test-foreign", (7, 8, 9)), methods)


if __name__ == "__main__":
    main()
