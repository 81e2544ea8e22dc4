"""The model of the pixels of stars: its derivatives, its normal equations, and its rule for outliers."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.psf.star_model import (
    MAX_POSITION_STEP,
    STAR_TERMS,
    NormalEquations,
    StarModel,
    StarParameters,
    StarStamps,
    find_outliers,
    initial_flux,
)

SIZE = 24


@pytest.fixture
def model(psfs):
    return StarModel.of_basis(psfs, SIZE)


def draw(rng, psfs, n=5):
    """Return random parameters of n stars."""
    x, y = rng.uniform(-0.4, 0.4, (2, n))
    return StarParameters(rng.normal(0, 0.5, (n, len(psfs))), rng.uniform(100, 1000, n), rng.normal(0, 5, n), x, y)


def pixels_of(model, parameters):
    """Return the pixels of stars in double precision."""
    image = model.render(parameters).astype(float)
    return parameters.flux[:, None, None] * image + parameters.sky[:, None, None]


def test_derivatives_equal_finite_differences(model, psfs, rng):
    about = draw(rng, psfs)
    lines = model.linearise(about)
    assert np.allclose(lines.image, model.render(about), atol=1e-7)
    design = lines.design(about.flux)
    for term in range(len(psfs) + STAR_TERMS):
        step = np.zeros((len(about.flux), len(psfs) + STAR_TERMS))
        size = 0.01 if term >= len(psfs) + 2 else 0.5  # positions; other terms are linear
        step[:, term] = size
        ahead, behind = (pixels_of(model, about.moved(sign * step)) for sign in (1, -1))
        change = ((ahead - behind) / (2 * size)).reshape(len(step), -1)
        error = np.abs(change - design[:, term]).max()
        assert error < 2e-3 * max(1, np.abs(change).max()), (term, error)


def test_a_linearisation_is_extrapolated_to_stars_that_hardly_move(model, psfs, rng):
    about = draw(rng, psfs)
    lines = model.linearise(about)
    step = np.zeros((len(about.flux), len(psfs) + STAR_TERMS))
    step[:, 0], step[:, -2], step[:, -1] = 0.01, 0.002, -0.002
    step[0, -1] = 0.2
    moved = about.moved(step)
    near = model.linearise(moved, lines)
    exact = model.render(moved)
    assert np.abs(near.image - exact)[0].max() < 1e-6 * exact.max()  # too far: rendered again
    assert np.abs(near.image - exact).max() < 2e-5 * exact.max()
    assert np.abs(near.image - exact)[1:].max() > 1e-6 * exact.max()
    assert np.array_equal(lines.image, model.linearise(about).image)  # nothing has changed it


def test_positions_move_by_a_bounded_step(psfs, rng):
    about = draw(rng, psfs)
    step = np.full((len(about.flux), len(psfs) + STAR_TERMS), 7.0)
    moved = about.moved(step)
    assert np.allclose(moved.x - about.x, MAX_POSITION_STEP)
    assert np.allclose(moved.flux - about.flux, 7)


def test_elimination_gives_the_step_of_the_full_system(rng):
    design = rng.normal(size=(3, 10, SIZE**2)).astype(np.float32)
    residual, weight = rng.normal(size=(3, SIZE, SIZE)), rng.uniform(0.5, 2, (3, SIZE, SIZE))
    equations = NormalEquations.of(design, residual, weight)
    step, covariance = equations.solve()
    reduced = equations.eliminate(STAR_TERMS)
    change = np.linalg.solve(reduced.curvature, reduced.slope[..., None])[..., 0]
    assert np.allclose(reduced.full_step(change), step, atol=1e-8)
    assert np.allclose(np.linalg.inv(reduced.curvature), covariance[:, :-STAR_TERMS, :-STAR_TERMS])


def test_a_prior_of_no_data_is_returned():
    none = NormalEquations(np.zeros((1, 2, 2)), np.zeros((1, 2)))
    step, covariance = none.with_prior(np.diag([4.0, 0.25])[None], np.array([[1.0, -2.0]])).solve()
    assert np.allclose(step, [[-1.0, 2.0]])
    assert np.allclose(covariance, np.diag([0.25, 4.0]))


def test_outliers_are_far_from_noise_and_model_error():
    residual, light = np.zeros((1, 9, 9)), np.zeros((1, 9, 9))
    light[0, 4, 4] = 1000.0
    residual[0, 4, 5], residual[0, 0, 0], residual[0, 8, 8] = 40.0, 6.0, 4.0
    weight = np.ones((1, 9, 9))
    found = find_outliers(residual, weight, light, 0.01)
    assert np.argwhere(found[0]).tolist() == [[0, 0]]  # 40 is within 5 x 0.01 x 1000
    assert np.argwhere(find_outliers(residual, weight, light, 0.0)[0]).tolist() == [[0, 0], [4, 5]]


def test_first_fluxes_survive_bad_pixels(model, psfs, rng):
    parameters = draw(rng, psfs)
    image = model.render(parameters)
    pixels = parameters.flux[:, None, None] * image
    pixels[:, 12, 12] = 1e9
    usable = np.ones(pixels.shape, bool)
    usable[0] = False
    flux = initial_flux(image, pixels, usable, min_share=0.2)
    assert flux[0] == 0
    assert np.allclose(flux[1:], parameters.flux[1:], rtol=1e-5)


def test_stamps_are_cropped_and_bad_pixels_ignored():
    pixels, variance = np.full((1, 32, 32), 7.0, np.float32), np.ones((1, 32, 32), np.float32)
    pixels[0, 16, 16], variance[0, 10, 10], variance[0, 11, 11] = np.nan, 0.0, np.inf
    stamps = StarStamps.crop(pixels, variance, np.zeros(1), np.zeros(1), position_sigma=0.1)
    assert stamps.pixels.shape == (1, SIZE, SIZE)
    assert (~stamps.usable).sum() == 3
    assert not stamps.pixels[~stamps.usable].any()
