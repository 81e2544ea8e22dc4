"""Fit the correction for real stars by Bayesian linear regression at each wavelength, on CALSPEC and MILES.

CALSPEC (HST) defines the truth. MILES has an offset at each wavelength, which is fitted
along with a prior as wide as its known disagreement with HST (7 % at 3600 A). The
inputs of CALSPEC stars come from labels, whose errors vary with temperature: they have two additional terms, with a
prior of 3 %, which do not count for stars with real spectra. Both libraries contribute only where they have data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from csstdask.datasets.spectra import RealStars
from csstdask.flux.real_star_correction import N_DEPEND, N_MODES, N_TERMS, RealStarCorrection
from csstdask.flux.spectral_grids import REFERENCE_PIXELS, SED_WAVELENGTH
from csstdask.numerics.robust import mad_scale

Float = npt.NDArray[np.float64]

#: Standard deviation of the prior on each term of the correction, at 2500, 4000 and 10500 A.
_PRIOR_WAVELENGTH = (2500.0, 3700.0, 4200.0, 10500.0)
_PRIOR_SIGMA = (0.30, 0.15, 0.04, 0.04)
#: Disagreement of MILES and HST on the same stars [A], [relative].
_MILES_WAVELENGTH = (3600.0, 4500.0, 5000.0, 6000.0, 7000.0)
_MILES_ERROR = (0.073, 0.021, 0.018, 0.007, 0.015)
#: Terms by which errors of labels bend the SEDs of CALSPEC stars, and their standard deviation.
_N_LABEL = 2
_LABEL_ERROR = 0.03
#: Number of fits, each weighted by the residual scatter of the previous one, and the smallest scatter.
_ITERATIONS = 3
_MIN_SCATTER = 0.005
#: Scatter of stars about the correction in the first fit, at the wavelengths of the prior.
_INITIAL_SCATTER = (0.15, 0.05, 0.015, 0.015)


@dataclass(frozen=True)
class Predictions:
    """Uncorrected predictions for real stars, and their observed SEDs.

    Attributes
    ----------
    coefficients : array (n, component)
        Coefficients of the predicted log SED.
    log_synthetic : array (n, 574)
        Predicted log SED without the correction, normalised to the reference range.
    log_truth : array (n, 574)
        Observed log SED; NaN where not observed.
    is_miles : bool array (n,)
    """

    coefficients: Float
    log_synthetic: Float
    log_truth: Float
    is_miles: npt.NDArray[np.bool_]

    def take(self, which: npt.NDArray) -> Predictions:
        """Select stars by index or mask."""
        return Predictions(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class CorrectionFit:
    """A fitted correction, as arrays of `csstdask.flux.real_star_correction.RealStarCorrection`."""

    centre: Float
    scale: Float
    weights: Float
    weight_covariance: Float
    label_weights: Float
    """(2, 574) Additional terms of CALSPEC stars, whose inputs come from labels."""

    def terms(self, coefficients: Float) -> Float:
        """Return phi (n, term)."""
        u = np.clip((coefficients[:, :N_DEPEND] - self.centre) / self.scale, -3, 3)
        return np.concatenate([np.ones((len(u), 1)), u, u[:, :1] ** 2], axis=1)

    def __call__(self, coefficients: Float) -> Float:
        """Return offsets of log SEDs (n, 574)."""
        return self.terms(coefficients) @ self.weights

    def with_labels(self, coefficients: Float) -> Float:
        """Return offsets of log SEDs (n, 574) of stars whose inputs come from labels."""
        terms = self.terms(coefficients)
        return terms @ self.weights + terms[:, 1 : 1 + _N_LABEL] @ self.label_weights


def fit_correction(stars: Predictions, *, centre: Float | None = None, scale: Float | None = None) -> CorrectionFit:
    """Fit the correction.

    Parameters
    ----------
    stars : Predictions
        Real stars.
    centre, scale : array (4,), optional
        Centre and scale of the coefficients; by default mean and scatter of the stars.
    """
    given = stars.coefficients[:, :N_DEPEND]
    centre = given.mean(axis=0) if centre is None else centre
    scale = np.maximum(given.std(axis=0), 1e-6) if scale is None else scale
    empty = CorrectionFit(centre, scale, np.zeros((N_TERMS, 1)), np.eye(N_TERMS), np.zeros((_N_LABEL, 1)))
    phi = empty.terms(stars.coefficients)
    offset = stars.is_miles[:, None].astype(float)
    by_labels = phi[:, 1 : 1 + _N_LABEL] * ~stars.is_miles[:, None]
    design = np.concatenate([phi, offset, by_labels], axis=1)
    prior = np.interp(SED_WAVELENGTH, _PRIOR_WAVELENGTH, _PRIOR_SIGMA)
    miles = np.interp(SED_WAVELENGTH, _MILES_WAVELENGTH, _MILES_ERROR)
    start = np.interp(SED_WAVELENGTH, _PRIOR_WAVELENGTH, _INITIAL_SCATTER)
    y = stars.log_truth - stars.log_synthetic
    observed = np.isfinite(y)
    y = np.where(observed, y, 0.0)
    labels = np.full((_N_LABEL, len(SED_WAVELENGTH)), _LABEL_ERROR**-2)
    precision = np.concatenate([np.tile(prior**-2, (N_TERMS, 1)), miles[None] ** -2, labels])
    precision[1:N_TERMS] *= 4  # terms beyond the constant are smaller
    variance = np.where(stars.is_miles[:, None], np.hypot(start, miles), start) ** 2
    for _ in range(_ITERATIONS):
        weight = observed / variance
        normal = np.einsum("ni,nk,nj->kij", design, weight, design, optimize=True)
        normal += np.eye(len(precision)) * precision.T[:, None]
        solved = np.linalg.solve(normal, np.einsum("ni,nk->ki", design, weight * y)[..., None])[..., 0]
        residual = np.where(observed, y - design @ solved.T, np.nan)
        for library in (stars.is_miles, ~stars.is_miles):
            spread = robust_scatter(residual[library])
            variance[library] = np.maximum(spread, _MIN_SCATTER) ** 2 if np.isfinite(spread).any() else start**2
    found = _extend_weights(solved.T, observed.sum(axis=0))
    hst = phi[~stars.is_miles]
    covariance = np.asarray(np.linalg.inv(hst.T @ hst + 0.1 * np.eye(N_TERMS)), dtype=float)
    return CorrectionFit(centre, scale, found[:N_TERMS], covariance, found[N_TERMS + 1 :])


def robust_scatter(residual: Float) -> Float:
    """Return the MAD scatter of residuals at each wavelength (574,), interpolated where unknown."""
    out = np.full(residual.shape[1], np.nan)
    known = np.isfinite(residual).sum(axis=0) >= 4
    if known.any():
        out[known] = mad_scale(residual[:, known], axis=0)
        out = _interpolate_missing(out)
    return out


def _extend_weights(weights: Float, count: npt.NDArray[np.int64]) -> Float:
    """Use the weights of the nearest wavelength with at least four stars where there are fewer."""
    known = np.flatnonzero(count >= 4)
    nearest = known[np.abs(known[None] - np.arange(weights.shape[1])[:, None]).argmin(axis=1)]
    return weights[:, nearest]


def leave_one_out(stars: Predictions, groups: npt.NDArray | None = None) -> Float:
    """Return corrected log SEDs of the HST stars (n_hst, 574), each by a fit without the star.

    Parameters
    ----------
    stars : Predictions
        Real stars.
    groups : array (n,), optional
        Stars of the same group are left out together (the same star in MILES).
    """
    out = []
    group = np.arange(len(stars.coefficients)) if groups is None else groups
    for i in np.flatnonzero(~stars.is_miles):
        fit = fit_correction(stars.take(group != group[i]))
        out.append(stars.log_synthetic[i] + fit.with_labels(stars.coefficients[i : i + 1])[0])
    return normalise_log_sed(np.array(out))


def normalise_log_sed(log_sed: Float) -> Float:
    """Scale log SEDs (n, 574) to a mean flux of 1 in the reference range."""
    return np.asarray(log_sed - np.log(np.exp(log_sed[:, REFERENCE_PIXELS]).mean(axis=1, keepdims=True)))


def scatter_of(residual: Float) -> tuple[Float, Float]:
    """Return modes (4, 574) and noise (574,) that describe the scatter of residuals (n, 574), which may contain NaN.

    Outliers are limited to three robust standard deviations at each wavelength.
    """
    observed = np.isfinite(residual)
    values = np.where(observed, residual, 0.0)
    spread = np.full(residual.shape[1], np.nan)
    known = observed.any(axis=0)
    spread[known] = mad_scale(residual[:, known], axis=0, center=0.0)
    spread = _interpolate_missing(spread)
    values = np.clip(values, -3 * spread, 3 * spread)
    count = np.maximum(observed.sum(axis=0), 1)
    sd = _interpolate_missing(np.where(count >= 4, np.sqrt((values**2).sum(axis=0) / count), np.nan))
    unit = values / np.maximum(sd, 1e-6)
    _, size, vectors = np.linalg.svd(unit, full_matrices=False)
    modes = (size[:N_MODES, None] * vectors[:N_MODES]) / np.sqrt(len(unit)) * sd
    noise = np.sqrt(np.maximum(sd**2 - (modes**2).sum(axis=0), (0.2 * sd) ** 2))
    return modes, noise


def scatter_ratio(stars: Predictions, fit: CorrectionFit, hst_residual: Float) -> Float:
    """Return the scatter (574,) of stars with real spectra over that of CALSPEC stars, whose inputs come from labels.

    The ratio of MILES to CALSPEC where both have data, the nearest such value elsewhere; at most 1.
    """
    ground = stars.take(stars.is_miles)
    residual = normalise_log_sed(ground.log_synthetic + fit(ground.coefficients)) - ground.log_truth
    common = np.isfinite(residual).mean(axis=0) > 0.5
    ratio = robust_scatter(residual) / np.maximum(robust_scatter(hst_residual), 1e-4)
    width = np.ones(41) / 41
    index = np.flatnonzero(common)
    padded = np.pad(ratio[index], 20, mode="edge")
    smooth = np.convolve(padded, width, mode="valid")
    return np.asarray(np.clip(np.interp(np.arange(len(ratio)), index, smooth), 0.3, 1.0))


def _interpolate_missing(values: Float) -> Float:
    known = np.isfinite(values)
    return np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])


def fill_module(module: RealStarCorrection, fit: CorrectionFit, modes: Float, noise: Float) -> None:
    """Copy a fit and its scatter into a module of the network."""
    amplitude = np.sqrt((modes**2).sum(axis=0) + noise**2)
    with torch.no_grad():
        for name, array in (
            ("centre", fit.centre), ("scale", fit.scale), ("weights", fit.weights),
            ("weight_covariance", fit.weight_covariance), ("amplitude", amplitude),
            ("scatter_modes", modes), ("scatter_noise", noise),
        ):  # fmt: skip
            getattr(module, name).copy_(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)))


def fit_logistic(synthetic: torch.Tensor, real: torch.Tensor, *, decay: float = 1e-3, steps: int = 100) -> torch.Tensor:
    """Fit the logistic regression (2 n + 1,) that separates real from synthetic spectra by their features (m, n).

    Both kinds have the same weight.
    """

    def terms(values: torch.Tensor) -> torch.Tensor:
        clipped = values.clamp(-6, 6)
        return torch.cat([torch.ones_like(values[:, :1]), clipped, clipped.square()], dim=1)

    x = torch.cat([terms(synthetic), terms(real)])
    y = torch.cat([torch.zeros(len(synthetic)), torch.ones(len(real))])
    weight = torch.cat([torch.full((len(synthetic),), 1 / len(synthetic)), torch.full((len(real),), 1 / len(real))])
    found = torch.zeros(x.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([found], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(x @ found, y, reduction="none")
        loss = (weight * losses).sum() + decay * found[1:].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return found.detach()


def known_seds(stars: RealStars) -> Float:
    """Return natural logarithms of the SEDs of real stars (n, 574), NaN where not observed."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.log(stars.sed.astype(float)))
