"""Events: what was drawn is measured, and every sum has its brute-force twin."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label

from csstdask.cosmicray.events import measure_events
from csstdask.mock.charge_deposition import Paths, deposit
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.recipe_tables import CosmicRays

NOISE = 8.0
DTYPES = {
    "id": np.int32, "x": np.float64, "y": np.float64, "n_pixels": np.int32, "charge": np.float64,
    "charge_err": np.float64, "peak": np.float64, "length": np.float64, "width": np.float64, "angle": np.float64,
    "kind": np.object_, "touches_source": np.bool_, "touches_edge": np.bool_,
}  # fmt: skip


def drawn(rng, length, angle, bend, electrons, cell=160):
    """Return an image with one event in the middle of each cell of a grid, as the simulator draws them."""
    side = int(np.sqrt(len(length)))
    n = side * side
    length, angle, bend = (np.asarray(values, dtype=float)[:n] for values in (length, angle, bend))
    points = np.maximum(1, np.ceil(length / 0.25)).astype(int)
    offset = np.concatenate([[0], np.cumsum(points)])
    event = np.repeat(np.arange(n), points)
    along = (np.arange(offset[-1]) - offset[event] + 0.5) / points[event] - 0.5
    forward, aside = along * length[event], (along**2 - 1 / 12) * 4 * bend[event]
    x = (np.arange(n) % side + 0.5) * cell + rng.uniform(-0.5, 0.5, n)
    y = (np.arange(n) // side + 0.5) * cell + rng.uniform(-0.5, 0.5, n)
    cos, sin = np.cos(angle)[event], np.sin(angle)[event]
    image = np.zeros((side * cell, side * cell), np.int32)
    paths = Paths(
        offset,
        x[event] + forward * cos - aside * sin,
        y[event] + forward * sin + aside * cos,
        np.ones(offset[-1]),
        np.full(offset[-1], 0.2),
        np.full(n, electrons),
    )
    deposit(rng, paths, image)
    return image, x, y


def measured(rng, image):
    height = image + rng.normal(0, NOISE, image.shape)
    return measure_events(image > 3 * NOISE, height, np.full(image.shape, NOISE**2))


def matched(table, x, y):
    """Return for each drawn event the one nearest to it."""
    nearest = np.array([np.argmin(np.hypot(table["x"] - a, table["y"] - b)) for a, b in zip(x, y, strict=True)])
    return {name: values[nearest] for name, values in table.items()}


def test_straight_tracks_have_their_length_and_angle_back(rng):
    length, angle = rng.uniform(5, 60, 64), rng.uniform(0, np.pi, 64)
    image, x, y = drawn(rng, length, angle, np.zeros(64), 20_000)
    found = matched(measured(rng, image), x, y)
    assert (found["kind"] == "track").all()
    assert np.abs(found["length"] - length).max() < 1
    turn = (found["angle"] - np.degrees(angle) + 90) % 180 - 90
    assert np.abs(turn).max() < 3
    assert np.hypot(found["x"] - x, found["y"] - y).max() < 0.5
    assert (found["width"] < 1.5).all()
    assert ((found["angle"] >= 0) & (found["angle"] < 180)).all()


def test_points_are_points_and_keep_their_charge(rng):
    image, x, y = drawn(rng, np.zeros(400), np.zeros(400), np.zeros(400), 2000, cell=20)
    table = measured(rng, image)
    assert len(table["id"]) == 400
    assert (table["kind"] == "point").all()
    assert (table["length"] < 2).all()
    found = matched(table, x, y)
    # Of 2000 e- less than 24 e- a pixel is below the mask: within noise, all are there.
    pull = (found["charge"] - 2000) / found["charge_err"]
    assert -2.5 < pull.mean() < 0.2
    np.testing.assert_allclose(found["charge_err"], NOISE * np.sqrt(found["n_pixels"]))


@pytest.mark.parametrize(("share", "kind", "least"), [(0.02, "track", 0.97), (0.4, "worm", 0.95)])
def test_bent_tracks_are_worms(rng, share, kind, least):
    """Bends of 0.3 to 12 pixels: of a straight line nothing, of a worm more than its width."""
    length = rng.uniform(12, 30, 100)
    bend = share * length * rng.choice([-1, 1], 100)
    image, x, y = drawn(rng, length, rng.uniform(0, np.pi, 100), bend, 20_000)
    found = matched(measured(rng, image), x, y)
    assert (found["kind"] == kind).mean() >= least


def test_sums_are_those_of_a_loop_over_events(rng):
    """A crowded frame, events that cross, pixels without a donor: the same as with plain masks, event by event."""
    charge = draw_cosmic_rays(rng, CosmicRays(), (150, 170))
    hit = (charge > 24) & (rng.random(charge.shape) < 0.97)
    height = (charge + rng.normal(0, NOISE, charge.shape)).astype(np.float32)
    variance = rng.uniform(20, 90, charge.shape).astype(np.float32)
    variance[rng.random(charge.shape) < 0.02] = np.inf
    variance[~hit] = np.nan
    source = rng.random(charge.shape) < 0.01
    table = measure_events(hit, height, variance, source=source)
    parts, n = label(hit, np.ones((3, 3)))
    assert len(table["id"]) == n
    assert table["n_pixels"].sum() == hit.sum()
    assert np.array_equal(np.lexsort((table["x"], table["y"])), np.arange(n))
    rows = []
    for i in range(1, n + 1):
        y, x = np.nonzero(parts == i)
        known = np.isfinite(variance[y, x])
        h = height[y, x].astype(float)
        weight = np.where(known & (h > 0), h, 0.0)
        weight = weight / weight.sum() if weight.sum() > 0 else np.full(len(x), 1 / len(x))
        cx, cy = weight @ x, weight @ y
        moments = np.cov(np.stack([x, y]), aweights=weight, ddof=0) if len(x) > 1 else np.zeros((2, 2))
        values = np.linalg.eigvalsh(moments)
        edge = (y == 0) | (x == 0) | (y == hit.shape[0] - 1) | (x == hit.shape[1] - 1)
        total = h[known].sum() if known.any() else np.nan
        error = np.sqrt(variance[y, x][known].sum(dtype=float)) if known.any() else np.nan
        peak = h[known].max() if known.any() else np.nan
        line = np.sqrt(12 * np.maximum(values - 1 / 12, 0))
        rows.append((cx, cy, len(x), total, error, peak, line[1], line[0], source[y, x].any(), edge.any()))
    rows = np.array(rows)[np.lexsort(np.array(rows).T[:2])]
    names = (
        "x", "y", "n_pixels", "charge", "charge_err", "peak", "length", "width", "touches_source", "touches_edge",
    )  # fmt: skip
    for name, column in zip(names, rows.T, strict=True):
        np.testing.assert_allclose(table[name].astype(float), column, rtol=1e-6, atol=1e-5, err_msg=name)
    assert table["touches_edge"].any()
    assert table["touches_source"].any()


def test_pixels_without_a_donor_count_as_pixels_alone():
    hit, height = np.zeros((9, 9), bool), np.zeros((9, 9), np.float32)
    variance = np.full((9, 9), np.nan, np.float32)
    hit[2, 2:5], hit[6, 6] = True, True
    height[2, 2:5], height[6, 6] = (100, 5000, 300), 700
    variance[2, 2:5], variance[6, 6] = (9, np.inf, 16), np.inf
    table = measure_events(hit, height, variance)
    assert table["n_pixels"].tolist() == [3, 1]
    assert table["charge"][0] == 400
    assert table["charge_err"][0] == 5
    assert table["peak"][0] == 300
    assert (table["x"][0], table["y"][0]) == (3.5, 2.0)
    assert np.isnan([table["charge"][1], table["charge_err"][1], table["peak"][1]]).all()
    assert (table["x"][1], table["y"][1]) == (6.0, 6.0)


def test_nothing_hit_is_an_empty_table_of_the_same_types():
    nothing = measure_events(np.zeros((8, 9), bool), np.zeros((8, 9)), np.zeros((8, 9)))
    one = np.zeros((8, 9), bool)
    one[3, 4] = True
    something = measure_events(one, np.ones((8, 9)), np.ones((8, 9)))
    for table, n in ((nothing, 0), (something, 1)):
        assert list(table) == list(DTYPES)
        for name, dtype in DTYPES.items():
            assert table[name].dtype == dtype, name
            assert table[name].shape == (n,)


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (19, 5), (7, 0), (7, 24)])
def test_edges_are_marked(rows, columns):
    hit = np.zeros((20, 25), bool)
    hit[rows, columns] = hit[10, 12] = True
    table = measure_events(hit, np.ones(hit.shape), np.ones(hit.shape))
    assert dict(zip(table["y"], table["touches_edge"], strict=True)) == {rows: True, 10: False}


def test_simulated_kinds_are_distinguished(rng):
    """With the simulator's mixture, points stay points, and straight tracks are not classified as worms."""
    n = 400
    length = rng.exponential(12.0, n).clip(4, 100)
    wanders = np.arange(n) % 2 == 0
    bend = np.where(wanders, rng.normal(0, 0.3, n), 0.0) * length
    image, x, y = drawn(rng, length, rng.uniform(0, np.pi, n), bend, 5000)
    kind = matched(measured(rng, image), x, y)["kind"]
    visible = wanders & (np.abs(bend) > 2.5)
    assert (kind[visible] == "worm").mean() > 0.85
    assert (kind[~wanders] == "track").mean() > 0.95
    assert (kind[~wanders] == "worm").mean() < 0.02
