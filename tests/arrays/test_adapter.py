"""The adapter: masks, units and uncertainties of every container are used, or refused with what to pass instead."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from astropy import units as u
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    InverseVariance,
    NDData,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from csstdask.arrays.adapter import adapt, convert_column, convert_mask
from csstdask.arrays.namespace import array_adapter

SHAPE = (3, 4)
VALUES = np.arange(12, dtype=np.float32).reshape(SHAPE)
BAD = VALUES == 5
SIGMA = np.full(SHAPE, 2.0, np.float32)


def as_nested_list(array):
    return array.tolist()


CONTAINERS = {
    "list": (as_nested_list, False),
    "pandas": (pd.DataFrame, False),
    "xarray": (lambda a: xr.DataArray(a, dims=("y", "x"), attrs={"units": "ELECTRONS"}), False),
    "xarray of dask": (lambda a: xr.DataArray(a, dims=("y", "x")).chunk(), False),
    "quantity": (lambda a: a * u.electron, False),
    "kilo-electrons": (lambda a: a * 1e-3 * u.Unit(1000 * u.electron), False),
    "xarray of quantity": (lambda a: xr.DataArray(a * u.electron, dims=("y", "x")), False),
    "numpy.ma": (lambda a: np.ma.masked_array(a, BAD), True),
    "numpy.ma, nothing masked": (np.ma.masked_array, False),
    "Masked": (lambda a: Masked(a, BAD), True),
    "Masked quantity": (lambda a: Masked(a * u.electron, BAD), True),
    "NDData": (lambda a: NDData(a, mask=BAD), True),
    "NDData of numpy.ma": (lambda a: NDData(np.ma.masked_array(a, BAD)), True),
    "CCDData": (lambda a: CCDData(a, unit="electron", mask=BAD.astype(np.uint8)), True),
    "list of rows": (lambda a: [np.ma.masked_array(row, bad) for row, bad in zip(a, BAD, strict=True)], True),
    "torch": (torch.from_numpy, False),
}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", ["f4", ">f8", "i2"])
def test_values_and_masks_of_containers(container, dtype):
    wrap, has_mask = CONTAINERS[container]
    if container == "torch" and dtype == ">f8":
        dtype = "f8"  # torch has no other byte order
    array = VALUES.astype(dtype)
    found = adapt(wrap(array))
    np.testing.assert_allclose(found.data, VALUES, rtol=1e-6)
    assert found.data.dtype.isnative
    assert found.data.dtype.kind == "f"
    assert np.array_equal(found.ignore, BAD if has_mask else np.zeros_like(BAD))
    assert found.error is None


def test_masks_are_joined():
    corner, middle = VALUES == 0, VALUES == 6
    data = np.ma.masked_array(np.where(VALUES == 11, np.nan, VALUES), BAD)
    found = adapt(data, np.ma.masked_array(SIGMA, corner), np.ma.masked_array(np.zeros(SHAPE, bool), middle))
    assert np.array_equal(np.flatnonzero(found.ignore), [0, 5, 6, 11])
    assert not adapt(VALUES, mask=np.ma.masked_array(VALUES).mask).ignore.any()  # numpy's nomask


@pytest.mark.parametrize(
    ("uncertainty", "values"),
    [(StdDevUncertainty, SIGMA), (VarianceUncertainty, SIGMA**2), (InverseVariance, SIGMA**-2)],
)
@pytest.mark.parametrize("unit", [u.electron, 1000 * u.electron, None])
def test_uncertainties_are_errors(uncertainty, values, unit):
    scale = 1 if unit is None else u.Unit(unit).to(u.electron)
    frame = NDData(VALUES, unit=None if unit is None else u.Unit(unit), uncertainty=uncertainty(values))
    found = adapt(frame)
    np.testing.assert_allclose(found.data, VALUES * scale)
    np.testing.assert_allclose(found.error, SIGMA * scale)
    assert found.error.dtype == np.float32
    np.testing.assert_allclose(adapt(frame, SIGMA * 3).error, SIGMA * 3 * scale)  # explicit, in the unit of the data
    np.testing.assert_allclose(adapt(VALUES, uncertainty(values)).error, SIGMA)


def test_an_uncertainty_has_a_unit_of_its_own():
    frame = CCDData(
        VALUES, unit="electron", uncertainty=StdDevUncertainty(SIGMA / 1000, unit=u.Unit(1000 * u.electron))
    )
    np.testing.assert_allclose(adapt(frame).error, SIGMA, rtol=1e-6)
    squared = CCDData(VALUES, unit="electron", uncertainty=VarianceUncertainty(SIGMA**2, unit=u.electron**2))
    np.testing.assert_allclose(adapt(squared).error, SIGMA)
    with np.errstate(divide="ignore"):
        none = adapt(NDData(VALUES, uncertainty=InverseVariance(np.zeros(SHAPE))))
    assert np.isinf(none.error).all()
    assert none.ignore.all()  # no weight: not usable


@pytest.mark.parametrize(
    ("data", "cure"),
    [
        (VALUES * u.adu, "multiply by the gain"),
        (VALUES * u.ct, "multiply by the gain"),
        (VALUES * u.electron / u.s, "multiply by the exposure time"),
        (VALUES * u.dimensionless_unscaled, "array.value"),
        (VALUES * u.Jy, "found the unit Jy; wanted electron"),
        (u.Magnitude(np.ones(SHAPE), u.mag(u.electron)), "wanted electron"),
        (CCDData(VALUES, unit="adu"), "multiply by the gain"),
        (xr.DataArray(VALUES, attrs={"units": "electron s-1"}), "multiply by the exposure time"),
        (xr.DataArray(VALUES, attrs={"units": "widgets"}), "not understood"),
        (xr.DataArray(VALUES.T, dims=("x", "y")), "transpose"),
        (NDData(VALUES, uncertainty=UnknownUncertainty(SIGMA)), "StdDevUncertainty"),
        (fits.ImageHDU(VALUES), "hdu.data"),
        ([VALUES[0] * u.electron, *VALUES[1:]], "with and without a unit"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_would_be_lost_is_refused(data, cure):
    with pytest.raises(TypeError, match=cure):
        adapt(data)


def test_units_of_other_packages_are_refused():
    class Length(np.ndarray):
        """As of unyt."""

    Length.__module__, Length.__name__ = "unyt.array", "unyt_array"
    with pytest.raises(TypeError, match="astropy Quantity"):
        adapt(VALUES.view(Length))

    class Measured:
        """As of pint."""

        magnitude, units = VALUES, "electron"

    with pytest.raises(TypeError, match="astropy Quantity"):
        adapt(Measured())


def test_errors_in_units():
    np.testing.assert_allclose(adapt(VALUES, SIGMA * u.electron).error, SIGMA)
    with pytest.raises(TypeError, match="error: found the unit adu"):
        adapt(VALUES, SIGMA * u.adu)
    with pytest.raises(ValueError, match="mask is the next argument"):
        adapt(VALUES, BAD)
    with pytest.raises(ValueError, match="mask is the next argument"):
        adapt(VALUES, np.ma.masked_array(BAD))


def test_stamps_have_any_unit_and_errors_follow_it():
    stamps, error = np.stack([VALUES] * 2), np.stack([SIGMA] * 2)
    found = adapt(stamps * u.mJy, error * 1e-3 * u.Jy, stamps=True)
    np.testing.assert_allclose(found.error, error, rtol=1e-6)
    cutouts = [CCDData(VALUES, unit="adu", mask=BAD, uncertainty=StdDevUncertainty(SIGMA)) for _ in range(2)]
    found = adapt(cutouts, stamps=True)
    np.testing.assert_allclose(found.data, stamps)
    np.testing.assert_allclose(found.error, error)
    assert np.array_equal(found.ignore, np.stack([BAD] * 2))
    with pytest.raises(TypeError, match="stamps without one"):
        adapt(stamps, error * u.adu, stamps=True)


@pytest.mark.parametrize(
    ("mask", "cure"),
    [
        (np.full(SHAPE, 0.5), "probability >= threshold"),
        (np.ones(SHAPE, np.float32), "probability >= threshold"),
        (np.full(SHAPE, 4096), "flags & bits"),
        (-np.ones(SHAPE, np.int8), "flags & bits"),
        (np.ones((4, 3), bool), r"mask: found shape \(4, 3\)"),
        (torch.full(SHAPE, 0.5), "probability >= threshold"),
    ],
)
def test_masks_that_are_none(mask, cure):
    with pytest.raises(ValueError, match=cure):
        adapt(VALUES, mask=mask)


SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)
MASK_TYPES = st.sampled_from(["?", "u1", "i1", ">i2", "<i4", ">u8"])


@st.composite
def laid_out(draw, array):
    """The same array, contiguous or not."""
    how = draw(st.sampled_from(["C", "F", "strided", "reversed"]))
    if how == "strided":
        wide = np.zeros((array.shape[0], 2 * array.shape[1]), array.dtype)
        wide[:, ::2] = array
        return wide[:, ::2]
    if how == "reversed":
        return np.ascontiguousarray(array[::-1])[::-1]
    return np.asarray(array, order=how)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_mask_of_booleans_is_that_mask(data):
    shape = data.draw(SHAPES)
    wanted = data.draw(hnp.arrays(bool, shape))
    mask = data.draw(laid_out(wanted.astype(data.draw(MASK_TYPES))))
    values = data.draw(laid_out(np.ones(shape, data.draw(st.sampled_from(["f2", "<f4", ">f4", ">f8", ">i2", "?"])))))
    before = mask.copy()
    found = adapt(values, mask=mask)
    assert np.array_equal(found.ignore, wanted)
    assert found.ignore.dtype == bool
    assert found.data.flags.c_contiguous
    assert found.data.dtype.isnative
    found.ignore[...] = True  # it is a new array
    assert np.array_equal(mask, before)
    half = np.ma.masked_array(values, mask=data.draw(hnp.arrays(bool, shape)))
    assert np.array_equal(adapt(half, mask=mask).ignore, wanted | np.ma.getmaskarray(half))


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(st.sampled_from(["i2", "u1", ">i4"]), SHAPES, elements=st.integers(0, 3)))
def test_integers_are_a_mask_only_if_they_are_0_and_1(mask):
    adapter = array_adapter(np.ones(mask.shape))
    if mask.max() > 1:
        with pytest.raises(ValueError, match="flags & bits"):
            convert_mask(adapter, mask, mask.shape)
    else:
        assert np.array_equal(convert_mask(adapter, mask, mask.shape), mask == 1)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(st.sampled_from(["f4", ">f8", "f2"]), SHAPES, elements=st.floats(-100, 100, width=16)))
def test_floats_keep_their_type_and_value(values):
    found = adapt(values * u.electron)
    assert found.data.dtype == values.dtype.newbyteorder("=")
    assert np.array_equal(found.data, values)
    assert np.array_equal(found.adapter.to_caller(found.data), values)


def test_columns():
    table = Table({"x": MaskedColumn([1.0, 2.0], mask=[False, True], unit="pix"), "y": [1, 2]})
    np.testing.assert_array_equal(convert_column(table["x"], "x", "pix"), [1, np.nan])
    np.testing.assert_array_equal(convert_column(table["y"], "y", "pix"), [1, 2])
    np.testing.assert_array_equal(convert_column(torch.arange(2), "x", "pix"), [0, 1])
    np.testing.assert_array_equal(convert_column(pd.Series([3.0]), "x"), [3])
    assert convert_column(QTable({"t": [5.0] * u.kK})["t"], "t", "K")[0] == 5000
    with pytest.raises(TypeError, match="x: found the unit deg; wanted pix"):
        convert_column([1.0] * u.deg, "x", "pix")
