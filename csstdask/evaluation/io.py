"""Write the results of evaluations: numbers as JSON, tables as Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from csstdask.core.atomic_io import write_atomic

#: Significant digits of the numbers in JSON files.
_DIGITS = 5


def round_floats(value: Any) -> Any:
    """Round all floats of nested lists and dictionaries to five significant digits, for JSON.

    NaN and infinity, which JSON does not have, become None.

    Examples
    --------
    >>> round_floats({"rms": [3.14159265, float("nan")], "n": 123456})
    {'rms': [3.1416, None], 'n': 123456}
    """
    if isinstance(value, dict):
        return {key: round_floats(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [round_floats(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def markdown_header(title: str, columns: Sequence[str]) -> tuple[str, str, str]:
    """Return the first lines of a Markdown table: an empty line, the column names, and a rule.

    Examples
    --------
    >>> markdown_header("method", ["precision"])
    ('', '| method | precision |', '| --- | --- |')
    """
    return "", f"| {' | '.join((title, *columns))} |", "| --- " * (len(columns) + 1) + "|"


def markdown_row(name: str, values: Sequence[float | None]) -> str:
    """Return a row of a Markdown table; None and NaN become empty cells.

    Examples
    --------
    >>> markdown_row("median", [0.98765, None])
    '| median | 0.9877 |  |'
    """
    cells = ["" if value is None or math.isnan(value) else f"{value:.4g}" for value in values]
    return f"| {' | '.join((name, *cells))} |"


def format_number(value: float) -> str:
    """Return a number with four significant digits, or as an integer; a dash if it is not finite.

    Examples
    --------
    >>> format_number(1234.0), format_number(0.123456), format_number(float("nan"))
    ('1234', '0.1235', '–')
    """
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"


def write_results(stem: Path, results: dict[str, Any], lines: Iterable[str] | None = None) -> None:
    """Write the numbers of an evaluation to a JSON file and its tables to a Markdown page.

    Parameters
    ----------
    stem : Path
        Path of both files without suffix. The folder is created.
    results : dict
        Floats are rounded as `round_floats` does.
    lines : iterable of str, optional
        Lines of the Markdown page; None: no page.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(round_floats(results), indent=1, allow_nan=False)
    write_atomic(stem.with_suffix(".json"), f"{numbers}\n".encode())
    if lines is not None:
        write_atomic(stem.with_suffix(".md"), ("\n".join(lines) + "\n").encode())
