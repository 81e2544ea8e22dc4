"""How well, and how fast, are PSFs reconstructed, beside PSFEx and CSST-PSFNet on the very same stamps?

Some 900 stars of a detector at S/N 100 unless that is the point, two at a time, a thread each: of the paper's telescope
in each band (`psf-dataset2`), of the same blurred by 2, 5 and 10 % in NUV, g and y (`psf-dataset3`); in g of another
(`psf-newoptics`), of eight optical states (`psf-epochs`) and at S/N 30 to 600. PSFEx stands beside them in every band
of the first, and in g, blurred and of the other telescope. ``python benchmarks/psf.py`` (two hours) writes
``results/psf.json`` and figures, and goes on where it was; ``--quick`` tries one detector of two without PSFEx. PSFEx:
Debian, ``apt-get install psfex``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from committed import load
from environment import RESULTS, save

from csstdask.nn.models import find_card
from csstdask.psf.evaluate import PSFEX_SETTINGS, evaluate_psf
from csstdask.psf.evaluate.figures import draw_bands
from csstdask.results import rounded

STORES = Path(__file__).parent.parent / "stores"
G = (8,)
#: Part, detectors (those that `psfnet` has learnt), whether PSFEx is run, and what else stands beside.
ASKED = (
    ("nodes", (12, 8, 7, 6), True, ("psfnet",)),
    ("nodes", (14, 9, 11), True, ("psfnet",)),
    ("newoptics", G, True, ("psfnet", "empirical")),
    ("blurred", G, True, ("psfnet",)),
    ("snr", G, False, ()),
    ("epochs", G, False, ()),
    ("blurred", (12, 6), False, ()),
)
WORKERS = 2
QUICK = (("nodes", G, False, ()), ("newoptics", G, False, ()))
FIGURE = "psf-dataset2.png"


def main() -> None:
    quick = "--quick" in sys.argv
    measured_with = {"identity": find_card("psf", "default").identity, "psfex": PSFEX_SETTINGS}
    kept = load("psf") if not quick and (RESULTS / "psf.json").is_file() else {}
    if kept.get("measured_with") != measured_with:
        kept = {}
    results, asked = kept.get("recipes", {}), kept.get("asked", [])
    with tempfile.TemporaryDirectory() as folder:
        for part, detectors, psfex, beside in QUICK if quick else ASKED:
            if [part, list(detectors)] in asked:
                continue
            found = evaluate_psf(
                to=Path(folder), recipes=STORES, parts=(part,), foreign=False, psfex=psfex, beside=beside,
                workers=WORKERS, announce=print, detectors=detectors,
            )  # fmt: skip
            for title, units in found["recipes"].items():
                results.setdefault(title, []).extend(rounded(units))
            asked.append([part, list(detectors)])
            if quick:
                continue
            save("psf", {
                "model": f"{found['model']} {found['version']}", "measured_with": measured_with, "asked": asked,
                "recipes": results,
            })  # fmt: skip
            if detectors == ASKED[0][1]:
                shutil.copy(Path(folder) / FIGURE, RESULTS / FIGURE)
            if part == "nodes":
                draw_bands(results["psf-dataset2"], RESULTS / "psf-bands.png")


if __name__ == "__main__":
    main()
