"""A Gaussian process that predicts the residual of a zero point from those of earlier exposures."""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY_DOF = 4.0
"""Degrees of freedom of errors of the memory: solves with one or two stars may be those of outliers."""
_ROBUST_STEPS = 2
"""Times that the weights of the memory are renewed."""


def level_from_memory(
    residual: Tensor, variance: Tensor, age: Tensor, known: Tensor, power: Tensor, time: Tensor,
    response: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Predict a Gaussian process at age 0 from noisy values at earlier times.

    The covariance between exposures i and j is ``sum_c power_c exp(-|age_i - age_j| / time_c) + f_i . f_j`` with
    features f of their conditions; the mean is 0. The second term is that of a linear response to the features with
    unknown coefficients of unit variance (Rasmussen & Williams 2006, section 2.1).

    Parameters
    ----------
    residual, variance, age, known : tensors (n, K)
        Values, variances of their noise, and how long ago they were measured; entries that are not known do not count.
    power, time : tensors (c,)
    response : tensor (n, 1 + K, f), optional
        Features of now and of the entries.

    Returns
    -------
    mean, variance : float64 tensors (n,)
    """
    total = power.double().sum().expand(len(residual))
    features = None if response is None else response.double()
    if features is not None:
        total = total + features[:, 0].square().sum(dim=1)
    if residual.shape[1] == 0:
        return torch.zeros_like(total), total
    there = known.double()
    covariance = _kernel((age[:, :, None] - age[:, None, :]).abs().double(), power, time)
    towards = _kernel(age.double(), power, time)
    if features is not None:
        covariance = covariance + features[:, 1:] @ features[:, 1:].mT
        towards = towards + (features[:, 1:] @ features[:, 0, :, None]).squeeze(-1)
    noise = torch.where(known, variance.double(), torch.ones((), dtype=torch.float64))
    covariance = covariance * there[:, :, None] * there[:, None, :]
    towards, values = towards * there, residual.double() * there
    noise = noise * _outlier_factors(covariance, noise, values)
    weights = torch.linalg.solve(covariance + torch.diag_embed(noise), towards[..., None]).squeeze(-1)
    mean = (weights * values).sum(dim=1)
    return mean, (total - (weights * towards).sum(dim=1)).clamp(min=1e-9)


def _outlier_factors(covariance: Tensor, noise: Tensor, values: Tensor) -> Tensor:
    """Return by how much the variance of each entry is increased because the others contradict it (n, K).

    Entries are predicted from the others (Rasmussen & Williams 2006, section 5.4.2); the factor is that of Student's t
    with `MEMORY_DOF` degrees of freedom.
    """
    factor = torch.ones_like(noise)
    for _ in range(_ROBUST_STEPS):
        inverse = torch.linalg.inv(covariance + torch.diag_embed(noise * factor))
        precision = torch.diagonal(inverse, dim1=-2, dim2=-1).clamp(min=1e-12)
        others = (1 / precision - noise * factor).clamp(min=0)
        error = (inverse @ values[..., None]).squeeze(-1) / precision
        factor = ((MEMORY_DOF + error.square() / (others + noise)) / (MEMORY_DOF + 1)).clamp(min=1)
    return factor


def _kernel(distance: Tensor, power: Tensor, time: Tensor) -> Tensor:
    out = torch.zeros_like(distance)
    for one, scale in zip(power.double(), time.double(), strict=True):
        out = out + one * torch.exp(-distance / scale)
    return out
