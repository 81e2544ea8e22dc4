"""The mock survey: deterministic, truthful, and in the field's units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from astropy.io import fits

import csstdask
from csstdask.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.mock import Recipe, load_recipe, render_unit
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.recipe import CosmicRays, demo_recipe
from csstdask.mock.scene import SKY_RATES
from csstdask.pipeline.mock_survey import mock

ROOT = Path(__file__).resolve().parents[2]


def test_cosmic_rays_are_whole_electrons_at_the_wanted_density(rng):
    charge = draw_cosmic_rays(rng, CosmicRays(pixel_fraction=0.03), (500, 400))
    assert charge.dtype.kind == "i"
    assert np.count_nonzero(charge) / charge.size == pytest.approx(0.03, rel=0.02)
    assert (charge == 1).sum() > 0.02 * np.count_nonzero(charge)


def test_truth_differs_from_data_only_by_cosmic_rays(small_recipe):
    unit = render_unit(small_recipe, load_instrument("csst"), 0, 7)
    good = (unit.flag & 9) == 0
    struck = (unit.truth_cr > 0) & good
    assert np.array_equal(unit.sci[~struck & good], unit.truth_sci[~struck & good])
    added = (unit.sci - unit.truth_sci)[struck] * small_recipe.exptime
    # Both were digitised: what was added is the charge to within one step of 1.1 e-.
    assert np.abs(added - unit.truth_cr[struck]).max() <= 1.1 + 1e-3


def test_noise_and_weight_are_consistent(small_recipe):
    """Sky pixels scatter as their weight says, and lie at the sky's level."""
    unit = render_unit(small_recipe, load_instrument("csst"), 0, 7)
    sky = SKY_RATES["i"] + 0.02
    quiet = (np.abs(unit.truth_sci - sky) < 0.2) & (unit.truth_cr == 0) & (unit.wht > 0)
    expected = np.sqrt(sky * 150 + 25 + 1.1**2 / 12) / 150
    width = np.diff(np.percentile(unit.truth_sci[quiet], [16, 84]))[0] / 2
    assert np.median(unit.truth_sci[quiet]) == pytest.approx(sky, rel=0.06)
    assert width == pytest.approx(expected, rel=0.06)
    assert 1 / np.sqrt(np.median(unit.wht[quiet])) == pytest.approx(expected, rel=0.05)


def test_bit_identical_for_any_number_of_workers(tmp_path, small_recipe, small_campaign):
    mock(small_recipe, tmp_path / "one.zarr", workers=1)
    a, b = xr.open_zarr(small_campaign), xr.open_zarr(tmp_path / "one.zarr")
    for name in ("sci", "wht", "flag", "digest"):
        assert a[name].equals(b[name])
    assert pq.read_table(small_campaign / "tables/truth_sources.parquet").equals(
        pq.read_table(tmp_path / "one.zarr/tables/truth_sources.parquet")
    )


def test_fits_hold_what_the_campaign_holds(tmp_path, small_recipe, small_campaign):
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


def test_a_mock_killed_before_its_truth_was_made_goes_on(tmp_path, small_recipe):
    import shutil

    path = tmp_path / "c.zarr"
    recipe = small_recipe.model_copy(update={"exposures": 1, "shape": (64, 64), "detectors": (7,)})
    mock(recipe, path)
    shutil.rmtree(path / "truth")
    mock(recipe.model_copy(update={"exposures": 2}), path)
    assert xr.open_zarr(path, group="truth")["cr"].values[1].max() > 0


def test_recipes():
    demo = load_recipe(ROOT / "stores" / "demo.toml")
    assert demo == demo_recipe()
    assert demo.exposures * len(demo.detectors) >= 12
    assert Recipe(name="x", seed=1, scale=0.5).frame_shape == (512, 512)


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
