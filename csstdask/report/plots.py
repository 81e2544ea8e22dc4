"""Plots with matplotlib, as SVG inside the page: the optional extra ``plot``.

Text and axes have the colour of the page's text, so that a plot is readable on a dark page.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.core.optional import install_hint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Float = npt.NDArray[np.float64]

#: Stands for the colour of the page's text until the SVG is written; no plot uses it otherwise.
_INK = "#010203"
_WIDTH, _HEIGHT = 7.0, 3.2
#: Readable on white and on black.
_COLOURS = ("#3b82d6", "#d9622b", "#2a9d5c", "#b565c9", "#9a8a1c", "#d64570", "#1b9aaa", "#888888")
#: Number of detectors that are drawn in separate colours.
_MOST_CURVES = 8
#: Exposures that are drawn: of a larger run every n-th.
_MOST_EXPOSURES = 500


def plot(draw: Callable[[Axes], None], caption: str, name: str) -> str:
    """Return a figure of one pair of axes; a line that says what to install where matplotlib is missing.

    Parameters
    ----------
    draw : callable
        Given the axes.
    caption : str
    name : str
        Of the figure; unlike those of other figures of the page.
    """
    label = html.escape(caption)
    if find_spec("matplotlib") is None:
        return f'<p class="note">{label}: not drawn, matplotlib is missing: {html.escape(install_hint("plot"))}.</p>'
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **dict.fromkeys(colours, _INK),
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9.0,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        figure.patch.set_alpha(0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.set_prop_cycle(color=_COLOURS)
        draw(axes)
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return f'<figure class="plot">{_inline(buffer.getvalue(), name, label)}<figcaption>{label}</figcaption></figure>'


def _inline(svg: str, name: str, label: str) -> str:
    """Return an SVG file as an element of a page: names that are the figure's own, the page's colour of text."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def plot_rates(
    times: npt.NDArray[Any], rates: Float, detectors: Sequence[int], limits: tuple[float, float] | None
) -> str:
    """Plot the rate of cosmic-ray events of each detector over time.

    Parameters
    ----------
    times : datetime64 array (exposure,)
        NaT where unknown: then exposures stand in their order.
    rates : float64 array (exposure, detector)
        [s-1 cm-2]
    detectors : sequence of int
        Ids.
    limits : (float, float), optional
        What is expected.
    """
    known = np.flatnonzero(np.isfinite(rates).any(axis=1))
    if len(known) < 2:
        return ""
    every = -(-len(known) // _MOST_EXPOSURES)
    known = known[::every]
    dated = not np.isnat(times[known]).any() and len(np.unique(times[known])) > 1
    x = times[known] if dated else known

    def draw(axes: Axes) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415

        columns = [column for column in range(len(detectors)) if np.isfinite(rates[known, column]).any()]
        if len(columns) <= _MOST_CURVES:
            for column in columns:
                axes.plot(x, rates[known, column], "o", ms=3.5, label=f"detector {detectors[column]}")
        else:
            low, middle, high = np.nanpercentile(rates[known], [16, 50, 84], axis=1)
            axes.errorbar(x, middle, [middle - low, high - middle], fmt="o", ms=3.5, label="median, 68 % of detectors")
        if limits is not None:
            axes.axhspan(*limits, alpha=0.12, color=_COLOURS[2], lw=0, label="expected")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("time (UTC)" if dated else "number of the exposure")
        if dated:
            locator = AutoDateLocator()
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_ylabel("cosmic-ray events [s⁻¹ cm⁻²]")
        axes.legend(frameon=False, ncols=4, loc="lower right", fontsize=8)

    sampled = f", one exposure in {every}" if every > 1 else ""
    return plot(draw, f"Rate of cosmic-ray events over time{sampled}", "plot-rates")


def plot_rho(found: Mapping[str, Float], names: Sequence[str], separation: Float, unit: str) -> str:
    """Plot the rho statistics of held-out stars over their separation; negative values are hollow."""
    shown = {name: np.isfinite(found[name]) & (found[name] != 0) & (separation > 0) for name in names}
    if not any(use.any() for use in shown.values()):
        return ""

    def draw(axes: Axes) -> None:
        for place, name in enumerate(names):
            colour, use = _COLOURS[place], shown[name]
            if not use.any():
                continue
            size = np.abs(found[name][use])
            filled = found[name][use] > 0
            axes.plot(separation[use], size, "-", color=colour, lw=1, label=f"ρ{name.removeprefix('rho')}")
            axes.plot(separation[use][filled], size[filled], "o", color=colour, ms=4)
            axes.plot(separation[use][~filled], size[~filled], "o", color=colour, ms=4, mfc="none")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(f"separation [{unit}]")
        axes.set_ylabel("|ρ|")
        axes.legend(frameon=False, ncols=5, fontsize=8)

    return plot(draw, "Rho statistics of held-out stars; hollow: negative", "plot-rho")
