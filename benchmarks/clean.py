"""Time `csstdask.clean` and ``astroscrappy.detect_cosmics`` on the same real frame.

``python benchmarks/clean.py FOLDER_OF_REAL_IMAGES`` writes ``results/clean.json``. The frame is WFPC2 chip 3 of a
cluster of galaxies (2400 s, 3 % of its pixels hit), repeated 2 x 2 so that fixed costs do not dominate. All methods
start from the same array in electrons, find its cosmic rays and repair them. astroscrappy runs with its default
settings and the camera's read noise; it parallelises with OpenMP. Each number of threads runs in a separate process.
The methods alternate; the time of each is the shortest of a few calls, after one that loads and compiles.

Whole commands are timed as well, from the shell to the written file: ``csstdask clean``, which adds weights, flags and
variances, and a six-line script that calls ``detect_cosmics``, because astroscrappy has no command.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from environment import save

PEER = """
import sys
from astropy.io import fits
from astroscrappy import detect_cosmics
with fits.open(sys.argv[1]) as hdus:
    mask, clean = detect_cosmics(hdus[0].data.astype("float32"), gain=7.0, readnoise=5.2)
    hdus[0].data = clean / 7.0
    hdus.append(fits.ImageHDU(mask.astype("uint8"), name="CR_MASK"))
    hdus.writeto(sys.argv[2], overwrite=True)
"""
"""What users of astroscrappy write for one file."""

THREADS, REPEATS, COPIES = (1, 2), 3, 2
#: Of WFPC2 at this setting: electrons a count, and read noise [e-].
GAIN, READ_NOISE = 7.0, 5.2


def frame_of(folder: Path) -> Any:
    from astropy.io import fits

    counts = np.asarray(fits.getdata(folder / "hst_wfpc2" / "hst_im_ext3.fits"), dtype=np.float32)
    return np.ascontiguousarray(np.tile(np.nan_to_num(counts) * np.float32(GAIN), (COPIES, COPIES)))


def seconds(methods: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the shortest time of each method; methods alternate, so that other load affects all of them."""
    took: dict[str, float] = {}
    for repeat in range(1 + REPEATS):
        for name, call in methods.items():
            start = time.perf_counter()
            call()
            if repeat:
                took[name] = min(took.get(name, np.inf), time.perf_counter() - start)
    return took


def measure(folder: Path, threads: int) -> dict[str, Any]:
    """Return the seconds of each method, in this process."""
    import numba
    import torch
    from astroscrappy import detect_cosmics

    import csstdask

    torch.set_num_threads(threads)
    numba.set_num_threads(threads)
    frame = frame_of(folder)
    methods: dict[str, Callable[[], Any]] = {
        "astroscrappy": lambda: detect_cosmics(frame, gain=1.0, readnoise=READ_NOISE, satlevel=np.inf),
        "astroscrappy, sepmed=False": lambda: detect_cosmics(
            frame, gain=1.0, readnoise=READ_NOISE, satlevel=np.inf, sepmed=False
        ),
    }
    for model in ("unet", "unet-fast"):
        for psf in (None, "none"):
            name = f"clean, {model}" + (", without PSF" if psf else "")
            methods[name] = lambda model=model, psf=psf: csstdask.clean(frame, model=model, psf=psf)
    rows = {name: {"seconds": round(took, 3)} for name, took in seconds(methods).items()}
    for row in rows.values():
        row["times_astroscrappy"] = round(row["seconds"] / rows["astroscrappy"]["seconds"], 2)
    return {"threads": threads, "shape": list(frame.shape), "methods": rows}


def time_commands(folder: Path, threads: int, scratch: Path) -> dict[str, Any]:
    """Return wall and CPU seconds of whole commands on one file."""
    from astropy.io import fits

    source, target = scratch / "in.fits", scratch / "out.fits"
    original = folder / "hst_wfpc2" / "hst_im_ext3.fits"
    with fits.open(original) as hdus:
        header = hdus[0].header.copy()
        counts = np.tile(np.nan_to_num(np.asarray(hdus[0].data, dtype=np.float32)), (COPIES, COPIES))
    fits.writeto(source, counts, header, output_verify="silentfix+ignore", overwrite=True)
    (scratch / "peer.py").write_text(PEER)
    (scratch / "no-psf.toml").write_text('[psf]\nmodel = "none"\n')
    clean = [str(Path(sys.executable).with_name("csstdask")), "clean", str(source), "-o", str(target), "--overwrite"]
    commands = {
        "astroscrappy": [sys.executable, str(scratch / "peer.py"), str(source), str(target)],
        "csstdask clean": clean,
        "csstdask clean --model unet-fast": [*clean, "--model", "unet-fast"],
        "csstdask clean --model unet-fast, without PSF": [
            *clean, "--model", "unet-fast", "--config", str(scratch / "no-psf.toml")
        ],
    }  # fmt: skip
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
    rows: dict[str, Any] = {}
    for repeat in range(1 + REPEATS):
        for name, command in commands.items():
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, env=os.environ | variables, capture_output=True, check=True)
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            if repeat and wall < rows.get(name, {"seconds": np.inf})["seconds"]:
                rows[name] = {"seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}
    for row in rows.values():
        row["times_astroscrappy"] = round(row["seconds"] / rows["astroscrappy"]["seconds"], 2)
    return {"threads": threads, "shape": list(counts.shape), "commands": rows}


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit("wanted the folder of real images")
    folder = Path(sys.argv[1])
    if len(sys.argv) == 3:
        sys.stdout.write(json.dumps(measure(folder, int(sys.argv[2]))))
        return
    results = []
    for threads in THREADS:
        variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
        out = subprocess.run(
            [sys.executable, __file__, str(folder), str(threads)],
            env=os.environ | variables, capture_output=True, text=True, check=True,
        )  # fmt: skip
        results.append(json.loads(out.stdout))
    with tempfile.TemporaryDirectory() as scratch:
        commands = [time_commands(folder, threads, Path(scratch)) for threads in THREADS]
    save("clean", {"frame": "WFPC2 u3060301m, chip 3, repeated 2 x 2", "results": results, "commands": commands})


if __name__ == "__main__":
    main()
