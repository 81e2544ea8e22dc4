"""Correlated noise: measured, told apart from structure, and taken into account."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import convolve, shift

import csstdask
from csstdask.arrays.background import estimate_background
from csstdask.arrays.correlation import CORRELATED, NoiseCorrelation, noise_correlation
from csstdask.arrays.sources import find_sources


def resampled(rng, by, order=1, size=600):
    return shift(rng.normal(200, 10, (size, size)), by, order=order, mode="wrap").astype(np.float32)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.35, 0.5])
def test_linear_interpolation_has_an_analytic_correlation(rng, fraction):
    """Weights a and b = 1 - a correlate neighbours by a b / (a^2 + b^2)."""
    frame = resampled(rng, (0, fraction))
    found = noise_correlation(frame, None, estimate_background(frame))
    share = fraction * (1 - fraction) / (fraction**2 + (1 - fraction) ** 2)
    assert found.x == pytest.approx(share, abs=0.03)
    assert found.y == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("by", [(0, 0), (0.3, 0.3), (0.5, 0.5), (0.5, 0)])
def test_the_noise_of_a_smoothed_frame_is_predicted(rng, by):
    frame = resampled(rng, by)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    smooth = convolve(frame.astype(float), kernel, mode="wrap")
    excess = smooth.std() / frame.std() / np.sqrt((kernel**2).sum())
    assert noise_correlation(frame, None, estimate_background(frame)).excess() == pytest.approx(excess, abs=0.05)


def test_structure_is_no_correlation(rng):
    y, x = np.mgrid[:512, :512]
    wavy = rng.normal(0, 5, y.shape) + 60 * np.sin(x / 4) * np.sin(y / 5) + 1000
    gradient = rng.normal(0, 5, y.shape) + 0.2 * x
    for frame in (wavy, gradient):
        data = frame.astype(np.float32)
        assert noise_correlation(data, None, estimate_background(data)).mean < CORRELATED


def test_masked_and_odd_frames(rng):
    frame = resampled(rng, (0.5, 0.5))
    mask = rng.random(frame.shape) < 0.2
    frame[mask] = 1e5
    mesh = estimate_background(frame, mask)
    assert noise_correlation(frame, mask, mesh).mean == pytest.approx(0.5, abs=0.05)
    assert noise_correlation(frame, np.ones_like(mask), mesh) == NoiseCorrelation()
    for odd in (np.full((40, 30), 7.0, np.float32), np.full((40, 30), np.nan, np.float32), frame[:3, :2]):
        assert noise_correlation(odd, None, estimate_background(odd)) == NoiseCorrelation()
    assert NoiseCorrelation(CORRELATED, CORRELATED).excess() == 1


def test_false_sources_and_cosmic_rays_of_resampled_noise(rng, caplog):
    """Empty sky, shifted by half a pixel: 10,000 false pixels a Mpix before, 600 at most now; and a warning."""
    frame = resampled(rng, (0.5, 0.5), size=500)
    found = csstdask.cosmicray.detect(frame)
    assert found.mask.mean() < 6e-4
    assert "was resampled" in caplog.text
    caplog.clear()
    mesh = estimate_background(frame)
    height, nothing = frame - mesh.background_at(), np.zeros(frame.shape, bool)
    excess = noise_correlation(frame, None, mesh).excess()
    plain, aware = (len(find_sources(height, mesh.noise_at() * np.float32(factor), nothing)) for factor in (1, excess))
    assert aware < 0.4 * plain
    csstdask.cosmicray.detect(rng.normal(200, 10, (300, 300)).astype(np.float32), model="unet-fast")
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "hdu"),
    [
        ("m51_inpaint/m51_with_cosmicrays.fits", 0),
        ("hst_wfpc2/hst_im_ext3.fits", 0),
        ("hst_wfc3_uvis/Pluto1_orig.fits", 1),
        ("nicmos/n8q624e8q_cal.fits", 1),
    ],
)
def test_real_frames_were_not_resampled(real_images, name, hdu):
    data = np.asarray(fits.getdata(real_images / name, hdu), dtype=np.float32)
    assert noise_correlation(data, None, estimate_background(data)).mean < CORRELATED
