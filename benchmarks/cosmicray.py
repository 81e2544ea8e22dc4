"""How fast are cosmic rays found, and how well, beside deepCR and astroscrappy on the same bytes?

One detector of a mock night, 2048 x 2048, in electrons. All methods are given the same frame in one process, with one
thread and in another process with two, and are timed in turn, `REPEATS` times. The first call of each is not counted:
it loads and compiles. Precision and recall are the CSST rejection paper's, over the pixels that are not flagged, and
no contest: deepCR has its published ACS-WFC weights, ours learnt from skies and tracks of this same generator (other
seeds). What csstdask measures of sky and noise is in its time. ``python benchmarks/cosmicray.py`` writes
``results/cosmicray.json`` (some five minutes); peers: ``pip install '.[bench]'``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from environment import save

REPEATS = 3
THREADS = (1, 2)
SEED = 4242
SIDE = 2048

Mask = npt.NDArray[np.bool_]


def frame() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], Mask, npt.NDArray[np.float32]]:
    """Return counts, errors, ignored pixels and the true charge [e-] of a mock unit."""
    from csstdask.instrument import load_instrument
    from csstdask.mock import render_unit
    from csstdask.mock.recipe import demo_recipe

    recipe = demo_recipe().model_copy(update={"seed": SEED, "shape": (SIDE, SIDE)})
    instrument = load_instrument(recipe.instrument)
    unit = render_unit(recipe, instrument, 0, 7)
    exptime = np.float32(recipe.exptime)
    ignore = ((unit.flag & instrument.flags.ignore_mask) != 0) | (unit.wht <= 0)
    error = exptime / np.sqrt(np.where(unit.wht > 0, unit.wht, 1)).astype(np.float32)
    return unit.sci * exptime, error, ignore, unit.truth_cr


def methods(counts: Any, error: Any, ignore: Mask) -> dict[str, Callable[[], Mask]]:
    import astroscrappy
    from deepCR import deepCR

    from csstdask.cosmicray import detect
    from csstdask.cosmicray.card import find_card
    from csstdask.cosmicray.unet import probability
    from csstdask.cosmicray.view import view_frame

    card = find_card("cosmicray", "unet")
    settings = find_card("cosmicray", "lacosmic").parameters
    peer = deepCR(mask="ACS-WFC", device="CPU")

    def bfloat16() -> Mask:
        view = view_frame(counts, error**2, ignore)
        return np.asarray(probability(view, card, precision="bfloat16") >= card.threshold) & ~ignore

    def lacosmic() -> Mask:
        hit, _ = astroscrappy.detect_cosmics(
            counts, inmask=ignore, invar=error**2, gain=1.0, satlevel=np.inf, **settings
        )
        return np.asarray(hit)

    def patches() -> Mask:
        return np.asarray(peer.clean(counts, threshold=0.5, inpaint=False, segment=True, patch=256, n_jobs=1)) > 0

    calls = {
        "csstdask unet, float32": lambda: np.asarray(detect(counts, error, ignore, model="unet").mask),
        "csstdask unet, bfloat16": bfloat16,
        "deepCR ACS-WFC, 256-pixel patches": patches,
        "astroscrappy, 4 iterations": lacosmic,
    }
    return calls | on_gpu(counts, error, ignore)


def on_gpu(counts: Any, error: Any, ignore: Mask) -> dict[str, Callable[[], Mask]]:
    """Return the networks on a GPU, where there is one; frames come from host memory, masks go back to it."""
    import torch

    if not torch.cuda.is_available():
        return {}
    from deepCR import deepCR

    from csstdask.cosmicray import detect

    peer = deepCR(mask="ACS-WFC", device="GPU")
    return {
        "csstdask unet, float32, GPU": lambda: np.asarray(
            detect(counts, error, ignore, model="unet", device="cuda").mask
        ),
        "deepCR ACS-WFC, whole frame, GPU": lambda: np.asarray(peer.clean(counts, threshold=0.5, inpaint=False)) > 0,
    }


def score(found: Mask, charge: Any, ignore: Mask) -> dict[str, float]:
    found, use = found & ~ignore, ~ignore
    return {
        "precision": round(float((charge[found] > 0).mean()), 3),
        "recall": round(float(found[use & (charge > 5)].mean()), 3),
    }


def measure() -> list[dict[str, Any]]:
    """Time all methods in turn, in this process with its number of threads."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    counts, error, ignore, charge = frame()
    calls = methods(counts, error, ignore)
    scores = {name: score(call(), charge, ignore) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    mpix = SIDE * SIDE / 1e6
    return [
        {
            "method": name,
            "threads": int(os.environ["OMP_NUM_THREADS"]),
            "mpix_per_s": round(mpix / float(np.median(took)), 2),
            "slowest_to_fastest": [round(mpix / max(took), 2), round(mpix / min(took), 2)],
            **scores[name],
        }
        for name, took in seconds.items()
    ]


def main() -> None:
    rows: list[dict[str, Any]] = []
    for threads in THREADS:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        done = subprocess.run(
            [sys.executable, __file__, "measure"],
            env=os.environ | dict.fromkeys(names, str(threads)),
            capture_output=True,
            text=True,
            check=True,
        )
        rows += json.loads(done.stdout.splitlines()[-1])
    for row in rows:
        alike = [other for other in rows if other["threads"] == row["threads"]]
        alike = [other for other in alike if ("GPU" in other["method"]) == ("GPU" in row["method"])]
        ours = alike[0]  # float32, on the same kind of device
        row["csstdask_is_times_as_fast"] = round(ours["mpix_per_s"] / row["mpix_per_s"], 2)
    save("cosmicray", {"frame": [SIDE, SIDE], "seed": SEED, "repeats": REPEATS, "rows": rows})


if __name__ == "__main__":
    if "measure" in sys.argv:
        warnings.simplefilter("ignore")
        print(json.dumps(measure()))
    else:
        main()
