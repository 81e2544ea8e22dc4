"""Results of evaluations: numbers for files that people compare, tables and figures for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from csstdask.core.atomic_io import write_atomic


def round_floats(value: Any) -> Any:
    """Return numbers to five significant figures, and None for what is no number: JSON knows no other."""
    if isinstance(value, dict):
        return {key: round_floats(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [round_floats(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def markdown_header(title: str, columns: Sequence[str]) -> tuple[str, str, str]:
    """Return the lines that a table begins with, an empty one first."""
    return "", f"| {' | '.join((title, *columns))} |", "| --- " * (len(columns) + 1) + "|"


def markdown_row(name: str, values: Sequence[float | None]) -> str:
    """Return a line of a table; what is not a number is empty."""
    cells = ["" if value is None or math.isnan(value) else f"{value:.4g}" for value in values]
    return f"| {' | '.join((name, *cells))} |"


def write_results(stem: Path, results: dict[str, Any], lines: Iterable[str]) -> None:
    """Write an evaluation as JSON and its tables as Markdown, each whole or not at all."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(round_floats(results), indent=1, allow_nan=False)
    write_atomic(stem.with_suffix(".json"), f"{numbers}\n".encode())
    write_atomic(stem.with_suffix(".md"), ("\n".join(lines) + "\n").encode())
