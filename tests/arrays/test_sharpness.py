"""The sharpness of the stars of a frame: right for any width and position, and indifferent to cosmic rays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from csstdask.arrays.background import estimate_background
from csstdask.arrays.sharpness import star_sharpness
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.recipe_tables import CosmicRays


def frame_of_stars(rng, sigma, count=60, size=400):
    """Draw Gaussian stars, integrated over pixels, on a sky of 100 e-."""
    light = np.full((size, size), 100.0)
    edges = np.arange(size + 1) - 0.5
    for x, y in rng.uniform(10, size - 10, (count, 2)):
        share_x, share_y = (np.diff(ndtr((edges - at) / sigma)) for at in (x, y))
        light += rng.uniform(2e4, 8e4) * np.outer(share_y, share_x)
    return rng.poisson(light).astype(np.float32)


def sharpness_of(frame, mask=None):
    return star_sharpness(frame, mask, estimate_background(frame, mask))


@pytest.mark.parametrize(("sigma", "accuracy"), [(0.6, 0.02), (0.85, 0.02), (1.2, 0.02), (2.0, 0.12)])
def test_any_width_is_measured_wherever_in_their_pixels_the_stars_lie(rng, sigma, accuracy):
    """In wide stars neighbours hardly differ: noise makes local maxima sharper, by up to a tenth."""
    # A pixel widens the image by the variance of a uniform distribution, 1/12.
    expected = 1 / np.hypot(sigma, 12**-0.5)
    assert sharpness_of(frame_of_stars(rng, sigma)) == pytest.approx(expected, rel=accuracy)


def test_cosmic_rays_change_nothing(rng):
    frame = frame_of_stars(rng, 0.85)
    charge = draw_cosmic_rays(rng, CosmicRays(pixel_fraction=(0.05,)), frame.shape)
    assert (charge > 5).mean() > 0.02
    assert sharpness_of(frame + charge) == pytest.approx(sharpness_of(frame), rel=0.03)


def test_unknown_without_stars(rng):
    sky = rng.normal(100, 10, (400, 400)).astype(np.float32)
    charge = draw_cosmic_rays(rng, CosmicRays(pixel_fraction=(0.02,)), sky.shape)
    for frame in (sky, sky + charge, np.full((40, 40), 7, np.float32), sky[:2, :50]):
        assert sharpness_of(frame) == 0
    frame = frame_of_stars(rng, 1.0)
    assert sharpness_of(frame, np.ones(frame.shape, bool)) == 0


def test_a_large_frame_is_sampled(rng):
    frame = np.tile(frame_of_stars(rng, 1.0), (6, 6))
    assert frame.shape[0] > 2048
    assert sharpness_of(frame) == pytest.approx(sharpness_of(frame[:400, :400]), rel=0.03)
