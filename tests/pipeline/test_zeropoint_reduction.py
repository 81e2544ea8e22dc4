"""The zero points of a run: the same bits in any order and after kills, added exposures, magnitudes and headers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from quick import quick_settings
from shell import csstdask_command
from store_equality import differences
from zeropoint_campaign import DETECTORS, zero_points

import csstdask
from csstdask.engine.events import ReductionStarted
from csstdask.engine.work_units import Selection
from csstdask.mock import load_recipe
from csstdask.nn.models import find_card
from csstdask.pipeline.config import load_config
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.reductions.zeropoints import ZEROPOINTS
from csstdask.pipeline.run import run
from csstdask.pipeline.status import status
from csstdask.report import write_report
from csstdask.store.tables import write_table

SETTINGS = quick_settings(zeropoint={"model": "none"})


RECORD = Path("reductions") / "zeropoints" / "all.json"


APERTURE_LOSS = {7: -0.07, 8: -0.045}


"""Zero points less nominal ones: without a PSF, light beyond 4 pixels is missing [mag]."""


def assert_same(path, expected):
    found = zero_points(path)
    for name, values in zero_points(expected).items():
        if values.dtype.kind == "f":
            assert values.tobytes() == found[name].tobytes(), name
        else:
            assert values.tolist() == found[name].tolist(), name


def test_every_unit_has_a_zero_point_with_an_error_and_a_method(zeropoint_run):
    found = zero_points(zeropoint_run)
    assert {product.name for product in ZEROPOINTS.products} <= set(found)
    assert found["zp"].shape == (3, len(DETECTORS))
    assert set(found["zp_method"][0].tolist()) == {"solve"}  # nothing came before
    assert set(found["zp_method"][1:].ravel().tolist()) <= {"solve", "joined"}
    nominal = np.array([25.85, 26.23])
    expected = nominal + np.array([APERTURE_LOSS[detector] for detector in DETECTORS])
    # Some 20 stars of a reference that is known to 10 mmag, and a colour term that is known to 8 mmag for three units.
    assert np.abs(found["zp"] - expected).max() < 0.025
    # No PSF was fitted: what the aperture misses, 7 and 4.5 % here, is known to 0.1 mag only, and so is every unit.
    assert (found["zp_sigma"] > 0.1).all()
    assert (found["zp_sigma"] < 0.102).all()
    assert (found["zp_correction"] == 0).all()
    assert np.abs(found["zp"] - found["zp_solve"]).max() < 0.02
    assert np.isnan(found["zp_prior"][0]).all()  # nothing came before
    assert np.isfinite(found["zp_prior"][1:]).all()


def test_added_exposures_and_any_number_of_workers_lead_to_the_same_bits(grown, zeropoint_run):
    _, path, before, summary = grown
    assert (summary.done, summary.skipped) == (2, 4)
    assert before["zp"].shape == (2, 2)
    assert_same(path, zeropoint_run)
    assert differences(path, zeropoint_run) == []


@pytest.mark.slow
def test_processes_give_the_same_bits(grown, zeropoint_run, tmp_path):
    run(grown[0], tmp_path / "run.zarr", config=SETTINGS, scheduler="processes", workers=2)
    assert_same(tmp_path / "run.zarr", zeropoint_run)


KILLED = """
import os, signal, sys
from quick import quick_settings
import csstdask.engine.reduce as reduce, csstdask.pipeline.run_reductions as reductions
from csstdask.pipeline.run import run

campaign, path, moment = sys.argv[1:]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
if moment == "mapping":
    reduce.map_group = lambda job: kill()
else:
    write = reductions.rewrite_array
    def replaced(root, name, values):
        written = write(root, name, values)
        return kill() if name == "zp_sigma" else written
    reductions.rewrite_array = replaced
if __name__ == "__main__":
    run(campaign, path, config=quick_settings(zeropoint={"model": "none", "epoch_days": 0.01}), workers=1)
"""


@pytest.mark.parametrize("moment", [pytest.param("mapping", marks=pytest.mark.slow), "replacing"])
def test_a_kill_changes_no_bit(grown, zeropoint_run, copied, tmp_path, moment):
    """A run that is killed while it replaces zero points of other settings ends with those of the last settings."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(script), str(grown[0]), str(copied), moment],
        env=environment, capture_output=True, check=False, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [one.state for one in status(copied).reductions] == ["pending"]
    assert (copied / RECORD).exists() == (moment == "mapping")
    summary = run(grown[0], copied, config=SETTINGS, workers=1)
    assert (summary.skipped, summary.failed) == (6, 0)
    assert_same(copied, zeropoint_run)


