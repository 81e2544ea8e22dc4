"""Selection of stars: each source that is not a usable star is rejected, with a reason."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.psf.selection import select_stars

SHAPE = (4000, 5000)


@pytest.fixture
def sources(rng):
    """400 stars on a grid, 100 galaxies between them."""
    y, x = (part.ravel().astype(float) for part in np.mgrid[60:3900:200, 60:4900:240])
    stars, galaxies = rng.permutation(len(x))[:400], 100
    gx, gy = rng.uniform(30, 4970, galaxies), rng.uniform(30, 3970, galaxies)
    apart = np.hypot(gx[:, None] - x[stars], gy[:, None] - y[stars]).min(axis=1) > 20
    gx, gy = gx[apart], gy[apart]
    n, m = len(stars), len(gx)
    table = {
        "x": np.concatenate([x[stars] + rng.uniform(-0.5, 0.5, n), gx]),
        "y": np.concatenate([y[stars] + rng.uniform(-0.5, 0.5, n), gy]),
        "flux": np.concatenate([10 ** rng.uniform(3.5, 5, n), 10 ** rng.uniform(3.5, 4.5, m)]),
        "half_light_radius": np.concatenate([rng.normal(1.1, 0.02, n), rng.uniform(1.5, 4, m)]),
        "ellipticity": np.concatenate([rng.uniform(0, 0.1, n), rng.uniform(0, 0.6, m)]),
        "flag": np.zeros(n + m, int),
    }
    table["flux_err"] = np.sqrt(table["flux"] + 2000)
    table["peak"] = table["flux"] * 0.2
    return table, n


def test_stars_are_kept_and_galaxies_are_not(sources):
    table, n = sources
    found = select_stars(table, SHAPE)
    chosen = found.fitted | found.held_out
    assert chosen[:n].mean() > 0.97
    assert not chosen[n:].any()
    assert found.radius[0] < 1.1 < found.radius[1] < 1.3
    assert sum(found.rejected.values()) == (~chosen).sum()
    assert found.rejected["off the stellar locus"] > 20


def test_held_out_stars_lie_in_separate_cells(sources):
    table, _ = sources
    found = select_stars(table, SHAPE)
    assert not (found.fitted & found.held_out).any()
    assert 0.1 < found.held_out.sum() / (found.held_out | found.fitted).sum() < 0.3
    cells = [
        set(zip((table["x"][some] // 500).astype(int), (table["y"][some] // 400).astype(int), strict=True))
        for some in (found.fitted, found.held_out)
    ]
    assert not cells[0] & cells[1]
    assert all((column + dx, row + dy) not in cells[1] for column, row in cells[1] for dx, dy in ((1, 0), (0, 1)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flux": 10.0}, "faint"),
        ({"x": 10.0}, "near edge"),
        ({"y": 3990.0}, "near edge"),
        ({"flag": 1}, "flagged"),
        ({"peak": 1e5}, "saturated"),
        ({"ellipticity": 0.5}, "elongated"),
        ({"ellipticity": np.nan}, "elongated"),
        ({"half_light_radius": 1.5}, "off the stellar locus"),
        ({"half_light_radius": np.nan}, "off the stellar locus"),
        ({"flux_err": 0.0}, "faint"),
    ],
)
def test_each_fault_is_a_reason(sources, change, reason):
    table, _ = sources
    before = select_stars(table, SHAPE, saturation=6e4)
    star = int(np.flatnonzero(before.fitted)[0])
    for name, value in change.items():
        table[name] = table[name].copy()
        table[name][star] = value
    after = select_stars(table, SHAPE, saturation=6e4)
    assert not (after.fitted | after.held_out)[star]
    assert after.rejected[reason] == before.rejected[reason] + 1


def test_neighbours_matter_by_their_light(sources):
    table, n = sources
    star = int(np.argmax(table["flux"][:n]))
    for share, alone in ((0.001, True), (0.1, False)):
        more = {name: np.append(values, values[star]) for name, values in table.items()}
        more["x"][-1] += 6
        more["flux"][-1] *= share
        found = select_stars(more, SHAPE)
        assert (found.fitted | found.held_out)[star] == alone
        assert not (found.fitted | found.held_out)[-1]


def test_missing_subpixel_phases_are_reported(sources, caplog):
    table, _ = sources
    with caplog.at_level(logging.WARNING, logger="csstdask"):
        assert (select_stars(table, SHAPE).phases > 0).all()
        assert not caplog.records
        on_centres = table | {"x": np.rint(table["x"]), "y": np.rint(table["y"])}
        found = select_stars(on_centres, SHAPE)
    assert (found.phases > 0).sum() == 1
    assert "sixteenth of a pixel" in caplog.text


def test_two_sources_of_different_sizes_have_a_locus(sources):
    table, _ = sources
    two = {name: values[[0, -1]] for name, values in table.items()} | {"half_light_radius": np.array([1.0, 6.0])}
    low, high = select_stars(two, SHAPE).radius
    assert low < high


def test_empty_tables_are_valid_and_missing_columns_are_named(sources):
    table, _ = sources
    none = select_stars({name: values[:0] for name, values in table.items()}, SHAPE)
    assert none.fitted.shape == (0,)
    with pytest.raises(InputError, match="no column half_light_radius"):
        select_stars({name: table[name] for name in table if name != "half_light_radius"}, SHAPE)
