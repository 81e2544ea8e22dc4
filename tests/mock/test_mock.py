"""The mock survey: deterministic, truthful, and in the field's units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from astropy.io import fits

import csstdask
from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.mock import Recipe, load_recipe, render_unit
from csstdask.mock.cosmic_rays import pixel_fraction
from csstdask.mock.recipe_tables import Sensor
from csstdask.pipeline.mock_survey import mock
from csstdask.store.stamps import open_stamps

ROOT = Path(__file__).resolve().parents[2]


CSST = load_instrument("csst")


def test_truth_differs_from_data_only_by_cosmic_rays(small_recipe):
    """At launch, without charge trails: pixels that are not hit are identical in science and truth."""
    recipe = small_recipe.model_copy(update={"sensor": Sensor(cti=0.0)})
    unit = render_unit(recipe, CSST, 0, 7)
    good = ((unit.flag & 9) == 0) & (unit.wht > 0)
    struck = (unit.truth_cr > 0) & good
    assert np.array_equal(unit.sci[~struck & good], unit.truth_sci[~struck & good])
    added = (unit.sci - unit.truth_sci)[struck] * recipe.exptime
    # Both were digitised, by channels whose gain is known to a part in a thousand, and flat-fielded.
    assert np.median(abs(added - unit.truth_cr[struck])) < 1.1
    assert abs(added / unit.truth_cr[struck] - 1)[unit.truth_cr[struck] > 500].max() < 0.06


def test_cosmic_rays_leave_trails_on_an_old_detector(small_recipe):
    sensor = Sensor(cti=0.02)
    old = small_recipe.model_copy(update={"epoch": 6.0, "sensor": sensor})
    unit = render_unit(old, CSST, 0, 7)
    difference = (unit.sci - unit.truth_sci) * 150
    ny = difference.shape[0] // 2
    bright = unit.truth_cr > 2000
    bright[ny - 12 :] = False
    bright[:12] = False
    rows, columns = np.nonzero(bright)
    clear = (unit.truth_cr[rows + 3, columns] == 0) & (unit.truth_cr[rows - 3, columns] == 0)
    above, below = (difference[rows[clear] + step, columns[clear]].mean() for step in (3, -3))
    assert above > 3 + below


def test_noise_and_weight_are_consistent(small_recipe):
    """Sky pixels have the expected level, and the scatter that their weight gives."""
    unit = render_unit(small_recipe, CSST, 0, 7)
    sky = CSST.bands["i"].sky
    quiet = (np.abs(unit.truth_sci - sky) < 0.2) & (unit.truth_cr == 0) & (unit.wht > 0) & ((unit.flag & 6) == 0)
    expected = np.sqrt((sky + 0.02) * 150 + 25 + 1.1**2 / 12) / 150
    width = np.diff(np.percentile(unit.truth_sci[quiet], [16, 84]))[0] / 2
    assert np.median(unit.truth_sci[quiet]) == pytest.approx(sky, rel=0.06)
    assert width == pytest.approx(expected, rel=0.07)
    assert 1 / np.sqrt(np.median(unit.wht[quiet])) == pytest.approx(expected, rel=0.05)


def test_weights_and_rounding_do_not_reveal_cosmic_rays():
    """At equal counts a classifier on error and fractional part stays at chance, on pixels it has not seen."""
    from scipy.spatial import cKDTree

    recipe = Recipe(name="leak", seed=77, exposures=1, detectors=(8,), shape=(1024, 1024))
    recipe = recipe.model_copy(update={"epoch": 3.0, "sky": recipe.sky.model_copy(update={"galaxies_per_mpix": 6000})})
    unit = render_unit(recipe, CSST, 0, 8)
    counts = unit.sci * 150
    use = (unit.flag == 0) & (unit.wht > 0) & (counts > 60) & (counts < 3000)
    hit = np.flatnonzero((unit.truth_cr > 0.7 * counts) & use)
    light = np.flatnonzero((unit.truth_cr == 0) & use)
    # Each pixel of a cosmic ray is compared with a pixel of light with the same counts.
    near = cKDTree(np.log(counts.ravel()[light])[:, None]).query(np.log(counts.ravel()[hit])[:, None])[1]
    chosen, label = np.concatenate([hit, light[near]]), np.repeat([1.0, 0.0], len(hit))
    assert len(hit) > 3000
    value = counts.ravel()[chosen]
    error = 150 / np.sqrt(unit.wht.ravel()[chosen])
    features = np.stack(
        [
            error / np.sqrt(np.maximum(value, 0) + 25),
            value % 1,
            (value / 1.1) % 1,
            unit.sci.ravel()[chosen] % 0.01 * 100,
            unit.wht.ravel()[chosen] / np.median(unit.wht),
        ],
        axis=1,
    )
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    # A pair stays together: its two halves are alike but for their labels.
    learnt = np.tile(np.random.default_rng(1).random(len(hit)) < 0.5, 2)

    def accuracy(features):
        tree = cKDTree(features[learnt])
        vote = label[learnt][tree.query(features[~learnt], k=25)[1]].mean(axis=1)
        return ((vote > 0.5) == (label[~learnt] > 0.5)).mean()

    assert abs(accuracy(features) - 0.5) < 4 * 0.5 / (~learnt).sum() ** 0.5
    # The control: an error plane made from the clean frame gives them away.
    clean = np.sqrt(np.maximum(unit.truth_sci.ravel()[chosen] * 150, 0) + 25) / np.sqrt(np.maximum(value, 0) + 25)
    assert accuracy(np.column_stack([features, clean / clean.std()])) > 0.9


def test_cluster_is_at_its_sky_position():
    """Its stars thin out from its centre as King's profile does, on a detector that does not hold the centre."""
    from csstdask.mock.unit_catalogue import field_wcs, unit_catalogue

    recipe = load_recipe(ROOT / "stores" / "psf-dataset1.toml")
    stars = unit_catalogue(recipe, CSST, 0, 13)
    sky = field_wcs(recipe, CSST, 0, 13).pixel_to_world(stars.x, stars.y)
    near = sky.separation(type(sky)(102.2451, -36.0053, unit="deg")).arcsec
    inner, outer = ((near > low) & (near < high) & stars.is_star for low, high in ((60, 120), (300, 420)))
    assert inner.sum() / (120**2 - 60**2) > 5 * outer.sum() / (420**2 - 300**2)


