"""Fit a PSF field to the stars of a detector: the common field, and the PSF of each star, with uncertainties.

The fit is linear and Gaussian in all parameters but the flux and position of a star, about which it is linearised anew
in each round. The noise of a pixel is that of the light fitted to it (`csstdask.psf.noise`).

Star i has the coefficients ``c_i`` of a basis (`csstdask.psf.basis`). Its flux, sky and position are eliminated first
(Schur complement), which leaves a quadratic form in ``c_i`` with the curvature ``H_i``. With the coefficients ``C`` of
the field, ``c_i = polynomials_i C + deviation_i``; the deviations, of variance ``D``, are eliminated next by
``(1 + H_i D)^-1 H_i``. ``C`` then follows from one system with as many unknowns as there are polynomials times images.
Both posteriors are exact at the last linearisation. With one star, the result is mostly the prior from simulated
telescopes; with a thousand it is mostly the data.

The first prior of ``C`` is that over all telescopes. Once each star has been fitted individually, the wavefront of the
mean PSF is retrieved (`csstdask.psf.phase_retrieval`), which also predicts what the basis cannot represent. In the next
round, the wavefront of the whole field gives the prior of ``C``, linearised once about the best wavefront.

The remaining truncation error of the basis is common to all stars: it does not average down with their number.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.stamps import sky_from_border
from csstdask.psf.basis import PsfBasis
from csstdask.psf.noise import expected_variance
from csstdask.psf.phase_retrieval import PhaseRetrieval
from csstdask.psf.star_model import (
    FIT_BOX,
    STAR_TERMS,
    NormalEquations,
    ReducedEquations,
    StarModel,
    StarParameters,
    StarStamps,
    batches,
    find_outliers,
    initial_flux,
    truncation_sigma,
)
from csstdask.psf.wavefront import FourierOptics, Wavefront

log = logging.getLogger("csstdask")

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Default 1 sigma of given positions, along each axis [pixel].
POSITION_SIGMA = 0.02
#: Number of sub-pixel phases at which stars sample different parts of the PSF: two samples per pixel along each axis.
_PHASES = 4
#: Relative error of the mean PSF before a star is fitted, for the rejection of outliers.
_INITIAL_MODEL_ERROR = 1.0
#: Relative error of the fitted PSF of a star, for the rejection of outliers.
_MODEL_ERROR = 0.01
#: Share of a star's peak above which pixels enter the first estimate of its flux.
_MIN_CORE_SHARE = 0.2
#: Stars of more than this chi^2, relative to the median of all stars, take no part in the field.
_MAX_RELATIVE_CHI2 = 3.0
#: Stars of more than this fraction of outlying pixels take no part in the field.
_MAX_OUTLIER_FRACTION = 0.1
#: Width of the border of the fitted box for the first estimate of the sky [pixel].
_BORDER = 3


@dataclass(frozen=True, eq=False)
class FieldFit:
    """The PSF of a detector from its stars: n stars, k images of the basis, p polynomials."""

    basis: PsfBasis
    """The given basis; conditioned on the wavefront where one was found."""
    field: Float
    """(p, k) Coefficients of each polynomial and image."""
    covariance: Float
    """(p k, p k) Covariance of `field`."""
    coefficients: Float
    """(n, k) Coefficients of each star."""
    coefficient_covariance: Float
    """(n, k, k)"""
    flux: Float
    """(n,)"""
    x_offset: Float
    """(n,) Fitted minus given position [pixel]."""
    y_offset: Float
    chi2: Float
    """(n,) Chi^2 per degree of freedom; NaN for stars without a usable pixel."""
    used: Mask
    """(n,) Whether a star took part in the field."""
    wavefront: Wavefront | None = None
    """Retrieved wavefront, where optics explain the PSFs of these stars."""


@dataclass(frozen=True, eq=False)
class _Weights:
    """Weights of pixels and the stars that take part in the field."""

    individual: npt.NDArray[Any]
    """(n, size, size) The truncation error of the basis is noise of each star; 0 for outliers."""
    shared: npt.NDArray[Any]
    """(n, size, size) The truncation error of the basis is common to all stars; 0 for outliers."""
    good: Mask
    """(n,) Stars that take part in the field."""


@dataclass(frozen=True, eq=False)
class _Round:
    """A linearisation about current parameters, as input of the later steps of the same iteration."""

    parameters: StarParameters
    reduced: ReducedEquations
    polynomials: Float
    """(n, p)"""
    basis: PsfBasis

    def field_equations(self, good: Mask) -> tuple[Float, Float]:
        """Return the curvature (p k, p k) of the field, and curvature times coefficients (p k,), of good stars."""
        k, terms = len(self.basis), self.polynomials[good]
        curvature, slope = self.reduced.curvature[good], self.reduced.slope[good]
        # Information about the polynomials, the deviation of each star being unknown.
        share = np.linalg.inv(np.eye(k) + curvature * self.basis.intrinsic_scatter)
        information = share @ curvature
        right = np.einsum("nab,nb->na", share, slope)
        right += np.einsum("nab,nb->na", information, self.parameters.coefficients[good])
        normal = np.einsum("npq,nab->paqb", terms[:, :, None] * terms[:, None, :], information, optimize=True)
        normal = normal.reshape(2 * (terms.shape[1] * k,))
        return (normal + normal.T) / 2, (terms.T @ right).ravel()

    def update_individually(self) -> StarParameters:
        """Return the parameters from each star's own pixels and the prior over all telescopes."""
        variance = np.einsum("np,pab->nab", self.polynomials**2, self.basis.field_covariance)
        precision = np.linalg.inv(variance + np.diag(self.basis.intrinsic_scatter))
        curvature = self.reduced.curvature
        right = self.reduced.slope + np.einsum("nab,nb->na", curvature, self.parameters.coefficients)
        return self._update(np.linalg.solve(curvature + precision, right[..., None])[..., 0])

    def update_given_field(self, field: Float) -> StarParameters:
        """Return the parameters from each star's own pixels and a field (p k,)."""
        expected = self.polynomials @ field.reshape(-1, len(self.basis))
        change = expected - self.parameters.coefficients
        slope = self.reduced.slope - np.einsum("nab,nb->na", self.reduced.curvature, change)
        return self._update(expected + np.einsum("nab,nb->na", self._conditional_covariance(), slope))

    def coefficient_covariances(self, covariance: Float) -> Float:
        """Return the covariances (n, k, k) of the coefficients of stars, given that of the field (p k, p k)."""
        terms, k = self.polynomials, len(self.basis)
        conditional = self._conditional_covariance()
        share = np.eye(k) - conditional @ self.reduced.curvature
        blocks = covariance.reshape(2 * (terms.shape[1], k))
        of_field = np.einsum("np,paqb,nq->nab", terms, blocks, terms, optimize=True)
        return np.asarray(conditional + share @ of_field @ share.transpose(0, 2, 1))

    def _conditional_covariance(self) -> Float:
        """Return the covariances (n, k, k) of the coefficients of stars for a known field."""
        precision = np.diag(1 / self.basis.intrinsic_scatter)
        return np.asarray(np.linalg.inv(self.reduced.curvature + precision), dtype=np.float64)

    def _update(self, coefficients: Float) -> StarParameters:
        change = coefficients - self.parameters.coefficients
        return self.parameters.moved(self.reduced.full_step(change))


