"""Recipes: every one can be read and drawn, says what it costs, and no training shares anything with a test."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.mock import Recipe, load_recipe, render_unit
from csstdask.mock.cost import estimate_cost
from csstdask.mock.recipe import demo_recipe
from csstdask.mock.recipe_checks import check_recipe
from csstdask.mock.stamps import signal_to_noise
from csstdask.mock.unit_stamps import unit_stamps

STORES = Path(__file__).resolve().parents[2] / "stores"
NAMES = sorted(path.stem for path in STORES.glob("*.toml"))
TESTS = [name for name in NAMES if load_recipe(STORES / f"{name}.toml").split == "test" and "foreign" not in name]
CSST = load_instrument("csst")


def read(name: str) -> str:
    return (STORES / f"{name}.toml").read_text()


def recipe_of(name: str, **changes: object) -> Recipe:
    return load_recipe(STORES / f"{name}.toml").model_copy(update=changes)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cr-detection-real"])
def test_each_recipe_can_be_drawn_small(name):
    recipe = recipe_of(name)
    check_recipe(recipe, CSST)
    if recipe.stamps is None or recipe.stamps.kind != "brightness":
        recipe = recipe.model_copy(update={"scale": 256 / max(recipe.shape)})
    if recipe.nodes is not None:
        recipe = recipe.model_copy(update={"nodes": recipe.nodes.model_copy(update={"per_axis": 2})})
    if recipe.stamps is not None and recipe.stamps.kind == "brightness":
        few = recipe.stamps.model_copy(update={"cosmic_rays_each": 2, "per_unit": 8})
        recipe = recipe.model_copy(update={"stamps": few, "shape": (384, 384)})
    index, detector = recipe.exposures - 1, recipe.detectors[-1]
    unit = render_unit(recipe, CSST, index, detector)
    assert np.isfinite(unit.sci).all()
    assert (unit.wht >= 0).all()
    if recipe.stamps is not None:
        stamps = unit_stamps(recipe, CSST, index, detector, unit)
        assert len(stamps) > 0 or name == "psf-dataset1"  # some places of that field are empty


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_states_its_source_and_cost(name):
    text = read(name)
    comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert re.search(r"Size and time", comments)
    assert re.search(r"S/N|like = ", text)
    assert re.search(r"section|paper|foreign|[Aa]s cr-detection|high latitude", comments)


def test_stated_costs_equal_the_estimate():
    """The size that a recipe states for scale 1 is right to within a third."""
    for name in NAMES:
        found = re.search(r"scale 1 ([\d,]+) units.*?([\d.,]+) GB, ([\d.]+) (\w+)", read(name), re.DOTALL)
        if found is None:
            continue
        cost = estimate_cost(load_recipe(STORES / f"{name}.toml", scale=1.0))
        assert int(found[1].replace(",", "")) == cost.units
        assert float(found[2].replace(",", "")) == pytest.approx(cost.disk / 1e9, rel=0.1), name
        if found[4] == "min":
            assert float(found[3]) == pytest.approx(cost.seconds / 2 / 60, rel=0.2), name


def test_stated_signal_to_noise_is_right():
    """ "S/N in <band>: <value> at <mag> mag": from the band's zero point, sky and read noise, in 49 pixels."""
    checked = 0
    for name in NAMES:
        for band, claims in re.findall(r"S/N in (\w): ((?:[\d.,]+ at [\d.]+ mag,?\s*(?:# )?)+)", read(name)):
            known = CSST.bands[band]
            noise = np.sqrt((known.sky + 0.02) * 150 + 25)
            for value, mag in re.findall(r"([\d.,]+) at ([\d.]+) mag", claims):
                flux = np.array(10 ** (-0.4 * (float(mag) - known.zero_point)))
                wanted = signal_to_noise(flux, 150.0, noise)
                assert float(value.replace(",", "")) == pytest.approx(wanted, rel=0.02), name
                checked += 1
    assert checked > 20


def test_training_and_test_share_nothing():
    recipes = {name: recipe_of(name) for name in NAMES}
    assert len({recipe.seed for recipe in recipes.values()}) == len(recipes)
    learning = [recipe for recipe in recipes.values() if recipe.split == "training"]
    testing = [recipe for recipe in recipes.values() if recipe.split == "test"]
    assert learning
    assert testing
    for one in learning:
        for other in testing:
            assert one.sensor.seed != other.sensor.seed, (one.name, other.name)
            assert other.cosmic_rays.events_from in (None, "test")
            for mine in one.fields:
                for theirs in other.fields:
                    a, b = (SkyCoord(*field.pointing, unit="deg") for field in (mine, theirs))
                    assert a.separation(b).deg > 1.5, (one.name, other.name)  # more than the focal plane's diagonal
    assert len({recipes[f"psf-dataset{number}"].optics.seed for number in (1, 2, 3)}) == 1
    assert recipes["psf-newoptics"].optics.seed != recipes["psf-dataset1"].optics.seed
    assert recipes["psf-newoptics-foreign"].optics.seed != recipes["psf-dataset2-foreign"].optics.seed
    for name, recipe in recipes.items():  # truth is what the optics make: no sensor may change a star's shape
        if name.startswith("psf-"):
            assert (recipe.sensor.brighter_fatter, recipe.sensor.cti) == (0, 0), name


