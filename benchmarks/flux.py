"""Measure accuracy and speed of the extraction of slitless spectra and of the flat-field fit.

``python benchmarks/flux.py`` measures speed on this machine: extracted spectra per second; 12 detectors x 195
wavelengths x 400 stars fitted in one batched call, in a loop over wavelengths with NumPy and with `astropy.modeling`,
on the same bytes; a lazy read of 256 x 256 x 50. ``--closure FOLDER`` measures a flux standard instead: GD153 through
WFC3/IR G141 (``gd153_g141.npz``, see its README). Both write their sections of ``results/flux.json``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from environment import RESULTS, environment, processor, save
from tables.committed import load

from csstdask.evaluation.io import round_floats
from csstdask.flux import extract_spectrum, fit_flat
from csstdask.numerics.polynomials import legendre_products, n_terms
from csstdask.numerics.robust import mad_scale, nan_median

HALF_WIDTH = 4.5
WHOLE = 20.0
"""Half width that holds all rows of a stamp [pixel]."""
RANGE = (11_200.0, 16_600.0)
"""Wavelengths over which the flux standard is compared [Angstrom]."""
STEP = 46.5
"""Bin of the comparison [Angstrom]."""
CURVE = (1.5, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0)
"""Half widths of the curve of enclosed energy [pixel]."""
RESOLUTION = 93.0
"""FWHM of two pixels, to which the model of the star is smoothed [Angstrom]."""


def closure(folder: Path) -> dict[str, Any]:
    """Compare extractions of a flux standard with aXe's, with its model, and with each other."""
    data = np.load(folder / "gd153_g141.npz")
    names = [str(name) for name in data["names"]]
    return {
        "pixel_table": _pixel_table(data, names[0]),
        "stamps": {
            f"{method}, background {'fitted' if fitted else 'not fitted'}": _stamps(data, names, method, fitted)
            for method in ("box", "optimal")
            for fitted in (False, True)
        }
        | {"whole stamp": _stamps(data, names, "box", False, half_width=WHOLE)},
        "axe": _repeatability(data, names, [_axe_spectrum(data, name) for name in names], None),
        "enclosed_energy": _enclosed_energy(data, names),
    }


def _pixel_table(data: Any, name: str) -> dict[str, Any]:
    """Return box sums of detector pixels over aXe's counts."""
    stamp, error, mask, center, wavelength, step = _pixel_stamp(data, name)
    found = extract_spectrum(stamp, error, mask, center=center, method="box", half_width=HALF_WIDTH, background=False)
    ratio = np.interp(data[f"{name}_spc_lambda"], wavelength, found.counts / step)
    ratio = ratio / (data[f"{name}_spc_count"] / data[f"{name}_spc_dlambda"])
    ratio = ratio[_within(data[f"{name}_spc_lambda"])]
    return {
        "counts_over_axe": float(np.median(ratio)),
        "robust_sd_per_bin": float(mad_scale(ratio)),
        "bins": len(ratio),
    }


def _pixel_stamp(data: Any, name: str) -> tuple[Any, ...]:
    """Return the detector pixels of an exposure as a stamp, with the trace and wavelength of its columns."""
    table = {key: data[f"{name}_pet_{key}"] for key in ("p_x", "p_y", "dist", "lambda", "dlambda", "count", "error")}
    left, bottom = table["p_x"].min(), table["p_y"].min()
    shape = int(table["p_y"].max() - bottom + 1), int(table["p_x"].max() - left + 1)
    y, x = table["p_y"] - bottom, table["p_x"] - left
    stamp, error, mask = np.zeros(shape), np.ones(shape), np.ones(shape, dtype=bool)
    stamp[y, x], error[y, x], mask[y, x] = table["count"], table["error"], False
    centers, wavelength = np.zeros(shape[1]), np.zeros(shape[1])
    for column in range(shape[1]):
        of_column = x == column
        centers[column] = np.mean(y[of_column] - table["dist"][of_column])
        order = np.argsort(table["dist"][of_column])
        wavelength[column] = np.interp(0.0, table["dist"][of_column][order], table["lambda"][of_column][order])
    return stamp, error, mask, centers, wavelength, float(np.median(table["dlambda"]))


