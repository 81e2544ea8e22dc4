"""SEDs of stars: quality on held-out cells and real stars, and speed compared with the published network.

``python benchmarks/sed.py SPECTRA`` writes results/sed.json (evaluation and speed) and the figures results/sed-*.png;
``--speed`` measures speed alone and keeps the evaluation that is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import RESULTS, environment, save

from csstdask.evaluation.sed.evaluate import PARTS, evaluate_sed, summary_lines
from csstdask.flux.normalised_spectra import NormalisedSpectra, normalise_spectra
from csstdask.flux.sed import predict_normalised
from csstdask.nn.models import find_card

#: Spectra of one measurement, and measurements of which the best counts.
SPECTRA, REPEATS = 4096, 5
#: Threads of both networks.
THREADS = (1, 2)


def speed() -> dict[str, Any]:
    """SEDs/s of normalised spectra on the same cores in the same run, turn by turn."""
    rng = np.random.default_rng(1)
    error = np.full((SPECTRA, 2238), 0.03, dtype=np.float32)
    spectra = NormalisedSpectra((1 + error * rng.normal(size=error.shape)).astype(np.float32), error)
    fwhm = np.tile(np.array([2.0, 3.5], dtype=np.float32), (SPECTRA, 1))
    rows = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        best = {"sed": np.inf, "uaranet": np.inf}
        for _ in range(REPEATS):
            for name, fastest in best.items():
                start = time.perf_counter()
                predict_normalised(spectra, find_card("sed", name), torch.device("cpu"), fwhm=fwhm)
                best[name] = min(fastest, time.perf_counter() - start)
        rows.append({"threads": threads} | {f"{name}_per_s": round(SPECTRA / one) for name, one in best.items()})
    wave = np.arange(3900.0, 7100.0, 0.8)
    flux = 1 + 0.03 * rng.normal(size=(512, len(wave)))
    start = time.perf_counter()
    normalise_spectra(wave, flux, np.full(flux.shape, 0.03))
    return {"spectra": SPECTRA, "rows": rows, "resampled_per_s": round(512 / (time.perf_counter() - start))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spectra", type=Path, help="folder of spectral libraries")
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    if arguments.speed:
        result = json.loads((RESULTS / "sed.json").read_text())
        result["speed"] = speed() | {"environment": environment()}
    else:
        result = evaluate_sed(arguments.spectra, RESULTS, parts=PARTS, on_progress=print)
        print("\n".join(summary_lines(result)))
        result["speed"] = speed()
    result.pop("environment", None)
    save("sed", result)


if __name__ == "__main__":
    main()
