"""The PSF at stars: from undersampled stamps to half-pixel sampling, each pixel with its sigma."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from csstdask.arrays.adapter import adapt, convert_column
from csstdask.arrays.namespace import namespace_of, to_host
from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.nn.card import ModelCard
from csstdask.nn.models import EMPIRICAL, find_card
from csstdask.psf.basis import append_colour_terms, load_basis, polynomials
from csstdask.psf.colour import colour_from_temperature
from csstdask.psf.empirical import GaussianProcessPrior, learn_from_stars
from csstdask.psf.field import PsfField, check_positions, oversampled, to_unit_square
from csstdask.psf.fit_field import POSITION_SIGMA, FieldFit, fit_field
from csstdask.psf.misfit import MISFIT, stacked_misfit
from csstdask.psf.pixels import subpixel_offset
from csstdask.psf.wavefront import FourierOptics

log = logging.getLogger("csstdask")

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]

#: Edge of a stamp [pixel].
STAMP_SIZE = 32
#: Rows and columns along a stamp's edge whose scatter is taken for the noise where none is told.
_RIM = 3
#: Such a share of a star's brightest pixel is the least error where none is told.
_LEAST_ERROR = 1e-3


@dataclass(frozen=True, repr=False)
class Reconstruction:
    """PSFs at n stars.

    Attributes
    ----------
    image : float32 array (n, 64, 64)
        Effective PSF (native pixel included) at half-pixel sampling, centred on ``[32, 32]``; sums to 1. NaN for stamps
        without a usable pixel: ask the detector's field for the PSF there.
    sigma : float32 array (n, 64, 64)
        One sigma of each of its pixels; inf for stamps without a usable pixel.
    chi2 : float64 array (n,)
        Of each star's pixels compared with the fit, per degree of freedom; NaN for stamps without a usable pixel.
    used : bool array (n,)
        Whether the star took part in the field of its detector: blends, galaxies and empty stamps do not.
    fields : dict
        `PsfField` of each detector with a usable pixel, which gives the PSF at any place.
    model : ModelCard
        The requested one. The name of the one that was used is that of each field.
    n_stars : dict
        Number of stars that each detector's field rests on. With one star, sigmas are mostly those that the model
        expects of telescopes; a warning says so.
    """

    image: Any
    sigma: Any
    chi2: Float
    used: npt.NDArray[np.bool_]
    fields: dict[int, PsfField]
    model: ModelCard
    n_stars: dict[int, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return one line: how many stars, and how well the PSF is known."""
        image, sigma = (_host(plane) for plane in (self.image, self.sigma))
        known = np.isfinite(sigma).all(axis=(1, 2)) if len(sigma) else np.zeros(0, dtype=bool)
        at_peak = sigma[known][:, 32, 32] / image[known][:, 32, 32] if known.any() else np.array([np.inf])
        models = sorted({one.model for one in self.fields.values()}) or [self.model.name]
        counts = ", ".join(f"{detector}: {number}" for detector, number in self.n_stars.items()) or "none"
        return (
            f"Reconstruction({len(self.chi2)} stars, model {' and '.join(models)}, n_stars {{{counts}}}, "
            f"sigma / image at the centre {np.median(at_peak):.2g})"
        )


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
    """Reconstruct the PSF at each of some stars; by the default model those of one detector lean on each other.

    ``empirical`` does so for any camera: it knows nothing but that PSFs are smooth (`csstdask.psf.empirical`).
    ``psfnet``, CSST-PSFNet as published, sees each star alone; it gives no fields.

    Parameters
    ----------
    stamps : array (n, 32, 32)
        Of stars, of any flux and unit, on a sky that is constant or gone. Masks, units and uncertainties are used as in
        `csstdask.cosmicray.detect`; a list of ``CCDData`` is accepted, too. Pixel ``[16, 16]`` is the detector's pixel
        ``[floor(y + 0.5), floor(x + 0.5)]``.
    detector : int array (n,)
        Ids, as the model's instrument has them; of ``empirical`` any.
    x, y : float array (n,)
        Of each star on its whole detector, zero-based [pixel].
    error : array (n, 32, 32), optional
        1 sigma, in units of the stamps. By default the scatter along a stamp's edge, everywhere; as that knows nothing
        of the star's photons, sigmas are then scaled by the scatter that the fit finds.
    mask : bool array (n, 32, 32), optional
        True = ignore. Pixels that are not finite, or whose error is not, are ignored as well.
    temperature : float array (n,), optional
        Effective, of each star, as its colours tell it [K]. The PSFs of two stars at one place differ by their
        colour, which their own pixels hardly tell; only models that learnt from stars of all colours look at it.
    model : str
        ``default``, a name that ``csstdask models`` lists, or the path of a card that ``csstdask train psf`` wrote.
    shape : (int, int), optional
        Of the detectors (y, x): by default as the model's instrument has them. ``empirical`` has none, and wants it.
    device : optional
        Of a network, ``cpu`` or ``cuda``. The fit of the default model runs on the host, wherever it is asked to: a few
        seconds for a thousand stars.
    empty : str
        What to return for stamps without a usable pixel: ``unknown`` is NaN with sigma inf; ``expected`` is what the
        model and the other stars of the detector let expect there, with its sigma.

    Returns
    -------
    Reconstruction
        Images of the caller's kind of array, on its device.

    Raises
    ------
    ValueError
        If shapes differ, `shape` is none, a place is not finite or off its detector, or the model or a detector is
        unknown.
    TypeError
        If `error` has a unit that does not convert to that of the stamps, or an array carries something that would be
        lost.
    InputError
        If the model's card or weights cannot be used, or nobody says how large the detectors are.

    Notes
    -----
    Stars of a telescope that the model does not know are recognised by their stacked residuals
    (`csstdask.psf.misfit`): ``default`` then gives way to ``empirical``, with a warning, where that fits better. Sigmas
    of simulated models are multiplied by ``sqrt(max(1, misfit))``; ``fields[detector]`` has the ``misfit``, and the
    name of the ``model`` that was used.
    """
    card = find_card("psf", model)
    by_network = model_kind(card) == "psfnet"
    if shape is not None:
        shape = _shape(shape)
    given = adapt(stamps, error, mask, stamps=True)
    pixels = to_host(given.data).astype(np.float64)
    if pixels.shape[1:] != (STAMP_SIZE, STAMP_SIZE):
        raise ValueError(f"stamps: found shape {pixels.shape}; wanted (n, {STAMP_SIZE}, {STAMP_SIZE})")
    n = len(pixels)
    ids = _column("detector", detector, n)
    across, down = (_column(name, one, n, "pix") for name, one in (("x", x), ("y", y)))
    if (ids != np.rint(ids)).any():
        raise ValueError(f"detector: found {ids[ids != np.rint(ids)][0]}; wanted ids, whole numbers")
    numbers = ids.astype(np.int64)
    pixels[to_host(given.ignore)] = np.nan
    sigma_of = _error(pixels, None if given.error is None else to_host(given.error))
    ignored = ~np.isfinite(pixels) | ~np.isfinite(sigma_of) | (sigma_of <= 0)
    # Any flux and unit: errors of the order of one, or squares of them would leave single precision.
    unit = np.ma.filled(np.ma.median(np.ma.masked_array(sigma_of, ignored).reshape(n, STAMP_SIZE**2), axis=1), 1.0)
    unit = np.where(unit > 0, unit, 1.0)[:, None, None]
    with np.errstate(over="ignore"):
        variance = np.where(ignored, np.inf, (sigma_of / unit) ** 2).astype(np.float32)
    scaled = np.where(ignored, 0, pixels / unit).astype(np.float32)
    if by_network:
        from csstdask.psf.psfnet import predict_psfs  # noqa: PLC0415  torch takes seconds that a fit does not need

        shape = shape or detector_shape(card)
        check_positions(across, down, shape)
        alone = predict_psfs(card, scaled, variance, numbers, across, down, shape, device)
        found = Reconstruction(*alone, np.zeros(n, dtype=bool), {}, card)
    else:
        heat = None if temperature is None else _column("temperature", temperature, n, "K")
        if heat is not None and (heat <= 0).any():
            raise ValueError(f"temperature: found {heat[heat <= 0][0]:g}; wanted kelvins above 0")
        found = _by_fields(
            card, scaled, variance, numbers, across, down, heat, shape,
            fall_back=model == "default", noise_known=given.error is not None,
        )  # fmt: skip
        if given.error is None:
            scatter = np.sqrt(np.fmax(found.chi2, 1.0))[:, None, None].astype(np.float32)
            found = replace(found, sigma=found.sigma * scatter)
    blank = ignored.all(axis=(1, 2))
    if blank.any():
        found = replace(found, used=found.used & ~blank, chi2=np.where(blank, np.nan, found.chi2))
        if empty == "unknown":
            found.image[blank], found.sigma[blank] = np.nan, np.inf
    image, sigma = (
        given.adapter.to_caller(namespace_of(given.data).asarray(plane)) for plane in (found.image, found.sigma)
    )
    return replace(found, image=image, sigma=sigma)


