"""What PSFs of a camera may look like that nobody has simulated, as the very stars tell it that are fitted.

Two things are believed of any camera: its PSFs are smooth over a third of their width, and they change little over a
detector. As a Gaussian process: samples of a PSF scatter about a mean by ``width * sqrt(mean * peak)``, two of them
correlated by ``exp(-d^2 / 2 length^2)``. Its leading eigenimages are principal images (`csstdask.psf.basis`), so
that all that is fitted to principal PSFs (`csstdask.psf.fit_field`) is fitted to these.

It is done twice: about a round Moffat profile, the one that suits the stars best, one PSF is fitted to all; about that
one, a field. An undersampled PSF is known between samples because stars lie anywhere within their pixels (effective
PSFs: Anderson & King 2000, PASP 112, 1360); what they leave open is smooth, and has its sigma. That of the common PSF
is kept apart, and added: it was fitted to the same stars.

More than 12 pixels from a star, and of PSFs that are wider than 8 pixels, stamps of 32 pixels tell nothing: there the
PSF is the Moffat profile's, to half of its light.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.sparse.linalg import LinearOperator, eigsh

from csstdask.core.errors import InputError
from csstdask.nn.card import ModelCard
from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING, PsfBasis, estimate_fwhm, polynomial_degrees
from csstdask.psf.fit_field import POSITION_SIGMA, fit_field
from csstdask.psf.pixels import Renderer

log = logging.getLogger("csstdask")

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]

#: Full widths at half maximum that are tried for a first PSF [pixel].
_FWHM = np.geomspace(1.2, 8.0, 20)
#: The exponent of its Moffat profile.
_MOFFAT = 3.0
#: Of a star's light on a pixel, what a round profile is wrong by at least.
_ROUND = 0.02
#: Edge of what is looked at for that [pixel].
_LOOKED_AT = 24
#: Distance from the source beyond which a PSF is its mean, and within how many pixels it becomes so [pixel].
_REACH, _TAPER = 12, 2
#: To such a share a PSF is its mean there.
_WING = 0.5
#: Rows and columns along a stamp's edge that tell its sky, and pixels to each side of its middle that tell its light.
_RIM, _NEAR = 3, 5


@dataclass(frozen=True)
class GaussianProcessPrior:
    """What is believed of a camera's PSFs: the parameters of a card without weights."""

    length: float
    """Over which PSFs are smooth, of their FWHM."""
    common_width: float
    """How far the PSF that all stars share is from a Moffat profile; the geometric mean of mean and peak is 1."""
    common_images: int
    """Eigenimages that it is made of."""
    common_stars: int
    """It is fitted to so many stars at most, the brightest."""
    field_widths: tuple[float, ...]
    """How far the field is from the common PSF, by degree of its polynomials."""
    own_width: float
    """How far a star is from the field."""
    images: int
    """Eigenimages that the field is made of."""

    @classmethod
    def of(cls, card: ModelCard) -> GaussianProcessPrior:
        """Read a card; InputError if it is another method's."""
        try:
            return cls(**card.parameters)
        except TypeError as error:
            raise InputError(card.name, f"parameters of another method ({error})", "those of `empirical`") from None


def learn_from_stars(
    believed: GaussianProcessPrior,
    pixels: Pixels,
    variance: Pixels,
    x: Float,
    y: Float,
    *,
    position_sigma: float = POSITION_SIGMA,
) -> PsfBasis:
    """Return what to expect of the PSFs of stars, their own pixels having been looked at.

    Parameters
    ----------
    believed : Smoothness
    pixels, variance : float32 arrays (n, y, x)
        As `csstdask.psf.fit_field.fit_field` takes them.
    x, y : float64 arrays (n,)
        Offset of each star from the middle of pixel ``[size // 2, size // 2]`` [pixel].
    place : float
        How well places are known, one sigma [pixel].

    Returns
    -------
    PrincipalPsfs
        Of no band; colours are not looked at. A warning is given where PSFs are too wide to be told.
    """
    bright = _brightest(pixels, variance, believed.common_stars)
    if not len(bright):
        return _about(_moffat(_FWHM[0]), believed, believed.images, (believed.common_width, *believed.field_widths[1:]))
    stars = pixels[bright], variance[bright], x[bright], y[bright]
    common = _about(_best_moffat(*stars), believed, believed.common_images, (believed.common_width,))
    fit = fit_field(common, *stars, np.ones((len(bright), 1)), position_sigma, shared=False)
    mean = _unit(np.maximum(common.compose(fit.field)[0], 0))
    psfs = _about(mean, believed, believed.images, believed.field_widths)
    root = np.linalg.cholesky(fit.covariance).T.astype(np.float32)
    told = np.square(root @ common.images.reshape(len(common), -1)).sum(axis=0).reshape(mean.shape)
    return replace(psfs, truncation_variance=psfs.truncation_variance + told)