def test_header_wcs_matches_rendered_stars():
    """The brightest star of a field, measured in two dithered exposures, is at one place of the sky."""
    from astropy.wcs import WCS

    recipe = load_recipe(ROOT / "stores" / "cr-repeats.toml", scale=0.03)
    quiet = recipe.cosmic_rays.model_copy(update={"pixel_fraction": (0.0,)})
    recipe = recipe.model_copy(update={"cosmic_rays": quiet})
    units = [render_unit(recipe, CSST, index, 8) for index in (0, 1)]
    seen = np.ones(len(units[0].catalogue), dtype=bool)
    for unit in units:
        seen &= unit.catalogue.is_star & (unit.catalogue.mag > 17)
        seen &= (abs(unit.catalogue.x - 138) < 120) & (abs(unit.catalogue.y - 138) < 120)
    star = np.flatnonzero(seen)[np.argmax(units[0].catalogue.flux[seen])]
    places = []
    for unit in units:
        x, y = round(unit.catalogue.x[star]), round(unit.catalogue.y[star])
        light = unit.truth_sci[y - 3 : y + 4, x - 3 : x + 4] - np.median(unit.truth_sci)
        dy, dx = (np.indices((7, 7)) * light).sum(axis=(1, 2)) / light.sum() - 3
        assert (x + dx, y + dy) == pytest.approx((unit.catalogue.x[star], unit.catalogue.y[star]), abs=0.2)
        places.append((unit.catalogue.flux[star], WCS(unit.header).pixel_to_world(x + dx, y + dy)))
    assert places[0][0] == places[1][0]
    # Errors of 0.015 arcsec an axis and exposure, and the centroids'.
    assert places[0][1].separation(places[1][1]).arcsec < 0.1


