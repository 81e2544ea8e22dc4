"""Campaigns of mock zero points: truth in tables and pixels, what a reduction is given, FITS and resuming."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from astropy.io.fits import Header
from astropy.wcs import WCS

import csstdask
from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.mock import load_recipe
from csstdask.mock.conditions import CHANNELS
from csstdask.mock.recipe_checks import check_recipe
from csstdask.mock.unit_digest import unit_digest
from csstdask.mock.zeropoint_units import true_zero_points, unit_conditions
from csstdask.pipeline.mock_survey import mock
from csstdask.store.unit_metadata import read_header

CSST = load_instrument("csst")
BUNDLED = load_recipe("zeropoint", scale=0.25)
#: Stars alone, and enough of them on a sixteenth of the area.
RECIPE = BUNDLED.model_copy(
    update={
        "sky": BUNDLED.sky.model_copy(update={"stars_per_mpix": 1200.0, "galaxies_per_mpix": 0.0}),
        "pointing": BUNDLED.pointing.model_copy(update={"dither": 20.0}),
    }
)
TABLES = ("reference", "telemetry", "truth_zp")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("zeropoint") / "campaign.zarr"
    summary = mock(RECIPE, path)
    assert (summary.rendered, summary.failures) == (12, [])
    return path


@pytest.fixture(scope="module")
def truth(campaign):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.open_zarr(campaign, group="truth")["zp"]


def test_fluxes_of_true_sources_have_the_true_zero_points(campaign, truth):
    sources = pq.read_table(campaign / "tables" / "truth_sources.parquet").to_pandas()
    opened = csstdask.open_campaign(campaign)
    for (exposure, detector), unit in sources.groupby(["exposure", "detector"]):
        row = opened["exposure"].values.tolist().index(exposure)
        column = opened["detector"].values.tolist().index(detector)
        assert (unit["mag"] + 2.5 * np.log10(unit["flux"])).values == pytest.approx(float(truth[row, column]), abs=1e-9)
    nominal = [CSST.bands[band].zero_point for band in "igr"]
    offset = truth.values - nominal
    assert 0.002 < offset.std(axis=0).mean() < 0.1  # exposures differ
    # Detectors share the exposure's offset, to the grey and the small terms.
    grey = offset - offset.mean(axis=1, keepdims=True)
    assert (grey - grey.mean(axis=0)).std() < 0.006
    assert truth.attrs["units"] == "mag"


def test_pixels_have_the_true_zero_points(campaign, truth):
    """Light in apertures gives the true zero point of each unit, but for a constant: the light outside of them."""
    sources = pq.read_table(campaign / "tables" / "truth_sources.parquet").to_pandas()
    pixels = xr.open_zarr(campaign, group="truth")["sci"].values
    error, n_stars = [], []
    for index, exposure in enumerate(RECIPE.exposure_ids):
        for detector in (7, 9):  # detector 8 has few stars
            column = RECIPE.detectors.index(detector)
            unit = sources[(sources["exposure"] == exposure) & (sources["detector"] == detector)]
            measured = isolated_zero_points(unit, pixels[index, column])
            error.append(np.median(measured) - truth.values[index, column])
            n_stars.append(len(measured))
    assert min(n_stars) >= 3
    assert -0.1 < np.mean(error) < 0.0  # up to a tenth of the light is outside of 9 pixels
    # Stars of 21 mag have 20 mmag (photons, sky of 250 pixels), a unit 4 to 10; zero points differ by 17 mmag.
    assert np.std(error) < 0.008
    assert np.std(truth.values[:, [0, 2]], axis=0).min() > 0.015


def isolated_zero_points(sources, image: np.ndarray) -> np.ndarray:
    """Return mag + 2.5 log10(light within 9 pixels) of isolated stars of 18.5 to 21 mag."""
    found = []
    yy, xx = np.indices(image.shape)
    for star in sources[(sources["mag"] < 21) & (sources["mag"] > 18.5)].itertuples():
        near = np.hypot(sources["x"] - star.x, sources["y"] - star.y) < 18
        if (near & (sources["mag"] < star.mag + 3)).sum() > 1:
            continue
        if min(star.x, star.y) < 12 or max(star.x, star.y) > 255 - 12:
            continue
        distance = np.hypot(xx - star.x, yy - star.y)
        sky = np.median(image[(distance > 11) & (distance < 20)])
        found.append(star.mag + 2.5 * np.log10((image[distance < 9] - sky).sum()))
    return np.array(found)


def test_reference_catalogue_holds_the_stars_of_the_frames(campaign):
    reference = pq.read_table(campaign / "tables" / "reference.parquet")
    columns = [f"mag_{band}{end}" for band in "griz" for end in ("", "_err")]
    assert reference.column_names == ["ra", "dec", "pmra", "pmdec", *columns]
    assert reference.schema.field("mag_i").metadata[b"unit"] == b"mag"
    assert reference.schema.metadata[b"epoch"] == b"J2016.0"
    magnitude, error = np.array(reference["mag_i"]), np.array(reference["mag_i_err"])
    usable = (magnitude > 0) & (magnitude < 50)
    assert 0 < (~usable).mean() < 0.15
    assert error[usable].max() <= 0.05
    # Positions, brought to the exposure's time, are those of true sources, to the error of the header and catalogue.
    opened = csstdask.open_campaign(campaign)
    sources = pq.read_table(campaign / "tables" / "truth_sources.parquet").to_pandas()
    years = (opened["time"].values[0] - np.datetime64("2016-01-01T12:00")) / np.timedelta64(1, "D") / 365.25
    ra, dec = np.array(reference["ra"]), np.array(reference["dec"])
    ra = ra + np.array(reference["pmra"]) * years / 3.6e6 / np.cos(np.radians(dec))
    dec = dec + np.array(reference["pmdec"]) * years / 3.6e6
    header = Header.fromstring(read_header(campaign, 0, RECIPE.detectors.index(7)), sep="\n")
    x, y = WCS(header).all_world2pix(ra, dec, 0)
    unit = sources[(sources["exposure"] == RECIPE.exposure_ids[0]) & (sources["detector"] == 7) & sources["is_star"]]
    distance = np.hypot(x[:, None] - unit["x"].values, y[:, None] - unit["y"].values)
    inside = (x > 2) & (x < 253) & (y > 2) & (y < 253)
    assert inside.sum() >= 3
    nearest = distance[inside].min(axis=1)
    assert nearest.max() < 5.0  # 0.05 arcsec of the header are 0.7 pixel an axis
    best = unit["mag"].values[distance[inside].argmin(axis=1)]
    good = usable[inside]
    # Nearly all agree within 5 sigma; variables need not.
    pull = np.abs(magnitude[inside] - best)[good] / np.maximum(error[inside][good], 0.005)
    assert np.median(pull) < 2


def test_one_detector_has_few_reference_stars(campaign):
    full = load_recipe("zeropoint")
    from csstdask.mock.unit_catalogue import unit_catalogue

    def reference_stars(detector: int) -> list[int]:
        units = (unit_catalogue(full, CSST, index, detector) for index in range(4))
        return [
            int((one.is_star & (one.mag < 21.5) & (abs(one.x - 511.5) < 512) & (abs(one.y - 511.5) < 512)).sum())
            for one in units
        ]

    assert min(reference_stars(7)) > 30  # of the bundled recipe, at scale 1
    assert min(reference_stars(9)) > 30
    assert 0 < max(reference_stars(8)) < 10


def test_telemetry_has_a_row_for_each_exposure_and_gaps(campaign):
    table = pq.read_table(campaign / "tables" / "telemetry.parquet")
    assert table.column_names == ["exposure", "time", *CHANNELS]
    assert table["exposure"].to_pylist() == list(RECIPE.exposure_ids)
    assert table.schema.field("time").type == pa.timestamp("us")
    opened = csstdask.open_campaign(campaign)
    assert np.array_equal(table["time"].to_numpy(), opened["time"].values)
    assert sum(table[name].null_count for name in CHANNELS) > 0
    assert table["days_since_launch"].null_count == 0


def test_truth_of_exposures_has_the_parts_of_their_offsets(campaign, truth):
    exposures = pq.read_table(campaign / "tables" / "truth_exposures.parquet").to_pandas()
    total = exposures[["zp_explained", "zp_walk", "zp_jumps", "zp_white"]].sum(axis=1)
    offset = truth.values - [CSST.bands[band].zero_point for band in "igr"]
    # What is left is grey(detector) and small(unit), 10 and 2 mmag.
    assert np.abs(offset - total.values[:, None]).max() < 0.04


def test_a_lost_table_is_written_again_and_pixels_stay(campaign):
    table = campaign / "tables" / "reference.parquet"
    before = table.read_bytes()
    table.unlink()
    summary = mock(RECIPE, campaign)
    assert (summary.rendered, summary.unchanged) == (0, 12)
    assert table.read_bytes() == before
    assert RECIPE.zeropoint is not None
    other = RECIPE.model_copy(update={"zeropoint": RECIPE.zeropoint.model_copy(update={"grey_sigma": 0.05})})
    with pytest.raises(InputError, match="another recipe"):
        mock(other, campaign)


def test_a_lost_unit_is_rendered_again_alike(campaign, tmp_path):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(campaign, copy)
    shard = next(path for path in sorted((copy / "sci").rglob("0")) if path.is_file())
    before = shard.read_bytes()
    shard.unlink()
    summary = mock(RECIPE, copy)
    assert (summary.rendered, summary.unchanged) == (1, 11)
    assert shard.read_bytes() == before
    for name in TABLES:
        table = Path("tables") / f"{name}.parquet"
        assert (copy / table).read_bytes() == (campaign / table).read_bytes()


def test_more_exposures_leave_the_first_ones_as_they_are(tmp_path):
    """Without fields that take turns and a span that is divided: what existing recipes can be extended by."""
    small = RECIPE.model_copy(update={"fields": (), "span": 0.0, "detectors": (7,), "exposures": 1, "scale": 0.0625})
    path = tmp_path / "campaign.zarr"
    mock(small, path)
    first = xr.open_zarr(path, group="truth")["zp"].values
    summary = mock(small.model_copy(update={"exposures": 3}), path)
    assert (summary.rendered, summary.unchanged) == (2, 1)
    whole = xr.open_zarr(path, group="truth")["zp"].values
    assert whole.shape == (3, 1)
    assert np.isfinite(whole).all()
    assert whole[0] == first[0]
    mock(small, path)  # fewer again: the others keep theirs
    assert np.array_equal(xr.open_zarr(path, group="truth")["zp"].values, whole)


def test_fits_files_come_with_the_tables(campaign, tmp_path):
    small = RECIPE.model_copy(update={"exposures": 4, "scale": 0.0625})
    mock(small, tmp_path / "fits", as_fits=True)
    assert len(list((tmp_path / "fits").glob("*_L1_V01.fits"))) == 12
    # Telemetry does not depend on the scale; the stars of a frame do.
    telemetry = (tmp_path / "fits" / "telemetry.parquet").read_bytes()
    assert telemetry == (campaign / "tables" / "telemetry.parquet").read_bytes()
    zero_points = pq.read_table(tmp_path / "fits" / "truth_zp.parquet").to_pandas()
    assert zero_points["zp"].values.reshape(4, 3) == pytest.approx(true_zero_points(small, CSST))
    assert (tmp_path / "fits" / "reference.parquet").is_file()


def test_recipes_without_the_table_keep_their_identity():
    """Digests of units that are on disks stay what they were."""
    demo = load_recipe("demo")
    assert unit_digest(demo, CSST, 0, 7) == DEMO_DIGEST
    assert unit_conditions(demo, 0, 7).offset == 0


#: Of exposure 0, detector 7 of the recipe `demo`, before recipes could have telemetry.
DEMO_DIGEST = "6efffb772e96de046f6288711cece63ed61a237a375d1bc2129f18a9ebb235b7"


def test_tables_that_do_not_go_together_are_refused():
    for changes in ({"nodes": {}}, {"stamps": {"kind": "isolated"}}):
        recipe = type(RECIPE).model_validate(RECIPE.model_dump() | changes)
        with pytest.raises(InputError, match="a table"):
            check_recipe(recipe, CSST)
    assert RECIPE.zeropoint is not None
    stars = RECIPE.zeropoint.stars.model_copy(update={"bands": ("H",)})
    unknown = RECIPE.model_copy(update={"zeropoint": RECIPE.zeropoint.model_copy(update={"stars": stars})})
    with pytest.raises(InputError, match="NUV, u, g"):
        check_recipe(unknown, CSST)
