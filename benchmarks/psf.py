"""How well, and how fast, are PSFs reconstructed, beside PSFEx and CSST-PSFNet on the very same stamps?

Some 900 stars of a detector at S/N 100: one of each band of `psf-dataset2`; one (g) of `psf-dataset3`, blurred thrice,
of `psf-epochs`, eight times, at S/N 50 to 400, and of `psf-newoptics`, there at S/N 30 to 1000 as well. Two units at a
time, a thread each. ``python benchmarks/psf.py`` (half an hour) writes ``results/psf.json`` and a figure; ``--quick``
tries one detector of each without PSFEx. PSFEx: Debian, ``apt-get install psfex``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from environment import RESULTS, save

from csstdask.psf.evaluate import evaluate_psf
from csstdask.results import rounded

STORES = Path(__file__).parent.parent / "stores"
#: By part: detectors, and whether PSFEx is asked.
ASKED = {
    "nodes": ((12, 14, 8, 9, 7, 11, 6), True), "newoptics": ((8,), True), "blurred": ((8,), False),
    "snr": ((8,), False), "epochs": ((8,), False),
}  # fmt: skip
FIGURE = "psf-dataset2.png"


def main() -> None:
    quick = "--quick" in sys.argv
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for part, (detectors, psfex) in ASKED.items():
            found = evaluate_psf(
                to=Path(folder), recipes=STORES, parts=(part,), foreign=False, psfex=psfex and not quick,
                beside=("psfnet",), workers=2, announce=print, detectors=detectors[:1] if quick else detectors,
            )  # fmt: skip
            results |= found.pop("recipes")
            if quick:
                continue
            save("psf", {"model": f"{found['model']} {found['version']}", "recipes": rounded(results)})
            if part == "nodes":
                shutil.copy(Path(folder) / FIGURE, RESULTS / FIGURE)


if __name__ == "__main__":
    main()
