"""Adapt CSST-PSFNet to a telescope outside its training set, with stars of that telescope.

One detector (g) of another telescope. Of 289 stars at S/N 100 (`psf-adaptation`), four fifths are for training and the
others decide when to stop; 900 stars of `psf-newoptics`, another sky, are the test set. Neither kind of label is a true
PSF: PSFEx's fit to the stars (the paper's weak labels), and the pixels of the stars. For comparison, PSFEx and
principal PSFs are fitted to the 900 stars. ``python benchmarks/psf_adaptation.py`` (ten minutes) writes
``results/psf_adaptation.json``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from environment import save

from csstdask.evaluation.io import round_floats
from csstdask.evaluation.psf.evaluate import vary_snr
from csstdask.evaluation.psf.measure import measure_unit
from csstdask.mock.recipe import load_recipe
from csstdask.nn.models import find_card
from csstdask.pipeline.mock_survey import mock
from csstdask.training.psf.train import load_psf_config, train_psf

STORES = Path(__file__).parent.parent / "stores"
DETECTOR = 8
SETTINGS = {"epochs": 40, "learning_rate": 1e-3, "warm_up": 1.0, "patience": 40, "threads": 2}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        stamps, cards = Path(folder) / "psf-adaptation.zarr", ["psfnet"]
        mock(load_recipe(STORES / "psf-adaptation.toml").model_copy(update={"detectors": (DETECTOR,)}), stamps)
        for labels in ("psfex", "stars"):
            config = load_psf_config(
                None, kind="psfnet", name=f"psfnet-by-{labels}", campaigns=(str(stamps),), labels=labels,
                start_from="psfnet", **SETTINGS,
            )  # fmt: skip
            cards.append(str(train_psf(config, Path(folder) / labels, on_progress=print)))
        _, judges = next(vary_snr(load_recipe(STORES / "psf-newoptics.toml"), "newoptics"))
        found = measure_unit(judges, 0, DETECTOR, model="default", psfex=True, compare_with=cards, fewer=False)
        default = find_card("psf", "default")
        save("psf_adaptation", {
            "settings": SETTINGS, "model": f"{default.name} {default.version}", "stars": found["n"],
            "learnt": {Path(card).stem: round_floats(find_card("psf", card).metrics) for card in cards},
            "methods": round_floats(found["methods"]),
        })  # fmt: skip


if __name__ == "__main__":
    main()
