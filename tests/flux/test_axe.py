"""Flat-field cubes in files, read by two independent readers.

`hstaxe_value` follows hstaxe: the primary HDU is plane 0, t is clamped to [0, 1], and an empty primary is an error.
`slitlessutils_value` follows slitlessutils: no clamp, row and column 0 zeroed, and a file without WMIN is a flat of 1.
"""

import resource

import numpy as np
import pytest
from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.flux import Flat, fit_flat
from csstdask.flux.axe import write_axe
from csstdask.flux.flat_solution import FlatFlag
from csstdask.numerics.polynomials import legendre_products

SHAPE = (60, 90)
GRID = np.linspace(4000.0, 6500.0, 80)


def hstaxe_value(path, x, y, wavelength):
    with fits.open(path) as file:
        if file[0].data is None:
            raise OSError("no image in the primary HDU")
        t = (wavelength - file[0].header["WMIN"]) / (file[0].header["WMAX"] - file[0].header["WMIN"])
        t = min(max(t, 0.0), 1.0)
        return sum(float(hdu.data[y, x]) * t**i for i, hdu in enumerate(file))


def slitlessutils_value(path, x, y, wavelength):
    with fits.open(path) as file:
        if "WMIN" not in file[0].header:
            return 1.0
        t = (wavelength - file[0].header["WMIN"]) / (file[0].header["WMAX"] - file[0].header["WMIN"])
        planes = [hdu.data.copy() for hdu in file if hdu.data is not None]
        for plane in planes:
            plane[0], plane[:, 0] = 0, 0
        return sum(float(plane[y, x]) * t**i for i, plane in enumerate(planes))