def _stamps(data: Any, names: list[str], method: Any, fitted: bool, half_width: float = HALF_WIDTH) -> dict[str, Any]:
    """Return spectra of the stamps compared with aXe's and with the model."""
    medians, scatters, spectra = [], [], []
    sigmas = []
    for name in names:
        start, step, row = data[f"{name}_stamp_wave0_dwave_y0"]
        stamp = data[f"{name}_stamp"]
        found = extract_spectrum(stamp, center=-row, method=method, half_width=half_width, background=fitted)
        wavelength = start + step * np.arange(stamp.shape[1])
        of_axe = data[f"{name}_spc_lambda"]
        ratio = np.interp(of_axe, wavelength, found.counts / step)
        ratio = (ratio / (data[f"{name}_spc_count"] / data[f"{name}_spc_dlambda"]))[_within(of_axe)]
        medians.append(float(np.median(ratio)))
        scatters.append(float(mad_scale(ratio)))
        spectra.append((wavelength, found.counts / step))
        sigmas.append(np.interp(_bins(), wavelength, found.sigma / found.counts))
    compared = {
        "counts_over_axe": [min(medians), max(medians)],
        "robust_sd_per_bin_of_axe": [min(scatters), max(scatters)],
    }
    return compared | _repeatability(data, names, spectra, np.array(sigmas))


def _axe_spectrum(data: Any, name: str) -> tuple[Any, Any]:
    return data[f"{name}_spc_lambda"], data[f"{name}_spc_count"] / data[f"{name}_spc_dlambda"]


def _repeatability(data: Any, names: list[str], spectra: list[tuple[Any, Any]], sigma: Any) -> dict[str, Any]:
    """Return flux over the model of the star: its grey factor, shape, and scatter over the exposures.

    Quoted errors are compared with the scatter that is left after a plane over the detector, fitted to all exposures
    but one and evaluated at that one.
    """
    bins = _bins()
    model = np.interp(bins, data["calspec_wave"], _smooth(data["calspec_wave"], data["calspec_flux"]))
    sensitivity = np.interp(bins, data["sens_wave"], data["sens"])
    ratio = np.array([np.interp(bins, *one) for one in spectra]) / (sensitivity * model)
    grey = np.median(ratio, axis=1)
    shape = np.median(ratio, axis=0)  # single bins of an exposure lose up to half of their light in bad pixels
    # pooled over bins: the MAD of eight values alone is noisy, and low
    freedom = np.sqrt(len(ratio) / (len(ratio) - 1))
    per_bin = mad_scale(ratio / shape, center=1.0) * freedom
    own = mad_scale(ratio / grey[:, None] / np.median(ratio / grey[:, None], axis=0), center=1.0) * freedom
    if sigma is None:
        of_axe = [(data[f"{n}_spc_lambda"], data[f"{n}_spc_error"] / data[f"{n}_spc_count"]) for n in names]
        sigma = np.array([np.interp(bins, *one) for one in of_axe])
    left_out, pulls = _left_out(data["xy"], bins, ratio / shape, sigma)
    return {
        "flux_over_model": float(shape.mean()),
        "sd_over_wavelength": float(np.std(shape / shape.mean())),
        "robust_sd_over_wavelength_of_each": [float(mad_scale(one / np.median(one))) for one in ratio],
        "grey_sd": float(np.std(grey / grey.mean(), ddof=1)),
        "robust_sd_per_bin": float(per_bin),
        "robust_sd_per_bin_without_grey": float(own),
        "quoted_error": float(np.median(sigma)),
        "sd_left_out_after_plane": left_out,
        "sd_over_quoted_error_after_plane": pulls,
    }


def _left_out(xy: Any, bins: Any, ratio: Any, sigma: Any) -> tuple[float, float]:
    """Return the robust SD of left-out exposures from a plane through the others, alone and in quoted errors."""
    rest, pulls = [], []
    for index in range(len(ratio)):
        kept = np.arange(len(ratio)) != index
        flat = fit_flat(xy[kept, 0], xy[kept, 1], bins, ratio[kept], 1 / sigma[kept] ** 2, degree=1, shape=(1014, 1014))
        expected = flat.sensitivity * flat.evaluate(*xy[index], bins)
        rest.append(ratio[index] - expected)
        terms = legendre_products(*xy[index], 1, (1014, 1014))
        of_plane = np.einsum(
            "k,wkl,l->w", terms, flat.covariance / np.maximum(flat.scale, 1)[:, None, None] ** 2, terms
        )
        pulls.append(rest[-1] / np.sqrt(sigma[index] ** 2 + of_plane))
    return float(mad_scale(rest, center=0.0)), float(mad_scale(pulls, center=0.0))


