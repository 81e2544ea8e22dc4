"""Compare the evaluation on tables of zero points with its requirements and with independent measurements."""

from __future__ import annotations

from typing import Any

from csstdask.evaluation.zeropoint import published_results
from csstdask.metrics.zeropoint import COVERAGE_LEVELS

REFERENCE = {
    "note": "measured when the table was made; rmse/mae of all, rmse/mad of clear test exposures [mag]",
    "decam_2014_16": {
        "lut": {"all": {"rmse": 0.334, "mae": 0.097}, "clear": {"rmse": 0.029, "mad": 0.0265}},
        "previous": {"all": {"rmse": 0.149, "mae": 0.043}, "clear": {"rmse": 0.044, "mad": 0.0109}},
        "trees_conditions": {"all": {"rmse": 0.377, "mae": 0.129}, "clear": {"rmse": 0.207, "mad": 0.0378}},
        "trees": {"all": {"rmse": 0.136, "mae": 0.037}, "clear": {"rmse": 0.036, "mad": 0.0100}},
        "noise_floor": 0.0061,
    },
    "mosaic3_2015_16": {
        "lut": {"all": {"rmse": 0.199, "mae": 0.057}, "clear": {"rmse": 0.031, "mad": 0.0268}},
        "previous": {"all": {"rmse": 0.131, "mae": 0.039}, "clear": {"rmse": 0.039, "mad": 0.0221}},
        "trees_conditions": {"all": {"rmse": 0.189, "mae": 0.061}, "clear": {"rmse": 0.054, "mad": 0.0311}},
        "trees": {"all": {"rmse": 0.110, "mae": 0.033}, "clear": {"rmse": 0.032, "mad": 0.0197}},
        "noise_floor": 0.0165,
    },
}
"""Baselines that were measured independently on the same data."""
PUBLISHED = {
    "note": "AZP-RC article, table of section 5: rmse, mae [mag], pearson, failures; unrefereed, data not available",
    **{
        "cnn" if name == "image CNN" else name: {key: value for key, value in row.items() if key != "ms"}
        for name, row in published_results.ARTICLE.items()
    },
}
MIN_GAIN = 0.08
"""Smallest relative gain in mean absolute error over persistence."""
MAX_COVERAGE_ERROR = {"coverage_68": 0.05, "coverage_95": 0.03, "quartile": 0.08}
"""Largest deviation from the nominal coverage, of all exposures and in each quartile of sigma."""
MAX_TRANSFER_MAE = 0.036
"""Largest mean absolute error of a campaign after three of its nights [mag]."""


def compare_with_targets(campaigns: dict[str, Any], transfer: dict[str, Any]) -> dict[str, Any]:
    """Return each requirement with the measured value and whether it is met.

    Parameters
    ----------
    campaigns, transfer : dict
        Parts of ``zeropoint_table.json``.
    """
    nominal = {key: level for key, (level, _) in COVERAGE_LEVELS.items()}
    out: dict[str, Any] = {}
    for name, campaign in campaigns.items():
        paired, ours = campaign["paired"], campaign["methods"]["ours"]
        quartiles = [abs(quartile[key] - nominal[key]) for quartile in ours["quartiles"] for key in nominal]
        gain = -paired["ours_against_previous"]["relative"]
        deviation = {key: abs(ours[key] - nominal[key]) for key in nominal} | {"quartile": max(quartiles)}
        out[name] = {
            "not_worse_than_trees": {
                "measured": paired["ours_against_trees"]["relative"], "met": paired["ours_against_trees"]["not_worse"],
            },
            "gain_over_persistence": {"asked": MIN_GAIN, "measured": gain, "met": gain >= MIN_GAIN},
            "coverage": {
                key: {"asked": limit, "measured": deviation[key], "met": deviation[key] <= limit}
                for key, limit in MAX_COVERAGE_ERROR.items()
            },
        }  # fmt: skip
    for name, campaign in transfer.items():
        if "3" in campaign["nights"]:
            mae = campaign["nights"]["3"]["methods"]["ours"]["all"]["mae"]
            met = mae <= MAX_TRANSFER_MAE
            out[name]["mae_after_three_nights"] = {"asked": MAX_TRANSFER_MAE, "measured": mae, "met": met}
    return out
