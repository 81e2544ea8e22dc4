"""Fit the PSF field of one detector with the model of a card, and test the result on the same stars."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.nn.card import ModelCard
from csstdask.nn.models import EMPIRICAL, find_card
from csstdask.psf.basis import append_colour_terms, load_basis, polynomials
from csstdask.psf.colour import colour_from_temperature
from csstdask.psf.empirical import GaussianProcessPrior, learn_from_stars
from csstdask.psf.field import PsfField, check_positions, to_unit_square
from csstdask.psf.fit_field import POSITION_SIGMA, FieldFit, fit_field
from csstdask.psf.misfit import MISFIT, stacked_misfit
from csstdask.psf.model_card import band_of, detector_shape, model_kind
from csstdask.psf.pixels import subpixel_offset
from csstdask.psf.wavefront import FourierOptics

log = logging.getLogger("csstdask")

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]


def fit_detector(
    card: ModelCard,
    detector: int,
    pixels: Pixels,
    variance: Pixels,
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
        Of kind ``principal`` or ``empirical``.
    detector : int
        Id of the detector.
    pixels, variance : float32 arrays (n, y, x)
        Stamps of stars, as `csstdask.psf.fit_field.fit_field` takes them.
    x, y : float64 arrays (n,)
        Zero-based positions of the stars [pixel].
    shape : (int, int), optional
        Shape of the frame that contains the stars (y, x); by default that of the instrument's detectors.
    temperature : float64 array (n,), optional
        Effective temperature of each star [K]. The field is then that of a star of `REFERENCE_TEMPERATURE`. Ignored by
        ``empirical``.
    position_sigma : float
        1 sigma of the positions [pixel].
    optics : FourierOptics, optional
        By default those of the model's instrument. Ignored by ``empirical``.

    Raises
    ------
    ValueError
        If the instrument has no such detector, the model does not support its band, or a star is off the detector.
    InputError
        If the shape of the detector is unknown, or the card or its weights cannot be used.
    """
    stars = pixels, variance, subpixel_offset(x), subpixel_offset(y)
    is_empirical = model_kind(card) == EMPIRICAL
    if is_empirical:
        if shape is None:
            raise InputError(card.name, "detectors of no known size", "their shape (y, x) [pixel]")
        check_positions(x, y, shape)
        optics = None
        basis = learn_from_stars(GaussianProcessPrior.of(card), *stars, position_sigma=position_sigma)
    else:
        instrument, band = load_instrument(card.architecture["instrument"]), band_of(card, detector)
        shape = shape or detector_shape(card)
        check_positions(x, y, shape)
        optics = optics or FourierOptics.of(instrument, band)
        basis = load_basis(card, band)
    fitted_basis, terms = basis, polynomials(*to_unit_square(x, y, shape), basis.degree)
    if temperature is not None and not is_empirical:
        colour = colour_from_temperature(temperature, instrument.bands[band].wavelength)
        fitted_basis, terms = basis.with_known_colour(), append_colour_terms(terms, colour)
    fit = fit_field(fitted_basis, *stars, terms, position_sigma, optics, shared=not is_empirical)
    n_stars = int((fit.used & np.isfinite(variance).any(axis=(1, 2))).sum())
    if n_stars == 1:
        log.warning(
            "the PSF of detector %d rests on 1 star: it is mostly the prior of model %s, and its sigma includes that"
            " uncertainty",
            detector,
            card.name,
        )
    # Without the terms of the colour, and as the wavefront has conditioned the basis.
    count = len(basis.field_covariance)
    unknowns = count * len(basis)
    basis = replace(basis, mean=fit.basis.mean, truncation_variance=fit.basis.truncation_variance)
    return fit, PsfField(
        detector=detector,
        shape=shape,
        basis=basis,
        coefficients=fit.field[:count],
        covariance=fit.covariance[:unknowns, :unknowns],
        wavefront=fit.wavefront,
        n_stars=n_stars,
        model=card.name,
    )


def fit_with_fallback(
    card: ModelCard,
    detector: int,
    pixels: Pixels,
    variance: Pixels,
    x: Float,
    y: Float,
    *,
    fall_back: bool,
    shape: tuple[int, int] | None = None,
    temperature: Float | None = None,
    position_sigma: float = POSITION_SIGMA,
    noise_known: bool = True,
) -> tuple[FieldFit, PsfField]:
    """Fit the stars of one detector, and test whether they look like the result (`csstdask.psf.misfit`).

    Sigmas of the field are widened by the misfit. A warning is logged where it exceeds `MISFIT`.

    Parameters
    ----------
    fall_back : bool
        Whether ``empirical`` replaces a model with a large misfit, if it fits better. A warning says so.
    noise_known : bool
        Whether variances are measured: otherwise the misfit is relative to the scatter of single stars.
    card, detector, pixels, variance, x, y, shape, temperature, position_sigma
        As `fit_detector` takes them.
    """

    def fit_and_test(model: ModelCard, **options: Any) -> tuple[FieldFit, PsfField]:
        fit, field = fit_detector(model, detector, pixels, variance, x, y, position_sigma=position_sigma, **options)
        # If most stars were rejected, the model is wrong, not the stars.
        measured = np.isfinite(fit.chi2)
        which = fit.used if fit.used.sum() * 2 > measured.sum() else measured
        misfit = stacked_misfit(field, pixels[which], variance[which], x[which], y[which])
        if not noise_known:
            misfit /= max(1.0, float(np.median(fit.chi2[which]))) if which.any() else 1.0
        return fit, replace(field, misfit=misfit) if model_kind(model) == EMPIRICAL else field.widened(misfit)

    fit, field = fit_and_test(card, shape=shape, temperature=temperature)
    if field.misfit > MISFIT and fall_back and model_kind(card) != EMPIRICAL:
        other_fit, other = fit_and_test(find_card("psf", EMPIRICAL), shape=field.shape)
        if other.misfit < field.misfit and other_fit.used.any():
            log.warning(
                "the stars of detector %d do not look like the telescope of %s (misfit %.1f; 1 is noise): their PSF was"
                " learnt by empirical instead (misfit %.1f)",
                detector,
                card.name,
                field.misfit,
                other.misfit,
            )
            return other_fit, other
    if field.misfit > MISFIT and model_kind(card) != EMPIRICAL:
        log.warning(
            "the stars of detector %d do not look like the PSF of %s (misfit %.1f; 1 is noise): its sigmas are"
            " multiplied by %.1f",
            detector,
            card.name,
            field.misfit,
            np.sqrt(field.misfit),
        )
    return fit, field
