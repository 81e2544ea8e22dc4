"""The trainer: it learns, it stops, and a killed training ends like one that was never killed."""

from __future__ import annotations

import csv

import pytest
import torch
from safetensors.torch import load_file

from csstdask.core.errors import InputError
from csstdask.nn.trainer import Learner, Schedule, train


class KilledError(Exception):
    """As if by a signal."""


def learner(kill_at=None):
    """A line to be fitted, with batch normalisation, so that buffers matter too."""
    torch.manual_seed(5)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 1, 1))

    def batches(epoch):
        if epoch == kill_at:
            raise KilledError
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(8):
            x = torch.randn(4, 1, 8, 8, generator=generator)
            yield x, 3 * x - 1

    def loss(network, batch):
        return ((network(batch[0]) - batch[1]) ** 2).mean()

    def validate(network):
        x = torch.linspace(-2, 2, 64).reshape(1, 1, 8, 8)
        return {"score": -float(((network(x) - (3 * x - 1)) ** 2).mean())}

    return Learner(network, batches, 8, loss, validate)


SCHEDULE = Schedule(epochs=12, learning_rate=0.05, precision="float32")


def test_training_reduces_the_loss(tmp_path):
    history = train(learner(), SCHEDULE, tmp_path, device=torch.device("cpu"))
    assert history[-1]["score"] > -0.05
    assert history[0]["loss"] > 10 * history[-1]["loss"]
    with (tmp_path / "log.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [int(line["epoch"]) for line in lines] == list(range(12))


def test_killed_and_resumed_is_the_same(tmp_path):
    whole, broken = learner(), learner(kill_at=7)
    train(whole, SCHEDULE, tmp_path / "whole", device=torch.device("cpu"))
    with pytest.raises(KilledError):
        train(broken, SCHEDULE, tmp_path / "broken", device=torch.device("cpu"))
    resumed = learner()
    lines = []
    train(resumed, SCHEDULE, tmp_path / "broken", device=torch.device("cpu"), on_progress=lines.append)
    assert "at epoch 7" in lines[0]
    for one, other in zip(whole.network.state_dict().values(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match="another schedule"):
        train(learner(), Schedule(epochs=3), tmp_path / "broken", device=torch.device("cpu"))


def test_training_stops_without_improvement(tmp_path):
    stuck = learner()
    never = Learner(stuck.network, stuck.batches, 8, stuck.loss, lambda _: {"score": 0.0})
    history = train(never, Schedule(epochs=12, patience=3), tmp_path, device=torch.device("cpu"))
    assert len(history) == 4


def test_the_last_epoch_can_be_kept(tmp_path):
    """Each epoch here has a worse score than the one before."""
    one, scores = learner(), iter(range(0, -20, -1))
    worse = Learner(one.network, one.batches, 8, one.loss, lambda _: {"score": float(next(scores))})
    schedule = Schedule(epochs=8, learning_rate=0.05, precision="float32", patience=3, keep="last")
    history = train(worse, schedule, tmp_path, device=torch.device("cpu"))
    assert len(history) == 8
    kept = load_file(tmp_path / "best.safetensors")
    assert any(not torch.equal(value, kept[name]) for name, value in worse.network.state_dict().items())


def test_the_rate_rises_and_falls():
    schedule = Schedule(epochs=11, learning_rate=1.0, warm_up=1.0)
    assert schedule.rate(0) < 0.01
    assert schedule.rate(1) == pytest.approx(1.0)
    assert schedule.rate(6) == pytest.approx(0.5)
    assert schedule.rate(11) == pytest.approx(0.0)
