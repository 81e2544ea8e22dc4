"""Evaluate predictions of zero points on tables of real exposures: ``csstdask evaluate zeropoint --table``.

The first 60 % of the nights of each campaign are for training, the others for the test. Parts of
``zeropoint_table.json``:

* ``campaigns``: errors and coverage of all methods, paired comparisons by a bootstrap of nights, and ``row_split``, the
  same methods with exposures split at random, as in most published evaluations;
* ``transfer``: a campaign with 0, 1, 3 and 10 of its nights for training, in addition to those of the largest one;
* ``targets``: requirements with the measured values;
* ``reference`` and ``article``: baselines that were measured independently on the same data, and the table of the
  AZP-RC article, whose data are not public.
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
from csstdask.datasets.zeropoint_table import (
    TRAIN_FRACTION,
    ExposureTable,
    read_exposures,
    split_by_night,
    train_nights,
)
from csstdask.evaluation.io import write_results
from csstdask.evaluation.zeropoint.table_inputs import TableInputs, table_inputs
from csstdask.evaluation.zeropoint.table_methods import METHODS, MethodSettings, Prediction, predict
from csstdask.evaluation.zeropoint.table_report import draw_figures, report_lines
from csstdask.evaluation.zeropoint.table_targets import PUBLISHED, REFERENCE, compare_with_targets
from csstdask.metrics.zeropoint import (
    correlations,
    coverage,
    coverage_by_quartile,
    error_statistics,
    paired_bootstrap,
)

log = logging.getLogger("csstdask")

Bool = npt.NDArray[np.bool_]
ProgressCallback = Callable[[str], None]

CLEAR = -0.1
"""Residual of the extinction fit above which an exposure counts as clear [mag]; a diagnostic, as it uses the truth."""
MIN_EXPOSURES_PER_NIGHT = 20
"""Exposures from which a night counts as one of the campaign's own in the transfer."""
ROW_SPLIT_METHODS = ("lut", "previous", "forest_conditions", "trees_conditions", "trees", "azprc", "ours")
"""Methods that are also evaluated with a split by rows."""
TRANSFER_METHODS = ("lut", "previous", "trees", "ours")
"""Methods of the transfer."""
LABELS = {
    "lut": "robust extinction fit by band (look-up table)",
    "previous": "previous exposure of the same night, as an offset from the extinction fit",
    "kalman": "local level of the night, noise fitted to the training nights",
    "forest_conditions": "random forest, conditions only",
    "forest": "random forest, conditions and memory",
    "trees_conditions": "boosted trees, conditions only",
    "trees": "boosted trees, conditions and memory (the same inputs as ours)",
    "azprc": "AZP-RC, telemetry branch only: tables have neither images nor star lists",
    "ours": "zeropoint, conditions and memory; mean of five folds of nights and three framings of the memory",
}


@dataclass(frozen=True)
class TableSettings:
    """Settings of the evaluation."""

    methods: MethodSettings = field(default_factory=MethodSettings)
    """Settings of the methods."""
    transfer_folds: int = 2
    """Folds of the methods in the transfer, which is repeated for each number of nights."""
    row_split: bool = True
    """Whether the split by rows is evaluated."""
    transfer_nights: tuple[int, ...] = (0, 1, 3, 10)
    """Numbers of nights in the transfer."""
    seed: int = 1
    """Seed of the bootstrap and of the split by rows."""
    threads: int = 1
    """Threads of networks; with one, sums are in a fixed order."""


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
        Table of exposures; see `read_exposures`.
    to : Path, optional
        Folder for ``zeropoint_table.json``, ``zeropoint_table.md`` and, with matplotlib, figures.
    settings : TableSettings
        Settings of the evaluation.
    on_progress : callable
        Receives one line per method.

    Returns
    -------
    dict
        Content of ``zeropoint_table.json``.

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

    def report(line: str) -> None:
        on_progress(f"{time.perf_counter() - started:5.0f} s  {line}")

    try:
        result = _evaluate(tables, settings, report)
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


def _evaluate(tables: dict[str, ExposureTable], settings: TableSettings, report: ProgressCallback) -> dict[str, Any]:
    """Evaluate campaigns, split by rows and transfer."""
    train = {name: split_by_night(table) for name, table in tables.items()}
    inputs = table_inputs(tables, train)
    predictions = _predict_all(inputs, METHODS, settings, report, "", folds=settings.methods.folds)
    campaigns = {}
    for name, table in tables.items():
        rows = (inputs.campaign == name) & ~inputs.train
        campaigns[name] = {
            **_counts(table, train[name]),
            "methods": {
                method: {
                    **_scores(inputs, prediction, rows, method),
                    "training_nights": _training_errors(inputs, prediction, name),
                }
                for method, prediction in predictions.items()
            },
            "paired": _compare_paired(inputs, predictions, rows, settings.seed),
        }
    if settings.row_split:
        for name, scores in _row_split(tables, inputs, predictions, settings, report).items():
            campaigns[name]["row_split"] = scores
    clear = {name: (inputs.offset > CLEAR)[(inputs.campaign == name) & ~inputs.train] for name in tables}
    transfer = _transfer(tables, train, clear, settings, report)
    return {
        "campaigns": campaigns,
        "transfer": transfer,
        "targets": compare_with_targets(campaigns, transfer),
        "reference": REFERENCE,
        "article": PUBLISHED,
        "settings": {**asdict(settings), "train_share": TRAIN_FRACTION, "conditions": list(inputs.conditions)},
    }