def _by_fields(
    card: ModelCard,
    pixels: npt.NDArray[np.float32],
    variance: npt.NDArray[np.float32],
    detector: npt.NDArray[np.int64],
    x: Float,
    y: Float,
    temperature: Float | None,
    shape: tuple[int, int] | None,
    *,
    fall_back: bool,
    noise_known: bool,
) -> Reconstruction:
    """Fit all stars of a detector at once, detector by detector."""
    n = len(pixels)
    image, sigma = np.empty((n, 64, 64), np.float32), np.empty((n, 64, 64), np.float32)
    chi2, used = np.full(n, np.nan), np.zeros(n, dtype=bool)
    fields: dict[int, PsfField] = {}
    n_stars: dict[int, int] = {}
    for one in np.unique(detector).tolist():
        some = np.flatnonzero(detector == one)
        stars = pixels[some], variance[some], x[some], y[some]
        heat = None if temperature is None else temperature[some]
        fit, fitted = fit_with_fallback(
            card, one, *stars, shape=shape, temperature=heat, fall_back=fall_back, noise_known=noise_known
        )
        image[some], sigma[some] = oversampled(fit.basis, fit.coefficients, fit.coefficient_covariance)
        if fitted.misfit > 1 and fitted.model != EMPIRICAL:
            sigma[some] *= np.float32(np.sqrt(fitted.misfit))
        chi2[some], used[some] = fit.chi2, fit.used
        if np.isfinite(stars[1]).any():
            fields[one], n_stars[one] = fitted, fitted.n_stars or 0
    return Reconstruction(image, sigma, chi2, used, fields, card, n_stars)


