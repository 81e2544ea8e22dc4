"""PSFEx (Bertin 2011) on the very same stamps: the peer of PSF reconstruction, and its files.

PSFEx is a program of its own (Debian: ``apt-get install psfex``). It reads a catalogue in SExtractor's FITS_LDAC,
which is written here from stamps, and writes a ``.psf`` file, which is read here.
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
from csstdask.core.errors import InputError

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]

PROGRAM = "psfex"
#: What PSFEx takes for a bad pixel.
_BAD = np.float32(-1e30)
#: Edge of its model [sample], two samples a pixel: odd, for its centre is the middle sample.
_SIDE, _SAMPLING = 65, 0.5
_SETTINGS = {
    "BASIS_TYPE": "PIXEL", "PSF_SAMPLING": _SAMPLING, "PSF_SIZE": f"{_SIDE},{_SIDE}", "PSFVAR_KEYS": "X_IMAGE,Y_IMAGE",
    "PSFVAR_GROUPS": "1,1", "CENTER_KEYS": "X_IMAGE,Y_IMAGE", "SAMPLE_AUTOSELECT": "N", "SAMPLE_FWHMRANGE": "1.0,10.0",
    "SAMPLE_MINSN": 5, "SAMPLE_MAXELLIP": 0.6, "PSF_RECENTER": "N", "CHECKPLOT_DEV": "NULL", "CHECKPLOT_TYPE": "NONE",
    "CHECKIMAGE_TYPE": "NONE", "WRITE_XML": "N", "NTHREADS": 1, "VERBOSE_TYPE": "QUIET",
}  # fmt: skip


@dataclass(frozen=True)
class PsfexModel:
    """What a ``.psf`` file holds."""

    basis: Float
    """(p, y, x) Images of the polynomial's terms."""
    zero: tuple[float, float]
    """Of x and y, one-based [pixel]."""
    scale: tuple[float, float]
    degree: int

    def __call__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Pixels:
        """Return PSFs at zero-based places, float32 (n, 64, 64), the source at ``[32, 32]``; each sums to 1."""
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
    """Tell whether this machine has PSFEx."""
    return shutil.which(PROGRAM) is not None


def write_ldac(
    path: Path, stamps: Pixels, x: Float, y: Float, *, mask: npt.NDArray[np.bool_] | None = None, noise: float = 1.0
) -> None:
    """Write stamps as the catalogue that PSFEx reads.

    Parameters
    ----------
    path : Path
    stamps : float32 array (n, y, x)
        Background-subtracted [e-]; pixel ``[size // 2, size // 2]`` is that of the star's place.
    x, y : float64 arrays (n,)
        Zero-based [pixel].
    mask : bool array (n, y, x), optional
        Bad pixels.
    noise : float
        Of the sky [e-].
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
    """Return the image header that PSFEx looks for: one row of cards.

    They must be padded with spaces, or PSFEx crashes; astropy pads the last one with NULs, which `write_ldac` mends.
    """
    size = {"NAXIS": 2, "NAXIS1": 1, "NAXIS2": 1}
    header = fits.Header({"SIMPLE": True, "BITPIX": -32, **size, "SEXBKDEV": noise, "SEXGAIN": 1.0})
    text = "".join(str(card).ljust(80) for card in [*header.cards, "END"])
    row = np.array([(text.encode(),)], dtype=[("Field Header Card", f"S{len(text)}")])
    table = fits.BinTableHDU(row, name="LDAC_IMHEAD")
    table.header["TDIM1"] = f"(80, {len(text) // 80})"
    return table


def sky_of(stamps: Pixels, mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the sky of stamps (n, y, x), and its noise, as medians along their edges have it."""
    rim = np.ones(stamps.shape[1:], dtype=bool)
    rim[2:-2, 2:-2] = False
    edge = stamps[:, rim][~mask[:, rim]]
    if not edge.size:
        return 0.0, 1.0
    sky = float(np.median(edge))
    return sky, 1.4826 * float(np.median(np.abs(edge - sky)))


def psfex_at_stars(stamps: Pixels, mask: npt.NDArray[np.bool_], x: Float, y: Float, **settings: Any) -> Pixels:
    """Return what PSFEx makes of stars at their own places, float32 (n, 64, 64).

    Parameters
    ----------
    stamps : float32 array (n, y, x)
        On their sky [e-].
    mask : bool array (n, y, x)
        Bad pixels.
    x, y : float64 arrays (n,)
        Zero-based [pixel].
    **settings
        Of PSFEx, as `run_psfex` takes them.

    Raises
    ------
    InputError
        As `run_psfex` does.
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
    """Fit PSFEx's model to stamps.

    Parameters
    ----------
    folder : Path
        For its files.
    stamps, x, y, mask, noise
        As `write_ldac` takes them.
    basis_number : int
        Its square is how many of the brightest samples are super-resolved.
    accuracy : float
        What PSFEx expects of pixels' values.
    degree : int
        Of the polynomial over the detector; PSFEx lowers it where stars are few.

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
        said = " ".join((done.stderr or done.stdout).split())[-200:]
        raise InputError(PROGRAM, f"exit code {done.returncode} ({said})", "a model of these stars")
    return read_psf(result)


def read_psf(path: Path) -> PsfexModel:
    """Read a ``.psf`` file of two samples a pixel.

    Raises
    ------
    InputError
        If it is none, or of another sampling or a smaller image.
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