def fit_field(
    basis: PsfBasis,
    pixels: Pixels,
    variance: Pixels,
    x: Float,
    y: Float,
    polynomials: Float,
    position_sigma: float = POSITION_SIGMA,
    optics: FourierOptics | None = None,
    *,
    shared: bool = True,
) -> FieldFit:
    """Fit the PSF of one detector to its stars.

    Parameters
    ----------
    basis : PsfBasis
        Basis of the detector's band.
    pixels : float32 array (n, y, x)
        Stamps of stars, of any flux and unit.
    variance : float32 array (n, y, x)
        Pixel variance, in that unit squared; inf where unknown.
    x, y : float64 array (n,)
        Offset of each star from the centre of pixel ``[size // 2, size // 2]`` [pixel].
    polynomials : float64 array (n, p)
        Polynomials at the position of each star on the detector.
    position_sigma : float
        1 sigma of `x` and `y` [pixel].
    optics : FourierOptics, optional
        Optics of the band. The wavefront that the stars show, if some are good by the second round, then gives the
        prior of the field and predicts what the basis cannot represent.
    shared : bool
        Whether the truncation error of the basis is the same in all stars: so it is for a telescope that the basis was
        not trained on. Ignored (False) where `optics` are certain.
    """
    stamps = StarStamps.crop(pixels, variance, x, y, position_sigma=position_sigma, size=FIT_BOX)
    shared &= optics is None or not optics.certain
    parameters, weights = _first_estimate(basis, stamps)
    # Each star individually: no star can bias the others before it is checked.
    parameters = _linearise(basis, stamps, parameters, weights, polynomials).update_individually()
    weights = _weigh(basis, stamps, parameters, _MODEL_ERROR, shared=shared)
    # All stars together, with the prior over all telescopes. Their mean PSF shows the wavefront.
    current = _linearise(basis, stamps, parameters, weights, polynomials)
    equations = current.field_equations(weights.good)
    settled = parameters = current.update_given_field(basis.prior.given(*equations).mean)
    use_optics = optics is not None and bool(weights.good.any())
    retrieval = PhaseRetrieval(optics, basis) if optics is not None and use_optics else None
    conditioned, wavefront = basis, None
    if retrieval is not None:
        start = retrieval.search(*equations)
        conditioned = basis.conditioned_on(retrieval.optics.image(start))
    weights = _weigh(conditioned, stamps, parameters, _MODEL_ERROR, shared=shared)
    # With the prior of the wavefront of the whole field, if optics explain these stars.
    current = _linearise(conditioned, stamps, parameters, weights, polynomials)
    equations = current.field_equations(weights.good)
    expected = basis.prior.given(*equations)
    if retrieval is not None:
        expected, wavefront = retrieval.prior(*equations, int(weights.good.sum()), start)
    parameters = current.update_given_field(expected.mean)
    if retrieval is not None and wavefront is not None:
        conditioned = basis.conditioned_on(retrieval.optics.image(wavefront))
    elif retrieval is not None:  # no wavefront: discard what followed from the search
        conditioned, parameters = basis, settled
    weights = _weigh(conditioned, stamps, parameters, _MODEL_ERROR, shared=shared)
    # Once more, linearised about the result.
    current = _linearise(conditioned, stamps, parameters, weights, polynomials)
    final = expected.prior.given(*current.field_equations(weights.good))
    parameters = current.update_given_field(final.mean)
    seen = stamps.usable.any(axis=(1, 2))
    if seen.any() and not weights.good.any():
        log.warning("none of %d stars fits the model: their PSFs are the prior of the model", len(pixels))
    return FieldFit(
        basis=conditioned,
        field=final.mean.reshape(-1, len(basis)),
        covariance=final.covariance,
        coefficients=parameters.coefficients,
        coefficient_covariance=current.coefficient_covariances(final.covariance),
        flux=parameters.flux,
        x_offset=parameters.x - x,
        y_offset=parameters.y - y,
        chi2=_final_chi2(conditioned, stamps, parameters, weights),
        used=weights.good,
        wavefront=wavefront,
    )


