"""Detection: against truth by construction, and the rules of the public door."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from csstdask.cosmicray import detect

SIGMA = 5.0


@pytest.fixture
def struck(rng):
    """A flat sky with lone hits of 40 sigma: nothing is easier, so nearly all must be found."""
    data = rng.normal(100, SIGMA, (256, 256)).astype(np.float32)
    hit = np.zeros(data.shape, dtype=bool)
    hit[8::16, 8::16] = True
    data[hit] += 40 * SIGMA
    return data, hit


def test_lone_hits_are_found(struck):
    data, hit = struck
    found = detect(data, np.full_like(data, SIGMA))
    assert found.mask[hit].mean() > 0.99
    # L.A.Cosmic grows its events: what else it flags lies beside a hit.
    assert (found.mask & ~binary_dilation(hit, np.ones((3, 3)))).sum() < 5
    assert np.array_equal(found.mask, found.probability >= found.threshold)


def test_without_error_the_frame_tells_its_noise(struck):
    data, hit = struck
    found = detect(data)
    assert found.mask[hit].mean() > 0.99


def test_a_clean_frame_stays_clean(rng):
    data = rng.normal(100, SIGMA, (512, 512)).astype(np.float32)
    assert detect(data, np.full_like(data, SIGMA)).mask.sum() < 20  # per quarter of a megapixel


@pytest.mark.parametrize("offset", [(0, 1), (1, 1), (-1, 0), (0, 2)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_masked_and_non_finite_pixels_are_never_flagged_and_hide_nobody(struck, offset, value):
    """A hit right beside NaN is still found (deepCR loses those), and the NaN itself is not one."""
    data, hit = struck
    beside = np.roll(hit, offset, axis=(0, 1))
    data[beside] = value
    mask = np.zeros(hit.shape, dtype=bool)
    mask[:64] = True
    found = detect(data, np.full_like(data, SIGMA), mask)
    assert not found.mask[mask].any()
    assert not found.mask[beside].any()
    assert (found.probability[mask | beside] == 0).all()
    assert found.mask[hit & ~mask].mean() > 0.98


def test_a_bad_column_hides_nobody(struck):
    """Hits in the two columns beside a bad one are found as well as any."""
    data, hit = struck
    bad = np.zeros(hit.shape, dtype=bool)
    bad[:, 9::16] = True
    data[bad] = 0
    found = detect(data, np.full_like(data, SIGMA), bad)
    assert found.mask[hit].mean() > 0.98
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
