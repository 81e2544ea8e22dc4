"""Train UaRA-net as published, on the synthetic stars that are available.

Published (section 4.1): Adam at 1e-3, 41,219 stars with signal-to-noise ratios of 20 to 40, batches of 2048, 3000
epochs on a GPU. Here every epoch draws new noise, and batches are smaller. The rate falls to a hundredth along a
cosine, and in the last part batch normalisation is frozen: otherwise the means of a few batches make the validation
loss jump by a percent. The training converges in about an hour on one core.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from csstdask.datasets.synthetic_spectra import SyntheticStars, synthetic_stars
from csstdask.datasets.template_bank import load_templates
from csstdask.flux.spectral_grids import BANDS, in_band
from csstdask.flux.uaranet import UaRANet, published_loss
from csstdask.nn.trainer import Learner, train
from csstdask.training.base import start_training, write_model
from csstdask.training.sed.config import SedConfig
from csstdask.training.sed.examples import PUBLISHED_SNR, SedBatch, noisy, published_batches

log = logging.getLogger("csstdask")


def train_uaranet(config: SedConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train the published network; return its card.

    Parameters
    ----------
    config : SedConfig
        With ``kind = "uaranet"``.
    to : Path
        Folder of the training; an existing training is resumed.
    on_progress : callable
        Receives one line for each epoch.
    """
    device = start_training(config, to)
    bank = load_templates(Path(config.data), seed=config.split_seed)
    stars = synthetic_stars(bank, "train", config.stars, np.random.default_rng(config.seed))
    held_out = synthetic_stars(bank, "validation", config.validation, np.random.default_rng(config.seed + 1))
    checked = list(published_batches(held_out, 512, config.seed))
    network = UaRANet()
    learner = Learner(
        network,
        batches=lambda epoch: _batches(stars, config, epoch),
        steps=-(-len(stars) // config.batch),
        loss=_loss,
        validate=lambda model: _validate(model, checked),
        identity=config.identity,
    )
    history = train(learner, config.schedule, to, device=device, on_progress=on_progress)
    return _write(network, config, history, to)


def _batches(stars: SyntheticStars, config: SedConfig, epoch: int) -> Iterable[SedBatch]:
    return published_batches(stars, config.batch, config.seed + 1000 * (epoch + 1))


def _loss(network: nn.Module, batch: SedBatch) -> torch.Tensor:
    mean, sigma = network(batch.flux, batch.error)
    return published_loss(mean, sigma, batch.sed)


def _validate(network: nn.Module, batches: list[SedBatch]) -> dict[str, float]:
    found = [network(one.flux, one.error) for one in batches]
    mean, sigma = (torch.cat([one[i] for one in found]) for i in (0, 1))
    truth = torch.cat([one.sed for one in batches])
    loss = float(published_loss(mean, sigma, truth))
    return {"validation": loss, **band_errors(mean, truth), "score": -loss}


def band_errors(mean: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Return the rms relative error in each band."""
    square = ((mean - truth) / truth).square()
    return {band: float(square[:, torch.from_numpy(in_band(band))].mean().sqrt()) for band in BANDS}


def _write(network: UaRANet, config: SedConfig, history: list[dict[str, float]], to: Path) -> Path:
    metrics = {
        "data": f"{config.validation} stars of held-out cells, SNR 20-40",
        "epochs": len(history),
        **{name: history[-1][name] for name in ("validation", *BANDS)},
        "last_tenth_gain": last_tenth_gain(history),
    }
    return write_model(
        config,
        network,
        to,
        method="UaRA-net as published (csstdask.flux.uaranet)",
        trained_on=f"{config.stars} stars of DESI templates + ATLAS9",
        architecture={"kind": "uaranet"},
        metrics=metrics,
    )


def last_tenth_gain(history: list[dict[str, float]], key: str = "validation") -> float:
    """Return the relative decrease of the best validation loss in the last tenth of the training."""
    losses = [one[key] for one in history]
    start = max(1, int(0.9 * len(losses)))
    before = min(losses[:start])
    return max(0.0, (before - min(losses)) / abs(before))


def fine_tune(
    network: UaRANet,
    flux: npt.NDArray[np.float32],
    sed: npt.NDArray[np.float32],
    *,
    epochs: int = 200,
    batch: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 1,
) -> UaRANet:
    """Return a copy of the network that is fine-tuned on real stars: Adam at 1e-3, batches of 32, 200 epochs.

    Parameters
    ----------
    network : UaRANet
        Trained network.
    flux : array (n, 2238)
        Normalised spectra; each epoch adds noise of a published signal-to-noise ratio.
    sed : array (n, 574)
        True SEDs; NaN where not observed.
    epochs, batch, learning_rate : optional
        Settings of the fine-tuning, by default as published.
    seed : int
        Seed of batches and noise.
    """
    tuned = copy.deepcopy(network).requires_grad_(requires_grad=True)
    optimiser = torch.optim.Adam(tuned.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    x, truth = torch.from_numpy(flux), torch.from_numpy(sed)
    known = torch.isfinite(truth)
    truth = torch.where(known, truth, torch.ones(()))
    choices = torch.tensor(PUBLISHED_SNR)
    tuned.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch):
            snr = choices[torch.randint(len(choices), (len(index), 1), generator=generator)]
            optimiser.zero_grad(set_to_none=True)
            mean, sigma = tuned(*noisy(x[index], 1 / snr, generator))
            residual = (mean - truth[index]) / truth[index]
            loss = (0.5 * (residual / sigma) ** 2 + torch.log(sigma))[known[index]].mean()
            loss.backward()
            nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
            optimiser.step()
    return tuned.eval().requires_grad_(requires_grad=False)


__all__ = ["band_errors", "fine_tune", "last_tenth_gain", "train_uaranet"]
