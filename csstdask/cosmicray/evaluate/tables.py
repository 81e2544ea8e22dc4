"""Tables for people, and numbers for files that people compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rounded(value: Any) -> Any:
    """Return numbers to five significant figures: more would be noise in a file that people compare."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return None if value != value else float(f"{value:.5g}")  # noqa: PLR0124  NaN is no JSON
    return value


def table_head(title: str, columns: Sequence[str]) -> tuple[str, str, str]:
    """Return the lines that a table begins with, an empty one first."""
    return "", f"| {' | '.join((title, *columns))} |", "| --- " * (len(columns) + 1) + "|"


def table_row(name: str, values: Sequence[float | None]) -> str:
    """Return a line of a table; what is not a number is empty."""
    cells = ["" if value is None or value != value else f"{value:.4g}" for value in values]  # noqa: PLR0124  NaN
    return f"| {' | '.join((name, *cells))} |"
