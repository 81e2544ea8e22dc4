"""Learn a PSF basis from the stars of an unknown camera, assuming only that PSFs are smooth.

Two assumptions hold for any camera: its PSFs are smooth over a third of their width, and they change little over a
detector. As a Gaussian process: samples of a PSF scatter about a mean by ``width sqrt(mean peak)``, with correlations
``exp(-d^2 / 2 length^2)``. The leading eigenimages of the process are the images of a basis (`csstdask.psf.basis`), so
that such PSFs are fitted by the same code (`csstdask.psf.fit_field`).

The fit has two stages. About the round Moffat profile that fits the stars best, one PSF is fitted to all; about that
PSF, a field. An undersampled PSF is determined between samples because stars lie anywhere within their pixels
(effective PSFs: Anderson & King 2000, PASP 112, 1360). What they do not determine is smooth, and has an uncertainty.
The uncertainty of the common PSF is added separately, because it was fitted to the same stars.

Stamps of 32 pixels do not show a PSF beyond 12 pixels from a star, nor one wider than 8 pixels. There the PSF is the
Moffat profile, to half of its light.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.sparse.linalg import LinearOperator, eigsh

from csstdask.arrays.stamps import sky_from_border
from csstdask.core.errors import InputError
from csstdask.nn.card import ModelCard
from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING, PsfBasis, estimate_fwhm, polynomial_degrees
from csstdask.psf.fit_field import POSITION_SIGMA, fit_field
from csstdask.psf.pixels import Renderer
from csstdask.psf.star_model import FIT_BOX, central_box

log = logging.getLogger("csstdask")

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]

#: Full widths at half maximum of the first PSF that are tried [pixel].
_FWHM = np.geomspace(1.2, 8.0, 20)
#: Exponent of its Moffat profile.
_MOFFAT_EXPONENT = 3.0
#: Relative error of a round profile, as a share of the light on a pixel.
_PROFILE_ERROR = 0.02
#: Distance from the source beyond which a PSF is its mean [pixel].
_REACH = 12
#: Width of the transition to the mean [pixel].
_TAPER = 2
#: Relative uncertainty of the mean PSF beyond `_REACH`.
_WING_ERROR = 0.5
#: Width of the border of a stamp that shows its sky [pixel].
_BORDER = 3
#: Half-width of the box whose mean S/N ranks stars [pixel]. A smaller one would prefer stars centred on a pixel.
_RANKING_RADIUS = 5


@dataclass(frozen=True)
class GaussianProcessPrior:
    """Prior of a camera's PSFs: the parameters of a card without weights."""

    length: float
    """Correlation length, in units of the FWHM."""
    common_width: float
    """Scatter of the common PSF about a Moffat profile, in units of the geometric mean of mean and peak."""
    common_images: int
    """Number of eigenimages of the common PSF."""
    common_stars: int
    """Largest number of stars that the common PSF is fitted to, the brightest."""
    field_widths: tuple[float, ...]
    """Scatter of the field about the common PSF, by degree of its polynomials."""
    own_width: float
    """Scatter of a star about the field."""
    images: int
    """Number of eigenimages of the field."""

    @classmethod
    def of(cls, card: ModelCard) -> GaussianProcessPrior:
        """Read the parameters of a card; InputError if it belongs to another method."""
        try:
            return cls(**card.parameters)
        except TypeError as error:
            raise InputError(card.name, f"parameters of another method ({error})", "those of `empirical`") from None


