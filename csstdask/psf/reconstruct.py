"""Reconstruct the PSF at stars: from undersampled stamps to half-pixel sampling, with uncertainties."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from csstdask.arrays.adapter import adapt, convert_column
from csstdask.arrays.namespace import namespace_of, to_host
from csstdask.arrays.psf_grid import OVERSAMPLED_SIZE
from csstdask.arrays.stamps import border_mask
from csstdask.nn.card import ModelCard
from csstdask.nn.models import EMPIRICAL, find_card
from csstdask.numerics.robust import mad_scale
from csstdask.psf.field import PsfField, check_positions, oversampled
from csstdask.psf.fit_detector import fit_with_fallback
from csstdask.psf.model_card import detector_shape, model_kind

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]

#: Width of a stamp [pixel].
STAMP_SIZE = 32
#: Width of the border of a stamp whose scatter is the noise where no error is given [pixel].
_BORDER = 3
#: Smallest error where none is given, as a share of the star's brightest pixel.
_MIN_RELATIVE_ERROR = 1e-3


@dataclass(frozen=True, repr=False, eq=False)
class Reconstruction:
    """PSFs at n stars.

    Attributes
    ----------
    image : float32 array (n, 64, 64)
        Effective PSF (native pixel included) at half-pixel sampling, centred on ``[32, 32]``; sums to 1. NaN for stamps
        without a usable pixel: use the detector's field for the PSF there.
    sigma : float32 array (n, 64, 64)
        1 sigma of `image`; inf for stamps without a usable pixel.
    chi2 : float64 array (n,)
        Chi^2 per degree of freedom of each star's pixels; NaN for stamps without a usable pixel.
    used : bool array (n,)
        Whether the star took part in the field of its detector: blends, galaxies and empty stamps do not.
    fields : dict
        `PsfField` of each detector with a usable pixel, which gives the PSF at any position.
    model : ModelCard
        The requested model. The name of the model that was used is that of each field.
    n_stars : dict
        Number of stars in each detector's field. With one star, sigmas are mostly the prior of the model; a warning
        says so.
    """

    image: Any
    sigma: Any
    chi2: Float
    used: npt.NDArray[np.bool_]
    fields: dict[int, PsfField]
    model: ModelCard
    n_stars: dict[int, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return one line: number of stars, model, and relative uncertainty."""
        image, sigma = (_host(plane) for plane in (self.image, self.sigma))
        known = np.isfinite(sigma).all(axis=(1, 2)) if len(sigma) else np.zeros(0, dtype=bool)
        at_peak = sigma[known][:, 32, 32] / image[known][:, 32, 32] if known.any() else np.array([np.inf])
        models = sorted({one.model for one in self.fields.values()}) or [self.model.name]
        counts = ", ".join(f"{detector}: {number}" for detector, number in self.n_stars.items()) or "none"
        return (
            f"Reconstruction({len(self.chi2)} stars, model {' and '.join(models)}, n_stars {{{counts}}}, "
            f"sigma / image at the centre {np.median(at_peak):.2g})"
        )


@dataclass(frozen=True, eq=False)
class _Stars:
    """Checked input of a reconstruction on the host."""

    pixels: Images
    """(n, 32, 32) In units of each star's median error; 0 where ignored."""
    variance: Images
    """(n, 32, 32) In that unit squared; inf where ignored."""
    detector: npt.NDArray[np.int64]
    x: Float
    y: Float
    temperature: Float | None


