"""Measure stamps per second of CSST-PSFNet and of adaptive moments, on a GPU and on the host.

PSFs and sizes are compared as well, float32 for float32. ``python benchmarks/psf_gpu.py`` writes
``results/psf_gpu.json``; without a GPU it prints a message and writes nothing. ``--cpu`` compares the host with itself
as a trial, and writes nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from environment import save

from csstdask.arrays.moments import adaptive_moments
from csstdask.nn.models import find_card
from csstdask.psf import reconstruct

STAMPS, REPEATS, SEED = 4096, 3, 31


def seconds(call: Callable[[], Any]) -> float:
    call()
    took = []
    for _ in range(REPEATS):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return float(np.median(took))


def main() -> None:
    device = "cpu" if "--cpu" in sys.argv else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.stdout.write("no CUDA device: nothing to measure\n")
        return
    rng = np.random.default_rng(SEED)
    detector = np.resize(find_card("psf", "psfnet").architecture["detectors"], STAMPS)
    x, y = rng.uniform(20, 9000, (2, STAMPS))
    steps = np.arange(32) - 16
    star = np.exp(-(steps[:, None] ** 2 + steps**2) / 4)
    stamps = (1e4 * star + rng.normal(0, 10, (STAMPS, 32, 32))).astype(np.float32)
    images, sizes, rows = {}, {}, {}
    for where in ("cpu", device):

        def network(where: str = where) -> Any:
            return reconstruct(stamps, detector, x, y, model="psfnet", device=where).image

        images[where] = network()
        tensor = torch.from_numpy(images["cpu"]).to(where)
        sizes[where] = adaptive_moments(tensor, start=3.0).sigma.cpu().numpy()
        rows[where] = {
            "psfnet_stamps_per_s": STAMPS / seconds(network),
            "moments_stamps_per_s": STAMPS / seconds(lambda tensor=tensor: adaptive_moments(tensor, start=3.0)),
        }
    apart = float(np.abs(images["cpu"] - images[device]).max() / images["cpu"].max())
    result = {
        "device": device, "stamps": STAMPS, "host_threads": torch.get_num_threads(), "rows": rows,
        "most_apart_of_peak": apart, "most_apart_in_sigma": float(np.nanmax(np.abs(sizes["cpu"] - sizes[device]))),
    }  # fmt: skip
    if device == "cpu":
        sys.stdout.write(f"{result}\n")
        return
    save("psf_gpu", result | {"gpu": torch.cuda.get_device_name()})


if __name__ == "__main__":
    main()
