"""Draw the figures of an evaluation of repair, after figures 5 to 7 of the CSST rejection paper."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.plotting import pyplot
from csstdask.evaluation.inpaint.frames import MAGNITUDE_BINS
from csstdask.evaluation.inpaint.photometry_statistics import DISTANCES

_ZERO_LINE = {"color": "k", "lw": 0.5}


def draw_science(masks: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw shift and its 5th to 95th percentile over distance: a row per kind and mask, a column per magnitude.

    Parameters
    ----------
    masks : dict
        Results of `science_part`, by mask.
    path : Path
        PNG file.
    """
    rows = [(mask, kind) for mask in masks for kind in ("star", "galaxy")]
    magnitudes = sorted({one["magnitude"] for part in masks.values() for one in part["bins"]})
    if not magnitudes:
        return
    plt = pyplot()
    shape = (len(rows), len(magnitudes))
    figure, axes = plt.subplots(*shape, figsize=(4 * shape[1], 3 * shape[0]), layout="constrained", squeeze=False)
    for line, (mask, kind) in zip(axes, rows, strict=True):
        for axis, magnitude in zip(line, magnitudes, strict=True):
            bins = [one for one in masks[mask]["bins"] if (one["kind"], one["magnitude"]) == (kind, magnitude)]
            _against_distance(axis, bins)
            axis.set_title(f"{kind}, {magnitude:.0f} mag, {mask} mask", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("distance of the nearest charge [pixel]")
    for axis in axes[:, 0]:
        axis.set_ylabel("repaired - clean twin [mag]")
    _save(plt, figure, axes.flat, path)


def _against_distance(axis: Any, bins: list[dict[str, Any]]) -> None:
    if not bins:
        return
    at = [fmean(one["distance"]) if one["distance"][1] in DISTANCES else one["distance"][0] for one in bins]
    for method in bins[0]["methods"]:
        rows = [one["methods"][method] for one in bins]
        low, middle, high = (_numbers(rows, name) for name in ("shift_5", "shift", "shift_95"))
        (line,) = axis.plot(at, middle, "o-", ms=2, lw=1, label=method)
        axis.fill_between(at, low, high, color=line.get_color(), alpha=0.08)
    axis.axhline(0, **_ZERO_LINE)
    axis.set_ylim(-0.6, 0.6)


def draw_fields(part: dict[str, Any], path: Path) -> None:
    """Draw errors of magnitudes, forced and re-detected, and number counts: a row per kind.

    Parameters
    ----------
    part : dict
        Results of `fields_part`.
    path : Path
        PNG file.
    """
    plt = pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(17, 8), layout="constrained")
    for line, (kind, kinds) in zip(axes, (("star", "stars"), ("galaxy", "galaxies")), strict=True):
        for axis, (how, title) in zip(line, (("magnitude", "re-detected"), ("forced", "forced")), strict=False):
            for method, rows in part["photometry"][how][kind].items():
                at = [(row["from"] + row["to"]) / 2 for row in rows]
                low, middle, high = (_numbers(rows, name) for name in ("p5", "p50", "p95"))
                (drawn,) = axis.plot(at, middle, lw=1, label=method)
                axis.fill_between(at, low, high, color=drawn.get_color(), alpha=0.1)
            axis.axhline(0, **_ZERO_LINE)
            axis.set(xlabel="true magnitude", ylabel="measured - true [mag]", title=f"{kinds} that were hit, {title}")
            axis.set_ylim(-1, 1)
        counts = part["number_counts"][kind]
        for method, row in counts.items():
            line[2].stairs(row["counts"], MAGNITUDE_BINS, label=f"{method}, SSIM {row.get('ssim') or np.nan:.3f}")
        line[2].stairs(next(iter(counts.values()))["catalogue"], MAGNITUDE_BINS, color="k", ls="--", label="catalogue")
        line[2].set(xlabel="magnitude", ylabel=kinds, yscale="log", ylim=(0.5, None))
    _save(plt, figure, axes.flat, path)


def _numbers(rows: list[dict[str, Any]], name: str) -> npt.NDArray[np.float64]:
    """Return a column of rows; NaN for what a file holds as no number."""
    return np.array([row[name] for row in rows], dtype=np.float64)


def _save(plt: Any, figure: Any, axes: Any, path: Path) -> None:
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)
