"""Write the PSF of a detector in formats that other programs read.

* ``.psf`` of PSFEx, for SExtractor, `galsim.des.DES_PSFEx` and `csstdask.training.psf.psfex.read_psf`. The polynomial
  is the same, term for term.
* STDPSF of STScI, for `GriddedPSFModel` of photutils: a grid of PSFs, which it interpolates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from numpy.polynomial import legendre

from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING, estimate_fwhm, polynomial_degrees
from csstdask.psf.field import PsfField

#: Width of the images of PSFEx [sample]: odd, because the centre is a sample.
_PSFEX_SIZE = 65
#: Width of the images of STDPSF [sample].
_STDPSF_SIZE = 129


def write_psf(path: Path, field: PsfField) -> None:
    """Write a detector's PSF in the format of PSFEx, two samples per pixel.

    Parameters
    ----------
    path : Path
        File to write, usually ``.psf``.
    field : PsfField
    """
    ny, nx = field.shape
    step = OVERSAMPLING // 2
    middle, half = BASIS_SIZE // 2, _PSFEX_SIZE // 2 * step
    window = slice(middle - half, middle + half + 1, step)
    basis = field.basis
    terms = np.einsum("pk,kyx->pyx", field.coefficients, basis.images[:, window, window])
    terms[0] += basis.mean[window, window]
    powers = [(p, q) for q in range(basis.degree + 1) for p in range(basis.degree + 1 - q)]  # PSFEx's order
    mask = np.einsum("ml,lyx->myx", _to_monomials(basis.degree, powers), terms)
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
            "POLNGRP": 1, "POLDEG1": basis.degree, "PSF_FWHM": estimate_fwhm(basis.mean), "PSF_SAMP": 1 / 2,
            "PSFNAXIS": 3, **size,
        }
    )  # fmt: skip
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, overwrite=True)


def _to_monomials(degree: int, powers: list[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Return the matrix (monomial, product) from coefficients of Legendre products to those of monomials."""
    single = [legendre.leg2poly(np.eye(degree + 1)[order]) for order in range(degree + 1)]
    matrix = np.zeros((len(powers), len(powers)))
    for column, (p, q) in enumerate(polynomial_degrees(degree)):
        for a, in_u in enumerate(single[p]):
            for b, in_v in enumerate(single[q]):
                if in_u * in_v:
                    matrix[powers.index((a, b)), column] += in_u * in_v
    return matrix


def write_stdpsf(path: Path, field: PsfField, *, nodes: int = 5) -> None:
    """Write a detector's PSF in the format of STScI: on a grid, four samples per pixel.

    Parameters
    ----------
    path : Path
        FITS file to write.
    field : PsfField
    nodes : int
        Number of positions along each axis, from edge to edge of the detector.

    Raises
    ------
    ValueError
        If there are fewer than two nodes, or more than the format has keywords for.
    """
    if not 2 <= nodes <= 10:
        raise ValueError(f"nodes: found {nodes}; wanted 2 to 10")
    ny, nx = field.shape
    x, y = np.rint(np.linspace(0, nx - 1, nodes)), np.rint(np.linspace(0, ny - 1, nodes))
    down, across = (part.ravel() for part in np.meshgrid(y, x, indexing="ij"))
    low = BASIS_SIZE // 2 - _STDPSF_SIZE // 2
    window = slice(low, low + _STDPSF_SIZE)
    cube = field.oversampled_at(across, down)[:, window, window]
    header = fits.Header({"NXPSFS": nodes, "NYPSFS": nodes})
    for axis, positions in (("IPSFX", x), ("JPSFY", y)):
        header.update({f"{axis}{number + 1:02d}": int(position) + 1 for number, position in enumerate(positions)})
    fits.PrimaryHDU(cube.astype(np.float32), header).writeto(path, overwrite=True)
