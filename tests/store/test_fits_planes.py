"""Pixels of FITS planes: flags of all integer types, and weights beyond the range of float32."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from plane_files import CHIPS, SHAPE, csst_file

from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.instrument.registry import parse_instrument
from csstdask.store.fits_planes import read_flag, read_sci, read_weight
from csstdask.store.fits_scan import scan_file

CSST = load_instrument("csst")


@pytest.mark.parametrize("dtype", [np.int16, ">i2", np.int8])
def test_the_highest_bit_of_short_flags_is_a_flag(tmp_path, dtype):
    bits = np.dtype(dtype).itemsize * 8
    flag = np.zeros(SHAPE, dtype)
    flag[0, 0], flag[0, 1] = -(2 ** (bits - 1)), -(2 ** (bits - 1)) + 4
    path = csst_file(tmp_path, ("SCI", "SCI"), ("WHT", "WHT"), ("FLG", "FLG"))
    with fits.open(path, mode="update") as hdus:
        hdus["FLG"].data = flag
    (unit,) = scan_file(path, CSST).units
    assert read_flag(unit, CSST)[0, :3].tolist() == [2 ** (bits - 1), 2 ** (bits - 1) + 4, 0]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32])
def test_flags_with_a_sign_in_other_types_are_refused(tmp_path, dtype):
    path = csst_file(tmp_path, ("SCI", "SCI"), ("WHT", "WHT"), ("FLG", "FLG"))
    with fits.open(path, mode="update") as hdus:
        hdus["FLG"].data = np.full(SHAPE, -4, dtype)
    (unit,) = scan_file(path, CSST).units
    with pytest.raises(InputError, match="flags from -4"):
        read_flag(unit, CSST)


@pytest.mark.parametrize(("name", "value"), [("VAR", 1e-46), ("IVAR", 1e46), ("ERR", 1e-23)])
def test_scaled_weights_beyond_float32(tmp_path, name, value):
    """Fluxes in erg s-1 cm-2 A-1: pixels and weights become numbers that float32 holds, and are right."""
    text = CHIPS + '[[scaled_units]]\nunit = "erg / (s cm2 Angstrom)"\nunits = "electron s-1"\nfactor = 1e20\n'
    camera = parse_instrument(text, "flux.toml")
    header = fits.Header({"EXPTIME": 10.0, "OBSID": "e1", "CCDNUM": 1, "BUNIT": "erg/(s cm2 Angstrom)"})
    hdus = [fits.PrimaryHDU(header=header), fits.ImageHDU(np.full(SHAPE, 3e-20), name="SCI")]
    hdus += [fits.ImageHDU(np.full(SHAPE, value), name=name), fits.ImageHDU(np.zeros(SHAPE, np.int16), name="DQ")]
    fits.HDUList(hdus).writeto(tmp_path / "f.fits")
    (unit,) = scan_file(tmp_path / "f.fits", camera).units
    np.testing.assert_allclose(read_sci(unit), 3, rtol=1e-6)
    np.testing.assert_allclose(read_weight(unit), 1e6, rtol=1e-5)
