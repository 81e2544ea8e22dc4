"""How well, and how fast, are PSFs reconstructed, beside PSFEx and CSST-PSFNet on the very same stamps?

Some 900 stars of a detector at S/N 100 unless that is the point, two at a time, a thread each: of the paper's telescope
in each band (`psf-dataset2`), and of the same blurred by 2, 5 and 10 % (`psf-dataset3`); in g of another
(`psf-newoptics`), at S/N 30 to 600, and of eight optical states (`psf-epochs`). PSFEx stands beside them but for other
S/N. ``python benchmarks/psf.py`` (two hours) writes ``results/psf.json`` and figures, and goes on where it was; what
PSFEx made of the same stars by the same settings is not measured again when our model changes. ``--quick`` tries one
detector of two without PSFEx. PSFEx: Debian, ``apt-get install psfex``.
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
from csstdask.evaluation.psf.evaluate import BOUND_OF, PARTS, PSFEX, PSFEX_SETTINGS, by_snr, evaluate_psf
from csstdask.evaluation.psf.figures import draw_bands, draw_counts
from csstdask.nn.models import find_card

STORES = Path(__file__).parent.parent / "stores"
G = (8,)
#: One of each band: those that `psfnet` has learnt.
BANDS = (12, 8, 7, 6, 14, 9, 11)
#: Part, detectors, whether PSFEx is run, and what else stands beside.
ASKED = (
    ("nodes", BANDS, True, ("psfnet",)),
    ("newoptics", G, True, ("psfnet", "empirical")),
    ("blurred", BANDS, True, ("psfnet",)),
    ("epochs", G, True, ("psfnet",)),
    ("snr", G, False, ()),
)
WORKERS = 2
QUICK = (("nodes", G, False, ()), ("newoptics", G, False, ()))
#: Pictures of what is left that are kept, by part.
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
        for part, detectors, psfex, beside in QUICK if quick else ASKED:
            if [part, list(detectors)] in asked:
                continue
            known = {detector for title, _, detector in peers if title == PARTS[part]} >= set(detectors)
            found = evaluate_psf(
                to=Path(folder), recipes=STORES, parts=(part,), foreign=False, psfex=psfex and not known, beside=beside,
                workers=WORKERS, on_progress=print, detectors=detectors,
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
    """Return rows of PSFEx by recipe, exposure and detector, if they are of the settings that are asked for."""
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
