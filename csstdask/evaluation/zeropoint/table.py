"""Evaluate predictions of zero points on tables of real exposures: ``csstdask evaluate zeropoint --table``.

The first 60 % of the nights of each campaign train, the others test. Parts of ``zeropoint_table.json``:

* ``campaigns``: errors and coverage of all methods, paired comparisons by a bootstrap of nights, and ``row_split``, the
  same methods where exposures are split at random: what the usual evaluation reports;
* ``transfer``: a campaign with 0, 1, 3 and 10 nights of its own for training, and the largest campaign's;
* ``targets``: what was asked for and what was measured;
* ``reference`` and ``article``: baselines measured independently on the same data, and the table of the AZP-RC article,
  whose data are not available.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from csstdask.core.atomic_io import sha256_file
from csstdask.core.errors import InputError
from csstdask.datasets.zeropoint_table import TRAIN_SHARE, ExposureTable, read_exposures, split_by_night, train_nights
from csstdask.evaluation.io import write_results
from csstdask.evaluation.zeropoint.table_inputs import TableInputs, table_inputs
from csstdask.evaluation.zeropoint.table_methods import METHODS, MethodSettings, Prediction, predict
from csstdask.evaluation.zeropoint.table_report import draw_figures, report_lines
from csstdask.metrics.zeropoint import (
    correlations,
    coverage,
    coverage_by_quartile,
    error_statistics,
    paired_bootstrap,
)
from csstdask.numerics.probability import WITHIN_ONE_SIGMA, WITHIN_TWO_SIGMA

log = logging.getLogger("csstdask")

Bool = npt.NDArray[np.bool_]

CLEAR = -0.1
"""Exposures above this residual of the extinction fit [mag] count as clear; a diagnostic, because it uses the truth."""
LEAST_NIGHT = 20
"""Exposures of a night that counts as a night of a campaign's own data in the transfer."""
LEAKING = ("lut", "previous", "forest_conditions", "trees_conditions", "trees", "azprc", "ours")
"""Methods that are evaluated on a split by rows too."""
TRANSFERRED = ("lut", "previous", "trees", "ours")
"""Methods of the transfer."""
LABELS = {
    "lut": "robust extinction fit by band (look-up table)",
    "previous": "exposure before of the same night, as an offset from the extinction fit",
    "kalman": "local level of the night, noise fitted to the training nights",
    "forest_conditions": "random forest, conditions only",
    "forest": "random forest, conditions and memory",
    "trees_conditions": "boosted trees, conditions only",
    "trees": "boosted trees, conditions and memory (the same inputs as ours)",
    "azprc": "AZP-RC, telemetry branch only: tables have neither images nor star lists",
    "ours": "zeropoint, conditions and memory; mean of five folds of nights and three framings of the memory",
}
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
ARTICLE = {
    "note": "AZP-RC article, table of section 5: rmse, mae [mag], pearson, failures; unrefereed, data not available",
    "lut": {"rmse": 0.041, "mae": 0.030, "pearson": 0.92, "failures": 0.038},
    "forest": {"rmse": 0.038, "mae": 0.028, "pearson": 0.94, "failures": 0.034},
    "cnn": {"rmse": 0.035, "mae": 0.025, "pearson": 0.96, "failures": 0.027},
    "azprc": {"rmse": 0.027, "mae": 0.018, "pearson": 0.98, "failures": 0.013},
}
GAIN = 0.08
"""Required gain in mean absolute error over persistence."""
COVERAGE_LIMITS = {"coverage_68": 0.05, "coverage_95": 0.03, "quartile": 0.08}
NOMINAL_COVERAGE = {"coverage_68": WITHIN_ONE_SIGMA, "coverage_95": WITHIN_TWO_SIGMA}
TRANSFER_MAE = 0.036
"""Required mean absolute error on Mosaic-3 after three nights of its own [mag]."""


@dataclass(frozen=True)
class TableSettings:
    """How much is evaluated."""

    methods: MethodSettings = field(default_factory=MethodSettings)
    transfer_folds: int = 2
    """Folds of methods in the transfer, which is repeated for each number of nights."""
    row_split: bool = True
    transfer_nights: tuple[int, ...] = (0, 1, 3, 10)
    seed: int = 1
    threads: int = 1
    """Of networks: with one, sums are in a fixed order."""


