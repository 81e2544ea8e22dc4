"""Make the tables of README and docs from the committed results: their figures come from nowhere else.

``python benchmarks/readme_tables.py`` rewrites what stands between the markers; ``--check`` only compares.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())  # type: ignore[no-any-return]


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(str(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def engine() -> str:
    result = load("engine")
    place = result["environment"]
    runs = [
        [f"run, {row['slots']} x {row['scheduler']}", f"{row['mpix_per_s']} Mpix/s", f"E_k = {row['E_k']}"]
        for row in result["efficiency"]
    ]
    ingests = [
        [f"ingest, {row['slots']} x {row['scheduler']}", f"{row['mpix_per_s']} Mpix/s", f"{row['mb_per_s']} MB/s"]
        for row in result["throughput"]
    ]
    idle = [
        [
            f"{row['units']:,} units of {row['unit_ms']:g} ms, {row['slots']} x {row['scheduler']}",
            f"{row['overhead_ms_per_unit']} ms overhead a unit",
            f"memory {row['growth_second_half_mib']:+} MiB over the second half",
        ]
        for row in result["overhead"]
    ]
    small = [
        [f"{row['units']:,} units of 32 x 32, background only: {row['what']}", f"{row['ms_per_unit']} ms a unit", ""]
        for row in result["small_units"]
    ]
    medians = [
        [
            f"masked median, {100 * row['masked_share']:g} % masked",
            f"{row['csstdask_mpix_per_s']} Mpix/s",
            f"{row['times_scipy_3x3']} x scipy 3 x 3, {row['times_scipy_5x5']} x scipy 5 x 5",
        ]
        for row in result["median"]
    ]
    full = [
        [
            f"one 9232 x 9216 unit: {row['stage']}",
            f"{row['wall_s']} s",
            f"peak {row['peak_gib']} GiB of {row['projected_gib']} GiB projected",
        ]
        for row in result["memory"]
    ]
    note = f"{place['processor']}, {place['cores']} cores, Python {place['python']}, {place['date']}; {place['cache']}."
    return table(["what", "how fast", "and"], [*runs, *ingests, *idle, *small, *medians, *full]) + f"\n\n{note}"


def resume() -> str:
    rows = [
        [
            row["scheduler"],
            row["units"],
            row["kills"],
            row["recorded_units_done_again"],
            "none" if not row["differences_from_uninterrupted"] else ", ".join(row["differences_from_uninterrupted"]),
        ]
        for row in load("resume")["trials"]
    ]
    head = ["scheduler", "units", "SIGKILLs", "recorded units done again", "differences from an uninterrupted run"]
    return table(head, rows)


def accuracy() -> str:
    """Precision and recall of all methods, by kind of frame."""
    result = load("cosmicray_evaluation")
    rows = []
    for part, prefix in (("stis", "STIS: "), ("injected", "")):
        for kind, methods in result[part].items():
            for method, row in methods.items():
                visible = "" if part == "stis" else f"{row['recall_visible']:.3f}"
                spans = [f"{row[name]:.3f} ({half(row[f'{name}_interval'])})" for name in ("precision", "recall")]
                numbers = [f"{row[key]:.3f}" for key in ("precision_without_skirt", "events_found")]
                rows.append([prefix + kind, method, *spans, visible, *numbers])
    head = ["frames", "method", "precision", "recall", "of visible", "precision off the skirt", "events found"]
    return table(head, rows)


def half(interval: list[float]) -> str:
    """Return half the width of a 68 % interval."""
    return f"{(interval[1] - interval[0]) / 2:.3f}"


def controls() -> str:
    rows = [
        [kind, f"{row['network']:.0f}", f"{row['lacosmic']:.0f}"]
        for kind, row in load("cosmicray_evaluation")["false_pixels_per_mpix"].items()
    ]
    return table(["frames without cosmic rays", "network", "L.A.Cosmic"], rows)


def speed() -> str:
    result = load("cosmicray")
    place = result["environment"]
    rows = [
        [row[key] for key in ("method", "threads", "mpix_per_s", "csstdask_is_times_as_fast", "precision", "recall")]
        for row in result["rows"]
    ]
    head = ["method", "threads", "Mpix/s", "our float32 is times as fast", "precision", "recall above 5 e-"]
    note = f"{place['processor']}, torch {place['packages']['torch']}, {place['date']}."
    return table(head, rows) + f"\n\n{note}"


def mock() -> str:
    result = load("mock")
    place = result["environment"]
    rows = []
    for row in result["full_detector"]:
        what = f"a full detector in {row['band']}, {row['objects']:,} objects, {100 * row['hit_share']:.1f} % hit"
        rows.append(
            [
                f"{what}: {row['at_once']} at once, one thread each",
                f"{row['seconds']} s, {row['seconds_each']:.0f} s a detector",
                f"{row['peak_gib']} GiB each; {row['system_seconds']} s of it the kernel's, for memory",
            ]
        )
    sources, optics = result["objects"], result["optics"]
    rows += [
        [
            f"{sources['objects']} stars and galaxies, one thread",
            f"{sources['csstdask_ms_each']} ms each",
            f"GalSim `drawImage`, one PSF: {sources['galsim_ms_each']} ms, {sources['galsim_over_csstdask']} x as long",
        ],
        [
            "an effective PSF at one wavelength, one thread",
            f"{optics['csstdask_ms_each']} ms",
            f"GalSim `OpticalPSF`: {optics['galsim_ms_each']} ms, {optics['galsim_over_csstdask']} x as long",
        ],
        [
            "bytes of " + ", ".join(result["same_bytes"]["digests"]) + " workers",
            "alike" if result["same_bytes"]["alike"] else "DIFFERENT",
            "",
        ],
    ]
    return table(["what", "how fast", "and"], rows) + f"\n\n{place['processor']}, {place['date']}."


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"engine": engine, "resume": resume, "cosmicray-speed": speed},
    "docs/cosmicray.md": {"accuracy": accuracy, "controls": controls},
    "docs/mock.md": {"mock": mock},
}


def rendered(text: str, tables: dict[str, Callable[[], str]]) -> str:
    for name, make in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(
            pattern, lambda match, make=make: f"{match[1]}\n{make()}\n\n{match[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"found {count} places marked {name}; wanted one")
    return text


def main() -> None:
    for name, tables in TABLES.items():
        path = ROOT / name
        before = path.read_text()
        after = rendered(before, tables)
        if "--check" in sys.argv and before != after:
            raise SystemExit(f"{name}: its tables are not those of benchmarks/results")
        if before != after:
            path.write_text(after)


if __name__ == "__main__":
    main()