def _about(mean: Pixels, believed: GaussianProcessPrior, count: int, widths: tuple[float, ...]) -> PsfBasis:
    """Return PSFs that scatter about a mean, so much in each degree of the place."""
    images, left = _eigenimages(mean, believed.length * estimate_fwhm(mean), count)
    unit = np.eye(count)
    own = np.full(count, believed.own_width**2)
    steps = (np.arange(BASIS_SIZE) - BASIS_SIZE // 2) / OVERSAMPLING
    wing = _WING * (1 - _within(steps)) * mean
    return PsfBasis(
        mean=mean,
        images=images,
        field_covariance=np.stack([unit * widths[p + q] ** 2 for p, q in polynomial_degrees(len(widths) - 1)]),
        intrinsic_scatter=own,
        colour_covariance=np.empty((0, count, count)),
        intrinsic_scatter_given_colour=own,
        degree=len(widths) - 1,
        truncation_variance=(left * sum(width**2 for width in widths) + wing**2).astype(np.float32),
    )


def _within(steps: Float) -> Float:
    """Return 1 where a PSF may be anything, towards 0 where it is its mean, for samples at such steps [pixel]."""
    return np.clip((_REACH - np.hypot(steps[:, None], steps)) / _TAPER, 0, 1)


def _eigenimages(mean: Pixels, length: float, count: int) -> tuple[Pixels, Pixels]:
    """Return the leading eigenimages (count, SIDE, SIDE) of the process of unit width, and the variance they leave.

    Their light is taken out: how bright a star is says its flux.
    """
    half = _REACH * OVERSAMPLING
    window = slice(BASIS_SIZE // 2 - half, BASIS_SIZE // 2 + half)
    steps = np.arange(-half, half) / OVERSAMPLING
    smooth = np.exp(-0.5 * ((steps[:, None] - steps) / length) ** 2)
    # A PSF that noise has roughened is no measure of how much it scatters; towards the edge nothing does.
    envelope = np.sqrt(np.maximum(gaussian_filter(mean, length * OVERSAMPLING)[window, window], 0) * mean.max())
    envelope *= _within(steps)

    def product(flat: Float) -> Float:
        inner = smooth @ (envelope * flat.reshape(envelope.shape)) @ smooth
        return np.asarray((envelope * inner).ravel(), dtype=np.float64)

    process = LinearOperator((envelope.size, envelope.size), matvec=product, dtype=np.float64)
    values, vectors = eigsh(process, count, v0=envelope.ravel())
    roots = np.sqrt(np.maximum(values, 0))[::-1, None] * vectors.T[::-1]
    shaped = roots.reshape(count, *envelope.shape)
    left = np.zeros((BASIS_SIZE, BASIS_SIZE), np.float32)
    left[window, window] = np.maximum(envelope**2 - (shaped**2).sum(axis=0), 0)
    images = np.zeros((count, BASIS_SIZE, BASIS_SIZE), np.float32)
    images[:, window, window] = shaped
    light = images.sum(axis=(1, 2)) / mean.sum()
    return images - light[:, None, None] * mean, left


def _brightest(pixels: Pixels, variance: Pixels, most: int) -> npt.NDArray[np.int64]:
    """Return which stars have the most significant light, in their order; none without a pixel that is known."""
    known = np.isfinite(variance) & (variance > 0)
    rim = np.ones(pixels.shape[1:], dtype=bool)
    rim[_RIM:-_RIM, _RIM:-_RIM] = False
    values = np.ma.masked_array(pixels, ~known)
    sky = np.ma.filled(np.ma.median(values[:, rim], axis=1), 0.0)
    pull = (values - sky[:, None, None]) / np.sqrt(np.where(known, variance, 1))
    middle, near = pixels.shape[-1] // 2, _NEAR  # fewer would prefer stars that lie in the middle of a pixel
    window = slice(middle - near, middle + near + 1)
    light = np.ma.filled(pull[:, window, window].mean(axis=(1, 2)), -np.inf)
    seen = np.flatnonzero(known.any(axis=(1, 2)))
    return np.sort(seen[np.argsort(-light[seen], kind="stable")[:most]])


def _best_moffat(pixels: Pixels, variance: Pixels, x: Float, y: Float) -> Pixels:
    """Return the round profile that suits the usual star best."""
    middle, half = pixels.shape[-1] // 2, min(_LOOKED_AT, pixels.shape[-1]) // 2
    window = (slice(None), *2 * (slice(middle - half, middle + half),))
    known = np.isfinite(variance) & (variance > 0)
    weight = np.where(known, 1 / np.where(known, variance, 1), 0)[window].astype(float)
    seen = np.where(known, pixels, 0)[window].astype(float)
    misfits = []
    for fwhm in _FWHM:
        plain = Renderer(_moffat(fwhm)[None], 2 * half)(y, x)[:, 0].astype(float)
        design = np.stack([plain, np.ones_like(plain)], axis=-1)
        normal = np.einsum("nyxa,nyx,nyxb->nab", design, weight, design)
        right = np.einsum("nyxa,nyx,nyx->na", design, weight, seen)
        told = np.einsum("nab,nb->na", np.linalg.pinv(normal), right)
        left = seen - np.einsum("nyxa,na->nyx", design, told)
        doubt = _ROUND * told[:, 0, None, None] * plain
        misfits.append(np.median((weight * left**2 / (1 + weight * doubt**2)).sum(axis=(1, 2))))
    best = int(np.argmin(misfits))
    if best == len(_FWHM) - 1:
        log.warning("PSFs are wider than %g pixels at half maximum: stamps of 32 pixels do not tell them", _FWHM[-1])
    return _moffat(float(_FWHM[best]))


def _moffat(fwhm: float) -> Pixels:
    steps = (np.arange(BASIS_SIZE) - BASIS_SIZE // 2) / OVERSAMPLING
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / _MOFFAT) - 1)
    return _unit(((1 + (steps[:, None] ** 2 + steps**2) / alpha**2) ** -_MOFFAT).astype(np.float32))


def _unit(image: Pixels) -> Pixels:
    """Return an image with a unit of light."""
    return np.asarray(image * (np.float32(OVERSAMPLING**2) / image.sum()), dtype=np.float32)
