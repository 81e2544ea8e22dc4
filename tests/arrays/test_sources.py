"""Sources: positions and fluxes of stars put there on purpose."""

from __future__ import annotations

import numpy as np

from csstdask.arrays.sources import measure_sources
from csstdask.mock.scene import Catalogue, draw_scene


def test_positions_and_fluxes_with_honest_errors(rng):
    """A grid of stars: no bias beyond its error, pulls of unit width, centroids to a twentieth of a pixel."""
    n, step = 144, 40
    y, x = (a.ravel() for a in np.mgrid[20 : 20 + 12 * step : step, 20 : 20 + 12 * step : step].astype(float))
    x, y = x + rng.uniform(-0.5, 0.5, n), y + rng.uniform(-0.5, 0.5, n)
    flux = np.full(n, 3000.0)
    ones, zeros = np.ones(n), np.zeros(n)
    scene = draw_scene(Catalogue(x, y, zeros, flux, ones > 0, zeros, ones, zeros), (500, 500), 0.0)
    sigma = 6.0
    error = np.sqrt(scene + sigma**2).astype(np.float32)
    data = (scene + rng.normal(0, 1, scene.shape) * error).astype(np.float32)
    noise = np.full(scene.shape, sigma, np.float32)
    found = measure_sources(data, error, noise, np.zeros(scene.shape, bool))
    near = np.hypot(found["x"][:, None] - x, found["y"][:, None] - y)
    match = near.argmin(axis=0)
    assert (near.min(axis=0) < 0.5).all()
    assert np.std(found["x"][match] - x) < 0.05
    aperture = 1 - 0.15 * np.exp(-(4.0**2) / (2 * 2.0**2))  # of the halo's light, 13.5 % lies outside
    pull = (found["flux_aperture"][match] - aperture * flux) / found["flux_aperture_err"][match]
    assert abs(pull.mean()) < 4 / n**0.5
    assert 0.8 < pull.std() < 1.25
    # A Kron ellipse of 2.5 radii holds at least 94 % of the light (Bertin & Arnouts 1996, section 7.4).
    assert 0.94 < np.median(found["flux"][match]) / 3000 < 1.0


def test_an_empty_frame_has_no_sources():
    zeros = np.zeros((64, 64), np.float32)
    found = measure_sources(zeros, zeros + 1, zeros + 1, zeros > 1)
    assert len(found["x"]) == 0
