"""Train the covariance of the errors, on out-of-fold errors of an ensemble.

The covariance head learns the joint likelihood of the modes of the errors, and the beta-NLL of the diagonal. The error
of a star is that of the ensemble member that was trained without the star's cell of (Teff, log g, [M/H]).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csstdask.datasets.synthetic_spectra import synthetic_stars
from csstdask.datasets.template_bank import TemplateBank
from csstdask.flux.sed_network import (
    SedNetwork,
    mode_nll,
)
from csstdask.flux.spectral_grids import REFERENCE_PIXELS
from csstdask.nn.trainer import Learner, train
from csstdask.training.sed.config import SedConfig
from csstdask.training.sed.examples import SedBatch, varied_batches
from csstdask.training.sed.mean import principal_components, to_tensor

log = logging.getLogger("csstdask")
#: Exponent of the beta-NLL.
_BETA = 0.5
#: A member does not know stars with more weight of its fold than this.
_MIN_FOLD_SHARE = 0.6


class CovarianceLearner(nn.Module):
    """The covariance head on out-of-fold errors; everything else is frozen."""

    def __init__(self, network: SedNetwork) -> None:
        super().__init__()
        self.head = network.covariance
        self._network = [network]  # not a submodule: it is not trained

    def parts(self, batch: SedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return mode coefficients (n, rank), residuals (n, 574), Cholesky factors and diagonal."""
        network = self._network[0]
        with torch.no_grad():
            residual, values, outputs = out_of_fold(network, batch)
            coefficients = residual @ network.error_projection
            remainder = residual - coefficients @ self.head.basis
        lower, sigma = self.head(torch.cat([values, outputs], dim=1))
        return coefficients, remainder, lower, sigma

    def loss(self, batch: SedBatch) -> Tensor:
        """Return the joint NLL of the modes, per mode, plus the beta-NLL of the diagonal."""
        coefficients, remainder, lower, sigma = self.parts(batch)
        relative = sigma * torch.exp(-self.head.diagonal)
        nll = 0.5 * (remainder / sigma).square() + torch.log(relative)
        weighted = relative.detach() ** (2 * _BETA) * nll
        return mode_nll(coefficients, lower).mean() / self.head.rank + weighted.mean()


def _normalise_log_sed(log_sed: Tensor) -> Tensor:
    return log_sed - torch.log(torch.exp(log_sed[:, REFERENCE_PIXELS]).mean(dim=1, keepdim=True))


def out_of_fold(network: SedNetwork, batch: SedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return out-of-fold residuals of log SEDs (m, 574), features and mean coefficients.

    The residual is that of the member trained without the star's fold; stars whose weight is spread over several folds
    are left out. Stars of held-out cells, which no member was trained with, get the member of their heaviest fold.
    """
    share, fold = batch.shares[:, : network.ensemble.members].max(dim=1)
    known = batch.take(share > _MIN_FOLD_SHARE)
    values = network.features(known.flux, known.error, known.fwhm).values
    outputs = network.ensemble(values)[0]
    out_of_fold_outputs = outputs[fold[share > _MIN_FOLD_SHARE], torch.arange(len(values))]
    return _normalise_log_sed(network.log_sed(out_of_fold_outputs)) - torch.log(known.sed), values, outputs.mean(dim=0)


def prepare_covariance(network: SedNetwork, batches: Iterable[SedBatch]) -> None:
    """Set the fixed basis of the errors from residuals of training stars."""
    with torch.no_grad():
        residuals = [out_of_fold(network, one)[0].numpy() for one in batches]
    residual = np.concatenate(residuals).astype(float)
    size = np.maximum(np.sqrt((residual**2).mean(axis=0)), 1e-4)
    unit = residual / size
    vectors = principal_components(unit, network.covariance.rank)
    amount = np.sqrt(((unit @ vectors.T) ** 2).mean(axis=0))
    basis, projection = amount[:, None] * vectors * size, (vectors / amount[:, None]).T / size[:, None]
    remainder = residual - residual @ projection @ basis
    with torch.no_grad():
        network.covariance.basis.copy_(to_tensor(basis))
        network.error_projection.copy_(to_tensor(projection))
        network.covariance.diagonal.copy_(to_tensor(np.log(np.maximum(np.sqrt((remainder**2).mean(axis=0)), 1e-5))))


def train_covariance(
    network: SedNetwork, bank: TemplateBank, config: SedConfig, to: Path, on_progress: Callable[[str], None]
) -> list[dict[str, float]]:
    """Train the covariance head on new training stars; return the log."""
    stars = synthetic_stars(bank, "train", config.stars // 2, np.random.default_rng(config.seed + 2), augment=True)
    prepare_covariance(network, varied_batches(stars.take(slice(0, 20_000)), 512, config.seed + 3))
    held_out = synthetic_stars(bank, "validation", config.validation, np.random.default_rng(config.seed + 1))
    checked = list(varied_batches(held_out, 512, config.seed))
    schedule = replace(
        config.scout_schedule, epochs=config.covariance_epochs, patience=config.covariance_epochs, learning_rate=2e-3
    )
    learner = Learner(
        CovarianceLearner(network),
        batches=lambda epoch: varied_batches(stars, config.batch, config.seed + 7000 * (epoch + 1)),
        steps=-(-len(stars) // config.batch),
        loss=lambda one, batch: one.loss(batch),  # type: ignore[operator]
        validate=lambda one: _validate_covariance(one, checked),
        identity=config.identity | {"rank": config.rank},
    )
    return train(learner, schedule, to / "covariance", device=torch.device("cpu"), on_progress=on_progress)


def _validate_covariance(model: Any, batches: list[SedBatch]) -> dict[str, float]:
    loss = float(torch.stack([model.loss(one) for one in batches]).mean())
    return {"validation": loss, "score": -loss}
