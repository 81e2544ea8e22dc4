"""The network ``sed``: SEDs with a covariance from normalised spectra of any signal-to-noise ratio.

1. *Features.* The normalised spectrum is projected onto fixed principal components, which keep the positions of lines.
   Each coefficient is divided by its expected scatter, that of stars plus that of noise. The noise level of every
   coefficient follows from the errors of the pixels, so that errors may vary along the spectrum. The width
   of the line-spread function is a feature as well.
2. *Mean.* An ensemble of small residual networks gives coefficients of the logarithm of the SED in a basis of
   principal components.
3. *Covariance.* A head on detached features gives a Cholesky factor in a basis of the errors, and a diagonal. The
   scatter between the members of the ensemble is added in the same basis.
4. *Calibration.* The sigmas are multiplied by a factor of wavelength, signal-to-noise ratio and temperature, and the
   tails are those of a Student distribution; both were measured on stars that are partly of cells not used in training.

Everything is relative: errors of the logarithm of an SED are relative errors of the SED.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from csstdask.flux.real_star_correction import RealStarCorrection
from csstdask.flux.spectral_grids import INPUT_RANGE, INPUT_RESOLUTION, N_INPUT, N_SED, REFERENCE_PIXELS, SED_WAVELENGTH

#: Knots of the diagonal of the covariance, evenly spaced in pixels.
N_KNOTS = 12
#: Nodes of the calibration: wavelength [A], SNR, temperature [K].
CALIBRATION_WAVELENGTH = (
    2500.0,
    2800.0,
    3200.0,
    3500.0,
    3750.0,
    4050.0,
    4500.0,
    5200.0,
    6000.0,
    7000.0,
    8300.0,
    9500.0,
    10500.0,
)
CALIBRATION_SNR = (10.0, 20.0, 40.0, 80.0)
CALIBRATION_TEFF = (5250.0, 5750.0, 6250.0, 7000.0, 8000.0, 9250.0)
#: Other features than coefficients: log noise in eight ranges, two widths of the line-spread function.
N_OTHER = 10
#: Range of signal-to-noise ratios of the training; errors outside are clipped.
SNR_RANGE = (8.0, 130.0)


@dataclass(frozen=True)
class Features:
    """Inputs of the ensemble, and other results of the projection.

    Attributes
    ----------
    values : tensor (n, feature)
        Features scaled to about unit variance.
    snr : tensor (n,)
        Signal-to-noise ratio per pixel: the inverse of the rms error.
    chi2 : tensor (n,)
        Mean squared (spectrum - reconstruction) / error.
    """

    values: Tensor
    snr: Tensor
    chi2: Tensor


def interpolation_matrix(nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the matrix (nodes, at) of linear interpolation between nodes, constant beyond them."""
    return np.stack([np.interp(at, nodes, row) for row in np.eye(len(nodes))])


