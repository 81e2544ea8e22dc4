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

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import InputError
from csstdask.datasets.template_bank import load_templates
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
    on_progress: Callable[[str], None] = log.info,
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
        If a part or model is unknown.
    InputError
        If the data are missing.
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"part: found {', '.join(sorted(unknown))}; wanted some of {', '.join(PARTS)}")
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
    for part in parts:
        on_progress(f"part {part}")
        if part == "held_out":
            out[part], figures[part] = evaluate_held_out(bank, cards, settings)
        elif part == "calibration":
            out[part], figures[part] = evaluate_calibration(bank, cards, settings)
        elif part == "miles":
            out[part], figures[part] = evaluate_miles(data, bank, cards, settings)
        elif part == "calspec":
            out[part], figures[part] = evaluate_calspec(data, bank, cards, main, settings)
        elif part == "kurucz":
            out[part] = evaluate_kurucz(data, cards)
        else:
            out[part] = evaluate_lamost(data, model)
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        write_atomic(to / "sed.json", (json.dumps(out, indent=1) + "\n").encode())
        from csstdask.evaluation.sed.figures import draw  # noqa: PLC0415  matplotlib is optional

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
