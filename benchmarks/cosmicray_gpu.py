"""Measure the speed of the detection network on a GPU, and compare it with the limits of the GPU.

A full detector, 9232 x 9216, from host to host (frame in host memory, mask back in it) and on the device alone (the
network's passes over tiles that are already there). Measured in the same process for comparison: the bandwidth of
copies and the rate of matrix products in the same precision. Probabilities are compared with the host's, float32 for
float32, on a 2048 x 2048 part. ``python benchmarks/cosmicray_gpu.py`` writes ``results/cosmicray_gpu.json``; without a
GPU it prints a message and writes nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from environment import save

from csstdask.cosmicray import detect
from csstdask.cosmicray.unet import TILE, build_unet
from csstdask.nn.models import find_card
from csstdask.nn.weights import load_network

SHAPE, PART, SEED, REPEATS = (9232, 9216), 2048, 4242, 5
BATCH = 8


def frame(shape: tuple[int, int]) -> Any:
    rng = np.random.default_rng(SEED)
    counts = 40 + 8 * rng.standard_normal(shape, dtype=np.float32)
    counts[rng.random(shape, dtype=np.float32) < 0.025] += 300
    return counts


def seconds(call: Callable[[], Any]) -> float:
    call()
    took = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return float(np.median(took))


def ceilings(dtype: torch.dtype) -> dict[str, float]:
    """Return the measured bandwidth of copies on the device and over the bus, and the rate of matrix products."""
    device = torch.device("cuda")
    block = torch.empty(2**30, dtype=torch.uint8, device=device)
    other, pinned = torch.empty_like(block), torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
    a = torch.randn(8192, 8192, device=device, dtype=dtype)
    return {
        "copy_gb_per_s": 2 * 2**30 / 1e9 / seconds(lambda: other.copy_(block)),
        "host_to_device_gb_per_s": 2**30 / 1e9 / seconds(lambda: block.copy_(pinned, non_blocking=True)),
        "matmul_tflops": 2 * 8192**3 / 1e12 / seconds(lambda: a @ a),
    }


def multiplications(network: torch.nn.Module, window: torch.Tensor) -> float:
    """Return the multiply-adds that a network spends on a pixel."""
    total = 0.0

    def count(module: Any, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        places = output.shape[2] * output.shape[3]
        transposed = isinstance(module, torch.nn.ConvTranspose2d)
        total += weight.numel() * places / (module.stride[0] ** 2 if transposed else 1)

    convolutions = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    hooks = [part.register_forward_hook(count) for part in convolutions]
    with torch.inference_mode():
        network(window)
    for hook in hooks:
        hook.remove()
    return total / (window.shape[2] * window.shape[3])


def main() -> None:
    if not torch.cuda.is_available():
        print("no GPU found: nothing was measured")
        sys.exit(0)
    device, card, counts = torch.device("cuda"), find_card("cosmicray", "unet"), frame(SHAPE)
    gpix = SHAPE[0] * SHAPE[1] / 1e9
    part = counts[:PART, :PART]
    host, there = (np.asarray(detect(part, device=place, precision="float32").probability) for place in ("cpu", "cuda"))
    rows = []
    for precision in ("float32", "bfloat16"):
        network = load_network(card, build_unet, device, precision)  # type: ignore[arg-type]
        inputs = card.architecture["inputs"]
        side = TILE + 2 * network.grid * -(-network.radius // network.grid)
        tiles = torch.randn(BATCH, inputs, side, side, device=device)
        tiles = tiles.contiguous(memory_format=torch.channels_last)
        each = multiplications(network, tiles[:1])
        with torch.inference_mode():
            alone = BATCH * TILE**2 / 1e9 / seconds(lambda tiles=tiles, network=network: network(tiles))  # type: ignore[misc]
        whole = gpix / seconds(lambda precision=precision: detect(counts, device="cuda", precision=precision))  # type: ignore[misc]
        limits = ceilings(getattr(torch, precision))
        tflops = 2 * each * alone * side**2 / TILE**2 / 1e3
        rows.append(
            {
                "precision": precision,
                "host_to_host_gpix_per_s": round(whole, 3),
                "device_only_gpix_per_s": round(alone, 3),
                "multiply_adds_per_pixel": round(each),
                "share_of_matmul": round(tflops / limits["matmul_tflops"], 3),
                **{key: round(value, 1) for key, value in limits.items()},
            }
        )
    difference = float(np.abs(host - there).max())
    facts = {"device": torch.cuda.get_device_name(), "largest_difference_from_host": difference, "rows": rows}
    save("cosmicray_gpu", {"frame": list(SHAPE), **facts})


if __name__ == "__main__":
    main()
