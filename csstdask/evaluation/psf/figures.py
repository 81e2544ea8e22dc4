"""Figures of an evaluation of PSFs, after those of the CSST-PSFNet paper.

What is left of images, and where (its figures 4 to 9), and bands beside each other (its figure 10).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.plotting import pyplot
from csstdask.evaluation.psf.tables import by_band
from csstdask.metrics.psf import Stars, shape_errors

Float = npt.NDArray[np.float64]

#: Bands in the order of their wavelengths.
_BANDS = ("NUV", "u", "g", "r", "i", "z", "y")
#: What bands are compared by: its label, whether its axis is logarithmic, and how units tell it of a method, by band.
_COMPARED: tuple[tuple[str, bool, Callable[[Sequence[Mapping[str, Any]], str], dict[str, float]]], ...] = (
    ("PSNR [dB]", False, lambda units, method: by_band(units, method, "psnr", "mean")),
    ("SD of dR/R", True, lambda units, method: by_band(units, method, "size", "sd")),
    ("SD of de1", True, lambda units, method: by_band(units, method, "e1", "sd")),
    ("SD of de2", True, lambda units, method: by_band(units, method, "e2", "sd")),
)
#: Samples about the middle of a PSF that are shown, and what its colours span, as a share of the peak and of the size.
_SHOWN, _OF_PEAK, _OF_SIZE = 32, 1e-3, 0.01


@dataclass(frozen=True)
class ResidualView:
    """How a method's PSFs look on one detector."""

    left: Float
    """(32, 32) Mean of (image - truth), peaks at 1, in half pixels about the middle."""
    x: Float
    """(n,) Of the stars [pixel]."""
    y: Float
    size: Float
    """(n,) (R - R_true) / R_true."""

    @classmethod
    def of(cls, stars: Stars, image: npt.NDArray[np.float32]) -> ResidualView:
        """Return how reconstructions of stars look."""
        found, true = (one.astype(float) / one.max(axis=(1, 2), keepdims=True) for one in (image, stars.truth))
        low = (image.shape[-1] - _SHOWN) // 2
        window = slice(low, low + _SHOWN)
        left = (found - true).mean(axis=0)[window, window]
        return cls(left, stars.x, stars.y, shape_errors(image, stars.truth)["size"])


def draw_residuals(looks: Mapping[str, Mapping[str, ResidualView]], path: Path) -> None:
    """Draw what methods leave, a column a band: mean images of it, then sizes over the detector.

    Parameters
    ----------
    looks : mapping
        By band and method.
    path : Path
        PNG
    """
    bands = list(looks)
    methods = list(dict.fromkeys(method for band in bands for method in looks[band]))
    plt = pyplot()
    shape = (2 * len(methods), len(bands))
    figure, axes = plt.subplots(*shape, figsize=(1.9 * shape[1], 1.9 * shape[0]), layout="constrained", squeeze=False)
    for row, method in enumerate(methods):
        for column, band in enumerate(bands):
            image, place = axes[2 * row, column], axes[2 * row + 1, column]
            for axis in (image, place):
                axis.set_xticks([])
                axis.set_yticks([])
            look = looks[band].get(method)
            if look is None:
                continue
            shown = image.imshow(look.left, origin="lower", cmap="RdBu_r", vmin=-_OF_PEAK, vmax=_OF_PEAK)
            dots = _scatter(place, look)
            image.set_title(f"{band}, {method}", fontsize=7)
        figure.colorbar(shown, ax=axes[2 * row, :], label="of the peak")
        figure.colorbar(dots, ax=axes[2 * row + 1, :], label="dR/R")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_bands(units: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw how far methods are off in each band: PSNR, sizes and ellipticities.

    Parameters
    ----------
    units : sequence of mapping
        Of an evaluation, each with its ``band`` and ``methods``; those of one band are averaged.
    path : Path
        PNG
    """
    found = {unit["band"] for unit in units}
    bands = [band for band in _BANDS if band in found] + sorted(found - set(_BANDS))
    plt = pyplot()
    figure, axes = plt.subplots(1, len(_COMPARED), figsize=(3.6 * len(_COMPARED), 3.2), layout="constrained")
    for axis, (label, logarithmic, quantity) in zip(axes, _COMPARED, strict=True):
        for method in dict.fromkeys(method for unit in units for method in unit["methods"]):
            values = quantity(units, method)
            places = [place for place, band in enumerate(bands) if band in values]
            axis.plot(places, [values[bands[place]] for place in places], "o:", ms=4, lw=0.5, label=method)
        axis.set_xticks(range(len(bands)), bands)
        axis.set_ylabel(label)
        if logarithmic:
            axis.set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_counts(units: Mapping[str, Mapping[str, Any]], rows: Mapping[str, str], path: Path) -> None:
    """Draw how far PSFs are off by the number of stars, for stars of several S/N, and at best.

    Parameters
    ----------
    units : mapping
        A unit by what its stars are called.
    rows : mapping
        Of methods with one star, few, all: what each is called at best.
    path : Path
        PNG
    """
    plt = pyplot()
    quantities = (("PSNR [dB]", "psnr", "mean"), ("SD of dR/R", "size", "sd"))
    figure, axes = plt.subplots(1, len(quantities), figsize=(4.2 * len(quantities), 3.4), layout="constrained")
    for axis, (label, quantity, what) in zip(axes, quantities, strict=True):
        for colour, (name, unit) in enumerate(units.items()):
            for style, methods in (("o-", rows.keys()), ("--", rows.values())):
                told = [unit["methods"][method] for method in methods if method in unit["methods"]]
                # Of single stars many are looked at, each alone.
                counts = [1, *[row["n"] for row in told[1:]]]
                values = [row[quantity][what] for row in told]
                shown = f"{name}{'' if style == 'o-' else ', bound'}"
                axis.plot(counts[: len(values)], values, style, ms=4, lw=1, color=f"C{colour}", label=shown)
        axis.set_xscale("log")
        axis.set_xlabel("stars")
        axis.set_ylabel(label)
    axes[1].set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _scatter(axis: Any, look: ResidualView) -> Any:
    return axis.scatter(look.x, look.y, c=look.size, s=3, marker="s", cmap="RdBu_r", vmin=-_OF_SIZE, vmax=_OF_SIZE)
