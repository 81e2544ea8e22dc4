"""Measure the cost of a mock detector, and compare it with GalSim for the same objects.

* One full detector, 9232 x 9216, after three years in orbit, with about 20,000 objects and 2.5 % of the pixels hit:
  time and memory of a separate process with one thread, then of two at once on two cores; in g, and in the near
  ultraviolet, whose PSFs need the finest sampling.
* The same bytes for one and two workers, threads and processes.
* Stars and galaxies, compared with GalSim: the same catalogue and PSF image, drawn with `drawImage` object by object.
* Optics, compared with GalSim's `OpticalPSF`: effective PSFs at one position, both computed exactly.

``python benchmarks/mock.py`` writes ``results/mock.json`` (some ten minutes). GalSim: ``pip install '.[peers]'``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import save

SHAPE = (9232, 9216)
DETECTORS = {"g": 8, "NUV": 13}
#: Objects drawn beside GalSim.
OBJECTS = 300


def recipe() -> Any:
    from csstdask.mock import Recipe

    sky = {"stars_per_mpix": 85.0, "galaxies_per_mpix": 150.0}
    return Recipe.model_validate({"name": "full", "seed": 77, "shape": SHAPE, "epoch": 3.0, "sky": sky})


def one_detector(detector: int) -> None:
    """Render in this process, and print time and memory as JSON."""
    from csstdask.instrument import load_instrument
    from csstdask.mock import Recipe, render_unit

    instrument = load_instrument("csst")
    small = recipe().model_copy(update={"shape": (128, 128)})
    render_unit(Recipe.model_validate(small.model_dump()), instrument, 0, detector)  # compile
    before, start = os.times(), time.perf_counter()
    unit = render_unit(recipe(), instrument, 0, detector)
    seconds, after = time.perf_counter() - start, os.times()
    objects, hit, size = len(unit.catalogue), float((unit.truth_cr > 0).mean()), unit.sci.size
    del unit
    again = time.perf_counter()
    render_unit(recipe(), instrument, 1, detector)
    again = time.perf_counter() - again
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {
        "seconds": round(seconds, 1),
        "user_seconds": round(after.user - before.user, 1),
        "system_seconds": round(after.system - before.system, 1),
        "seconds_again": round(again, 1),
        "peak_gib": round(peak, 2),
        "objects": objects,
        "hit_share": round(hit, 4),
        "bytes_a_pixel": round(peak * 2**30 / size, 1),
    }
    print(json.dumps(found))


def full_detectors() -> list[dict[str, Any]]:
    rows = []
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    for band, detector in DETECTORS.items():
        for at_once in (1, 2):
            command = [sys.executable, __file__, "--detector", str(detector)]
            environment = os.environ | threads
            start = time.perf_counter()
            running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(at_once)]
            found = [json.loads(process.communicate()[0]) for process in running]
            wall = time.perf_counter() - start
            slowest = max(found, key=lambda one: one["seconds"])
            rows.append({"band": band, "at_once": at_once, **slowest, "seconds_each": slowest["seconds"] / at_once})
            print(rows[-1], f"{wall:.0f} s with start", flush=True)
    return rows


def same_bytes() -> dict[str, Any]:
    """Return digests of a campaign made by one and by two workers, in threads and in processes."""
    import xarray as xr

    from csstdask.mock import Recipe
    from csstdask.pipeline.mock_survey import mock

    small = Recipe(name="same", seed=5, exposures=2, detectors=(8, 13), shape=(256, 256), epoch=2.0)
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        for scheduler, workers in (("threads", 1), ("threads", 2), ("processes", 2)):
            path = Path(folder) / f"{scheduler}{workers}.zarr"
            mock(small, path, scheduler=scheduler, workers=workers)
            total = hashlib.sha256()
            for group, names in (("", ("sci", "wht", "flag")), ("truth", ("sci", "cr"))):
                store = xr.open_zarr(path, group=group or None)
                for name in names:
                    total.update(store[name].values.tobytes())
            digests[f"{workers} x {scheduler}"] = total.hexdigest()[:16]
    return {"digests": digests, "alike": len(set(digests.values())) == 1}


def beside_galsim() -> dict[str, Any]:
    import galsim
    from threadpoolctl import threadpool_limits

    from csstdask.instrument import load_instrument
    from csstdask.mock.psf import PsfModel, sub_band_weights
    from csstdask.mock.recipe_tables import Optics, Sky
    from csstdask.mock.scene import draw_scene
    from csstdask.mock.scene_psf import FixedPsf, InterpolatedPsf, Window
    from csstdask.mock.sky import draw_sky
    from csstdask.mock.stamps import cut_stamps

    instrument = load_instrument("csst")
    model, shape = PsfModel(Optics(), instrument), (1024, 1024)
    window = Window.of(shape, instrument)
    sky = draw_sky(np.random.default_rng(5), Sky(large_galaxies_per_mpix=0), shape, margin=-60)
    chosen = sky.select(np.random.default_rng(6).permutation(len(sky))[:OBJECTS])
    weights = sub_band_weights(model.limits(8), chosen.temperature)
    core = model.cores(8, [4608], [4616], 2)[0]
    with threadpool_limits(1):
        varying = InterpolatedPsf(model, 8, window)
        fixed = FixedPsf(core, model.sampling(8))
        draw_scene(chosen, weights, shape, varying)
        start = time.perf_counter()
        draw_scene(chosen, weights, shape, varying)
        with_varying = time.perf_counter() - start
        start = time.perf_counter()
        ours = draw_scene(chosen, weights, shape, fixed)
        with_fixed = time.perf_counter() - start
        fine = model.sampling(8).fine
        psf = galsim.InterpolatedImage(
            galsim.Image(core[1:, 1:].astype(float)), scale=1 / fine, flux=core.sum() / fine**2, x_interpolant="quintic"
        )
        start = time.perf_counter()
        theirs = galsim.ImageF(shape[1], shape[0])
        for i in range(len(chosen)):
            draw_with_galsim(galsim, chosen, i, psf, theirs)
        peer = time.perf_counter() - start
    from csstdask.arrays.moments import adaptive_moments

    bright = np.argsort(chosen.flux)[-20:]
    stamps = [cut_stamps(image, chosen.x[bright], chosen.y[bright], 48) for image in (ours, theirs.array)]
    sizes = [adaptive_moments(stamp.astype(float)).sigma for stamp in stamps]
    return {
        "objects": len(chosen),
        "galsim_ms_each": round(1e3 * peer / len(chosen), 3),
        "csstdask_ms_each": round(1e3 * with_varying / len(chosen), 3),
        "csstdask_fixed_psf_ms_each": round(1e3 * with_fixed / len(chosen), 3),
        "galsim_over_csstdask": round(peer / with_varying, 1),
        "median_size_difference": float(f"{np.nanmedian(abs(sizes[0] / sizes[1] - 1)):.1e}"),
    }


def draw_with_galsim(galsim: Any, catalogue: Any, i: int, psf: Any, image: Any) -> None:
    flux, size = float(catalogue.flux[i]), 64
    position = galsim.PositionD(float(catalogue.x[i]) + 1, float(catalogue.y[i]) + 1)
    profile = psf.withScaledFlux(flux)
    if not catalogue.is_star[i]:
        bulge, ratio = float(catalogue.bulge_share[i]), float(catalogue.axis_ratio[i])
        parts = [galsim.Exponential(half_light_radius=float(catalogue.half_light_radius[i])) * (1 - bulge)]
        if bulge:
            parts.append(galsim.DeVaucouleurs(half_light_radius=float(catalogue.bulge_radius[i])) * bulge)
            size = 128
        squeezed = galsim.Add([part.transform(1, 0, 0, ratio) / ratio for part in parts])
        shape = squeezed.rotate(float(catalogue.angle[i]) * galsim.radians) * flux
        profile = galsim.Convolve(shape, psf)
    x, y = round(position.x), round(position.y)
    bounds = galsim.BoundsI(x - size // 2, x + size // 2 - 1, y - size // 2, y + size // 2 - 1) & image.bounds
    profile.drawImage(image=image[bounds], scale=1.0, center=position, method="no_pixel", add_to_image=True)


def optics_beside_galsim() -> dict[str, Any]:
    import galsim
    from threadpoolctl import threadpool_limits

    from csstdask.instrument import load_instrument
    from csstdask.mock.optics import CORE
    from csstdask.mock.psf import PsfModel, sub_band_wavelengths
    from csstdask.mock.recipe_tables import Optics

    model = PsfModel(Optics(), load_instrument("csst"))
    detector, wavelength = 8, float(sub_band_wavelengths(model.limits(8))[2])
    rng = np.random.default_rng(8)
    x, y = rng.uniform(0, 9215, (2, 32))
    coefficients = model.wavefront.coefficients(detector, x, y)
    with threadpool_limits(1):
        model.cores(detector, x[:8], y[:8], 2)
        start = time.perf_counter()
        model.cores(detector, x, y, 2)
        ours = (time.perf_counter() - start) / len(x)
        start = time.perf_counter()
        for one in coefficients[:8]:
            optical = galsim.OpticalPSF(lam=wavelength, diam=2.0, aberrations=[0.0] * 4 + list(one / wavelength))
            jitter = galsim.Gaussian(sigma=0.033)
            whole = galsim.Convolve(optical, jitter, galsim.Gaussian(sigma=0.25 * 0.074), galsim.Pixel(0.074))
            side = CORE * model.sampling(detector).fine
            whole.drawImage(nx=side, ny=side, scale=0.074 / model.sampling(detector).fine, method="no_pixel")
        peer = (time.perf_counter() - start) / 8
    return {
        "galsim_ms_each": round(1e3 * peer, 1),
        "csstdask_ms_each": round(1e3 * ours, 2),
        "galsim_over_csstdask": round(peer / ours, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--detector", type=int, help="render this one alone, in this process")
    chosen = parser.parse_args()
    if chosen.detector is not None:
        one_detector(chosen.detector)
        return
    result = {
        "objects": beside_galsim(),
        "optics": optics_beside_galsim(),
        "same_bytes": same_bytes(),
        "full_detector": full_detectors(),
    }
    save("mock", result)


if __name__ == "__main__":
    main()
