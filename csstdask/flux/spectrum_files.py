"""Read spectra of stars from FITS: LAMOST in both layouts, NGSL, and tables with WAVELENGTH and FLUX."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.flux.spectral_grids import air_to_vacuum, to_vacuum

Float = npt.NDArray[np.float64]

#: Range of plausible stellar redshifts; LAMOST writes -9999 where it has none.
_STELLAR_REDSHIFTS = (-0.01, 0.01)
#: Possible names of the error column in plain tables.
_ERROR_COLUMNS = ("ERROR", "ERR", "SIGMA", "STATERR", "STATERROR")


@dataclass(frozen=True)
class Spectrum:
    """One spectrum of a file, in vacuum wavelengths.

    Attributes
    ----------
    name : str
        Name of the star.
    wavelength : array (pixel,)
        Vacuum wavelengths [A].
    flux : array (pixel,)
        Flux densities per Angstrom; NaN where data are missing.
    error : array (pixel,) or None
        1 sigma; inf for pixels to ignore.
    labels : dict
        Labels of the star in the file: ``teff``, ``logg``, ``mh``, ``redshift`` ...
    resolution : float, optional
        Resolving power of the format; None where the format does not fix it.
    """

    name: str
    wavelength: Float
    flux: Float
    error: Float | None = None
    labels: dict[str, float] = field(default_factory=dict)
    resolution: float | None = None


LAMOST_RESOLUTION = 1800.0
"""Resolving power of LAMOST's low-resolution spectra."""
NGSL_RESOLUTION = 740.0
"""Resolving power of STIS G430L in mid-band."""


def read_spectrum(path: Path, *, medium: str | None = None) -> Spectrum:
    """Read a spectrum from a FITS file.

    Wavelengths are converted to vacuum. LAMOST spectra are shifted to the rest frame of the star by the redshift Z of
    the header; spectra of other formats are assumed to be at rest.

    Parameters
    ----------
    path : Path
        LAMOST (table ``COADD``, or an image whose rows are flux, inverse variance and wavelength; vacuum), NGSL
        (``h_stis_ngsl_*``; air), or any table with the columns WAVELENGTH and FLUX, and optionally an error.
    medium : str, optional
        Medium of the file's wavelengths; by default that of its format, and vacuum for plain tables.

    Raises
    ------
    InputError
        If the file has none of these formats, or a LAMOST file has no usable Z.
    """
    with open_fits(path) as hdus:
        image = hdus[0].data
        lamost = image is not None and image.ndim == 2 and len(image) >= 3
        columns = [set(_names(hdu)) for hdu in hdus]
    if lamost or any({"FLUX", "IVAR", "WAVELENGTH"} <= one for one in columns):
        return read_lamost(path, medium=medium or "vacuum")
    if path.name.lower().startswith("h_stis_ngsl"):
        return read_ngsl(path, medium=medium or "air")
    return _read_table(path, medium or "vacuum")


def _names(hdu: Any) -> list[str]:
    return [name.upper() for name in hdu.columns.names] if isinstance(hdu, fits.BinTableHDU) else []


def _read_table(path: Path, medium: str) -> Spectrum:
    with open_fits(path) as hdus:
        table = find_table(path, hdus, ("WAVELENGTH", "FLUX"))
        names = {name.upper() for name in table.names}
        wave, flux = (read_column(table, name) for name in ("WAVELENGTH", "FLUX"))
        given = [name for name in _ERROR_COLUMNS if name in names]
        error = read_column(table, given[0]) if given else None
        name = str(hdus[0].header.get("OBJECT", path.name.split(".")[0]))
    return Spectrum(name, to_vacuum(wave, medium), flux, error)


