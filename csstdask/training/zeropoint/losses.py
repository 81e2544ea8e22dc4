"""Losses of trainings of zero-point networks: likelihood, ranking, and the reversed gradient of a discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

STUDENT_DOF = 4.0
"""Degrees of freedom of Student's t, for zero points with outliers (clouds)."""
RANK_SCALE = 0.1
"""Difference of two zero points at which the ranking surrogate bends, in units of their scatter."""
_MIN_VARIANCE = 1e-8
"""Smallest variance in the likelihood, in units of the scatter of zero points squared."""


class _ReverseGradient(torch.autograd.Function):
    """The identity with a reversed gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """Return x; its gradients are multiplied by ``-weight`` (Ganin & Lempitsky 2015)."""
    return _ReverseGradient.apply(x, weight)


def negative_log_likelihood(
    residual: Tensor, variance: Tensor, noise: Tensor, *, loss: str = "gaussian", beta: float = 0.0
) -> Tensor:
    """Return -ln of the likelihood of residuals with the variance ``variance + noise``.

    Parameters
    ----------
    residual, variance, noise : tensors
        Residuals, predicted variances, and variances of the targets; they broadcast.
    loss : str
        ``gaussian`` or ``student``.
    beta : float
        Exponent of the beta-NLL (Seitzer et al. 2022): the likelihood is weighted by the variance to this power.
    """
    total = variance + noise + _MIN_VARIANCE
    square = residual.square() / total
    if loss == "student":
        square = (STUDENT_DOF + 1) * torch.log1p(square / STUDENT_DOF)
    nll = 0.5 * (square + torch.log(total))
    return nll * total.detach().pow(beta) if beta else nll


def ranking_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return a smooth surrogate of the fraction of pairs in the wrong order.

    It is the softplus of the negative margin ``(predicted_i - predicted_j) sign(target_i - target_j)``, for neighbours
    along the last axis; batches are in random order.
    """
    margin = (predicted - predicted.roll(1, dims=-1)) * torch.sign(target - target.roll(1, dims=-1))
    return RANK_SCALE * nn.functional.softplus(-margin / RANK_SCALE).mean()


def wrong_order(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the fraction of pairs in the wrong order, the ranking penalty of the AZP-RC article; no gradient."""
    n = len(predicted)
    with torch.no_grad():
        product = (predicted[:, None] - predicted) * (target[:, None] - target)
        return (product < 0).float().sum() / max(1, n * (n - 1))
