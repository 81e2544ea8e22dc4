"""What does it look like on real frames? Before, mask and after of WFC3/UVIS and STIS, for the documentation.

``python benchmarks/pictures.py DATA`` takes the real frames of the folder DATA through ingest and run with the default
models, and writes ``docs/pictures/<camera>.png``: three panels, the same grey levels in the first and the last.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import csstdask
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.run import run
from csstdask.report.cutouts import grey_levels, png

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
#: Files, unit, rows and columns: Pluto and trailed stars; the dark part of a spectrum between two hot columns.
VIEWS = {
    "uvis": ("hst_wfc3_uvis/Pluto1_orig.fits", "ibo821kvq", 2, slice(150, 410), slice(130, 390)),
    "stis": ("hst_stis/raw/o56502030_raw.fits", "o56502030_1", 1, slice(60, 320), slice(120, 380)),
}
GAP = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="default")
    chosen = parser.parse_args()
    data, config = chosen.data, RunConfig.model_validate({"detect": {"model": chosen.model}})
    PICTURES.mkdir(exist_ok=True)
    for name, (file, exposure, detector, rows, columns) in VIEWS.items():
        with tempfile.TemporaryDirectory() as folder:
            campaign, product = Path(folder) / "c.zarr", Path(folder) / "r.zarr"
            ingest([data / file], campaign)
            run(campaign, product, config=config)
            unit = {"exposure": exposure, "detector": detector}
            window = {"y": rows, "x": columns}
            result = csstdask.open_run(product).sel(unit).isel(window)
            before = csstdask.open_campaign(campaign)["sci"].sel(unit).isel(window).values
            mask, after = result["cr_mask"].values, result["clean"].values
        sky = np.median(after[~mask])
        noise = 1.4826 * np.median(np.abs(after[~mask] - sky))
        low, high = sky - 3 * noise, sky + 30 * noise
        panels = [grey_levels(image, low, high) for image in (before, np.where(mask, high, low), after)]
        gap = np.full((panels[0].shape[0], GAP), 255, np.uint8)
        joined = np.hstack([panels[0], gap, panels[1], gap, panels[2]])
        (PICTURES / f"{name}.png").write_bytes(png(np.kron(joined, np.ones((2, 2), np.uint8))))
        print(f"{name}: {mask.mean():.4f} of the pixels shown are flagged")


if __name__ == "__main__":
    main()
