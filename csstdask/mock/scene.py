"""Render the noise-free light of a unit: sources convolved with the PSF, in batches of stamps.

A stamp is computed in Fourier space: the transform of the profile times that of the PSF, times the phase of the
position, folded onto native pixels and transformed back. The profile of a star is 1. All spatial frequencies of the
optics are sampled, so sub-pixel positions are exact and flux is conserved. Beyond the core of the PSF, light falls off
as 1 / r^3, as diffraction at an open aperture does. These wings are smooth and equal for all sources, and are added to
the frame in one convolution.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from csstdask.arrays.namespace import to_host
from csstdask.mock.catalogue import Catalogue
from csstdask.mock.galaxy_knots import Knots, galaxy_knots
from csstdask.mock.optics import CORE, FADE
from csstdask.mock.profiles import bulge_spectrum, disk_spectrum, gaussian_spectrum
from csstdask.mock.scene_psf import ScenePsf, spectra_of

Float = npt.NDArray[np.float64]

_SAMPLES_PER_BATCH = {"numpy": 600_000, "cupy": 16_000_000}
"""Fourier samples per batch: arrays fit into the processor's cache; a GPU needs larger ones."""
_MIN_FLUX = 1e-4
"""Sources with a lower flux are not rendered [e-/s]."""
_DISK_WIDTH = 12.0
"""Width of a stamp [half-light radius of a disk]."""
_BULGE_WIDTH = 20.0
"""Width of a stamp [half-light radius of a bulge], whose wings are longer."""
_MAX_STAMP = 1024
"""Largest stamp [pixel]."""
_WING_BINNING = 4
"""Binning of the convolution with the wings [pixel]."""
_WING_RADIUS = 1024
"""Radius of the wings [pixel]."""


