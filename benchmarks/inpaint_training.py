"""How much should a hit pixel weigh when UNet++ learns to repair? The scan of alpha from 1 to 5, CSST rejection paper.

Short trainings, alike in all but alpha, go on from `unetpp`; each is scored on the science test's sources (units of
three detectors, the true mask), beside what they went on from.
``python benchmarks/inpaint_training.py CR_DETECTION.zarr`` (the campaign of stores/cr-detection.toml; some ten
minutes on two cores) writes ``results/inpaint_training.json``; ``--quick`` tries the way and writes nothing.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import save

from csstdask.evaluation.inpaint.methods import method_name
from csstdask.evaluation.inpaint.photometry import science_part
from csstdask.mock.recipe import load_recipe
from csstdask.nn.models import find_card
from csstdask.training.inpaint.train import load_inpaint_config, train_inpaint

STORES = Path(__file__).parent.parent / "stores"
BEFORE = "unetpp"
ALPHAS = (1.0, 2.0, 3.0, 4.0, 5.0)
#: Of every training; batches are the same ones for all.
FURTHER: dict[str, Any] = find_card("inpaint", BEFORE).architecture | {
    "start_from": BEFORE, "each": 60, "steps": 60, "epochs": 2, "learning_rate": 1e-3, "validation_batches": 12,
    "seed": 20261130,
}  # fmt: skip
QUICK: dict[str, Any] = {"each": 10, "steps": 2, "epochs": 1, "validation_batches": 1}
DETECTORS = (6, 8, 13)


def trained(folder: Path, campaign: str, alpha: float) -> str:
    """Go on with a training; return its card's path."""
    name = f"alpha-{alpha:g}"
    config = load_inpaint_config(None, **FURTHER | {"name": name, "alpha": alpha, "campaigns": (campaign,)})
    return str(train_inpaint(config, folder / name, on_progress=lambda line: print(f"{name}: {line}", flush=True)))


def main() -> None:
    if "--quick" in sys.argv:
        FURTHER.update(QUICK)
    recipe = load_recipe(STORES / "cr-science.toml").model_copy(
        update={"detectors": DETECTORS[: 1 if "--quick" in sys.argv else None]}
    )
    with tempfile.TemporaryDirectory() as name:
        cards = [trained(Path(name), sys.argv[1], alpha) for alpha in ALPHAS]
        part = science_part(recipe, (BEFORE, *cards), print, mask="true", peers=False)
        learnt = {method_name(card): find_card("inpaint", card).metrics for card in cards}
    result = {"settings": FURTHER, "recipe": recipe.name, "detectors": recipe.detectors, "validation": learnt, **part}
    if "--quick" not in sys.argv:
        save("inpaint_training", result)


if __name__ == "__main__":
    main()
