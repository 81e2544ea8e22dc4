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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from astropy.io import fits
from quick import quick_settings
from shell import csstdask_command
from store_equality import differences
from zeropoint_campaign import DETECTORS, make_campaign, true_stars, zero_points

import csstdask
from csstdask.core.errors import InputError
from csstdask.engine.events import ReductionStarted
from csstdask.engine.work_units import Selection
from csstdask.mock import load_recipe
from csstdask.nn.models import find_card
from csstdask.pipeline.config import load_config
from csstdask.pipeline.export import export
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.reductions.zeropoints import ZEROPOINTS
from csstdask.pipeline.run import run
from csstdask.pipeline.source_tables import ZeroPointValue, add_magnitudes, read_sources
from csstdask.pipeline.status import status
from csstdask.report import write_report
from csstdask.store.tables import write_table
from csstdask.store.zarr_arrays import consolidate

SETTINGS = quick_settings(zeropoint={"model": "none"})
RECORD = Path("reductions") / "zeropoints" / "all.json"
APERTURE_LOSS = {7: -0.07, 8: -0.045}
"""Zero points less nominal ones: without a PSF, light beyond 4 pixels is missing [mag]."""


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A campaign of two exposures that was run, was given a third one, and was run again."""
    folder = tmp_path_factory.mktemp("zeropoints")
    campaign, path = make_campaign(folder / "campaign.zarr", exposures=2), folder / "run.zarr"
    before = run(campaign, path, config=SETTINGS, workers=1)
    assert [(one.name, one.state, one.n_inputs) for one in before.reductions] == [("zeropoints", "done", 4)]
    arrays = zero_points(path)
    make_campaign(campaign, exposures=3)
    seen = []
    after = run(campaign, path, config=SETTINGS, workers=1, listeners=[seen.append])
    assert [(event.name, event.n_inputs) for event in seen if isinstance(event, ReductionStarted)] == [
        ("zeropoints", 6)
    ]
    return campaign, path, arrays, after


@pytest.fixture(scope="module")
def finished(grown, tmp_path_factory):
    """The same in one run, with two workers."""
    path = tmp_path_factory.mktemp("zeropoints") / "run.zarr"
    summary = run(grown[0], path, config=SETTINGS, workers=2)
    assert [(one.name, one.state, one.n_inputs) for one in summary.reductions] == [("zeropoints", "done", 6)]
    return path


@pytest.fixture
def copied(grown, finished, tmp_path):
    """A copy of the finished run, to be damaged."""
    path = tmp_path / "run.zarr"
    shutil.copytree(finished, path)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    group.attrs["campaign"] = os.path.relpath(grown[0].resolve(), path.resolve())
    consolidate(path)
    return path


def assert_same(path, expected):
    found = zero_points(path)
    for name, values in zero_points(expected).items():
        if values.dtype.kind == "f":
            assert values.tobytes() == found[name].tobytes(), name
        else:
            assert values.tolist() == found[name].tolist(), name


def test_every_unit_has_a_zero_point_with_an_error_and_a_method(finished):
    found = zero_points(finished)
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


def test_added_exposures_and_any_number_of_workers_lead_to_the_same_bits(grown, finished):
    _, path, before, summary = grown
    assert (summary.done, summary.skipped) == (2, 4)
    assert before["zp"].shape == (2, 2)
    assert_same(path, finished)
    assert differences(path, finished) == []


@pytest.mark.slow
def test_processes_give_the_same_bits(grown, finished, tmp_path):
    run(grown[0], tmp_path / "run.zarr", config=SETTINGS, scheduler="processes", workers=2)
    assert_same(tmp_path / "run.zarr", finished)


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
def test_a_kill_changes_no_bit(grown, finished, copied, tmp_path, moment):
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
    assert_same(copied, finished)


def test_damaged_zero_points_are_noticed_and_mended(grown, finished, copied):
    chunk = copied / "zp" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 255
    chunk.write_bytes(content)
    with pytest.raises(Exception, match="zp"):
        csstdask.open_run(copied).csst.sources()
    assert csstdask_command("status", copied, "--verify").returncode != 0
    summary = run(grown[0], copied, config=SETTINGS, verify=True, workers=1)
    assert (summary.skipped + summary.done, summary.failed) == (6, 0)
    assert_same(copied, finished)
    (copied / "zp_method" / "c" / "0" / "0").unlink()
    assert [one.state for one in status(copied).reductions] == ["pending"]
    run(grown[0], copied, config=SETTINGS, workers=1)
    assert_same(copied, finished)


def test_a_torn_partial_fails_the_reduction_by_name(grown, finished, copied):
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
    assert_same(copied, finished)


def test_a_part_of_the_campaign_does_not_change_the_rest(grown, finished, copied):
    """The reduction is of all recorded units, whatever --select says."""
    seen = []
    first = csstdask.open_campaign(grown[0])["exposure"].values.tolist()[0]
    summary = run(grown[0], copied, config=SETTINGS, selection=Selection((first,)), workers=1, listeners=[seen.append])
    assert [(one.state, one.n_inputs) for one in summary.reductions] == [("done", 6)]
    assert not [event for event in seen if isinstance(event, ReductionStarted)]
    assert_same(copied, finished)


def test_magnitudes_are_joined_when_tables_are_read(grown, finished):
    campaign, truth = grown[0], true_stars(grown[0])
    exposure, detector = csstdask.open_campaign(campaign)["exposure"].values.tolist()[1], 8
    table = read_sources(finished, exposure, detector)
    on_disk = pq.read_table(finished / "tables" / "sources" / exposure / f"{detector}.parquet")
    assert "mag" not in on_disk.column_names
    assert table.select(on_disk.column_names).equals(on_disk)
    assert table.schema.field("mag").metadata == {b"unit": b"mag"}
    found, arrays = table.to_pandas(), zero_points(finished)
    zp, sigma = arrays["zp"][1, 1], arrays["zp_sigma"][1, 1]
    bright = found[(found["flag"] == 0) & (found["flux_aperture"] > 50 * found["flux_aperture_err"])]
    np.testing.assert_allclose(bright["mag"], zp - 2.5 * np.log10(bright["flux"]), atol=1e-9)
    error = 2.5 / np.log(10) * bright["flux_aperture_err"] / bright["flux_aperture"]
    np.testing.assert_allclose(bright["mag_aperture_err"], np.hypot(error, sigma), rtol=1e-9)
    assert found["mag"].isna().sum() == (found["flux"] <= 0).sum()
    offsets = []
    for star in bright.itertuples():
        near = np.hypot((truth["ra"] - star.ra) * np.cos(np.radians(star.dec)), truth["dec"] - star.dec) * 3600
        if near.min() < 0.15:
            offsets.append(star.mag_aperture - truth["mag_g"][near.argmin()])
    assert len(offsets) > 5
    assert abs(np.median(offsets)) < 0.015
    whole = csstdask.open_run(finished).csst
    assert len(whole.sources(exposure, detector)) == len(found)
    assert len(whole.sources()) == sum(len(pq.read_table(path)) for path in finished.glob("tables/sources/*/*.parquet"))
    assert len(csstdask.open_run(finished).isel(exposure=1).csst.sources(detector=8)) == len(found)
    with pytest.raises(InputError, match="wanted a run"):
        csstdask.open_campaign(campaign).csst.sources()
    with pytest.raises(InputError, match="no source table of"):
        read_sources(finished, "nothing")


def test_without_zero_points_magnitudes_are_null_and_headers_as_they_were(grown, copied, tmp_path):
    (copied / RECORD).unlink()
    table = read_sources(copied)
    assert table["mag"].null_count == table["mag_aperture_err"].null_count == len(table)
    export(copied, tmp_path / "out", campaign=grown[0], workers=1)
    header = fits.getheader(sorted((tmp_path / "out").glob("*.fits"))[0], "SCI")
    assert not [keyword for keyword in header if keyword.startswith("MAGZ")]


OTHER_APERTURE = quick_settings(zeropoint={"model": "none"}, sources={"aperture_radius": 2.0})


class KilledError(BaseException):
    """Ends a run as a kill does, in this process."""


def assert_no_zero_points(path, campaign):
    """No magnitude, array, header or page shows zero points, and status says that they are pending."""
    assert [one.state for one in status(path, campaign=campaign).reductions] == ["pending"]
    table = read_sources(path, campaign=campaign)
    assert table["mag"].null_count == table["mag_aperture"].null_count == table["mag_err"].null_count == len(table) > 0
    opened = csstdask.open_run(path, campaign)
    assert np.isfinite(xr.open_zarr(path, chunks=None)["zp"]).all()  # on disk they are still there
    for product in ZEROPOINTS.products:
        values = opened[product.name]
        assert (values.shape, values.dtype.kind) == ((3, 2), "O" if product.name == "zp_method" else "f")
        assert (values == "").all() if product.name == "zp_method" else np.isnan(values).all()
    assert opened["zp_method"].isel(exposure=0).compute().values.tolist() == ["", ""]
    assert opened.csst.sources()["mag"].isna().all()


def test_new_fluxes_get_no_old_zero_points(grown, copied, tmp_path):
    """Sources of another aperture, without the step that measures its correction."""
    before = read_sources(copied, campaign=grown[0])
    run(grown[0], copied, config=OTHER_APERTURE, steps=["sources"], workers=1)
    assert_no_zero_points(copied, grown[0])
    after = read_sources(copied, campaign=grown[0])
    assert len(after) == len(before)
    assert after["flux_aperture"] != before["flux_aperture"]
    # A run with the zero points of other fluxes is exported without them.
    export(copied, tmp_path / "out", campaign=grown[0], workers=1)
    header = fits.getheader(sorted((tmp_path / "out").glob("*.fits"))[0], "SCI")
    assert not [keyword for keyword in header if keyword.startswith("MAGZ")]


def test_a_run_that_is_killed_before_the_reduction_shows_no_old_zero_points(grown, copied):
    def kill(event):
        if isinstance(event, ReductionStarted):
            raise KilledError

    with pytest.raises(KilledError):
        run(grown[0], copied, config=OTHER_APERTURE, workers=1, listeners=[kill])
    assert_no_zero_points(copied, grown[0])
    page = write_report(copied, copied.parent / "report.html", grown[0]).read_text()
    assert "reduction zeropoints: pending, 6 inputs" in page
    assert "zero point of detector" not in page
    run(grown[0], copied, config=OTHER_APERTURE, workers=1)
    opened = csstdask.open_run(copied, grown[0])
    assert np.isfinite(opened["zp"]).all()
    assert read_sources(copied, campaign=grown[0])["mag_aperture"].null_count < 50


def test_tables_of_units_that_are_not_done_are_left_out(grown, copied):
    first = csstdask.open_campaign(grown[0])["exposure"].values.tolist()[0]
    everything = read_sources(copied, campaign=grown[0])
    (copied / "ledger" / first / "7.json").unlink()
    left = read_sources(copied, campaign=grown[0])
    assert set(map(tuple, left.select(["exposure", "detector"]).to_pandas().drop_duplicates().to_numpy())) == {
        unit
        for unit in map(tuple, everything.select(["exposure", "detector"]).to_pandas().drop_duplicates().to_numpy())
        if unit != (first, 7)
    }
    assert len(csstdask.open_run(copied, grown[0]).csst.sources()) == len(left)
    with pytest.raises(InputError, match=f"no source table of {first}/7 that is done"):
        read_sources(copied, first, 7, campaign=grown[0])


def test_an_unknown_aperture_correction_gives_no_magnitude():
    flux = pa.array([100.0])
    table = pa.table({"flux": flux, "flux_err": flux, "flux_aperture": flux, "flux_aperture_err": flux})
    known, unknown = ZeroPointValue(25.0, 0.01, "solve", -0.1), ZeroPointValue(25.0, 0.01, "solve")
    assert add_magnitudes(table, known)["mag_aperture"].to_pylist() == pytest.approx([19.9])
    for name in ("mag_aperture", "mag_aperture_err"):
        assert add_magnitudes(table, unknown)[name].to_pylist() == [None]
    assert add_magnitudes(table, unknown)["mag"].to_pylist() == pytest.approx([20.0])


def test_an_export_with_zero_points_that_no_longer_hold_is_not_unchanged(grown, copied, tmp_path):
    export(copied, tmp_path / "out", campaign=grown[0], workers=1)
    (copied / RECORD).unlink()
    again = export(copied, tmp_path / "out", campaign=grown[0], workers=1)
    assert (again.written, again.unchanged, len(again.failures)) == (0, 0, 6)
    wrong = (
        "found an export with another zero point (MAGZERO, MAGZERR, MAGZMETH differ); wanted no file, or --overwrite"
    )
    assert wrong in again.failures[0]["reason"]
    export(copied, tmp_path / "out", campaign=grown[0], workers=1, overwrite=True)
    assert "MAGZERO" not in fits.getheader(sorted((tmp_path / "out").glob("*.fits"))[0], "SCI")
    assert export(copied, tmp_path / "out", campaign=grown[0], workers=1).unchanged == 6


def test_export_writes_zero_points_into_the_header_of_sci(grown, finished, tmp_path):
    summary = export(finished, tmp_path, campaign=grown[0], workers=1)
    assert (summary.written, summary.failures) == (6, [])
    arrays, exposures = zero_points(finished), csstdask.open_run(finished)["exposure"].values.tolist()
    for row, exposure in enumerate(exposures):
        for column, detector in enumerate(DETECTORS):
            path = tmp_path / f"{exposure}_{detector}.fits"
            header = fits.getheader(path, "SCI")
            assert header["MAGZERO"] == pytest.approx(arrays["zp"][row, column], abs=1e-6)
            assert header["MAGZERR"] == pytest.approx(arrays["zp_sigma"][row, column], abs=1e-6)
            assert header["MAGZMETH"] == arrays["zp_method"][row, column]
    assert export(finished, tmp_path, campaign=grown[0], workers=1).unchanged == 6
    with fits.open(path, mode="update") as hdus:
        hdus["SCI"].header["MAGZERO"] = 20.0
    (failure,) = export(finished, tmp_path, campaign=grown[0], workers=1).failures
    assert "found an export with another zero point (MAGZERO differ)" in failure["reason"]


def test_a_unit_without_stars_is_done_and_has_a_zero_point(grown, copied):
    """Its partial has no star, and the stars of its exposure tell its zero point."""
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


def test_the_line_of_the_reduction_says_what_people_should_know():
    """Counts that are positive, and nothing where all is well."""
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


def test_status_and_dry_run_know_the_reduction(grown, finished):
    told = csstdask_command("status", finished, "--campaign", grown[0], "--json")
    assert json.loads(told.stdout)["reductions"][0] == {
        "name": "zeropoints", "state": "done", "n_inputs": 6, "n_outdated": 0, "pending": [], "failures": [],
    }  # fmt: skip
