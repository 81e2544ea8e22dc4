"""Train the ensemble that predicts the mean SED, and the fixed parts of the network.

The principal components of inputs and log SEDs come from training stars. The ensemble learns from fresh noise and a
pool of augmented stars. For the first fifth of the training the loss is the mean squared relative error in units of a
typical one at each wavelength. Afterwards each residual is weighted by ``sigma^-1``, as in the beta-NLL with beta = 1/2
(Seitzer et al. 2022), with a sigma that a head on detached features learns at the same time, so that noisy stars and
wavelengths do not dominate.

For the covariance, a second ensemble is trained likewise, each of whose members leaves out a fifth of the cells.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csstdask.datasets.synthetic_spectra import SyntheticStars, synthetic_stars
from csstdask.datasets.template_bank import TemplateBank
from csstdask.flux.normalised_spectra import moving_average
from csstdask.flux.sed_network import (
    N_KNOTS,
    SedNetwork,
)
from csstdask.nn.trainer import Learner, train
from csstdask.training.sed.config import SedConfig
from csstdask.training.sed.examples import SedBatch, varied_batches
from csstdask.training.sed.uaranet import band_errors

log = logging.getLogger("csstdask")
#: Share of the training of the mean before residuals are weighted by the sigma of the star.
_UNWEIGHTED_SHARE = 0.2
#: A member learns from stars with less weight of its fold of cells than this.
_MAX_FOLD_SHARE = 0.25
#: Number of stars for the principal components.
_PCA_STARS = 12_000


class MeanLearner(nn.Module):
    """The network with a temporary head for sigma, which only weights residuals in the loss."""

    def __init__(self, network: SedNetwork, typical: Tensor, *, leave_out: bool = False) -> None:
        super().__init__()
        self.network = network
        self.leave_out = leave_out
        n_in = network.ensemble.first.shape[1]
        self.sigma = nn.Sequential(nn.Linear(n_in, 96), nn.SiLU(), nn.Linear(96, N_KNOTS))
        self.register_buffer("log_typical", torch.log(typical), persistent=False)
        self.log_typical: Tensor

    def residuals(self, batch: SedBatch) -> tuple[Tensor, Tensor]:
        """Return residuals of log SEDs (member, n, 574) and log sigma (n, 574)."""
        with torch.no_grad():
            values = self.network.features(batch.flux, batch.error, batch.fwhm).values
        outputs, _ = self.network.ensemble(values)
        log_sigma = self.sigma(values) @ self.network.covariance.knots + self.log_typical
        return self.network.log_sed(outputs) - torch.log(batch.sed), log_sigma

    def loss(self, batch: SedBatch, share: float) -> Tensor:
        """Return the loss of a batch after a share of the training."""
        residual, log_sigma = self.residuals(batch)
        square = (residual * torch.exp(-self.log_typical)).square()
        if share >= _UNWEIGHTED_SHARE:
            square = square * torch.exp(self.log_typical - log_sigma.detach()).clamp(0.05, 50)
        if self.leave_out:
            learns = (batch.shares[:, : len(residual)].T < _MAX_FOLD_SHARE).float()
            mean_loss = (square.mean(dim=2) * learns).sum() / learns.sum()
        else:
            mean_loss = square.mean()
        fixed = residual.detach().mean(dim=0)
        nll = 0.5 * (fixed * torch.exp(-log_sigma)).square() + log_sigma - self.log_typical
        return mean_loss + 0.2 * nll.mean()


def prepare(network: SedNetwork, stars: SyntheticStars, extra: np.ndarray | None = None) -> Tensor:
    """Set the fixed parts of the network from training stars; return typical errors at each wavelength (574,).

    Parameters
    ----------
    network : SedNetwork
        Network to fill.
    stars : SyntheticStars
        Augmented training stars.
    extra : array (n, 2238), optional
        Normalised spectra of real training stars. The last quarter of the components comes from their residuals from
        the space of synthetic stars.
    """
    flux, sed, teff = stars.flux[:_PCA_STARS], stars.sed[:_PCA_STARS], stars.teff[:_PCA_STARS]
    x = flux / moving_average(flux)
    mean = x.mean(axis=0)
    n_components = len(network.features.components)
    n_synthetic = n_components if extra is None else n_components - n_components // 4
    components = principal_components(x - mean, n_synthetic)
    if extra is not None:
        residual = extra - mean
        residual = residual - residual @ components.T @ components
        components = np.concatenate([components, principal_components(residual - 0.0, n_components - n_synthetic)])
    scatter = ((x - mean) @ components.T).std(axis=0)
    if extra is not None:
        scatter = np.maximum(scatter, 0.5 * ((extra - mean) @ components.T).std(axis=0))
    log_sed = np.log(sed)
    centre = log_sed.mean(axis=0)
    typical = _typical_errors((x - mean) @ components.T, log_sed - centre)
    basis = principal_components((log_sed - centre) / typical, len(network.sed_basis))
    projected = (log_sed - centre) / typical @ basis.T
    size = projected.std(axis=0)
    with torch.no_grad():
        network.features.mean.copy_(to_tensor(mean))
        network.features.components.copy_(to_tensor(components))
        network.features.scatter.copy_(to_tensor(np.maximum(scatter, 1e-6)))
        network.sed_mean.copy_(to_tensor(centre))
        network.sed_basis.copy_(to_tensor(size[:, None] * basis * typical))
        labels = np.c_[np.ones(len(projected)), projected / size]
        network.teff_weights.copy_(to_tensor(np.linalg.lstsq(labels, np.log(teff), rcond=None)[0]))
    return to_tensor(typical)


def principal_components(rows: np.ndarray, n: int) -> np.ndarray:
    """Return the first n right singular vectors of rows (m, pixel)."""
    values, vectors = np.linalg.eigh(rows.T.astype(float) @ rows)
    return np.asarray(vectors[:, np.argsort(-values)[:n]].T)


def _typical_errors(coefficients: np.ndarray, log_sed: np.ndarray) -> np.ndarray:
    """Return the rms error (574,) of a ridge regression of log SEDs at SNR 30, not below 0.1 %."""
    noise2 = len(coefficients) / 30.0**2
    weights = np.linalg.solve(
        coefficients.T @ coefficients + noise2 * np.eye(coefficients.shape[1]), coefficients.T @ log_sed
    )
    seen = coefficients + np.random.default_rng(1).normal(0, 1 / 30.0, coefficients.shape)
    return np.asarray(np.maximum((seen @ weights - log_sed).std(axis=0), 1e-3))


def to_tensor(array: np.ndarray) -> Tensor:
    """Return an array as a float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def train_mean(
    network: SedNetwork,
    bank: TemplateBank,
    config: SedConfig,
    to: Path,
    extra: np.ndarray | None,
    on_progress: Callable[[str], None],
    *,
    leave_out: bool = False,
) -> list[dict[str, float]]:
    """Train the ensemble, or one whose members each leave out a fold of cells; return the log."""
    rng = np.random.default_rng(config.seed)
    stars = synthetic_stars(bank, "train", config.stars, rng, augment=True)
    typical = prepare(network, stars, extra)
    held_out = synthetic_stars(bank, "validation", config.validation, np.random.default_rng(config.seed + 1))
    checked = list(varied_batches(held_out, 512, config.seed))
    model = MeanLearner(network, typical, leave_out=leave_out)
    schedule = config.scout_schedule if leave_out else config.schedule
    state = {"epoch": 0}

    def batches(epoch: int) -> Iterable[SedBatch]:
        state["epoch"] = epoch
        return varied_batches(stars, config.batch, config.seed + 1000 * (epoch + 1))

    learner = Learner(
        model,
        batches=batches,
        steps=-(-len(stars) // config.batch),
        loss=lambda one, batch: one.loss(batch, state["epoch"] / schedule.epochs),  # type: ignore[operator]
        validate=lambda one: _validate_mean(one, checked),
        identity=config.identity,
    )
    return train(
        learner, schedule, to / ("scout" if leave_out else "mean"), device=torch.device("cpu"), on_progress=on_progress
    )


def _validate_mean(model: Any, batches: list[SedBatch]) -> dict[str, float]:
    """Return the validation loss (mean squared error in units of the typical one) and errors in the bands."""
    means, losses = [], []
    for one in batches:
        features = model.network.features(one.flux, one.error, one.fwhm)
        outputs, _ = model.network.ensemble(features.values)
        means.append(torch.exp(model.network.log_sed(outputs.mean(dim=0))))
        residual = torch.log(means[-1]) - torch.log(one.sed)
        losses.append((residual * torch.exp(-model.log_typical)).square().mean(dim=1))
    mean, truth = torch.cat(means), torch.cat([one.sed for one in batches])
    loss = float(torch.cat(losses).mean())
    return {"validation": loss, **band_errors(mean, truth), "score": -loss}
