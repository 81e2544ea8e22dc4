"""Memory and time of the reduction `flat` for 1,000 to 100,000 partials, each measured in a separate process.

``python benchmarks/reduction.py`` writes ``results/reduction.json``. A few files with four stars each are listed
many times, so that only costs that grow with the number of partials are measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from environment import save

COUNTS = (1_000, 10_000, 100_000)
N_FILES, N_STARS, N_WAVE = 64, 4, 195


def write_partials(folder: Path) -> list[tuple[str, str]]:
    from csstdask.flux.ratios import StarRatios

    rng = np.random.default_rng(1)
    listed = []
    for number in range(N_FILES):
        x, y = (np.repeat(rng.uniform(0, 1000, (N_STARS, 1)), N_WAVE, axis=1) for _ in range(2))
        ratios = StarRatios(
            wavelength=np.linspace(4000, 6500, N_WAVE),
            star=np.arange(N_STARS),
            x=x,
            y=y,
            ratio=1 + 0.02 * rng.standard_normal((N_STARS, N_WAVE)),
            variance_observed=np.full((N_STARS, N_WAVE), 4e-4),
            variance_sed=np.zeros((N_STARS, N_WAVE)),
            grey_error=np.full(N_STARS, 0.01),
            modes=np.zeros((N_STARS, 1, N_WAVE)),
            shape=(1000, 1000),
            detector=2,
        )
        content = ratios.to_bytes()
        (folder / f"p{number}").write_bytes(content)
        listed.append((f"p{number}", hashlib.sha256(content).hexdigest()))
    return listed


def measure(count: int) -> dict[str, float]:
    from csstdask.engine.cluster import open_cluster
    from csstdask.engine.partials import Manifest, Partial
    from csstdask.engine.reduce import reduce_partials
    from csstdask.engine.usage import peak_bytes, reset_peak
    from csstdask.pipeline.reductions.flat import FlatAlgorithm

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        listed = write_partials(root)
        with open_cluster("threads", 2) as slots:
            small = Manifest.write(root / "small", (Partial(*listed[i % N_FILES]) for i in range(200)))
            reduce_partials(slots, root, small, FlatAlgorithm(2), lambda _: None, name="warm", key="w")
            reset_peak()
            before = peak_bytes()
            start = time.perf_counter()
            manifest = Manifest.write(root / "inputs", (Partial(*listed[i % N_FILES]) for i in range(count)))
            _, passes = reduce_partials(slots, root, manifest, FlatAlgorithm(2), lambda _: None, name="flat", key="k")
            seconds = time.perf_counter() - start
            return {
                "partials": count,
                "peak_MiB": round(peak_bytes() / 2**20, 1),
                "growth_MiB": round((peak_bytes() - before) / 2**20, 1),
                "seconds_per_pass": round(seconds / passes, 2),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int)
    options = parser.parse_args()
    if options.count is not None:
        print(json.dumps(measure(options.count)))
        return
    rows = []
    for count in COUNTS:
        done = subprocess.run(
            [sys.executable, __file__, "--count", str(count)], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(done.stdout))
        print(rows[-1])
    save("reduction", {"rows": rows, "stars_a_partial": N_STARS, "wavelengths": N_WAVE})


if __name__ == "__main__":
    main()