def evaluate_table(
    path: Path,
    to: Path | None = None,
    *,
    settings: TableSettings = TableSettings(),
    on_progress: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Evaluate all methods on a table of exposures.

    Parameters
    ----------
    path : Path
        Table as `read_exposures` reads it.
    to : Path, optional
        Folder for ``zeropoint_table.json``, ``zeropoint_table.md`` and, with matplotlib, figures.
    settings : TableSettings
    announce : callable
        Receives a line a method.

    Returns
    -------
    dict
        What ``zeropoint_table.json`` holds.

    Raises
    ------
    InputError
        If the table cannot be used, or no campaign has two nights.
    """
    tables = {name: table for name, table in read_exposures(path).items() if len(table.nights) > 1}
    if not tables:
        raise InputError(path, "no campaign with two nights", "nights to learn from and later ones to test")
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    started = time.perf_counter()

    def say(line: str) -> None:
        on_progress(f"{time.perf_counter() - started:5.0f} s  {line}")

    try:
        result = _evaluated(tables, settings, say)
    finally:
        torch.set_num_threads(threads)
    result = {
        "table": {"name": path.name, "sha256": sha256_file(path)},
        "command": f"csstdask evaluate zeropoint --table {path.name} --to DIR",
        **result,
    }
    if to is not None:
        write_results(to / "zeropoint_table", result, report_lines(result))
        draw_figures(result, to, on_progress=on_progress)
    return result


def _evaluated(tables: dict[str, ExposureTable], settings: TableSettings, say: Callable[[str], None]) -> dict[str, Any]:
    train = {name: split_by_night(table) for name, table in tables.items()}
    inputs = table_inputs(tables, train)
    found = _predictions(inputs, METHODS, settings, say, "", folds=settings.methods.folds)
    campaigns = {}
    for name, table in tables.items():
        rows = (inputs.campaign == name) & ~inputs.train
        campaigns[name] = {
            **_counts(table, train[name]),
            "methods": {
                method: {**_scores(inputs, one, rows, method), "training_nights": _of_training(inputs, one, name)}
                for method, one in found.items()
            },
            "paired": _paired(inputs, found, rows, settings.seed),
        }
    if settings.row_split:
        for name, scores in _row_split(tables, inputs, found, settings, say).items():
            campaigns[name]["row_split"] = scores
    clear = {name: (inputs.offset > CLEAR)[(inputs.campaign == name) & ~inputs.train] for name in tables}
    transfer = _transfer(tables, train, clear, settings, say)
    return {
        "campaigns": campaigns,
        "transfer": transfer,
        "targets": _targets(campaigns, transfer),
        "reference": REFERENCE,
        "article": ARTICLE,
        "settings": {**asdict(settings), "train_share": TRAIN_SHARE, "conditions": list(inputs.conditions)},
    }


def _predictions(
    inputs: TableInputs, methods: Sequence[str] | Mapping[str, Any], settings: TableSettings,
    say: Callable[[str], None], where: str, *, folds: int,
) -> dict[str, Prediction]:  # fmt: skip
    found = {}
    for method in methods:
        found[method] = predict(method, inputs, replace(settings.methods, folds=folds))
        rows = ~inputs.train
        error = error_statistics(found[method].value[rows], inputs.zero_point[rows])
        say(f"{where}{method}: mean absolute error {error.mae:.4f} mag of {error.n} exposures")
    return found


def _counts(table: ExposureTable, train: Bool) -> dict[str, int]:
    n_nights = len(train_nights(table.night))
    return {
        "n_train": int(train.sum()),
        "n_test": int((~train).sum()),
        "n_nights_train": n_nights,
        "n_nights_test": len(table.nights) - n_nights,
        "n_rejected": table.n_rejected,
    }


def _scores(
    inputs: TableInputs, found: Prediction, rows: Bool, method: str, is_clear: Bool | None = None
) -> dict[str, Any]:
    """Return the errors and coverage of a method on some exposures."""
    clear = rows & (inputs.offset > CLEAR if is_clear is None else is_clear)
    error = (found.value - inputs.zero_point)[rows]
    widths = found.intervals.sigma_68[rows], found.intervals.sigma_95[rows]
    return {
        "label": LABELS[method],
        "all": error_statistics(found.value[rows], inputs.zero_point[rows]).as_dict(),
        "clear": error_statistics(found.value[clear], inputs.zero_point[clear]).as_dict(),
        **coverage(error, *widths),
        "quartiles": coverage_by_quartile(error, *widths),
        # Of offsets from the extinction fit: zero points themselves differ by band and airmass.
        **correlations((found.value - inputs.level)[rows], inputs.offset[rows]),
    }


def _of_training(inputs: TableInputs, found: Prediction, campaign: str) -> dict[str, float]:
    """Return the errors on training nights by models that have not seen them: what choices were made by."""
    rows = (inputs.campaign == campaign) & inputs.train
    return error_statistics(found.value[rows], inputs.zero_point[rows]).as_dict()


def _paired(inputs: TableInputs, found: dict[str, Prediction], rows: Bool, seed: int) -> dict[str, Any]:
    """Compare ours with the others by a bootstrap of nights."""
    errors = {method: (one.value - inputs.zero_point)[rows] for method, one in found.items()}
    ours = errors.pop("ours")
    return {
        f"ours_against_{name}": paired_bootstrap(ours, other, inputs.night[rows], seed=seed).as_dict()
        for name, other in errors.items()
    }


def _row_split(
    tables: dict[str, ExposureTable], by_night: TableInputs, night_found: dict[str, Prediction],
    settings: TableSettings, say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return the errors of methods whose training exposures are drawn at random from all nights.

    Both splits are compared on the same exposures: those of the test nights that the random split does not train on.
    """
    rng = np.random.default_rng(settings.seed)
    train = {name: rng.random(len(table)) < TRAIN_SHARE for name, table in tables.items()}
    inputs = table_inputs(tables, train)
    found = _predictions(inputs, LEAKING, settings, say, "split by rows, ", folds=1)
    out: dict[str, dict[str, Any]] = {}
    for name in tables:
        rows = (inputs.campaign == name) & ~inputs.train & ~by_night.train
        clear = rows & (by_night.offset > CLEAR)
        out[name] = {
            method: {
                split: {
                    part: error_statistics(one.value[some], inputs.zero_point[some]).as_dict()
                    for part, some in (("all", rows), ("clear", clear))
                }
                for split, one in (("rows", found[method]), ("nights", night_found[method]))
            }
            for method in LEAKING
        }
    return out


def _transfer(
    tables: dict[str, ExposureTable], train: dict[str, Bool], clear: dict[str, Bool], settings: TableSettings,
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Return the scores of each campaign after a few nights of its own, and all training nights of the largest one."""
    largest = max(tables, key=lambda name: len(tables[name]))
    out: dict[str, Any] = {}
    for name, table in tables.items():
        if name == largest:
            continue
        nights, counts = np.unique(table.night[train[name]], return_counts=True)
        own = nights[counts >= LEAST_NIGHT]
        scores = {}
        for n in settings.transfer_nights:
            if n > len(own):
                continue
            # Exposures between the nights that are learnt from and the test nights are left out.
            learnt = train[name] & np.isin(table.night, own[:n])
            kept = learnt | ~train[name]
            pair = {largest: tables[largest].take(train[largest]), name: table.take(kept)}
            inputs = table_inputs(pair, {largest: np.ones(int(train[largest].sum()), dtype=bool), name: learnt[kept]})
            found = _predictions(
                inputs, TRANSFERRED, settings, say, f"{name}, {n} nights, ", folds=settings.transfer_folds
            )
            rows = (inputs.campaign == name) & ~inputs.train
            is_clear = np.zeros(len(inputs), dtype=bool)
            is_clear[rows] = clear[name]
            scores[str(n)] = {
                "n_train": int(learnt.sum()),
                "n_test": int(rows.sum()),
                "methods": {method: _scores(inputs, one, rows, method, is_clear) for method, one in found.items()},
            }
        out[name] = {"from": largest, "nights": scores}
    return out


def _targets(campaigns: dict[str, Any], transfer: dict[str, Any]) -> dict[str, Any]:
    """Return each requirement with the measured value and whether it is met."""
    out: dict[str, Any] = {}
    for name, one in campaigns.items():
        paired, ours = one["paired"], one["methods"]["ours"]
        quartiles = [abs(q[k] - NOMINAL_COVERAGE[k]) for q in ours["quartiles"] for k in NOMINAL_COVERAGE]
        gain = -paired["ours_against_previous"]["relative"]
        deviation = {k: abs(ours[k] - NOMINAL_COVERAGE[k]) for k in NOMINAL_COVERAGE} | {"quartile": max(quartiles)}
        out[name] = {
            "not_worse_than_trees": {
                "measured": paired["ours_against_trees"]["relative"], "met": paired["ours_against_trees"]["not_worse"],
            },
            "gain_over_persistence": {"asked": GAIN, "measured": gain, "met": gain >= GAIN},
            "coverage": {
                k: {"asked": limit, "measured": deviation[k], "met": deviation[k] <= limit}
                for k, limit in COVERAGE_LIMITS.items()
            },
        }  # fmt: skip
    for name, one in transfer.items():
        if "3" in one["nights"]:
            mae = one["nights"]["3"]["methods"]["ours"]["all"]["mae"]
            out[name]["mae_after_three_nights"] = {"asked": TRANSFER_MAE, "measured": mae, "met": mae <= TRANSFER_MAE}
    return out
