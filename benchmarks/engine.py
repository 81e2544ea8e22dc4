"""Measure the engine: kernel time over wall time, overhead per unit, Mpix/s, actual over projected memory.

``python benchmarks/engine.py`` writes ``results/engine.json`` (about ten minutes on two cores);
``python benchmarks/engine.py --part overhead`` runs one part and keeps the others' results.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from astropy.io import fits
from environment import RESULTS, save
from scipy.ndimage import median_filter

from csstdask.arrays.median import adaptive_median
from csstdask.engine.cluster import open_cluster
from csstdask.engine.memory import LIBRARY_BYTES
from csstdask.engine.window import Task, run_window
from csstdask.engine.work_units import Selection, Unit
from csstdask.mock import Recipe
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.export import EXPORT_BYTES_PER_PIXEL
from csstdask.pipeline.ingest import INGEST_BYTES_PER_PIXEL, ingest
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.plan import make_plan
from csstdask.pipeline.run import run
from csstdask.pipeline.steps import resolve

FULL = (9232, 9216)


def efficiency(folder: Path) -> list[dict[str, Any]]:
    """Seconds of kernels over slots x wall, and Mpix/s, by scheduler and workers."""
    recipe = Recipe(name="bench", seed=42, exposures=4, detectors=(7, 8, 9), shape=(1024, 1024))
    mock(recipe, folder / "campaign.zarr")
    run(folder / "campaign.zarr", folder / "warm.zarr")  # compiles kernels, fills caches
    rows = []
    for scheduler, workers in (("threads", 1), ("threads", 2), ("processes", 1), ("processes", 2)):
        target = folder / f"{scheduler}{workers}.zarr"
        summary = run(folder / "campaign.zarr", target, scheduler=scheduler, workers=workers)
        rows.append(
            {
                "scheduler": scheduler,
                "slots": workers,
                "units": summary.done,
                "wall_s": round(summary.seconds, 2),
                "kernel_s": round(summary.kernel_seconds, 2),
                "E_k": round(summary.kernel_seconds / (workers * summary.seconds), 3),
                "mpix_per_s": round(summary.done * 1024**2 / 1e6 / summary.seconds, 2),
            }
        )
    return rows


def no_op(argument: float) -> dict[str, Any]:
    if argument:
        time.sleep(argument)
    return {}


def overhead() -> list[dict[str, Any]]:
    """Process 20,000 empty units; return the time per unit, and the memory of driver and scheduler over time."""
    rows = []
    for scheduler, slots, units, seconds in (
        ("threads", 2, 20_000, 0.0),
        ("processes", 2, 20_000, 0.0),
        ("processes", 2, 2_000, 0.01),
        ("processes", 2, 400, 0.1),
        ("processes", 2, 60, 1.0),
    ):
        memory: list[float] = []
        done = 0

        def listen(_: object, memory: list[float] = memory, units: int = units) -> None:
            nonlocal done
            done += 1
            if done % max(units // 10, 1) == 0:  # two events a unit: submitted, done
                memory.append(psutil.Process().memory_info().rss / 2**20)

        with open_cluster(scheduler, slots) as opened:
            start = time.perf_counter()
            tasks = (Task(Unit(f"e{i:06d}", 1), seconds) for i in range(units))
            outcome = run_window(opened, tasks, no_op, listen, key=f"noop{seconds}")
            wall = time.perf_counter() - start
        assert outcome.done == units
        half = len(memory) // 2
        rows.append(
            {
                "scheduler": scheduler,
                "slots": slots,
                "units": units,
                "unit_ms": 1e3 * seconds,
                "overhead_ms_per_unit": round(1e3 * (wall - units * seconds / slots) / units, 3),
                "efficiency": round(units * seconds / slots / wall, 3),
                "driver_mib": [round(value, 1) for value in memory],
                "growth_second_half_mib": round(memory[-1] - memory[half], 2),
            }
        )
    return rows


def small_units(folder: Path) -> list[dict[str, Any]]:
    """Time a run of 1000 units with very few pixels, and a run that finds them done."""
    recipe = Recipe(name="tiny", seed=45, exposures=250, detectors=(6, 7, 8, 9), shape=(32, 32))
    mock(recipe, folder / "tiny.zarr", scheduler="processes")
    rows = []
    for label in ("first run", "again: all done"):
        summary = run(folder / "tiny.zarr", folder / "run.zarr", steps=["background"], workers=2)
        units = summary.done + summary.skipped
        rows.append({"what": label, "units": units, "ms_per_unit": round(1e3 * summary.seconds / units, 2)})
    return rows


def median() -> list[dict[str, Any]]:
    """Time the adaptive masked median and scipy's plain one: same data, same process, one core."""
    rng = np.random.default_rng(1)
    data = rng.normal(100, 5, (2048, 2048)).astype(np.float32)
    rows = []
    for share in (0.0025, 0.025, 0.14):
        target = rng.random(data.shape) < share
        adaptive_median(data[:64, :64], target[:64, :64], ~target[:64, :64])

        def ours(target: np.ndarray = target) -> None:
            adaptive_median(data, target, ~target)

        row: dict[str, Any] = {"masked_share": share, "csstdask_mpix_per_s": _rate(ours, data.size)}
        for size in (3, 5):
            row[f"scipy_{size}x{size}_mpix_per_s"] = _rate(lambda size=size: median_filter(data, size), data.size)
            row[f"times_scipy_{size}x{size}"] = round(
                row["csstdask_mpix_per_s"] / row[f"scipy_{size}x{size}_mpix_per_s"], 1
            )
        rows.append(row)
    return rows


