"""Time the repair of hit pixels and of common alternatives, on the same data in the same process.

* the masked median, compared with scipy's median of a whole frame, 11 x 11 pixels, the largest window of ours;
* the whole repair of a 2048 x 2048 mock frame with 500 sources, finding them included, by every method of
  ``csstdask evaluate inpaint``, with the pixels that detection finds.

All on one thread, in turn. ``python benchmarks/inpaint.py [CARD ...]`` writes ``results/inpaint.json`` (some three
minutes); cards are of networks that ``csstdask train inpaint`` made. Peers: ``pip install '.[bench]'``.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from environment import save
from scipy.ndimage import median_filter
from threadpoolctl import threadpool_limits

from csstdask.arrays.median import adaptive_median
from csstdask.cosmicray import detect
from csstdask.evaluation.cosmicray.truth_frame import render_truth_frame
from csstdask.evaluation.inpaint.methods import MaskedImage, repair_methods
from csstdask.mock.recipe import demo_recipe

SIDE, SEED, SOURCES = 2048, 4243, 500
#: Whose band the PSFs' model knows.
DETECTOR = 7
SHARES = (0.0025, 0.025, 0.14)
LARGEST = 11
REPEATS = 3


def seconds(call: Callable[[], Any]) -> float:
    """Return the shortest time of a few calls, after one that loads and compiles."""
    call()
    took = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return min(took)


def medians() -> list[dict[str, float]]:
    rng = np.random.default_rng(1)
    data = rng.normal(100, 5, (SIDE, SIDE)).astype(np.float32)
    whole = seconds(lambda: median_filter(data, LARGEST))
    rows = []
    for share in SHARES:
        target = rng.random(data.shape) < share
        own = seconds(lambda target=target: adaptive_median(data, target, ~target))
        rows.append({
            "masked_share": share,
            "ms": round(1e3 * own, 1),
            "ns_per_masked_pixel": round(1e9 * own / target.sum(), 1),
            "scipy_11x11_ms": round(1e3 * whole, 1),
            "times_scipy_11x11": round(whole / own, 1),
        })  # fmt: skip
    return rows


def frame() -> tuple[MaskedImage, Any, int]:
    """Return a mock frame with about as many sources as are wanted, and the pixels that detection finds."""
    recipe = demo_recipe()
    mpix = SIDE**2 / 1e6
    sky = recipe.sky.model_copy(
        update={"stars_per_mpix": 0.4 * SOURCES / mpix, "galaxies_per_mpix": 0.6 * SOURCES / mpix}
    )
    recipe = recipe.model_copy(update={"seed": SEED, "shape": (SIDE, SIDE), "sky": sky})
    known = render_truth_frame(recipe, 0, DETECTOR)
    case = known.case
    hit = np.asarray(detect(case.data, case.error, case.ignore, precision="float32").mask)
    return MaskedImage(case.data, case.error, case.ignore, DETECTOR), hit, len(known.catalogue)


def repairs(models: list[str]) -> dict[str, Any]:
    damaged, hit, sources = frame()
    rows = []
    for name, fill in repair_methods(models, psf=True).items():
        if name == "no repair":
            continue
        took = seconds(lambda fill=fill: fill(damaged, hit))
        rows.append({"method": name, "seconds": round(took, 3), "mpix_per_s": round(SIDE**2 / 1e6 / took, 2)})
    fastest = next(row["seconds"] for row in rows if row["method"] == "median")
    for row in rows:
        row["times_as_long_as_our_median"] = round(row["seconds"] / fastest, 1)
    return {"sources": sources, "masked_share": round(float(hit.mean()), 4), "rows": rows}


def main() -> None:
    torch.set_num_threads(1)
    threadpool_limits(1)
    if importlib.util.find_spec("cv2") is not None:
        import cv2

        cv2.setNumThreads(1)
    save("inpaint", {"shape": [SIDE, SIDE], "medians": medians(), "repair": repairs(sys.argv[1:])})


if __name__ == "__main__":
    main()
