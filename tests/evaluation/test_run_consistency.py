"""A run that is watched: what was planted is found and said, on the page and in JSON."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from markupsafe import escape
from quick import quick_run as run
from typer.testing import CliRunner

from csstdask.cli import app
from csstdask.engine.work_units import parse_selection
from csstdask.evaluation.run_consistency import evaluate_run, review_run
from csstdask.mock import Recipe
from csstdask.mock.recipe_tables import Pointing, Sensor, SkyField
from csstdask.nn.models import find_card
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.mock_survey import mock
from csstdask.report import write_report
from csstdask.store.campaign_pixels import read_unit_pixels, write_unit_pixels

CONFIG = RunConfig.model_validate({"detect": {"model": "lacosmic"}})
HOT = (101, 57)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A dithered night of one field: six exposures of one detector, all alike."""
    folder = tmp_path_factory.mktemp("quiet")
    recipe = Recipe(
        name="night",
        seed=5,
        exposures=6,
        detectors=(7,),
        shape=(256, 256),
        fields=(SkyField(name="a", pointing=(60.0, -30.0), stars=0.3),),
        pointing=Pointing(dither=30.0),
        sensor=Sensor(hot_fraction=0, hot_growth=0, warm_fraction=0),
    )
    mock(recipe, folder / "c.zarr")
    run(folder / "c.zarr", folder / "r.zarr", steps=["repair"], config=CONFIG, workers=1)
    return folder


@pytest.fixture(scope="module")
def disturbed(quiet, tmp_path_factory):
    """The same with a pixel that is hot in all exposures, and three times as many cosmic rays in the last."""
    folder = tmp_path_factory.mktemp("disturbed")
    shutil.copytree(quiet / "c.zarr", folder / "c.zarr")
    group = zarr.open_group(folder / "c.zarr", mode="r")
    for row in range(6):
        sci = read_unit_pixels(folder / "c.zarr", row, 0, "sci")
        sci[HOT[1], HOT[0]] += 15
        if row == 5:
            for other in (0, 1):  # cosmic rays of other exposures, elsewhere
                sci += np.roll(group["truth/cr"][other, 0], (60 + other, 31), (0, 1)) / np.float32(
                    group["exptime"][row]
                )
        write_unit_pixels(folder / "c.zarr", row, 0, "sci", sci)
    run(folder / "c.zarr", folder / "r.zarr", steps=["repair"], config=CONFIG, workers=1)
    return folder


def test_an_undisturbed_run_raises_nothing(quiet):
    watched = review_run(quiet / "r.zarr")
    assert watched.alarms == ()
    assert [unit.exposure for unit in watched.units] == [f"1010000000{i}" for i in range(1, 7)]
    table = pq.read_table(quiet / "r.zarr/tables/cosmic_rays/10100000003/7.parquet")
    ignored = zarr.open_group(quiet / "r.zarr", mode="r")["n_ignored_pixels"][2, 0]
    events = watched.units[2].events
    assert events.n == events.charge.sum() == events.length.sum() == table.num_rows
    assert events.rate == pytest.approx(table.num_rows / (150 * (256 * 256 - ignored) * 1e-6))
    page = write_report(quiet / "r.zarr", quiet / "r.html").read_text()
    assert page.count('<span class="state pass">as expected</span>') == 2  # units, and pixels hit
    assert "not as expected" not in page
    assert page.count("spectrum-charge-axes") == page.count("spectrum-length-axes") == 1
    assert "charge of an event [electron]" in page


def test_a_hot_pixel_and_a_busy_exposure_are_found(quiet, disturbed, tmp_path):
    results = evaluate_run(disturbed / "r.zarr", tmp_path)
    assert json.loads((tmp_path / "cosmicray_run.json").read_text()) == results
    assert [(alarm["exposure"], alarm["what"]) for alarm in results["alarms"]] == [("10100000006", "rate")]
    assert f"--campaign {disturbed / 'c.zarr'} --to DIR" in results["alarms"][0]["sentence"]
    hot = results["repeated_in_pixels"]["detectors"]["7"]["places"]
    assert HOT in list(zip(hot["x"], hot["y"], strict=True))
    before = evaluate_run(quiet / "r.zarr")
    clean = before["repeated_in_pixels"]["detectors"]["7"]
    assert HOT not in list(zip(clean["places"]["x"], clean["places"]["y"], strict=True))
    assert clean["n_places"] < len(hot["x"])
    known = before["recovered"]
    assert len(known["units"]) == 3
    assert known["recall_visible_pixels"] > 0.6
    assert sum(known["n_events"]) > 10
    assert known["n_lost"] < 0.05 * known["n_flagged_before"]
    page = write_report(disturbed / "r.zarr", tmp_path / "r.html").read_text()
    assert str(escape(results["alarms"][0]["finding"])) in page
    assert "look at it" not in page  # rates differ from orbit to orbit: the recipe's limits decide


def test_outdated_card_is_reported_in_the_shell(quiet, tmp_path, monkeypatch):
    from dataclasses import replace

    card = replace(find_card("cosmicray", "lacosmic"), valid={"detectors": [8], "until": "2020-01-01"})
    monkeypatch.setattr("csstdask.evaluation.run_consistency.find_card", lambda task, model: card)
    result = CliRunner().invoke(app, ["evaluate", "cosmicray", "--run", str(quiet / "r.zarr"), "--to", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "found detector 7, expected one of 8" in result.output
    assert "expected a date before 2020-01-01" in result.output
    assert "of the events above chance" in result.output
    assert (tmp_path / "cosmicray_run.json").is_file()


def test_a_run_without_tables_says_so(quiet, tmp_path):
    run(quiet / "c.zarr", tmp_path / "r.zarr", steps=["background"], selection=parse_selection("exposure=10100000001"))
    assert review_run(tmp_path / "r.zarr").units == []
    result = CliRunner().invoke(app, ["evaluate", "cosmicray", "--run", str(tmp_path / "r.zarr")])
    assert result.exit_code != 0
    assert "no table of cosmic rays" in str(result.exception)


def test_lost_and_unrecorded_tables_are_left_out(quiet, tmp_path):
    """Only tables that the ledger records, with the recorded checksum, belong to a run."""
    copy = tmp_path / "r.zarr"
    shutil.copytree(quiet / "r.zarr", copy)
    tables = sorted((copy / "tables" / "cosmic_rays").glob("*/*.parquet"))
    tables[0].unlink()
    tables[1].write_bytes(tables[1].read_bytes()[:-10])
    (copy / "ledger" / tables[2].parent.name / f"{tables[2].stem}.json").unlink()
    units = review_run(copy, quiet / "c.zarr").units
    assert sorted(unit.exposure for unit in units) == [table.parent.name for table in tables[3:]]
