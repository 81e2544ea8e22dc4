"""Sources: positions and fluxes of stars put there on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from csstdask.arrays.sources import measure_sources, sum_covariance
from csstdask.instrument import load_instrument
from csstdask.mock.psf import PsfModel, sub_band_weights
from csstdask.mock.recipe_tables import Optics, Sky
from csstdask.mock.scene import draw_scene
from csstdask.mock.scene_psf import InterpolatedPsf, Window
from csstdask.mock.sky import draw_sky


def test_positions_and_fluxes_with_honest_errors(rng):
    """A grid of stars: no bias beyond its error, pulls of unit width, centroids to a twentieth of a pixel."""
    n, step = 144, 40
    y, x = (a.ravel() for a in np.mgrid[20 : 20 + 12 * step : step, 20 : 20 + 12 * step : step].astype(float))
    x, y = x + rng.uniform(-0.5, 0.5, n), y + rng.uniform(-0.5, 0.5, n)
    csst = load_instrument("csst")
    model, window = PsfModel(Optics(), csst), Window.of((500, 500), csst)
    drawn = draw_sky(rng, Sky(stars_per_mpix=2 * n / 0.25, galaxies_per_mpix=0, large_galaxies_per_mpix=0), (500, 500))
    flux = np.full(n, 3000.0)
    stars = replace(drawn.select(np.arange(n)), x=x, y=y, flux=flux, temperature=np.full(n, 5800.0))
    weights = sub_band_weights(model.limits(9), stars.temperature)
    scene = draw_scene(stars, weights, (500, 500), InterpolatedPsf(model, 9, window)).astype(np.float64)
    sigma = 6.0
    error = np.sqrt(scene + sigma**2).astype(np.float32)
    data = (scene + rng.normal(0, 1, scene.shape) * error).astype(np.float32)
    noise = np.full(scene.shape, sigma, np.float32)
    found = measure_sources(data, error, noise, np.zeros(scene.shape, bool))
    near = np.hypot(found["x"][:, None] - x, found["y"][:, None] - y)
    match = near.argmin(axis=0)
    assert (near.min(axis=0) < 0.5).all()
    assert np.std(found["x"][match] - x) < 0.05
    core = model.cores(9, [4608], [4616], 1)[0]
    axis = (np.arange(len(core)) - len(core) // 2) / model.sampling(9).fine
    inside = np.hypot(axis[:, None], axis[None, :]) < 4.0
    aperture = core[inside].sum() / model.sampling(9).fine ** 2  # wings of diffraction lie outside
    pull = (found["flux_aperture"][match] - aperture * flux) / found["flux_aperture_err"][match]
    assert abs(pull.mean()) < 4 / n**0.5
    assert 0.8 < pull.std() < 1.25
    # A Kron ellipse of 2.5 radii holds some 94 % of the light (Bertin & Arnouts 1996, section 7.4), less of a star
    # with the wings of diffraction.
    assert 0.92 < np.median(found["flux"][match]) / 3000 < 1.0


def test_an_empty_frame_has_no_sources():
    zeros = np.zeros((64, 64), np.float32)
    found = measure_sources(zeros, zeros + 1, zeros + 1, zeros > 1)
    assert len(found["x"]) == 0


@pytest.mark.parametrize("column", [32.0, 1.0])
def test_the_repaired_share_of_a_source_is_that_of_its_ellipse(column):
    """At the frame's edge of what lies inside."""
    y, x = np.mgrid[:64, :64]
    data = (5000 * np.exp(-((x - column) ** 2 + (y - 32.0) ** 2) / 8)).astype(np.float32)
    error, nothing = np.full(data.shape, 5, np.float32), np.zeros(data.shape, bool)
    half = nothing.copy()
    half[33:] = True
    for repaired, share in ((None, 0), (nothing, 0), (~nothing, 1), (half, 0.5)):
        found = measure_sources(data, error, error, nothing, repaired=repaired)
        assert len(found["x"]) == 1
        assert abs(found["repaired_fraction"][0] - share) < 0.06


def test_sums_of_pixels_that_are_wrong_together_err_as_is_told(rng):
    """Drawn errors, of which each two correlate by 0.3: the sum's pulls are one wide, and too wide without it."""
    n, correlation = 4000, 0.3
    sigma = rng.uniform(1, 5, (6, 6)).astype(np.float32)
    common = np.sqrt(correlation) * rng.normal(size=(n, 1, 1))
    errors = sigma * (common + np.sqrt(1 - correlation) * rng.normal(size=(n, 6, 6)))
    alone = float((sigma**2).sum())
    added = float(sum_covariance(sigma, correlation, np.sum))
    pull = errors.sum(axis=(1, 2)) / np.sqrt(alone + added)
    assert abs(pull.std() - 1) < 0.05
    assert sum_covariance(sigma, 0.0, np.sum) == 0


def test_flux_errors_grow_by_the_correlation_of_repaired_pixels():
    """And by nothing where none was repaired; a source that was not touched keeps its error."""
    y, x = np.mgrid[:64, :128]
    data = sum(5000 * np.exp(-((x - column) ** 2 + (y - 32.0) ** 2) / 8) for column in (32, 96)).astype(np.float32)
    error, nothing = np.full(data.shape, 5, np.float32), np.zeros(data.shape, bool)
    left = nothing.copy()
    left[30:35, 30:35] = True
    wrong = np.sqrt(2 * error**2 + data)  # by 5 e- beyond the noise of the sky and of the photons
    plain = measure_sources(data, wrong, error, nothing, repaired=left)
    wider = measure_sources(data, wrong, error, nothing, repaired=left, repair_correlation=0.5)
    for column in ("flux_err", "flux_aperture_err"):
        assert wider[column][1] == plain[column][1]
        # 25 pixels of 5 e- each: a half of (125^2 - 625)
        assert np.isclose(wider[column][0] ** 2 - plain[column][0] ** 2, 7500, rtol=1e-3)
