"""Time the PSF of a detector, in a separate process, and adaptive moments, and compare them with other software.

* One detector, some 900 stars at S/N 100 (`psf-newoptics`, g), one thread: from stamps and a source table on disk to a
  ``.psf`` file, including star selection. For comparison ``psfex``, from stamps to its ``.psf`` file, its own cuts
  included, at the paper's settings and at those that give its best figures; with ``--piff`` Piff's fit, and the
  errors of its PSFs.
* Adaptive moments of a thousand PSFs, compared with `galsim.hsm`, stamp by stamp.

``python benchmarks/psf_speed.py --piff`` (a quarter of an hour) writes ``results/psf_speed.json``. PSFEx: Debian,
``apt-get install psfex``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import galsim
import numpy as np
from environment import save
from threadpoolctl import threadpool_limits

from csstdask.arrays.moments import adaptive_moments
from csstdask.evaluation.io import round_floats
from csstdask.evaluation.psf.evaluate import SNR, vary_snr
from csstdask.evaluation.psf.measure import PIFF, PSFEX_BEST, PSFEX_SETTINGS, measure_stars
from csstdask.metrics.psf import Stars, draw_stars
from csstdask.mock.recipe import load_recipe
from csstdask.training.psf.psfex import run_psfex, sky_of

STORES = Path(__file__).parent.parent / "stores"
DETECTOR, REPEATS, STAMPS = 8, 3, 1000
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
#: What a user's script does: choose stars, reconstruct, write.
SCRIPT = """
import sys, numpy as np, csstdask
given = dict(np.load(sys.argv[1]))
sources = {name: given[name] for name in ("x", "y", "flux", "flux_err", "half_light_radius", "ellipticity", "flag")}
shape = tuple(given["shape"].tolist())
chosen = csstdask.psf.select_stars(sources, shape)
stars = chosen.fitted | chosen.held_out
found = csstdask.psf.reconstruct(
    given["stamps"][stars], given["detector"][stars], sources["x"][stars], sources["y"][stars],
    error=given["error"][stars], model=sys.argv[3], shape=shape,
)
csstdask.psf.write_psf(sys.argv[2], found.fields[int(given["detector"][0])])
print(int(found.used.sum()))
"""


def source_table(stars: Stars) -> dict[str, Any]:
    """Return the columns that a source extractor measures for isolated stars."""
    sky, _ = sky_of(stars.stamps, stars.mask)
    seen = stars.stamps - np.float32(sky)
    shape = adaptive_moments(seen)
    return {
        "x": stars.x, "y": stars.y, "flux": seen.sum(axis=(1, 2)),
        "flux_err": seen.sum(axis=(1, 2)) / stars.snr, "half_light_radius": 1.1774 * shape.sigma,
        "ellipticity": np.hypot(shape.e1, shape.e2) / 2, "flag": np.zeros(len(stars), np.int32),
    }  # fmt: skip


def seconds(call: Callable[[], Any], repeats: int = 1) -> float:
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return float(np.median(took))


def by_process(stars: Stars, folder: Path, *, piff: bool) -> list[dict[str, Any]]:
    """Return the time of whole processes [s], and the number of stars used."""
    given = folder / "stars.npz"
    planes = {"stamps": stars.stamps, "error": stars.error, "detector": np.full(len(stars), DETECTOR)}
    np.savez(given, shape=stars.shape, **planes, **source_table(stars))
    rows: list[dict[str, Any]] = []
    for model in ("principal", "empirical"):
        command = [sys.executable, "-c", SCRIPT, str(given), str(folder / "ours.psf"), model]
        said: list[str] = []

        def ours(command: list[str] = command, said: list[str] = said) -> None:
            environment = os.environ | ONE_THREAD
            said.append(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)

        took = seconds(ours, REPEATS)
        rows.append({"method": model, "seconds": took, "stars": int(said[-1])})
    sky, noise = sky_of(stars.stamps, stars.mask)
    height = stars.stamps - np.float32(sky)
    for name, settings in (("PSFEx, the paper's settings", PSFEX_SETTINGS), ("PSFEx, its best", PSFEX_BEST)):
        work = folder / name.replace(" ", "-")
        work.mkdir()

        def theirs(work: Path = work, settings: dict[str, Any] = settings) -> None:
            run_psfex(work, height, stars.x, stars.y, noise=noise, **settings)

        rows.append({"method": name, **settings, "seconds": seconds(theirs), "stars": len(stars)})
        print(rows, flush=True)
    if piff:
        rows.append(by_piff(stars))
    return [row | {"times_ours": row["seconds"] / rows[0]["seconds"]} for row in rows]


def by_piff(stars: Stars) -> dict[str, Any]:
    """Return the time of Piff's fit [s] with the settings of its runner, and the errors of its PSFs."""
    row = measure_stars(stars, model="default", psfex=False, piff=True, fewer=False)["methods"][PIFF]
    return {"method": PIFF, "stars": len(stars)} | row


def moments(stars: Stars) -> dict[str, float]:
    """Return stamps per second of our and GalSim's adaptive moments, and their largest difference."""
    images = np.resize(stars.truth, (STAMPS, *stars.truth.shape[1:]))
    views = [galsim.Image(image, scale=1.0) for image in images.astype(np.float64)]
    theirs: list[Any] = []

    def hsm() -> None:
        theirs[:] = [galsim.hsm.FindAdaptiveMom(view, guess_sig=3.0) for view in views]

    adaptive_moments(images[:1], start=3.0)  # compiled
    took = seconds(lambda: adaptive_moments(images, start=3.0), REPEATS)
    peer = seconds(hsm, REPEATS)
    found = adaptive_moments(images, start=3.0)
    away = max(abs(one.moments_sigma - ours) for one, ours in zip(theirs, found.sigma, strict=True))
    return {"stamps_per_s": STAMPS / took, "galsim_stamps_per_s": STAMPS / peer, "ratio": peer / took,
            "most_apart_in_sigma": float(away)}  # fmt: skip


def main() -> None:
    _, recipe = next(vary_snr(load_recipe(STORES / "psf-newoptics.toml"), "newoptics"))
    stars = draw_stars(recipe, 0, DETECTOR)
    with threadpool_limits(1), tempfile.TemporaryDirectory() as folder:
        of_stamps = moments(stars)
        rows = by_process(stars, Path(folder), piff="--piff" in sys.argv)
    save(
        "psf_speed",
        {"detector": DETECTOR, "snr": SNR, "processes": round_floats(rows), "moments": round_floats(of_stamps)},
    )


if __name__ == "__main__":
    main()
