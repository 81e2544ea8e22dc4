"""Measure accuracy and speed of the PSF reconstruction against PSFEx and CSST-PSFNet, on the same stamps.

Each detector has about 900 stars, at S/N 100 by default; two detectors run at a time, with one thread each. The PSFs
are those of the paper's telescope in each band (`psf-dataset2`); the same, blurred by 2, 5 and 10 % (`psf-dataset3`);
another telescope in g (`psf-newoptics`), at S/N 30 to 600; and eight optical states (`psf-epochs`). PSFEx is compared
at S/N 100 only. ``python benchmarks/psf.py`` (two hours) writes ``results/psf.json`` and figures; an interrupted
benchmark resumes. Results of PSFEx for the same stars and settings are kept when our model changes. ``--quick`` runs
one detector of two, without PSFEx. PSFEx: Debian, ``apt-get install psfex``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import RESULTS, save
from tables.committed import load

from csstdask.evaluation.io import round_floats
from csstdask.evaluation.psf.evaluate import PARTS, by_snr, evaluate_psf
from csstdask.evaluation.psf.figures import draw_bands, draw_counts
from csstdask.evaluation.psf.measure import BOUND_OF, PSFEX, PSFEX_SETTINGS
from csstdask.nn.models import find_card

STORES = Path(__file__).parent.parent / "stores"
G = (8,)
#: One of each band: those that `psfnet` has learnt.
BANDS = (12, 8, 7, 6, 14, 9, 11)
#: Part, detectors, whether PSFEx is run, and the models compared with.
ASKED = (
    ("nodes", BANDS, True, ("psfnet",)),
    ("newoptics", G, True, ("psfnet", "empirical")),
    ("blurred", BANDS, True, ("psfnet",)),
    ("epochs", G, True, ("psfnet",)),
    ("snr", G, False, ()),
)
WORKERS = 2
QUICK = (("nodes", G, False, ()), ("newoptics", G, False, ()))
#: Images of residuals to keep, by part.
LOOKS = {"nodes": "psf-dataset2.png", "blurred": "psf-dataset3.png"}


def main() -> None:
    quick = "--quick" in sys.argv
    card = find_card("psf", "default")
    measured_with = {"identity": card.identity, "version": card.version, "psfex": PSFEX_SETTINGS}
    kept = load("psf") if not quick and (RESULTS / "psf.json").is_file() else {}
    peers = _of_psfex(kept)
    if kept.get("measured_with") != measured_with:
        kept = {}
    results, asked = kept.get("recipes", {}), kept.get("asked", [])
    with tempfile.TemporaryDirectory() as folder:
        for part, detectors, psfex, others in QUICK if quick else ASKED:
            if [part, list(detectors)] in asked:
                continue
            known = {detector for title, _, detector in peers if title == PARTS[part]} >= set(detectors)
            found = evaluate_psf(
                to=Path(folder), recipes=STORES, parts=(part,), foreign=False, psfex=psfex and not known,
                compare_with=others, workers=WORKERS, on_progress=print, detectors=detectors,
            )  # fmt: skip
            for title, units in found["recipes"].items():
                for unit in units:
                    unit["methods"] |= peers.get((title, unit["exposure"], unit["detector"]), {})
                results.setdefault(title, []).extend(round_floats(units))
            asked.append([part, list(detectors)])
            if quick:
                continue
            save("psf", {
                "model": f"{found['model']} {found['version']}", "measured_with": measured_with, "asked": asked,
                "recipes": results,
            })  # fmt: skip
            if part in LOOKS:
                shutil.copy(Path(folder) / LOOKS[part], RESULTS / LOOKS[part])
            if part == "nodes":
                draw_bands(results["psf-dataset2"], RESULTS / "psf-bands.png")
            if part == "snr":
                draw_counts(by_snr(results), BOUND_OF, RESULTS / "psf-snr.png")


def _of_psfex(kept: dict[str, Any]) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return rows of PSFEx by recipe, exposure and detector that were made with the requested settings."""
    if kept.get("measured_with", {}).get("psfex") != PSFEX_SETTINGS:
        return {}
    return {
        (title, unit["exposure"], unit["detector"]): {PSFEX: {"measured": kept["environment"]["date"]} | found}
        for title, units in kept["recipes"].items()
        for unit in units
        if (found := unit["methods"].get(PSFEX))
    }


if __name__ == "__main__":
    main()
