"""Kill a run at ten random moments and resume it: check that the result is bit-equal, and count repeated work.

``python benchmarks/resume.py`` writes ``results/resume.json`` (about five minutes on two cores).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import save

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from store_equality import differences

from csstdask.mock import Recipe
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.run import run
from csstdask.pipeline.status import status

KILLS = 10


def trial(folder: Path, scheduler: str, seed: int) -> dict[str, Any]:
    """Kill and resume a run of 60 units; count records that were written again."""
    campaign, target, reference = folder / "campaign.zarr", folder / f"{scheduler}.zarr", folder / "reference.zarr"
    rng = random.Random(seed)
    command = [sys.executable, "-m", "csstdask", "run", str(campaign), "--to", str(target), "--scheduler", scheduler]
    again, moments, recorded = 0, [], []
    for _ in range(KILLS):
        kept = {path: path.stat().st_mtime_ns for path in target.glob("ledger/*/*.json")}
        driver = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL, start_new_session=True)
        # In the middle of work: after its first record, a random while. (Before that nothing can be lost.)
        while driver.poll() is None and len(list(target.glob("ledger/*/*.json"))) == len(kept):
            time.sleep(0.005)
        moment = rng.uniform(0, 2.0)
        time.sleep(moment)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        again += sum(path.stat().st_mtime_ns != stamp for path, stamp in kept.items())
        moments.append(round(moment, 2))
        recorded.append(sum(1 for _ in target.glob("ledger/*/*.json")))
    before = status(target).done
    summary = run(campaign, target, scheduler=scheduler, workers=2)
    return {
        "scheduler": scheduler,
        "units": summary.total,
        "kills": KILLS,
        "killed_s_after_first_record": moments,
        "recorded_after_each_kill": recorded,
        "recorded_units_done_again": again + (before - summary.skipped),
        "differences_from_uninterrupted": differences(reference, target),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = Recipe(name="resume", seed=44, exposures=20, detectors=(7, 8, 9), shape=(512, 512))
        mock(recipe, folder / "campaign.zarr")
        run(folder / "campaign.zarr", folder / "reference.zarr")
        save("resume", {"trials": [trial(folder, "threads", 1), trial(folder, "processes", 2)]})


if __name__ == "__main__":
    main()
