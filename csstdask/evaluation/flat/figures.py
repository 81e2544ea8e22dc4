"""Figures of the evaluation of flat-field cubes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from csstdask.instrument import load_instrument
from csstdask.mock import Recipe
from csstdask.mock.slitless_camera import true_flat
from csstdask.pipeline.calibrations import current_flat


def draw_flat_figures(result: dict[str, Any], recipe: Recipe, folder: Path) -> list[Path]:
    """Draw slices of cubes next to the truth, and precision against the number of stars."""
    import matplotlib as mpl  # noqa: PLC0415

    with mpl.rc_context({"figure.dpi": 100, "savefig.bbox": "tight"}):
        return [_slices(recipe, folder), _precision(result, folder)]


def _slices(recipe: Recipe, folder: Path) -> Path:
    """Draw flat, truth and residual over quoted error of one detector of each band, in mid-band."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    instrument = load_instrument(recipe.instrument)
    chosen: dict[str, int] = {}
    for detector in recipe.detectors:
        chosen.setdefault(str(instrument.detector(detector).band), detector)
    figure = Figure(figsize=(9.6, 1 + 1.7 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    ny, nx = recipe.frame_shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 80), np.linspace(0, ny - 1, 40))
    for line, (band, detector) in zip(axes, sorted(chosen.items()), strict=True):
        flat = current_flat(folder / f"{recipe.name}-run.zarr", detector)
        if flat is None:
            continue
        wavelength = float(np.median(flat.wavelength))
        found = flat.evaluate(x, y, wavelength)
        truth = true_flat(recipe, instrument, detector, x, y, wavelength)
        sigma = np.sqrt(flat.variance(x, y, wavelength))
        extent = (0, nx, 0, ny)
        limits = {"vmin": float(truth.min()), "vmax": float(truth.max())}
        titles = (f"{band} {detector}, {wavelength:.0f} Å: flat", "truth", "residual / quoted error")
        images = (found, truth, (found - truth) / sigma)
        styles: tuple[dict[str, Any], ...] = (limits, limits, {"vmin": -3, "vmax": 3, "cmap": "RdBu"})
        for axis, title, image, style in zip(line, titles, images, styles, strict=True):
            shown = axis.imshow(image, origin="lower", extent=extent, aspect="auto", **style)
            axis.set_title(title, fontsize=8)
            axis.tick_params(labelsize=7)
            figure.colorbar(shown, ax=axis).ax.tick_params(labelsize=7)
    path = folder / "flat-slices.png"
    figure.savefig(path)
    return path


def _precision(result: dict[str, Any], folder: Path) -> Path:
    """Draw the precision of a cube against the number of stars, for SED errors of 1 %."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    numbers = {int(n): values for n, values in result["number_of_stars"].items()}
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    n = np.array(sorted(numbers))
    for name, label in (("scatter", "whole detector"), ("centre", "centre"), ("corner", "corners")):
        axis.loglog(n, [numbers[k][name] for k in n], "o-", label=label)
    axis.loglog(n, 0.01 * np.sqrt(6 / n), "k:", label=r"$\sigma\,\sqrt{6/N}$")
    axis.set_xlabel("stars")
    axis.set_ylabel("error of the flat for SED errors of 1 %")
    axis.legend(fontsize=8)
    path = folder / "flat-precision.png"
    figure.savefig(path)
    return path
