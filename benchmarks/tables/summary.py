"""The results table of the README: one row per task."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import psf
from committed import load, percent, table

PAGES = "docs/performance"


def detection() -> list[str]:
    """Return precision and recall of detection on 18 detectors of a mock survey."""
    _, result = next(iter(load("cosmicray_evaluation")["field"].items()))

    def rates(method: str) -> str:
        row = result["pooled"][method]
        return f"{percent(row['recall'])} %, {percent(row['precision'])} %"

    return ["cosmic rays", "recall above 5 e-, precision", rates("network"), f"deepCR retrained: {rates('deepcr')}"]


def repair() -> list[str]:
    """Return the errors of repaired pixels of stars in four real frames."""
    rows = load("repair_real")["rows"]
    errors = {
        method: [row["rms_over_error"] for row in rows if row["method"] == method]
        for method in ("frame's PSF", "median")
    }
    ours, median = (f"{min(one):.1f} to {max(one):.1f}" for one in errors.values())
    return ["repair of hit stars", "rms error / noise, four real frames", ours, f"median filter: {median}"]


def reconstruction() -> list[str]:
    """Return the PSNR of PSFs of a telescope that no model has learnt from, mean over bands."""
    bands = {unit["band"]: unit["methods"] for unit in load("psf")["recipes"]["psf-dataset2"]}
    ours, psfex = (
        fmean(methods[name]["psnr"]["mean"] for methods in bands.values()) for name in (psf.ALL_STARS, psf.PSFEX)
    )
    return ["PSF of an unknown telescope", "PSNR, mean of seven bands", f"{ours:.1f} dB", f"PSFEx: {psfex:.1f} dB"]


def flat() -> list[str]:
    """Return the errors of flat-field cubes relative to the Cramer-Rao bound."""
    bands = load("flat_evaluation")["end_to_end"]["bands"].values()
    errors = [one["error"] / one["bound"] for one in bands]
    return [
        "flat-field cube from slitless spectra",
        "rms error / Cramér-Rao bound",
        f"{min(errors):.2f} to {max(errors):.2f}",
        "1 (the bound)",
    ]


def sed() -> list[str]:
    """Return the errors of SEDs in cells of stellar parameters that no training saw, at S/N 20."""
    methods = load("sed")["held_out"]["errors"]["20"]

    def errors(name: str) -> str:
        return ", ".join(f"{100 * methods[name][band]['rms']:.1f}" for band in ("GU", "GV", "GI")) + " %"

    return ["SED from a spectrum, S/N 20", "rms error in GU, GV, GI", errors("sed"), f"UaRA-net: {errors('uaranet')}"]


def zero_points() -> list[str]:
    """Return the errors of zero points of two real cameras on unseen nights."""
    campaigns: list[dict[str, Any]] = list(load("zeropoint_table")["campaigns"].values())

    def errors(method: str) -> str:
        return ", ".join(f"{1000 * one['methods'][method]['all']['mae']:.1f}" for one in campaigns) + " mmag"

    return [
        "zero point of an unseen night",
        "mean error, DECam, Mosaic-3",
        errors("ours"),
        f"boosted trees: {errors('trees')}",
    ]


def resume() -> list[str]:
    """Return how runs that were killed at random moments differ from uninterrupted ones."""
    trials = load("resume")["trials"]
    kills = sum(row["kills"] for row in trials)
    differences = sum(len(row["differences_from_uninterrupted"]) for row in trials)
    return [f"resume after {kills} SIGKILLs", "differing arrays and tables", str(differences), ""]


ROWS = {
    "detection": detection,
    "repair": repair,
    "psf": reconstruction,
    "flux": flat,
    "sed": sed,
    "zero-points": zero_points,
    "engine": resume,
}


def summary() -> str:
    """Return one row per task, with a link to the page of its figures."""
    rows = []
    for page, make in ROWS.items():
        task, *cells = make()
        rows.append([f"[{task}]({PAGES}/{page}.md)", *cells])
    return table(["task", "metric", "csstdask", "best alternative"], rows)
