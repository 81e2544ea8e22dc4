"""Detection: against truth by construction, and the rules of the public door."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from scipy.special import erf

from csstdask.cosmicray import detect

SIGMA = 5.0


@pytest.fixture(params=["unet", "lacosmic"])
def model(request):
    return request.param


def strike(rng):
    """Return a flat sky with hits of three pixels at 40 sigma: nothing is easier, so nearly all must be found."""
    data = rng.normal(100, SIGMA, (256, 256)).astype(np.float32)
    hit = np.zeros(data.shape, dtype=bool)
    hit[8::16, 8::16] = hit[9::16, 8::16] = hit[8::16, 9::16] = True
    data[hit] += 40 * SIGMA
    return data, hit


@pytest.fixture
def struck(rng):
    return strike(rng)


def test_easy_hits_are_found(rng, model):
    """And little else, over some frames: noise that happens to line up as a faint track is eight pixels at once.

    At even odds: thresholds of cards were chosen to be ahead of other networks where a fortieth of the pixels is hit.
    """
    beyond, usually = [], []
    for _ in range(8):
        data, hit = strike(rng)
        found = detect(data, np.full_like(data, SIGMA), model=model, threshold=0.5)
        usual = np.asarray(found.probability) >= found.model.threshold
        usually.append((usual & ~binary_dilation(hit, np.ones((5, 5)))).sum())
        assert found.mask[hit].mean() > 0.99
        # What else is flagged lies within two pixels of a hit: an electron of so strong a one may have strayed there.
        beyond.append((found.mask & ~binary_dilation(hit, np.ones((5, 5)))).sum())
        assert np.array_equal(found.mask, found.probability >= found.threshold)
    assert np.mean(beyond) < 5
    assert np.mean(usually) < 10


def test_a_lone_bright_pixel_is_a_hit_and_a_lone_faint_one_is_rather_warm(rng):
    """A faint hit of one pixel cannot be distinguished from an unflagged warm pixel: the network does not flag it."""
    share = {}
    for height in (8, 200):
        data = rng.normal(100, SIGMA, (256, 256)).astype(np.float32)
        data[8::16, 8::16] += height * SIGMA
        share[height] = detect(data, np.full_like(data, SIGMA), model="unet").mask[8::16, 8::16].mean()
    assert share[200] > 0.98
    assert share[8] < 0.5


def test_without_error_the_noise_is_estimated_from_the_frame(struck, model):
    data, hit = struck
    found = detect(data, model=model)
    assert found.mask[hit].mean() > 0.99


def test_a_clean_frame_stays_clean(rng, model):
    data = rng.normal(100, SIGMA, (512, 512)).astype(np.float32)
    assert detect(data, np.full_like(data, SIGMA), model=model).mask.sum() < 20  # per quarter of a megapixel


def test_star_cores_are_no_cosmic_rays(rng):
    """Undersampled stars, a full width of 1.7 pixels, no wings, up to full well: hardly a pixel is flagged."""
    edges = np.arange(257) - 0.5
    scene = np.full((256, 256), 30.0)
    for row in range(16, 256, 32):
        for column in range(16, 256, 32):
            in_y, in_x = (
                np.diff(erf((edges - middle - rng.uniform(-0.5, 0.5)) / (0.68 * 2**0.5))) / 2
                for middle in (row, column)
            )
            scene += 10 ** rng.uniform(2.5, 5) * np.outer(in_y, in_x)
    data = (rng.poisson(scene) + rng.normal(0, SIGMA, scene.shape)).astype(np.float32)
    found = detect(data, np.sqrt(np.maximum(data, 0) + SIGMA**2).astype(np.float32))
    assert found.mask.sum() <= 6  # of 64 stars


@pytest.mark.parametrize("offset", [(0, 2), (2, 1), (-1, 0), (0, 3)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_masked_and_non_finite_pixels_are_never_flagged_and_hide_no_hits(struck, model, offset, value):
    """A hit adjacent to NaN is still found (deepCR loses it), and the NaN itself is not flagged."""
    data, hit = struck
    corner = np.zeros(hit.shape, dtype=bool)
    corner[8::16, 8::16] = True
    beside = np.roll(corner, offset, axis=(0, 1)) & ~hit
    assert beside.sum() == corner.sum()
    data[beside] = value
    mask = np.zeros(hit.shape, dtype=bool)
    mask[:64] = True
    found = detect(data, np.full_like(data, SIGMA), mask, model=model)
    assert not found.mask[mask].any()
    assert not found.mask[beside].any()
    assert (found.probability[mask | beside] == 0).all()
    assert found.mask[hit & ~mask].mean() > 0.98


def test_bad_columns_hide_no_hits(struck, model):
    """Hits in adjacent columns are found as well as any."""
    data, hit = struck
    bad = np.zeros(hit.shape, dtype=bool)
    bad[:, 10::16] = bad[:, 7::16] = True
    data[bad] = 0
    found = detect(data, np.full_like(data, SIGMA), bad, model=model)
    assert found.mask[hit].mean() > 0.97
    assert not found.mask[bad].any()


def test_input_is_never_changed_and_types_come_back(struck):
    data, _ = struck
    before = data.copy()
    reference = detect(data, np.full_like(data, SIGMA)).mask
    assert np.array_equal(data, before)
    swapped = detect(data.astype(">f8"), np.full(data.shape, SIGMA, ">f4"))
    assert np.array_equal(swapped.mask, reference)
    tensor = detect(torch.from_numpy(data), torch.full(data.shape, SIGMA))
    assert isinstance(tensor.mask, torch.Tensor)
    assert tensor.mask.dtype == torch.bool
    assert np.array_equal(tensor.mask.numpy(), reference)
    assert detect(data.astype(np.uint16)).probability.dtype == np.float32


def test_hopeless_frames():
    nothing = np.full((40, 40), np.nan, np.float32)
    assert not detect(nothing).mask.any()
    assert not detect(np.zeros((40, 40), np.float32)).mask.any()
    assert not detect(np.ones((40, 40), np.float32), mask=np.ones((40, 40), bool)).mask.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"model": "deepcr-2"}, "lacosmic"),
        ({"error": np.ones((3, 3))}, "error"),
        ({"mask": np.ones((3, 3), bool)}, "mask"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        detect(np.ones((40, 40), np.float32), **arguments)
