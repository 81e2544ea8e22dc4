"""Build a self-contained HTML page: its template, its tables, and names that can be linked to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from csstdask.core.atomic_io import write_atomic

#: Rows of a table that are shown unless a caller says otherwise.
_MAX_ROWS = 500


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("csstdask.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def render(template: str, **values: object) -> Markup:
    """Render a template of the folder ``templates``; plain strings are escaped, `Markup` is not."""
    return Markup(_templates().get_template(template).render(**values))  # noqa: S704  templates escape their values


def join(parts: Iterable[Markup | str]) -> Markup:
    """Concatenate parts of a page; plain strings are escaped."""
    return Markup().join(parts)


def paragraphs(*lines: str) -> Markup:
    """Return lines of text as paragraphs."""
    return render("paragraphs.html.jinja", lines=lines)


def write_document(to: Path, title: str, sections: Iterable[tuple[str, Markup | str]]) -> Path:
    """Write sections (heading, content) as a page; sections without content are omitted."""
    shown = [(heading, anchor(heading), content) for heading, content in sections if content]
    write_atomic(to, render("page.html.jinja", title=title, sections=shown).encode())
    return to


@dataclass(frozen=True)
class Cell:
    """A table cell with a link, a colour or other formatting."""

    text: object
    link: str = ""
    """Anchor on the page that the text links to."""
    css: str = ""
    """Classes of the style sheet."""
    tooltip: str = ""
    style: str = ""
    """CSS declarations."""
    is_code: bool = False


@dataclass(frozen=True)
class Column:
    """A table column."""

    name: str
    """Name for searches, as in ``detector=7``."""
    label: str
    unit: str = ""


@dataclass(frozen=True)
class Row:
    """A table row that can be linked to."""

    cells: Sequence[object]
    """Each a `Cell`, or a value that is shown as text."""
    anchor: str = ""


def table(
    columns: Sequence[str | Column],
    rows: Iterable[Sequence[object] | Row],
    total: int | None = None,
    *,
    name: str = "",
    max_rows: int = _MAX_ROWS,
) -> Markup:
    """Return an HTML table of the first rows.

    Parameters
    ----------
    columns : sequence of str or Column
    rows : iterable
        Rows, or sequences of cells.
    total : int, optional
        Number of rows that exist; the number of omitted rows is stated below the table.
    name : str
        HTML id of a table that can be sorted and searched; empty for other tables.
    max_rows : int
        Number of rows that are shown.

    Examples
    --------
    >>> "<td>a &lt; b</td>" in table(["reason"], [["a < b"]])
    True
    """
    heads = [one if isinstance(one, Column) else Column(one, one) for one in columns]
    shown = [row if isinstance(row, Row) else Row(row) for row in islice(rows, max_rows)]
    lines = [(row.anchor, [cell if isinstance(cell, Cell) else Cell(cell) for cell in row.cells]) for row in shown]
    omitted = max(0, (total or 0) - len(shown))
    return render("table.html.jinja", columns=heads, rows=lines, omitted=omitted, name=name)


def anchor(*parts: object) -> str:
    """Return a name that can be linked to.

    Examples
    --------
    >>> anchor("unit", "a 1", 7)
    'unit-a-1-7'
    """
    text = "-".join(str(part) for part in parts)
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)
