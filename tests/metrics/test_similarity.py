"""Structural similarity against its definition, written out window by window."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.metrics.similarity import structural_similarity


def by_definition(a, b, span, window):
    places = np.lib.stride_tricks.sliding_window_view
    axes = tuple(range(-a.ndim, 0))
    one, other = places(a, (window,) * a.ndim), places(b, (window,) * b.ndim)
    mean_a, mean_b = one.mean(axes), other.mean(axes)
    n = window**a.ndim
    covariance = ((one - mean_a[(...,) + (None,) * a.ndim]) * (other - mean_b[(...,) + (None,) * a.ndim])).sum(axes)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    variances = one.var(axes, ddof=1) + other.var(axes, ddof=1)
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (light * (2 * covariance / (n - 1) + c2) / (variances + c2)).mean()


@pytest.mark.parametrize("shape", [(24,), (20, 17)])
def test_it_is_what_it_is_defined_as(rng, shape):
    a = rng.uniform(0, 5, shape)
    b = a + rng.normal(0, 1, shape)
    assert structural_similarity(a, b, span=5) == pytest.approx(by_definition(a, b, 5, 7), rel=1e-9)
    assert structural_similarity(a, a, span=5) == pytest.approx(1)
    assert structural_similarity(a, b, span=5, window=3) == pytest.approx(structural_similarity(b, a, span=5, window=3))


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"found shapes \(4,\) and \(5,\)"):
        structural_similarity(np.ones(4), np.ones(5), span=1)
    with pytest.raises(ValueError, match="window: found 6; wanted an odd number, at most 9"):
        structural_similarity(np.ones(9), np.ones(9), span=1, window=6)
    with pytest.raises(ValueError, match="span: found 0"):
        structural_similarity(np.ones(9), np.ones(9), span=0)
