"""The PSF of a detector as files that other programs read.

* ``.psf``, PSFEx's own: SExtractor, `galsim.des.DES_PSFEx`, our `read_psf`. The polynomial is the same, term for term.
* STDPSF, as STScI publishes for its cameras: photutils' `GriddedPSFModel`. A grid, between whose PSFs it interpolates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from numpy.polynomial import legendre

from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING, estimate_fwhm, polynomial_degrees
from csstdask.psf.field import PsfField

#: Samples along the edges of both: odd, for their middle is a sample.
_PSFEX_SIDE, _STDPSF_SIDE = 65, 129


def write_psf(path: Path, field: PsfField) -> None:
    """Write a detector's PSF in PSFEx's format, two samples a pixel.

    Parameters
    ----------
    path : Path
        By custom ``.psf``.
    field : PsfField
    """
    ny, nx = field.shape
    step = OVERSAMPLING // 2
    middle, half = BASIS_SIZE // 2, _PSFEX_SIDE // 2 * step
    window = slice(middle - half, middle + half + 1, step)
    psfs = field.basis
    terms = np.einsum("pk,kyx->pyx", field.coefficients, psfs.images[:, window, window])
    terms[0] += psfs.mean[window, window]
    powers = [(p, q) for q in range(psfs.degree + 1) for p in range(psfs.degree + 1 - q)]  # PSFEx's order
    mask = np.einsum("ml,lyx->myx", _to_monomials(psfs.degree, powers), terms)
    mask /= mask[0].sum()  # so that samples sum to 1 at the detector's middle
    table = fits.BinTableHDU.from_columns(
        [fits.Column("PSF_MASK", f"{mask.size}E", dim=str(mask.shape[::-1]), array=mask.astype(np.float32)[None])],
        name="PSF_DATA",
    )
    size = {f"PSFAXIS{axis + 1}": length for axis, length in enumerate(mask.shape[::-1])}
    table.header.update(
        {
            "LOADED": 0, "ACCEPTED": 0, "CHI2": 0.0, "POLNAXIS": 2,
            "POLGRP1": 1, "POLNAME1": "X_IMAGE", "POLZERO1": nx / 2 + 0.5, "POLSCAL1": nx / 2,
            "POLGRP2": 1, "POLNAME2": "Y_IMAGE", "POLZERO2": ny / 2 + 0.5, "POLSCAL2": ny / 2,
            "POLNGRP": 1, "POLDEG1": psfs.degree, "PSF_FWHM": estimate_fwhm(psfs.mean), "PSF_SAMP": 1 / 2,
            "PSFNAXIS": 3, **size,
        }
    )  # fmt: skip
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, overwrite=True)


def _to_monomials(degree: int, powers: list[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Return what takes factors of Legendre products to those of monomials (monomial, product)."""
    single = [legendre.leg2poly(np.eye(degree + 1)[order]) for order in range(degree + 1)]
    matrix = np.zeros((len(powers), len(powers)))
    for column, (p, q) in enumerate(polynomial_degrees(degree)):
        for a, in_u in enumerate(single[p]):
            for b, in_v in enumerate(single[q]):
                if in_u * in_v:
                    matrix[powers.index((a, b)), column] += in_u * in_v
    return matrix


def write_stdpsf(path: Path, field: PsfField, *, nodes: int = 5) -> None:
    """Write a detector's PSF in STScI's format: on a grid, four samples a pixel.

    Parameters
    ----------
    path : Path
        A FITS file.
    field : PsfField
    nodes : int
        Places along each axis, the detector's edges among them.

    Raises
    ------
    ValueError
        If there are fewer than two, or more than the format has keywords for.
    """
    if not 2 <= nodes <= 10:
        raise ValueError(f"nodes: found {nodes}; wanted 2 to 10")
    ny, nx = field.shape
    x, y = np.rint(np.linspace(0, nx - 1, nodes)), np.rint(np.linspace(0, ny - 1, nodes))
    down, across = (part.ravel() for part in np.meshgrid(y, x, indexing="ij"))
    low = BASIS_SIZE // 2 - _STDPSF_SIDE // 2
    window = slice(low, low + _STDPSF_SIDE)
    cube = field.oversampled_at(across, down)[:, window, window]
    header = fits.Header({"NXPSFS": nodes, "NYPSFS": nodes})
    for axis, places in (("IPSFX", x), ("JPSFY", y)):
        header.update({f"{axis}{number + 1:02d}": int(place) + 1 for number, place in enumerate(places)})
    fits.PrimaryHDU(cube.astype(np.float32), header).writeto(path, overwrite=True)