def reconstruct(
    stamps: Any,
    detector: Any,
    x: Any,
    y: Any,
    *,
    error: Any = None,
    mask: Any = None,
    temperature: Any = None,
    model: str = "default",
    shape: tuple[int, int] | None = None,
    device: Any = None,
    empty: Literal["unknown", "expected"] = "unknown",
) -> Reconstruction:
    """Reconstruct the PSF at stars.

    The default model and ``empirical`` fit one field to all stars of a detector; ``empirical`` works for any camera, as
    it assumes only that PSFs are smooth (`csstdask.psf.empirical`). ``psfnet``, CSST-PSFNet as published, uses the
    pixels of each star alone and gives no fields.

    Parameters
    ----------
    stamps : array (n, 32, 32)
        Stamps of stars, of any flux and unit, on a constant or subtracted sky. Masks, units and uncertainties are used
        as in `csstdask.cosmicray.detect`; a list of ``CCDData`` is accepted as well. Pixel ``[16, 16]`` is the
        detector's pixel ``[floor(y + 0.5), floor(x + 0.5)]``.
    detector : int array (n,)
        Ids of detectors of the model's instrument; any for ``empirical``.
    x, y : float array (n,)
        Zero-based position of each star on its whole detector [pixel].
    error : array (n, 32, 32), optional
        1 sigma, in units of the stamps. By default the scatter along the border of each stamp; as that does not include
        the star's photon noise, sigmas are then scaled by the scatter that the fit finds.
    mask : bool array (n, 32, 32), optional
        True = ignore. Pixels that are not finite, or whose error is not, are ignored as well.
    temperature : float array (n,), optional
        Effective temperature of each star, from its colours [K]. The PSFs of stars at one position differ by their
        colour, which their own pixels hardly constrain. Used by the default model only.
    model : str
        ``default``, a name that ``csstdask models`` lists, or the path of a card that ``csstdask train psf`` wrote.
    shape : (int, int), optional
        Shape of the detectors (y, x); by default that of the model's instrument. Required by ``empirical``.
    device : optional
        Device of a network, ``cpu`` or ``cuda``. Other models run on the host, some seconds for a thousand stars.
    empty : str
        Result for stamps without a usable pixel: ``unknown`` is NaN with sigma inf; ``expected`` is the prediction from
        the other stars of the detector and the model, with its sigma.

    Returns
    -------
    Reconstruction
        Images are arrays of the caller's kind, on its device.

    Raises
    ------
    ValueError
        If shapes differ, `shape` is invalid, a position is not finite or off its detector, or the model or a detector
        is unknown.
    TypeError
        If `error` has a unit that does not convert to that of the stamps, or an array has properties that would be
        lost.
    InputError
        If the model's card or weights cannot be used, or the size of the detectors is unknown.

    Notes
    -----
    Stars of a telescope unlike those of the model are recognised by their stacked residuals (`csstdask.psf.misfit`):
    ``empirical`` then replaces ``default``, with a warning, where it fits better. Sigmas of simulated models are
    multiplied by ``sqrt(max(1, misfit))``; ``fields[detector]`` has the ``misfit``, and the name of the ``model`` that
    was used.

    Examples
    --------
    Ten stars of a telescope without a model:

    >>> rng = np.random.default_rng(1)
    >>> x, y = rng.uniform(100, 900, (2, 10))
    >>> rows, columns = np.mgrid[-16:16, -16:16]
    >>> dx, dy = x - np.floor(x + 0.5), y - np.floor(y + 0.5)
    >>> distance2 = (columns - dx[:, None, None]) ** 2 + (rows - dy[:, None, None]) ** 2
    >>> stamps = 1e4 * np.exp(-0.5 * distance2 / 1.2**2) + rng.normal(0, 5, (10, 32, 32))
    >>> psf = reconstruct(stamps, np.ones(10, int), x, y, model="empirical", shape=(1000, 1000))
    >>> psf.image.shape, bool(abs(psf.image.sum(axis=(1, 2)) - 1).max() < 1e-3)
    ((10, 64, 64), True)
    """
    card = find_card("psf", model)
    by_network = model_kind(card) == "psfnet"
    if shape is not None:
        shape = _checked_shape(shape)
    given = adapt(stamps, error, mask, stamps=True)
    pixels = to_host(given.data).astype(np.float64)
    if pixels.shape[1:] != (STAMP_SIZE, STAMP_SIZE):
        raise ValueError(f"stamps: found shape {pixels.shape}; wanted (n, {STAMP_SIZE}, {STAMP_SIZE})")
    pixels[to_host(given.ignore)] = np.nan
    errors = None if given.error is None else to_host(given.error)
    stars = _checked_stars(pixels, errors, detector, x, y, None if by_network else temperature)
    if by_network:
        found = _by_network(card, stars, shape, device)
    else:
        found = _by_fields(card, stars, shape, fall_back=model == "default", noise_known=errors is not None)
        if errors is None:
            scatter = np.sqrt(np.fmax(found.chi2, 1.0))[:, None, None].astype(np.float32)
            found = replace(found, sigma=found.sigma * scatter)
    blank = np.isinf(stars.variance).all(axis=(1, 2))
    if blank.any():
        found = replace(found, used=found.used & ~blank, chi2=np.where(blank, np.nan, found.chi2))
        if empty == "unknown":
            found.image[blank], found.sigma[blank] = np.nan, np.inf
    image, sigma = (
        given.adapter.to_caller(namespace_of(given.data).asarray(plane)) for plane in (found.image, found.sigma)
    )
    return replace(found, image=image, sigma=sigma)


