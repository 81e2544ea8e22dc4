"""SIGKILL at any moment: the next run goes on, and ends bit-equal to one that was never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib

import pytest
from store_equality import differences

from csstdask.mock import Recipe
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.run import run

COMMAND = [sys.executable, "-m", "csstdask"]
#: The store is asked about here, and what takes long in small frames, their PSF, does without it.
STEPS, SETTINGS = "sources", '[psf]\nmodel = "none"\n'


def command_of(campaign, path, scheduler, workers):
    settings = campaign.with_name("settings.toml")
    chosen = ["--steps", STEPS, "--config", str(settings), "--scheduler", scheduler, "--workers", str(workers)]
    return [*COMMAND, "run", str(campaign), "--to", str(path), *chosen]


def run_here(campaign, path, scheduler="threads"):
    config = RunConfig.model_validate(tomllib.loads(SETTINGS))
    return run(campaign, path, steps=(STEPS,), config=config, scheduler=scheduler)


def launch(campaign, path, scheduler):
    command = command_of(campaign, path, scheduler, 2)
    # A separate process session: only the driver is killed; the workers must notice it.
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def records(path):
    return {p: p.stat().st_mtime_ns for p in path.glob("ledger/*/*.json")}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Twelve units whose shards hold several chunks."""
    path = tmp_path_factory.mktemp("kill") / "campaign.zarr"
    path.with_name("settings.toml").write_text(SETTINGS)
    mock(Recipe(name="kill", seed=9, exposures=4, detectors=(7, 8, 9), shape=(128, 2048)), path)
    return path


@pytest.fixture(scope="module")
def reference(campaign, tmp_path_factory):
    path = tmp_path_factory.mktemp("kill") / "run.zarr"
    run_here(campaign, path)
    return path


def wait_for_more_records(path, driver, known):
    while driver.poll() is None and len(records(path)) <= known:
        time.sleep(0.005)


@pytest.mark.parametrize("scheduler", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_sigkill_at_random_moments(campaign, reference, tmp_path, scheduler):
    path = tmp_path / "run.zarr"
    rng = random.Random(scheduler)
    in_work = 0
    for _ in range(3):
        kept = records(path)
        driver = launch(campaign, path, scheduler)
        wait_for_more_records(path, driver, len(kept))  # in the middle, not before it began
        time.sleep(rng.uniform(0, 0.5))
        driver.kill()
        driver.wait()
        in_work += len(list(path.glob("ledger/*/*.claim")))
        # What was recorded before is never done again.
        assert {p: t for p, t in records(path).items() if p in kept} == kept
    assert in_work > 0
    done = len(records(path))
    assert done >= 3
    summary = run_here(campaign, path, scheduler)
    assert summary.failed == 0
    # Workers in separate processes may have recorded one more before they noticed.
    assert summary.skipped == done if scheduler == "threads" else summary.skipped >= done
    assert summary.done + summary.skipped == 12
    assert differences(reference, path) == []


@pytest.mark.parametrize(
    ("number", "code", "scheduler"),
    [
        (signal.SIGINT, 130, "processes"),
        (signal.SIGTERM, 143, "threads"),
        pytest.param(signal.SIGINT, 130, "threads", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, "processes", marks=pytest.mark.slow),
    ],
)
def test_signals_stop_a_run_with_a_message(campaign, reference, tmp_path, number, code, scheduler):
    """Ctrl-C reaches the whole process group, as from a terminal; SIGTERM only the driver, as from a batch system."""
    path = tmp_path / "run.zarr"
    # Whoever runs the tests in the background has Ctrl-C ignored, and children inherit that: heed it again.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    heeding = [sys.executable, "-c", heed]
    driver = subprocess.Popen(
        [*heeding, *command_of(campaign, path, scheduler, 1)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_more_records(path, driver, 0)
    if number == signal.SIGINT:
        os.killpg(driver.pid, number)
    else:
        driver.send_signal(number)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == code
    assert "Traceback" not in errors
    assert "run the command again to resume" in errors
    assert not (path / "driver.json").exists()
    summary = run_here(campaign, path)
    assert summary.failed == 0
    assert summary.skipped > 0
    assert differences(reference, path) == []


def test_a_second_live_driver_exits_2_in_one_line(small_campaign, tmp_path):
    path = tmp_path / "run.zarr"
    path.mkdir()
    code = (
        "import sys, time; from pathlib import Path; from csstdask.engine.lock import DriverLock\n"
        "with DriverLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(path / "driver.json")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        second = subprocess.run(
            [*COMMAND, "run", str(small_campaign), "--to", str(path), "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 2
        assert second.stdout == ""
        assert len(second.stderr.strip().splitlines()) == 1
        assert "live driver" in second.stderr
    finally:
        holder.kill()
        holder.communicate()
    first = subprocess.run(
        [*COMMAND, "run", str(small_campaign), "--to", str(path), "--json"], capture_output=True, text=True, check=False
    )
    assert first.returncode == 0
    assert json.loads(first.stdout)["units"] == {"total": 4, "done": 4, "skipped": 0, "failed": 0, "pending": 0}
