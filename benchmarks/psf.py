"""How well, and how fast, are PSFs reconstructed, beside PSFEx and CSST-PSFNet on the very same stamps?

Some 900 stars of a detector at S/N 100, one of each of four bands of `psf-dataset2` and one (g) of `psf-newoptics`, two
at a time, a thread each. ``python benchmarks/psf.py`` (a quarter of an hour) writes ``results/psf.json`` and a figure;
``--quick`` tries one detector of each without PSFEx. PSFEx: Debian, ``apt-get install psfex``. Blurred stars, other
years and other S/N: ``csstdask evaluate psf --part blurred --part epochs --part snr``.
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
#: By part: detectors.
ASKED = {"nodes": (12, 8, 7, 6), "newoptics": (8,)}
FIGURE = "psf-dataset2.png"


def main() -> None:
    quick = "--quick" in sys.argv
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for part, detectors in ASKED.items():
            found = evaluate_psf(
                to=Path(folder), recipes=STORES, parts=(part,), foreign=False, psfex=not quick,
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
