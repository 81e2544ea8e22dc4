"""Compare speed and accuracy of the cosmic-ray detection with deepCR, astroscrappy and lacosmic, on the same data.

One detector of a mock night, 2048 x 2048, in electrons. All methods process the same frame in one process with
one thread, and in another process with two. They alternate, `REPEATS` times; the first call of each, which loads and
compiles, is not counted. The memory that a full detector needs is measured as well. Precision and recall are defined as
in the CSST rejection paper, over unflagged pixels. They are not a fair comparison: deepCR has its published ACS-WFC
weights, and our network was trained on mocks of the same simulator (with other seeds). The time of csstdask includes
its estimates of sky and noise.
``python benchmarks/cosmicray.py`` writes ``results/cosmicray.json`` (about five minutes); peers:
``pip install '.[bench]'``.
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
#: Network and precision with which the others are compared, and with which a full detector is searched.
OURS = ("unet, bfloat16", "unet, int8", "unet-fast, int8")

Mask = npt.NDArray[np.bool_]


def frame() -> tuple[Any, Any, Mask, Any]:
    """Return counts, errors, ignored pixels and the true charge [e-] of a mock unit."""
    from csstdask.evaluation.cosmicray.truth_frame import render_truth_frame
    from csstdask.mock.recipe import demo_recipe

    case = render_truth_frame(demo_recipe().model_copy(update={"seed": SEED, "shape": (SIDE, SIDE)}), 0, 7).case
    return case.data, case.error, case.ignore, case.charge


def methods(counts: Any, error: Any, ignore: Mask) -> dict[str, Callable[[], Mask]]:
    import astroscrappy
    import lacosmic
    from deepCR import deepCR

    from csstdask.cosmicray import detect
    from csstdask.nn.models import find_card

    settings = find_card("cosmicray", "lacosmic").parameters
    peer = deepCR(mask="ACS-WFC", device="CPU")

    def astroscrappy_() -> Mask:
        hit, _ = astroscrappy.detect_cosmics(
            counts, inmask=ignore, invar=error**2, gain=1.0, satlevel=np.inf, **settings
        )
        return np.asarray(hit)

    def lacosmic_() -> Mask:
        contrast, cut = settings["objlim"], settings["sigclip"]
        neighbour = settings["sigfrac"] * cut
        _, hit = lacosmic.remove_cosmics(counts, contrast, cut, neighbour, error=error, mask=ignore)
        return np.asarray(hit)

    def patches() -> Mask:
        return np.asarray(peer.clean(counts, threshold=0.5, inpaint=False, segment=True, patch=256, n_jobs=1)) > 0

    def ours(model: str, precision: Any) -> Callable[[], Mask]:
        return lambda: np.asarray(detect(counts, error, ignore, model=model, precision=precision).mask)

    calls = {
        "csstdask unet, float32": ours("unet", "float32"),
        "csstdask unet, bfloat16": ours("unet", "bfloat16"),
        "csstdask unet, int8": ours("unet", "int8"),
        "csstdask unet-fast, float32": ours("unet-fast", "float32"),
        "csstdask unet-fast, int8": ours("unet-fast", "int8"),
        "csstdask deepcr (retrained), float32": ours("deepcr", "float32"),
        "csstdask deepcr (retrained), int8": ours("deepcr", "int8"),
        "deepCR ACS-WFC, 256-pixel patches": patches,
        "astroscrappy, 4 iterations": astroscrappy_,
        "lacosmic, 4 iterations": lacosmic_,
    }
    return calls | on_gpu(counts, error, ignore)


def on_gpu(counts: Any, error: Any, ignore: Mask) -> dict[str, Callable[[], Mask]]:
    """Return the networks on a GPU, if available; frames and masks are in host memory."""
    import torch

    if not torch.cuda.is_available():
        return {}
    from deepCR import deepCR

    from csstdask.cosmicray import detect

    peer = deepCR(mask="ACS-WFC", device="GPU")
    calls: dict[str, Callable[[], Mask]] = {
        f"csstdask {model}, float32, GPU": lambda model=model: np.asarray(
            detect(counts, error, ignore, model=model, precision="float32", device="cuda").mask
        )
        for model in ("unet", "unet-fast")
    }
    calls["deepCR ACS-WFC, whole frame, GPU"] = lambda: np.asarray(peer.clean(counts, threshold=0.5, inpaint=False)) > 0
    return calls


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


def peak_of_a_full_detector(model: str, precision: Any) -> None:
    """Print the peak memory of one detection on a full frame: interpreter, libraries and the caller's arrays in it."""
    import resource

    from csstdask.cosmicray import detect

    shape = (9232, 9216)
    rng = np.random.default_rng(SEED)
    counts = np.empty(shape, dtype=np.float32)
    for row in range(0, shape[0], 577):  # in parts, so that making the frame is not the peak
        counts[row : row + 577] = 40 + 8 * rng.standard_normal((577, shape[1]), dtype=np.float32)
        counts[row : row + 577][rng.random((577, shape[1]), dtype=np.float32) < 0.025] += 300
    error = np.sqrt(counts.clip(1))
    ignore = np.zeros(shape, dtype=bool)
    ignore[:, 4000] = True
    result: dict[str, Any] = {"gb_before": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
    start = time.perf_counter()
    detect(counts, error, ignore, model=model, precision=precision)
    result |= {"seconds": time.perf_counter() - start}
    print(json.dumps(result | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}))


def main() -> None:
    rows: list[dict[str, Any]] = []
    for threads in THREADS:
        rows += in_a_process("measure", threads)
    speed = {(row["method"], row["threads"]): row["mpix_per_s"] for row in rows}
    for row in rows:
        place = ", GPU" if row["method"].endswith(", GPU") else ""
        own = {ours: speed.get((f"csstdask {ours}{place}", row["threads"])) for ours in OURS}
        row["times_as_fast"] = {
            ours: None if rate is None else round(rate / row["mpix_per_s"], 2) for ours, rate in own.items()
        }
    full = {ours: {key: round(value, 2) for key, value in in_a_process(ours, max(THREADS)).items()} for ours in OURS}
    save("cosmicray", {"frame": [SIDE, SIDE], "seed": SEED, "repeats": REPEATS, "rows": rows, "full_detector": full})


def in_a_process(what: str, threads: int) -> Any:
    """Run ``measure``, or one of `OURS`, in another process with a number of threads; return its result."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, __file__, what],
        env=os.environ | dict.fromkeys(names, str(threads)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    if "measure" in sys.argv:
        warnings.simplefilter("ignore")
        print(json.dumps(measure()))
    elif len(sys.argv) > 1:
        peak_of_a_full_detector(*sys.argv[1].split(", "))
    else:
        main()
