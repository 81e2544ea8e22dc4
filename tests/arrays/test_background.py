"""Background and noise against truth by construction and against SEP."""

from __future__ import annotations

import numpy as np
import pytest
import sep

from csstdask.arrays.background import estimate_background
from csstdask.arrays.mesh import interpolate, mesh_shape


def test_noise_and_sloping_sky_are_recovered(rng):
    """A tilted plane is what linear interpolation can follow exactly; noise is that of the input."""
    y, x = np.mgrid[:512, :640]
    truth = 100 + 0.05 * y - 0.02 * x
    mesh = estimate_background((truth + rng.normal(0, 4, truth.shape)).astype(np.float32), box=64)
    # The median over 64 x 64 pixels is known to 1.25 x 4 / 64 = 0.08, the mode to a few times that.
    assert np.abs(mesh.background_at() - truth).max() < 0.8
    assert np.median(mesh.noise) == pytest.approx(np.hypot(4, np.hypot(0.05, 0.02) * 64 / 12**0.5), rel=0.03)


def test_sources_and_masked_pixels_take_no_part(rng):
    data = rng.normal(50, 5, (256, 256)).astype(np.float32)
    data[rng.random(data.shape) < 0.03] += 1000
    mask = np.zeros(data.shape, dtype=bool)
    mask[:, 100:140] = True
    data[mask] = 1e6
    data[3, 3] = np.nan
    mesh = estimate_background(data, mask, box=64)
    assert mesh.background == pytest.approx(50, abs=0.5)
    assert mesh.noise == pytest.approx(5, rel=0.05)


def test_agrees_with_sep(rng):
    data = rng.normal(200, 12, (512, 512)).astype(np.float32)
    theirs = sep.Background(data, bw=64, bh=64)
    mesh = estimate_background(data, box=64)
    assert float(np.median(mesh.background)) == pytest.approx(theirs.globalback, abs=0.3)
    assert float(np.median(mesh.noise)) == pytest.approx(theirs.globalrms, rel=0.03)


def test_empty_boxes_are_filled_and_an_empty_frame_is_nan(rng):
    data = rng.normal(10, 1, (256, 256)).astype(np.float32)
    mask = np.zeros(data.shape, dtype=bool)
    mask[:128, :128] = True
    assert np.isfinite(estimate_background(data, mask, box=64).background).all()
    assert np.isnan(estimate_background(data, np.ones_like(mask), box=64).background).all()


def test_noise_is_never_negative(rng):
    """Where the noise drops twentyfold from one half to the other, nothing is extrapolated below the smaller."""
    data = rng.normal(0, 1, (256, 256)).astype(np.float32)
    data[:, :128] *= 20
    noise = estimate_background(data, box=128).noise_at()
    assert noise.min() > 0.9
    assert noise.max() < 22


def test_rows_are_those_of_the_whole():
    mesh = np.arange(12, dtype=np.float32).reshape(3, 4)
    whole = interpolate(mesh, (90, 101))
    assert np.array_equal(interpolate(mesh, (90, 101), slice(30, 60)), whole[30:60])
    assert np.array_equal(interpolate(mesh, (90, 101), slice(30, 60), slice(7, 101)), whole[30:60, 7:])
    assert whole.flags.c_contiguous
    assert mesh_shape((9232, 9216), 128) == (72, 72)


@pytest.mark.parametrize("height", [0.0, 500.0, 5e4])
def test_histogram_agrees_with_brute_force_clipping(rng, height):
    """On flat sky, on a bright unflagged column, and where half of a box is a source."""
    data = rng.normal(100, 5, (256, 256)).astype(np.float32)
    data[:, 32] += height
    data[140:220, 140:220] += height / 100
    quick = estimate_background(data)
    assert np.abs(quick.background - 100).max() < 1.0
    for y in (0, 128):
        for x in (0, 128):
            box = data[y : y + 128, x : x + 128]
            mesh = estimate_background(box)
            level, sigma = clipped_mode(box)
            assert mesh.background.item() == pytest.approx(level, abs=0.05 * sigma)
            assert mesh.noise.item() == pytest.approx(sigma, rel=0.02)


def clipped_mode(values):
    """Return SExtractor's mode and the noise of a box, from repeated clipping of all its pixels at 3 sigma."""
    kept = values.ravel().astype(float)
    for _ in range(8):
        kept = kept[np.abs(kept - np.median(kept)) <= 3 * kept.std()]
    median, mean, sigma = np.median(kept), kept.mean(), kept.std()
    mode = 2.5 * median - 1.5 * mean if abs(mean - median) < 0.3 * sigma else median
    return mode, sigma / 0.98658  # the standard deviation of a unit Gaussian that is cut at 3 sigma
