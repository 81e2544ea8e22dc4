"""Train CSST-PSFNet: ``csstdask train psf`` with ``kind = "psfnet"``.

The training set are stamp sets (``csstdask mock stores/psf-dataset1.toml``) with one of three kinds of labels:

* ``truth``: the PSFs of the simulator, as published;
* ``psfex``: the PSFs of PSFEx for the same stars, for real data (the paper's weak labels);
* ``stars``: no PSF. The predicted PSF is rendered at the pixels of each star and compared with them, with their noise.
  This adapts a network in orbit.

The loss is the squared error, with PSFs scaled so that their peaks are of the order of one, plus the divergence of the
latent code from a unit Gaussian, whose weight rises from zero over the first epochs (equations 1 to 4). The paper does
not give learning rate, weight decay, size of the code and both weights; our choices are those of `PsfNetConfig`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from csstdask.core.errors import InputError
from csstdask.instrument import Instrument
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card
from csstdask.nn.trainer import Learner, train
from csstdask.psf.model_card import model_kind
from csstdask.psf.psfnet import build_psfnet, pixel_pulls
from csstdask.training.base import load_initial_weights, start_training, write_model
from csstdask.training.psf.config import Labels, PsfNetConfig
from csstdask.training.psf.examples import (
    Batch,
    choose_validation,
    draw_batches,
    label_with_psfex,
    prepare_stars,
    read_stars,
)

log = logging.getLogger("csstdask")

#: Factor on PSFs in the loss: their peaks, some hundredths of their light, are then of the order of one.
_SCALE = 16.0
#: Residual of a pixel beyond which the loss is linear, because of neighbours and cosmic rays [sigma].
_HUBER_DELTA = 10.0
#: Bins of light for the calibration of sigmas.
_BINS = 24


def train_psfnet(config: PsfNetConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train CSST-PSFNet, or resume a training.

    Parameters
    ----------
    config : PsfNetConfig
    to : Path
        Output folder.
    on_progress : callable
        Called with one line for each epoch.

    Returns
    -------
    Path
        The card; the weights are in the same folder.

    Raises
    ------
    InputError
        If a stamp set lacks stars or labels, or `start_from` is a network of another kind, instrument or detectors.
    """
    device = start_training(config, to, device=config.device)
    instrument, stars = read_stars(config, on_progress)
    if config.labels == "psfex":
        on_progress(f"running PSFEx on {len(np.unique(stars.unit))} units")
        stars = label_with_psfex(stars)
    seen = sorted(int(one) for one in np.unique(stars.detector))
    identity = config.identity | {"start": None, "sets": stars.identities}
    start = None if config.start_from is None else _starting_card(config.start_from, instrument, seen)
    new = {"kind": "psfnet", "instrument": instrument.name, "detectors": seen, **config.sizes}
    architecture = new if start is None else start.architecture
    network = build_psfnet(**architecture)
    if config.start_from is not None:
        identity["start"] = load_initial_weights("psf", config.start_from, network)
    detectors = architecture["detectors"]
    validation = choose_validation(stars, config)
    learnt, held_out = (prepare_stars(stars, some, instrument, detectors, config) for some in (~validation, validation))
    steps = -(-len(learnt.pixels) // config.batch)
    learner = Learner(
        network,
        partial(draw_batches, learnt, config, steps),
        steps,
        partial(loss_of, labels=config.labels),
        lambda network: scores(network, held_out, config.labels),
        identity | {"stars": len(learnt.pixels)},
    )
    history = train(learner, config.schedule, to, device=device, on_progress=on_progress)
    found = scores(network.eval(), held_out, config.labels)
    sets = ", ".join(Path(one).name for one in config.campaigns)
    return write_model(
        config,
        network,
        to,
        method=config.method,
        trained_on=f"{len(learnt.pixels)} stars of {sets}, {config.labels}",
        architecture=architecture,
        # Without labels, the error of PSFs is unknown: the calibration stays.
        calibration=start.calibration if start and config.labels == "stars" else calibrate_sigma(network, held_out),
        metrics={
            "data": f"{int(validation.sum())} stars not used in training, compared with their labels ({config.labels})",
            **{name: round(value, 4) for name, value in found.items()},
            "epochs": len(history),
        },
    )


def _starting_card(model: str, instrument: Instrument, detectors: list[int]) -> ModelCard:
    """Return the card of a network to start from; InputError if it is of another kind, instrument or detectors."""
    try:
        card = find_card("psf", model)
    except ValueError as error:
        raise InputError("start_from", str(error), "the name of a network, or its card") from None
    if (kind := model_kind(card)) != "psfnet":
        raise InputError("start_from", f"{card.name}, of kind {kind}", "a network: psfnet")
    if (learnt := card.architecture["instrument"]) != instrument.name:
        raise InputError("start_from", f"{card.name}, of {learnt}", f"a network of {instrument.name}")
    if unknown := set(detectors) - set(card.architecture["detectors"]):
        raise InputError("campaigns", f"stars of detectors {sorted(unknown)}", f"such as {card.name} has learnt")
    return card


def loss_of(network: nn.Module, batch: Batch, *, labels: Labels) -> Tensor:
    """Return the loss: squared errors plus the divergence of the latent code (equations 1 to 3)."""
    batch = batch.to(next(network.parameters()).device)
    image, mean, log_variance = network(*batch.seen)
    divergence = 0.5 * (mean**2 + torch.exp(log_variance) - 1 - log_variance).sum(dim=1).mean()
    if labels == "stars":
        error = _costs(image, batch).mean()
    else:
        error = (_SCALE * (image - batch.psf)).square().sum(dim=(1, 2)).mean()
    return error + batch.divergence * divergence


def _costs(image: Tensor, stars: Batch) -> Tensor:
    """Return the Huber loss of the pulls of the stars' pixels (n, 32, 32)."""
    pulls = pixel_pulls(image, *stars.phase, stars.pixels, stars.weight)
    return 2 * nn.functional.huber_loss(pulls, torch.zeros_like(pulls), reduction="none", delta=_HUBER_DELTA)


def _predictions(network: nn.Module, stars: Batch) -> Iterator[tuple[Tensor, Batch]]:
    device = next(network.parameters()).device
    for which in torch.arange(len(stars.pixels)).split(128):
        batch = stars.take(which).to(device)
        with torch.inference_mode():
            yield network(*batch.seen).image, batch


def scores(network: nn.Module, held_out: Batch, labels: Labels) -> dict[str, float]:
    """Return the score of validation stars: PSNR [dB] of their PSFs, or chi^2 of their pixels."""
    found = []
    for image, batch in _predictions(network, held_out):
        if labels == "stars":
            found.append(_costs(image, batch).mean(dim=(1, 2)))
            continue
        peaks = [one.amax(dim=(1, 2), keepdim=True) for one in (image, batch.psf)]
        error = (image / peaks[0] - batch.psf / peaks[1]).square().mean(dim=(1, 2))
        found.append(-10 * torch.log10(error.clamp_min(1e-24)))
    mean = float(torch.cat(found).mean())
    return {"score": -mean, "chi2": mean} if labels == "stars" else {"score": mean, "psnr": mean}


def calibrate_sigma(network: nn.Module, held_out: Batch) -> dict[str, float]:
    """Calibrate the sigmas of PSFs on labels: a share of the peak, and a share of each sample.

    Parameters
    ----------
    network : Module
    held_out : Batch
        Stars with labels that were not used in training.

    Returns
    -------
    dict
        ``floor`` and ``share``, as `csstdask.psf.psfnet.predict_sigma` takes them.
    """
    light, error = [], []
    for image, batch in _predictions(network, held_out):
        peak = image.amax(dim=(1, 2), keepdim=True)
        light.append((image / peak).flatten().cpu())
        error.append(((image - batch.psf) / peak).flatten().square().cpu())
    of_light, of_error = (torch.cat(one).double().numpy() for one in (light, error))
    number = np.digitize(of_light, np.geomspace(1e-4, 1, _BINS))
    counts = np.bincount(number, minlength=_BINS + 1)
    there = counts > 0
    mean_light, mean_error = (
        np.bincount(number, one, _BINS + 1)[there] / counts[there] for one in (of_light**2, of_error)
    )
    scale = np.maximum(mean_error, 1e-14)
    floor, share = nnls(np.column_stack([np.ones_like(scale), mean_light]) / scale[:, None], np.ones_like(scale))[0]
    return {"floor": float(np.sqrt(floor)), "share": float(np.sqrt(share))}
