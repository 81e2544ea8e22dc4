"""Predict the residual of a zero point from the residuals of earlier exposures, by a Gaussian process."""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY_DOF = 4.0
"""Degrees of freedom of the errors of the memory: fits to one or two stars may be those of outliers."""
_ROBUST_STEPS = 2
"""Reweightings of the memory."""
_MIN_VARIANCE = 1e-9
"""Smallest predicted variance, against rounding; residuals are in units of the scatter of zero points."""


def predict_residual(
    residual: Tensor, variance: Tensor, age: Tensor, known: Tensor, power: Tensor, time_scale: Tensor,
    response: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Predict a Gaussian process at age 0 from noisy values at earlier times.

    The mean is 0. The covariance between exposures i and j is
    ``sum_c power_c exp(-|age_i - age_j| / time_scale_c) + f_i . f_j`` with features f of their conditions. The second
    term is that of a linear response to the features with unknown coefficients of unit variance (Rasmussen & Williams
    2006, section 2.1).

    Parameters
    ----------
    residual, variance, age, known : tensors (n, K)
        Values, variances of their noise, ages [d], and whether an entry exists.
    power, time_scale : tensors (c,)
        Variances and time scales [d] of the components.
    response : tensor (n, 1 + K, f), optional
        Features of the current exposure and of the entries.

    Returns
    -------
    mean, variance : float64 tensors (n,)
        Prediction and its variance.
    """
    total = power.double().sum().expand(len(residual))
    features = None if response is None else response.double()
    if features is not None:
        total = total + features[:, 0].square().sum(dim=1)
    if residual.shape[1] == 0:
        return torch.zeros_like(total), total
    exists = known.double()
    covariance = _kernel((age[:, :, None] - age[:, None, :]).abs().double(), power, time_scale)
    cross_covariance = _kernel(age.double(), power, time_scale)
    if features is not None:
        covariance = covariance + features[:, 1:] @ features[:, 1:].mT
        cross_covariance = cross_covariance + (features[:, 1:] @ features[:, 0, :, None]).squeeze(-1)
    noise = torch.where(known, variance.double(), torch.ones((), dtype=torch.float64))
    covariance = covariance * exists[:, :, None] * exists[:, None, :]
    cross_covariance, values = cross_covariance * exists, residual.double() * exists
    noise = noise * _outlier_factors(covariance, noise, values)
    weights = torch.linalg.solve(covariance + torch.diag_embed(noise), cross_covariance[..., None]).squeeze(-1)
    mean = (weights * values).sum(dim=1)
    return mean, (total - (weights * cross_covariance).sum(dim=1)).clamp(min=_MIN_VARIANCE)


def _outlier_factors(covariance: Tensor, noise: Tensor, values: Tensor) -> Tensor:
    """Return the factors on the noise variance of entries that the others contradict, tensor (n, K).

    Each entry is predicted from the others (Rasmussen & Williams 2006, section 5.4.2). The factor is that of Student's
    t with `MEMORY_DOF` degrees of freedom.
    """
    factor = torch.ones_like(noise)
    for _ in range(_ROBUST_STEPS):
        inverse = torch.linalg.inv(covariance + torch.diag_embed(noise * factor))
        precision = torch.diagonal(inverse, dim1=-2, dim2=-1).clamp(min=1e-12)
        prediction_variance = (1 / precision - noise * factor).clamp(min=0)
        error = (inverse @ values[..., None]).squeeze(-1) / precision
        factor = ((MEMORY_DOF + error.square() / (prediction_variance + noise)) / (MEMORY_DOF + 1)).clamp(min=1)
    return factor


def _kernel(distance: Tensor, power: Tensor, time_scale: Tensor) -> Tensor:
    """Return a sum of exponential kernels at distances in time [d]."""
    total = torch.zeros_like(distance)
    for variance, scale in zip(power.double(), time_scale.double(), strict=True):
        total = total + variance * torch.exp(-distance / scale)
    return total
