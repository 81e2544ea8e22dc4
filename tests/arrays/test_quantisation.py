"""A frame rounded to steps above its noise: the step is found, and its noise is a floor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

import csstdask
from csstdask.arrays.background import estimate_background
from csstdask.arrays.quantisation import quantisation_step
from csstdask.arrays.sources import find_sources

EXPTIME = 150.0


def sky_with_stars(rng, noise=0.05):
    """Rates [e- / s] of a dark sky with 30 stars and, on their own, 40 cosmic rays; where these are."""
    y, x = np.mgrid[:400, :400]
    rate = rng.normal(0.1, noise, y.shape)
    stars = rng.uniform(20, 380, (30, 2))
    for cy, cx in stars:
        rate += 60 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 1.7**2))
    hit = np.zeros(y.shape, bool)
    while hit.sum() < 160:
        row, column = rng.integers(10, 380, 2)
        if np.hypot(*(stars - (row, column)).T).min() > 15:
            hit[row, column : column + 4] = True
    rate[hit] += 40
    return rate, hit, stars


@settings(max_examples=40, deadline=None)
@given(
    step=st.floats(1e-3, 1e4),
    offset=st.sampled_from([0.0, 1000.0]),
    noise=st.floats(0.05, 0.4),
    dtype=st.sampled_from(["f4", ">f8"]),
    seed=st.integers(0, 99),
)
def test_the_step_is_found_whatever_the_gain(step, offset, noise, dtype, seed):
    levels = np.rint(np.random.default_rng(seed).normal(0.2, noise, (80, 80)) + offset)
    levels[::7, ::5] += np.arange(12)[:, None] + 1  # some sources
    assert quantisation_step((levels * step).astype(dtype)) == pytest.approx(step, rel=1e-3)


def test_what_has_no_step(rng):
    noise = rng.normal(100, 5, (200, 200)).astype(np.float32)
    padded = noise.copy()
    padded[:, :150] = 0
    y, x = np.mgrid[:200, :200]
    smooth = 1e4 * np.exp(-((y - 90) ** 2 + (x - 80) ** 2) / 50)
    struck = np.full((200, 200), 7.0)
    struck[rng.random(struck.shape) < 0.01] += 1234.5
    for frame in (noise, np.rint(noise), padded, smooth, np.full((50, 50), 3.0), np.full((50, 50), np.nan), struck):
        assert quantisation_step(frame) == pytest.approx(0, abs=1e-3)


def test_noise_of_a_rounded_frame(rng):
    rate, _, _ = sky_with_stars(rng)
    frame = (np.rint(rate) * EXPTIME).astype(np.float32)
    mesh = estimate_background(frame)
    assert np.allclose(mesh.noise, EXPTIME / np.sqrt(12), rtol=1e-3)
    fine = estimate_background((np.rint(rng.normal(10, 2, (400, 400))) * EXPTIME).astype(np.float32))
    assert np.allclose(fine.noise, EXPTIME * np.sqrt(4 + 1 / 12), rtol=0.03)  # it shows the step by itself


@pytest.mark.parametrize("model", ["unet", "unet-fast", "lacosmic"])
def test_sources_and_cosmic_rays_are_found_in_a_rounded_frame(rng, model):
    rate, hit, _ = sky_with_stars(rng)
    frame = (np.rint(rate) * EXPTIME).astype(np.float32)
    found = csstdask.cosmicray.detect(frame, model=model).mask
    assert found[hit].mean() > 0.95
    elsewhere = found & ~binary_dilation(hit, np.ones((3, 3)), iterations=2)  # the networks flag skirts as well
    assert elsewhere.mean() < 5e-4
    mesh = estimate_background(frame, found)
    sources = find_sources(frame - mesh.background_at(), mesh.noise_at(), found)
    assert 28 <= len(sources) <= 32
    assert not csstdask.cosmicray.detect(np.full((300, 300), 1050, np.float32), model=model).mask.any()
