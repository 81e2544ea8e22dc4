"""Training of UaRA-net as published, on the synthetic stars that are at hand.

Published (section 4.1): Adam at 1e-3, 41,219 stars with signal-to-noise ratios of 20 to 40, batches of 2048, 3000
epochs on a GPU. Here every epoch draws its noise anew, batches are smaller and the rate falls to a hundredth along a
cosine, so that the training converges within an hour on one core.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from csstdask.datasets.synthetic_spectra import SyntheticStars, load_templates, synthetic_stars
from csstdask.flux.spectra import BANDS, in_band
from csstdask.flux.uaranet import UaRANet, published_loss
from csstdask.nn.card import ModelCard, write_card
from csstdask.nn.trainer import Learner, Schedule, train
from csstdask.nn.weights import save_weights
from csstdask.training.sed_config import SedConfig
from csstdask.training.sed_examples import SedBatch, published_batches

log = logging.getLogger("csstdask")


def train_uaranet(config: SedConfig, to: Path, *, announce: Callable[[str], None] = log.info) -> Path:
    """Train the published network; return its card.

    Parameters
    ----------
    config : SedConfig
        With ``kind = "uaranet"``.
    to : Path
        Folder of the training, which is resumed if it is there.
    announce : callable
        Receives a line an epoch.
    """
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
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
    history = train(learner, config.schedule, to, device=torch.device("cpu"), announce=announce)
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
    path = to / f"{config.name}.json"
    sha256 = save_weights(network, path.with_suffix(".safetensors"))
    metrics = {
        "data": f"{config.validation} stars of held-out cells, SNR 20-40",
        "epochs": len(history),
        **{name: history[-1][name] for name in ("validation", *BANDS)},
        "last_tenth_gain": last_tenth_gain(history),
    }
    write_card(
        path,
        ModelCard(
            config.name, "sed", config.version, "UaRA-net as published (csstdask.flux.uaranet)", config.licence,
            f"{config.stars} stars of DESI templates + ATLAS9", sha256, architecture={"kind": "uaranet"},
            metrics=metrics,
        ),
    )  # fmt: skip
    return path


def last_tenth_gain(history: list[dict[str, float]], key: str = "validation") -> float:
    """Return by what share the best validation loss fell in the last tenth of the training."""
    losses = [one[key] for one in history]
    start = max(1, int(0.9 * len(losses)))
    before = min(losses[:start])
    return max(0.0, (before - min(losses)) / abs(before))


__all__ = ["Schedule", "band_errors", "last_tenth_gain", "train_uaranet"]