@pytest.fixture(scope="module")
def flat():
    """Quadratic in x, y and t, so that the file can be exact."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, SHAPE[1], 100), rng.uniform(0, SHAPE[0], 100)
    t = (GRID - GRID[0]) / (GRID[-1] - GRID[0])
    terms = legendre_products(x, y, 2, SHAPE)
    series = np.array([[1, 0.03, -0.02, 0.01, 0.02, 0.004], [0, 0.01, 0.02, 0, 0.01, 0], [0, 0, -0.01, 0.02, 0, 0.01]])
    ratio = terms @ (np.vander(t, 3, increasing=True) @ series).T
    return fit_flat(x, y, GRID, ratio, np.full(ratio.shape, 1e8), shape=SHAPE)


@pytest.fixture
def file(flat, tmp_path):
    path = tmp_path / "cube.fits"
    assert flat.to_axe(path, degree=2) < 1e-7
    return path


@pytest.mark.parametrize("reader", [hstaxe_value, slitlessutils_value])
def test_both_readers_return_the_flat(flat, file, reader):
    for x, y, wavelength in ((1, 1, 4000.0), (89, 59, 6500.0), (30, 5, 5123.0), (5, 30, 4567.8)):
        assert reader(file, x, y, wavelength) == pytest.approx(flat.evaluate(x, y, wavelength), abs=3e-6)


def test_planes_are_rows_by_columns(flat, file):
    """Fails if x and y are exchanged."""
    with fits.open(file, checksum=True) as opened:
        opened.verify("exception")
        assert [hdu.data.shape for hdu in opened] == [SHAPE] * 3
        assert opened[0].data.dtype == np.dtype(">f4")
        assert opened[0].data[2, 80] == pytest.approx(float(flat.evaluate(80, 2, GRID[0])), abs=3e-6)
        assert opened[0].header["WMIN"] == 4000
        assert [hdu.name for hdu in opened[1:]] == ["A1", "A2"]


def test_readers_differ_out_of_range_as_documented(flat, file, tmp_path):
    beyond = 7000.0
    assert hstaxe_value(file, 5, 6, beyond) == pytest.approx(float(flat.evaluate(5, 6, GRID[-1])), abs=3e-6)
    assert abs(slitlessutils_value(file, 5, 6, beyond) - hstaxe_value(file, 5, 6, beyond)) > 1e-3
    assert slitlessutils_value(file, 0, 6, 5000.0) == 0
    assert hstaxe_value(file, 0, 6, 5000.0) > 0.9
    # csstdask: 1 with a flag
    assert flat.evaluate(5, 6, beyond) == 1
    assert flat.flag(5, 6, beyond) == FlatFlag.OUTSIDE_WAVELENGTH
    grey = tmp_path / "grey.fits"
    fits.PrimaryHDU(np.full(SHAPE, 1.1, np.float32)).writeto(grey)
    assert slitlessutils_value(grey, 5, 6, 5000.0) == 1
    with pytest.raises(InputError, match="no WMIN and WMAX"):  # never silently unity
        Flat.from_axe(grey)


def test_empty_primary_hdu_is_refused(file, tmp_path):
    path = tmp_path / "empty.fits"
    with fits.open(file) as opened:
        moved = [fits.ImageHDU(hdu.data) for hdu in opened]
        header = fits.Header([("WMIN", 4000.0), ("WMAX", 6500.0)])
        fits.HDUList([fits.PrimaryHDU(header=header), *moved]).writeto(path)
    assert slitlessutils_value(path, 5, 6, 5000.0) > 0.9
    with pytest.raises(OSError, match="primary"):
        hstaxe_value(path, 5, 6, 5000.0)
    with pytest.raises(InputError, match=r"empty\.fits\[0\].*empty primary"):
        Flat.from_axe(path)


def test_a_round_trip_keeps_the_flat(flat, file):
    again = Flat.from_axe(file, shape=SHAPE)
    x, y = np.arange(0, 90.0, 7), np.arange(0, 60.0, 7)[:, None]
    for wavelength in (4000.0, 4321.0, 6500.0):
        np.testing.assert_allclose(again.evaluate(x, y, wavelength), flat.evaluate(x, y, wavelength), atol=5e-5)
    assert again.flag(1, 1, 5000.0) == FlatFlag.NO_VARIANCE
    assert again.variance(1, 1, 5000.0) == 0


def test_the_error_of_the_polynomial_is_reported(flat, tmp_path):
    path = tmp_path / "coarse.fits"
    error = flat.to_axe(path, degree=1)
    assert fits.getheader(path)["FLATERR"] == pytest.approx(error)
    x, y = np.meshgrid(np.arange(90), np.arange(60))
    with fits.open(path) as opened:
        a0, a1 = opened[0].data, opened[1].data
    t = (GRID - GRID[0]) / (GRID[-1] - GRID[0])
    found = max(np.abs(a0 + s * a1 - flat.evaluate(x, y, w)).max() for s, w in zip(t[::13], GRID[::13], strict=True))
    assert 0.5 * error < found < 1.01 * error + 1e-6


def test_a_part_of_a_detector_has_its_offset(flat, tmp_path):
    path = tmp_path / "part.fits"
    write_axe(flat, path, degree=2, window=(20, 10, 50, 40))
    whole = flat.evaluate(20 + 7, 10 + 3, 5000.0)
    assert hstaxe_value(path, 7, 3, 5000.0) == pytest.approx(whole, abs=3e-6)
    again = Flat.from_axe(path, shape=SHAPE)
    assert again.evaluate(27, 13, 5000.0) / again.evaluate(60, 40, 5000.0) == pytest.approx(
        float(whole / flat.evaluate(60, 40, 5000.0)), abs=1e-4
    )
    with pytest.raises(InputError, match="part of a detector"):
        Flat.from_axe(path)
    with pytest.raises(InputError, match="window"):
        write_axe(flat, path, window=(50, 10, 50, 40))


def test_unsuitable_cubes_raise(file, tmp_path):
    with pytest.raises(InputError, match="detector of shape"):
        Flat.from_axe(file, shape=(100, 100))
    with pytest.raises(InputError, match="polynomials of degree 1"):
        Flat.from_axe(file, degree=1)
    torn = tmp_path / "torn.fits"
    torn.write_bytes(b"not a FITS file")
    with pytest.raises(InputError, match="no readable FITS file"):
        Flat.from_axe(torn)
    mixed = tmp_path / "mixed.fits"
    header = fits.Header([("WMIN", 4000.0), ("WMAX", 6500.0)])
    fits.HDUList([fits.PrimaryHDU(np.ones(SHAPE), header), fits.ImageHDU(np.ones((5, 5)))]).writeto(mixed)
    with pytest.raises(InputError, match=r"mixed\.fits\[1\].*shape \(5, 5\)"):
        Flat.from_axe(mixed)


def test_large_planes_are_written_in_blocks_of_rows(tmp_path):
    rng = np.random.default_rng(1)
    shape = (3000, 3000)
    x, y = rng.uniform(0, 3000, (2, 30))
    flat = fit_flat(x, y, GRID[:3], np.ones((30, 3)), np.ones((30, 3)), shape=shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flat.to_axe(tmp_path / "large.fits", degree=1)
    assert (tmp_path / "large.fits").stat().st_size > 2 * 4 * 3000**2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB; a plane in float64 has 70,000
