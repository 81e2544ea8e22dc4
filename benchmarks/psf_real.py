"""Compare PSFs of cameras that csstdask has never simulated with PSFEx and Piff, on the same stars.

* CFHT WIRCam, one field at three epochs in H2, and one in J: a fifth of the stars, in separate cells of the
  detector, is held out for the comparison. The truth is unknown.
* WFC3/UVIS F606W: 900 stars at S/N 100, drawn with noise from STScI's grid of effective PSFs (Anderson 2016, WFC3 ISR
  2016-12), which is the truth.

``python benchmarks/psf_real.py FOLDER`` writes ``results/psf_real.json``; FOLDER holds ``cfht_wircam`` and ``stdpsf``.
Ours is ``empirical``, whose degree was chosen on that grid and whose other settings on mock stars and the first frame.
PSFEx is shown with the settings that agree best with held-out stars or the truth; Piff (frames only) with one setting.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from environment import save
from scipy.ndimage import map_coordinates
from threadpoolctl import threadpool_limits

from csstdask.arrays.background import estimate_background
from csstdask.arrays.sources import measure_sources
from csstdask.core.warnings import suppress_warnings
from csstdask.evaluation.baselines.piff import run_piff
from csstdask.evaluation.io import round_floats
from csstdask.instrument import load_instrument
from csstdask.metrics.held_out_stars import compare_with_stars
from csstdask.metrics.psf import Stars, psf_errors, psf_pulls
from csstdask.psf import reconstruct, select_stars
from csstdask.psf.frame import cut_star_stamps
from csstdask.training.psf.psfex import psfex_at_stars, run_psfex

#: Of PSFEx: BASIS_NUMBER and degree, for a frame's stars and for the grid's, of which there are more; of Piff, samples
#: along the edge of its grid, two a pixel, and degree: more of either takes it many minutes.
PSFEX = tuple({"basis_number": number, "degree": degree} for number, degree in ((10, 1), (10, 2), (10, 3), (20, 2)))
OF_GRID = tuple({"basis_number": number, "degree": degree} for number, degree in ((10, 3), (20, 3), (20, 4)))
PIFF = ({"side": 17, "degree": 1},)
#: Smallest S/N of stars; counts above which a pixel is not linear; side of the boxes of the sky [pixel].
LEAST_SNR, FULL, BOX = 20.0, 25000.0, 64
#: The stars of the grid: how many, their S/N, their sky and read-out [e-], and the first chip's rows.
DRAWN, SNR, NOISE, ROWS = 900, 100.0, 6.0, 4
#: Stars in reserve above such an S/N tell the PSF from noise.
BRIGHT = 50.0


def wircam(path: Path) -> tuple[Any, Any]:
    """Return the fitted and the held-out stars of a frame: stamps, variances, x, y."""
    camera = load_instrument("cfht_wircam")
    gain, bias = camera.electronics.gain, camera.electronics.bias_level
    counts = fits.getdata(path, 1).astype(np.float32)
    mask = (counts == 0) | (counts > FULL)
    electrons = (counts - np.float32(bias)) * np.float32(gain)
    mesh = estimate_background(electrons, mask, box=BOX)
    height, noise = electrons - mesh.background_at(), mesh.noise_at().astype(np.float32)
    error = np.sqrt(noise**2 + np.maximum(height, 0)).astype(np.float32)
    sources = measure_sources(height, error, noise, mask)
    full = (FULL - bias) * gain
    stars = select_stars(sources, height.shape, min_snr=LEAST_SNR, saturation=full)
    parts = []
    for chosen in (stars.fitted, stars.held_out):
        x, y = (sources[name][chosen] for name in ("x", "y"))
        parts.append((*cut_star_stamps(height, error, mask, x, y), x, y))
    return parts[0], parts[1]


def by_ours(shape: tuple[int, int], given: Any, asked: Any) -> Any:
    """Return PSFs at the requested stars, fitted to the given ones."""
    pixels, variance, x, y = given
    found = reconstruct(pixels, np.ones(len(x)), x, y, error=np.sqrt(variance), model="empirical", shape=shape)
    return found.fields[1](*asked[2:])[0]


def by_psfex(settings: dict[str, Any], given: Any, asked: Any) -> Any:
    """Return PSFs of PSFEx."""
    pixels, variance, x, y = given
    noise = float(np.sqrt(np.median(variance[np.isfinite(variance)])))
    with tempfile.TemporaryDirectory() as folder:
        fitted = run_psfex(Path(folder), pixels, x, y, mask=~np.isfinite(variance), noise=noise, **settings)
    return fitted(*asked[2:])


def by_piff(settings: dict[str, Any], given: Any, asked: Any) -> Any:
    """Return PSFs of Piff."""
    return run_piff(*given, **settings)(*asked[2:])


def methods(shape: tuple[int, int]) -> Iterator[tuple[str, dict[str, Any], Callable[[Any, Any], Any]]]:
    """Yield the methods: name, settings, and the function that returns PSFs."""
    yield "empirical", {}, partial(by_ours, shape)
    yield from (("PSFEx", settings, partial(by_psfex, settings)) for settings in PSFEX)
    yield from (("Piff", settings, partial(by_piff, settings)) for settings in PIFF)


def judged(image: Any, asked: Any, bright: Any) -> dict[str, float]:
    """Compare PSFs with held-out stars, and with the bright ones among them."""
    found = compare_with_stars(image, *asked)
    row = {"chi2": float(np.nanmedian(found["chi2"])), "chi2_bright": float(np.nanmedian(found["chi2"][bright]))}
    for name in ("size", "e1", "e2"):
        values = found[name][bright & np.isfinite(found[name])]
        row |= {f"{name}_mean": float(values.mean()), f"{name}_sd": float(values.std())}
    return row | {"bright": int(bright.sum())}


def grid(path: Path) -> Stars:
    """Return stars drawn from STScI's grid of PSFs, on the chip of its lower rows."""
    with suppress_warnings(), fits.open(path, ignore_missing_end=True) as hdus:
        header, psfs = hdus[0].header, np.asarray(hdus[0].data, dtype=float)
    columns = int(header["NXPSFS"])
    steps = (np.arange(psfs.shape[-1]) - psfs.shape[-1] // 2) / 4
    psfs = np.where(np.hypot(steps[:, None], steps) < 12.5, psfs, 0)  # outside, some hold what is no PSF
    psfs = (psfs / psfs.sum(axis=(1, 2), keepdims=True) * 16).reshape(-1, columns, *psfs.shape[1:])[:ROWS]
    at_x, at_y = (np.array([header[f"{key}{i + 1:02d}"] for i in range(count)]) for key, count in
                  (("IPSFX", columns), ("JPSFY", ROWS)))  # fmt: skip
    rng = np.random.default_rng(20261128)
    x, y = (rng.uniform(16, places[-1] - 17, DRAWN) for places in (at_x, at_y))
    stamps, truth = np.empty((DRAWN, 32, 32), np.float32), np.empty((DRAWN, 64, 64), np.float32)
    error = np.empty_like(stamps)
    pixel, half = np.arange(32) - 16.0, (np.arange(64) - 32) / 2
    for i in range(DRAWN):
        (j, v), (k, u) = (
            (cell, (place - nodes[cell]) / (nodes[cell + 1] - nodes[cell]))
            for place, nodes in ((y[i], at_y), (x[i], at_x))
            for cell in [int(np.searchsorted(nodes[1:-1], place))]
        )
        shares = ((1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u)
        psf = sum(w * psfs[j + a, k + b] for w, (a, b) in zip(shares, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True))
        centre = psf.shape[-1] // 2

        def at(rows: Any, across: Any, psf: Any = psf, centre: int = centre) -> Any:
            places = np.meshgrid(rows * 4 + centre, across * 4 + centre, indexing="ij")
            return np.maximum(map_coordinates(psf, places, order=3), 0)

        off_x, off_y = (place - np.floor(place + 0.5) for place in (x[i], y[i]))
        seen, true = at(pixel - off_y, pixel - off_x), at(half, half)
        truth[i] = true / true.sum()
        flux = _flux_of(seen)
        light = flux * seen
        error[i] = np.sqrt(light + NOISE**2)
        stamps[i] = rng.poisson(light) + rng.normal(0, NOISE, light.shape)
    nothing = np.zeros(stamps.shape, bool)
    shape = (int(at_y[-1]), int(at_x[-1]))
    alike = np.full(DRAWN, 5800.0)
    return Stars(1, "F606W", shape, stamps, error, nothing, x, y, np.full(DRAWN, SNR), alike, truth)


def _flux_of(plain: Any) -> float:
    """Return the flux [e-] whose S/N in an optimal sum is `SNR`."""
    low, high = 1.0, 1e9
    while high / low > 1 + 1e-6:
        flux = float(np.sqrt(low * high))
        snr = np.sqrt((flux**2 * plain**2 / (flux * plain + NOISE**2)).sum())
        low, high = (flux, high) if snr < SNR else (low, flux)
    return low


def best(rows: list[dict[str, Any]], key: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
    """Return the best row of each method by a metric, and the number of settings that were tried."""
    names = dict.fromkeys(row["method"] for row in rows)
    return [
        min(tried, key=key) | {"tried": len(tried)}
        for tried in ([row for row in rows if row["method"] == name] for name in names)
    ]


def of_frame(path: Path) -> dict[str, Any]:
    """Compare the methods on a frame."""
    given, asked = wircam(path)
    rows, bright = [], None
    for name, settings, make in methods(fits.getdata(path, 1).shape):
        start = time.perf_counter()
        image = make(given, asked)
        took = time.perf_counter() - start
        bright = (
            compare_with_stars(image, *asked)["snr"] > BRIGHT if bright is None else bright
        )  # the same stars for all
        rows.append({"method": name, **settings, **judged(image, asked, bright), "seconds": took})
        print(path.name, rows[-1], flush=True)
    return {
        "frame": path.name, "fitted": len(given[2]), "reserve": len(asked[2]),
        "methods": best(rows, lambda row: row["chi2_bright"]),
    }  # fmt: skip


def of_grid(path: Path) -> dict[str, Any]:
    """Compare the methods on stars of a grid."""
    stars = grid(path)
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    found = reconstruct(
        stars.stamps, np.ones(DRAWN), stars.x, stars.y, error=stars.error, model="empirical", shape=stars.shape
    )
    took = time.perf_counter() - start
    pull = psf_pulls(found.image, found.sigma, stars.truth)
    rows.append(_true_row("empirical", {}, found.image, stars, took) | {"pull_sd": float(pull.std())})
    for settings in OF_GRID:
        start = time.perf_counter()
        image = psfex_at_stars(stars.stamps, stars.mask, stars.x, stars.y, **settings)
        rows.append(_true_row("PSFEx", settings, image, stars, time.perf_counter() - start))
    return {"stars": DRAWN, "snr": SNR, "methods": best(rows, lambda row: -row["psnr"])}


def _true_row(name: str, settings: dict[str, Any], image: Any, stars: Stars, seconds: float) -> dict[str, Any]:
    errors = psf_errors(image, stars.truth)
    row = {"method": name, **settings, "psnr": float(errors["psnr"].mean()), "ssim": float(errors["ssim"].mean())}
    for what in ("size", "e1", "e2"):
        row |= {f"{what}_mean": float(np.nanmean(errors[what])), f"{what}_sd": float(np.nanstd(errors[what]))}
    print(row | {"seconds": seconds}, flush=True)
    return row | {"seconds": seconds}


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("wanted a folder with cfht_wircam and stdpsf")
    folder = Path(sys.argv[1])
    with threadpool_limits(1):
        drawn = of_grid(next((folder / "stdpsf").glob("*.fits")))
        save("psf_real", {"stdpsf": round_floats(drawn), "wircam": []})
        frames = [of_frame(path) for path in sorted((folder / "cfht_wircam").glob("*.fits.fz"))]
    save("psf_real", {"stdpsf": round_floats(drawn), "wircam": round_floats(frames)})


if __name__ == "__main__":
    main()