def learn_from_stars(
    prior: GaussianProcessPrior,
    pixels: Pixels,
    variance: Pixels,
    x: Float,
    y: Float,
    *,
    position_sigma: float = POSITION_SIGMA,
) -> PsfBasis:
    """Learn a basis from the pixels of stars.

    Parameters
    ----------
    prior : GaussianProcessPrior
    pixels, variance : float32 arrays (n, y, x)
        Stamps of stars, as `csstdask.psf.fit_field.fit_field` takes them.
    x, y : float64 arrays (n,)
        Offset of each star from the centre of pixel ``[size // 2, size // 2]`` [pixel].
    position_sigma : float
        1 sigma of `x` and `y` [pixel].

    Returns
    -------
    PsfBasis
        Without terms of the colour. A warning is logged if the PSF is too wide for the stamps.
    """
    bright = _brightest(pixels, variance, prior.common_stars)
    if not len(bright):
        widths = (prior.common_width, *prior.field_widths[1:])
        return _basis_about(_moffat(_FWHM[0]), prior, prior.images, widths)
    stars = pixels[bright], variance[bright], x[bright], y[bright]
    common = _basis_about(_best_moffat(*stars), prior, prior.common_images, (prior.common_width,))
    fit = fit_field(common, *stars, np.ones((len(bright), 1)), position_sigma, shared=False)
    mean = _normalised(np.maximum(common.compose(fit.field)[0], 0))
    basis = _basis_about(mean, prior, prior.images, prior.field_widths)
    root = np.linalg.cholesky(fit.covariance).T.astype(np.float32)
    of_common = np.square(root @ common.images.reshape(len(common), -1)).sum(axis=0).reshape(mean.shape)
    return replace(basis, truncation_variance=basis.truncation_variance + of_common)


