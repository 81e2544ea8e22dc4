"""Read and write flat-field cubes in the format of aXe (hstaxe) and slitlessutils.

A cube holds planes a_i(x, y): a_0 in the primary HDU, a_i in extension i. The flat is sum_i a_i t^i with
t = (wavelength - WMIN) / (WMAX - WMIN) from the primary header, and pixels are divided by it. hstaxe clamps t to
[0, 1]; slitlessutils does not, zeroes row and column 0, and takes a cube without WMIN and WMAX for a flat of 1.
An empty primary HDU makes hstaxe fail. Files hold no errors.

A cube of a part of the detector has its offset in LTV1 and LTV2: detector pixel = image pixel - LTV.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.flux.flat import Flat
from csstdask.flux.flat_solution import FlatFlag, covariance_nodes
from csstdask.numerics.polynomials import evaluate_on_grid, legendre_products, n_terms

if TYPE_CHECKING:
    from astropy.io import fits

Float = npt.NDArray[np.float64]

_FITS_BLOCK = 2880
"""Bytes to whose multiple every part of a FITS file is padded."""
_BLOCK_ROWS = 256
"""Rows of a plane that are computed together."""
_FIT_SAMPLES = 129
"""Rows and columns of a plane to which polynomials are fitted, evenly spread."""
_N_WAVELENGTHS = 101
"""Wavelengths at which a cube is sampled when it is read."""
MAX_MISFIT = 1e-3
"""Largest accepted difference between a plane and its polynomial when a cube is read."""


def write_axe(
    flat: Flat, path: str | Path, *, degree: int = 3, window: tuple[int, int, int, int] | None = None
) -> float:
    """Write a flat as an aXe cube, in blocks of rows.

    Parameters
    ----------
    flat : Flat
        Flat of one detector.
    path : str or Path
        Output FITS file; an existing one is replaced when the new one is complete.
    degree : int
        Degree of the polynomial in t that is fitted to every coefficient of the flat.
    window : (int, int, int, int), optional
        First column, first row, number of columns and of rows of a part of the detector.

    Returns
    -------
    float
        Largest error of the flat by these polynomials, also in the header as FLATERR.

    Raises
    ------
    InputError
        If the degree is negative, the window is not on the detector, or no wavelength has a flat.
    """
    from astropy.io import fits  # noqa: PLC0415  only where files are written

    if degree < 0:
        raise InputError("degree", f"{degree}", "an integer from 0")
    ny, nx = flat.shape
    left, bottom, width, height = window or (0, 0, nx, ny)
    if left < 0 or bottom < 0 or width < 1 or height < 1 or left + width > nx or bottom + height > ny:
        raise InputError("window", f"{window}", f"columns and rows of the detector, {nx} x {ny}")
    powers, error = _powers_of_t(flat, degree)
    path = Path(path)
    partial_path = path.with_name(path.name + ".part")
    columns = np.arange(left, left + width)
    with partial_path.open("wb") as file:
        for index, coefficients in enumerate(powers):
            header = fits.Header()
            if index == 0:
                header["SIMPLE"] = True
            else:
                header["XTENSION"] = "IMAGE"
            header["BITPIX"], header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = -32, 2, width, height
            if index == 0:
                header["EXTEND"] = True
                header["WMIN"] = (float(flat.wavelength[0]), "[Angstrom] t = 0")
                header["WMAX"] = (float(flat.wavelength[-1]), "[Angstrom] t = 1")
                header["FLATERR"] = (error, "largest error of the polynomial in t")
                header["DETECTOR"] = flat.detector if flat.detector is not None else ""
            else:
                header["PCOUNT"], header["GCOUNT"] = 0, 1
                header["EXTNAME"] = f"A{index}"
            header["LTV1"], header["LTV2"] = float(-left), float(-bottom)
            file.write(header.tostring().encode("ascii"))
            for row in range(bottom, bottom + height, _BLOCK_ROWS):
                rows = np.arange(row, min(row + _BLOCK_ROWS, bottom + height))
                plane = evaluate_on_grid(coefficients, columns, rows, flat.requested_degree, flat.shape)
                file.write(plane.astype(">f4").tobytes())
            file.write(b"\0" * (-4 * width * height % _FITS_BLOCK))
    partial_path.replace(path)
    return error


def _powers_of_t(flat: Flat, degree: int) -> tuple[Float, float]:
    """Return coefficients (power of t, term) of the flat, and their largest error."""
    known = flat.degree >= 0
    if not known.any():
        raise InputError("flat", "no wavelength with usable stars", "at least one")
    relative = flat.relative_coefficients
    span = flat.wavelength[-1] - flat.wavelength[0]
    t = (flat.wavelength - flat.wavelength[0]) / (span if span > 0 else 1.0)
    fit_degree = min(degree, int(known.sum()) - 1)
    basis = np.polynomial.legendre.legvander(2 * t - 1, fit_degree)
    fitted = np.linalg.lstsq(basis[known], relative[known], rcond=None)[0]
    powers = np.zeros((degree + 1, relative.shape[1]))
    for term in range(relative.shape[1]):
        series = np.polynomial.legendre.Legendre(fitted[:, term], domain=[0, 1]).convert(kind=np.polynomial.Polynomial)
        powers[: len(series.coef), term] = series.coef
    ny, nx = flat.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 17), np.linspace(0, ny - 1, 17))
    terms = legendre_products(x.ravel(), y.ravel(), flat.requested_degree, flat.shape)
    difference = (np.vander(t, degree + 1, increasing=True) @ powers - relative)[known] @ terms.T
    return powers, float(np.abs(difference).max())


def read_axe(path: str | Path, *, degree: int = 2, shape: tuple[int, int] | None = None) -> Flat:
    """Read an aXe cube and fit Legendre products to its planes.

    Parameters
    ----------
    path : str or Path
        FITS file of the cube.
    degree : int
        Total degree of the polynomials of the position.
    shape : (int, int), optional
        (y, x) of the detector. By default that of the planes; a cube of a part of the detector needs it.

    Returns
    -------
    Flat
        With a detector mean of 1; the mean of the cube at each wavelength is its sensitivity. Variances are 0 and
        `FlatFlag.NO_VARIANCE` is set, because cubes hold none.

    Raises
    ------
    InputError
        If the file is no cube, belongs to another detector, or does not match polynomials of this degree.
    """
    from astropy.io import fits  # noqa: PLC0415

    source = Path(path)
    try:
        with fits.open(source, memmap=True) as file:
            header = file[0].header
            planes = _planes(file, source)
            size = planes[0].shape
            origin = -float(header.get("LTV1", 0.0)), -float(header.get("LTV2", 0.0))
            detector_shape = _detector_shape(source, size, origin, shape)
            limits = _limits(header, source)
            coefficients = np.array([_fit_plane(plane, degree, origin, detector_shape, source) for plane in planes])
            detector = header.get("DETECTOR")
    except OSError as error:
        raise InputError(source, f"no readable FITS file ({error})", "an aXe flat cube") from None
    t = np.linspace(0, 1, _N_WAVELENGTHS if len(coefficients) > 1 else 2)
    values = np.vander(t, len(coefficients), increasing=True) @ coefficients
    n, p = values.shape
    flags = np.full(n, int(FlatFlag.NO_VARIANCE))
    zero = np.zeros(n, dtype=np.int64)
    nodes = covariance_nodes(n)
    return Flat(
        wavelength=limits[0] + t * (limits[1] - limits[0]),
        coefficients=values,
        covariance=np.zeros((n, p, p)),
        shape=detector_shape,
        degree=np.full(n, degree),
        flags=flags,
        n_stars=zero,
        n_kept=zero,
        scale=np.ones(n),
        common_variance=np.zeros(n),
        nodes=nodes,
        node_covariance=np.zeros((len(nodes), len(nodes), p, p)),
        detector=detector if isinstance(detector, int) else None,
    )


def _planes(file: Any, source: Path) -> list[npt.NDArray[Any]]:
    """Return the planes of a cube; raise InputError unless they are images of one shape."""
    planes = [hdu.data for hdu in file]
    if planes[0] is None or planes[0].ndim != 2:
        raise InputError(f"{source}[0]", "an empty primary HDU", "plane a_0 of the cube in it")
    for index, plane in enumerate(planes):
        if plane is None or plane.shape != planes[0].shape:
            found = "no image" if plane is None else f"shape {plane.shape}"
            raise InputError(f"{source}[{index}]", found, f"a plane of shape {planes[0].shape}")
    return planes


def _limits(header: fits.Header, source: Path) -> tuple[float, float]:
    """Return the wavelengths of t = 0 and t = 1 [Angstrom]."""
    try:
        low, high = float(header["WMIN"]), float(header["WMAX"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{source}[0]", "no WMIN and WMAX", "the wavelength range of the cube [Angstrom]") from None
    if not low < high:
        raise InputError(f"{source}[0]", f"WMIN {low} and WMAX {high}", "WMIN < WMAX")
    return low, high


def _detector_shape(
    source: Path, size: tuple[int, int], origin: tuple[float, float], shape: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the shape of the detector of planes with a size and an origin; raise InputError if they do not fit."""
    if shape is None:
        if origin != (0.0, 0.0):
            raise InputError(source, f"a cube of a part of a detector, from {origin}", "shape=(y, x) of the detector")
        return size
    if origin[0] + size[1] > shape[1] or origin[1] + size[0] > shape[0] or min(origin) < 0:
        raise InputError(source, f"planes of shape {size} at {origin}", f"planes on a detector of shape {shape}")
    if origin == (0.0, 0.0) and size != tuple(shape):
        raise InputError(source, f"planes of shape {size}", f"those of a detector of shape {shape}, or an offset (LTV)")
    return shape


def _fit_plane(
    plane: npt.NDArray[Any], degree: int, origin: tuple[float, float], shape: tuple[int, int], source: Path
) -> Float:
    """Return the coefficients (term,) of a plane; raise InputError if they do not match it."""
    ny, nx = plane.shape
    rows = np.unique(np.linspace(0, ny - 1, min(_FIT_SAMPLES, ny)).round().astype(np.int64))
    columns = np.unique(np.linspace(0, nx - 1, min(_FIT_SAMPLES, nx)).round().astype(np.int64))
    values = np.array([np.asarray(plane[row])[columns] for row in rows], dtype=np.float64)
    if not np.all(np.isfinite(values)):
        raise InputError(source, "planes with values that are not finite", "finite ones")
    terms = legendre_products(columns + origin[0], (rows + origin[1])[:, None], degree, shape)
    design = terms.reshape(-1, n_terms(degree))
    found = np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
    misfit = float(np.abs(design @ found - values.ravel()).max())
    if misfit > MAX_MISFIT:
        raise InputError(
            source, f"planes that differ by {misfit:.2g} from polynomials of degree {degree}", "degree=..."
        )
    return np.asarray(found)