def test_damaged_zero_points_are_noticed_and_mended(grown, zeropoint_run, copied):
    chunk = copied / "zp" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 255
    chunk.write_bytes(content)
    with pytest.raises(Exception, match="zp"):
        csstdask.open_run(copied).csst.sources()
    assert csstdask_command("status", copied, "--verify").returncode != 0
    summary = run(grown[0], copied, config=SETTINGS, verify=True, workers=1)
    assert (summary.skipped + summary.done, summary.failed) == (6, 0)
    assert_same(copied, zeropoint_run)
    (copied / "zp_method" / "c" / "0" / "0").unlink()
    assert [one.state for one in status(copied).reductions] == ["pending"]
    run(grown[0], copied, config=SETTINGS, workers=1)
    assert_same(copied, zeropoint_run)


def test_a_torn_partial_fails_the_reduction_by_name(grown, zeropoint_run, copied):
    partial = sorted(copied.glob("files/zeropoint_stars/*/8.safetensors"))[1]
    content = bytearray(partial.read_bytes())
    content[-5] ^= 255
    partial.write_bytes(content)
    (copied / RECORD).unlink()
    summary = run(grown[0], copied, config=SETTINGS, workers=1)
    (reduction,) = summary.reductions
    assert (reduction.state, reduction.n_inputs) == ("failed", 6)
    assert reduction.to_json()["failures"] == [{"detector": None, "reason": reduction.failures[None]}]
    assert str(partial) in reduction.failures[None]
    assert reduction.failure_lines()[0].startswith("failed reduction zeropoints: ")
    run(grown[0], copied, config=SETTINGS, workers=1, verify=True)
    assert_same(copied, zeropoint_run)


def test_a_part_of_the_campaign_does_not_change_the_rest(grown, zeropoint_run, copied):
    """The reduction uses all recorded units, regardless of --select."""
    seen = []
    first = csstdask.open_campaign(grown[0])["exposure"].values.tolist()[0]
    summary = run(grown[0], copied, config=SETTINGS, selection=Selection((first,)), workers=1, listeners=[seen.append])
    assert [(one.state, one.n_inputs) for one in summary.reductions] == [("done", 6)]
    assert not [event for event in seen if isinstance(event, ReductionStarted)]
    assert_same(copied, zeropoint_run)


def test_a_unit_without_stars_is_done_and_has_a_zero_point(grown, copied):
    """Its partial has no star; the other stars of the exposure determine its zero point."""
    selected = grown[0].parent / "bare.parquet"
    table = pq.read_table(grown[0] / "tables" / "reference.parquet")
    pq.write_table(table.slice(0, 0), selected)
    config = quick_settings(zeropoint={"model": "none", "reference": str(selected), "overlap_stars": 0})
    summary = run(grown[0], copied, config=config, workers=1)
    assert (summary.done, summary.failed) == (6, 0)
    assert [(one.state, one.n_inputs) for one in summary.reductions] == [("done", 6)]
    found = zero_points(copied)
    assert set(found["zp_method"].ravel().tolist()) == {"nominal"}
    np.testing.assert_allclose(found["zp"], [[25.85, 26.23]] * 3)
    assert np.isnan(found["zp_solve"]).all()
    assert np.isnan(found["zp_joint"]).all()


def test_reduction_summary_lists_unusual_counts():
    """Only positive counts are listed; there is no text if nothing is unusual."""
    counts = {
        "n_units": 6, "n_without_magnitudes": 3, "n_without_telemetry": 4, "n_unanchored": 2,
        "n_unanchored_components": 1, "n_strained": 5, "n_disagreeing": 6,
    }  # fmt: skip
    assert ZEROPOINTS.remark(counts) == (
        "no magnitudes in the reference for the bands of 3 units, no telemetry of 4 units, "
        "2 units in 1 unanchored parts, 5 units away from the joint solution, "
        "6 units whose stars disagree with the prior"
    )
    assert ZEROPOINTS.remark(dict.fromkeys(counts, 0) | {"n_without_telemetry": None}) == ""


def test_units_without_magnitudes_or_telemetry_are_counted(grown, copied, tmp_path):
    """A reference of one of two bands, and telemetry of one of three exposures."""
    table = pq.read_table(grown[0] / "tables" / "reference.parquet").drop_columns(["mag_g", "mag_g_err"])
    pq.write_table(table, tmp_path / "reference.parquet")
    first = csstdask.open_campaign(grown[0])["exposure"].values.tolist()[0]
    telemetry = {"exposure": np.array([first], dtype=object), "focus": np.zeros(1)}
    write_table(tmp_path / "telemetry.parquet", telemetry, {})
    config = quick_settings(
        zeropoint={
            "model": "none", "reference": str(tmp_path / "reference.parquet"),
            "telemetry": str(tmp_path / "telemetry.parquet"),
        }
    )  # fmt: skip
    (reduction,) = run(grown[0], copied, config=config, workers=1).reductions
    assert reduction.remarks[0].startswith("no magnitudes in the reference for the bands of 3 units, no telemetry of 4")
    assert set(zero_points(copied)["zp_method"][:, 0].tolist()) <= {"solve", "joined"}