def fit_detector(
    card: ModelCard,
    detector: int,
    pixels: npt.NDArray[np.float32],
    variance: npt.NDArray[np.float32],
    x: Float,
    y: Float,
    *,
    shape: tuple[int, int] | None = None,
    temperature: Float | None = None,
    position_sigma: float = POSITION_SIGMA,
    optics: FourierOptics | None = None,
) -> tuple[FieldFit, PsfField]:
    """Fit the stars of one detector.

    Parameters
    ----------
    card : ModelCard
        Of principal PSFs, or of what is to be learnt from these stars.
    detector : int
        Its id.
    pixels, variance : float32 arrays (n, y, x)
        As `csstdask.psf.fit_field.fit_field` takes them.
    x, y : float64 arrays (n,)
        Of each star, zero-based [pixel].
    shape : (int, int), optional
        Of what they lie on (y, x): by default the whole detector.
    temperature : float64 array (n,), optional
        Of each star [K], where it is known. The field is then that of a star of `USUAL_TEMPERATURE`. What is learnt
        from these stars alone does not look at it.
    place : float
        How well places are known, one sigma [pixel].
    optics : FourierOptics, optional
        By default those of the card's instrument, as far as stars bear them out. What is learnt from these stars alone
        does not look at them.

    Raises
    ------
    ValueError
        If the instrument has no such detector, the card knows nothing of its band, or a star is off the detector.
    InputError
        If nobody says how large the detector is, or the card or its weights cannot be used.
    """
    stars = pixels, variance, subpixel_offset(x), subpixel_offset(y)
    learnt_here = model_kind(card) == EMPIRICAL
    if learnt_here:
        if shape is None:
            raise InputError(card.name, "detectors of no known size", "their shape (y, x) [pixel]")
        check_positions(x, y, shape)
        optics = None
        expected = psfs = learn_from_stars(GaussianProcessPrior.of(card), *stars, position_sigma=position_sigma)
        places = polynomials(*to_unit_square(x, y, shape), psfs.degree)
    else:
        instrument, band = load_instrument(card.architecture["instrument"]), band_of(card, detector)
        shape = shape or detector_shape(card)
        check_positions(x, y, shape)
        optics = optics or FourierOptics.of(instrument, band)
        expected = psfs = load_basis(card, band)
        places = polynomials(*to_unit_square(x, y, shape), psfs.degree)
        if temperature is not None:
            colour = colour_from_temperature(temperature, instrument.bands[band].wavelength)
            expected, places = psfs.with_known_colour(), append_colour_terms(places, colour)
    fit = fit_field(expected, *stars, places, position_sigma, optics, shared=not learnt_here)
    psfs = replace(
        psfs, mean=fit.basis.mean, truncation_variance=fit.basis.truncation_variance
    )  # as the wavefront tells them
    terms = len(psfs.field_covariance)  # those of the place alone
    covariance = fit.covariance[: terms * len(psfs), : terms * len(psfs)]
    n_stars = int((fit.used & np.isfinite(variance).any(axis=(1, 2))).sum())
    if n_stars == 1:
        log.warning(
            "the PSF of detector %d rests on 1 star: it is mostly what %s expects, and its sigma says how well"
            " that is known",
            detector, card.name,
        )  # fmt: skip
    return fit, PsfField(detector, shape, psfs, fit.field[:terms], covariance, fit.wavefront, n_stars, model=card.name)