def draw_scene(
    catalogue: Catalogue,
    weights: Float,
    shape: tuple[int, int],
    psf: ScenePsf,
    xp: ModuleType = np,
) -> Any:
    """Render sources.

    Parameters
    ----------
    catalogue : Catalogue
        The n sources.
    weights : float64 array (n, part)
        Fraction of their light in each part of the filter.
    shape : (int, int)
        Shape (y, x) of the frame.
    psf : ScenePsf
        PSF with transforms of native size `CORE`.
    xp : module
        NumPy or CuPy.

    Returns
    -------
    float32 array (y, x)
        Expected rate [e-/s/pixel], without sky.
    """
    image = xp.zeros(shape, dtype=np.float32)
    wing_fraction = np.zeros(len(catalogue))
    sizes = _stamp_sizes(catalogue)
    for size in np.unique(sizes):
        of_size = np.flatnonzero((sizes == size) & (catalogue.flux > _MIN_FLUX))
        samples = size * size * psf.sampling.folds**2 // 2
        batch_size = max(1, _SAMPLES_PER_BATCH[xp.__name__] // samples)
        for first in range(0, len(of_size), batch_size):
            batch = of_size[first : first + batch_size]
            spectra = _spectra(catalogue, weights, batch, psf, int(size), xp)
            wing_fraction[batch] = 1 - to_host(spectra[:, 0, 0].real)
            _add_stamps(image, catalogue, batch, spectra, int(size), psf.sampling.folds, xp)
    _add_wings(image, catalogue, wing_fraction, xp)
    return image


def _stamp_sizes(catalogue: Catalogue) -> npt.NDArray[np.int64]:
    """Return the side length of each stamp: CORE, or a power of two that contains a large galaxy [pixel]."""
    bulge = np.where(catalogue.bulge_share > 0.02, catalogue.bulge_radius * _BULGE_WIDTH, 0)
    width = np.maximum(catalogue.half_light_radius * _DISK_WIDTH, bulge)
    power = np.ceil(np.log2(np.clip(width, CORE, _MAX_STAMP)))
    return (2**power).astype(np.int64)


def _spectra(
    catalogue: Catalogue, weights: Float, batch: npt.NDArray[np.intp], psf: ScenePsf, size: int, xp: ModuleType
) -> Any:
    """Return the transforms of sources convolved with the PSF, centred at the origin, of unit flux."""
    x, y = catalogue.x[batch], catalogue.y[batch]
    if size == CORE:
        spectra = psf.spectra(x, y, weights[batch])
    else:
        spectra = spectra_of(psf.cores(x, y, weights[batch]), psf.sampling, size, xp=xp)
    galaxies = np.flatnonzero(~catalogue.is_star[batch])
    if galaxies.size:
        n = size * psf.sampling.folds
        spectra[galaxies] *= _profiles(catalogue, batch[galaxies], n, size, xp)
    return spectra


def _profiles(catalogue: Catalogue, batch: npt.NDArray[np.intp], n: int, size: int, xp: ModuleType) -> Any:
    """Return the transforms of galaxies: disk, bulge and knots."""
    ky = xp.asarray(2 * np.pi / size * np.fft.fftfreq(n, 1 / n), dtype=np.float32)[None, :, None]
    kx = xp.asarray(2 * np.pi / size * np.arange(n // 2 + 1), dtype=np.float32)[None, None, :]

    def each(values: Float) -> Any:
        return xp.asarray(values, dtype=np.float32)[:, None, None]

    angle, ratio = catalogue.angle[batch], catalogue.axis_ratio[batch]
    along = kx * each(np.cos(angle)) + ky * each(np.sin(angle))
    across = ky * each(np.cos(angle) * ratio) - kx * each(np.sin(angle) * ratio)
    k = xp.sqrt(along * along + across * across)
    bulge, knots = catalogue.bulge_share[batch], catalogue.knot_share[batch]
    total = each((1 - bulge) * (1 - knots)) * disk_spectrum(k * each(catalogue.half_light_radius[batch]))
    bulgy = np.flatnonzero(bulge > 0)
    if bulgy.size:
        # A bulge is half as flat as its disk, so its minor axis is longer.
        rounder = each((1 + ratio[bulgy]) / 2 / ratio[bulgy])
        of_bulge = xp.sqrt(along[bulgy] ** 2 + (across[bulgy] * rounder) ** 2)
        of_bulge *= each(catalogue.bulge_radius[batch[bulgy]])
        total[bulgy] += each(bulge[bulgy]) * bulge_spectrum(of_bulge, xp)
    if not knots.any():
        return total
    total = total.astype(np.complex64)
    for position in np.flatnonzero(knots):
        total[position] += _knots(galaxy_knots(catalogue, int(batch[position])), kx[0], ky[0], xp)
    return total


def _knots(knots: Knots, kx: Any, ky: Any, xp: ModuleType) -> Any:
    """Return the transform of the knots of a galaxy."""
    total: Any = 0
    size = xp.sqrt(kx**2 + ky**2)
    for dx, dy, share, radius in zip(knots.dx, knots.dy, knots.share, knots.radius, strict=True):
        phase = xp.exp(-1j * kx * np.float32(dx)) * xp.exp(-1j * ky * np.float32(dy))
        total = total + np.float32(share) * gaussian_spectrum(size * np.float32(radius), xp) * phase
    return total


def _add_stamps(
    image: Any,
    catalogue: Catalogue,
    batch: npt.NDArray[np.intp],
    spectra: Any,
    size: int,
    folds: int,
    xp: ModuleType,
) -> None:
    """Shift sources to their positions, fold their transforms onto native pixels, and add the stamps."""
    x, y = catalogue.x[batch], catalogue.y[batch]
    column, row = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    n = size * folds
    kx = np.arange(n // 2 + 1)
    ky = np.fft.fftfreq(n, 1 / n)
    phase_x = np.exp(-2j * np.pi / size * np.multiply.outer(x - column + size // 2, kx))
    phase_y = np.exp(-2j * np.pi / size * np.multiply.outer(y - row + size // 2, ky))
    phase_x[:, [0, -1]] /= 2  # these columns of the half plane include their mirror images
    phase_x *= catalogue.flux[batch, None]
    spectra = spectra * xp.asarray(phase_x, dtype=np.complex64)[:, None, :]
    spectra *= xp.asarray(phase_y, dtype=np.complex64)[:, :, None]
    folded = spectra.reshape(len(batch), folds, size, n // 2 + 1).sum(axis=1)
    missing = -(n // 2 + 1) % size
    folded = xp.pad(folded, ((0, 0), (0, 0), (0, missing)))
    folded = folded.reshape(len(batch), size, -1, size).sum(axis=2)
    transform: Any = fft if xp is np else xp.fft
    stamps = 2 * transform.ifft2(folded).real.astype(np.float32)
    for stamp, top, left in zip(stamps, row - size // 2, column - size // 2, strict=True):
        add_stamp(image, stamp, int(top), int(left))


def add_stamp(image: Any, stamp: Any, y: int, x: int) -> None:
    """Add a stamp with corner (y, x) to an image, cropped at its edges.

    Examples
    --------
    >>> image = np.zeros((4, 4))
    >>> add_stamp(image, np.ones((3, 3)), -1, 2)
    >>> float(image.sum())
    4.0
    """
    top, left = max(0, -y), max(0, -x)
    bottom, right = min(stamp.shape[0], image.shape[0] - y), min(stamp.shape[1], image.shape[1] - x)
    if bottom > top and right > left:
        image[y + top : y + bottom, x + left : x + right] += stamp[top:bottom, left:right]


@lru_cache(maxsize=4)
def _wing_kernel(ny: int, nx: int) -> npt.NDArray[np.complex64]:
    """Return the transform of the wings, of unit flux, on binned pixels."""
    y = np.minimum(np.arange(ny), ny - np.arange(ny)) * _WING_BINNING
    x = np.minimum(np.arange(nx), nx - np.arange(nx)) * _WING_BINNING
    radius = np.hypot(y[:, None], x[None, :])
    along = np.clip((radius - FADE[0]) / (FADE[1] - FADE[0]), 0, 1)
    wings = (0.5 - 0.5 * np.cos(np.pi * along)) / np.maximum(radius, 1) ** 3 * (radius < _WING_RADIUS)
    return np.asarray(fft.rfft2((wings / wings.sum()).astype(np.float32)), dtype=np.complex64)


def _add_wings(image: Any, catalogue: Catalogue, beyond: Float, xp: ModuleType) -> None:
    """Add the light outside the cores of the PSFs; `beyond` is its fraction for each source."""
    ny, nx = image.shape
    margin = _WING_BINNING * 16
    coarse = [fft.next_fast_len((length + 2 * margin + _WING_RADIUS) // _WING_BINNING + 1) for length in (ny, nx)]
    light = np.zeros(coarse, dtype=np.float32)
    # Bilinear weights over four binned pixels, so that the result is continuous in the position.
    x = (catalogue.x + 0.5 + margin) / _WING_BINNING - 0.5
    y = (catalogue.y + 0.5 + margin) / _WING_BINNING - 0.5
    left, low = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    amount = beyond * catalogue.flux
    near = (left >= 0) & (low >= 0) & (left < coarse[1] - 1) & (low < coarse[0] - 1)
    for step_y in (0, 1):
        for step_x in (0, 1):
            share = abs(1 - step_y - (y - low)) * abs(1 - step_x - (x - left))
            np.add.at(light, (low[near] + step_y, left[near] + step_x), (amount * share)[near])
    kernel = _wing_kernel(*coarse)
    spread = fft.irfft2(fft.rfft2(light) * kernel, s=coarse).astype(np.float32) / _WING_BINNING**2
    first = margin // _WING_BINNING
    rows, columns = -(-ny // _WING_BINNING), -(-nx // _WING_BINNING)
    part = xp.asarray(spread[first : first + rows, first : first + columns])
    for offset_y in range(_WING_BINNING):
        for offset_x in range(_WING_BINNING):
            target = image[offset_y::_WING_BINNING, offset_x::_WING_BINNING]
            target += part[: target.shape[0], : target.shape[1]]
