"""Scores and calibration of networks that repair sources, on stamps that they did not learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from csstdask.cosmicray.inpaint_network import (
    SIZE,
    Scaling,
    decode_output,
    deepest_output,
    is_source,
    network_inputs,
    pixel_variance,
)
from csstdask.training.inpaint.examples import Examples

#: Radius within which repaired pixels are summed, to measure the correlation of their errors [pixel].
APERTURE_RADIUS = 5.0
#: Pulls are clipped here in calibrations, so that a few failures do not decide them [sigma].
MAX_PULL = 10.0
#: Errors and pulls are clipped here in scores [sigma].
MAX_SCORED_PULL = 20.0
#: Lowest log likelihood of a pixel in scores.
MIN_LOG_LIKELIHOOD = -50.0


@dataclass(frozen=True)
class Prediction:
    """Predictions for a batch, on its device."""

    height: Tensor
    """Predicted height above the sky [e-], (n, y, x)."""
    variance: Tensor
    """Predicted variance [e-^2], (n, y, x)."""
    examples: Examples
    """The batch."""


@dataclass(frozen=True)
class Pulls:
    """Errors of all hit pixels of some batches, each (pixel,)."""

    pull: Tensor
    """Error over predicted sigma."""
    relative_variance: Tensor
    """Predicted variance over the variance of the pixel itself."""
    source: Tensor
    """Whether the prediction is that of a source."""

    @property
    def error(self) -> Tensor:
        """Return the error in units of the pixel's own noise."""
        return self.pull * self.relative_variance.sqrt()


def validation_scores(network: nn.Module, batches: Sequence[Examples], scaling: Scaling) -> dict[str, float]:
    """Return the errors of predicted hit pixels, in units of their noise.

    Parameters
    ----------
    network : torch.nn.Module
        Network.
    batches : sequence of Examples
        Validation batches.
    scaling : str
        Scaling of the network's input.

    Returns
    -------
    dict
        ``score`` and ``score_source``: mean log likelihood; ``rms_source`` and ``bias_source``: errors of pixels whose
        prediction is above 3 sigma; ``pull_variance``: mean square of error over predicted sigma.
    """
    pulls = measure_pulls(network, batches, scaling)
    likelihood = (-0.5 * (pulls.pull**2 + pulls.relative_variance.log())).clamp_min(MIN_LOG_LIKELIHOOD)
    error, source = pulls.error.clamp(-MAX_SCORED_PULL, MAX_SCORED_PULL), pulls.source
    return {
        "score": float(likelihood.mean()),
        "score_source": float(likelihood[source].mean()),
        "rms_source": float(error[source].square().mean().sqrt()),
        "bias_source": float(error[source].mean()),
        "pull_variance": float(pulls.pull.clamp(-MAX_SCORED_PULL, MAX_SCORED_PULL).square().mean()),
    }


def fit_variance_factors(network: nn.Module, batches: Sequence[Examples], scaling: Scaling) -> dict[str, float]:
    """Return ``calibration`` of a model card: factors of the variance on sky and sources, and their correlation."""
    pulls = measure_pulls(network, batches, scaling)
    factors = {}
    for name, mask in (("sky", ~pulls.source), ("source", pulls.source)):
        square = pulls.pull[mask].clamp(-MAX_PULL, MAX_PULL).square()
        factors[name] = float(square.mean()) if len(square) else 1.0
    return factors | {"correlation": fit_correlation(network, batches, scaling, factors)}


def fit_correlation(
    network: nn.Module, batches: Sequence[Examples], scaling: Scaling, factors: dict[str, float]
) -> float:
    r"""Return the correlation of the errors of repaired pixels of a source, 0 to 1.

    With it, sums over the repaired pixels within `APERTURE_RADIUS` of the centre have pulls of unit variance. The
    variance of a sum is

    .. math:: \sum \sigma_i^2 + \rho \left[ \left(\sum b_i\right)^2 - \sum b_i^2 \right],

    where :math:`b_i^2` is the calibrated variance minus the variance that the pixel itself would have.

    Parameters
    ----------
    network : torch.nn.Module
        Network.
    batches : sequence of Examples
        Batches that did not decide the weights.
    scaling : str
        Scaling of the network's input.
    factors : dict
        Factors of the predicted variance on ``sky`` and on a ``source``.
    """
    offset = torch.arange(SIZE) - SIZE // 2
    aperture = torch.hypot(offset[:, None].float(), offset[None].float()) <= APERTURE_RADIUS
    parts = []
    for predicted in predict(network, batches, scaling):
        stamps, height = predicted.examples.stamps, predicted.height
        inside = stamps.hit & aperture.to(stamps.hit.device)
        calibrated = predicted.variance * torch.where(is_source(height, stamps), factors["source"], factors["sky"])
        excess = (calibrated - pixel_variance(height, stamps.noise)).clamp_min(0)
        planes = (height - predicted.examples.light, calibrated, excess, excess.sqrt())
        parts.append(torch.stack([(plane * inside).sum(dim=(1, 2)) for plane in planes]).cpu())
    error, variance, excess_sum, sigma_sum = torch.cat(parts, dim=1).double().numpy()
    repaired = variance > 0
    error, variance = error[repaired], variance[repaired]
    covariance = sigma_sum[repaired] ** 2 - excess_sum[repaired]

    def excess_variance(correlation: float) -> float:
        square = error**2 / (variance + correlation * covariance)
        return float(np.minimum(square, MAX_PULL**2).mean()) - 1

    if not repaired.any() or excess_variance(0.0) <= 0:
        return 0.0
    return 1.0 if excess_variance(1.0) >= 0 else float(brentq(excess_variance, 0.0, 1.0))


def measure_pulls(network: nn.Module, batches: Sequence[Examples], scaling: Scaling) -> Pulls:
    """Return the errors of a network on the hit pixels of some batches."""
    pulls, variances, sources = [], [], []
    for predicted in predict(network, batches, scaling):
        light, stamps = predicted.examples.light, predicted.examples.stamps
        pull = (predicted.height - light) / predicted.variance.sqrt()
        pulls.append(pull[stamps.hit].cpu())
        variances.append((predicted.variance / pixel_variance(light, stamps.noise))[stamps.hit].cpu())
        sources.append(is_source(predicted.height, stamps)[stamps.hit].cpu())
    return Pulls(torch.cat(pulls), torch.cat(variances), torch.cat(sources))


def predict(network: nn.Module, batches: Sequence[Examples], scaling: Scaling) -> Iterator[Prediction]:
    """Yield the predictions of a network for each batch."""
    network.eval()
    device = next(network.parameters()).device
    for batch in batches:
        examples = batch.to(device)
        with torch.inference_mode():
            output = deepest_output(network(network_inputs(examples.stamps, scaling)))
            height, variance = decode_output(output.float(), examples.stamps, scaling)
        yield Prediction(height, variance, examples)
