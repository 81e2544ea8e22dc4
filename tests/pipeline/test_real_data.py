"""Real frames through ingest, run, export and report: every camera's own way of writing FITS."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import binary_dilation

import csstdask
from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.export import export
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.run import run
from csstdask.report import write_report

ROOT = Path(__file__).resolve().parents[2]
#: The small network and no PSF, where a test is about neither.
FAST = RunConfig.model_validate({"detect": {"model": "unet-fast"}, "psf": {"model": "none"}})


def through(files, folder, instrument=None, config=FAST):
    """Take files all the way; return the campaign and the run."""
    summary = ingest(files, folder / "c.zarr", instrument=instrument)
    assert summary.failures == []
    done = run(folder / "c.zarr", folder / "r.zarr", config=config)
    assert (done.failed, done.pending) == (0, 0)
    assert export(folder / "c.zarr", folder / "back").failures == []
    assert export(folder / "r.zarr", folder / "out").written == done.total
    page = write_report(folder / "r.zarr", folder / "r.html").read_text()
    assert "done" in page
    return csstdask.open_campaign(folder / "c.zarr"), csstdask.open_run(folder / "r.zarr")


def test_wfc3_uvis(real_images, tmp_path):
    """SCI is bit-identical, ERR to a millionth, DQ equal; AstroDrizzle's bit 4096 is theirs, 8192 ours."""
    path = real_images / "hst_wfc3_uvis" / "Pluto1.fits"
    campaign, dataset = through([path], tmp_path, config=RunConfig())
    assert str(campaign["exposure"].values[0]) == "ibo821kvq"
    with fits.open(path) as before, fits.open(tmp_path / "back" / "ibo821kvq_2.fits") as after:
        assert before["SCI"].data.tobytes() == after["SCI"].data.tobytes()
        error = before["ERR"].data
        np.testing.assert_allclose(1 / np.sqrt(after["WHT"].data), error, rtol=1e-6)
        assert np.array_equal(after["FLG"].data, before["DQ"].data)
        assert after[0].header["TARGNAME"] == before[0].header["TARGNAME"]
    one = dataset.sel(exposure="ibo821kvq", detector=2)
    assert int(one["cr_mask_input"].sum()) == 540
    hit = one["cr_mask"].values
    assert 0.001 < hit.mean() < 0.1
    flag = fits.getdata(tmp_path / "out" / "ibo821kvq_2.fits", "FLG")
    assert np.array_equal((flag & 8192) != 0, hit)
    assert not (flag & 4096).any()


def test_stis_raw(real_images, tmp_path):
    """Three raw pairs: six exposures of trimmed counts; cosmic rays found are mostly the truth's."""
    folder = real_images / "hst_stis"
    campaign, dataset = through(sorted((folder / "raw").glob("*_raw.fits")), tmp_path, config=RunConfig())
    assert campaign["exposure"].values.tolist() == [f"o565020{n}_{half}" for n in (10, 20, 30) for half in (1, 2)]
    assert (campaign.sizes["y"], campaign.sizes["x"]) == (1012, 506)
    with fits.open(folder / "raw" / "o56502020_raw.fits") as hdus:
        raw = hdus["SCI", 2].data[10:1022, 13:519]
    assert np.array_equal(campaign["sci"].sel(exposure="o56502020_2", detector=1).values, raw)
    assert np.array_equal(fits.getdata(tmp_path / "back" / "o56502020_2_1.fits", "SCI"), raw.astype(np.float32))
    truth = np.load(folder / "truth" / "o56502020_1.npz")
    hit = dataset["cr_mask"].sel(exposure="o56502020_1", detector=1).values
    use = truth["valid"]
    found = (hit & truth["crmask"] & use).sum()
    # Without a dark to subtract, hot pixels count against precision: its README measures 0.40 with 0.84.
    assert found / (truth["crmask"] & use).sum() > 0.6
    assert found / (hit & use).sum() > 0.3


def test_wfpc2(real_images, tmp_path):
    path = real_images / "hst_wfpc2" / "hst_im_ext3.fits"
    campaign, dataset = through([path], tmp_path, config=RunConfig())
    assert campaign["sci"].attrs["units"] == "adu"
    with fits.open(path) as before, fits.open(tmp_path / "back" / "u3060301m_3.fits") as after:
        assert before[0].data.tobytes() == after["SCI"].data.tobytes()
    hit = dataset["cr_mask"].sel(exposure="u3060301m", detector=3).values
    other = fits.getdata(real_images / "hst_wfpc2" / "hst_im_ext3_iraf_mask.fits") > 0
    # Not truth, another L.A.Cosmic, which marks what stands out; the network marks a pixel more round it, where charge
    # has strayed: what the one marks the other does, and hardly anything that does not touch it.
    assert hit[other].mean() > 0.85
    assert binary_dilation(other, np.ones((3, 3)))[hit].mean() > 0.95


def test_wircam(real_images, tmp_path):
    """Four epochs of one infrared chip: value 0 is a bad pixel, and ten seconds hold hardly a cosmic ray."""
    files = sorted((real_images / "cfht_wircam").glob("*.fits.fz"))
    campaign, dataset = through(files, tmp_path)
    assert campaign["exposure"].values.tolist() == ["1319412", "1592961", "1838749", "2094807"]
    raw = fits.getdata(files[0], 1)
    one = campaign.sel(exposure="1319412", detector=60)
    assert np.array_equal(one["sci"].values, raw.astype(np.float32))
    assert np.array_equal(one["flag"].values & 1 == 1, raw == 0)
    assert (dataset["cr_fraction"].sel(detector=60) < 0.01).all()
    assert (dataset["n_sources"].sel(detector=60) > 200).all()


