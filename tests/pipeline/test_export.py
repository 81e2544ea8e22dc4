"""Round trips: FITS -> campaign -> FITS, and a run's repairs, weights, flags and provenance in its export."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from make_fits import level_1, planes, primary, science_header

import csstdask
from csstdask.instrument import load_instrument
from csstdask.nn.models import find_card
from csstdask.pipeline.export import export
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.run import run

CSST = load_instrument("csst")


def test_a_campaign_comes_back_bit_for_bit(tmp_path):
    sci, wht, flag = planes((96, 64))
    sci[3, 3] = np.nan
    flag |= np.random.default_rng(2).integers(0, 2**24, flag.shape).astype(np.int32)
    path = level_1(tmp_path, 8, arrays=(sci, wht, flag))
    ingest([path], tmp_path / "c.zarr")
    summary = export(tmp_path / "c.zarr", tmp_path / "out")
    assert summary.written == 1
    with fits.open(path) as before, fits.open(tmp_path / "out" / "10100000001_8.fits") as after:
        for index in (1, 2, 3):
            assert before[index].data.tobytes() == after[index].data.tobytes()
            assert after[index].data.dtype == before[index].data.dtype
        assert after[1].header["MYKEY"] == "kept"
        assert after[1].header.comments["MYKEY"] == "a keyword of their own"
        assert after[0].header["DETECTOR"] == "MSC_08"
        assert WCS(after[1].header).wcs.compare(WCS(before[1].header).wcs)
        after.verify("exception")


@pytest.mark.parametrize("dtype", [">i2", ">i4", "u2", ">f8"])
def test_integers_and_doubles_come_back_as_float32(tmp_path, dtype):
    values = np.random.default_rng(3).integers(0, 30000, (40, 30)).astype(dtype)
    path = tmp_path / "CSST_MSC_MS_CLD_20280301000000_20280301000230_10100000001_08_L0_V01.fits"
    fits.HDUList([fits.PrimaryHDU(header=primary()), fits.ImageHDU(values)]).writeto(path)
    ingest([path], tmp_path / "c.zarr")
    export(tmp_path / "c.zarr", tmp_path / "out")
    with fits.open(tmp_path / "out" / "10100000001_8.fits") as hdus:
        assert hdus[1].data.dtype == np.dtype(">f4")
        assert np.array_equal(hdus[1].data, values.astype(np.float32))
        assert "BZERO" not in hdus[1].header


def test_error_planes_come_back_to_a_millionth(tmp_path):
    sci, _, flag = planes()
    error = np.random.default_rng(1).lognormal(0, 3, sci.shape).astype(np.float32)
    path = tmp_path / "CSST_MSC_MS_SCI_20280301000000_20280301000230_10100000001_01_L1_V01.fits"
    hdus = [fits.PrimaryHDU(header=primary(1)), fits.ImageHDU(sci, header=science_header(), name="SCI")]
    fits.HDUList([*hdus, fits.ImageHDU(error, name="ERR"), fits.ImageHDU(flag, name="DQ")]).writeto(path)
    ingest([path], tmp_path / "c.zarr")
    export(tmp_path / "c.zarr", tmp_path / "out")
    wht = fits.getdata(tmp_path / "out" / "10100000001_1.fits", "WHT")
    np.testing.assert_allclose(1 / np.sqrt(wht.astype(float)), error, rtol=1e-6)


def test_a_runs_export(small_recipe, tmp_path):
    """Incoming cosmic-ray bits and the weights they zeroed give way to ours; all else stays."""
    mock(small_recipe.model_copy(update={"exposures": 1}), tmp_path / "fits", as_fits=True)
    files = sorted((tmp_path / "fits").glob("*_L1_V01.fits"))
    rng = np.random.default_rng(4)
    with fits.open(files[0], mode="update") as hdus:
        theirs = rng.random(hdus["SCI"].data.shape) < 0.02
        known = hdus["WHT"].data.copy()
        hdus["FLG"].data[theirs] |= 16
        hdus["WHT"].data[theirs] = 0
    ingest(files, tmp_path / "c.zarr")
    run(tmp_path / "c.zarr", tmp_path / "r.zarr")
    export(tmp_path / "r.zarr", tmp_path / "out")
    dataset = csstdask.open_run(tmp_path / "r.zarr").isel(exposure=0, detector=6)
    assert int(dataset["detector"]) == 7
    hit = dataset["cr_mask"].values
    assert np.array_equal(dataset["cr_mask_input"].values, theirs)
    with fits.open(files[0]) as before, fits.open(tmp_path / "out" / "10100000001_7.fits") as after:
        assert np.array_equal(after["SCI"].data[~hit], before["SCI"].data[~hit])
        assert np.array_equal(after["SCI"].data[hit], dataset["repair"].values[hit])
        flag, old = after["FLG"].data, before["FLG"].data
        assert np.array_equal((flag & 16) != 0, hit)
        assert np.array_equal((flag & 2**21) != 0, hit & np.isfinite(dataset["repair_variance"].values))
        assert np.array_equal(flag & ~(16 | 2**21), old & ~16)
        wht = after["WHT"].data
        untouched = ~hit & ~theirs
        assert np.array_equal(wht[untouched], before["WHT"].data[untouched])
        back = theirs & ~hit & (known > 0) & ((old & 11) == 0)
        # Re-estimated from counts and noise: what the weight was before it was zeroed. The noise of the sky holds
        # that of bias, dark and flat, which Level 1's weights do not; and these follow each pixel's own counts.
        assert np.median(np.abs(wht[back] / known[back] - 1)) < 0.2
        assert (wht[back] > 0).all()
        # What is bad, hot or saturated besides stays unusable.
        assert (wht[theirs & ((old & 11) != 0)] == 0).all()
        header = after[0].header
        assert header["CSDCRMOD"] == "unet"
        assert len(header["CSDCRSHA"]) == len(header["CSDFPRNT"]) == 64
        assert header["CSDCRTHR"] == find_card("cosmicray", "default").threshold
        assert header["CSDVERS"] == csstdask.__version__


def test_incoming_bits_never_change_what_is_found(small_recipe, tmp_path):
    """The same pixels with and without another pipeline's cosmic-ray flags: the same mask, bit for bit."""
    masks = []
    for name, share in (("without", 0.0), ("with", 0.05)):
        folder = tmp_path / name
        mock(small_recipe.model_copy(update={"exposures": 1, "detectors": (8,)}), folder, as_fits=True)
        (path,) = folder.glob("*_L1_V01.fits")
        with fits.open(path, mode="update") as hdus:
            hdus["FLG"].data[np.random.default_rng(1).random(hdus["FLG"].data.shape) < share] |= 16 | 2**20
        ingest([path], folder / "c.zarr")
        run(folder / "c.zarr", folder / "r.zarr", steps=["detect"])
        masks.append(csstdask.open_run(folder / "r.zarr")["cr_mask"].values)
    assert np.array_equal(*masks)


def test_units_that_are_not_done_are_left_out_and_counted(small_campaign, tmp_path):
    from csstdask.engine.units import parse_selection

    run(small_campaign, tmp_path / "r.zarr", selection=parse_selection("detector=7"))
    # Another step over all units takes nothing away from those that are repaired.
    run(small_campaign, tmp_path / "r.zarr", steps=["background"])
    summary = export(tmp_path / "r.zarr", tmp_path / "out")
    assert (summary.written, summary.pending) == (2, 2)