def test_satellites_and_ghosts_are_rendered_and_flagged(small_recipe):
    from csstdask.mock.artefacts import draw_ghosts
    from csstdask.mock.recipe_tables import Artefacts

    plain = small_recipe.model_copy(update={"artefacts": Artefacts(satellites=0.0)})
    crossed = small_recipe.model_copy(update={"artefacts": Artefacts(satellites=6.0)})
    with_trails, without = (render_unit(recipe, CSST, 0, 7) for recipe in (crossed, plain))
    marked = (with_trails.flag & 32) != 0
    assert marked.any()
    assert not ((without.flag & 32) != 0).any()
    assert np.median((with_trails.truth_sci - without.truth_sci)[marked]) > 4 / 150
    stars = without.catalogue.select(np.flatnonzero(without.catalogue.is_star)[:1])
    bright = replace(stars, x=np.array([30.0]), y=np.array([40.0]), mag=np.array([9.0]), flux=np.array([1e7]))
    light, noticed = draw_ghosts(np.random.default_rng(1), Artefacts(), bright, (400, 400), 150.0)
    middle = (np.indices((400, 400)) * light).sum(axis=(1, 2)) / light.sum()
    assert middle == pytest.approx((399 - 40, 399 - 30), abs=8)  # some of it lies beyond the edge
    assert light.sum() == pytest.approx(2e-4 * 1e7, rel=0.35)
    assert noticed.sum() == pytest.approx((light > 0).sum(), rel=0.05)


def test_flags_know_most_defects_and_all_full_pixels(small_recipe):
    from csstdask.mock.level_1 import unit_flags
    from csstdask.mock.sensor import build_ccd

    settings = Sensor(hot_fraction=0.02, warm_fraction=0.02, bad_fraction=1e-3)
    ccd = build_ccd(settings, 7, (192, 160), 0.0, gain=1.1, bias_level=500.0)
    full = np.zeros((192, 160), dtype=bool)
    full[5, 5] = True
    flag = unit_flags(ccd, CSST, full, {"ghost": full})
    assert flag[5, 5] & 8
    assert flag[5, 5] & 64
    for bit, truth in ((1, ccd.bad), (2, ccd.hot), (4, ccd.warm)):
        marked = (flag & bit) != 0
        assert not (marked & ~truth).any()
        assert 0.75 < (marked & truth).sum() / truth.sum() < 0.99


def test_each_exposure_has_a_separate_jitter(small_recipe):
    from csstdask.mock.expected_image import optical_state

    recipe = load_recipe(ROOT / "stores" / "cr-repeats.toml")
    jitter = [optical_state(recipe, index).jitter for index in range(8)]
    assert np.std(np.log(jitter)) > 0.05
    assert optical_state(small_recipe, 1).jitter == 1.0


def test_exposures_of_a_field_see_one_sky_and_dithers_move_it():
    from csstdask.mock.unit_catalogue import exposure_dither, unit_catalogue
    from csstdask.mock.unit_headers import unit_headers

    recipe = load_recipe(ROOT / "stores" / "cr-repeats.toml", scale=0.02)
    first, second = (unit_catalogue(recipe, CSST, index, 8) for index in (0, 1))
    (ax, ay), (bx, by) = exposure_dither(recipe, 0), exposure_dither(recipe, 1)
    assert np.array_equal(first.flux, second.flux)
    assert np.allclose(second.x - first.x, bx - ax)
    assert np.hypot(bx - ax, by - ay) > 1
    headers = [unit_headers(recipe, CSST, index, 8)[0] for index in (0, 1)]
    moved = headers[1]["CRPIX1"] - headers[0]["CRPIX1"]
    assert moved == pytest.approx(bx - ax, abs=1.5)  # off by the error of the position
    assert moved != pytest.approx(bx - ax, abs=1e-6)


@pytest.mark.parametrize(("scheduler", "workers"), [("threads", 1), ("processes", 2)])
def test_bit_identical_for_any_workers(tmp_path, small_recipe, small_campaign, scheduler, workers):
    mock(small_recipe, tmp_path / "one.zarr", scheduler=scheduler, workers=workers)
    a, b = xr.open_zarr(small_campaign), xr.open_zarr(tmp_path / "one.zarr")
    for name in ("sci", "wht", "flag", "digest"):
        assert a[name].equals(b[name])
    truth = [xr.open_zarr(path, group="truth") for path in (small_campaign, tmp_path / "one.zarr")]
    assert truth[0].equals(truth[1])
    assert pq.read_table(small_campaign / "tables/truth_sources.parquet").equals(
        pq.read_table(tmp_path / "one.zarr/tables/truth_sources.parquet")
    )