def _first_estimate(basis: PsfBasis, stamps: StarStamps) -> tuple[StarParameters, _Weights]:
    """Estimate flux and sky with the mean PSF, first by medians, then by least squares without outliers."""
    n, size = len(stamps), stamps.pixels.shape[-1]
    none = np.zeros((n, len(basis)))
    start = StarParameters(none, np.zeros(n), np.zeros(n), stamps.x, stamps.y)
    image = StarModel.of_basis(basis, size).render(start)
    sky = sky_from_border(stamps.pixels, ~stamps.usable, _BORDER)
    flux = initial_flux(image, stamps.pixels - sky[:, None, None], stamps.usable, min_share=_MIN_CORE_SHARE)
    weights = _weigh(
        basis, stamps, StarParameters(none, flux, sky, stamps.x, stamps.y), _INITIAL_MODEL_ERROR, shared=False
    )
    design = np.stack([image, np.ones_like(image)], axis=1).reshape(n, 2, size**2)
    (flux, sky), _ = (part.T for part in NormalEquations.of(design, stamps.pixels, weights.shared).solve())
    return StarParameters(none, flux, sky, stamps.x, stamps.y), weights


def _linearise(
    basis: PsfBasis, stamps: StarStamps, parameters: StarParameters, weights: _Weights, polynomials: Float
) -> _Round:
    """Linearise the pixels of all stars, and eliminate flux, sky and position of each."""
    model = StarModel.of_basis(basis, stamps.pixels.shape[-1])
    position_precision = np.zeros(len(basis) + STAR_TERMS)
    position_precision[-2:] = stamps.position_sigma**-2
    parts = []
    for batch in batches(len(stamps)):
        some, stars = parameters[batch], stamps[batch]
        lines = model.linearise(some)
        light = some.flux.astype(np.float32)[:, None, None] * lines.image
        residual = stars.pixels - light - some.sky.astype(np.float32)[:, None, None]
        equations = NormalEquations.of(lines.design(some.flux), residual, weights.shared[batch])
        # Positions are held to the given ones, wherever they are by now.
        deviation = np.zeros((len(stars), len(position_precision)))
        deviation[:, -2], deviation[:, -1] = some.x - stars.x, some.y - stars.y
        precision = np.broadcast_to(np.diag(position_precision), equations.matrix.shape)
        parts.append(equations.with_prior(precision, deviation).eliminate(STAR_TERMS))
    reduced = ReducedEquations(
        np.concatenate([part.curvature for part in parts]),
        np.concatenate([part.slope for part in parts]),
        np.concatenate([part.gain for part in parts]),
        np.concatenate([part.step for part in parts]),
    )
    return _Round(parameters, reduced, polynomials, basis)


