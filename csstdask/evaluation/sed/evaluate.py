"""Evaluate SED networks, for ``csstdask evaluate sed``.

Parts of ``sed.json``:

* ``held_out``: errors on synthetic stars of test cells of (Teff, log g, [M/H]), by band and signal-to-noise ratio;
* ``calibration``: coverage of the quoted errors, on the same cells and on new stars of the training cells;
* ``miles``: MILES test stars (split by star);
* ``calspec``: CALSPEC stars, each with a correction that was fitted without it (leave-one-out);
* ``kurucz``: the Kurucz standards of SDSS, between the nodes of the templates;
* ``lamost``: LAMOST spectra: how many are in the domain, and the size of the quoted errors.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from csstdask.core.errors import InputError
from csstdask.datasets.template_bank import load_templates
from csstdask.evaluation.runner import (
    Measurement,
    Output,
    ProgressCallback,
    Section,
    run_evaluation,
    select_parts,
)
from csstdask.evaluation.sed.real import evaluate_calspec, evaluate_lamost, evaluate_miles
from csstdask.evaluation.sed.settings import EvaluationSettings
from csstdask.evaluation.sed.synthetic import evaluate_calibration, evaluate_held_out, evaluate_kurucz
from csstdask.flux.spectral_grids import (
    BANDS,
)
from csstdask.nn.models import find_card

log = logging.getLogger("csstdask")

PARTS = ("held_out", "calibration", "miles", "calspec", "kurucz", "lamost")


def evaluate_sed(
    data: Path,
    to: Path | None = None,
    *,
    model: str = "default",
    compare_with: Sequence[str] = ("uaranet",),
    parts: Sequence[str] = PARTS,
    settings: EvaluationSettings | None = None,
    on_progress: ProgressCallback = log.info,
) -> dict[str, Any]:
    """Evaluate SED networks.

    Parameters
    ----------
    data : Path
        Folder of spectral libraries.
    to : Path, optional
        Folder for ``sed.json`` and figures.
    model : str
        Name of the model, or path of its card.
    compare_with : sequence of str
        Other models to evaluate on the same spectra.
    parts : sequence of str
        Parts to evaluate, of `PARTS`.
    settings : EvaluationSettings, optional
        Size of the evaluation.
    on_progress : callable
        Receives one line for each part.

    Returns
    -------
    dict
        Content of ``sed.json``.

    Raises
    ------
    ValueError
        If a model is unknown.
    InputError
        If a part is unknown, or the data are absent.
    """
    chosen = select_parts(parts, PARTS)
    if not data.is_dir():
        raise InputError(data, "no such folder", "a folder of spectral libraries (--data)")
    cards = {card.name: card for card in (find_card("sed", one) for one in (model, *compare_with))}
    main = next(iter(cards.values()))
    settings = settings or EvaluationSettings()
    bank = load_templates(data)
    out: dict[str, Any] = {
        "data": "DESI templates + ATLAS9 (BOSZ is not available)",
        "models": {name: {"sha256": card.sha256, "metrics": card.metrics} for name, card in cards.items()},
    }
    figures: dict[str, Any] = {}

    def measure(part: str) -> Measurement:
        if part == "kurucz":
            return Measurement(evaluate_kurucz(data, cards))
        if part == "lamost":
            return Measurement(evaluate_lamost(data, model))
        if part == "calspec":
            result, figures[part] = evaluate_calspec(data, bank, cards, main, settings)
        elif part == "miles":
            result, figures[part] = evaluate_miles(data, bank, cards, settings)
        else:
            evaluate = evaluate_held_out if part == "held_out" else evaluate_calibration
            result, figures[part] = evaluate(bank, cards, settings)
        return Measurement(result)

    sections = (Section((part,), partial(measure, part), title=f"part {part}") for part in chosen)
    run_evaluation(sections, Output(to, "sed"), out, on_progress=on_progress)
    if to is not None:
        from csstdask.evaluation.sed.figures import draw  # noqa: PLC0415  only figures need matplotlib

        for path in draw(figures, to):
            on_progress(f"figure {path}")
    return out


def summary_lines(found: dict[str, Any]) -> list[str]:
    """Format the results as the lines that ``csstdask evaluate sed`` prints."""
    lines = []
    for snr, methods in found.get("held_out", {}).get("errors", {}).items():
        for name, bands in methods.items():
            errors = "  ".join(f"{band} {bands[band]['rms']:.4f}" for band in BANDS)
            lines.append(f"held-out cells, SNR {snr:>3}  {name:<18} {errors}")
    for cells, models in found.get("calibration", {}).items():
        for name, one in models.items() if isinstance(models, dict) else ():
            every = one["all"]
            lines.append(
                f"calibration, {cells:<15} {name:<10} KS {every['ks']:.3f}  68 %: {100 * every['coverage_68']:.1f}  "
                f"95 %: {100 * every['coverage_95']:.1f}  cells failed {one['cells']['failed']}/{one['cells']['tests']}"
            )
    for name, values in found.get("miles", {}).get("cleaned", {}).items():
        lines.append(f"MILES, cleaned  {name:<24} " + "  ".join(f"{value:.3f}" for value in values))
    for name, bands in found.get("calspec", {}).get("errors", {}).items():
        lines.append(f"CALSPEC         {name:<24} " + "  ".join(f"{band} {bands[band]['rms']:.4f}" for band in BANDS))
    return lines
