"""Libraries of stellar SEDs for slitless mocks: reading, checking and creation.

A library is an ``.npz`` file with ``wavelength`` (m,) [Angstrom, vacuum], ``flux`` (star, m) [any unit of F_lambda],
and labels (star,): ``teff`` [K], ``logg``, ``mh``. Spectra have the resolution R = 200 of the gratings: they are point
samples of a spectrum convolved with the line-spread function, pixel included.

The bundled library consists of the stellar templates of DESI's redrock (BSD-3) above 3180 Angstrom and of ATLAS9 models
(Castelli & Kurucz 2004) with the same labels below 3020 Angstrom, blended linearly in between. It is created by
`benchmarks/sed_library.py`.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from csstdask.core.errors import InputError
from csstdask.numerics.spectral import interpolate_spectrum

Float = npt.NDArray[np.float64]

SHIPPED = "desi-atlas9.npz"
"""File name of the bundled library."""
REFERENCE = (5526.0, 5586.0)
"""Wavelength range whose mean flux is the unit of an SED [Angstrom]."""
RESOLUTION = 200.0
"""Resolution R = wavelength / FWHM of the spectra."""
_GRID_LIMITS = (2500.0, 10500.0)
"""Limits of the wavelength grid [Angstrom]."""
_ARRAYS = ("wavelength", "flux", "teff", "logg", "mh")

_N_STARS = 90
"""Number of stars of the bundled library."""
_LOG_STEP = 5e-5
"""Step in ln(wavelength) of the grid on which templates are convolved."""
_BLEND = (3020.0, 3180.0)
"""Range in which ATLAS9 models and templates are matched and blended [Angstrom]."""


@dataclass(frozen=True)
class SedLibrary:
    """SEDs in units of their mean flux in `REFERENCE`."""

    wavelength: Float
    """Wavelength in vacuum (m,) [Angstrom]."""
    sed: Float
    """Relative flux per wavelength (star, m)."""
    teff: Float
    """Effective temperature (star,) [K]."""
    logg: Float
    """Surface gravity, log10 [cm s-2] (star,)."""
    mh: Float
    """Metallicity [M/H] (star,)."""
    sha256: str
    """SHA-256 of the file."""

    def __len__(self) -> int:
        return len(self.sed)


def sed_grid() -> Float:
    """Return the wavelength grid of SEDs, two samples per resolution element at R = 200 (574,) [Angstrom].

    Examples
    --------
    >>> len(sed_grid())
    574
    """
    n = int(2 * RESOLUTION * np.log(_GRID_LIMITS[1] / _GRID_LIMITS[0]))
    return np.asarray(_GRID_LIMITS[0] * np.exp((np.arange(n) + 0.5) / (2 * RESOLUTION)))


def reference_mean(wavelength: Float, flux: npt.NDArray[Any]) -> Float:
    """Return the mean of spectra (..., m) over the samples in `REFERENCE`."""
    inside = (wavelength >= REFERENCE[0]) & (wavelength <= REFERENCE[1])
    return np.asarray(flux[..., inside].mean(axis=-1), dtype=np.float64)


def find_library(name: str, data: Path | None = None) -> Path:
    """Return the file of an SED library.

    Parameters
    ----------
    name : str
        Absolute path, or name of a file in `data` or of a bundled library.
    data : Path, optional
        Folder of libraries.

    Raises
    ------
    InputError
        If there is no such file.

    Examples
    --------
    >>> find_library("desi-atlas9.npz").name
    'desi-atlas9.npz'
    """
    bundled = Path(__file__).with_name("seds")
    candidates = [Path(name)] if Path(name).is_absolute() else [*([data / name] if data else []), bundled / name]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        known = ", ".join(sorted(path.name for path in bundled.glob("*.npz")))
        wanted = f"a file of SEDs next to the recipe or in --data DIR, or a bundled one: {known}"
        raise InputError(f"slitless.seds = {name!r}", "no such file", wanted)
    return found


def load_library(path: str | Path) -> SedLibrary:
    """Read an SED library.

    Parameters
    ----------
    path : path
        File (``.npz``).

    Raises
    ------
    InputError
        If it cannot be read, lacks an array, or has SEDs that are not finite and positive.
    """
    file = Path(path)
    return _read(file, file.stat().st_mtime_ns if file.is_file() else 0)


@lru_cache(maxsize=4)
def _read(file: Path, _changed: int) -> SedLibrary:
    try:
        content = file.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            missing = [name for name in _ARRAYS if name not in archive]
            arrays = {name: np.asarray(archive[name], dtype=np.float64) for name in _ARRAYS if name in archive}
    except (OSError, ValueError) as error:
        raise InputError(file, f"no library of SEDs ({error})", f"an .npz file of {', '.join(_ARRAYS)}") from None
    if missing:
        raise InputError(file, f"no {', '.join(missing)}", f"an .npz file of {', '.join(_ARRAYS)}")
    wavelength, flux = arrays["wavelength"], arrays["flux"]
    if wavelength.ndim != 1 or flux.ndim != 2 or flux.shape[1:] != wavelength.shape or not len(flux):
        raise InputError(file, f"flux of shape {flux.shape}", f"(star, {wavelength.size}), as wavelength has it")
    if not (np.diff(wavelength) > 0).all():
        raise InputError(file, "wavelengths that do not ascend", "ascending ones [Angstrom]")
    if not (np.isfinite(flux).all() and (flux > 0).all()):
        raise InputError(file, "SEDs with values that are not finite and positive", "positive ones")
    if wavelength[0] > REFERENCE[0] or wavelength[-1] < REFERENCE[1]:
        raise InputError(file, _coverage(wavelength), f"SEDs that cover {REFERENCE[0]:g}-{REFERENCE[1]:g} Angstrom")
    sed = flux / reference_mean(wavelength, flux)[:, None]
    identity = hashlib.sha256(content).hexdigest()
    return SedLibrary(wavelength, sed, arrays["teff"], arrays["logg"], arrays["mh"], identity)


def _coverage(wavelength: Float) -> str:
    """Return the wavelength range of a library, for messages."""
    return f"SEDs from {wavelength[0]:.0f} to {wavelength[-1]:.0f} Angstrom"


def check_coverage(library: SedLibrary, limits: tuple[float, float], band: str, source: object) -> None:
    """Raise InputError unless a library covers the wavelengths of a band [Angstrom]."""
    if library.wavelength[0] > limits[0] or library.wavelength[-1] < limits[1]:
        wanted = f"SEDs that cover {band}, {limits[0]:g}-{limits[1]:g} Angstrom"
        raise InputError(source, _coverage(library.wavelength), wanted)


def make_library(templates: str | Path, atlas: str | Path, *, stars: int = _N_STARS, seed: int = 1) -> dict[str, Any]:
    """Create a library of DESI templates and ATLAS9 models.

    Parameters
    ----------
    templates : path
        File (``.npz``) of the templates: for classes t = A, F, G, K ``basis_t`` (5, pixel), ``coeff_t`` (n, 5),
        ``teff_t``, ``logg_t``, ``mh_t``, ``orig_index_t``, and ``wave0``, ``dwave`` [Angstrom, vacuum].
    atlas : path
        File (``.npz``) of ATLAS9 models: ``wave`` [Angstrom], ``flux`` (model, pixel), ``teff``, ``logg``, ``mh``.
    stars : int
        Number of stars.
    seed : int
        Seed of the choice of templates.

    Returns
    -------
    dict of arrays
        Content of the library file.
    """
    desi, ck04 = np.load(templates), np.load(atlas)
    grid, rng = sed_grid(), np.random.default_rng(seed)
    chosen = _population(desi, rng, stars)
    wave = desi["wave0"] + desi["dwave"] * np.arange(int(desi["nwave"]))
    fluxes, labels = [], []
    for name, row in chosen:
        teff, logg, mh = (float(desi[f"{label}_{name}"][row]) for label in ("teff", "logg", "mh"))
        template = convolve_to_resolution(wave, desi[f"coeff_{name}"][row] @ desi[f"basis_{name}"], grid)
        blue = interpolate_spectrum(ck04["wave"], _interpolate_model(ck04, teff, logg, mh), grid)
        both = (grid >= _BLEND[0]) & (grid <= _BLEND[1])
        blue *= template[both].mean() / blue[both].mean()
        share = np.clip((grid - _BLEND[0]) / (_BLEND[1] - _BLEND[0]), 0, 1)
        flux = np.where(share > 0, share * np.nan_to_num(template), 0) + (1 - share) * blue
        fluxes.append(flux / reference_mean(grid, flux))
        labels.append((teff, logg, mh, name, int(desi[f"orig_index_{name}"][row])))
    teffs, loggs, mhs, classes, rows = zip(*labels, strict=True)
    return {
        "wavelength": grid,
        "flux": np.array(fluxes, dtype=np.float32),
        "teff": np.array(teffs, dtype=np.float32),
        "logg": np.array(loggs, dtype=np.float32),
        "mh": np.array(mhs, dtype=np.float32),
        "template_class": np.array(classes),
        "template_index": np.array(rows, dtype=np.int32),
        "provenance": np.array(
            "Stellar templates rrtemplate-STAR-{A,F,G,K}-v0.1.fits of desihub/redrock-templates (commit 110d448) above "
            "3180 A, ATLAS9 models (Castelli & Kurucz 2004, IAU Symp. 210, A20; public grid of STScI) below 3020 A, "
            "a linear mixture in between. R = 200, vacuum, rest frame, mean 1 in 5526-5586 A. The labels were fitted "
            "to ATLAS9 and are good to some 100 K and 0.5 dex; they are not DESI's."
        ),
        "licence": np.array(
            "Templates: BSD 3-Clause, Copyright (c) 2016-2026, DESI Collaboration; LICENSE-desi-templates.txt"
        ),
    }


def _population(desi: Any, rng: np.random.Generator, stars: int) -> list[tuple[str, int]]:
    """Choose templates: dwarfs and subgiants of disk and halo, and a few giants below 5750 K."""
    names, rows, weights, teffs = [], [], [], []
    for name in "AFGK":
        teff, logg, mh = (desi[f"{label}_{name}"].astype(float) for label in ("teff", "logg", "mh"))
        dwarf = (logg >= 3.5) & (logg <= 5)
        giant = (logg >= 2) & (logg < 3.5) & (teff < 5750)
        usable = (teff >= 5000) & (teff <= 9750) & (mh >= -2) & (dwarf | giant)
        usable &= desi[f"fit_rms_{name}"] < (0.08 if name == "K" else 0.05)
        # [M/H] of the thin disk with a tail towards the halo; giants have a fifth of the weight of dwarfs.
        weight = (np.exp(-0.5 * ((mh + 0.35) / 0.35) ** 2) + 0.08) * np.where(giant, 0.2, 1.0) * usable
        names += [name] * len(teff)
        rows += list(range(len(teff)))
        weights.append(weight)
        teffs.append(teff)
    weight, teff = np.concatenate(weights), np.concatenate(teffs)
    # Equal numbers in each interval of 500 K up to 7500 K, half of that in hotter ones.
    step = np.floor((teff - 4750) / 500).astype(int)
    for number in np.unique(step):
        total = weight[step == number].sum()
        if total > 0:
            weight[step == number] *= (1.0 if number < 6 else 0.5) / total
    chosen = rng.choice(len(weight), stars, replace=False, p=weight / weight.sum())
    return [(names[i], rows[i]) for i in sorted(chosen, key=lambda i: (teff[i], names[i], rows[i]))]


def convolve_to_resolution(wavelength: Float, flux: Float, grid: Float) -> Float:
    """Return point samples of a spectrum convolved to R = `RESOLUTION`; NaN outside its range."""
    step = wavelength[1] - wavelength[0]
    total = np.concatenate([[0.0], np.cumsum(flux * step)])
    edges = np.append(wavelength - step / 2, wavelength[-1] + step / 2)
    fine = np.exp(np.arange(np.log(edges[0]), np.log(edges[-1]), _LOG_STEP))
    means = np.diff(np.interp(fine, edges, total)) / np.diff(fine)
    smooth = gaussian_filter1d(means, 1 / (RESOLUTION * np.sqrt(8 * np.log(2))) / _LOG_STEP, mode="nearest")
    return interpolate_spectrum(np.sqrt(fine[1:] * fine[:-1]), smooth, grid)


def _interpolate_model(ck04: Any, teff: float, logg: float, mh: float) -> Float:
    """Return an ATLAS9 model, interpolated in log flux over Teff and [M/H], at the nearest log g of the grid."""
    metals = np.unique(ck04["mh"])
    position = float(np.interp(mh, metals, np.arange(len(metals))))
    low = min(int(position), len(metals) - 2)
    parts = [_at_metallicity(ck04, teff, logg, float(metal)) for metal in metals[low : low + 2]]
    return np.asarray(np.exp(parts[0] * (1 - position + low) + parts[1] * (position - low)))


def _at_metallicity(ck04: Any, teff: float, logg: float, mh: float) -> Float:
    """Return the log flux of a model of a metallicity in the grid, interpolated over Teff."""
    near = np.abs(ck04["mh"] - mh) < 1e-3
    gravities = np.unique(ck04["logg"][near & (np.abs(ck04["teff"] - teff) <= 250)])
    near &= np.abs(ck04["logg"] - gravities[np.argmin(abs(gravities - logg))]) < 1e-3
    order = np.argsort(ck04["teff"][near])
    temperatures = ck04["teff"][near][order].astype(float)
    flux = np.log(np.maximum(ck04["flux"][near][order].astype(float), 1e-30))
    position = float(np.interp(teff, temperatures, np.arange(len(temperatures))))
    low = min(int(position), len(temperatures) - 2)
    return np.asarray(flux[low] * (1 - position + low) + flux[low + 1] * (position - low))