def _weigh(
    basis: PsfBasis, stamps: StarStamps, parameters: StarParameters, model_error: float, *, shared: bool
) -> _Weights:
    """Weigh pixels, reject outliers, and choose the stars that take part in the field.

    The stars' common information on a PSF pixel, u = sum of flux^2 / variance over stars, is limited by the truncation
    variance t of the basis to u / (1 + u t), for each sub-pixel phase at which they sample it.
    """
    light, residual = _light(basis, stamps, parameters)
    inverse_variance = 1 / expected_variance(stamps.variance, residual, stamps.pixels - residual)
    sigma = truncation_sigma(basis, parameters, stamps.pixels.shape[-1])
    truncation = (inverse_variance * (parameters.flux[:, None, None] * sigma) ** 2).astype(np.float32)
    individual = inverse_variance / (1 + truncation)
    outliers = find_outliers(residual, individual, light, model_error)
    individual = np.where(outliers, 0, individual)
    chi2, outlier_fraction = _reduced_chi2(residual, individual), outliers.mean(axis=(1, 2))
    seen = stamps.usable.any(axis=(1, 2))
    typical = float(np.median(chi2[seen])) if seen.any() else 1.0
    good = seen & (chi2 < _MAX_RELATIVE_CHI2 * max(1.0, typical)) & (outlier_fraction < _MAX_OUTLIER_FRACTION)
    if shared:
        truncation = np.maximum(truncation, truncation[good].sum(axis=0) / _PHASES)
    return _Weights(individual, np.where(outliers, 0, inverse_variance / (1 + truncation)), good)


def _light(basis: PsfBasis, stamps: StarStamps, parameters: StarParameters) -> tuple[Float, Float]:
    """Return the fitted light of stars, and the residuals of their pixels."""
    image = StarModel.of_basis(basis, stamps.pixels.shape[-1]).render(parameters)
    light = parameters.flux[:, None, None] * image
    return light, stamps.pixels - light - parameters.sky[:, None, None]


def _final_chi2(basis: PsfBasis, stamps: StarStamps, parameters: StarParameters, weights: _Weights) -> Float:
    """Return the reduced chi^2 of stars; NaN without a usable pixel."""
    light, residual = _light(basis, stamps, parameters)
    outliers = find_outliers(residual, weights.individual, light, _MODEL_ERROR)
    chi2 = _reduced_chi2(residual, np.where(outliers, 0, weights.individual))
    return np.where(stamps.usable.any(axis=(1, 2)), chi2, np.nan)


def _reduced_chi2(residual: Float, weight: npt.NDArray[Any]) -> Float:
    """Return chi^2 per degree of freedom of each star (n,), over the pixels that have a weight."""
    used = weight > 0
    pull2 = np.where(used, residual**2 * weight, 0)
    degrees = np.maximum(used.sum(axis=(1, 2)) - STAR_TERMS, 1)
    return np.asarray(pull2.sum(axis=(1, 2)) / degrees, dtype=np.float64)
