"""Trails of satellites: found with their ends, angle and width; cosmic rays and stars are not taken for trails."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.arrays.background import estimate_background
from csstdask.arrays.mesh import Mesh
from csstdask.cosmicray.line_search import LONG, SHORT, find_segments, transform_strips
from csstdask.cosmicray.line_search import bin_frame as bin_pixels
from csstdask.cosmicray.trails import find_trails, release_trails, trail_pixels

SKY, NOISE, SIDE = 100.0, 5.0, 640


def segment_light(start, end, sigma, shape=(SIDE, SIDE)):
    """Return a line of unit height between two points (x, y), with a Gaussian profile and sharp ends."""
    y, x = np.indices(shape)
    length = np.hypot(end[0] - start[0], end[1] - start[1])
    cos, sin = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    along = (x - start[0]) * cos + (y - start[1]) * sin
    across = (y - start[1]) * cos - (x - start[0]) * sin
    return np.where((along >= 0) & (along <= length), np.exp(-0.5 * (across / sigma) ** 2), 0.0)


def observed(light, seed=1):
    """Return a frame [e-] with photon noise and read noise."""
    rng = np.random.default_rng(seed)
    frame = rng.poisson(SKY + light) + rng.normal(0, 2, light.shape)
    return frame.astype(np.float32)


def trails_of(frame):
    ignore = np.zeros(frame.shape, dtype=bool)
    return find_trails(frame, ignore, estimate_background(frame))


def stars(n, rng, shape=(SIDE, SIDE)):
    y, x = np.indices(shape)
    light = np.zeros(shape)
    for cy, cx, peak in zip(*rng.uniform(0, shape[0], (2, n)), 10 ** rng.uniform(1.5, 4, n), strict=True):
        rows, columns = (slice(max(0, int(c) - 8), int(c) + 9) for c in (cy, cx))
        light[rows, columns] += peak * np.exp(
            -0.5 * ((y[rows, columns] - cy) ** 2 + (x[rows, columns] - cx) ** 2) / 1.7
        )
    return light


def test_the_transform_is_the_sum_along_each_line():
    """Twin: follow the recursion's line through single boxes; every line takes one box from each row."""
    rng = np.random.default_rng(0)
    boxes = rng.normal(size=(64, 90)).astype(np.float32)
    short, long = transform_strips(boxes)
    assert short.shape == (LONG // SHORT, SHORT, 90 + LONG)
    assert long.shape == (1, LONG, 90 + LONG)
    assert np.allclose(short[0, 0, LONG:], boxes.sum(axis=0), atol=1e-4)

    def columns(slope, height):
        if height == 1:
            return [0]
        half = columns(slope // 2, height // 2)
        return half + [(slope + 1) // 2 + one for one in half]

    for slope, first in ((63, 3), (31, -20), (10, 40)):
        path = np.array(columns(slope, 64)) + first
        assert path[-1] - path[0] == slope
        inside = (path >= 0) & (path < 90)
        wanted = boxes[np.flatnonzero(inside), path[inside]].sum()
        assert short[0, slope, first + LONG] == pytest.approx(wanted, abs=1e-4)


def test_boxes_are_averages_of_clipped_significance():
    frame = np.full((130, 131), SKY, np.float32)
    frame[:4, :4] += NOISE  # one box, one sigma
    frame[4:8, 0] += 1000 * NOISE  # a quarter of a box, clipped at 2 sigma
    ignore = np.zeros(frame.shape, dtype=bool)
    ignore[8:12, :4] = True
    mesh = Mesh(np.full((1, 1), SKY, np.float32), np.full((1, 1), NOISE, np.float32), frame.shape)
    binned = bin_pixels(frame, ignore, mesh)
    assert binned.significance.shape == (33, 33)
    assert binned.significance[:3, 0].tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("angle", [0.4, 37.0, 45.0, 88.0, 91.0, 141.0])
def test_a_trail_has_its_angle_and_width_back(angle):
    turn = np.radians(angle)
    reach = 2000 * np.array([np.cos(turn), np.sin(turn)])
    centre = np.array([310.0, 325.0])
    light = 40 * segment_light(centre - reach, centre + reach, 1.5)
    (trail,) = trails_of(observed(light + stars(60, np.random.default_rng(2))))
    # An end may be off by half a pixel across.
    assert abs((trail.angle - angle + 90) % 180 - 90) < np.degrees(1 / trail.length)
    assert trail.width == pytest.approx(2.355 * 1.5, rel=0.2)
    assert trail.length >= SIDE - 2
    assert trail.touches_edge((SIDE, SIDE))
    assert trail_pixels([trail], light.shape)[light > 4].mean() > 0.99


def test_a_trail_ends_where_the_satellite_enters_the_shadow():
    light = 60 * segment_light((-10, 100), (400, 300), 1.5)
    (trail,) = trails_of(observed(light))
    assert min(np.hypot(np.array(trail.x) - 400, np.array(trail.y) - 300)) < 32  # a piece
    assert min(trail.x) < 1


def test_a_flashing_satellite_is_one_trail():
    light = 80 * segment_light((-10, 50), (SIDE + 10, 600), 1.5)
    x = np.arange(SIDE)
    light *= (x // 64 % 2 == 0)[None, :]  # dark for as long as it is bright
    (trail,) = trails_of(observed(light))
    assert trail.length > 600


@pytest.mark.parametrize("length", [60, 120, 200])
def test_long_cosmic_rays_are_no_trails(length):
    rng = np.random.default_rng(length)
    light = np.zeros((SIDE, SIDE))
    for _ in range(12):
        x, y, turn = rng.uniform(100, 500), rng.uniform(100, 500), rng.uniform(0, np.pi)
        step = length / 2 * np.array([np.cos(turn), np.sin(turn)])
        light += 400 * segment_light((x - step[0], y - step[1]), (x + step[0], y + step[1]), 0.5)
    assert trails_of(observed(light)) == []


def test_stars_and_rows_of_the_detector_are_no_trails():
    light = stars(3000, np.random.default_rng(4))
    light[:, 200] += 50  # a warm column
    assert trails_of(observed(light)) == []


def test_small_and_empty_frames_have_no_trails():
    assert trails_of(np.full((40, 50), SKY, np.float32)) == []
    assert trails_of(observed(np.zeros((100, 100)))) == []
    blank = np.full((200, 200), np.nan, np.float32)
    mesh = Mesh(np.full((1, 1), np.nan, np.float32), np.full((1, 1), np.nan, np.float32), blank.shape)
    assert find_trails(blank, np.ones(blank.shape, bool), mesh) == []


def test_the_trail_is_released_and_a_cosmic_ray_on_it_is_kept():
    light = 60 * segment_light((-10, 50), (SIDE + 10, 600), 1.5)
    crossing = np.zeros(light.shape, dtype=bool)
    crossing[290:345, 320] = crossing[100, 500:520] = True  # one across the trail, one far from it
    frame = observed(light + 200 * crossing)
    hit = (light > 15) | crossing
    mesh = estimate_background(frame)
    trails = find_trails(frame, np.zeros(hit.shape, bool), mesh)
    kept = release_trails(hit, trails, frame, mesh)
    assert kept[crossing].all()
    assert (kept & ~crossing).sum() < 0.01 * hit.sum()
    assert not (kept & ~hit).any()


def test_without_trails_the_mask_is_returned_as_it_is():
    frame = observed(np.zeros((64, 64)))
    hit = np.zeros(frame.shape, dtype=bool)
    hit[3, 4:20] = True
    assert release_trails(hit, [], frame, estimate_background(frame)) is hit


def test_a_frame_of_noise_has_few_candidates():
    frame = observed(np.zeros((SIDE, SIDE)))
    binned = bin_pixels(frame, np.zeros(frame.shape, bool), estimate_background(frame))
    assert len(find_segments(binned)) < 200
