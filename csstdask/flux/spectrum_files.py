"""Spectra of stars in FITS files: LAMOST of both layouts, NGSL, and plain tables with WAVELENGTH and FLUX."""

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

#: Redshifts of stars; LAMOST writes -9999 where it has none.
_REDSHIFTS = (-0.01, 0.01)
#: Columns of errors in plain tables.
_ERRORS = ("ERROR", "ERR", "SIGMA", "STATERR", "STATERROR")


@dataclass(frozen=True)
class Spectrum:
    """One spectrum as a file has it.

    Attributes
    ----------
    name : str
    wavelength : array (pixel,)
        Vacuum [A].
    flux : array (pixel,)
        Per Angstrom; NaN where there is no datum.
    error : array (pixel,) or None
        1 sigma; inf where a pixel is to be ignored.
    labels : dict
        What the file knows of the star: ``teff``, ``logg``, ``mh``, ``redshift`` ...
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
    """Read a spectrum, in vacuum wavelengths.

    Spectra of LAMOST are moved to the rest frame of the star by the redshift Z of the header; those of other formats
    are taken to be at rest.

    Parameters
    ----------
    path : Path
        LAMOST (table ``COADD``, or an image whose rows are flux, inverse variance and wavelength; vacuum), NGSL
        (``h_stis_ngsl_*``; air), or any table with columns WAVELENGTH and FLUX, perhaps with ERROR or IVAR.
    medium : str, optional
        Of the file's wavelengths. By default as its format has them; plain tables: vacuum.

    Raises
    ------
    InputError
        If the file is no such spectrum, or a LAMOST file has no usable Z.
    """
    with opened(path) as hdus:
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
    with opened(path) as hdus:
        table = table_with(path, hdus, ("WAVELENGTH", "FLUX"))
        names = {name.upper() for name in table.names}
        wave, flux = (column(table, name) for name in ("WAVELENGTH", "FLUX"))
        given = [name for name in _ERRORS if name in names]
        error = column(table, given[0]) if given else None
        name = str(hdus[0].header.get("OBJECT", path.name.split(".")[0]))
    return Spectrum(name, to_vacuum(wave, medium), flux, error)


def read_ngsl(path: Path, *, medium: str = "air") -> Spectrum:
    """Read a spectrum of NGSL, ``h_stis_ngsl_<star>_v2.fits``: air wavelengths, statistical and systematic errors."""
    with opened(path) as hdus:
        table = table_with(path, hdus, ("WAVELENGTH", "FLUX"))
        wave, flux = (column(table, name) for name in ("WAVELENGTH", "FLUX"))
        present = [name for name in ("STATERR", "SYSERR") if name in {one.upper() for one in table.names}]
        variance = sum((column(table, name) ** 2 for name in present), np.zeros(len(wave)))
    good = flux > 0
    error = np.where(good & (variance > 0), np.sqrt(variance), np.inf) if present else None
    name = re.sub(r"^h_stis_ngsl_|_v\d+$", "", path.name.removesuffix(".gz").removesuffix(".fits"))
    vacuum = air_to_vacuum(wave) if medium == "air" else to_vacuum(wave, medium)
    return Spectrum(name, vacuum, np.where(good, flux, np.nan), error, resolution=NGSL_RESOLUTION)


def read_lamost(path: Path, *, medium: str = "vacuum", rest_frame: bool = True) -> Spectrum:
    """Read a LAMOST low-resolution spectrum, of either layout.

    Since DR7 the table ``COADD`` has one row of arrays; before, the primary image has rows flux, inverse variance,
    wavelength, AND mask, OR mask. Wavelengths are vacuum, heliocentric; they are divided by 1 + z of the header
    unless `rest_frame` is False. Masked pixels and those without inverse variance have an infinite error.

    Raises
    ------
    InputError
        If the file is no such spectrum, or `rest_frame` is wanted and the header has no redshift of a star.
    """
    with opened(path) as hdus:
        header, image = hdus[0].header, hdus[0].data
        if image is not None and image.ndim == 2 and len(image) >= 3:
            flux, inverse, wave = (np.asarray(image[k], dtype=float) for k in range(3))
            mask = np.asarray(image[3]) if len(image) > 3 else np.zeros(len(wave))
        else:
            table = table_with(path, hdus, ("FLUX", "IVAR", "WAVELENGTH"))
            flux, inverse, wave = (column(table, name) for name in ("FLUX", "IVAR", "WAVELENGTH"))
            has_mask = "ANDMASK" in {name.upper() for name in table.names}
            mask = column(table, "ANDMASK") if has_mask else np.zeros(len(wave))
        stated = header.get("Z")
        name = str(header.get("OBSID", path.name.split(".")[0]))
    redshift = float(stated) if isinstance(stated, int | float) else np.nan
    if not _REDSHIFTS[0] < redshift < _REDSHIFTS[1]:
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


def opened(path: Path) -> fits.HDUList:
    """Open a FITS file; InputError if it is none."""
    try:
        return fits.open(path, memmap=False)
    except (OSError, ValueError) as error:
        raise InputError(path, f"no readable FITS ({error})", "a spectrum") from None


def table_with(path: Path, hdus: fits.HDUList, names: tuple[str, ...]) -> Any:
    """Return the data of the first table with these columns; InputError if there is none."""
    for hdu in hdus:
        if set(names) <= set(_names(hdu)):
            return hdu.data
    raise InputError(path, "no table with these columns", ", ".join(names))


def column(table: Any, name: str) -> Float:
    """Return a column as one array, whether it has one row of arrays or a row a pixel."""
    return np.asarray(table[name], dtype=float).ravel()