def test_fits_files_equal_the_campaign(tmp_path, small_recipe, small_campaign):
    mock(small_recipe, tmp_path, as_fits=True)
    level_1, truth = sorted(tmp_path.glob("*_L1_V01.fits")), sorted(tmp_path.glob("*_CRS_*.fits"))
    assert (len(level_1), len(truth)) == (4, 4)
    campaign = csstdask.open_campaign(small_campaign)
    with fits.open(level_1[0]) as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "SCI", "WHT", "FLG"]
        one = campaign.sel(exposure=hdus[0].header["OBSID"], detector=int(hdus[0].header["DETECTOR"][-2:]))
        for index, name in ((1, "sci"), (2, "wht"), (3, "flag")):
            assert np.array_equal(hdus[index].data, one[name].values)
    assert fits.getdata(truth[0], 1).max() > 100


def test_rendering_again_is_a_no_op_and_another_recipe_is_refused(tmp_path, small_recipe):
    path = tmp_path / "c.zarr"
    recipe = small_recipe.model_copy(update={"exposures": 1, "shape": (64, 64)})
    assert mock(recipe, path).rendered == 2
    assert mock(recipe, path).unchanged == 2
    with pytest.raises(InputError, match="another recipe"):
        mock(recipe.model_copy(update={"seed": 12}), path)
    assert mock(recipe.model_copy(update={"exposures": 2}), path).rendered == 2


def test_a_longer_recipe_whose_turns_fall_otherwise_is_another_recipe(tmp_path, small_recipe):
    """With more exposures another density may fall to the first: its pixels would not be those that are there."""
    densities = small_recipe.cosmic_rays.model_copy(update={"pixel_fraction": (0.001, 0.1)})
    recipe = small_recipe.model_copy(update={"shape": (64, 64), "detectors": (7,), "cosmic_rays": densities})
    longer = [recipe.model_copy(update={"exposures": n}) for n in range(1, 20)]
    first = longer[0]
    other = next(one for one in longer if pixel_fraction(one, 0) != pixel_fraction(first, 0))
    mock(first, tmp_path / "c.zarr")
    with pytest.raises(InputError, match="another recipe"):
        mock(other, tmp_path / "c.zarr")


def test_a_refused_mock_leaves_the_store_as_it_was(tmp_path, small_recipe):
    from csstdask.store.campaign_creation import create_campaign

    recipe = small_recipe.model_copy(update={"exposures": 1, "shape": (64, 64), "detectors": (7,)})
    mock(recipe, tmp_path / "a.zarr")
    create_campaign(tmp_path / "b.zarr", CSST, (32, 32), "electron s-1", [7])
    (tmp_path / "c").mkdir()
    for name, other in (("a", {"seed": 12, "exposures": 3}), ("b", {}), ("c", {})):
        path = tmp_path / (f"{name}.zarr" if name != "c" else "c")
        before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        with pytest.raises(InputError, match="a new name"):
            mock(recipe.model_copy(update=other), path)
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


STAMPS = {
    "injected": {"stamps": {"kind": "injected", "per_unit": 12, "size": 64}, "sky": {"stars_per_mpix": 900}},
    "brightness": {
        "stamps": {"kind": "brightness", "per_unit": 8, "magnitudes": (20.0, 22.0), "cosmic_rays_each": 4, "snr": 0.0}
    },
    "isolated": {
        "stamps": {"kind": "isolated", "per_unit": 9, "size": 32},
        "nodes": {"per_axis": 3},
        "optics": {"exact": True},
        "cosmic_rays": {"pixel_fraction": (0.0,)},
    },
}


