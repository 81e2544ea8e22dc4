"""A threshold that is ahead of another network's on each detector: hand-counted, and by networks that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.datasets.labelled_units import LabelledFrame
from csstdask.nn.models import find_card
from csstdask.training.cosmicray import lead
from csstdask.training.cosmicray.lead import THRESHOLDS, ahead_of, count, rates


def frame_of(charge, ignore=None):
    charge = np.asarray(charge, np.float32)
    nothing = np.zeros(charge.shape, bool)
    return LabelledFrame(
        data=charge, error=np.ones_like(charge), ignore=nothing if ignore is None else ignore, charge=charge,
        clean=np.zeros_like(charge), read_noise=5.0, unknown=nothing,
    )  # fmt: skip


def test_counts_are_those_of_the_rejection_paper():
    """Any charge is right; what holds more than 5 e- is asked for; ignored pixels count for nothing."""
    charge = np.array([[0.0, 2.0, 10.0, 20.0, 50.0]])
    likely = np.array([[0.9, 0.7, 0.6, 0.1, 0.95]])
    found, right, recalled, asked = count(likely, frame_of(charge, charge == 50), np.array([0.05, 0.5, 0.8]))
    assert found.tolist() == [4, 3, 1]
    assert right.tolist() == [3, 2, 0]
    assert recalled.tolist() == [2, 1, 0]
    assert asked.tolist() == [2, 2, 2]
    precision, recall = rates(np.stack([found, right, recalled, asked]))
    assert np.allclose(precision, [3 / 4, 2 / 3, 0])
    assert np.allclose(recall, [1, 1 / 2, 0])


class Units:
    """Frames of two detectors."""

    path = type("Path", (), {"name": "a.zarr"})

    def __init__(self, frames):
        self.frames = frames

    def __len__(self):
        return len(self.frames)

    def read(self, index):
        return self.frames[index]

    def metadata(self, index):
        return type("Facts", (), {"detector": 6 + index % 2})


def said(monkeypatch, of_ours, of_theirs):
    """Make two cards say what is given of each frame."""
    monkeypatch.setattr(lead, "prepare_frame", lambda data, *_, **__: data)
    monkeypatch.setattr(
        lead, "hit_probability", lambda data, card: (of_ours if card.name == "ours" else of_theirs)(data)
    )
    card = find_card("cosmicray", "deepcr")
    return replace(card, name="rival", threshold=0.5), replace(card, name="ours")


def test_the_smallest_lead_of_any_detector_decides(monkeypatch, rng):
    """Ours tells charge from nothing less well on one detector: the threshold is where that one is best off."""
    charge = np.where(rng.random((2, 200, 200)) < 0.1, rng.uniform(6, 100, (2, 200, 200)), 0).astype(np.float32)
    noise = rng.normal(0, 1, charge.shape)
    ours, theirs = (
        {float(one.sum()): 1 / (1 + np.exp(-(slope * (one > 0) - slope / 2 + shake))) for one, shake, slope in zip(
            charge, noise, slopes, strict=True)}
        for slopes in ((8.0, 5.0), (4.0, 4.0))
    )  # fmt: skip
    rival, card = said(monkeypatch, lambda data: ours[float(data.sum())], lambda data: theirs[float(data.sum())])
    units = Units([frame_of(one) for one in charge])
    found = ahead_of(rival, card, units)
    assert found.metrics["smallest_lead"] > 0.02
    leads = []
    for index in range(2):
        frame = units.read(index)
        theirs_here = rates(count(theirs[float(frame.data.sum())], frame, np.array([0.5])))
        ours_here = rates(count(ours[float(frame.data.sum())], frame, THRESHOLDS))
        leads.append(np.minimum(*(a - b for a, b in zip(ours_here, theirs_here, strict=True))))
    smallest = np.min(leads, axis=0)
    assert found.threshold == THRESHOLDS[smallest.argmax()]
    assert found.metrics["smallest_lead"] == pytest.approx(smallest.max(), abs=1e-4)


def test_units_without_cosmic_rays_are_named(monkeypatch):
    rival, card = said(monkeypatch, np.zeros_like, np.zeros_like)
    with pytest.raises(InputError, match="no cosmic ray that is asked for"):
        ahead_of(rival, card, Units([frame_of(np.zeros((4, 4)))]))
