"""From samples of a PSF to a star's pixels: exact for what an aperture passes, wherever the star lies."""

from __future__ import annotations

import numpy as np
from dense_interpolation import interpolation_matrix

from csstdask.psf.basis import BASIS_PIXELS, BASIS_SIZE, OVERSAMPLING, polynomial_degrees, polynomials, resample
from csstdask.psf.pixels import Renderer, render_each, render_with_slopes, to_render_layout


def image_of(offset_x, offset_y, *, size, step=1.0, limit=1.4):
    """Return a function whose spectrum ends at 1.4 cycles a pixel, at pixels round a star."""
    axis = (np.arange(size) - size // 2) * step
    x, y = np.meshgrid(axis - offset_x, axis - offset_y)
    return np.sinc(limit * x) ** 2 * np.sinc(limit * y) ** 2


def test_pixels_of_a_star_anywhere_follow_from_four_samples_a_pixel(rng):
    samples = image_of(0, 0, size=BASIS_SIZE, step=1 / OVERSAMPLING)[None].astype(np.float32)
    x, y = rng.uniform(-0.5, 0.5, (2, 50))
    found = Renderer(samples, 24)(y, x)
    wanted = np.stack([image_of(*place, size=24) for place in zip(x, y, strict=True)])
    assert found.shape == (50, 1, 24, 24)
    assert np.abs(found[:, 0] - wanted).max() < 3e-5  # of the peak


def test_batch_equals_single_interpolations(rng):
    images = rng.normal(size=(3, BASIS_SIZE, BASIS_SIZE)).astype(np.float32)
    x, y = rng.uniform(-2.5, 2.5, (2, 40))
    found = Renderer(images, 24)(y, x)
    wanted = interpolation_matrix(y, 24)[:, None] @ images @ interpolation_matrix(x, 24).transpose(0, 2, 1)[:, None]
    assert np.abs(found - wanted).max() < 1e-4


def test_an_impulse_shows_the_kernel(rng):
    impulse = np.zeros((1, BASIS_SIZE, BASIS_SIZE), np.float32)
    impulse[0, BASIS_SIZE // 2, BASIS_SIZE // 2] = 1
    y, x = rng.uniform(-0.5, 0.5, (2, 200))
    found = Renderer(impulse, 24)(y, x)[:, 0]
    wanted = interpolation_matrix(y, 24) @ impulse[0] @ interpolation_matrix(x, 24).transpose(0, 2, 1)
    assert np.abs(found - wanted).max() < 5e-7


def test_each_star_has_its_image_and_its_slopes(rng):
    images = rng.normal(size=(40, BASIS_SIZE, BASIS_SIZE)).astype(np.float32)
    x, y = rng.uniform(-2.5, 2.5, (2, 40))
    image, slope_x, slope_y = render_with_slopes(to_render_layout(images, 24), y, x, 24)
    along_y, along_x = interpolation_matrix(y, 24), interpolation_matrix(x, 24).transpose(0, 2, 1)
    by_y, by_x = interpolation_matrix(y, 24, slope=True), interpolation_matrix(x, 24, slope=True).transpose(0, 2, 1)
    assert np.abs(image - along_y @ images @ along_x).max() < 1e-4
    assert np.array_equal(render_each(to_render_layout(images, 24), y, x, 24), image)
    assert np.abs(slope_x - along_y @ images @ by_x).max() < 1e-3
    assert np.abs(slope_y - by_y @ images @ along_x).max() < 1e-3


def test_derivatives_equal_differences_of_shifted_stars(rng):
    samples = image_of(0, 0, size=BASIS_SIZE, step=1 / OVERSAMPLING).astype(np.float32)
    x, y = rng.uniform(-0.5, 0.5, (2, 20))
    images = to_render_layout(np.repeat(samples[None], len(x), axis=0), 24)
    slope = render_with_slopes(images, y, x, 24)[1]
    ahead, behind = (
        np.stack([image_of(a + step, b, size=24) for a, b in zip(x, y, strict=True)]) for step in (1e-4, -1e-4)
    )
    assert np.abs(slope - (ahead - behind) / 2e-4).max() < 1e-3


def test_files_keep_the_fewest_sufficient_samples():
    fine = image_of(0, 0, size=BASIS_SIZE, step=1 / OVERSAMPLING).astype(np.float32)[None]
    few = resample(fine, 3 * BASIS_PIXELS)
    assert few.shape == (1, 3 * BASIS_PIXELS, 3 * BASIS_PIXELS)
    assert few[0, 3 * BASIS_PIXELS // 2, 3 * BASIS_PIXELS // 2] == few.max()
    assert np.abs(resample(few, BASIS_SIZE) - fine).max() < 2e-3  # what wraps round the edge
    middle = slice(BASIS_SIZE // 2 - 24, BASIS_SIZE // 2 + 24)
    assert np.abs(resample(few, BASIS_SIZE) - fine)[0, middle, middle].max() < 5e-5
    assert np.abs(resample(resample(fine, 2 * BASIS_PIXELS), BASIS_SIZE) - fine).max() > 0.01  # too few


def test_polynomials_are_orthogonal_over_a_detector():
    axis, weight = np.polynomial.legendre.leggauss(6)
    u, v = (part.ravel() for part in np.meshgrid(axis, axis))
    found = polynomials(u, v, 3)
    assert found.shape[1] == len(polynomial_degrees(3)) == 10
    product = (found * np.outer(weight, weight).ravel()[:, None]).T @ found
    assert np.allclose(product, np.diag(np.diag(product)), atol=1e-12)
