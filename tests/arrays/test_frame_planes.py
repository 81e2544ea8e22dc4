"""Ignored pixels, electrons and variance: the definition against independent arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.arrays.frame import frame_variance, ignored_pixels, poisson_variance, to_electrons, variance_from_weight
from csstdask.arrays.mesh import Mesh


def test_a_frame_in_electrons_keeps_its_significance(rng):
    sci, weight = rng.normal(1, 1, (8, 9)).astype(np.float32), rng.uniform(1, 2, (8, 9)).astype(np.float32)
    frame = to_electrons(sci, weight, np.zeros((8, 9), np.int32), scale=150.0, ignore_bits=1)
    np.testing.assert_allclose(frame.data / frame.error, sci * np.sqrt(weight), rtol=1e-5)
    assert not frame.ignore.any()


def test_flag_weight_and_value_each_make_a_pixel_ignored():
    weight = np.float32([1, 1, 0, -1, np.nan, 1, 1])
    sci = np.float32([1, 1, 1, 1, 1, np.inf, np.nan])
    frame = to_electrons(sci, weight, np.int32([4, 2, 0, 0, 0, 0, 0]), scale=1.0, ignore_bits=4)
    assert frame.ignore.tolist() == [True, False, True, True, True, True, True]
    assert np.isinf(frame.error[2:5]).all()


def test_an_exempt_pixel_is_not_ignored_for_its_weight():
    variance = variance_from_weight(np.float32([0, 0, 1]))
    exempt = np.array([True, False, True])
    assert ignored_pixels(np.int32([0, 0, 1]), 1, variance=variance, exempt=exempt).tolist() == [False, True, True]


def test_the_variance_of_a_weight_may_take_its_place():
    weight = np.float32([4, 0])
    assert variance_from_weight(weight, 2.0, out=weight) is weight
    assert weight.tolist() == [1.0, np.inf]


def test_variance_of_a_model(rng):
    """The sky's noise squared plus the light above the sky, which never subtracts; the noise alone where unknown."""
    data = rng.normal(100, 20, (6, 7)).astype(np.float32)
    data[0, 0] = np.nan
    mesh = Mesh(np.full((1, 1), 100, np.float32), np.full((1, 1), 5, np.float32), data.shape)
    expected = 25 + np.clip(np.nan_to_num(data - 100), 0, None)
    np.testing.assert_allclose(frame_variance(data, None, mesh), expected, rtol=1e-6)
    np.testing.assert_allclose(poisson_variance(data - 100, 5.0)[1:], expected[1:], rtol=1e-6)
    assert frame_variance(data, None, mesh).dtype == np.float32


@pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 6)])
def test_variance_of_some_rows_is_that_of_the_frame(rng, rows):
    data = rng.normal(100, 20, (6, 7)).astype(np.float32)
    mesh = Mesh(np.float32([[90], [110]]), np.float32([[4], [6]]), data.shape)
    assert np.array_equal(frame_variance(data[rows], None, mesh, rows), frame_variance(data, None, mesh)[rows])
