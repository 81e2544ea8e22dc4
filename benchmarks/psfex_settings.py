"""Which settings of PSFEx give the best PSFs, so that it is compared at its best?

Some 900 stars of one detector of `psf-dataset2` (g) at S/N 100, on one thread. ``python benchmarks/psfex_settings.py``
(twenty minutes) writes ``results/psfex_settings.json``; the best of them are those of
`csstdask.evaluation.psf.evaluate.PSFEX_BEST`. PSFEx: Debian, ``apt-get install psfex``.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from environment import save

from csstdask.evaluation.io import round_floats
from csstdask.evaluation.psf.evaluate import SNR
from csstdask.metrics.psf import draw_stars, psf_errors
from csstdask.mock.recipe import load_recipe
from csstdask.training.psf.psfex import psfex_at_stars

STORES = Path(__file__).parent.parent / "stores"
DETECTOR = 8
#: BASIS_NUMBER, PSF_ACCURACY, degree.
GRID = ((20, 0.01, 3), (20, 0.001, 3), (30, 0.01, 3), (30, 0.001, 3))


def main() -> None:
    recipe = load_recipe(STORES / "psf-dataset2.toml")
    nodes = recipe.nodes.model_copy(update={"snr": (SNR, SNR)})
    stars = draw_stars(recipe.model_copy(update={"nodes": nodes}), 0, DETECTOR)
    rows = []
    for number, accuracy, degree in GRID:
        start = time.perf_counter()
        settings = {"basis_number": number, "accuracy": accuracy, "degree": degree}
        image = psfex_at_stars(stars.stamps, stars.mask, stars.x, stars.y, **settings)
        took = time.perf_counter() - start
        errors = psf_errors(image, stars.truth)
        rows.append({
            **settings, "seconds": took,
            "psnr": float(errors["psnr"].mean()),
            **{f"{name}_{what}": float(getattr(np, f"nan{what}")(errors[name]))
               for name in ("size", "e1", "e2") for what in ("mean", "std")},
        })  # fmt: skip
        print(rows[-1], flush=True)
    save("psfex_settings", {"recipe": recipe.name, "detector": DETECTOR, "snr": SNR, "rows": round_floats(rows)})


if __name__ == "__main__":
    main()
