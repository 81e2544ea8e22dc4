"""Correct predicted SEDs of real stars, which differ systematically from synthetic ones.

Synthetic SEDs are 16-35 % too bright in the near ultraviolet compared with HST. The correction is a linear function of
a few coefficients of the predicted SED, log F_real = log F_synthetic + phi(c) W, with a Gaussian prior on W. It was
fitted to CALSPEC and MILES stars, wavelength by wavelength, where each library has data. Synthetic spectra keep
their SEDs: a logistic regression on the features of a spectrum gives the probability that it is one of a real star.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from csstdask.flux.spectral_grids import N_SED

#: Coefficients of the SED that the correction depends on.
N_DEPEND = 4
#: Modes of the scatter of real stars about the correction.
N_MODES = 4
#: Terms of phi: 1, the coefficients, and the square of the first.
N_TERMS = N_DEPEND + 2


@dataclass(frozen=True)
class Correction:
    """Offsets of log SEDs, and their contribution to the covariance.

    Attributes
    ----------
    log_offset : tensor (n, 574)
    modes : tensor (n, 5, 574)
        Scatter of real stars about the correction, and uncertainty of the correction.
    noise : tensor (574,)
    """

    log_offset: Tensor
    modes: Tensor
    noise: Tensor


class RealStarCorrection(nn.Module):
    """Correct SEDs of real stars.

    Parameters
    ----------
    n_features : int
        Number of features of a spectrum, for the logistic regression.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(N_DEPEND))
        self.register_buffer("scale", torch.ones(N_DEPEND))
        self.register_buffer("weights", torch.zeros(N_TERMS, N_SED))
        self.register_buffer("weight_covariance", torch.zeros(N_TERMS, N_TERMS))
        self.register_buffer("amplitude", torch.zeros(N_SED))
        self.register_buffer("scatter_modes", torch.zeros(N_MODES, N_SED))
        self.register_buffer("scatter_noise", torch.zeros(N_SED))
        self.register_buffer("logistic", torch.zeros(2 * n_features + 1))
        self.centre: Tensor
        self.scale: Tensor
        self.weights: Tensor
        self.weight_covariance: Tensor
        self.amplitude: Tensor
        self.scatter_modes: Tensor
        self.scatter_noise: Tensor
        self.logistic: Tensor

    def terms(self, coefficients: Tensor) -> Tensor:
        """Return the terms phi (n, term) of coefficients (n, component) of log SEDs."""
        u = ((coefficients[:, :N_DEPEND] - self.centre) / self.scale).clamp(-3, 3)
        return torch.cat([torch.ones_like(u[:, :1]), u, u[:, :1].square()], dim=1)

    def probability(self, values: Tensor) -> Tensor:
        """Return the probability (n,) that a spectrum with these features is one of a real star."""
        clipped = values.clamp(-6, 6)
        found = torch.cat([torch.ones_like(values[:, :1]), clipped, clipped.square()], dim=1)
        return torch.sigmoid(found @ self.logistic)

    def forward(self, coefficients: Tensor) -> Correction:
        """Return the correction of log SEDs with coefficients (n, component)."""
        phi = self.terms(coefficients)
        variance = torch.einsum("ni,ij,nj->n", phi, self.weight_covariance, phi).clamp(min=0)
        uncertainty = variance.sqrt()[:, None, None] * self.amplitude
        modes = torch.cat([self.scatter_modes.expand(len(phi), -1, -1), uncertainty], dim=1)
        return Correction(phi @ self.weights, modes, self.scatter_noise)
