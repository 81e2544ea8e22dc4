"""What is no accident, and what belongs to a seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from csstdask.arrays.morphology import hysteresis_threshold, min_recurrences


def test_only_what_hangs_together_with_a_seed_grows(rng):
    height = np.zeros((6, 8))
    height[1, 1:4] = [6, 4, 3.5]
    height[2, 4] = 3.2  # by a corner
    height[4, 6] = 4.9  # alone
    hit = hysteresis_threshold(height > 5, height > 3)
    assert {tuple(at) for at in np.argwhere(hit).tolist()} == {(1, 1), (1, 2), (1, 3), (2, 4)}


@pytest.mark.parametrize(("number", "share"), [(8, 0.03), (5, 0.03), (3, 0.01), (20, 0.05)])
def test_repeats_beyond_chance_are_binomial(number, share):
    """With equal shares the count is binomial: the least number whose upper tail is rare enough."""
    least = min_recurrences([share] * number, 1e-4)
    assert binom.sf(least - 1, number, share) < 1e-4
    assert least == 2 or binom.sf(least - 2, number, share) >= 1e-4


def test_where_nothing_is_certain_nothing_repeats():
    assert min_recurrences([0.2, 0.2, 0.2], 1e-4) == 4
