"""Training of zero-point networks: losses by hand, gaps, and small trainings that are resumed or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from csstdask.core.errors import InputError
from csstdask.nn.card import read_card
from csstdask.training.zeropoint.augmentation import drop_inputs
from csstdask.training.zeropoint.fit import FitSettings, fit_prior
from csstdask.training.zeropoint.losses import (
    negative_log_likelihood,
    ranking_loss,
    reverse_gradient,
    wrong_order,
)
from csstdask.training.zeropoint.train import load_zeropoint_config, train_zeropoint
from csstdask.zeropoint.memory import build_memory
from csstdask.zeropoint.prior import PriorInputs, predict_with_network, prior_arrays
from csstdask.zeropoint.prior.network import PriorNetwork

TINY = {"exposures": 64, "epochs": 2, "batch": 32, "members": 1, "width": 8, "latent": 4, "memory": 4}


def quiet(_: str) -> None:
    """Report nothing."""


def linear_case(n: int, seed: int) -> tuple[PriorInputs, np.ndarray]:
    """Return zero points that follow one condition, 0.03 mag per unit, with noise of 0.004 mag."""
    rng = np.random.default_rng(seed)
    days = np.sort(rng.uniform(0, n / 10, n))
    heat = rng.normal(size=n)
    truth = 25 + 0.03 * heat + 0.004 * rng.normal(size=n)
    memory = build_memory(days, truth, np.full(n, 0.001), length=4)
    inputs = PriorInputs(np.full(n, 25.0), days, {"heat": heat}, memory, {"heat": memory.lookup(heat)})
    return inputs, truth


def test_prior_learns_and_is_calibrated() -> None:
    network = PriorNetwork(("heat",), memory=4, stars=False, image=False, width=8, latent=4)
    inputs, truth = linear_case(800, 1)
    later, expected = linear_case(400, 2)
    settings = FitSettings(epochs=15, batch=64, learning_rate=1e-2)
    history = fit_prior(network, inputs, truth, validation=(later, expected), settings=settings, on_progress=quiet)
    assert history[-1]["rmse"] < 0.006
    prior = predict_with_network(network, later)
    error = prior.value - expected
    assert np.sqrt(np.mean(error**2)) < 0.006
    assert np.mean(np.abs(error) < prior.sigma) == pytest.approx(0.683, abs=0.08)


def test_missing_targets_are_ignored() -> None:
    network = PriorNetwork(("heat",), memory=2, stars=False, image=False, width=8, latent=4)
    inputs, truth = linear_case(100, 3)
    truth[::2] = np.nan
    history = fit_prior(network, inputs, truth, settings=FitSettings(epochs=1, batch=50), on_progress=quiet)
    assert np.isfinite(history[-1]["loss"])


def test_likelihood_by_hand() -> None:
    residual, variance, noise = torch.tensor([0.3]), torch.tensor([0.05]), torch.tensor([0.04])
    normal = torch.distributions.Normal(0.0, 0.3)
    found = negative_log_likelihood(residual, variance, noise)
    assert float(found) == pytest.approx(-float(normal.log_prob(residual)) - 0.5 * np.log(2 * np.pi), rel=1e-5)
    student = negative_log_likelihood(residual * 10, variance, noise, loss="student")
    assert float(student) < float(negative_log_likelihood(residual * 10, variance, noise))


def test_ranking_surrogate_has_a_gradient_and_the_published_indicator_has_none() -> None:
    target = torch.tensor([0.0, 1.0, 2.0, 3.0])
    predicted = torch.tensor([3.0, 2.0, 1.0, 0.0], requires_grad=True)
    ranking_loss(predicted, target).backward()
    assert predicted.grad is not None
    assert predicted.grad.abs().sum() > 0
    assert float(ranking_loss(target, target)) < float(ranking_loss(-target, target))
    assert float(wrong_order(-target, target)) == 1.0
    assert float(wrong_order(target, target)) == 0.0
    assert not wrong_order(predicted, target).requires_grad


def test_gradient_is_reversed() -> None:
    x = torch.ones(3, requires_grad=True)
    (2 * reverse_gradient(x, 0.5)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-1.0, -1.0, -1.0]


def test_inputs_are_withheld_at_random() -> None:
    inputs, _ = linear_case(300, 4)
    arrays = prior_arrays(inputs, ("heat",), memory=4)
    settings = FitSettings(drop_telemetry=0.2, drop_memory=0.2)
    dropped = drop_inputs(arrays, settings, np.random.default_rng(1))
    lost = np.isnan(dropped.telemetry[:, 0])
    assert 0.15 < lost.mean() < 0.45
    assert np.array_equal(dropped.telemetry[~lost], arrays.telemetry[~lost])
    blank = np.isnan(dropped.memory).all(axis=(1, 2)).mean()
    assert 0.13 < blank < 0.27
    # Where the newest entries are withheld, the older ones move up.
    moved = ~np.isnan(dropped.memory[:, 0, 2]) & (dropped.memory[:, 0, 2] > arrays.memory[:, 0, 2])
    assert 0.08 < moved.mean() < 0.25
    again = drop_inputs(arrays, settings, np.random.default_rng(1))
    assert np.array_equal(again.memory, dropped.memory, equal_nan=True)


def test_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    config = load_zeropoint_config(None, **TINY)
    whole = train_zeropoint(config, tmp_path / "whole", on_progress=quiet)
    lines: list[str] = []

    def kill(line: str) -> None:
        lines.append(line)
        if line.startswith("epoch 0"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_zeropoint(config, tmp_path / "killed", on_progress=kill)
    resumed = train_zeropoint(config, tmp_path / "killed", on_progress=quiet)
    card = read_card(resumed)
    assert card.sha256 == read_card(whole).sha256
    assert (card.task, card.architecture["kind"]) == ("zeropoint", "zeropoint")
    assert card.metrics["epochs"] == 2
    with pytest.raises(InputError, match="another schedule, network or examples"):
        train_zeropoint(replace_config(config, width=12), tmp_path / "killed", on_progress=quiet)


def replace_config(config, **changes):
    return type(config)(**config.model_dump() | changes)


def test_published_network_is_trained(tmp_path: Path) -> None:
    changes = {"kind": "azprc", "name": "az", "exposures": 120, "epochs": 1, "batch": 8, "examples": 16, "crop": 32}
    path = train_zeropoint(load_zeropoint_config(None, **changes), tmp_path, on_progress=quiet)
    card = read_card(path)
    assert path.name == "az.json"
    assert card.architecture["kind"] == "azprc"
    assert float(load_file(path.with_suffix(".safetensors"))["rms"]) == pytest.approx(card.metrics["rmse"], rel=1e-3)


def test_settings_are_checked(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("epoch = 3\n")
    with pytest.raises(InputError, match=r"epoch: unknown key \(did you mean epochs"):
        load_zeropoint_config(tmp_path / "bad.toml")
    assert replace(FitSettings(), epochs=3).schedule.epochs == 3
