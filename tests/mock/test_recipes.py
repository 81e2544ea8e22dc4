"""Recipes: every one can be read and drawn, says what it costs, and no training shares anything with a test."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from csstdask.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.mock import Recipe, load_recipe, render_unit
from csstdask.mock.estimate import estimate
from csstdask.mock.recipe import demo_recipe
from csstdask.mock.render import check_recipe, unit_stamps

STORES = Path(__file__).resolve().parents[2] / "stores"
NAMES = sorted(path.stem for path in STORES.glob("*.toml"))
TESTS = [name for name in NAMES if load_recipe(STORES / f"{name}.toml").split == "test" and "foreign" not in name]
CSST = load_instrument("csst")


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
def test_each_recipe_says_what_it_follows_and_costs(name):
    text = (STORES / f"{name}.toml").read_text()
    comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert re.search(r"Size and time", comments)
    assert re.search(r"section|paper|foreign|[Aa]s cr-detection|high latitude", comments)


def test_costs_in_the_recipes_are_what_is_estimated():
    """The bytes that a recipe's comment promises at scale 1, within a third."""
    for name in NAMES:
        found = re.search(r"scale 1 ([\d,]+) units.*?([\d.,]+) GB", (STORES / f"{name}.toml").read_text(), re.DOTALL)
        if found is None:
            continue
        cost = estimate(load_recipe(STORES / f"{name}.toml", scale=1.0))
        assert int(found[1].replace(",", "")) == cost.units
        assert float(found[2].replace(",", "")) == pytest.approx(cost.disk / 1e9, rel=0.34), name


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
            places = {field.pointing for field in one.fields} & {field.pointing for field in other.fields}
            assert not places, (one.name, other.name)
    assert len({recipes[f"psf-dataset{number}"].optics.seed for number in (1, 2, 3)}) == 1
    assert recipes["psf-newoptics"].optics.seed != recipes["psf-dataset1"].optics.seed


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
    assert foreign.cosmic_rays.generators == ("slab",)
    assert foreign.seed != home.seed


def test_the_demo_is_the_packages():
    demo = load_recipe(STORES / "demo.toml")
    assert demo == demo_recipe()
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
    with pytest.raises(InputError, match="like itself"):
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
    ],
)
def test_wrong_tables_are_named(tmp_path, table, message):
    (tmp_path / "r.toml").write_text(f'name = "a"\nseed = 1\n{table}\n')
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "r.toml")
