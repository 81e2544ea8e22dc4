"""How well, and how fast, are PSFs reconstructed, beside PSFEx on the very same stamps?

A detector of each band of `psf-dataset2`, two of `psf-dataset3` (NUV, g; three blurs each) and one of `psf-newoptics`
(g), some 900 stars each at S/N 100, two at a time, a thread each. ``python benchmarks/psf.py`` (ten minutes) writes
``results/psf.json``; ``--quick`` tries one detector of each without PSFEx. PSFEx: Debian, ``apt-get install psfex``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from environment import save

from csstdask.psf.evaluate import evaluate_psf
from csstdask.results import rounded

STORES = Path(__file__).parent.parent / "stores"
#: By part: detectors.
ASKED = {"nodes": (12, 14, 8, 9, 7, 11, 6), "blurred": (12, 8), "newoptics": (8,)}


def main() -> None:
    quick = "--quick" in sys.argv
    results = {}
    for part, detectors in ASKED.items():
        found = evaluate_psf(
            recipes=STORES, parts=(part,), foreign=False, psfex=not quick, workers=2, announce=print,
            detectors=detectors[:1] if quick else detectors,
        )  # fmt: skip
        results |= found.pop("recipes")
    if not quick:
        save("psf", {"model": f"{found['model']} {found['version']}", "recipes": rounded(results)})


if __name__ == "__main__":
    main()