@pytest.mark.parametrize("kind", STAMPS)
def test_stamp_sets(tmp_path, kind):
    recipe = Recipe.model_validate(
        {"name": kind, "seed": 5, "exposures": 2, "detectors": (7, 8), "shape": (384, 384)} | STAMPS[kind]
    )
    path = tmp_path / "stamps.zarr"
    assert mock(recipe, path, workers=2).rendered == 4
    assert mock(recipe, path).unchanged == 4
    with pytest.raises(InputError, match="another recipe"):
        mock(recipe.model_copy(update={"seed": 6}), path)
    again = tmp_path / "again.zarr"
    mock(recipe, again, workers=1)
    stamps, twin = open_stamps(path).load(), open_stamps(again).load()
    assert stamps.equals(twin)
    n = stamps["n_stamps"].values
    assert (n > 3).all()
    one = stamps.isel(exposure=1, detector=0, stamp=slice(0, int(n[1, 0])))
    size = one.sizes["x"]
    if kind == "isolated":
        assert one["truth_psf"].sum(("v", "u")).values == pytest.approx(1, abs=1e-4)
        # The star stands in the pixel [size // 2, size // 2], off its middle by its sub-pixel position.
        peak = one["sci"].values.reshape(len(one.stamp), -1).argmax(axis=1)
        assert (abs(np.array(np.unravel_index(peak, (size, size))) - size // 2) <= 1).all()
        assert len(np.unique(np.round(one["x"].values % 1, 3))) > 5
        assert one["snr"].values == pytest.approx(300, rel=0.01)
    else:
        hit = one["truth_cr"].values > 0
        assert (hit.reshape(len(one.stamp), -1).sum(axis=1) > 0).mean() > 0.9
        difference = (one["sci"] - one["truth_sci"]).values
        assert np.median(abs(difference[~hit])) < 1e-3
        assert (one["cr_distance"].values <= 15).all()
        inside = one["cr_charge_inside"].values / one["cr_charge"].values
        assert np.median(inside) > 0.99
        assert inside.max() <= 1 if kind == "injected" else inside.max() < 2  # copies stand closer than a long track
    unused = stamps.isel(exposure=1, detector=0, stamp=slice(int(n[1, 0]), None))
    assert np.isnan(unused["x"].values).all()


def test_stamps_as_fits(tmp_path):
    recipe = Recipe.model_validate(
        {"name": "f", "seed": 5, "exposures": 1, "detectors": (7,), "shape": (384, 384)} | STAMPS["isolated"]
    )
    mock(recipe, tmp_path, as_fits=True)
    (path,) = tmp_path.glob("*_STAMPS_*_L1_V01.fits")
    with fits.open(path) as hdus:
        assert [hdu.name for hdu in hdus][1:] == ["SCI", "WHT", "FLG", "TRUTHSCI", "TRUTHCR", "TRUTHPSF", "STAMPS"]
        assert hdus["SCI"].shape == (9, 32, 32)
        assert len(hdus["STAMPS"].data) == 9


def test_truth_table_of_exposures(tmp_path):
    recipe = load_recipe(ROOT / "stores" / "cr-detection.toml", scale=0.01).model_copy(update={"detectors": (8,)})
    mock(recipe, tmp_path / "c.zarr")
    table = pq.read_table(tmp_path / "c.zarr/tables/truth_exposures.parquet").to_pandas()
    assert table.split.value_counts().to_dict() == {"training": 12, "validation": 4}
    assert set(table.generator) == {"tracks"}
    assert table.epoch.max() == pytest.approx(4.5)


def test_a_mock_killed_before_its_truth_is_written_resumes(tmp_path, small_recipe):
    import shutil

    path = tmp_path / "c.zarr"
    recipe = small_recipe.model_copy(update={"exposures": 1, "shape": (64, 64), "detectors": (7,)})
    mock(recipe, path)
    shutil.rmtree(path / "truth")
    mock(recipe.model_copy(update={"exposures": 2}), path)
    assert xr.open_zarr(path, group="truth")["cr"].values[1].max() > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [('name = "a"', "seed"), ('name = "a"\nseed = 1\nexposure = 3', "exposure"), ("name = ", "not TOML")],
)
def test_wrong_recipes_are_named(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "r.toml")


def test_detectors_that_cannot_be_drawn(tmp_path):
    with pytest.raises(InputError, match="band GI"):
        mock(Recipe(name="x", seed=1, detectors=(1,)), tmp_path / "x.zarr")
