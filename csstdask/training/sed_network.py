"""Training of the network ``sed``: the mean, then its covariance, then the calibration.

1. The principal components of inputs and log SEDs come from training stars.
2. The mean learns from fresh noise and a pool of augmented stars. For the first fifth of the training the loss is the mean
   square relative error in units of a typical one at each wavelength. Afterwards each residual is weighted by
   ``sigma^-1``, as the beta-NLL with beta = 1/2 does (Seitzer et al. 2022), with a sigma that a head on detached features
   learns at the same time: noisy stars and wavelengths must not decide alone.
3. With the mean frozen, the covariance head learns the joint likelihood of the modes of the errors, and the beta-NLL of
   the diagonal.
4. Stars of the calibration cells give a factor on sigma for each wavelength, signal-to-noise ratio and temperature.
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

from csstdask.datasets.synthetic_spectra import SyntheticStars, TemplateBank, load_templates, synthetic_stars
from csstdask.flux.sed_network import (
    CALIBRATION_SNR,
    CALIBRATION_TEFF,
    CALIBRATION_WAVELENGTH,
    N_KNOTS,
    SedEstimate,
    SedNetwork,
    mode_nll,
)
from csstdask.flux.spectra import N_SED, REFERENCE_PIXELS, SED_WAVELENGTH, moving_average
from csstdask.nn.trainer import Learner, train
from csstdask.training.sed_config import SedConfig
from csstdask.training.sed_examples import SedBatch, noisy, varied_batches
from csstdask.training.uaranet import band_errors

log = logging.getLogger("csstdask")

#: Share of the training of the mean before residuals are weighted by the sigma of the star.
_WARM_UP = 0.2
#: Share of the epochs that the covariance has, of those of the mean.
_COVARIANCE_EPOCHS = 0.15


class MeanLearner(nn.Module):
    """The network with a temporary head for sigma, which only weights residuals."""

    def __init__(self, network: SedNetwork, typical: Tensor) -> None:
        super().__init__()
        self.network = network
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
        """Return the loss at a share of the training."""
        residual, log_sigma = self.residuals(batch)
        scaled = residual * torch.exp(-self.log_typical)
        if share >= _WARM_UP:
            weight = torch.exp(self.log_typical - log_sigma.detach()).clamp(0.05, 50)
            mean_loss = (scaled.square() * weight).mean()
        else:
            mean_loss = scaled.square().mean()
        fixed = residual.detach().mean(dim=0)
        nll = 0.5 * (fixed * torch.exp(-log_sigma)).square() + log_sigma - self.log_typical
        return mean_loss + 0.2 * nll.mean()


def prepare(network: SedNetwork, bank: TemplateBank, stars: SyntheticStars, extra: np.ndarray | None = None) -> Tensor:
    """Fill the fixed parts of the network from training stars; return typical errors at each wavelength (574,).

    Parameters
    ----------
    network : SedNetwork
    bank : TemplateBank
    stars : SyntheticStars
        Augmented training stars.
    extra : array (n, 2238), optional
        Normalised spectra of real training stars: what of them synthetic stars do not span gives the last quarter of
        the components.
    """
    x = stars.flux / moving_average(stars.flux)
    mean = x.mean(axis=0)
    n_components = len(network.features.components)
    n_synthetic = n_components if extra is None else n_components - n_components // 4
    components = _principal(x - mean, n_synthetic)
    if extra is not None:
        rest = extra - mean
        rest = rest - rest @ components.T @ components
        components = np.concatenate([components, _principal(rest - 0.0, n_components - n_synthetic)])
    scatter = ((x - mean) @ components.T).std(axis=0)
    if extra is not None:
        scatter = np.maximum(scatter, 0.5 * ((extra - mean) @ components.T).std(axis=0))
    log_sed = np.log(stars.sed)
    centre = log_sed.mean(axis=0)
    coefficients, typical = _typical_errors((x - mean) @ components.T, log_sed - centre, scatter)
    del coefficients
    basis = _principal((log_sed - centre) / typical, len(network.sed_basis))
    projected = (log_sed - centre) / typical @ basis.T
    size = projected.std(axis=0)
    with torch.no_grad():
        network.features.mean.copy_(_tensor(mean))
        network.features.components.copy_(_tensor(components))
        network.features.scatter.copy_(_tensor(np.maximum(scatter, 1e-6)))
        network.sed_mean.copy_(_tensor(centre))
        network.sed_basis.copy_(_tensor(size[:, None] * basis * typical))
        labels = np.c_[np.ones(len(projected)), projected / size]
        network.teff_weights.copy_(_tensor(np.linalg.lstsq(labels, np.log(stars.teff), rcond=None)[0]))
    return _tensor(typical)


def _principal(rows: np.ndarray, n: int) -> np.ndarray:
    """Return the first n right singular vectors of rows (m, pixel)."""
    values, vectors = np.linalg.eigh(rows.T.astype(float) @ rows)
    return np.asarray(vectors[:, np.argsort(-values)[:n]].T)


def _typical_errors(coefficients: np.ndarray, log_sed: np.ndarray, scatter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a ridge regression of log SEDs at SNR 30, and the rms of its residuals, not below 0.1 %."""
    noise2 = len(coefficients) / 30.0**2
    weights = np.linalg.solve(
        coefficients.T @ coefficients + noise2 * np.eye(coefficients.shape[1]), coefficients.T @ log_sed
    )
    rng = np.random.default_rng(1)
    seen = coefficients + rng.normal(0, 1 / 30.0, coefficients.shape)
    residual = seen @ weights - log_sed
    typical = np.maximum(residual.std(axis=0), 1e-3)
    del scatter
    return weights, typical


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def train_mean(
    network: SedNetwork, bank: TemplateBank, config: SedConfig, to: Path, extra: np.ndarray | None, announce: Callable[[str], None]
) -> list[dict[str, float]]:
    """Train the ensemble; return the log."""
    rng = np.random.default_rng(config.seed)
    stars = synthetic_stars(bank, "train", config.stars, rng, augment=True)
    typical = prepare(network, bank, stars, extra)
    held_out = synthetic_stars(bank, "validation", config.validation, np.random.default_rng(config.seed + 1))
    checked = list(varied_batches(held_out, 512, config.seed))
    model = MeanLearner(network, typical)
    state = {"epoch": 0}

    def batches(epoch: int) -> Iterable[SedBatch]:
        state["epoch"] = epoch
        return varied_batches(stars, config.batch, config.seed + 1000 * (epoch + 1))

    learner = Learner(
        model,
        batches=batches,
        steps=-(-len(stars) // config.batch),
        loss=lambda one, batch: one.loss(batch, state["epoch"] / config.epochs),  # type: ignore[operator]
        validate=lambda one: _validate_mean(one, checked),
        identity=config.identity,
    )
    return train(learner, config.schedule, to / "mean", device=torch.device("cpu"), announce=announce)


def _validate_mean(model: Any, batches: list[SedBatch]) -> dict[str, float]:
    """Return the validation loss: the mean square error in units of the typical one, and errors in the bands."""
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
