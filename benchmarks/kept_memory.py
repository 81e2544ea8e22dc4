"""Measure the cost of the C library's returning freed memory to the kernel.

Steps of a training of ``unet`` on eight patches of 256 x 256 pixels, and detection on a 2048 x 2048 frame, on one
thread, alternately in processes that keep freed memory and in processes that do not. ``python
benchmarks/kept_memory.py`` writes ``results/kept_memory.json`` (three minutes).
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from environment import save

REPEATS, TURNS, SIDE, SEED = 4, 3, 2048, 4244
DETECTIONS: tuple[tuple[str, Any], ...] = (("unet", "bfloat16"), ("unet", "int8"), ("unet-fast", "int8"))


def seconds(call: Callable[[], Any]) -> float:
    call()
    took = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return round(float(np.median(took)), 3)


def measure(*, keep: bool) -> None:
    """Print seconds, and the peak memory of this process."""
    import torch

    from csstdask.core.malloc import retain_freed_memory
    from csstdask.cosmicray import detect
    from csstdask.cosmicray.unet import build_unet
    from csstdask.nn.device import autocast
    from csstdask.nn.models import find_card
    from csstdask.training.cosmicray.train import weighted_loss

    if keep:
        retain_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    counts = 40 + 8 * rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    counts[rng.random(counts.shape, dtype=np.float32) < 0.025] += 300

    def search(model: str, precision: Any) -> None:
        detect(counts, model=model, precision=precision)

    found = {", ".join(kind): seconds(partial(search, *kind)) for kind in DETECTIONS}
    network = build_unet(**find_card("cosmicray", "unet").architecture).to(memory_format=torch.channels_last)
    batch = (torch.randn(8, 3, 256, 256), (torch.rand(8, 1, 256, 256) > 0.97).float(), torch.ones(8, 1, 256, 256))

    def step() -> None:
        with autocast(torch.device("cpu"), "bfloat16"):
            loss = weighted_loss(network, batch)
        loss.backward()

    found["a step of a training"] = seconds(step)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": found, "peak_gb": round(peak, 2)}))


def main() -> None:
    if platform.libc_ver()[0] != "glibc":
        sys.exit("this C library cannot keep freed memory: nothing to compare")
    found: dict[str, list[dict[str, Any]]] = {"kept": [], "given back": []}
    for _ in range(TURNS):
        for what, rows in found.items():
            done = subprocess.run([sys.executable, __file__, what], stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    facts = {
        what: {name: float(np.median([row["seconds"][name] for row in rows])) for name in rows[0]["seconds"]}
        for what, rows in found.items()
    }
    ratios = {name: round(facts["given back"][name] / took, 2) for name, took in facts["kept"].items()}
    peaks = {what: max(row["peak_gb"] for row in rows) for what, rows in found.items()}
    save("kept_memory", {"seconds": facts, "times_as_long_given_back": ratios, "peak_gb": peaks})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(keep=sys.argv[1] == "kept")
    else:
        main()
