"""How well PSFs could be known at best, about: the bound that stars' photons set."""

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

_RIDGE = 1e-12


def sample_at_cramer_rao_bound(stars: Stars, card: ModelCard, rng: np.random.Generator) -> tuple[Stars, Images]:
    """Return what an estimate at the bound might be.

    Parameters
    ----------
    stars : Stars
        Of one detector.
    card : ModelCard
        Of principal PSFs.
    rng : Generator

    Returns
    -------
    stars : Stars
        The same, what they themselves show of their PSFs taken for the truth.
    image : float32 array (n, 64, 64)
        As far from these as the bound has it.

    Notes
    -----
    Van Trees' form of Cramer and Rao's bound (van Trees 1968, Detection, Estimation and Modulation Theory, section
    2.4.3): the inverse of what stars tell of the wavefront, the blur, their fluxes, places, skies and colours, and of
    what is expected of these in the mean over telescopes, were Fourier optics of Noll orders 4 to 11 known to be all
    that there is. It is taken about what these very stars show, with the pixels and stars that the fit trusts, and with
    what neither principal images nor the wavefront tell as noise; one telescope may be luckier than telescopes in the
    mean, so that a fit may come out above it.
    """
    optics = FourierOptics.of(load_instrument(card.architecture["instrument"]), band_of(card, stars.detector))
    if optics is None:
        raise ValueError(f"{card.name}: found an instrument without a telescope; wanted one with")
    variance = np.where(stars.mask, np.inf, stars.error.astype(float) ** 2).astype(np.float32)
    fit, _ = fit_detector(
        card, stars.detector, stars.stamps, variance, stars.x, stars.y, shape=stars.shape,
        optics=replace(optics, certain=True),
    )  # fmt: skip
    roots = np.linalg.cholesky(fit.coefficient_covariance + _RIDGE * np.eye(len(fit.basis)))
    change = np.einsum("nab,nb->na", roots, rng.normal(size=fit.coefficients.shape))
    image, drawn = (
        oversampled(fit.basis, amounts, fit.coefficient_covariance)[0]
        for amounts in (fit.coefficients, fit.coefficients + change)
    )
    return replace(stars, truth=image), drawn
