"""The light of a unit before noise: every source under the telescope's PSF, in batches of stamps.

A source's stamp is made where it is cheap and exact, among spatial frequencies: the spectrum of its profile times
that of the PSF, times the phase of its position, folded onto native pixels and transformed back. A star's profile
is 1. Nothing is sampled coarser than the optics need, so sub-pixel positions are exact and flux is conserved.
Beyond the PSF's core, light falls off as 1 / r^3, as diffraction at an open aperture has it; these wings are smooth
and the same for all, and are added to the whole frame in one convolution.
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

#: Spectral samples in one batch: its arrays stay near the processor. A GPU wants larger ones.
_SAMPLES_A_BATCH = {"numpy": 600_000, "cupy": 16_000_000}
#: Sources fainter than this are not drawn [e-/s].
_INVISIBLE = 1e-4
#: A stamp is so many half-light radii wide: of a disk, of a bulge, whose wings are long.
_DISK_WIDTH, _BULGE_WIDTH = 12.0, 20.0
_LARGEST_STAMP = 1024
#: Wings are convolved on pixels of this many native pixels, out to this radius.
_COARSE, _REACH = 4, 1024


def draw_scene(
    catalogue: Catalogue,
    weights: Float,
    shape: tuple[int, int],
    psf: ScenePsf,
    xp: ModuleType = np,
) -> Any:
    """Draw sources.

    Parameters
    ----------
    catalogue : Catalogue
        Of n sources.
    weights : float64 array (n, part)
        Shares of their light in the parts of the filter.
    shape : (int, int)
        (y, x) of the frame.
    psf : ScenePsf
        Its spectra are of native size `CORE`.
    xp : module
        NumPy or CuPy.

    Returns
    -------
    float32 array (y, x)
        Expected rate [e-/s/pixel], without sky.
    """
    image = xp.zeros(shape, dtype=np.float32)
    beyond = np.zeros(len(catalogue))
    sizes = _stamp_sizes(catalogue)
    for size in np.unique(sizes):
        of_size = np.flatnonzero((sizes == size) & (catalogue.flux > _INVISIBLE))
        samples = size * size * psf.sampling.folds**2 // 2
        batch = max(1, _SAMPLES_A_BATCH[xp.__name__] // samples)
        for first in range(0, len(of_size), batch):
            some = of_size[first : first + batch]
            spectra = _spectra(catalogue, weights, some, psf, int(size), xp)
            beyond[some] = 1 - to_host(spectra[:, 0, 0].real)
            _add_stamps(image, catalogue, some, spectra, int(size), psf.sampling.folds, xp)
    _add_wings(image, catalogue, beyond, xp)
    return image


def _stamp_sizes(catalogue: Catalogue) -> npt.NDArray[np.int64]:
    """Return the edge of each source's stamp [pixel]: CORE, or a power of two that holds a large galaxy."""
    bulge = np.where(catalogue.bulge_share > 0.02, catalogue.bulge_radius * _BULGE_WIDTH, 0)
    width = np.maximum(catalogue.half_light_radius * _DISK_WIDTH, bulge)
    power = np.ceil(np.log2(np.clip(width, CORE, _LARGEST_STAMP)))
    return (2**power).astype(np.int64)


def _spectra(
    catalogue: Catalogue, weights: Float, some: npt.NDArray[np.intp], psf: ScenePsf, size: int, xp: ModuleType
) -> Any:
    """Return the spectra of sources under the PSF, centred at the origin, of unit flux."""
    x, y = catalogue.x[some], catalogue.y[some]
    if size == CORE:
        spectra = psf.spectra(x, y, weights[some])
    else:
        spectra = spectra_of(psf.cores(x, y, weights[some]), psf.sampling, size, xp=xp)
    galaxies = np.flatnonzero(~catalogue.is_star[some])
    if galaxies.size:
        n = size * psf.sampling.folds
        spectra[galaxies] *= _profiles(catalogue, some[galaxies], n, size, xp)
    return spectra


