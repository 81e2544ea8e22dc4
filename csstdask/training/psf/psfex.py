"""Run PSFEx (Bertin 2011) on stamps of stars, and read its models.

PSFEx is a separate program (Debian: ``apt-get install psfex``). It reads a catalogue in the format FITS_LDAC of
SExtractor, which is written here from stamps, and writes a ``.psf`` file, which is read here.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from csstdask.arrays.psf_grid import OVERSAMPLED_SIZE
from csstdask.arrays.stamps import border_mask
from csstdask.core.errors import InputError
from csstdask.numerics.robust import mad_scale

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]

PROGRAM = "psfex"
#: Value of bad pixels in PSFEx.
_BAD = np.float32(-1e30)
#: Width of the model [sample]: odd, because its centre is a sample.
_SIDE = 65
#: Pixels per sample of the model.
_SAMPLING = 0.5
#: Width of the border of a stamp that shows its sky [pixel].
_BORDER = 2
_SETTINGS = {
    "BASIS_TYPE": "PIXEL", "PSF_SAMPLING": _SAMPLING, "PSF_SIZE": f"{_SIDE},{_SIDE}", "PSFVAR_KEYS": "X_IMAGE,Y_IMAGE",
    "PSFVAR_GROUPS": "1,1", "CENTER_KEYS": "X_IMAGE,Y_IMAGE", "SAMPLE_AUTOSELECT": "N", "SAMPLE_FWHMRANGE": "1.0,10.0",
    "SAMPLE_MINSN": 5, "SAMPLE_MAXELLIP": 0.6, "PSF_RECENTER": "N", "CHECKPLOT_DEV": "NULL", "CHECKPLOT_TYPE": "NONE",
    "CHECKIMAGE_TYPE": "NONE", "WRITE_XML": "N", "NTHREADS": 1, "VERBOSE_TYPE": "QUIET",
}  # fmt: skip


@dataclass(frozen=True)
class PsfexModel:
    """Content of a ``.psf`` file."""

    basis: Float
    """(p, y, x) Image of each term of the polynomial."""
    zero: tuple[float, float]
    """Origin of x and y, one-based [pixel]."""
    scale: tuple[float, float]
    """Unit of x and y [pixel]."""
    degree: int

    def __call__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Pixels:
        """Return PSFs of unit sum at zero-based positions, float32 (n, 64, 64), the source at ``[32, 32]``."""
        u, v = (
            (np.atleast_1d(np.asarray(place, dtype=float)) + 1 - zero) / scale
            for place, zero, scale in zip((x, y), self.zero, self.scale, strict=True)
        )
        terms = np.stack([u**p * v**q for q in range(self.degree + 1) for p in range(self.degree + 1 - q)], axis=1)
        middle, half = self.basis.shape[-1] // 2, OVERSAMPLED_SIZE // 2
        window = slice(middle - half, middle + half)
        image = np.einsum("np,pyx->nyx", terms, self.basis[:, window, window])
        return (image / image.sum(axis=(1, 2), keepdims=True)).astype(np.float32)


def is_installed() -> bool:
    """Return whether PSFEx is installed."""
    return shutil.which(PROGRAM) is not None


def write_ldac(
    path: Path, stamps: Pixels, x: Float, y: Float, *, mask: npt.NDArray[np.bool_] | None = None, noise: float = 1.0
) -> None:
    """Write stamps as a catalogue for PSFEx.

    Parameters
    ----------
    path : Path
    stamps : float32 array (n, y, x)
        Background-subtracted [e-]; pixel ``[size // 2, size // 2]`` contains the star.
    x, y : float64 arrays (n,)
        Zero-based positions [pixel].
    mask : bool array (n, y, x), optional
        True = bad pixel.
    noise : float
        1 sigma of the sky [e-].
    """
    size = stamps.shape[-1] - 1 + stamps.shape[-1] % 2  # odd: one row and column less
    low = stamps.shape[-1] // 2 - size // 2
    vignets = stamps[:, low : low + size, low : low + size].astype(np.float32)
    if mask is not None:
        vignets = np.where(mask[:, low : low + size, low : low + size], _BAD, vignets)
    n = len(vignets)
    good = np.where(vignets > _BAD / 2, vignets, 0)
    flux = good.sum(axis=(1, 2))
    error = np.sqrt(np.maximum(flux, 0) + size**2 * noise**2)
    columns = [
        fits.Column("VIGNET", f"{size * size}E", dim=f"({size},{size})", array=vignets),
        fits.Column("X_IMAGE", "1D", array=x + 1),
        fits.Column("Y_IMAGE", "1D", array=y + 1),
        fits.Column("FLUX_APER", "1E", array=flux),
        fits.Column("FLUXERR_APER", "1E", array=error),
        fits.Column("FLUX_RADIUS", "1E", array=np.full(n, 1.2)),
        fits.Column("SNR_WIN", "1E", array=flux / error),
        fits.Column("ELONGATION", "1E", array=np.ones(n)),
        fits.Column("FLAGS", "1I", array=np.zeros(n, np.int16)),
    ]
    objects = fits.BinTableHDU.from_columns(columns, name="LDAC_OBJECTS")
    file = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), _header_table(noise), objects]).writeto(file)
    path.write_bytes(file.getvalue().replace(b"END" + bytes(77), b"END".ljust(80), 1))


def _header_table(noise: float) -> fits.BinTableHDU:
    """Return the table of image header cards that PSFEx requires.

    Cards must be padded with spaces, or PSFEx crashes; astropy pads the last one with NULs, replaced by `write_ldac`.
    """
    size = {"NAXIS": 2, "NAXIS1": 1, "NAXIS2": 1}
    header = fits.Header({"SIMPLE": True, "BITPIX": -32, **size, "SEXBKDEV": noise, "SEXGAIN": 1.0})
    text = "".join(str(card).ljust(80) for card in [*header.cards, "END"])
    row = np.array([(text.encode(),)], dtype=[("Field Header Card", f"S{len(text)}")])
    table = fits.BinTableHDU(row, name="LDAC_IMHEAD")
    table.header["TDIM1"] = f"(80, {len(text) // 80})"
    return table


def sky_of(stamps: Pixels, mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the common sky of stamps (n, y, x) and its noise, from the medians of all their borders."""
    border = border_mask(stamps.shape[-1], _BORDER)
    edge = stamps[:, border][~mask[:, border]]
    if not edge.size:
        return 0.0, 1.0
    sky = float(np.median(edge))
    return sky, float(mad_scale(edge))


def psfex_at_stars(stamps: Pixels, mask: npt.NDArray[np.bool_], x: Float, y: Float, **settings: Any) -> Pixels:
    """Fit PSFEx to stars, and return its PSFs at their positions, float32 (n, 64, 64).

    Parameters
    ----------
    stamps : float32 array (n, y, x)
        Stamps, sky included [e-].
    mask : bool array (n, y, x)
        True = bad pixel.
    x, y : float64 arrays (n,)
        Zero-based positions [pixel].
    **settings
        Settings of PSFEx, as `run_psfex` takes them.

    Raises
    ------
    InputError
        If PSFEx is not installed, or fails.
    """
    sky, noise = sky_of(stamps, mask)
    with tempfile.TemporaryDirectory() as folder:
        fitted = run_psfex(Path(folder), stamps - np.float32(sky), x, y, mask=mask, noise=noise, **settings)
    return fitted(x, y)


def run_psfex(
    folder: Path,
    stamps: Pixels,
    x: Float,
    y: Float,
    *,
    mask: npt.NDArray[np.bool_] | None = None,
    noise: float = 1.0,
    basis_number: int = 20,
    accuracy: float = 0.01,
    degree: int = 3,
) -> PsfexModel:
    """Fit a PSFEx model to stamps.

    Parameters
    ----------
    folder : Path
        Folder for its files.
    stamps, x, y, mask, noise
        As `write_ldac` takes them.
    basis_number : int
        Square root of the number of super-resolved samples.
    accuracy : float
        Relative accuracy of pixel values that PSFEx assumes.
    degree : int
        Degree of the polynomial over the detector; PSFEx lowers it for few stars.

    Raises
    ------
    InputError
        If PSFEx is not installed, or fails.
    """
    if not is_installed():
        raise InputError(PROGRAM, "no such program", "PSFEx (Debian: apt-get install psfex)")
    catalogue = folder / "stars.cat"
    write_ldac(catalogue, stamps, x, y, mask=mask, noise=noise)
    settings = _SETTINGS | {"BASIS_NUMBER": basis_number, "PSF_ACCURACY": accuracy, "PSFVAR_DEGREES": degree}
    arguments = [part for key, value in settings.items() for part in (f"-{key}", str(value))]
    done = subprocess.run(  # noqa: S603
        [PROGRAM, catalogue.name, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    result = catalogue.with_suffix(".psf")
    if done.returncode != 0 or not result.is_file():
        message = " ".join((done.stderr or done.stdout).split())[-200:]
        raise InputError(PROGRAM, f"exit code {done.returncode} ({message})", "a model of these stars")
    return read_psf(result)


def read_psf(path: Path) -> PsfexModel:
    """Read a ``.psf`` file with two samples per pixel.

    Raises
    ------
    InputError
        If it is not such a file, or has another sampling or a smaller image.
    """
    wanted = f"a PSFEx model of {_SAMPLING} pixels a sample, at least {_SIDE} x {_SIDE}"
    try:
        with fits.open(path) as hdus:
            table: Any = hdus["PSF_DATA"]
            header, mask = table.header, np.asarray(table.data["PSF_MASK"][0], dtype=float)
        varied = header.get("POLNAXIS", 0) == 2
        zero, scale = (
            (float(header[f"{key}1"]), float(header[f"{key}2"])) if varied else (other, other)
            for key, other in (("POLZERO", 0.0), ("POLSCAL", 1.0))
        )
        sampling, degree = float(header["PSF_SAMP"]), int(header["POLDEG1"]) if varied else 0
    except (OSError, KeyError, IndexError) as error:
        raise InputError(path, f"no PSFEx model ({error})", wanted) from None
    if abs(sampling - _SAMPLING) > 1e-6 or min(mask.shape[-2:]) < _SIDE:
        raise InputError(path, f"{mask.shape[-1]} x {mask.shape[-2]} samples of {sampling:g} pixels", wanted)
    return PsfexModel(mask if mask.ndim == 3 else mask[None], zero, scale, degree)