class SpectrumFeatures(nn.Module):
    """Project normalised spectra onto principal components, scaled by their expected scatter."""

    def __init__(self, n_components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(N_INPUT))
        self.register_buffer("components", torch.zeros(n_components, N_INPUT))
        self.register_buffer("scatter", torch.ones(n_components))
        self.mean: Tensor
        self.components: Tensor
        self.scatter: Tensor

    def forward(self, flux: Tensor, error: Tensor, fwhm: Tensor) -> Features:
        """Return features of spectra and errors (n, 2238; inf where data are missing) with line widths (n, 2) [A]."""
        missing = torch.isinf(error)
        if missing.any():
            flux, error = self._filled(flux, error, missing)
        error = error.clamp(1 / SNR_RANGE[1] / 4, 1.0)
        residual = flux - self.mean
        coefficients = residual @ self.components.T
        noise2 = error.square() @ self.components.square().T
        scaled = coefficients / torch.sqrt(self.scatter.square() + noise2)
        level = torch.log(error.unflatten(1, (-1, N_INPUT // 6)).square().mean(dim=2)) / 2 + 3.4
        mean_square = error.square().mean(dim=1)
        nominal = torch.tensor(INPUT_RANGE, dtype=flux.dtype, device=flux.device) / INPUT_RESOLUTION
        width = torch.log(fwhm / nominal) * 8
        total = torch.log(mean_square)[:, None] / 2 + 3.4
        values = torch.cat([scaled, level, total, width, total.square() / 2], dim=1)
        shrunk = coefficients * self.scatter.square() / (self.scatter.square() + noise2)
        misfit = (residual - shrunk @ self.components) / error
        return Features(values, mean_square.rsqrt(), misfit.square().mean(dim=1))

    def _filled(self, flux: Tensor, error: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
        """Fill missing pixels from the components, by three steps of expectation-maximisation."""
        level = torch.where(missing, 0.0, error).sum(dim=1, keepdim=True) / (~missing).sum(dim=1, keepdim=True).clamp(
            min=1
        )
        error = torch.where(missing, level, error)
        flux = torch.where(missing, self.mean, flux)
        for _ in range(3):
            coefficients = (flux - self.mean) @ self.components.T
            noise2 = error.square() @ self.components.square().T
            shrunk = coefficients * self.scatter.square() / (self.scatter.square() + noise2)
            flux = torch.where(missing, self.mean + shrunk @ self.components, flux)
        return flux, error


class Ensemble(nn.Module):
    """Several residual networks of the same shape, computed together."""

    def __init__(self, n_in: int, n_out: int, members: int, width: int, blocks: int) -> None:
        super().__init__()
        self.members = members
        self.first = nn.Parameter(torch.empty(members, n_in, width))
        self.hidden = nn.Parameter(torch.empty(2 * blocks * members, width, width))
        self.bias = nn.Parameter(torch.zeros(2 * blocks + 1, members, width))
        self.last = nn.Parameter(torch.zeros(members, width, n_out))
        self.linear = nn.Parameter(torch.zeros(members, n_in + 1, n_out))
        with torch.no_grad():
            self.first.normal_(0, n_in**-0.5)
            self.hidden.normal_(0, (2 / width) ** 0.5)
            self.hidden.view(2 * blocks, members, width, width)[1::2] *= 0.3
            self.last.normal_(0, 0.1 * width**-0.5)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (member, n, out) and the last hidden layers (member, n, width) of features (n, in)."""
        x = values.expand(self.members, *values.shape)
        bias = self.bias[:, :, None]
        hidden = self.hidden.split(self.members)
        h = torch.baddbmm(bias[0], x, self.first)
        for k in range(0, len(hidden), 2):
            inner = functional.silu(torch.baddbmm(bias[k + 1], functional.silu(h), hidden[k]))
            h = h + torch.baddbmm(bias[k + 2], inner, hidden[k + 1])
        last = functional.silu(h)
        straight = torch.baddbmm(self.linear[:, -1:], x, self.linear[:, :-1])
        return straight + torch.bmm(last, self.last), last


class CovarianceHead(nn.Module):
    """Covariance of the errors: a Cholesky factor in a fixed basis, and a diagonal on knots."""

    def __init__(self, n_in: int, rank: int, width: int = 128) -> None:
        super().__init__()
        self.rank = rank
        n_lower = rank * (rank + 1) // 2
        self.body = nn.Sequential(nn.Linear(n_in, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, n_lower + N_KNOTS)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("basis", torch.zeros(rank, N_SED))
        self.register_buffer("diagonal", torch.zeros(N_SED))
        knots = interpolation_matrix(np.linspace(0, N_SED - 1, N_KNOTS), np.arange(N_SED))
        self.register_buffer("knots", torch.from_numpy(knots.astype(np.float32)))
        self.basis: Tensor
        self.diagonal: Tensor
        self.knots: Tensor

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return lower triangles (n, rank, rank) of the modes' covariance, and the diagonal's sigma (n, 574)."""
        found = self.out(self.body(values))
        lower = found.new_zeros(len(found), self.rank, self.rank)
        rows, columns = torch.tril_indices(self.rank, self.rank)
        lower[:, rows, columns] = found[:, : len(rows)]
        variance = lower.diagonal(dim1=1, dim2=2)
        lower = lower - torch.diag_embed(variance) + torch.diag_embed(torch.exp(variance.clamp(-6, 6)))
        log_sigma = self.diagonal + (found[:, len(rows) :] @ self.knots).clamp(-4, 4)
        return lower, torch.exp(log_sigma)


@dataclass(frozen=True)
class SedEstimate:
    """SEDs in logarithm, with the parts of their covariance.

    Attributes
    ----------
    log_mean : tensor (n, 574)
        Natural logarithm of SEDs, whose mean flux in the reference range is 1.
    modes : tensor (n, rank, 574)
        Relative errors: the covariance is ``modes.T @ modes + diag(noise^2)``.
    noise : tensor (n, 574)
    features : Features
    teff : tensor (n,)
        Effective temperature for the calibration, not a measurement [K].
    coefficients : tensor (n, component)
        Coefficients of the logarithm of the SED, mean of the ensemble.
    real : tensor (n,)
        Probability with which the correction for real stars was applied.
    dof : tensor (n,)
        Degrees of freedom of the Student distribution of the errors; its central 68 % are one sigma.
    """

    log_mean: Tensor
    modes: Tensor
    noise: Tensor
    features: Features
    teff: Tensor
    coefficients: Tensor
    real: Tensor
    dof: Tensor


class SedNetwork(nn.Module):
    """The network ``sed``.

    Parameters
    ----------
    kind : str
        ``sed``.
    components, sed_components : int
        Numbers of principal components of inputs and of log SEDs.
    members, width, blocks : int
        Members of the ensemble, width of their hidden layers, and residual blocks.
    rank : int
        Rank of the covariance.
    """

    def __init__(
        self,
        kind: str = "sed",
        *,
        components: int = 96,
        sed_components: int = 32,
        members: int = 5,
        width: int = 256,
        blocks: int = 2,
        rank: int = 12,
    ) -> None:
        super().__init__()
        if kind != "sed":
            raise TypeError(f"kind: found {kind!r}; wanted 'sed'")
        self.features = SpectrumFeatures(components)
        self.ensemble = Ensemble(components + N_OTHER, sed_components, members, width, blocks)
        self.covariance = CovarianceHead(components + N_OTHER + sed_components, rank)
        self.real_stars = RealStarCorrection(components + N_OTHER)
        #: Largest misfit of spectra in the domain, as a share of the continuum, and largest mean square of features.
        self.register_buffer("domain_limits", torch.full((2,), torch.inf))
        self.register_buffer("sed_mean", torch.zeros(N_SED))
        self.register_buffer("sed_basis", torch.zeros(sed_components, N_SED))
        self.register_buffer("teff_weights", torch.zeros(sed_components + 1))
        self.register_buffer("error_projection", torch.zeros(N_SED, rank))
        shape = (len(CALIBRATION_SNR), len(CALIBRATION_TEFF), len(CALIBRATION_WAVELENGTH))
        self.register_buffer("log_factor", torch.zeros(shape))
        self.register_buffer("log_dof", torch.full(shape[:2], 4.0))
        to_pixels = interpolation_matrix(np.log(CALIBRATION_WAVELENGTH), np.log(SED_WAVELENGTH))
        self.register_buffer("to_pixels", torch.from_numpy(to_pixels.astype(np.float32)))
        self.domain_limits: Tensor
        self.sed_mean: Tensor
        self.sed_basis: Tensor
        self.teff_weights: Tensor
        self.error_projection: Tensor
        self.log_factor: Tensor
        self.log_dof: Tensor
        self.to_pixels: Tensor

    def log_sed(self, coefficients: Tensor) -> Tensor:
        """Return log SEDs (..., 574) of coefficients (..., component)."""
        return self.sed_mean + coefficients @ self.sed_basis

    def effective_temperature(self, coefficients: Tensor) -> Tensor:
        """Return temperatures (n,) [K], linear in the coefficients in ln Teff."""
        return torch.exp(self.teff_weights[0] + coefficients @ self.teff_weights[1:]).clamp(4500, 11000)

    def forward(self, flux: Tensor, error: Tensor, fwhm: Tensor, real: float | None = None) -> SedEstimate:
        """Return SEDs of normalised spectra.

        Parameters
        ----------
        flux, error : tensor (n, 2238)
        fwhm : tensor (n, 2)
            Widths of their lines at 4000 and 7000 A [A].
        real : float, optional
            Probability that they are of real stars; by default it is inferred from each spectrum.
        """
        features = self.features(flux, error, fwhm)
        outputs, _ = self.ensemble(features.values)
        mean = outputs.mean(dim=0)
        lower, noise = self.covariance(torch.cat([features.values, mean], dim=1))
        if len(outputs) > 1:
            lower = self._with_ensemble(lower, outputs)
        teff = self.effective_temperature(mean)
        factor = torch.exp(self.log_factors(features.snr, teff) @ self.to_pixels)
        modes = torch.einsum("nij,jp->nip", lower.transpose(1, 2), self.covariance.basis) * factor[:, None]
        noise = noise * factor
        probability = self.real_stars.probability(features.values)
        if real is not None:
            probability = torch.full_like(probability, real)
        correction = self.real_stars(mean)
        p = probability[:, None]
        log_mean = self.log_sed(mean) + p * correction.log_offset
        undecided = torch.sqrt(p * (1 - p)) * correction.log_offset
        modes = torch.cat([modes, p[..., None].sqrt() * correction.modes, undecided[:, None]], dim=1)
        noise = torch.sqrt(noise.square() + p * correction.noise.square())
        log_mean, modes = _scaled(log_mean, modes)
        dof = self.degrees_of_freedom(features.snr, teff)
        return SedEstimate(log_mean, modes, noise, features, teff, mean, probability, dof)

    def _with_ensemble(self, lower: Tensor, outputs: Tensor) -> Tensor:
        """Add the scatter between members, in the basis of the errors."""
        spread = (outputs - outputs.mean(dim=0)) @ (self.sed_basis @ self.error_projection)
        between = torch.einsum("mni,mnj->nij", spread, spread) / (len(outputs) - 1)
        return torch.linalg.cholesky(lower @ lower.transpose(1, 2) + between)

    def log_factors(self, snr: Tensor, teff: Tensor) -> Tensor:
        """Return the logarithm of the calibration at its wavelengths (n, node), bilinear in ln SNR and ln Teff."""
        return self._interpolated(self.log_factor, snr, teff)

    def degrees_of_freedom(self, snr: Tensor, teff: Tensor) -> Tensor:
        """Return the degrees of freedom (n,) of the Student distribution that has the tails of the errors."""
        return torch.exp(self._interpolated(self.log_dof[..., None], snr, teff)[:, 0])

    def _interpolated(self, table: Tensor, snr: Tensor, teff: Tensor) -> Tensor:
        low_s, share_s = _between(torch.log(snr), np.log(CALIBRATION_SNR))
        low_t, share_t = _between(torch.log(teff), np.log(CALIBRATION_TEFF))
        return (
            (1 - share_s) * ((1 - share_t) * table[low_s, low_t] + share_t * table[low_s, low_t + 1])
            + share_s * ((1 - share_t) * table[low_s + 1, low_t] + share_t * table[low_s + 1, low_t + 1])
        )  # fmt: skip


def _scaled(log_mean: Tensor, modes: Tensor) -> tuple[Tensor, Tensor]:
    """Scale SEDs to the mean flux of the reference range, which has no error by definition."""
    within = log_mean[:, REFERENCE_PIXELS]
    level = torch.logsumexp(within, dim=1, keepdim=True) - np.log(within.shape[1])
    share = torch.softmax(within, dim=1)
    shift = torch.einsum("nkp,np->nk", modes[..., REFERENCE_PIXELS], share)
    return log_mean - level, modes - shift[..., None]


def _between(values: Tensor, nodes: np.ndarray) -> tuple[Tensor, Tensor]:
    grid = torch.from_numpy(nodes).to(values)
    low = (torch.searchsorted(grid, values, right=True) - 1).clamp(0, len(nodes) - 2)
    share = ((values - grid[low]) / (grid[low + 1] - grid[low])).clamp(0, 1)
    return low, share[:, None]


def mode_nll(residual: Tensor, lower: Tensor) -> Tensor:
    """Return the negative log likelihood of residuals (n, rank) under Gaussians with Cholesky factors `lower` (n,)."""
    z = torch.linalg.solve_triangular(lower, residual[..., None], upper=False)[..., 0]
    return 0.5 * z.square().sum(dim=1) + torch.log(lower.diagonal(dim1=1, dim2=2)).sum(dim=1)
