"""Fill the tables of the README and the performance pages from the committed results.

``python benchmarks/tables`` rewrites the text between the markers; ``--check`` only compares.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import detection
import engine
import flux
import psf
import repair
import sed
import simulator
import summary
import zeropoint

ROOT = Path(__file__).resolve().parents[2]

TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"summary": summary.summary},
    "docs/performance/detection.md": detection.TABLES | {"clean": engine.clean},
    "docs/performance/engine.md": engine.TABLES | {"reduction": flux.memory},
    "docs/performance/flux.md": flux.TABLES,
    "docs/performance/mock.md": {"mock": simulator.mock},
    "docs/performance/psf.md": psf.TABLES,
    "docs/performance/repair.md": repair.TABLES,
    "docs/performance/sed.md": sed.TABLES,
    "docs/performance/zero-points.md": zeropoint.TABLES,
}


def fill(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """Return a page with its tables between the markers ``<!-- name -->`` and ``<!-- /name -->``."""
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
        after = fill(before, tables)
        if "--check" in sys.argv and before != after:
            raise SystemExit(f"{name}: its tables differ from benchmarks/results (run: python benchmarks/tables)")
        if before != after:
            path.write_text(after)


if __name__ == "__main__":
    main()