def _enclosed_energy(data: Any, names: list[str]) -> dict[str, Any]:
    """Return box sums for some half widths over that of the comparison, without a background."""
    stamp, error, mask, center, wavelength, _ = _pixel_stamp(data, names[0])
    inside = _within(wavelength)
    sums = {}
    for half in CURVE:
        found = extract_spectrum(stamp, error, mask, center=center, method="box", half_width=half, background=False)
        sums[half] = float(nan_median(found.counts[inside]))
    return {f"{half:g}": total / sums[HALF_WIDTH] for half, total in sums.items()}


def _within(wavelength: Any) -> Any:
    return (wavelength > RANGE[0]) & (wavelength < RANGE[1])


def _bins() -> Any:
    """Return the centres of bins that lie in the range."""
    return np.arange(RANGE[0] + STEP / 2, RANGE[1] - STEP / 2, STEP)


def _smooth(wavelength: Any, flux: Any) -> Any:
    """Return a spectrum smoothed to the resolution of the grism."""
    grid = np.arange(RANGE[0] - 1000, RANGE[1] + 1000, 2.0)
    kernel = np.exp(-0.5 * (np.arange(-150, 151) * 2.0 / (RESOLUTION / 2.3548)) ** 2)
    smooth = np.convolve(np.interp(grid, wavelength, flux), kernel / kernel.sum(), mode="same")
    return np.interp(wavelength, grid, smooth)


def _best(call: Callable[[], Any], n: int = 3) -> float:
    """Return the shortest of some times [s]."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def speed(n_stars: int = 400, n_wave: int = 195, n_detectors: int = 12) -> dict[str, Any]:
    """Measure the fit of flats, the lazy read, and extraction."""
    return {"flat": _speed_of_flat(n_stars, n_wave, n_detectors), "extraction": _speed_of_extraction(n_stars)}


def _speed_of_flat(n_stars: int, n_wave: int, n_detectors: int) -> dict[str, Any]:
    rng = np.random.default_rng(24)
    shape, degree, sigma = (9232, 9216), 2, 0.02
    n = n_wave * n_detectors
    x, y = rng.uniform(0, shape[1], (n_stars, n_detectors)), rng.uniform(0, shape[0], (n_stars, n_detectors))
    x, y = np.repeat(x, n_wave, axis=1), np.repeat(y, n_wave, axis=1)
    truth = np.array([1.0, 0.02, -0.01, 0.005, 0.003, -0.004])
    ratio = legendre_products(x, y, degree, shape) @ truth + sigma * rng.normal(size=(n_stars, n))
    weight = np.full(ratio.shape, sigma**-2)
    wavelength = np.arange(1.0, n + 1)

    flat = fit_flat(x, y, wavelength, ratio, weight, degree=degree, shape=shape)
    batched = _best(lambda: fit_flat(x, y, wavelength, ratio, weight, degree=degree, shape=shape))
    start = time.perf_counter()
    looped = np.array([_numpy_fit(x[:, w], y[:, w], ratio[:, w], weight[:, w], degree, shape) for w in range(n)])
    numpy_time = time.perf_counter() - start
    some = range(0, n, max(1, n // 60))
    start = time.perf_counter()
    modelled = np.array([_astropy_fit(x[:, w], y[:, w], ratio[:, w], weight[:, w], degree, shape) for w in some])
    astropy_time = (time.perf_counter() - start) * n / len(some)
    p = n_terms(degree)
    passes = 6
    n_bytes = 8 * 6 * ratio.size
    flops = ratio.size * (2 * (p * (p + 1) + p) + 6 * p + 40)
    array = flat.to_dataarray(chunks=(50, 256, 256))[:50, 1024:1280, 1024:1280]
    array.values  # noqa: B018  the first read imports Dask
    return {
        "samples": ratio.size,
        "batched_s": batched,
        "numpy_loop_s": numpy_time,
        "astropy_loop_s": astropy_time,
        "astropy_fits_measured": len(some),
        "numpy_over_batched": numpy_time / batched,
        "astropy_over_batched": astropy_time / batched,
        "largest_difference_in_sigma": {
            "numpy": float(np.abs((looped - flat.coefficients) / np.sqrt(np.diagonal(flat.covariance, 0, 1, 2))).max()),
            "astropy": float(
                np.abs((modelled - flat.sensitivity[list(some)]) / np.sqrt(flat.sensitivity_variance[list(some)])).max()
            ),
        },
        "robust_passes": passes,
        "bytes_of_one_pass": n_bytes,
        "flop_of_one_pass": flops,
        "gflop_per_s": passes * flops / batched / 1e9,
        "gb_per_s": passes * n_bytes / batched / 1e9,
        "copy_gb_per_s": _copy_rate(),
        "lazy_256_256_50_s": _best(lambda: array.values),
    }


def _copy_rate() -> float:
    """Return the rate at which memory is read and written here, of the floor for one pass [GB/s]."""
    block = np.ones(2**24)
    other = np.empty_like(block)
    return 2 * block.nbytes / _best(lambda: np.copyto(other, block)) / 1e9


def _numpy_fit(x: Any, y: Any, ratio: Any, weight: Any, degree: int, shape: tuple[int, int]) -> Any:
    """Fit one wavelength with the same robust passes."""
    terms = legendre_products(x, y, degree, shape)
    root = np.sqrt(weight)
    robust = np.ones(len(x))
    for step in range(6):
        w = np.sqrt(robust) * root
        found = np.linalg.lstsq(terms * w[:, None], ratio * w, rcond=None)[0]
        z = np.abs(ratio - terms @ found) * root
        z = z / max(float(np.median(z)) / 0.6745, 0.2)
        robust = (
            np.minimum(1, 1.345 / np.maximum(z, 1e-9))
            if step < 2
            else np.where(z < 4.685, (1 - (z / 4.685) ** 2) ** 2, 0)
        )
    return found


def _astropy_fit(x: Any, y: Any, ratio: Any, weight: Any, degree: int, shape: tuple[int, int]) -> float:
    """Fit one wavelength with astropy's polynomials; return the mean over the detector."""
    from astropy.modeling import fitting, models

    u, v = 2 * (x + 0.5) / shape[1] - 1, 2 * (y + 0.5) / shape[0] - 1
    fitter = fitting.FittingWithOutlierRemoval(fitting.LinearLSQFitter(), _clip, niter=5)
    model, _ = fitter(models.Polynomial2D(degree), u, v, ratio, weights=np.sqrt(weight))
    return float(model.c0_0.value + (model.c2_0.value + model.c0_2.value) / 3)