def _basis_about(mean: Pixels, prior: GaussianProcessPrior, count: int, widths: tuple[float, ...]) -> PsfBasis:
    """Return the basis of PSFs that scatter about a mean, with a width for each degree of the position."""
    images, truncated = _eigenimages(mean, prior.length * estimate_fwhm(mean), count)
    unit = np.eye(count)
    scatter = np.full(count, prior.own_width**2)
    steps = (np.arange(BASIS_SIZE) - BASIS_SIZE // 2) / OVERSAMPLING
    wing = _WING_ERROR * (1 - _taper(steps)) * mean
    return PsfBasis(
        mean=mean,
        images=images,
        field_covariance=np.stack([unit * widths[p + q] ** 2 for p, q in polynomial_degrees(len(widths) - 1)]),
        intrinsic_scatter=scatter,
        colour_covariance=np.empty((0, count, count)),
        intrinsic_scatter_given_colour=scatter,
        degree=len(widths) - 1,
        truncation_variance=(truncated * sum(width**2 for width in widths) + wing**2).astype(np.float32),
    )


def _taper(steps: Float) -> Float:
    """Return 1 where a PSF is free, falling to 0 where it is its mean, for samples at steps [pixel]."""
    return np.clip((_REACH - np.hypot(steps[:, None], steps)) / _TAPER, 0, 1)


def _eigenimages(mean: Pixels, length: float, count: int) -> tuple[Pixels, Pixels]:
    """Return the leading eigenimages of the process of unit width, and the variance that they do not represent.

    Parameters
    ----------
    mean : float32 array (BASIS_SIZE, BASIS_SIZE)
    length : float
        Correlation length [pixel].
    count : int

    Returns
    -------
    images : float32 array (count, BASIS_SIZE, BASIS_SIZE)
        Of zero sum: the flux of a star is a separate parameter.
    truncated : float32 array (BASIS_SIZE, BASIS_SIZE)
    """
    half = _REACH * OVERSAMPLING
    window = slice(BASIS_SIZE // 2 - half, BASIS_SIZE // 2 + half)
    steps = np.arange(-half, half) / OVERSAMPLING
    correlation = np.exp(-0.5 * ((steps[:, None] - steps) / length) ** 2)
    # Smoothed: the noise of the mean is no measure of the scatter.
    smooth = gaussian_filter(mean, length * OVERSAMPLING)[window, window]
    envelope = np.sqrt(np.maximum(smooth, 0) * mean.max())
    envelope *= _taper(steps)

    def product(flat: Float) -> Float:
        inner = correlation @ (envelope * flat.reshape(envelope.shape)) @ correlation
        return np.asarray((envelope * inner).ravel(), dtype=np.float64)

    process = LinearOperator((envelope.size, envelope.size), matvec=product, dtype=np.float64)
    values, vectors = eigsh(process, count, v0=envelope.ravel())
    roots = np.sqrt(np.maximum(values, 0))[::-1, None] * vectors.T[::-1]
    inner_images = roots.reshape(count, *envelope.shape)
    truncated = np.zeros((BASIS_SIZE, BASIS_SIZE), np.float32)
    truncated[window, window] = np.maximum(envelope**2 - (inner_images**2).sum(axis=0), 0)
    images = np.zeros((count, BASIS_SIZE, BASIS_SIZE), np.float32)
    images[:, window, window] = inner_images
    light = images.sum(axis=(1, 2)) / mean.sum()
    return images - light[:, None, None] * mean, truncated


def _brightest(pixels: Pixels, variance: Pixels, count: int) -> npt.NDArray[np.int64]:
    """Return the rows of the stars of the highest S/N, in ascending order; none without a usable pixel."""
    known = np.isfinite(variance) & (variance > 0)
    sky = sky_from_border(pixels, ~known, _BORDER)
    values = np.ma.masked_array(pixels, ~known)
    pull = (values - sky[:, None, None]) / np.sqrt(np.where(known, variance, 1))
    middle = pixels.shape[-1] // 2
    window = slice(middle - _RANKING_RADIUS, middle + _RANKING_RADIUS + 1)
    snr = np.ma.filled(pull[:, window, window].mean(axis=(1, 2)), -np.inf)
    seen = np.flatnonzero(known.any(axis=(1, 2)))
    return np.sort(seen[np.argsort(-snr[seen], kind="stable")[:count]])


def _best_moffat(pixels: Pixels, variance: Pixels, x: Float, y: Float) -> Pixels:
    """Return the round profile that fits the median star best."""
    box = central_box(pixels.shape[-1], FIT_BOX)
    known = np.isfinite(variance) & (variance > 0)
    weight = np.where(known, 1 / np.where(known, variance, 1), 0)[box].astype(float)
    values = np.where(known, pixels, 0)[box].astype(float)
    chi2 = []
    for fwhm in _FWHM:
        image = Renderer(_moffat(fwhm)[None], values.shape[-1])(y, x)[:, 0].astype(float)
        design = np.stack([image, np.ones_like(image)], axis=-1)
        normal = np.einsum("nyxa,nyx,nyxb->nab", design, weight, design)
        right = np.einsum("nyxa,nyx,nyx->na", design, weight, values)
        flux_and_sky = np.einsum("nab,nb->na", np.linalg.pinv(normal), right)
        residual = values - np.einsum("nyxa,na->nyx", design, flux_and_sky)
        error = _PROFILE_ERROR * flux_and_sky[:, 0, None, None] * image
        chi2.append(np.median((weight * residual**2 / (1 + weight * error**2)).sum(axis=(1, 2))))
    best = int(np.argmin(chi2))
    if best == len(_FWHM) - 1:
        log.warning("PSFs are wider than %g pixels at half maximum: too wide for stamps of 32 pixels", _FWHM[-1])
    return _moffat(float(_FWHM[best]))


def _moffat(fwhm: float) -> Pixels:
    """Return a Moffat profile of a full width at half maximum [pixel]."""
    steps = (np.arange(BASIS_SIZE) - BASIS_SIZE // 2) / OVERSAMPLING
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / _MOFFAT_EXPONENT) - 1)
    radius2 = steps[:, None] ** 2 + steps**2
    return _normalised(((1 + radius2 / alpha**2) ** -_MOFFAT_EXPONENT).astype(np.float32))


def _normalised(image: Pixels) -> Pixels:
    """Return an image of unit light."""
    return np.asarray(image * (np.float32(OVERSAMPLING**2) / image.sum()), dtype=np.float32)
