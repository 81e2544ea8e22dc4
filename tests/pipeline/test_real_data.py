"""Real frames through ingest, run, export and report: every camera's own way of writing FITS."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

import csstdask
from csstdask.pipeline.export import export
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.run import run
from csstdask.report import write_report


def through(files, folder):
    """Take files all the way; return the campaign, the run and the two folders of exported FITS."""
    summary = ingest(files, folder / "c.zarr")
    assert summary.failures == []
    done = run(folder / "c.zarr", folder / "r.zarr")
    assert (done.failed, done.pending) == (0, 0)
    assert export(folder / "c.zarr", folder / "back").failures == []
    assert export(folder / "r.zarr", folder / "out").written == done.total
    page = write_report(folder / "r.zarr", folder / "r.html").read_text()
    assert "done" in page
    return csstdask.open_campaign(folder / "c.zarr"), csstdask.open_run(folder / "r.zarr")


def test_wfc3_uvis(real_images, tmp_path):
    """SCI is bit-identical, ERR to a millionth, DQ equal; AstroDrizzle's bit 4096 is theirs, 8192 ours."""
    path = real_images / "hst_wfc3_uvis" / "Pluto1.fits"
    campaign, dataset = through([path], tmp_path)
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
    campaign, dataset = through(sorted((folder / "raw").glob("*_raw.fits")), tmp_path)
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
    campaign, dataset = through([path], tmp_path)
    assert campaign["sci"].attrs["units"] == "adu"
    with fits.open(path) as before, fits.open(tmp_path / "back" / "u3060301m_3.fits") as after:
        assert before[0].data.tobytes() == after["SCI"].data.tobytes()
    hit = dataset["cr_mask"].sel(exposure="u3060301m", detector=3).values
    other = fits.getdata(real_images / "hst_wfpc2" / "hst_im_ext3_iraf_mask.fits") > 0
    # Not truth, another L.A.Cosmic: the same kind of pixels at the same kind of density.
    assert 0.5 < hit.sum() / other.sum() < 1.5
    assert (hit & other).sum() / min(hit.sum(), other.sum()) > 0.7


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
