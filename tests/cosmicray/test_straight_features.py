"""Trailed stars are released because they are parallel; the table and the masks of all straight features."""

from __future__ import annotations

import numpy as np
import pytest

import csstdask
from csstdask.arrays.background import estimate_background
from csstdask.cosmicray import detect
from csstdask.cosmicray.events import measure_events
from csstdask.cosmicray.straight_features import StraightFeatures, append_features, release_straight_features
from csstdask.cosmicray.trailed_stars import find_drift, release_trailed_stars

SIDE = 400


def streaks(rng, n, angle, length, sigma, peak=300.0):
    """Return the light of streaks with Gaussian profiles; the angle is one number [deg] or one per streak."""
    y, x = np.indices((SIDE, SIDE))
    light = np.zeros((SIDE, SIDE))
    for cx, cy, turn in zip(*rng.uniform(25, SIDE - 25, (2, n)), np.broadcast_to(np.radians(angle), n), strict=True):
        along = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        across = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        beyond = np.maximum(np.abs(along) - length / 2, 0)
        light += peak * np.exp(-0.5 * (across**2 + beyond**2) / sigma**2)
    return light


def frame_of(light, seed=1):
    rng = np.random.default_rng(seed)
    return (rng.poisson(100 + light) + rng.normal(0, 2, light.shape)).astype(np.float32)


def masks(frame):
    return np.zeros(frame.shape, dtype=bool), estimate_background(frame)


def test_the_drift_has_its_angle_and_length_back(rng):
    frame = frame_of(streaks(rng, 40, 117.0, 16.0, 1.0))
    drift = find_drift(frame, *masks(frame))
    assert drift is not None
    assert drift.angle == pytest.approx(117, abs=2)
    assert drift.length == pytest.approx(17, abs=2)


def test_round_stars_and_cosmic_rays_show_no_drift(rng):
    stars = streaks(rng, 60, 30.0, 0.0, 1.5)
    tracks = streaks(rng, 30, rng.uniform(0, 180, 30), 40.0, 0.5)
    for light in (stars, tracks, stars + tracks, np.zeros((SIDE, SIDE))):
        frame = frame_of(light)
        assert find_drift(frame, *masks(frame)) is None


def test_trailed_stars_are_released_and_cosmic_rays_kept(rng):
    stars = streaks(rng, 40, 117.0, 16.0, 1.0)
    tracks = streaks(rng, 8, rng.uniform(-30, 60, 8), 25.0, 0.5, peak=800)  # none within 30 degrees of the drift
    frame = frame_of(stars + tracks)
    hit = (stars > 150) | (tracks > 200)
    ignore, mesh = masks(frame)
    drift = find_drift(frame, ignore, mesh)
    assert drift is not None
    kept, found = release_trailed_stars(hit, drift, frame, ignore, mesh)
    assert kept[tracks > 200].mean() > 0.95
    alone = (stars > 150) & (tracks < 1)
    assert kept[alone].mean() < 0.1
    assert len(found.x) == pytest.approx(40, abs=8)  # some overlap
    assert not (kept & ~hit).any()


def test_a_cosmic_ray_on_a_trailed_star_is_kept(rng):
    stars = streaks(rng, 40, 0.0, 16.0, 1.0)
    frame = frame_of(stars)
    y, x = np.unravel_index(np.argmax(stars), stars.shape)
    frame[y - 1 : y + 2, x] += 3000
    hit = stars > 150
    ignore, mesh = masks(frame)
    drift = find_drift(frame, ignore, mesh)
    assert drift is not None
    kept, _ = release_trailed_stars(hit, drift, frame, ignore, mesh)
    assert kept[y, x]


def test_a_frame_without_features_keeps_its_mask_and_has_an_empty_table(rng):
    frame = frame_of(streaks(rng, 20, 0.0, 0.0, 1.5))
    ignore, mesh = masks(frame)
    hit = frame > 300
    kept, features = release_straight_features(hit, frame, ignore, mesh)
    assert kept is hit
    assert not features.satellite_mask().any()
    assert {len(values) for values in features.table().values()} == {0}


def test_features_follow_the_events_in_the_table(rng):
    stars = streaks(rng, 40, 117.0, 16.0, 1.0)
    y, x = np.indices(stars.shape)
    trail = 80 * np.exp(-0.5 * ((y - 50 - 0.6 * x) / 1.17 / 1.5) ** 2)
    frame = frame_of(stars + trail)
    ignore, mesh = masks(frame)
    hit = (stars > 150) | (trail > 30)
    hit[5, 5:9] = True
    frame[5, 5:9] += 500
    kept, features = release_straight_features(hit, frame, ignore, mesh)
    events = measure_events(kept, frame - 100, np.full(frame.shape, 100.0))
    table = append_features(events, features.table())
    origins = table["origin"].tolist()
    n = len(events["id"])
    assert set(origins[:n]) == {"cosmic_ray"}
    assert origins[n] == "satellite"
    assert set(origins[n + 1 :]) == {"trailed_star"}
    assert table["angle"][n] == pytest.approx(np.degrees(np.arctan(0.6)), abs=0.5)
    assert table["touches_edge"][n]
    assert table["n_pixels"][n] == features.satellite_mask().sum()
    assert np.isnan(table["charge"][n:]).all()
    assert table["id"].tolist() == list(range(len(origins)))
    assert {len(values) for values in table.values()} == {len(origins)}


def test_detect_and_clean_release_a_trail_and_detect_keeps_it_on_request(rng):
    y, x = np.indices((SIDE, SIDE))
    trail = 60 * np.exp(-0.5 * ((y - 50 - 0.6 * x) / 1.17 / 0.8) ** 2)
    frame = frame_of(trail)
    raw = detect(frame, model="unet-fast", release_straight=False)
    found = detect(frame, model="unet-fast")
    assert raw.features is None
    assert isinstance(found.features, StraightFeatures)
    assert len(found.features.trails) == 1
    assert raw.mask[trail > 10].sum() > 50
    assert found.mask[trail > 10].sum() < 0.1 * raw.mask[trail > 10].sum()
    assert np.array_equal(found.mask, csstdask.clean(frame, model="unet-fast").mask)
    assert np.array_equal(found.probability, raw.probability)