def test_telemetry_that_is_replaced_during_a_run_is_refused(grown, copied, tmp_path):
    path, exposures = tmp_path / "telemetry.parquet", csstdask.open_campaign(grown[0])["exposure"].values
    telemetry = {"exposure": np.array(exposures, dtype=object), "focus": np.zeros(3)}
    write_table(path, telemetry, {})

    def replace(event):
        if isinstance(event, ReductionStarted):
            write_table(path, telemetry | {"focus": np.ones(3)}, {})

    config = quick_settings(zeropoint={"model": "none", "telemetry": str(path)})
    (reduction,) = run(grown[0], copied, config=config, workers=1, listeners=[replace]).reductions
    assert reduction.state == "failed"
    assert reduction.failures[None] == (
        f"{path}: found a file that was replaced during the run; wanted that of its beginning: run again"
    )
    (again,) = run(grown[0], copied, config=config, workers=1).reductions
    assert again.state == "done"


@pytest.mark.slow
def test_telemetry_and_an_own_network_change_the_reduction_alone(grown, copied, tmp_path):
    """Units stay as they are; the run keeps its own copy of the network."""
    exposures = csstdask.open_campaign(grown[0])["exposure"].values.tolist()
    conditions = {
        "exposure": np.array(exposures, dtype=object), "detector_temperature": np.full(3, 188.0), "focus": np.zeros(3),
        "days_since_launch": np.array([400.0, 401.0, np.nan]),
    }  # fmt: skip
    write_table(tmp_path / "telemetry.parquet", conditions, {})
    card = find_card("zeropoint", "default")
    own = tmp_path / "own"
    own.mkdir()
    for path in (card.weights, card.weights.with_suffix(".json")):
        shutil.copy(path, own)
    model = str(own / card.weights.with_suffix(".json").name)
    config = quick_settings(zeropoint={"model": model, "telemetry": str(tmp_path / "telemetry.parquet")})
    summary = run(grown[0], copied, config=config, workers=1)
    assert (summary.done, summary.skipped) == (0, 6)
    assert [(one.state, one.n_inputs) for one in summary.reductions] == [("done", 6)]
    found = zero_points(copied)
    assert np.isfinite(found["zp_prior"]).all()  # the network needs no earlier exposure
    assert set(found["zp_method"].ravel().tolist()) <= {"joined", "solve", "prior"}
    shutil.rmtree(own)
    assert [one.state for one in status(copied, campaign=grown[0]).reductions] == ["done"]
    again = run(grown[0], copied, config=load_config(copied), workers=2, redo=True)
    assert again.done == 6
    for name, values in zero_points(copied).items():
        np.testing.assert_array_equal(values, found[name], err_msg=name)


@pytest.mark.slow
def test_a_mock_survey_is_calibrated_to_its_truth(tmp_path):
    """Twelve frames whose throughput follows telemetry; detector 8 has five stars of the reference an exposure."""
    campaign = tmp_path / "campaign.zarr"
    mock(load_recipe("zeropoint"), campaign, workers=2)
    truth = xr.open_zarr(campaign, group="truth", chunks=None)["zp"].values
    run(campaign, tmp_path / "run.zarr", config=quick_settings(psf={"model": "default"}), workers=2)
    found = zero_points(tmp_path / "run.zarr")
    assert set(found["zp_method"].ravel().tolist()) == {"joined"}
    error = found["zp"] - truth
    assert np.abs(error / found["zp_sigma"]).max() < 4
    assert np.abs(error[:, [0, 2]]).max() < 0.02
    # Where stars are few, stars and network together are better than the unit's stars alone.
    assert np.sqrt((error[:, 1] ** 2).mean()) < 0.5 * np.sqrt(((found["zp_solve"] - truth)[:, 1] ** 2).mean())
    assert (found["zp_sigma"] < found["zp_solve_sigma"]).all()
    page = write_report(tmp_path / "run.zarr", tmp_path / "report.html").read_text()
    assert "reduction zeropoints: done, 12 inputs" in page
    assert "zero point of detector 8" in page


def test_status_and_dry_run_know_the_reduction(grown, zeropoint_run):
    told = csstdask_command("status", zeropoint_run, "--campaign", grown[0], "--json")
    assert json.loads(told.stdout)["reductions"][0] == {
        "name": "zeropoints", "state": "done", "n_inputs": 6, "n_outdated": 0, "pending": [], "failures": [],
    }  # fmt: skip
