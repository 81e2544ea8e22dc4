"""The adaptive masked median against a brute-force twin; the same test for CuPy where it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csstdask.arrays.median import adaptive_median
from csstdask.arrays.namespace import to_host


def brute_force(data, target, donor, least=3, largest=5):
    """Do the same with NumPy's own median, one pixel at a time."""
    median, variance, count = [], [], []
    for y, x in zip(*np.nonzero(target), strict=True):
        for radius in range(1, largest + 1):
            window = (slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1))
            values = data[window][donor[window]].astype(np.float64)
            if values.size >= least:
                break
        count.append(values.size)
        median.append(np.median(values) if values.size else np.nan)
        variance.append(values.var(ddof=1) if values.size > 1 else np.nan)
    return np.array(median), np.array(variance), np.array(count)


@pytest.fixture(params=["numpy", "cupy"])
def xp(request):
    if request.param == "numpy":
        return np
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    return cupy


def scene(seed, share, dtype=np.float32):
    rng = np.random.default_rng(seed)
    data = rng.normal(100, 10, (37, 41)).astype(dtype)
    target = rng.random(data.shape) < share
    ignore = rng.random(data.shape) < 0.1
    data[ignore] = np.nan
    return data, target, ~(target | ignore)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_equals_brute_force(xp, dtype, share):
    data, target, donor = scene(1, share, dtype)
    ours = [to_host(a) for a in adaptive_median(xp.asarray(data), xp.asarray(target), xp.asarray(donor))]
    median, variance, count = brute_force(data, target, donor)
    np.testing.assert_array_equal(ours[0], median.astype(dtype))
    np.testing.assert_allclose(ours[1], variance, rtol=1e-10)
    np.testing.assert_array_equal(ours[2], count)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_equals_brute_force_for_any_mask(seed, share):
    data, target, donor = scene(seed, share)
    median, _, count = adaptive_median(data, target, donor)
    expected, _, donors = brute_force(data, target, donor)
    np.testing.assert_array_equal(median, expected.astype(np.float32))
    np.testing.assert_array_equal(count, donors)


def test_no_donor_within_reach():
    data = np.ones((21, 21), np.float32)
    target = np.zeros(data.shape, dtype=bool)
    target[10, 10] = True
    median, variance, count = adaptive_median(data, target, np.zeros_like(target))
    assert np.isnan(median).all()
    assert np.isnan(variance).all()
    assert count.tolist() == [0]
