"""Figures of an evaluation of PSFs, after those of the CSST-PSFNet paper.

Residual images and size errors over the detector (its figures 4 to 9), and a comparison of bands (its figure 10).
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
#: Quantities by which bands are compared: label, whether the axis is logarithmic, and values by band of a method.
_COMPARED: tuple[tuple[str, bool, Callable[[Sequence[Mapping[str, Any]], str], dict[str, float]]], ...] = (
    ("PSNR [dB]", False, lambda units, method: by_band(units, method, "psnr", "mean")),
    ("SD of dR/R", True, lambda units, method: by_band(units, method, "size", "sd")),
    ("SD of de1", True, lambda units, method: by_band(units, method, "e1", "sd")),
    ("SD of de2", True, lambda units, method: by_band(units, method, "e2", "sd")),
)
#: Width of the part of a PSF that is shown [sample].
_SHOWN = 32
#: Range of the colours of residual images, as a share of the peak.
_PEAK_RANGE = 1e-3
#: Range of the colours of relative size errors.
_SIZE_RANGE = 0.01


@dataclass(frozen=True)
class ResidualView:
    """Residuals of the PSFs of a method on one detector."""

    residual: Float
    """(32, 32) Mean of (image - truth), peaks at 1, at half-pixel sampling about the centre."""
    x: Float
    """(n,) Position of the stars [pixel]."""
    y: Float
    size: Float
    """(n,) (R - R_true) / R_true."""

    @classmethod
    def of(cls, stars: Stars, image: npt.NDArray[np.float32]) -> ResidualView:
        """Return the residuals of reconstructed PSFs."""
        found, true = (one.astype(float) / one.max(axis=(1, 2), keepdims=True) for one in (image, stars.truth))
        low = (image.shape[-1] - _SHOWN) // 2
        window = slice(low, low + _SHOWN)
        residual = (found - true).mean(axis=0)[window, window]
        return cls(residual, stars.x, stars.y, shape_errors(image, stars.truth)["size"])


def draw_residuals(looks: Mapping[str, Mapping[str, ResidualView]], path: Path) -> None:
    """Draw the residuals of methods, one column per band: mean images, then size errors over the detector.

    Parameters
    ----------
    looks : mapping
        Residuals by band and method.
    path : Path
        PNG file to write.
    """
    bands = list(looks)
    methods = list(dict.fromkeys(method for band in bands for method in looks[band]))
    plt = pyplot()
    shape = (2 * len(methods), len(bands))
    figure, axes = plt.subplots(*shape, figsize=(1.9 * shape[1], 1.9 * shape[0]), layout="constrained", squeeze=False)
    for row, method in enumerate(methods):
        for column, band in enumerate(bands):
            image, position = axes[2 * row, column], axes[2 * row + 1, column]
            for axis in (image, position):
                axis.set_xticks([])
                axis.set_yticks([])
            view = looks[band].get(method)
            if view is None:
                continue
            shown = image.imshow(view.residual, origin="lower", cmap="RdBu_r", vmin=-_PEAK_RANGE, vmax=_PEAK_RANGE)
            dots = _scatter(position, view)
            image.set_title(f"{band}, {method}", fontsize=7)
        figure.colorbar(shown, ax=axes[2 * row, :], label="share of the peak")
        figure.colorbar(dots, ax=axes[2 * row + 1, :], label="dR/R")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_bands(units: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the errors of methods in each band: PSNR, sizes and ellipticities.

    Parameters
    ----------
    units : sequence of mapping
        Units of an evaluation with ``band`` and ``methods``; those of one band are averaged.
    path : Path
        PNG file to write.
    """
    found = {unit["band"] for unit in units}
    bands = [band for band in _BANDS if band in found] + sorted(found - set(_BANDS))
    plt = pyplot()
    figure, axes = plt.subplots(1, len(_COMPARED), figsize=(3.6 * len(_COMPARED), 3.2), layout="constrained")
    for axis, (label, logarithmic, quantity) in zip(axes, _COMPARED, strict=True):
        for method in dict.fromkeys(method for unit in units for method in unit["methods"]):
            values = quantity(units, method)
            columns = [column for column, band in enumerate(bands) if band in values]
            axis.plot(columns, [values[bands[column]] for column in columns], "o:", ms=4, lw=0.5, label=method)
        axis.set_xticks(range(len(bands)), bands)
        axis.set_ylabel(label)
        if logarithmic:
            axis.set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_counts(units: Mapping[str, Mapping[str, Any]], rows: Mapping[str, str], path: Path) -> None:
    """Draw the errors of PSFs by number of stars, for stars of several S/N, and the Cramer-Rao bound.

    Parameters
    ----------
    units : mapping
        A unit for each label of its stars.
    rows : mapping
        Name of the bound for each method, with one star, few and all.
    path : Path
        PNG file to write.
    """
    plt = pyplot()
    quantities = (("PSNR [dB]", "psnr", "mean"), ("SD of dR/R", "size", "sd"))
    figure, axes = plt.subplots(1, len(quantities), figsize=(4.2 * len(quantities), 3.4), layout="constrained")
    for axis, (label, quantity, what) in zip(axes, quantities, strict=True):
        for colour, (name, unit) in enumerate(units.items()):
            for style, methods in (("o-", rows.keys()), ("--", rows.values())):
                results = [unit["methods"][method] for method in methods if method in unit["methods"]]
                # Single stars are reconstructed one by one: n is their number, not that of the stars in a fit.
                counts = [1, *[row["n"] for row in results[1:]]]
                values = [row[quantity][what] for row in results]
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


def _scatter(axis: Any, view: ResidualView) -> Any:
    return axis.scatter(
        view.x, view.y, c=view.size, s=3, marker="s", cmap="RdBu_r", vmin=-_SIZE_RANGE, vmax=_SIZE_RANGE
    )
