"""Detections on spectra: smooth light is released, cosmic rays on it are kept."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.cosmicray.traces import HALF_WINDOW, release_traces


@pytest.fixture
def spectrum():
    rng = np.random.default_rng(3)
    height = np.zeros((21, 200))
    across = np.exp(-0.5 * ((np.arange(21) - 10) / 1.2) ** 2)
    height += across[:, None] * 2000 * (1 + 0.5 * np.sin(np.arange(200) / 25))
    error = np.sqrt(height + 25)
    return height + error * rng.standard_normal(height.shape), error


def test_spectra_are_released_and_cosmic_rays_on_them_kept(spectrum):
    height, error = spectrum
    hit = np.zeros(height.shape, bool)
    hit[8:13, 50:53] = hit[10, 120:123] = True  # a piece of the trace, and a cosmic ray along it
    height[10, 120:123] += 20 * error[10, 120:123]
    kept = release_traces(height, error, np.full(height.shape, 5.0), hit, np.zeros(hit.shape, bool))
    assert not kept[8:13, 50:53].any()
    assert kept[10, 120:123].all()
    assert not (kept & ~hit).any()


def test_the_sky_is_left_as_it_is(spectrum):
    height, error = spectrum
    hit = np.zeros(height.shape, bool)
    hit[1, 5:8] = True  # below three sigma, far from the trace: not ours to judge
    kept = release_traces(height, error, np.full(height.shape, 5.0), hit, np.zeros(hit.shape, bool))
    assert np.array_equal(kept, hit)


def test_long_runs_along_a_trace_are_released_and_cosmic_rays_along_the_row_are_not(spectrum):
    height, error = spectrum
    hit = np.zeros(height.shape, bool)
    hit[9:11, 20:80] = True  # a piece of a spectrum
    hit[3, 100:140] = True  # a cosmic ray along the row, on the sky
    height[3, 100:140] += 500
    noise = np.full(height.shape, 5.0)
    kept = release_traces(height, np.sqrt(error**2 + np.maximum(height, 0)), noise, hit, np.zeros(hit.shape, bool))
    assert kept[9:11].sum() <= 6  # of 120, beyond three sigma
    assert kept[3, 100:140].all()


def test_a_row_without_usable_neighbours_is_kept(spectrum):
    height, error = spectrum
    hit = np.zeros(height.shape, bool)
    hit[10, 20 : 22 + 2 * HALF_WINDOW] = True
    mask = ~hit
    kept = release_traces(height, error, np.full(height.shape, 5.0), hit, mask)
    assert np.array_equal(kept, hit)