def _predict_all(
    inputs: TableInputs, methods: Sequence[str] | Mapping[str, Any], settings: TableSettings,
    report: ProgressCallback, where: str, *, folds: int,
) -> dict[str, Prediction]:  # fmt: skip
    """Predict by several methods, and report their errors on the test exposures."""
    predictions = {}
    for method in methods:
        predictions[method] = predict(method, inputs, replace(settings.methods, folds=folds))
        rows = ~inputs.train
        error = error_statistics(predictions[method].value[rows], inputs.zero_point[rows])
        report(f"{where}{method}: mean absolute error {error.mae:.4f} mag of {error.n} exposures")
    return predictions


def _counts(table: ExposureTable, train: Bool) -> dict[str, int]:
    """Return the numbers of exposures and nights of a campaign."""
    n_nights = len(train_nights(table.night))
    return {
        "n_train": int(train.sum()),
        "n_test": int((~train).sum()),
        "n_nights_train": n_nights,
        "n_nights_test": len(table.nights) - n_nights,
        "n_rejected": table.n_rejected,
    }


def _scores(
    inputs: TableInputs, prediction: Prediction, rows: Bool, method: str, is_clear: Bool | None = None
) -> dict[str, Any]:
    """Return errors and coverage of a method for some exposures."""
    clear = rows & (inputs.offset > CLEAR if is_clear is None else is_clear)
    error = (prediction.value - inputs.zero_point)[rows]
    widths = prediction.intervals.sigma_68[rows], prediction.intervals.sigma_95[rows]
    return {
        "label": LABELS[method],
        "all": error_statistics(prediction.value[rows], inputs.zero_point[rows]).as_dict(),
        "clear": error_statistics(prediction.value[clear], inputs.zero_point[clear]).as_dict(),
        **coverage(error, *widths),
        "quartiles": coverage_by_quartile(error, *widths),
        # Correlations of offsets from the extinction fit: zero points themselves differ by band and airmass.
        **correlations((prediction.value - inputs.level)[rows], inputs.offset[rows]),
    }


def _training_errors(inputs: TableInputs, prediction: Prediction, campaign: str) -> dict[str, float]:
    """Return the cross-validated errors on training nights, by which choices were made."""
    rows = (inputs.campaign == campaign) & inputs.train
    return error_statistics(prediction.value[rows], inputs.zero_point[rows]).as_dict()


def _compare_paired(inputs: TableInputs, predictions: dict[str, Prediction], rows: Bool, seed: int) -> dict[str, Any]:
    """Compare our method with the others by a bootstrap of nights."""
    errors = {name: (prediction.value - inputs.zero_point)[rows] for name, prediction in predictions.items()}
    ours = errors.pop("ours")
    return {
        f"ours_against_{name}": paired_bootstrap(ours, other, inputs.night[rows], seed=seed).as_dict()
        for name, other in errors.items()
    }


def _row_split(
    tables: dict[str, ExposureTable], by_night: TableInputs, night_predictions: dict[str, Prediction],
    settings: TableSettings, report: ProgressCallback,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return the errors of methods with training exposures drawn at random from all nights.

    Both splits are compared on the same exposures: those of the test nights outside the training of the random split.
    """
    rng = np.random.default_rng(settings.seed)
    train = {name: rng.random(len(table)) < TRAIN_FRACTION for name, table in tables.items()}
    inputs = table_inputs(tables, train)
    predictions = _predict_all(inputs, ROW_SPLIT_METHODS, settings, report, "split by rows, ", folds=1)
    out: dict[str, dict[str, Any]] = {}
    for name in tables:
        rows = (inputs.campaign == name) & ~inputs.train & ~by_night.train
        clear = rows & (by_night.offset > CLEAR)
        out[name] = {
            method: {
                split: {
                    part: error_statistics(prediction.value[subset], inputs.zero_point[subset]).as_dict()
                    for part, subset in (("all", rows), ("clear", clear))
                }
                for split, prediction in (("rows", predictions[method]), ("nights", night_predictions[method]))
            }
            for method in ROW_SPLIT_METHODS
        }
    return out


def _transfer(
    tables: dict[str, ExposureTable], train: dict[str, Bool], clear: dict[str, Bool], settings: TableSettings,
    report: ProgressCallback,
) -> dict[str, Any]:  # fmt: skip
    """Return the scores of each campaign after a few of its nights and all training nights of the largest one."""
    largest = max(tables, key=lambda name: len(tables[name]))
    out: dict[str, Any] = {}
    for name, table in tables.items():
        if name == largest:
            continue
        nights, counts = np.unique(table.night[train[name]], return_counts=True)
        own = nights[counts >= MIN_EXPOSURES_PER_NIGHT]
        scores = {}
        for n in settings.transfer_nights:
            if n > len(own):
                continue
            # Exposures between these nights and the test nights are left out.
            own_train = train[name] & np.isin(table.night, own[:n])
            kept = own_train | ~train[name]
            pair = {largest: tables[largest].take(train[largest]), name: table.take(kept)}
            inputs = table_inputs(
                pair, {largest: np.ones(int(train[largest].sum()), dtype=bool), name: own_train[kept]}
            )
            predictions = _predict_all(
                inputs, TRANSFER_METHODS, settings, report, f"{name}, {n} nights, ", folds=settings.transfer_folds
            )
            rows = (inputs.campaign == name) & ~inputs.train
            is_clear = np.zeros(len(inputs), dtype=bool)
            is_clear[rows] = clear[name]
            scores[str(n)] = {
                "n_train": int(own_train.sum()),
                "n_test": int(rows.sum()),
                "methods": {
                    method: _scores(inputs, prediction, rows, method, is_clear)
                    for method, prediction in predictions.items()
                },
            }
        out[name] = {"from": largest, "nights": scores}
    return out