def _profiles(catalogue: Catalogue, some: npt.NDArray[np.intp], n: int, size: int, xp: ModuleType) -> Any:
    """Return the spectra of galaxies: disk, bulge and knots."""
    ky = xp.asarray(2 * np.pi / size * np.fft.fftfreq(n, 1 / n), dtype=np.float32)[None, :, None]
    kx = xp.asarray(2 * np.pi / size * np.arange(n // 2 + 1), dtype=np.float32)[None, None, :]

    def each(values: Float) -> Any:
        return xp.asarray(values, dtype=np.float32)[:, None, None]

    angle, ratio = catalogue.angle[some], catalogue.axis_ratio[some]
    along = kx * each(np.cos(angle)) + ky * each(np.sin(angle))
    across = ky * each(np.cos(angle) * ratio) - kx * each(np.sin(angle) * ratio)
    k = xp.sqrt(along * along + across * across)
    bulge, knots = catalogue.bulge_share[some], catalogue.knot_share[some]
    total = each((1 - bulge) * (1 - knots)) * disk_spectrum(k * each(catalogue.half_light_radius[some]))
    bulgy = np.flatnonzero(bulge > 0)
    if bulgy.size:
        # A bulge is half as flat as its disk: its radius across is that much larger.
        rounder = each((1 + ratio[bulgy]) / 2 / ratio[bulgy])
        of_bulge = xp.sqrt(along[bulgy] ** 2 + (across[bulgy] * rounder) ** 2)
        of_bulge *= each(catalogue.bulge_radius[some[bulgy]])
        total[bulgy] += each(bulge[bulgy]) * bulge_spectrum(of_bulge, xp)
    if not knots.any():
        return total
    total = total.astype(np.complex64)
    for position in np.flatnonzero(knots):
        total[position] += _knots(galaxy_knots(catalogue, int(some[position])), kx[0], ky[0], xp)
    return total


def _knots(knots: Knots, kx: Any, ky: Any, xp: ModuleType) -> Any:
    total: Any = 0
    size = xp.sqrt(kx**2 + ky**2)
    for dx, dy, share, radius in zip(knots.dx, knots.dy, knots.share, knots.radius, strict=True):
        place = xp.exp(-1j * kx * np.float32(dx)) * xp.exp(-1j * ky * np.float32(dy))
        total = total + np.float32(share) * gaussian_spectrum(size * np.float32(radius), xp) * place
    return total


def _add_stamps(
    image: Any,
    catalogue: Catalogue,
    some: npt.NDArray[np.intp],
    spectra: Any,
    size: int,
    folds: int,
    xp: ModuleType,
) -> None:
    """Shift sources to where they are, fold their spectra onto native pixels, and add the stamps to the image."""
    x, y = catalogue.x[some], catalogue.y[some]
    column, row = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    n = size * folds
    kx = np.arange(n // 2 + 1)
    ky = np.fft.fftfreq(n, 1 / n)
    turn_x = np.exp(-2j * np.pi / size * np.multiply.outer(x - column + size // 2, kx))
    turn_y = np.exp(-2j * np.pi / size * np.multiply.outer(y - row + size // 2, ky))
    turn_x[:, [0, -1]] /= 2  # the half plane holds these columns' mirror images too
    turn_x *= catalogue.flux[some, None]
    spectra = spectra * xp.asarray(turn_x, dtype=np.complex64)[:, None, :]
    spectra *= xp.asarray(turn_y, dtype=np.complex64)[:, :, None]
    folded = spectra.reshape(len(some), folds, size, n // 2 + 1).sum(axis=1)
    missing = -(n // 2 + 1) % size
    folded = xp.pad(folded, ((0, 0), (0, 0), (0, missing)))
    folded = folded.reshape(len(some), size, -1, size).sum(axis=2)
    transform: Any = fft if xp is np else xp.fft
    stamps = 2 * transform.ifft2(folded).real.astype(np.float32)
    for stamp, top, left in zip(stamps, row - size // 2, column - size // 2, strict=True):
        add_stamp(image, stamp, int(top), int(left))


def add_stamp(image: Any, stamp: Any, y: int, x: int) -> None:
    """Add a stamp whose corner lies at (y, x), cut at the image's edges."""
    top, left = max(0, -y), max(0, -x)
    bottom, right = min(stamp.shape[0], image.shape[0] - y), min(stamp.shape[1], image.shape[1] - x)
    if bottom > top and right > left:
        image[y + top : y + bottom, x + left : x + right] += stamp[top:bottom, left:right]


@lru_cache(maxsize=4)
def _wing_kernel(ny: int, nx: int) -> npt.NDArray[np.complex64]:
    """Return the spectrum of the wings, of unit flux, on coarse pixels."""
    y = np.minimum(np.arange(ny), ny - np.arange(ny)) * _COARSE
    x = np.minimum(np.arange(nx), nx - np.arange(nx)) * _COARSE
    radius = np.hypot(y[:, None], x[None, :])
    along = np.clip((radius - FADE[0]) / (FADE[1] - FADE[0]), 0, 1)
    wings = (0.5 - 0.5 * np.cos(np.pi * along)) / np.maximum(radius, 1) ** 3 * (radius < _REACH)
    return np.asarray(fft.rfft2((wings / wings.sum()).astype(np.float32)), dtype=np.complex64)


def _add_wings(image: Any, catalogue: Catalogue, beyond: Float, xp: ModuleType) -> None:
    """Add the light beyond the cores."""
    ny, nx = image.shape
    margin = _COARSE * 16
    coarse = [fft.next_fast_len((length + 2 * margin + _REACH) // _COARSE + 1) for length in (ny, nx)]
    light = np.zeros(coarse, dtype=np.float32)
    # Each source's light is shared between the four coarse pixels round it, so that it does not jump.
    x = (catalogue.x + 0.5 + margin) / _COARSE - 0.5
    y = (catalogue.y + 0.5 + margin) / _COARSE - 0.5
    left, low = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    amount = beyond * catalogue.flux
    near = (left >= 0) & (low >= 0) & (left < coarse[1] - 1) & (low < coarse[0] - 1)
    for step_y in (0, 1):
        for step_x in (0, 1):
            share = abs(1 - step_y - (y - low)) * abs(1 - step_x - (x - left))
            np.add.at(light, (low[near] + step_y, left[near] + step_x), (amount * share)[near])
    kernel = _wing_kernel(*coarse)
    spread = fft.irfft2(fft.rfft2(light) * kernel, s=coarse).astype(np.float32) / _COARSE**2
    first = margin // _COARSE
    rows, columns = -(-ny // _COARSE), -(-nx // _COARSE)
    part = xp.asarray(spread[first : first + rows, first : first + columns])
    for offset_y in range(_COARSE):
        for offset_x in range(_COARSE):
            target = image[offset_y::_COARSE, offset_x::_COARSE]
            target += part[: target.shape[0], : target.shape[1]]
