"""Counts of pixels: what they say is what counting by hand says."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.evaluation.cosmicray.summaries import at_equal_precision, by_region, charged_fraction, fit_line
from csstdask.metrics import detection_histograms as histograms


@pytest.fixture
def frame(rng):
    """A frame with a source of 100 rms, charges of all kinds, and probabilities that know something of them."""
    clean = rng.normal(100, 10, (96, 96)).astype(np.float32)
    y, x = np.mgrid[:96, :96]
    clean += 1000 * np.exp(-((y - 48) ** 2 + (x - 40) ** 2) / 18).astype(np.float32)
    charge = np.where(rng.random(clean.shape) < 0.05, 10 ** rng.uniform(-0.5, 3, clean.shape), 0).astype(np.float32)
    noise = np.full(clean.shape, 10, np.float32)
    probability = 1 / (1 + np.exp(-(charge / 20 - 2 + rng.normal(0, 1, clean.shape))))
    use = rng.random(clean.shape) > 0.02
    return clean, charge, noise, probability.astype(np.float32), use


def test_truth_is_in_classes(frame):
    _, charge, noise, _, _ = frame
    truth = histograms.classify_pixels(charge, noise)
    assert np.array_equal(truth >= histograms.FAINT, charge > 0)
    assert np.array_equal(truth >= histograms.WEAK, charge > 1)
    assert np.array_equal(truth >= histograms.HIDDEN, charge > 5)
    assert np.array_equal(truth == histograms.VISIBLE, charge > 30)  # three times the noise of 10
    touching = np.zeros(charge.shape, bool)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            touching |= np.roll(charge > 0, (dy, dx), (0, 1))
    inner = (slice(1, -1), slice(1, -1))
    assert np.array_equal((truth == histograms.BORDER)[inner], (touching & (charge == 0))[inner])


def test_rates_are_those_of_a_count_by_hand(frame):
    clean, charge, noise, probability, use = frame
    region = histograms.label_regions(clean, 100.0, 10.0)
    counts = histograms.count_pixels(histograms.classify_pixels(charge, noise), region, use, probability)
    assert counts.sum() == use.sum()
    for threshold in (0.2, 0.5, 0.9):
        index = histograms.threshold_bin(threshold)
        cut = histograms.bin_probability(index)
        assert cut == pytest.approx(threshold, abs=0.03)
        for level, k in ((0, None), (3, 10)):
            inside = use if k is None else use & (region >= level)
            found = (probability >= cut) & inside
            got = histograms.at_threshold(histograms.detection_rates(counts, level=level), threshold)
            assert got["precision"] == pytest.approx((charge[found] > 0).mean())
            assert got["recall"] == pytest.approx(found[inside & (charge > 5)].mean())
            assert got["recall_visible"] == pytest.approx(found[inside & (charge > 30)].mean())
            missed = (~found & inside & (charge > 30)).sum()
            assert got["missed_visible"] == missed


def test_regions_are_nested_and_noise_is_none(frame):
    clean = frame[0]
    region = histograms.label_regions(clean, 100.0, 10.0)
    assert region[48, 40] == histograms.LEVELS.index(80) + 1
    above = [(region >= number).sum() for number in range(1, len(histograms.LEVELS) + 1)]
    assert above == sorted(above, reverse=True)
    far = np.hypot(*(np.mgrid[:96, :96] - np.array([48, 40])[:, None, None])) > 16
    assert (region[far] > 0).mean() < 0.001  # single pixels above three sigma are no sources


def test_precision_is_that_of_another_density(frame):
    """With half of the cosmic rays left out at random, precision is what reweighting said it would be."""
    clean, charge, noise, probability, use = frame
    region = histograms.label_regions(clean, 100.0, 10.0)
    counts = histograms.count_pixels(histograms.classify_pixels(charge, noise), region, use, probability)
    index = histograms.threshold_bin(0.3)
    cut = histograms.bin_probability(index)
    found = (probability >= cut) & use
    right, false = (charge[found] > 0).sum(), (charge[found] == 0).sum()
    got = histograms.detection_rates(counts, reweight=0.5)["precision"][index]
    assert got == pytest.approx(0.5 * right / (0.5 * right + false))
    assert charged_fraction(counts, 0) == pytest.approx((charge[use] > 0).mean())
    rows = by_region(counts, 0.3, [0.5] * (len(histograms.LEVELS) + 1))
    assert rows["whole frame"]["precision"] == pytest.approx(got)


def test_reliability_of_true_and_of_overconfident_probabilities(rng):
    """Hits drawn with the probabilities themselves are reliable; with half the logit the slope is below one."""
    logit = rng.normal(0, 2, (1000, 1000)).astype(np.float32)
    p = 1 / (1 + np.exp(-logit))
    nowhere = np.zeros(p.shape, np.int8)
    use = np.ones(p.shape, bool)
    for factor, slope in ((1.0, 1.0), (0.5, None)):
        hit = rng.random(p.shape) < 1 / (1 + np.exp(-factor * logit))
        truth = np.where(hit, histograms.VISIBLE, histograms.BACKGROUND).astype(np.int8)
        row = histograms.reliability(histograms.count_pixels(truth, nowhere, use, p))
        if slope:
            assert row["ece"] < 0.005
            assert row["slope"] == pytest.approx(slope, abs=0.01)
        else:
            assert row["ece"] > 0.05
            assert row["slope"] < 0.8


def test_at_equal_precision(frame):
    clean, charge, noise, probability, use = frame
    nowhere = np.zeros(clean.shape, np.int8)
    truth = histograms.classify_pixels(charge, noise)
    ours = histograms.detection_rates(histograms.count_pixels(truth, nowhere, use, probability))
    theirs = histograms.at_threshold(ours, 0.5) | {"missed_visible": 100.0}
    row = at_equal_precision(ours, theirs)
    chosen = histograms.at_threshold(ours, row["threshold"] - 1e-9)
    assert chosen["precision"] >= theirs["precision"]
    assert row["fewer_missed_visible"] == pytest.approx(1 - chosen["missed_visible"] / 100)
    unreachable = at_equal_precision(ours, theirs | {"precision": 1.1})
    assert unreachable["threshold"] is None


def test_a_straight_line_is_found(rng):
    x = np.linspace(0, 10, 21)
    fit = fit_line([(a, 0.9 + 0.01 * a + noise) for a, noise in zip(x, rng.normal(0, 1e-3, 21), strict=True)])
    assert fit["slope"] == pytest.approx(0.01, abs=4 * fit["slope_error"])
    assert fit["r"] > 0.99
    assert "slope" not in fit_line([(1.0, 2.0), (1.0, 3.0)])
