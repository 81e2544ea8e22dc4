"""Draw real frames before and after cleaning, and a mock one, for the documentation.

``python benchmarks/pictures.py DATA`` takes the real frames of the folder DATA through ingest and run with the default
models, and writes ``docs/pictures/<camera>.png``: three panels, the same grey levels in the first and the last.
``trail.png`` and ``trailed.png`` are a satellite and trailed stars with the mask before and after their release.
``docs/pictures/mock.png`` is a corner of a mock detector, its truth without cosmic rays, and PSFs of a focal plane.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from astropy.io import fits

import csstdask
from csstdask.arrays.frame import to_electrons
from csstdask.instrument import load_instrument
from csstdask.mock import render_unit
from csstdask.mock.psf import PsfModel
from csstdask.mock.recipe import demo_recipe
from csstdask.mock.recipe_tables import Artefacts
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.run import run
from csstdask.report.images import grey_levels, png

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
#: Files, unit, rows and columns: Pluto and trailed stars; the dark part of a spectrum between two hot columns.
VIEWS = {
    "uvis": ("hst_wfc3_uvis/Pluto1_orig.fits", "ibo821kvq", 2, slice(150, 410), slice(130, 390)),
    "stis": ("hst_stis/raw/o56502030_raw.fits", "o56502030_1", 1, slice(60, 320), slice(120, 380)),
}
GAP = 6


def draw_mock() -> None:
    """Draw a corner of a mock detector next to its truth, and the telescope's PSFs over a detector."""
    recipe = demo_recipe().model_copy(update={"seed": 8, "shape": (400, 400), "epoch": 6.0})
    instrument = load_instrument("csst")
    unit = render_unit(recipe, instrument, 0, 8)
    sky = np.median(unit.truth_sci)
    levels = (sky - 0.15, sky + 1.5)
    panels = [grey_levels(plane[60:320, 60:320], *levels) for plane in (unit.sci, unit.truth_sci)]
    model, at = PsfModel(recipe.optics, instrument), np.linspace(400, 8800, 5)
    y, x = (part.ravel() for part in np.meshgrid(at[::-1], at, indexing="ij"))
    psfs = model.effective(8, x, y, size=26).image
    depth = 255 * (np.log10(np.maximum(psfs / psfs.max(axis=(1, 2), keepdims=True), 1e-4)) / 4 + 1)
    tiles = np.kron(depth.astype(np.uint8)[:, ::-1], np.ones((2, 2), np.uint8)).reshape(5, 5, 52, 52)
    panels.append(tiles.transpose(0, 2, 1, 3).reshape(260, 260))
    write(panels, "mock")


def draw_features(data: Path) -> None:
    """Draw a satellite and trailed stars: the frame, the mask of the network, and the mask without them."""
    recipe = demo_recipe().model_copy(
        update={"seed": 12, "shape": (560, 560), "artefacts": Artefacts(satellites=3.0, ghosts_above=0.0)}
    )
    instrument = load_instrument("csst")
    unit = render_unit(recipe, instrument, 0, 8)
    frame = to_electrons(unit.sci, unit.wht, unit.flag, scale=recipe.exptime, ignore_bits=instrument.flags.ignore_mask)
    with fits.open(data / VIEWS["uvis"][0]) as hdus:
        planes = [hdus[index].data for index in (1, 2, 3)]
    uvis = (planes[0].astype(np.float32), planes[1].astype(np.float32), (planes[2] & 0x1FC) != 0)
    windows = {
        "trail": ((frame.data, frame.error, frame.ignore), slice(150, 410), slice(150, 410)),
        "trailed": (uvis, *VIEWS["uvis"][3:]),
    }
    for name, (arrays, rows, columns) in windows.items():
        masks = [csstdask.cosmicray.detect(*arrays, release_straight=chosen).mask for chosen in (False, True)]
        sky = np.median(arrays[0][~arrays[2]])
        noise = 1.4826 * np.median(np.abs(arrays[0][~arrays[2]] - sky))
        levels = (sky - 3 * noise, sky + 15 * noise)
        images = [arrays[0], *(np.where(mask, levels[1], levels[0]) for mask in masks)]
        write([grey_levels(image[rows, columns], *levels) for image in images], name)


def write(panels: list[np.ndarray], name: str) -> None:
    gap = np.full((panels[0].shape[0], GAP), 255, np.uint8)
    joined = np.hstack([part for panel in panels for part in (panel, gap)][:-1])
    (PICTURES / f"{name}.png").write_bytes(png(np.kron(joined, np.ones((2, 2), np.uint8))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="default")
    chosen = parser.parse_args()
    data, config = chosen.data, RunConfig.model_validate({"detect": {"model": chosen.model}})
    PICTURES.mkdir(exist_ok=True)
    draw_mock()
    draw_features(data)
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
        write(panels, name)
        print(f"{name}: {mask.mean():.4f} of the pixels shown are flagged")


if __name__ == "__main__":
    main()
