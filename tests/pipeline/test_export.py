"""Round trips: FITS -> campaign -> FITS, and a run's repairs, weights, flags and provenance in its export."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.units import Unit
from astropy.wcs import WCS
from make_fits import level_1, planes, primary, science_header

import csstdask
from csstdask.instrument import load_instrument
from csstdask.nn.models import find_card
from csstdask.pipeline.export import export
from csstdask.pipeline.export_zero_points import electron_rate, zero_point_cards
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.run import run
from csstdask.pipeline.source_tables import ZeroPointValue
from csstdask.store.unit_metadata import UnitMetadata

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
        assert after[1].header.comments["MYKEY"] == "a user keyword"
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


@pytest.mark.parametrize("units", ["electron s-1", "electron", "adu s-1", "adu"])
@pytest.mark.parametrize("unit_scale", [1.0, 100.0])
def test_the_zero_point_of_a_header_is_for_sums_of_sci(units, unit_scale):
    """A star of a known rate has the same magnitude from SCI in any units."""
    metadata, rate = UnitMetadata("101", 7, "imaging", "i", 150.0, 0, 1.6, 5.0, ""), 40.0
    electrons = rate * metadata.exptime
    of_campaign = {
        "electron s-1": rate, "electron": electrons, "adu": electrons / metadata.gain, "adu s-1": rate / metadata.gain,
    }[units]  # fmt: skip
    zero_point = ZeroPointValue(25.5, 0.003, "solve", 0.0)
    cards = {name: value for name, value, _ in zero_point_cards(zero_point, electron_rate(units, metadata, unit_scale))}
    magnitude = cards["MAGZERO"] - 2.5 * np.log10(of_campaign / unit_scale)
    assert magnitude == pytest.approx(25.5 - 2.5 * np.log10(rate), abs=2e-6)
    assert cards["MAGZERR"] == 0.003


def test_without_exposure_time_or_gain_there_is_no_zero_point_for_counts():
    zero_point, unknown = ZeroPointValue(25.5, 0.003, "solve", 0.0), float("nan")
    metadata = UnitMetadata("101", 7, "imaging", "i", unknown, 0, unknown, 5.0, "")
    for units in ("electron", "adu", "adu s-1"):
        assert zero_point_cards(zero_point, electron_rate(units, metadata)) == ()
    assert zero_point_cards(zero_point, electron_rate("electron s-1", metadata))[0][1] == 25.5


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
    from csstdask.engine.work_units import parse_selection

    run(small_campaign, tmp_path / "r.zarr", selection=parse_selection("detector=7"))
    # Another step over all units takes nothing away from those that are repaired.
    run(small_campaign, tmp_path / "r.zarr", steps=["background"])
    summary = export(tmp_path / "r.zarr", tmp_path / "out")
    assert (summary.written, summary.pending) == (2, 2)


HST_CARDS = {
    "CPDIS1": "LOOKUP", "CPDIS2": "LOOKUP", "CPERR1": 0.02, "D2IMDIS1": "LOOKUP", "D2IMEXT": "ref.fits",
    "RADESYS": "ICRS",
}  # fmt: skip


def hst_frame(path):
    """Write a UVIS frame whose header names look-up tables, with ERR and DQ planes."""
    header = fits.Header({"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "UVIS", "ROOTNAME": "i1", "EXPTIME": 5.0})
    rng = np.random.default_rng(0)
    science = fits.ImageHDU(rng.normal(100, 3, (64, 48)).astype(np.float32), header=science_header(), name="SCI")
    science.header.update({"BUNIT": "ELECTRONS", "CCDCHIP": 1} | HST_CARDS)
    for name, parts in (("DP1", ("EXTVER", "NAXES")), ("D2IM1", ("EXTVER", "AXIS.1"))):
        for part in parts:
            science.header.append(fits.Card.fromstring(f"{name:<8}= '{part}: 1.0'".ljust(80)))
    error = fits.ImageHDU(rng.uniform(2, 3, (64, 48)).astype(np.float32), name="ERR")
    error.data[0, 0] = 0
    quality = fits.ImageHDU(np.full((64, 48), 4096, np.int16), name="DQ")
    fits.HDUList([fits.PrimaryHDU(header=header), science, error, quality]).writeto(path, checksum=True)
    return path


def test_exported_headers_can_be_read(tmp_path):
    """WCS() and Unit() of every plane; no look-up tables that are not there; ERR and DQ as the input had them."""
    path = hst_frame(tmp_path / "i1_flt.fits")
    ingest([path], tmp_path / "c.zarr")
    export(tmp_path / "c.zarr", tmp_path / "out")
    with fits.open(path) as before, fits.open(tmp_path / "out" / "i1_1.fits", checksum=True) as after:
        assert [hdu.name for hdu in after] == ["PRIMARY", "SCI", "WHT", "FLG", "ERR", "DQ"]
        for hdu in after[1:]:
            position = WCS(hdu.header).pixel_to_world(10, 20)
            assert position.separation(WCS(science_header()).pixel_to_world(10, 20)).arcsec < 1e-6
            Unit(hdu.header["BUNIT"])
            assert hdu.verify_checksum() == 1
        assert Unit(after["WHT"].header["BUNIT"]) == Unit("electron") ** -2
        assert not [key for key in after["SCI"].header if key.startswith(("CPDIS", "D2IM", "DP"))]
        np.testing.assert_allclose(after["ERR"].data[1:], before["ERR"].data[1:], rtol=1e-6)
        assert np.isnan(after["ERR"].data[0, 0])
        assert np.array_equal(after["DQ"].data, before["DQ"].data)
        assert "look-up" in str(after["SCI"].header["HISTORY"])


@pytest.mark.parametrize(
    "cards", [{"CD1_1": 0.0, "CD2_2": 0.0}, {"CTYPE1": "RA---TAB", "CTYPE2": "DEC--TAB"}, {"CRVAL1": "here"}]
)
def test_a_wcs_that_cannot_be_read_is_left_out(tmp_path, cards):
    path = level_1(tmp_path)
    for key, value in cards.items():
        fits.setval(path, key, value=value, ext=1)
    ingest([path], tmp_path / "c.zarr")
    assert export(tmp_path / "c.zarr", tmp_path / "out").failures == []
    with fits.open(tmp_path / "out" / "10100000001_8.fits") as hdus:
        for hdu in hdus[1:]:
            WCS(hdu.header)
        assert "left out the WCS" in str(hdus["SCI"].header["HISTORY"])
        assert hdus["SCI"].header["MYKEY"] == "kept"


@pytest.mark.filterwarnings("ignore:Consolidated metadata")  # xarray's own
def test_a_cut_that_was_saved_keeps_its_place_on_the_sky(tmp_path):
    """Pixels of a cut-out have the coordinates they had; CRPIX moves with it; thinned pixels are refused."""
    ingest([level_1(tmp_path)], tmp_path / "c.zarr")
    campaign = csstdask.open_campaign(tmp_path / "c.zarr")
    cut = campaign.isel(x=slice(10, None), y=slice(4, 60))
    cut.to_zarr(tmp_path / "cut.zarr")
    export(tmp_path / "cut.zarr", tmp_path / "out")
    header = fits.getheader(tmp_path / "out" / "10100000001_8.fits", "SCI")
    assert (header["CRPIX1"], header["CRPIX2"]) == (24.5 - 10, 32.5 - 4)
    expected = WCS(science_header()).pixel_to_world(15, 24)
    assert WCS(header).pixel_to_world(5, 20).separation(expected).arcsec < 1e-6
    campaign.isel(x=slice(None, None, 2)).to_zarr(tmp_path / "thin.zarr")
    (failure,) = export(tmp_path / "thin.zarr", tmp_path / "thin").failures
    assert "pixels 2 apart along x" in failure["reason"]
