"""Draw the figures of an evaluation of detection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from csstdask.core.plotting import pyplot


def draw_field(result: dict[str, Any], path: Path) -> None:
    """Draw quartiles by detector, recall by charge, charges, precision-recall curves, distance and reliability.

    Parameters
    ----------
    result : dict
        Results of `field_part`.
    path : Path
        PNG file.
    """
    plt = pyplot()
    figure, axes = plt.subplots(2, 4, figsize=(20, 9), layout="constrained")
    for place, rate in ((axes[0, 0], "recall_visible"), (axes[1, 0], "precision")):
        _by_detector(place, result["by_detector"], rate)
    for name, row in result["by_charge"].items():
        axes[0, 1].semilogx(row["charge"], row["recall"], label=name)
    axes[0, 1].axvline(5, color="r", ls="--", lw=0.8)
    axes[0, 1].set(xlabel="charge of the pixel [e-]", ylabel="recall", ylim=(0, 1.02))
    charges = result["charges"]
    axes[1, 1].loglog(charges["charge"], np.maximum(charges["pixels"], 1), color="brown", label="all pixels")
    twin = axes[1, 1].twinx()
    twin.semilogx(charges["charge"], charges["share_of_tracks"], color="k", lw=0.8)
    twin.set(ylabel="share of tracks", ylim=(0, 1))
    axes[1, 1].set(xlabel="charge of the pixel [e-]", ylabel="pixels")
    for name, row in result["curves"].items():
        axes[0, 2].plot(row["recall_visible"], row["precision_off_skirt"], label=name)
        axes[1, 2].plot(row["recall"], row["precision"], label=name)
    axes[0, 2].set(xlabel="recall of visible pixels", ylabel="precision off the skirt", xlim=(0.8, 1), ylim=(0.9, 1))
    axes[1, 2].set(xlabel="recall above 5 e-", ylabel="precision", xlim=(0.5, 1), ylim=(0.7, 1))
    for name, row in result["by_distance"].items():
        axes[0, 3].plot(np.add(row["from"], 0.5), row["recall_visible"], "o-", ms=3, label=name)
    axes[0, 3].set(xscale="log", xlabel="distance from a source of S/N 20 [pixel]", ylabel="recall of visible pixels")
    for name, kinds in result["reliability"].items():
        for place, row in kinds.get("rescaled to the frame", {}).items():
            if row["ece"] is not None:
                axes[1, 3].plot(row["probability"], row["frequency"], "o-", ms=3, label=f"{name}, {place}")
    axes[1, 3].plot([0, 1], [0, 1], color="k", lw=0.5)
    axes[1, 3].set(xlabel="probability", ylabel="frequency of hits")
    for axis in (axes[0, 1], axes[0, 2], axes[0, 3], axes[1, 3]):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _by_detector(axis: Any, detectors: dict[str, Any], rate: str) -> None:
    names = list(next(iter(detectors.values())))
    for shift, name in zip(np.linspace(-0.2, 0.2, len(names)), names, strict=True):
        low, middle, high = np.array([row[name][rate] for row in detectors.values()]).T
        at = np.arange(len(detectors)) + shift
        axis.errorbar(at, middle, [middle - low, high - middle], fmt="o", ms=3, capsize=2, label=name)
    axis.set(xlabel="detector", ylabel=rate.replace("_", ", "))
    axis.set_xticks(range(len(detectors)), list(detectors))
    axis.legend(fontsize=7)


def draw_gallery(entries: Sequence[dict[str, Any]], path: Path, rows: int = 8) -> None:
    """Draw stars whose flux came out far too low: clean, hit, true difference, residual (assessment paper, figure 5).

    Parameters
    ----------
    entries : sequence of dict
        The worst first.
    path : Path
        PNG file.
    rows : int
        At most, and of one method at most half of them.
    """
    plt = pyplot()
    chosen: list[dict[str, Any]] = []
    for entry in entries:
        if sum(one["method"] == entry["method"] for one in chosen) < rows // 2 and len(chosen) < rows:
            chosen.append(entry)
    if not chosen:
        return
    names = ("clean", "hit", "cosmic ray", "residual")
    figure, axes = plt.subplots(len(chosen), 4, figsize=(8, 2.1 * len(chosen)), layout="constrained", squeeze=False)
    for line, entry in zip(axes, chosen, strict=True):
        for axis, name in zip(line, names, strict=True):
            low = entry["sky"] if name in ("clean", "hit") else 0.0
            axis.imshow(np.arcsinh((entry[name] - low) / entry["rms"]), origin="lower", cmap="gray", vmin=-3, vmax=7)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(f"{entry['method']}\nflux ratio {entry['ratio']:.2f}", fontsize=7)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)
