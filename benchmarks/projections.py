"""Compare the memory and time that ``--dry-run`` predicts with actual usage.

    python benchmarks/projections.py FOLDER_OF_REAL_IMAGES [--full]

Each campaign is run in a separate process, with one and with two units at a time, and its peak resident memory, its
CPU time and its wall time are compared with the dry run. ``--full`` adds a mock detector of 9232 x 9216
pixels with 100 stars and 150 galaxies per Mpix and 2.5 % of the pixels hit, which takes several minutes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import save

from csstdask.mock import Recipe
from csstdask.mock.recipe import demo_recipe
from csstdask.mock.recipe_tables import Sky
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.mock_survey import mock

FULL = Recipe(
    name="full", seed=5, exposures=1, detectors=(8,), shape=(9232, 9216),
    sky=Sky(stars_per_mpix=100, galaxies_per_mpix=150), cosmic_rays={"pixel_fraction": (0.025,)},
)  # fmt: skip
REAL = {
    "WIRCam": "cfht_wircam/*.fits.fz",
    "STIS": "hst_stis/raw/*_raw.fits",
    "UVIS": "hst_wfc3_uvis/Pluto1.fits",
}


def campaigns(folder: Path, images: Path | None, *, full: bool) -> dict[str, Path]:
    """Make or ingest the campaigns."""
    found = {"demo": folder / "demo.zarr"}
    mock(demo_recipe(), found["demo"])
    if images is not None:
        for name, pattern in REAL.items():
            found[name] = folder / f"{name}.zarr"
            ingest(sorted(images.glob(pattern)), found[name])
    if full:
        found["full detector"] = folder / "full.zarr"
        mock(FULL, found["full detector"])
    return found


def measure(campaign: Path, run: Path, workers: int) -> dict[str, Any]:
    """Return the predicted and actual usage of a run."""
    command = [sys.executable, "-m", "csstdask", "run", str(campaign), "--to", str(run), "--workers", str(workers)]
    said = json.loads(subprocess.run([*command, "--dry-run", "--json"], capture_output=True, check=True).stdout)
    done = subprocess.run(
        [sys.executable, __file__, "--child", *command[1:], "--json"], capture_output=True, check=True, text=True
    )
    used, answer = (json.loads(line) for line in reversed(done.stdout.strip().splitlines()))
    return {
        "units": said["units"]["total"],
        "workers": workers,
        "seconds_predicted": round(said["seconds_estimated"], 2),
        "seconds": round(used["seconds"], 2),
        "cpu_seconds": round(used["cpu_seconds"], 2),
        "gib_predicted": round(said["memory_bytes"] / 2**30, 3),
        "gib": round(used["peak_bytes"] / 2**30, 3),
        "steps": answer["usage"],
    }


def child(command: list[str]) -> None:
    """Run a command, pass its output on, and print what it has used."""
    import time

    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stderr=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss << 10,
    }
    print(json.dumps(facts))


def main() -> None:
    """Run all campaigns and keep the results."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="?", type=Path)
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, campaign in campaigns(folder, arguments.images, full=arguments.full).items():
            for workers in (1,) if title == "full detector" else (1, 2):
                facts = measure(campaign, folder / f"{title}-{workers}.zarr", workers)
                rows.append({"campaign": title, **facts})
                print({key: value for key, value in rows[-1].items() if key != "steps"}, flush=True)
    save("projections", {"rows": rows})


if __name__ == "__main__":
    main()
