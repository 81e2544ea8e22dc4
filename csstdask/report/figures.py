"""Draw matplotlib figures and embed them in a page as SVG.

Text and axes take the text colour of the page, so figures are readable on a dark page as well. Boxes of a figure can be
marked: a marked box shows a tooltip, and may link to a section of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from markupsafe import Markup

from csstdask.report.document import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Stands for the text colour of the page until the SVG is embedded; no figure uses it otherwise.
_TEXT_COLOUR = "#010203"
#: Width and height of a plot with axes [inch].
_PLOT_SIZE = (7.0, 3.2)
#: Line colours that are readable on white and on black.
COLOURS = ("#3b82d6", "#d9622b", "#2a9d5c", "#b565c9", "#9a8a1c", "#d64570", "#1b9aaa", "#888888")
#: Decimal places of coordinates [1/72 inch].
_DECIMALS = 2
_COORDINATES = {"d", "x", "y", "points", "width", "height"}


@dataclass(frozen=True)
class Mark:
    """Tooltip and link of one box of a figure."""

    tooltip: str
    link: str = ""
    """Anchor on the page, without ``#``; empty: the box is not a link."""
    search: str = ""
    """What the search box of the page is set to when the link is followed."""


def plot(draw: Callable[[Axes], None], caption: str, name: str) -> Markup:
    """Return a figure with one pair of axes.

    Parameters
    ----------
    draw : callable
        Draws on the axes that it is given.
    caption : str
    name : str
        Name of the figure, unique on the page.
    """

    def draw_axes(figure: Figure) -> None:
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.set_prop_cycle(color=COLOURS)
        draw(axes)

    return svg_figure(draw_axes, caption, name, size=_PLOT_SIZE, layout="constrained")


def svg_figure(
    draw: Callable[[Figure], None],
    caption: str,
    name: str,
    *,
    size: tuple[float, float],
    layout: Any = None,
    css: str = "plot",
    marks: Mapping[str, Mark] | None = None,
) -> Markup:
    """Return a matplotlib figure as an HTML figure that contains its SVG.

    Parameters
    ----------
    draw : callable
        Draws on the figure that it is given.
    caption : str
    name : str
        Name of the figure, unique on the page.
    size : (float, float)
        Width and height [inch].
    layout : str, optional
        Layout engine of matplotlib.
    css : str
        Class of the HTML figure: ``plot`` (wide) or ``drawing`` (small).
    marks : mapping, optional
        Tooltips and links by the ``gid`` of the artist that they belong to.
    """
    import matplotlib as mpl  # noqa: PLC0415  only a report needs it
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **dict.fromkeys(colours, _TEXT_COLOUR),
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9.0,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout=layout)
        figure.patch.set_visible(False)
        canvas = FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = _embeddable(buffer.getvalue(), name, caption, marks or {})
    return render("figure.html.jinja", svg=Markup(svg), caption=caption, css=css)  # noqa: S704  matplotlib escapes text


def _embeddable(svg: str, name: str, label: str, marks: Mapping[str, Mark]) -> str:
    """Return the SVG file of matplotlib as a compact element of an HTML page, with unique ids."""
    text = svg[svg.index("<svg") :].replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)
    text = text.replace("xlink:href=", "href=").replace(_TEXT_COLOUR, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r" ?font-family: [^;\"]*;?|(?<=font: )([\d.]+px) [^;\"]*", r"\1", text)
    root = ET.fromstring(text)  # noqa: S314  written by matplotlib a moment ago
    root.attrib = {
        "role": "img", "aria-label": label, "viewBox": root.attrib["viewBox"], "width": root.attrib["width"],
        "style": "stroke-linejoin: round",
    }  # fmt: skip
    for parent in list(root.iter()):
        for index, child in enumerate(parent):
            if (mark := marks.get(child.get("id", ""))) is not None:
                parent[index] = _marked(child, mark)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _shortened(value) if key in _COORDINATES else value.replace("url(#", f"url(#{name}-"))
        if "id" in element.attrib:
            element.set("id", f"{name}-{element.attrib['id']}")
        if element.tag == "use":
            element.set("href", f"#{name}-{element.attrib['href'][1:]}")
        if not (element.tail or "").strip():
            element.tail = None
        if not (element.text or "").strip():
            element.text = None
    return ET.tostring(root, encoding="unicode")


def _shortened(coordinates: str) -> str:
    """Return coordinates with two decimal places, on one line."""
    return re.sub(
        r"-?\d+\.\d+", lambda number: f"{float(number[0]):.{_DECIMALS}f}".rstrip("0").rstrip("."),
        " ".join(coordinates.split()),
    )  # fmt: skip


def _marked(element: ET.Element, mark: Mark) -> ET.Element:
    """Return an SVG element with a tooltip, inside a link if the mark has one."""
    title = ET.Element("title")
    title.text = mark.tooltip
    element.insert(0, title)
    if not mark.link:
        return element
    link = ET.Element("a", {"href": f"#{mark.link}", "data-find": mark.search})
    link.append(element)
    return link
