"""The best accuracy of PSFs that the photons of stars allow: the Cramer-Rao bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csstdask.instrument import load_instrument
from csstdask.metrics.psf import Images, Stars
from csstdask.nn.card import ModelCard
from csstdask.psf.field import oversampled
from csstdask.psf.fit_detector import fit_detector
from csstdask.psf.model_card import band_of
from csstdask.psf.wavefront import FourierOptics

#: Variance added to coefficients, so that rounding does not make their covariance indefinite.
_MIN_VARIANCE = 1e-12


def sample_at_cramer_rao_bound(stars: Stars, card: ModelCard, rng: np.random.Generator) -> tuple[Stars, Images]:
    """Draw a PSF estimate with the errors of the Cramer-Rao bound.

    Parameters
    ----------
    stars : Stars
        Stars of one detector.
    card : ModelCard
        Model of kind ``principal``.
    rng : Generator

    Returns
    -------
    stars : Stars
        The same stars, with the PSFs fitted to them as the truth.
    image : float32 array (n, 64, 64)
        PSFs with random errors of the size of the bound.

    Notes
    -----
    The bound is that of van Trees (1968, Detection, Estimation and Modulation Theory, section 2.4.3): the inverse of
    the information of the stars on the wavefront, the blur, their fluxes, positions, skies and colours, plus that of
    the prior over telescopes, if Fourier optics with Noll orders 4 to 11 were exact. It is computed at the PSFs that
    these stars show, with the pixels and stars that the fit accepts, and with the truncation error of the basis as
    noise. The prior is that of the mean telescope, so that a fit to one telescope may be better than the bound.
    """
    optics = FourierOptics.of(load_instrument(card.architecture["instrument"]), band_of(card, stars.detector))
    if optics is None:
        raise ValueError(f"{card.name}: found an instrument without a telescope; wanted one with")
    variance = np.where(stars.mask, np.inf, stars.error.astype(float) ** 2).astype(np.float32)
    fit, _ = fit_detector(
        card, stars.detector, stars.stamps, variance, stars.x, stars.y, shape=stars.shape,
        optics=replace(optics, certain=True),
    )  # fmt: skip
    roots = np.linalg.cholesky(fit.coefficient_covariance + _MIN_VARIANCE * np.eye(len(fit.basis)))
    change = np.einsum("nab,nb->na", roots, rng.normal(size=fit.coefficients.shape))
    image, drawn = (
        oversampled(fit.basis, amounts, fit.coefficient_covariance)[0]
        for amounts in (fit.coefficients, fit.coefficients + change)
    )
    return replace(stars, truth=image), drawn
