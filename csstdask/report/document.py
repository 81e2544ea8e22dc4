"""What all pages share: one self-contained HTML document, its style, its tables and numbers."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from csstdask.durable import write_atomic

_LARGEST_TABLE = 500

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right } td.cell { color: #fff; text-shadow: 0 0 3px #000 }
th { border-bottom: 1px solid #888 } td:first-child, th:first-child { text-align: left }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top }
figcaption { font-size: 13px; color: #555 } svg text { font: 11px system-ui, sans-serif; text-anchor: middle }
img { image-rendering: pixelated; width: 19rem } .failed { color: #a00 } .wide { overflow-x: auto }
"""


def write_document(to: Path, title: str, sections: Iterable[tuple[str, str]]) -> Path:
    """Write sections (heading, HTML) as a page; those without content are left out."""
    body = "\n".join((f"<h2>{heading}</h2>" if heading else "") + content for heading, content in sections if content)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    write_atomic(to, f'<!doctype html><html lang="en">{head}<body>{body}</body></html>'.encode())
    return to


class Cell(str):
    """A cell that is HTML already; any other text is escaped."""

    __slots__ = ()


def table(head: Sequence[str], rows: Iterable[Sequence[object]], total: int | None = None) -> str:
    """Return an HTML table of the first rows; `total` is how many there would be."""
    lines = [
        "".join(cell if isinstance(cell, Cell) else f"<td>{html.escape(str(cell))}</td>" for cell in row)
        for row in islice(rows, _LARGEST_TABLE)
    ]
    shown = "".join(f"<tr>{line}</tr>" for line in lines)
    more = f"<p>and {total - len(lines)} more</p>" if total is not None and total > len(lines) else ""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f'<div class="wide"><table><tr>{top}</tr>{shown}</table></div>{more}'


def number(value: float) -> str:
    """Return a number for people."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"
