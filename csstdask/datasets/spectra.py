"""Read libraries of stellar spectra: MILES and CALSPEC as arrays (.npz), and files of BOSZ, NGSL and LAMOST.

Wavelengths are converted to vacuum, and to the rest frame where the radial velocity is known, when a file is read.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.datasets.stellar_population import TEFF_RANGE
from csstdask.datasets.template_bank import load_npz
from csstdask.flux.normalised_spectra import moving_average
from csstdask.flux.resampling import degrade
from csstdask.flux.spectral_grids import (
    INPUT_RANGE,
    INPUT_RESOLUTION,
    INPUT_WAVELENGTH,
    LIGHT_SPEED,
    SED_RESOLUTION,
    SED_WAVELENGTH,
    air_to_vacuum,
    normalise_sed,
)
from csstdask.flux.spectrum_files import Spectrum, read_lamost, read_ngsl

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

#: Line-spread function of MILES, full width at half maximum [A].
MILES_FWHM = 2.5
#: CALSPEC spectra from STIS alone are models beyond this wavelength [A].
_CALSPEC_END = 10_100.0
#: Two pixels of the STIS gratings G230LB, G430L and G750L [A], and where they meet [A].
_STIS_FWHM = (2.8, 5.4, 9.8)
_STIS_BREAKS = (3060.0, 5650.0)
#: Names that are not single stars.
_COMPOSITES = ("SUN",)
#: Seed of the split of MILES stars into training and test.
STAR_SEED = 20261130


@dataclass(frozen=True)
class RealStars:
    """Real stars on the grids of the networks.

    Attributes
    ----------
    name : array (n,) of str
        Names of the stars.
    teff, logg, mh : array (n,)
        Effective temperature [K], log g and [M/H].
    flux : float32 array (n, 2238)
        Normalised spectra; NaN where a library has no resolution of R = 2000 (CALSPEC: everywhere).
    fwhm : float32 array (n, 2)
        FWHM of the line-spread function at 4000 and 7000 A [A].
    sed : float32 array (n, 574)
        At R = 200, scaled by the mean flux in 5526-5586 A; NaN where not observed.
    library : str
        Name of the library.
    """

    name: npt.NDArray[np.str_]
    teff: Float
    logg: Float
    mh: Float
    flux: Float32
    fwhm: Float32
    sed: Float32
    library: str

    def __len__(self) -> int:
        return len(self.name)

    def take(self, which: npt.NDArray[Any]) -> RealStars:
        """Select stars by index or mask."""
        parts = {key: getattr(self, key)[which] for key in ("name", "teff", "logg", "mh", "flux", "fwhm", "sed")}
        return RealStars(**parts, library=self.library)

    @property
    def labels(self) -> Float:
        """Return (Teff, log g, [M/H]) of each star (n, 3)."""
        return np.stack([self.teff, self.logg, self.mh], axis=1)


def load_miles(folder: Path) -> RealStars:
    """Read the MILES stars of 5000-9750 K that have all labels, from ``miles.npz``.

    MILES has a constant FWHM of 2.5 A, which is broader than R = 2000 below 5000 A: spectra are degraded to the larger
    of the two.
    """
    arrays = load_npz(folder, "miles")
    keep = np.isfinite(arrays["teff"] + arrays["logg"] + arrays["feh"])
    keep &= (arrays["teff"] >= TEFF_RANGE[0]) & (arrays["teff"] <= TEFF_RANGE[1])
    air = float(arrays["wave0"]) + float(arrays["dwave"]) * np.arange(arrays["flux"].shape[1])
    wave = air_to_vacuum(air)
    flux = _fill_short_gaps(arrays["flux"][keep].astype(float))
    width = np.maximum(INPUT_WAVELENGTH / INPUT_RESOLUTION, MILES_FWHM)
    inputs = degrade(wave, flux, INPUT_WAVELENGTH, INPUT_WAVELENGTH / width, fwhm=MILES_FWHM)
    sed = normalise_sed(degrade(wave, flux, SED_WAVELENGTH, SED_RESOLUTION, fwhm=MILES_FWHM, min_coverage=0.98))
    n = int(keep.sum())
    fwhm = np.tile([MILES_FWHM, INPUT_RANGE[1] / INPUT_RESOLUTION], (n, 1))
    return RealStars(
        name=arrays["name"][keep],
        teff=arrays["teff"][keep].astype(float),
        logg=arrays["logg"][keep].astype(float),
        mh=arrays["feh"][keep].astype(float),
        flux=(inputs / moving_average(inputs)).astype(np.float32),
        fwhm=fwhm.astype(np.float32),
        sed=sed.astype(np.float32),
        library="MILES",
    )


def _fill_short_gaps(flux: Float) -> Float:
    """Interpolate across gaps of up to five pixels."""
    out = flux.copy()
    for row in out:
        missing = ~np.isfinite(row)
        if not missing.any():
            continue
        index = np.flatnonzero(missing)
        for run in np.split(index, np.flatnonzero(np.diff(index) > 1) + 1):
            a, b = run[0] - 1, run[-1] + 1
            if len(run) <= 5 and a >= 0 and b < len(row):
                row[run] = np.interp(run, [a, b], [row[a], row[b]])
    return out


def load_calspec(folder: Path) -> RealStars:
    """Read the CALSPEC stars of 5000-9750 K from ``calspec.npz``, at rest; P330E from ``p330e_003.npz``.

    Spectra are divided by 1 + v/c; pixels beyond 10100 A are models and become NaN. STIS cannot give R = 2000:
    ``flux`` is NaN, and `csstdask.datasets.gaussian_process` makes inputs from the labels (appendix C).
    """
    arrays = load_npz(folder, "calspec")
    better = load_npz(folder, "p330e_003")
    names = arrays["name"]
    keep = (arrays["teff_fit"] >= TEFF_RANGE[0]) & (arrays["teff_fit"] <= TEFF_RANGE[1]) & ~np.isin(names, _COMPOSITES)
    seds = []
    for i in np.flatnonzero(keep):
        part = slice(arrays["offsets"][i], arrays["offsets"][i + 1])
        wave, flux = arrays["wave"][part].astype(float), arrays["flux"][part].astype(float)
        if names[i] == "P330E":
            wave, flux = better["wavelength"].astype(float), better["flux"].astype(float)
        velocity = arrays["rv_kms"][i] if np.isfinite(arrays["rv_kms"][i]) else 0.0
        seds.append(_calspec_sed(wave / (1 + float(velocity) / LIGHT_SPEED), flux))
    n = int(keep.sum())
    return RealStars(
        name=names[keep],
        teff=arrays["teff_fit"][keep].astype(float),
        logg=arrays["logg_fit"][keep].astype(float),
        mh=arrays["mh_fit"][keep].astype(float),
        flux=np.full((n, len(INPUT_WAVELENGTH)), np.nan, dtype=np.float32),
        fwhm=np.tile(np.array(INPUT_RANGE) / INPUT_RESOLUTION, (n, 1)).astype(np.float32),
        sed=np.array(seds, dtype=np.float32),
        library="CALSPEC",
    )


def _calspec_sed(wave: Float, flux: Float) -> Float:
    """Return the SED (574,) of an observed CALSPEC spectrum."""
    keep = np.isfinite(flux) & (flux > 0) & (wave <= _CALSPEC_END)
    order = np.flatnonzero(keep)[np.argsort(wave[keep], kind="stable")]
    order = order[np.concatenate([[True], np.diff(wave[order]) > 0])]
    wave, flux = wave[order], flux[order]
    fwhm = np.select([wave < _STIS_BREAKS[0], wave < _STIS_BREAKS[1]], _STIS_FWHM[:2], _STIS_FWHM[2])
    return normalise_sed(degrade(wave, flux, SED_WAVELENGTH, SED_RESOLUTION, fwhm=fwhm, min_coverage=0.95))


def star_key(name: str) -> str:
    """Return a name that identifies the same star in MILES and CALSPEC.

    Examples
    --------
    >>> star_key("BD02D3375"), star_key("BD+023375"), star_key("HD 037725")
    ('BD+2 3375', 'BD+2 3375', 'HD 37725')
    """
    bare = name.upper().replace(" ", "")
    if found := re.match(r"HD0*(\d+)", bare):
        return f"HD {found[1]}"
    if found := re.match(r"BD([+-]?)(\d\d?)D(\d+)", bare) or re.match(r"BD([+-])(\d\d)0*(\d+)", bare):
        return f"BD{found[1] or '+'}{int(found[2])} {int(found[3])}"
    return bare


def split_by_star(stars: RealStars, test_share: float = 0.4, seed: int = STAR_SEED) -> npt.NDArray[np.bool_]:
    """Return which stars are test stars (n,), a random choice by name."""
    keys = np.array([star_key(str(name)) for name in stars.name])
    unique = np.unique(keys)
    chosen = np.random.default_rng(seed).permutation(unique)[: round(test_share * len(unique))]
    return np.isin(keys, chosen)


_BOSZ_2024 = re.compile(
    r"bosz2024_(?P<atmosphere>mp|ms|ap)_t(?P<teff>\d+)_g(?P<logg>[+-][\d.]+)_m(?P<mh>[+-][\d.]+)_a(?P<alpha>[+-][\d.]+)"
    r"_c(?P<carbon>[+-][\d.]+)_v(?P<vmicro>[\d.]+)_r(?P<resolution>\w+?)_(?:resam|noresam|lineid)?\.?txt(?:\.gz)?$"
)


def read_bosz(path: Path, wavelength_file: Path | None = None) -> Spectrum:
    """Read a spectrum of BOSZ 2024 (MAST), ``bosz2024_<atmosphere>_t..._r2000_resam.txt.gz``.

    Its two columns are flux and continuum; the flux is the Eddington flux H, and F = 4 pi H is returned. Wavelengths
    (vacuum) are in a separate file, by default ``bosz2024_wave_r<resolution>.txt`` in the same folder.

    Raises
    ------
    InputError
        If the name or the columns are not those of BOSZ 2024, or the wavelengths are missing.
    """
    found = _BOSZ_2024.match(path.name)
    if found is None:
        raise InputError(
            path, "a name that is not of BOSZ 2024", "bosz2024_<atmosphere>_t..._r<resolution>_resam.txt.gz"
        )
    wavelengths = wavelength_file or path.with_name(f"bosz2024_wave_r{found['resolution']}.txt")
    wave, table = _columns(wavelengths)[:, 0], _columns(path)
    if table.shape != (len(wave), 2):
        raise InputError(
            path, f"a table of shape {table.shape}", f"({len(wave)}, 2), as {wavelengths.name} has wavelengths"
        )
    labels = {key: float(found[key]) for key in ("teff", "logg", "mh", "alpha", "carbon", "vmicro")}
    return Spectrum(path.name, wave, 4 * np.pi * table[:, 0], labels=labels)


def _columns(path: Path) -> Float:
    """Return the columns of a text file (row, column), which may be compressed."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = [line.split() for line in raw.decode("ascii").splitlines() if line.strip() and not line.startswith("#")]
        return np.array(rows, dtype=float)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(path, f"no readable columns of numbers ({error})", "a file of BOSZ 2024") from None


__all__ = [
    "RealStars", "Spectrum", "load_calspec", "load_miles", "read_bosz", "read_lamost", "read_ngsl", "split_by_star",
    "star_key",
]  # fmt: skip
