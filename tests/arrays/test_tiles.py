"""Tiles: their cores cover a frame once, their windows reach far enough, and a stencil cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter

from csstdask.arrays.tiles import in_batches, padded_shape, plan_tiles


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    tile=st.integers(8, 96),
    halo=st.integers(0, 40),
    grid=st.sampled_from([1, 2, 4, 8]),
)
def test_cores_cover_once_and_windows_reach(shape, tile, halo, grid):
    tiles = plan_tiles(shape, tile=tile, halo=halo, grid=grid)
    seen = np.zeros(shape, int)
    padded = padded_shape(shape, grid)
    sizes = set()
    for one in tiles:
        seen[one.core] += 1
        sizes.add(tuple(part.stop - part.start for part in one.window))
        for core, window, length in zip(one.core, one.window, padded, strict=True):
            assert window.start % grid == 0
            assert window.stop % grid == 0
            assert 0 <= window.start <= core.start
            assert core.stop <= window.stop <= length
            # A halo on each side, or the frame's own edge.
            assert core.start - window.start >= halo or window.start == 0
            assert window.stop - core.stop >= halo or window.stop == length
    assert (seen == 1).all()
    assert len(sizes) == 1


@pytest.mark.parametrize(("halo", "same"), [(3, True), (2, False), (0, False)])
def test_a_stencil_of_radius_three(rng, halo, same):
    """A 7 x 7 mean over windows is that over the frame if the halo is 3, and is not if it is less."""
    frame = rng.normal(size=(70, 53))
    whole = uniform_filter(frame, 7, mode="constant")
    result = np.full(frame.shape, np.nan)

    def mean(windows):
        return [uniform_filter(window, 7, mode="constant") for window in windows]

    for core, part in in_batches(plan_tiles(frame.shape, tile=16, halo=halo, grid=1), frame.__getitem__, mean, 5):
        result[core] = part
    assert np.allclose(result, whole, atol=1e-12) is same


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="tile 0"):
        plan_tiles((10, 10), tile=0, halo=1, grid=1)
