"""Repair: untouched pixels stay, repaired ones are right within their stated variance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csstdask.cosmicray import inpaint


def flat_scene(rng, share, sigma=5.0):
    truth = rng.normal(100, sigma, (400, 400)).astype(np.float32)
    hit = rng.random(truth.shape) < share
    data = truth.copy()
    data[hit] += rng.exponential(500, hit.sum()).astype(np.float32)
    return truth, data, hit


@pytest.mark.parametrize("given_error", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_variance_is_calibrated(rng, share, given_error):
    """Pulls against what the pixel would have measured have unit width, at light and heavy damage."""
    truth, data, hit = flat_scene(rng, share)
    fixed = inpaint(data, hit, np.full_like(data, 5.0) if given_error else None)
    pull = (fixed.data - truth)[hit] / np.sqrt(fixed.variance[hit])
    assert abs(pull.mean()) < 5 / np.sqrt(hit.sum()) + 0.02
    assert pull.std() == pytest.approx(1, abs=0.06)


def test_variance_sees_structure(rng):
    """On a steep slope the donors scatter more than the noise, and the variance says so."""
    truth = np.tile(np.linspace(0, 20_000, 400, dtype=np.float32), (400, 1)) + rng.normal(0, 5, (400, 400)).astype("f4")
    hit = rng.random(truth.shape) < 0.05
    fixed = inpaint(truth, hit, np.full_like(truth, 5.0))
    pull = (fixed.data - truth)[hit] / np.sqrt(fixed.variance[hit])
    assert np.sqrt(np.median(fixed.variance[hit])) > 15
    assert pull.std() < 1.2


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "u2"])
def test_untouched_pixels_are_bit_identical(rng, dtype):
    _, data, hit = flat_scene(rng, 0.05)
    data = np.maximum(data, 0).astype(dtype)
    fixed = inpaint(data, hit)
    assert np.array_equal(fixed.data[~hit], data[~hit])
    assert fixed.data.dtype == (np.float32 if dtype == "u2" else np.dtype(dtype).newbyteorder("="))
    assert np.isnan(fixed.variance[~hit]).all()
    assert np.isfinite(fixed.variance[hit]).all()


def test_masked_pixels_are_neither_donors_nor_changed(rng):
    _, data, hit = flat_scene(rng, 0.05)
    mask = rng.random(data.shape) < 0.1
    data[mask] = 1e9
    fixed = inpaint(data, hit, np.full_like(data, 5.0), mask)
    assert np.array_equal(fixed.data[mask], data[mask])
    assert np.isnan(fixed.variance[mask]).all()
    assert fixed.data[hit & ~mask].max() < 200


def test_a_pixel_without_a_donor_keeps_its_value_with_infinite_variance():
    data = np.full((40, 40), 7.0, np.float32)
    hit = np.zeros(data.shape, dtype=bool)
    hit[5:35, 5:35] = True
    fixed = inpaint(data, hit, np.ones_like(data))
    assert fixed.data[20, 20] == 7
    assert np.isinf(fixed.variance[20, 20])
    assert np.isfinite(fixed.variance[5, 5])


def test_non_finite_pixels_count_as_masked():
    data = np.full((20, 20), 7.0, np.float32)
    data[4, 4], data[5, 5] = np.nan, np.inf
    fixed = inpaint(data, ~np.isfinite(data), np.ones_like(data))
    assert np.array_equal(fixed.data, data, equal_nan=True)
    assert np.isnan(fixed.variance).all()


def test_torch_in_torch_out(rng):
    _, data, hit = flat_scene(rng, 0.05)
    ours = inpaint(torch.from_numpy(data), torch.from_numpy(hit))
    assert isinstance(ours.data, torch.Tensor)
    assert np.array_equal(ours.data.numpy(), inpaint(data, hit).data)


def test_real_m51_with_added_cosmic_rays(real_images):
    """The exact truth of the maskfill example: masked pixels come back, all others stay."""
    from astropy.io import fits

    folder = real_images / "m51_inpaint"
    truth, struck, mask = (
        fits.getdata(folder / name).astype(np.float32)
        for name in ("m51_org.fits", "m51_with_cosmicrays.fits", "m51_mask.fits")
    )
    fixed = inpaint(struck, mask > 0)
    outside = mask == 0
    assert np.array_equal(fixed.data[outside], struck[outside])
    before = np.median(np.abs(struck - truth)[~outside])
    after = np.median(np.abs(fixed.data - truth)[~outside])
    assert after < 0.05 * before