def _checked_stars(
    pixels: Float, error: npt.NDArray[Any] | None, detector: Any, x: Any, y: Any, temperature: Any
) -> _Stars:
    """Return stars in a unit of their own error; ValueError if a column cannot be used."""
    n = len(pixels)
    ids = _column("detector", detector, n)
    columns, rows = _column("x", x, n, "pix"), _column("y", y, n, "pix")
    if (ids != np.rint(ids)).any():
        raise ValueError(f"detector: found {ids[ids != np.rint(ids)][0]}; wanted ids, whole numbers")
    kelvins = None if temperature is None else _column("temperature", temperature, n, "K")
    if kelvins is not None and (kelvins <= 0).any():
        raise ValueError(f"temperature: found {kelvins[kelvins <= 0][0]:g}; wanted kelvins above 0")
    sigma = border_error(pixels) if error is None else error.astype(np.float64)
    ignored = ~np.isfinite(pixels) | ~np.isfinite(sigma) | (sigma <= 0)
    # Scaled to errors of the order of one: squares of others may not fit in single precision.
    unit = np.ma.filled(np.ma.median(np.ma.masked_array(sigma, ignored).reshape(n, STAMP_SIZE**2), axis=1), 1.0)
    unit = np.where(unit > 0, unit, 1.0)[:, None, None]
    with np.errstate(over="ignore"):
        variance = np.where(ignored, np.inf, (sigma / unit) ** 2).astype(np.float32)
    scaled = np.where(ignored, 0, pixels / unit).astype(np.float32)
    return _Stars(scaled, variance, ids.astype(np.int64), columns, rows, kelvins)


def _by_network(card: ModelCard, stars: _Stars, shape: tuple[int, int] | None, device: Any) -> Reconstruction:
    """Reconstruct each star with a network."""
    from csstdask.psf.psfnet import predict_psfs  # noqa: PLC0415  torch takes seconds that a fit does not need

    shape = shape or detector_shape(card)
    check_positions(stars.x, stars.y, shape)
    image, sigma, chi2 = predict_psfs(
        card, stars.pixels, stars.variance, stars.detector, stars.x, stars.y, shape, device
    )
    return Reconstruction(image, sigma, chi2, np.zeros(len(image), dtype=bool), {}, card)


def _by_fields(
    card: ModelCard, stars: _Stars, shape: tuple[int, int] | None, *, fall_back: bool, noise_known: bool
) -> Reconstruction:
    """Fit the fields of all detectors, one after the other."""
    n = len(stars.pixels)
    image = np.empty((n, OVERSAMPLED_SIZE, OVERSAMPLED_SIZE), np.float32)
    sigma = np.empty_like(image)
    chi2, used = np.full(n, np.nan), np.zeros(n, dtype=bool)
    fields: dict[int, PsfField] = {}
    n_stars: dict[int, int] = {}
    for detector in np.unique(stars.detector).tolist():
        which = np.flatnonzero(stars.detector == detector)
        variance = stars.variance[which]
        fit, fitted = fit_with_fallback(
            card,
            detector,
            stars.pixels[which],
            variance,
            stars.x[which],
            stars.y[which],
            shape=shape,
            temperature=None if stars.temperature is None else stars.temperature[which],
            fall_back=fall_back,
            noise_known=noise_known,
        )
        image[which], sigma[which] = oversampled(fit.basis, fit.coefficients, fit.coefficient_covariance)
        if fitted.misfit > 1 and fitted.model != EMPIRICAL:
            sigma[which] *= np.float32(np.sqrt(fitted.misfit))
        chi2[which], used[which] = fit.chi2, fit.used
        if np.isfinite(variance).any():
            fields[detector], n_stars[detector] = fitted, fitted.n_stars or 0
    return Reconstruction(image, sigma, chi2, used, fields, card, n_stars)


def _checked_shape(shape: Any) -> tuple[int, int]:
    """Return a shape (y, x) of whole numbers; ValueError if it is not one."""
    found = np.asarray(shape)
    if found.shape != (2,) or found.dtype.kind not in "iu" or (found < 1).any():
        raise ValueError(f"shape: found {shape}; wanted rows and columns of the detectors, two whole numbers")
    return int(found[0]), int(found[1])


def _host(array: Any) -> npt.NDArray[Any]:
    return np.asarray(array.detach().cpu().numpy() if hasattr(array, "detach") else to_host(array))


def _column(name: str, values: Any, n: int, unit: str | None = None) -> Float:
    """Return a column of n finite numbers on the host; ValueError if it is not one."""
    column = convert_column(values, name, unit)
    if column.shape != (n,):
        raise ValueError(f"{name}: found shape {column.shape}; wanted ({n},)")
    if not np.isfinite(column).all():
        raise ValueError(f"{name}: found a value that is not finite, or masked")
    return column


def border_error(pixels: Float) -> Float:
    """Return the error of stamps (n, 32, 32) from the scatter along their borders."""
    edge = np.ma.masked_invalid(pixels[:, border_mask(STAMP_SIZE, _BORDER)])
    scatter = np.ma.masked_array(mad_scale(edge.filled(np.nan), axis=1), np.ma.getmaskarray(edge).all(axis=1))
    # For stamps without noise, a small share of the star.
    light = np.ma.masked_invalid(pixels).reshape(len(pixels), STAMP_SIZE**2)
    smallest = scatter
    if pixels.size:
        smallest = _MIN_RELATIVE_ERROR * (light.max(axis=1) - np.ma.median(light, axis=1))
    error = np.ma.filled(np.ma.maximum(scatter, smallest), 0.0)
    return np.broadcast_to(np.asarray(error, dtype=np.float64)[:, None, None], pixels.shape)