def _clip(values: Any) -> Any:
    from astropy.stats import sigma_clip

    return sigma_clip(values, sigma=4.0, stdfunc="mad_std", maxiters=1)


def _speed_of_extraction(n_stars: int) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from slitless_frame import made_up_seds, render

    from csstdask.flux.extract_frame import extract_frame

    rng = np.random.default_rng(24)
    shape = (4096, 4096)
    x, y = rng.uniform(0, shape[1], n_stars), rng.uniform(0, shape[0], n_stars)
    seds = made_up_seds(n_stars, rng, 10 ** rng.uniform(-17, -15.3, n_stars))
    scene, _ = render(x, y, seds, shape=shape, rng=rng)
    extract_frame(*scene.inputs(), predicted=scene.predicted)
    shortest = _best(lambda: extract_frame(*scene.inputs(), predicted=scene.predicted))
    rows = np.arange(24)[:, None]
    stamp = 1000 * np.exp(-0.5 * (rows - 11.5) ** 2) * np.ones(200) + 20 + rng.normal(0, 5, (24, 200))
    error = np.full(stamp.shape, 6.0)
    one = _best(lambda: extract_spectrum(stamp, error, center=11.5), 5)
    return {
        "stars": n_stars, "frame_s": shortest, "spectra_per_s": n_stars / shortest, "frame_shape": list(shape),
        "one_stamp_s": one,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--closure", type=Path, help="folder with gd153_g141.npz")
    given = parser.parse_args()
    kept = load("flux") if (RESULTS / "flux.json").is_file() else {}
    kept.pop("environment", None)
    if given.closure:
        section = {"closure": closure(given.closure)}
    else:
        section = {"speed": {"processor": processor(), "cores": environment()["cores"], **speed()}}
    save("flux", kept | round_floats(section))


if __name__ == "__main__":
    main()
