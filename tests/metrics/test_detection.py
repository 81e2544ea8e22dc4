"""Scores: hand-counted frames, curves with known areas, a calibration that is known."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.metrics.detection import (
    DetectionCase,
    average_precision,
    f1_score,
    fit_calibration,
    log_odds,
    precision_recall,
    score,
)


def case(hit, *, faint=None, use=None, visible=None, charge=None):
    nothing = np.zeros(hit.shape, bool)
    return DetectionCase(
        data=hit.astype(np.float32),
        error=None,
        ignore=nothing,
        hit=hit,
        faint=nothing if faint is None else faint,
        use=~nothing if use is None else use,
        visible=hit if visible is None else visible,
        charge=hit.astype(np.float32) if charge is None else charge,
    )


def test_a_hand_counted_frame():
    hit, found = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    charge = np.zeros((40, 40), np.float32)
    hit[5, 5:9] = True  # an event of four, three of them found, with less than half of its charge
    charge[5, 5:9] = [10, 10, 10, 90]
    hit[20, 20] = True  # an event of one, missed
    hit[25, 25] = found[25, 25] = True  # an event of one, found
    charge[20, 20] = charge[25, 25] = 50
    found[5, 5:8] = True
    found[4, 5] = True  # on the skirt
    found[30, 30] = True  # out of nothing
    found[35, 35] = True  # some charge, too little to be asked for
    found[0, 0] = True  # not scored
    faint, use = np.zeros_like(hit), np.ones_like(hit)
    faint[35, 35], use[0, 0] = True, False
    visible = hit.copy()
    visible[20, 20] = False
    frame = case(hit, faint=faint, use=use, visible=visible, charge=charge)
    result = score([frame], [found])
    assert result.precision == pytest.approx(5 / 7)
    assert result.recall == pytest.approx(4 / 6)
    assert result.f1 == pytest.approx(2 * 5 / 7 * 4 / 6 / (5 / 7 + 4 / 6))
    assert result.recall_visible == pytest.approx(4 / 5)
    assert result.precision_without_skirt == pytest.approx(5 / 6)
    assert result.events_found == pytest.approx(1 / 3)
    assert f1_score([frame], [found]) == pytest.approx(result.f1)


def test_intervals_hold_the_truth(rng):
    """68 % intervals over blocks cover the expectation about that often."""
    covered = 0
    for _ in range(60):
        hit = rng.random((512, 512)) < 0.02
        found = hit & (rng.random(hit.shape) < 0.8)
        low, high = score([case(hit)], [found]).recall_interval
        covered += low <= 0.8 <= high
    assert 0.5 < covered / 60 < 0.85


def test_curves():
    """A perfect order has area one; a random one has the share of hits."""
    hit = np.arange(10_000) % 10 == 0
    _, precision, recall = precision_recall(np.where(hit, 3.0, -3.0).astype(np.float32), hit)
    assert average_precision(precision, recall) == pytest.approx(1)
    noise = np.random.default_rng(1).normal(size=hit.size).astype(np.float32)
    _, precision, recall = precision_recall(noise, hit)
    assert average_precision(precision, recall) == pytest.approx(0.1, abs=0.02)


def test_calibration_finds_what_was_put_in(rng):
    logit = rng.normal(0, 2, 200_000).astype(np.float32)
    hit = rng.random(logit.size) < 1 / (1 + np.exp(-(1.7 * logit - 0.6)))
    found = fit_calibration(logit, hit)
    assert found == {"scale": pytest.approx(1.7, abs=0.03), "offset": pytest.approx(-0.6, abs=0.03)}


def test_calibration_finds_how_much_the_density_says(rng):
    """Odds that go with the density to the power 0.4: fitted beside scale and offset, about the mean density."""
    density = (10 ** rng.uniform(-2.5, -1, 300_000)).astype(np.float32)
    logit = rng.normal(-1, 2, density.size).astype(np.float32)
    reference = log_odds(float(density.mean()))
    true = 1.2 * logit + 0.3 + 0.4 * (log_odds(density) - reference)
    found = fit_calibration(logit, rng.random(density.size) < 1 / (1 + np.exp(-true)), density)
    assert found["density"] == pytest.approx(density.mean(), rel=1e-5)
    assert [found[name] for name in ("scale", "offset", "prior")] == pytest.approx([1.2, 0.3, 0.4], abs=0.03)
