"""How long does `csstdask.clean` take, compared with ``astroscrappy.detect_cosmics`` on the same real frame?

``python benchmarks/clean.py FOLDER_OF_REAL_IMAGES`` writes ``results/clean.json``. The frame is WFPC2 chip 3 of a
cluster of galaxies (2400 s, 3 % of its pixels hit), repeated 2 x 2 so that fixed costs do not decide. All methods start
from the same array in electrons, find its cosmic rays and repair them. astroscrappy runs with its default settings and
the camera's read noise; it parallelises with OpenMP. Each number of threads has a process of its own. Methods take
turns, and the time of each is the least of a few calls, after one that loads and compiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from environment import save

THREADS, REPEATS, COPIES = (1, 2), 3, 2
#: Of WFPC2 at this setting: electrons a count, and read noise [e-].
GAIN, READ_NOISE = 7.0, 5.2


def frame_of(folder: Path) -> Any:
    from astropy.io import fits

    counts = np.asarray(fits.getdata(folder / "hst_wfpc2" / "hst_im_ext3.fits"), dtype=np.float32)
    return np.ascontiguousarray(np.tile(np.nan_to_num(counts) * np.float32(GAIN), (COPIES, COPIES)))


def seconds(methods: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the least time of each method; they take turns, so that other load meets all of them."""
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
    save("clean", {"frame": "WFPC2 u3060301m, chip 3, repeated 2 x 2", "results": results})


if __name__ == "__main__":
    main()
