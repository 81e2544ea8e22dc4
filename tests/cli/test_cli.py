"""The command line: all commands, their exit codes and their JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from make_fits import level_1
from shell import csstdask_command

COMMANDS = {"mock", "ingest", "run", "status", "report", "export", "train", "evaluate", "models", "demo", "sed"}


def test_the_module_is_a_program():
    """In a separate interpreter, with warnings as errors."""
    command = [sys.executable, "-W", "error", "-m", "csstdask", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_help_lists_all_commands():
    done = csstdask_command("--help")
    assert done.returncode == 0
    assert {name for name in COMMANDS if re.search(rf"^\W*{name}\b", done.stdout, re.MULTILINE)} == COMMANDS


def test_a_survey_from_mock_to_export(tmp_path, small_campaign):
    """mock --fits, ingest, run --dry-run, run, status, report, export: exit codes and output."""
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "r"\nseed = 3\nexposures = 1\ndetectors = [7, 8]\nshape = [128, 128]\n')
    assert csstdask_command("mock", recipe, "--to", tmp_path / "fits", "--fits").returncode == 0
    files = sorted((tmp_path / "fits").glob("*_L1_V01.fits"))
    assert csstdask_command("ingest", *files, "--to", tmp_path / "c.zarr").returncode == 0
    log = tmp_path / "log.jsonl"
    dry = csstdask_command("run", tmp_path / "c.zarr", "--to", tmp_path / "r.zarr", "--dry-run")
    assert dry.returncode == 0
    assert "units     2 " in dry.stdout
    assert not (tmp_path / "r.zarr").exists()
    facts = json.loads(
        csstdask_command("run", tmp_path / "c.zarr", "--to", tmp_path / "r.zarr", "--dry-run", "--json").stdout
    )
    assert facts["units"] == {"total": 2, "done": 0, "skipped": 0, "failed": 0, "pending": 2}
    done = csstdask_command("run", tmp_path / "c.zarr", "--to", tmp_path / "r.zarr", "--json", "--log", log)
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer["units"] == {"total": 2, "done": 2, "skipped": 0, "failed": 0, "pending": 0}
    assert answer["failures"] == []
    assert answer["fingerprint"] == facts["fingerprint"]
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events == ["RunStarted", "UnitDone", "UnitDone", "RunFinished"]
    status = csstdask_command("status", tmp_path / "r.zarr", "--verify", "--json")
    assert json.loads(status.stdout)["units"]["done"] == 2
    assert csstdask_command("report", tmp_path / "r.zarr", "--to", tmp_path / "r.html").returncode == 0
    page = (tmp_path / "r.html").read_text()
    assert "2 done" in page
    assert page.count("data:image/png") >= 3
    assert "http" not in page
    assert csstdask_command("export", tmp_path / "r.zarr", "--to", tmp_path / "out").returncode == 0
    assert len(list((tmp_path / "out").glob("10100000001_*.fits"))) == 2


def test_models():
    models = json.loads(csstdask_command("models", "--json").stdout)["models"]
    assert {model["name"] for model in models} == {
        "azprc", "deepcr", "deepcr-inpaint", "empirical", "image-cnn", "lacosmic", "median", "principal", "psfnet",
        "sed", "source-unet", "uaranet", "unet", "unet-fast", "unet-medium", "unetpp", "zeropoint",
    }  # fmt: skip
    for model in models:
        assert set(model) == {"name", "task", "version", "sha256", "licence", "trained_on", "metrics"}
        assert re.fullmatch("[0-9a-f]{64}", model["sha256"])


def test_json_of_an_ingest_with_a_failure(tmp_path):
    done = csstdask_command("ingest", level_1(tmp_path), tmp_path / "no.fits", "--to", tmp_path / "c.zarr", "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["units"] == {"added": 1, "unchanged": 0, "dead": 0, "failed": 1}
    assert "no.fits" in answer["failures"][0]["reason"]


def test_a_small_demo(tmp_path, monkeypatch):
    """At a fifth of its scale."""
    from csstdask.mock import recipe

    small = recipe.demo_recipe().model_copy(update={"scale": 0.2})
    monkeypatch.setattr(recipe, "demo_recipe", lambda: small)
    done = csstdask_command("demo", "--to", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "12 done" in done.stderr
    assert float(re.search(r"precision (\d\.\d+)", done.stderr).group(1)) > 0.8
    assert (tmp_path / "demo" / "report.html").exists()


@pytest.mark.slow
def test_demo(tmp_path):
    done = csstdask_command("demo", "--to", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "12 done" in done.stderr
    precision = float(re.search(r"precision (\d\.\d+)", done.stderr).group(1))
    assert precision > 0.9
    assert (tmp_path / "demo" / "report.html").exists()
    again = csstdask_command("demo", "--to", tmp_path / "demo")
    assert "12 skipped" in again.stderr
