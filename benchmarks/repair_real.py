"""Repair stars of real frames with the PSF of the frame, and with the median of neighbouring pixels.

    python benchmarks/repair_real.py FOLDER_OF_REAL_IMAGES

Random tracks like those of cosmic rays are drawn over good pixels of four WIRCam frames, 2 % of them. The pixels are
masked, the step psf fits the frame's PSF without them, and the step repair predicts them. Pixels that were repaired as
a star's are compared with what they had measured.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from environment import save

from csstdask.engine.work_units import Selection
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.plan import Plan, make_plan
from csstdask.pipeline.steps import STEPS, resolve
from csstdask.store.campaign_pixels import read_unit_pixels
from csstdask.store.unit_metadata import read_header

#: Share of the pixels that are masked, and the mean length of a track [pixel].
SHARE, LENGTH = 0.02, 6.0
SEED = 1


def tracks(shape: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return random straight tracks, a pixel wide."""
    mask = np.zeros(shape, dtype=bool)
    for _ in range(int(SHARE * mask.size / LENGTH)):
        y, x, angle = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(0, np.pi)
        along = np.arange(0, max(rng.exponential(LENGTH), 1), 0.5)
        rows = np.clip((y + along * np.sin(angle)).astype(int), 0, shape[0] - 1)
        columns = np.clip((x + along * np.cos(angle)).astype(int), 0, shape[1] - 1)
        mask[rows, columns] = True
    return mask


def compare(campaign: Path, plan: Plan) -> list[dict[str, Any]]:
    """Return the differences of repaired pixels of stars from their measured values."""
    unit, row, column = next(plan.units())
    metadata = plan.campaign.metadata(unit.exposure, unit.detector)

    def opened() -> Frame:
        return Frame(
            metadata, plan.campaign.instrument, plan.campaign.units,
            lambda name: read_unit_pixels(campaign, row, column, name), lambda _: np.empty(0),
            lambda: read_header(campaign, row, column),
        )  # fmt: skip

    frame = opened()
    for name in ("background", "detect"):
        frame.add_results(STEPS[name].body(frame, plan.config).arrays)
    hit = frame.product("cr_mask")
    ours = tracks(hit.shape, np.random.default_rng(SEED)) & ~hit & ~frame.ignore
    products = {name: frame.product(name) for name in ("background", "noise")} | {"cr_mask": hit | ours}
    frame = opened()
    frame.add_results(products)
    fitted = STEPS["psf"].body(frame, plan.config)
    found = {}
    for method, by_psf in (("frame's PSF", True), ("median", False)):
        frame = opened()
        frame.add_results(products | fitted.arrays, fitted.tables, fitted.files)
        config = plan.config.model_copy(update={"repair": plan.config.repair.model_copy(update={"psf": by_psf})})
        found[method] = STEPS["repair"].body(frame, config).arrays
    of_stars = ours & (found["frame's PSF"]["repair"] != found["median"]["repair"])
    measured, error = frame.data[of_stars] / frame.scale, frame.error[of_stars] / frame.scale
    rows = []
    for method, arrays in found.items():
        off = arrays["repair"][of_stars] - measured
        pull = off / np.sqrt(arrays["repair_variance"][of_stars])
        rows.append(
            {
                "frame": unit.exposure,
                "method": method,
                "psf_stars": fitted.metrics["n_psf_stars"],
                "pixels": int(of_stars.sum()),
                "rms_over_error": round(float(np.sqrt(np.mean((off / error) ** 2))), 2),
                "p95_over_error": round(float(np.percentile(np.abs(off / error), 95)), 2),
                "pull_sd": round(float(pull.std()), 2),
                "pull_mean": round(float(pull.mean()), 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    images = parser.parse_args().images
    config = RunConfig.model_validate({"detect": {"model": "unet-fast"}})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for file in sorted(images.glob("cfht_wircam/*.fits.fz")):
            campaign = Path(folder) / f"{file.name}.zarr"
            ingest([file], campaign)
            rows += compare(campaign, make_plan(campaign, resolve(None), config, Selection()))
            print(*rows[-2:], sep="\n", flush=True)
    save("repair_real", {"share_masked": SHARE, "seed": SEED, "rows": rows})


if __name__ == "__main__":
    main()