def test_nicmos(real_images, tmp_path):
    """SCI, ERR, DQ of five planes; rates; flags of the ramp fit are distinguished from bad pixels."""
    path = real_images / "nicmos" / "n8q624e8q_cal.fits"
    campaign, _ = through([path], tmp_path)
    assert campaign["sci"].attrs["units"] == "adu s-1"
    one = campaign.sel(exposure="n8q624e8q", detector=2)
    with fits.open(path) as hdus:
        assert np.array_equal(one["sci"].values, hdus["SCI"].data)
        assert np.array_equal(one["flag"].values, hdus["DQ"].data)
        good = hdus["ERR"].data > 0
        np.testing.assert_allclose(1 / np.sqrt(one["wht"].values[good]), hdus["ERR"].data[good], rtol=1e-6)
        assert (one["wht"].values[~good] == 0).all()


def test_hsc_masked_image(real_images, tmp_path):
    """Image, mask and variance; no exposure time and no filter, and nothing is divided by them."""
    path = real_images / "hsc_maskedimage" / "HSC-0908120-056-small.fits"
    campaign, dataset = through([path], tmp_path)
    one = campaign.sel(exposure="0908120", detector=56)
    flags = load_instrument("hsc").flags
    assert int((one["flag"] & flags.mask("detected") != 0).sum()) == 5390
    assert int((one["flag"] & flags.mask("crosstalk") != 0).sum()) == 14
    assert float(one["exptime"]) == 0
    np.testing.assert_allclose(1 / one["wht"].values, fits.getdata(path, 3), rtol=1e-6)
    assert dataset["n_sources"].sel(exposure="0908120", detector=56) > 5


def test_files_without_a_frame_of_a_known_camera_are_named(real_images, tmp_path):
    """Tables, point spread functions, and frames without a camera name: one line that names the file."""
    for name, reason in (
        ("banzai/cpt1m012-fa06-20200113-0102-matched-cat.fits", "no instrument that is known"),
        ("lsst_itl_darks/cosmic_rays_itl_2017.fits.gz", "no instrument that is known"),
        ("stdpsf/PSFSTD_ACSWFC_F606W.fits", "cannot be read"),
        ("nicmos/nic2_f160w_4xsub00.fits", "no instrument that is known"),
        ("m51_inpaint/m51_org.fits", "no instrument that is known"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            ingest([real_images / name], tmp_path / "c.zarr")
        assert name in str(caught.value)


def test_a_camera_of_ones_own(real_images, tmp_path):
    """The TOML of the documentation takes an old Kitt Peak frame of M51 all the way."""
    text = (ROOT / "docs" / "how-to" / "add-a-camera.md").read_text()
    (tmp_path / "kpno.toml").write_text(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    path = real_images / "m51_inpaint" / "m51_with_cosmicrays.fits"
    campaign, dataset = through([path], tmp_path, instrument=str(tmp_path / "kpno.toml"))
    assert np.array_equal(campaign["sci"].values[0, 0], fits.getdata(path))
    truth = fits.getdata(real_images / "m51_inpaint" / "m51_mask.fits") > 0
    assert (dataset["cr_mask"].values[0, 0] & truth).sum() > 0.3 * truth.sum()


@pytest.mark.parametrize(
    ("name", "exposure", "detector", "codes"),
    [
        ("c4d_141029_043225_{}_g_ls9.N26", "ct4m20141029t043005", 57, {5: 16}),
        ("c4d_170316_062107_{}_z_ls9.N2", "ct4m20170316t061830", 33, {5: 16}),
        ("c4d_181104_072440_{}_g_ls9.S4", "ct4m20181104t072440", 28, {1: 1, 3: 4, 4: 8}),
        ("k4m_160319_075112_{}_zd_ls9.CCD3", "kp4m.20160319T075112", 3, {}),
    ],
)
def test_triplets(real_images, tmp_path, name, exposure, detector, codes):
    """Image, weight and code files make one unit; codes become bits; weights zeroed under code 5 return."""
    folder = real_images / "legacypipe"
    files = [folder / f"{name.format(kind)}.fits" for kind in ("ooi", "oow", "ood")]
    campaign, dataset = through(files, tmp_path)
    one = campaign.sel(exposure=exposure, detector=detector)
    image, weight, quality = (fits.getdata(path, 1) for path in files)
    assert np.array_equal(one["sci"].values, image.astype(np.float32))
    assert np.array_equal(one["wht"].values, np.where(weight > 0, weight, 0).astype(np.float32))
    expected = np.zeros(quality.shape, np.int32)
    for code, bit in codes.items():
        expected[quality == code] = bit
    assert set(np.unique(quality)) == {0, *codes}
    assert np.array_equal(one["flag"].values, expected)
    theirs = quality == 5
    ours = dataset["cr_mask"].sel(exposure=exposure, detector=detector).values
    out = fits.getdata(tmp_path / "out" / f"{exposure}_{detector}.fits", "WHT")
    assert (out[theirs & ~ours] > 0).all()
