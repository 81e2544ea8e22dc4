"""The evaluation runner: what is measured, what is kept, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csstdask.core.errors import InputError
from csstdask.evaluation.parallel import map_units
from csstdask.evaluation.runner import (
    Measurement,
    Output,
    Section,
    recipe_digest,
    recipe_with_twin,
    run_evaluation,
    select_parts,
)
from csstdask.mock.recipe import load_recipe

STORES = Path(__file__).parents[2] / "stores"


def test_only_sections_with_other_settings_are_measured_again(tmp_path):
    calls, messages = [], []

    def section(name, **settings):
        return Section(("part", name), lambda: Measurement(calls.append(name) or len(calls)), settings)

    output = Output(tmp_path, "example", lines=lambda results: [f"sections: {len(results['part'])}"])
    run_evaluation([section("a", scale=1 / 3), section("b")], output, output.load(), on_progress=messages.append)
    assert (tmp_path / "example.md").read_text() == "sections: 2\n"
    run_evaluation([section("a", scale=1 / 3), section("b", n=2)], output, output.load(), on_progress=messages.append)
    assert calls == ["a", "b", "b"]
    assert messages == ["part/a", "part/b", "part/a is up to date", "part/b"]
    stored = json.loads((tmp_path / "example.json").read_text())
    assert stored == {
        "part": {"a": 1, "b": 3},
        "measured": {"part/a": {"scale": 0.33333}, "part/b": {"n": 2}},
    }


def test_finished_sections_survive_a_failure(tmp_path):
    def fail():
        raise RuntimeError("no light")

    output = Output(tmp_path, "example")
    with pytest.raises(RuntimeError, match="no light"):
        run_evaluation(
            [Section(("a",), lambda: Measurement(1)), Section(("b",), fail)], output, {}, on_progress=lambda _: None
        )
    assert output.load() == {"a": 1}


def test_figures_are_drawn_after_the_numbers_are_written(tmp_path):
    def draw(folder):
        assert (folder / "example.json").is_file()
        (folder / "section.png").touch()

    output = Output(tmp_path, "example", draw=lambda results, folder: (folder / f"{results['a']}.png").touch())
    run_evaluation([Section(("a",), lambda: Measurement(1, draw))], output, {}, on_progress=lambda _: None)
    assert (tmp_path / "1.png").exists()
    assert (tmp_path / "section.png").exists()
    run_evaluation([Section((), lambda: Measurement({"b": 2}, draw))], Output(None, "x"), {}, on_progress=print)


def test_parts_are_selected_in_the_order_of_the_evaluation():
    assert select_parts(["b", "a"], ("a", "b", "c")) == ("a", "b")
    for wrong in ([], ["d"]):
        with pytest.raises(InputError, match=r"--only: found .*; wanted some of a, b, c"):
            select_parts(wrong, ("a", "b", "c"))


def test_a_recipe_comes_with_its_foreign_twin():
    names = [recipe.name for recipe in recipe_with_twin(STORES, "cr-science", scale=0.1)]
    assert names == ["cr-science", "cr-science-foreign"]
    (alone,) = recipe_with_twin(STORES, "cr-science", foreign=False)
    assert len(recipe_digest(alone)) == 16
    assert recipe_digest(alone) != recipe_digest(alone.model_copy(update={"seed": alone.seed + 1}))


def describe_unit(recipe, index, detector):
    return recipe.name, index, detector


def reject_second(_recipe, index, _detector):
    if index == 1:
        raise InputError("exposure", "1", "another one")
    return index


@pytest.mark.parametrize("workers", [0, 2])
def test_units_are_evaluated_in_order(workers):
    recipe = load_recipe(STORES / "demo.toml").model_copy(update={"exposures": 3, "detectors": (7, 9)})
    messages = []
    units = list(map_units(recipe, describe_unit, on_progress=messages.append, workers=workers))
    assert units == [(recipe.name, index, detector) for index in range(3) for detector in (7, 9)]
    assert len(messages) == (3 if workers else 0)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_exception_of_a_unit_is_raised(workers):
    recipe = load_recipe(STORES / "demo.toml").model_copy(update={"exposures": 3, "detectors": (7,)})
    with pytest.raises(InputError, match="exposure: found 1; wanted another one"):
        list(map_units(recipe, reject_second, on_progress=print, workers=workers))
