"""What all pages share: one self-contained HTML document, its style, its script, its tables and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from csstdask.core.atomic_io import write_atomic

_LARGEST_TABLE = 500


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("csstdask.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def render(template: str, **values: object) -> str:
    """Return a template of the folder ``templates`` as HTML; values are escaped."""
    return _templates().get_template(template).render(**values)


def write_document(to: Path, title: str, sections: Iterable[tuple[str, str]]) -> Path:
    """Write sections (heading, HTML) as a page; those without content are left out."""
    shown = [(heading, anchor(heading), content) for heading, content in sections if content]
    write_atomic(to, render("page.html.jinja", title=title, sections=shown).encode())
    return to


class Cell(str):
    """A cell that is HTML already; any other text is escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    """What a search may call it, as in ``detector=7``."""
    label: str
    unit: str = ""


@dataclass(frozen=True)
class Row:
    """A row that can be linked to."""

    cells: Sequence[object]
    anchor: str = ""


def table(
    head: Sequence[str | Column],
    rows: Iterable[Sequence[object] | Row],
    total: int | None = None,
    *,
    name: str = "",
    most: int = _LARGEST_TABLE,
) -> str:
    """Return an HTML table of the first rows.

    Parameters
    ----------
    head : sequence of str or Column
    rows : iterable
        Values are escaped, a `Cell` is not.
    total : int, optional
        How many rows there would be.
    name : str
        Of a table that can be sorted and searched.
    most : int
        Rows that are shown.
    """
    columns = [one if isinstance(one, Column) else Column(one, one) for one in head]
    lines = [row if isinstance(row, Row) else Row(row) for row in islice(rows, most)]
    cells = [(row.anchor, [(cell, isinstance(cell, Cell)) for cell in row.cells]) for row in lines]
    more = max(0, (total or 0) - len(lines))
    return render("table.html.jinja", columns=columns, rows=cells, more=more, name=name)


def anchor(*parts: object) -> str:
    """Return a name that can be linked to.

    Examples
    --------
    >>> anchor("unit", "a 1", 7)
    'unit-a-1-7'
    """
    text = "-".join(str(part) for part in parts)
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)


def format_number(value: float) -> str:
    """Return a number for people."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"