def _rate(function: Any, pixels: int, repeats: int = 3) -> float:
    best = min(_seconds(function) for _ in range(repeats))
    return round(pixels / 1e6 / best, 2)


def _seconds(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def full_frame(path: Path) -> None:
    """Write one full detector as Level 1 FITS: sky, stars of one pixel's width, 2.5 % of pixels hit."""
    rng = np.random.default_rng(2)
    sci = rng.normal(0.2, 0.05, FULL).astype(np.float32)
    for share, scale in ((0.025, 3.0), (2e-4, 20.0)):
        hit = rng.random(FULL) < share
        sci[hit] += rng.exponential(scale, int(hit.sum())).astype(np.float32)
    header = fits.Header({"BUNIT": "e/s", "GAIN1": 1.1, "RDNOISE1": 5.0})
    primary = fits.Header({"TELESCOP": "CSST", "OBSID": "10100000001", "DETECTOR": "MSC_08", "EXPTIME": 150.0})
    hdus = [fits.PrimaryHDU(header=primary), fits.ImageHDU(sci, header=header, name="SCI")]
    hdus.append(fits.ImageHDU(np.full(FULL, 400, np.float32), name="WHT"))
    hdus.append(fits.ImageHDU(np.zeros(FULL, np.int32), name="FLG"))
    fits.HDUList(hdus).writeto(path)


def memory(folder: Path) -> list[dict[str, Any]]:
    """One 9232 x 9216 unit through ingest, run and export: peak resident memory against the projection."""
    name = folder / "CSST_MSC_MS_SCIE_20280301000000_20280301000230_10100000001_08_L1_V01.fits"
    full_frame(name)
    pixels = FULL[0] * FULL[1]
    campaign, target = folder / "full.zarr", folder / "full_run.zarr"
    rows = [_stage("ingest", [str(name), "--to", str(campaign)], pixels * INGEST_BYTES_PER_PIXEL + LIBRARY_BYTES)]
    projected = make_plan(campaign, resolve(None), RunConfig(), Selection()).projection("threads", 1).total
    rows.append(_stage("run", [str(campaign), "--to", str(target)], projected))
    exported = [str(target), "--to", str(folder / "out")]
    rows.append(_stage("export", exported, pixels * EXPORT_BYTES_PER_PIXEL + LIBRARY_BYTES))
    return rows


def _stage(verb: str, arguments: list[str], projected: int, label: str = "") -> dict[str, Any]:
    """Run one command in a separate process, and read its peak memory from the system."""
    code = (
        "import json, resource, subprocess, sys, time; start = time.perf_counter();"
        "code = subprocess.run(sys.argv[1:], check=False).returncode;"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024;"
        "print(json.dumps([code, peak, time.perf_counter() - start]))"
    )
    command = [sys.executable, "-c", code, sys.executable, "-m", "csstdask", verb, *arguments, "--workers", "1"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    exit_code, peak, wall = json.loads(out.splitlines()[-1])
    assert exit_code == 0
    return {
        "stage": label or verb,
        "wall_s": round(wall, 1),
        "mpix_per_s": round(FULL[0] * FULL[1] / 1e6 / wall, 2),
        "peak_gib": round(peak / 2**30, 2),
        "projected_gib": round(projected / 2**30, 2),
        "peak_over_projected": round(peak / projected, 2),
    }


def throughput(folder: Path) -> list[dict[str, Any]]:
    """Ingest of a small night of plain FITS, Mpix/s, by scheduler."""
    recipe = Recipe(name="files", seed=43, exposures=4, detectors=(7, 8, 9), shape=(2048, 2048))
    recipe = recipe.model_copy(update={"sky": recipe.sky.model_copy(update={"galaxies_per_mpix": 20.0})})
    mock(recipe, folder / "files", as_fits=True)
    files = sorted((folder / "files").glob("*_L1_V01.fits"))
    rows = []
    for scheduler, workers in (("threads", 1), ("threads", 2), ("processes", 2)):
        summary = ingest(files, folder / f"in_{scheduler}{workers}.zarr", scheduler=scheduler, workers=workers)
        pixels = summary.added * 2048**2
        rows.append(
            {
                "scheduler": scheduler,
                "slots": workers,
                "units": summary.added,
                "mpix_per_s": round(pixels / 1e6 / summary.seconds, 1),
                "mb_per_s": round(pixels * 12 / 1e6 / summary.seconds, 1),
            }
        )
    return rows


PARTS = ("efficiency", "overhead", "small_units", "median", "memory", "throughput")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append")
    wanted = parser.parse_args().part or list(PARTS)
    path = RESULTS / "engine.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    result.pop("environment", None)
    with tempfile.TemporaryDirectory() as scratch:
        for part in wanted:
            folder = Path(scratch) / part
            folder.mkdir()
            function = globals()[part]
            result[part] = (
                function(folder) if part in {"efficiency", "small_units", "memory", "throughput"} else function()
            )
            shutil.rmtree(folder)
    save("engine", {part: result[part] for part in PARTS if part in result})
    sys.stderr.write(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB\n")


if __name__ == "__main__":
    main()
