"""SIGKILL at any moment: the next run goes on, and ends bit-equal to one that was never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from store_equality import differences

from csstdask.pipeline.run import run

COMMAND = [sys.executable, "-m", "csstdask"]


def launch(campaign, path, scheduler):
    command = [*COMMAND, "run", str(campaign), "--to", str(path), "--scheduler", scheduler, "--workers", "2"]
    # A session of its own: the driver alone is killed, its workers see for themselves.
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def records(path):
    return {p: p.stat().st_mtime_ns for p in path.glob("ledger/*/*.json")}


@pytest.fixture(scope="module")
def reference(small_campaign, tmp_path_factory):
    path = tmp_path_factory.mktemp("kill") / "run.zarr"
    run(small_campaign, path)
    return path


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_sigkill_at_random_moments(small_campaign, reference, tmp_path, scheduler):
    path = tmp_path / "run.zarr"
    rng = random.Random(scheduler)
    for _ in range(3):
        kept = records(path)
        driver = launch(small_campaign, path, scheduler)
        # From the moment it holds the lock, a driver needs a second or two for these units.
        while not (path / "driver.json").exists() and driver.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2.5))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        # What was recorded before is never done again.
        assert {p: t for p, t in records(path).items() if p in kept} == kept
    done = len(records(path))
    summary = run(small_campaign, path, scheduler=scheduler)
    assert summary.failed == 0
    assert summary.skipped >= done - 2
    assert summary.done + summary.skipped == 4
    assert differences(reference, path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_stops_and_says_so(small_campaign, tmp_path, number, code):
    path = tmp_path / "run.zarr"
    command = [*COMMAND, "run", str(small_campaign), "--to", str(path), "--workers", "1"]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (path / "ledger").exists() and driver.poll() is None:
        time.sleep(0.01)
    driver.send_signal(number)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == code
    assert "Traceback" not in errors
    assert not (path / "driver.json").exists()
    assert run(small_campaign, path).failed == 0


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
