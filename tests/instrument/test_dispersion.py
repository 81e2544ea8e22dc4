"""Traces, wavelengths and sensitivities of gratings: inverse relations, units by hand, and a TOML that is checked."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.instrument.dispersion import (
    dispersion_of,
    nominal_sensitivity,
    nominal_throughput,
    slitless_order,
)
from csstdask.instrument.optics import SlitlessOrder

CSST = load_instrument("csst")
GRATINGS = {1: "GI", 2: "GV", 3: "GU"}


@pytest.mark.parametrize("detector", GRATINGS)
def test_wavelength_is_the_inverse_of_position(detector, rng):
    relation = dispersion_of(CSST, detector, CSST.shape)
    x, y = rng.uniform(0, 9000, (2, 200))
    wavelength = rng.uniform(*relation.limits, 200)
    column, _ = relation.position(x, y, wavelength)
    assert relation.wavelength(x, y, column) == pytest.approx(wavelength, abs=1e-8)


@pytest.mark.parametrize("detector", GRATINGS)
def test_local_dispersion_is_the_derivative_of_wavelength(detector):
    relation = dispersion_of(CSST, detector, CSST.shape)
    columns = 3000.0 + np.arange(-80, 81, 20)
    step = 1e-3
    slope = relation.wavelength(3000, 7000, columns + step) - relation.wavelength(3000, 7000, columns - step)
    wavelength = relation.wavelength(3000, 7000, columns)
    assert relation.angstrom_per_pixel(3000, 7000, wavelength) == pytest.approx(slope / (2 * step), rel=1e-7)


def test_scalars_and_arrays_broadcast():
    relation = dispersion_of(CSST, 2, CSST.shape)
    one = relation.position(100.0, 200.0, 5000.0)
    many = relation.position(np.full((3, 1), 100.0), 200.0, np.full(4, 5000.0))
    assert one[0].shape == ()
    assert many[0].shape == many[1].shape == (3, 4)
    assert many[0] == pytest.approx(np.full((3, 4), one[0]), rel=1e-12)
    assert relation.wavelength([100.0, 100.0], 200.0, one[0]).shape == (2,)


def test_a_frame_is_the_centre_of_its_detector():
    """A star on a small frame has the trace of its place on the whole detector."""
    ny, nx = CSST.shape
    whole, part = dispersion_of(CSST, 3, (ny, nx)), dispersion_of(CSST, 3, (512, 1024))
    x0, y0 = (nx - 1024) / 2, (ny - 512) / 2
    assert part.origin == (x0, y0)
    x, y = part.position(10.0, 20.0, 3333.0)
    on_whole = whole.position(10.0 + x0, 20.0 + y0, 3333.0)
    assert (x + x0, y + y0) == pytest.approx(on_whole, abs=1e-9)


def test_the_zeroth_order_is_an_image_without_dispersion():
    zeroth = dispersion_of(CSST, 1, CSST.shape, order=0)
    x, y = zeroth.position(4000.0, 4000.0, [6200.0, 9000.0])
    assert x[0] == x[1] < 4000
    assert y[0] == y[1]
    assert np.isnan(zeroth.wavelength(4000.0, 4000.0, [3660.0, 3700.0])).all()
    assert np.isinf(zeroth.angstrom_per_pixel(4000.0, 4000.0, 7000.0))


def test_sensitivity_by_hand():
    """At 5100 A GV has T = 0.4: 2 m across, h c = 1.9864e-8 erg A, so S = pi 1e4 cm2 0.4 5100 / 1.9864e-8."""
    expected = np.pi * 100**2 * 0.4 * 5100 / (6.62607015e-27 * 2.99792458e18)
    assert float(nominal_sensitivity(CSST, 2, 5100.0)) == pytest.approx(expected, rel=1e-8)
    # The photon rate of a source of 1e-16 erg/s/cm2/A over 10 A, counted in photons of 3.895e-12 erg.
    photons = 1e-16 * 10 * np.pi * 100**2 * 0.4 / (1.98644586e-8 / 5100)
    assert float(nominal_sensitivity(CSST, 2, 5100.0)) * 1e-16 * 10 == pytest.approx(photons, rel=1e-8)


@pytest.mark.parametrize(("detector", "order"), [(1, 1), (2, 1), (3, 1), (2, 0)])
def test_throughput_meets_its_points_and_is_zero_outside(detector, order):
    found = slitless_order(CSST, detector, order)
    points = np.array(found.throughput)
    assert nominal_throughput(found, points[:, 0]) == pytest.approx(points[:, 1], abs=1e-12)
    assert (nominal_throughput(found, [points[0, 0] - 1, points[-1, 0] + 1, 1.0]) == 0).all()
    between = nominal_throughput(found, np.linspace(points[0, 0], points[-1, 0], 2000))
    assert between.min() >= 0
    assert between.max() <= points[:, 1].max() + 1e-12


def test_errors_name_the_band_and_the_order():
    with pytest.raises(InputError, match=r"no dispersion for band i.*GI, GU, GV"):
        dispersion_of(CSST, 7, CSST.shape)
    with pytest.raises(InputError, match=r"band GV.*no order 2"):
        dispersion_of(CSST, 2, CSST.shape, order=2)
    blind = CSST.model_copy(update={"telescope": None})
    with pytest.raises(InputError, match=r"no \[telescope\]"):
        nominal_sensitivity(blind, 2, 5000.0)


SIX = [1.0, 0, 0, 0, 0, 0]
ORDER = {
    "order": 1,
    "wavelength": [4000, 6500],
    "dx": [SIX, SIX],
    "dy": [SIX],
    "throughput": [[4000, 0.1], [6500, 0.2]],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wavelength": [6500, 4000]}, "wavelength: found"),
        ({"wavelength": [0, 4000]}, "wavelength: found"),
        ({"throughput": [[4000, 0.1], [4000, 0.2]]}, "do not ascend"),
        ({"throughput": [[4000, 0.1]]}, "at least 2"),
        ({"dx": [SIX]}, "no dispersion"),
        ({"dx": [SIX, [0.0, 1, 0, 0, 0, 0]]}, "no dispersion"),
        ({"dx": []}, "at least 1"),
        ({"dy": [[1.0, 0, 0]]}, "dy"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_order_in_a_toml_is_named(change, message):
    SlitlessOrder.model_validate(ORDER)
    with pytest.raises(ValidationError, match=message):
        SlitlessOrder.model_validate(ORDER | change)


def test_the_zeroth_order_needs_no_dispersion():
    assert SlitlessOrder.model_validate(ORDER | {"order": 0, "dx": [SIX]}).order == 0