def fit_with_fallback(
    card: ModelCard,
    detector: int,
    pixels: npt.NDArray[np.float32],
    variance: npt.NDArray[np.float32],
    x: Float,
    y: Float,
    *,
    fall_back: bool,
    shape: tuple[int, int] | None = None,
    temperature: Float | None = None,
    position_sigma: float = POSITION_SIGMA,
    noise_known: bool = True,
) -> tuple[FieldFit, PsfField]:
    """Fit the stars of one detector, and see whether they look like the result (`csstdask.psf.misfit`).

    Sigmas of the field are widened by the misfit. Where it exceeds `MISFIT`, a warning is given.

    Parameters
    ----------
    fall_back : bool
        Whether ``empirical`` takes the place of a model that the stars do not look like, if they look more like that.
        A warning says so.
    noise_known : bool
        Whether variances are measured: otherwise the misfit is relative to the scatter of single stars.
    card, detector, pixels, variance, x, y, shape, temperature, place
        As `fit_detector` takes them.
    """
    stars = pixels, variance, x, y

    def judged(one: ModelCard, **more: Any) -> tuple[FieldFit, PsfField]:
        fit, field = fit_detector(one, detector, *stars, position_sigma=position_sigma, **more)
        # If hardly any star looks like one, it is the model that is wrong.
        which = fit.used if fit.used.sum() * 2 > np.isfinite(fit.chi2).sum() else np.isfinite(fit.chi2)
        misfit = stacked_misfit(field, pixels[which], variance[which], x[which], y[which])
        if not noise_known:
            misfit /= max(1.0, float(np.median(fit.chi2[which]))) if which.any() else 1.0
        return fit, replace(field, misfit=misfit) if model_kind(one) == EMPIRICAL else field.widened(misfit)

    fit, field = judged(card, shape=shape, temperature=temperature)
    if field.misfit > MISFIT and fall_back and model_kind(card) != EMPIRICAL:
        other = judged(find_card("psf", EMPIRICAL), shape=field.shape)
        if other[1].misfit < field.misfit and other[0].used.any():
            log.warning(
                "the stars of detector %d do not look like the telescope of %s (misfit %.1f; 1 is noise): their PSF was"
                " learnt by empirical instead (misfit %.1f)",
                detector, card.name, field.misfit, other[1].misfit,
            )  # fmt: skip
            return other
    if field.misfit > MISFIT and model_kind(card) != EMPIRICAL:
        log.warning(
            "the stars of detector %d do not look like the PSF of %s (misfit %.1f; 1 is noise): its sigmas are"
            " multiplied by %.1f",
            detector, card.name, field.misfit, np.sqrt(field.misfit),
        )  # fmt: skip
    return fit, field