@pytest.mark.parametrize("name", TESTS)
def test_each_test_has_a_foreign_twin(name):
    if name == "foreign":
        return
    home, foreign = recipe_of(name), recipe_of(f"{name}-foreign")
    assert (home.exposures, home.detectors, home.shape) == (foreign.exposures, foreign.detectors, foreign.shape)
    assert foreign.optics.orders[1] > 11
    assert foreign.optics.mid_frequency > 0
    assert foreign.optics.jitter_shape == "line"
    assert foreign.sky.morphology == "clumpy"
    assert foreign.sensor.noise == "correlated"
    assert foreign.seed != home.seed
    learnt = [recipe for recipe in map(recipe_of, NAMES) if recipe.split == "training"]
    assert not {kind for recipe in learnt for kind in recipe.cosmic_rays.generators} & set(
        foreign.cosmic_rays.generators
    )
    assert not any(recipe.sky.morphology == "clumpy" for recipe in learnt)
    assert foreign.optics.seed not in {recipe.optics.seed for recipe in learnt}


def test_recipes_come_with_the_package(tmp_path, monkeypatch):
    demo = load_recipe(STORES / "demo.toml")
    assert demo == demo_recipe() == load_recipe("demo") == load_recipe("demo.toml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.toml").write_text('name = "mine"\nseed = 1\n')
    assert load_recipe("demo.toml").name == "mine"  # a file comes before a bundled recipe
    (tmp_path / "demo").mkdir()  # as `csstdask demo` makes it
    assert load_recipe("demo") == demo
    assert demo_recipe() == demo
    with pytest.raises(InputError, match=r"bundled recipe: .*demo"):
        load_recipe("domo")
    assert demo.exposures * len(demo.detectors) >= 12
    assert Recipe(name="x", seed=1, scale=0.5).frame_shape == (512, 512)


def test_recipes_like_others(tmp_path):
    (tmp_path / "a.toml").write_text('name = "a"\nseed = 1\n[sky]\nstars_per_mpix = 5\nfaintest = 25\n')
    (tmp_path / "b.toml").write_text('like = "a.toml"\nname = "b"\n[sky]\nstars_per_mpix = 7\n')
    (tmp_path / "c.toml").write_text('like = ["b.toml", "a.toml"]\nname = "c"\n')
    b, c = (load_recipe(tmp_path / f"{name}.toml") for name in "bc")
    assert (b.name, b.seed, b.sky.stars_per_mpix, b.sky.faintest) == ("b", 1, 7, 25)
    assert (c.name, c.sky.stars_per_mpix) == ("c", 5)
    assert load_recipe(tmp_path / "b.toml", scale=0.25).scale == 0.25
    (tmp_path / "a.toml").write_text('like = "b.toml"\n')
    with pytest.raises(InputError, match="inherits from itself"):
        load_recipe(tmp_path / "b.toml")
    (tmp_path / "d.toml").write_text("like = 3\n")
    with pytest.raises(InputError, match="like = 3"):
        load_recipe(tmp_path / "d.toml")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[cosmic_rays]\npixel_fraction = [0.5]", "pixel_fraction"),
        ("[cosmic_rays]\ngenerators = []", "generators"),
        ('[cosmic_rays]\ngenerators = ["rain"]', "generators"),
        ("[optics]\norders = [11, 4]", "orders"),
        ("[sensor]\nprnu = 3", "prnu"),
        ('[stamps]\nkind = "round"', "kind"),
        ("[[fields]]\nname = 'x'", "pointing"),
        ("detectors = []", "detectors"),
        ("detectors = [7, 7]", "each once"),
        ("shape = [0, 5]", "positive"),
        ("[sky]\nbrightest = 27", "ascending"),
        ("[cosmic_rays]\ndiffusion = 20", "diffusion"),
    ],
)
def test_wrong_tables_are_named(tmp_path, table, message):
    (tmp_path / "r.toml").write_text(f'name = "a"\nseed = 1\n{table}\n')
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stamps": {"kind": "isolated", "size": 128}, "shape": (96, 96)}, "stamps.size"),
        ({"stamps": {"kind": "brightness"}, "shape": (384, 384)}, "room for 16"),
        (
            {"stamps": {"kind": "injected"}, "cosmic_rays": {"generators": ("stis",)}, "split": "test"},
            "can be aimed|FOLDER",
        ),
        ({"detectors": (1,)}, "band GI"),
        ({"instrument": "hst_stis", "detectors": (1,)}, "with geometry"),
    ],
)
def test_recipes_that_cannot_be_drawn(changes, message):
    recipe = Recipe.model_validate({"name": "x", "seed": 1} | changes)
    with pytest.raises(InputError, match=message):
        check_recipe(recipe, load_instrument(recipe.instrument))


def test_alternatives_are_assigned_equally_often_and_independently():
    recipe = recipe_of("cr-detection")
    fields = [recipe.field_index(index) for index in range(16)]
    assert np.bincount(fields).tolist() == [2] * 8
    assert fields != sorted(fields)
    plain = Recipe(name="x", seed=1)
    pointings = {Recipe(name="x", seed=1, exposures=700).field_of(index).pointing for index in range(700)}
    assert len(pointings) == 700
    assert all(0 <= ra < 360 for ra, _ in pointings)
    assert plain.field_of(0).pointing == (60.0, -30.0)
