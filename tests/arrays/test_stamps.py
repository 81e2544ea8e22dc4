"""Stamps: what they hold, and whose a pixel is."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.arrays.stamps import centre_pixels, cut_stamps, nearest_stamp, sky_from_border


def test_a_stamp_holds_its_middle_and_nothing_beyond_the_frame(rng):
    frame = rng.normal(size=(20, 30)).astype(np.float32)
    stamps = cut_stamps(frame, np.array([10, 0]), np.array([15, 29]), 8, fill=-1)
    assert stamps.shape == (2, 8, 8)
    assert np.array_equal(stamps[0], frame[6:14, 11:19])
    assert np.array_equal(stamps[1, 4:, :5], frame[:4, 25:])
    assert (stamps[1, :4] == -1).all()
    assert (stamps[1, :, 5:] == -1).all()
    assert list(centre_pixels(np.array([3.49, 3.5, -0.2]))) == [3, 4, 0]


def test_a_pixel_belongs_to_the_nearest_place_that_holds_it(rng):
    y, x = rng.uniform(0, 200, 25), rng.uniform(0, 200, 25)
    pixels = rng.integers(0, 200, (2, 500))
    found = nearest_stamp(*pixels, y, x, 16)
    distance = np.hypot(pixels[0][:, None] - y, pixels[1][:, None] - x)
    nearest = distance.argmin(axis=1)
    dy, dx = pixels[0] - centre_pixels(y)[nearest], pixels[1] - centre_pixels(x)[nearest]
    held = (dy >= -8) & (dy < 8) & (dx >= -8) & (dx < 8)
    assert np.array_equal(found, np.where(held, nearest, -1))
    assert 0 < (found >= 0).sum() < 500


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_equally_near_the_first_decides(order):
    x = np.array([10.0, 14.0])[list(order)]
    assert list(nearest_stamp(np.array([5]), np.array([12]), np.array([5.0, 5.0]), x, 16)) == [0]
    assert list(nearest_stamp(np.array([5]), np.array([12]), np.empty(0), np.empty(0), 16)) == [-1]


def test_sky_from_border_ignores_the_centre_and_masked_pixels(rng):
    sky = np.array([10.0, 20.0, 30.0])
    stamps = rng.normal(sky[:, None, None], 2, (3, 64, 64))
    stamps[:, 20:44, 20:44] = 1e4
    ignore = np.zeros(stamps.shape, bool)
    ignore[:, 0], stamps[:, 0] = True, 500
    stamps[:, 1, 1], ignore[:, 1, 1] = np.nan, True
    assert sky_from_border(stamps, ignore, 8) == pytest.approx(sky, abs=0.3)
    assert sky_from_border(stamps[:1], np.ones((1, 64, 64), bool), 2).tolist() == [0.0]