def model_kind(card: ModelCard) -> str:
    """Return what a card is of: ``principal``, ``psfnet``, or ``empirical``, which has no weights.

    Raises
    ------
    InputError
        If it is of something else.
    """
    kind = str(card.architecture.get("kind", EMPIRICAL))
    if kind not in (known := ("principal", "psfnet", EMPIRICAL)):
        raise InputError(card.name, f"a model of kind {kind}", f"one of {', '.join(known)}")
    return kind


def supports_detector(card: ModelCard, detector: int) -> bool:
    """Tell whether a card, of whatever kind, can say anything of a detector."""
    kind = model_kind(card)
    if kind == EMPIRICAL:
        return True
    return detector in (card.architecture["detectors"] if kind == "psfnet" else bands_of(card))


def check_detector(card: ModelCard, detector: int) -> None:
    """Raise ValueError if a card of fields knows nothing of a detector; InputError if it is of no fields."""
    if model_kind(card) != EMPIRICAL:
        band_of(card, detector)


def band_of(card: ModelCard, detector: int) -> str:
    """Return the band of a detector of the instrument that a card was made for.

    Raises
    ------
    ValueError
        If there is no such detector, or the card knows nothing of its band.
    """
    known = bands_of(card)
    if detector not in known:
        raise ValueError(f"detector: found {detector}; wanted one of {', '.join(map(str, sorted(known)))}")
    return known[detector]


def bands_of(card: ModelCard) -> dict[int, str]:
    """Return the band of each detector that a card knows the PSFs of; InputError where it knows single stars alone."""
    if model_kind(card) != "principal":
        raise InputError(card.name, f"a model of kind {model_kind(card)}", "one that knows fields: principal")
    instrument = load_instrument(card.architecture["instrument"])
    return {one.id: str(one.band) for one in instrument.detectors if one.band in card.architecture["bands"]}


def detector_shape(card: ModelCard) -> tuple[int, int]:
    """Return the shape (y, x) of the detectors that a card was made for; InputError if its instrument tells none."""
    instrument = load_instrument(card.architecture["instrument"])
    if instrument.shape is None:
        raise InputError(card.name, f"{instrument.name}, whose detectors have no size", "an instrument with a shape")
    return instrument.shape


def _shape(shape: Any) -> tuple[int, int]:
    """Return a shape (y, x) of whole numbers; ValueError if it is none."""
    found = np.asarray(shape)
    if found.shape != (2,) or found.dtype.kind not in "iu" or (found < 1).any():
        raise ValueError(f"shape: found {shape}; wanted rows and columns of the detectors, two whole numbers")
    return int(found[0]), int(found[1])


def _host(array: Any) -> npt.NDArray[Any]:
    return np.asarray(array.detach().cpu().numpy() if hasattr(array, "detach") else to_host(array))


def _column(name: str, values: Any, n: int, unit: str | None = None) -> Float:
    """Return a column of n numbers on the host."""
    column = convert_column(values, name, unit)
    if column.shape != (n,):
        raise ValueError(f"{name}: found shape {column.shape}; wanted ({n},)")
    if not np.isfinite(column).all():
        raise ValueError(f"{name}: found a value that is not finite, or masked")
    return column


def _error(pixels: Float, error: npt.NDArray[Any] | None) -> Float:
    """Return the error of each pixel: as it is told, or the scatter along its stamp's edge."""
    if error is not None:
        return error.astype(np.float64)
    rim = np.ones((STAMP_SIZE, STAMP_SIZE), dtype=bool)
    rim[_RIM:-_RIM, _RIM:-_RIM] = False
    edge = np.ma.masked_invalid(pixels[:, rim])
    scatter = 1.4826 * np.ma.median(np.ma.abs(edge - np.ma.median(edge, axis=1, keepdims=True)), axis=1)
    # Of stamps without any noise, something that is small beside the star.
    light = np.ma.masked_invalid(pixels).reshape(len(pixels), STAMP_SIZE**2)
    least = _LEAST_ERROR * (light.max(axis=1) - np.ma.median(light, axis=1)) if pixels.size else scatter
    told = np.ma.filled(np.ma.maximum(scatter, least), 0.0)
    return np.broadcast_to(np.asarray(told, dtype=np.float64)[:, None, None], pixels.shape)