def read_ngsl(path: Path, *, medium: str = "air") -> Spectrum:
    """Read an NGSL spectrum, ``h_stis_ngsl_<star>_v2.fits``; statistical and systematic errors are combined."""
    with open_fits(path) as hdus:
        table = find_table(path, hdus, ("WAVELENGTH", "FLUX"))
        wave, flux = (read_column(table, name) for name in ("WAVELENGTH", "FLUX"))
        present = [name for name in ("STATERR", "SYSERR") if name in {one.upper() for one in table.names}]
        variance = sum((read_column(table, name) ** 2 for name in present), np.zeros(len(wave)))
    good = flux > 0
    error = np.where(good & (variance > 0), np.sqrt(variance), np.inf) if present else None
    name = re.sub(r"^h_stis_ngsl_|_v\d+$", "", path.name.removesuffix(".gz").removesuffix(".fits"))
    vacuum = air_to_vacuum(wave) if medium == "air" else to_vacuum(wave, medium)
    return Spectrum(name, vacuum, np.where(good, flux, np.nan), error, resolution=NGSL_RESOLUTION)


def read_lamost(path: Path, *, medium: str = "vacuum", rest_frame: bool = True) -> Spectrum:
    """Read a LAMOST low-resolution spectrum in either layout.

    Since DR7 the table ``COADD`` has one row of arrays; before, the primary image has rows flux, inverse variance,
    wavelength, AND mask, OR mask. Wavelengths are vacuum, heliocentric; they are divided by 1 + z of the header
    unless `rest_frame` is False. Masked pixels and those without inverse variance have an infinite error.

    Raises
    ------
    InputError
        If the file is no such spectrum, or the header lacks a stellar redshift and `rest_frame` is True.
    """
    with open_fits(path) as hdus:
        header, image = hdus[0].header, hdus[0].data
        if image is not None and image.ndim == 2 and len(image) >= 3:
            flux, inverse, wave = (np.asarray(image[k], dtype=float) for k in range(3))
            mask = np.asarray(image[3]) if len(image) > 3 else np.zeros(len(wave))
        else:
            table = find_table(path, hdus, ("FLUX", "IVAR", "WAVELENGTH"))
            flux, inverse, wave = (read_column(table, name) for name in ("FLUX", "IVAR", "WAVELENGTH"))
            has_mask = "ANDMASK" in {name.upper() for name in table.names}
            mask = read_column(table, "ANDMASK") if has_mask else np.zeros(len(wave))
        stated = header.get("Z")
        name = str(header.get("OBSID", path.name.split(".")[0]))
    redshift = float(stated) if isinstance(stated, int | float) else np.nan
    if not _STELLAR_REDSHIFTS[0] < redshift < _STELLAR_REDSHIFTS[1]:
        if rest_frame:
            raise InputError(path, f"no redshift of a star (Z = {stated})", "Z between -0.01 and 0.01 in its header")
        redshift = 0.0
    good = (inverse > 0) & np.isfinite(flux) & (mask == 0)
    error = np.where(good, 1 / np.sqrt(np.where(good, inverse, 1.0)), np.inf)
    scale = 1 + redshift if rest_frame else 1.0
    return Spectrum(
        name,
        to_vacuum(wave, medium) / scale,
        np.where(good, flux, np.nan),
        error,
        {"redshift": redshift},
        LAMOST_RESOLUTION,
    )


def open_fits(path: Path) -> fits.HDUList:
    """Open a FITS file; raise InputError if it is not readable."""
    try:
        return fits.open(path, memmap=False)
    except (OSError, ValueError) as error:
        raise InputError(path, f"no readable FITS ({error})", "a spectrum") from None


def find_table(path: Path, hdus: fits.HDUList, names: tuple[str, ...]) -> Any:
    """Return the data of the first table with these columns; raise InputError without one."""
    for hdu in hdus:
        if set(names) <= set(_names(hdu)):
            return hdu.data
    raise InputError(path, "no table with these columns", ", ".join(names))


def read_column(table: Any, name: str) -> Float:
    """Return a column as one array, for tables with one row of arrays or one row for each pixel."""
    return np.asarray(table[name], dtype=float).ravel()
