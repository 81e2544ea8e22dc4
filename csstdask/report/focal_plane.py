"""Draw the focal plane: at the position of each detector a box, coloured by a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from csstdask.instrument import Instrument
from csstdask.report.colours import COLOUR_MAP, colour, colour_limits, text_colour
from csstdask.report.document import anchor
from csstdask.report.figures import Mark, svg_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Width of the drawing, and height of the strip below it for the colour bar [inch].
_WIDTH, _BAR_HEIGHT = 4.7, 0.55
_EDGE_COLOUR = "#888888"


def draw_focal_plane(instrument: Instrument, values: Mapping[int, float], title: str, link: str = "") -> Markup:
    """Return a drawing of the focal plane; empty for a camera without geometry.

    Parameters
    ----------
    instrument : Instrument
    values : mapping
        Number of each detector, by id. Detectors that are absent are grey.
    title : str
        Caption, with the unit of the numbers; unique on the page.
    link : str
        Anchor of the section that detectors with a number link to. The search there is set to the detector.
    """
    geometry = instrument.geometry
    if geometry is None or instrument.shape is None:
        return Markup()
    ny, nx = instrument.shape
    centres = np.array(list(geometry.centres.values()))
    half = np.array([nx / 2, ny / 2])
    (left, bottom), (right, top) = centres.min(axis=0) - half, centres.max(axis=0) + half
    plane_height = _WIDTH * (top - bottom) / (right - left)
    height = plane_height + _BAR_HEIGHT
    low, high = colour_limits(np.array(list(values.values()), dtype=float))

    def draw(figure: Figure) -> None:
        from matplotlib.patches import Rectangle  # noqa: PLC0415
        from matplotlib.transforms import Affine2D  # noqa: PLC0415

        # Artists of the figure itself: axes, with their ticks, would take most of the time.
        to_inch = Affine2D().translate(-left, -bottom).scale(_WIDTH / (right - left)).translate(0, _BAR_HEIGHT)
        transform = to_inch + figure.dpi_scale_trans
        for detector, (x, y) in geometry.centres.items():
            fill = colour(values.get(detector, np.nan), low, high)
            box = Rectangle((x - nx / 2, y - ny / 2), nx, ny, facecolor=fill, edgecolor=_EDGE_COLOUR, lw=0.8)
            box.set(transform=transform, gid=f"detector-{detector}")
            figure.add_artist(box)
            figure.text(x, y, str(detector), transform=transform, color=text_colour(fill), ha="center", va="center")
        _draw_colour_bar(figure, low, high)

    marks = {
        f"detector-{detector}": _mark(detector, values.get(detector, np.nan), link) for detector in geometry.centres
    }
    return svg_figure(draw, title, anchor("plane", title), size=(_WIDTH, height), css="drawing", marks=marks)


def _mark(detector: int, value: float, link: str) -> Mark:
    if not np.isfinite(value):
        return Mark(f"detector {detector}: no data")
    return Mark(f"detector {detector}: {value:.4g}", link, f"detector={detector}")


def _draw_colour_bar(figure: Figure, low: float, high: float) -> None:
    from matplotlib.image import BboxImage  # noqa: PLC0415
    from matplotlib.transforms import Bbox, TransformedBbox  # noqa: PLC0415

    bar = Bbox.from_extents(0.18 * _WIDTH, 0.18, 0.82 * _WIDTH, 0.32)
    image = BboxImage(TransformedBbox(bar, figure.dpi_scale_trans), cmap=COLOUR_MAP)
    image.set_data(np.linspace(0, 1, 64)[None])
    figure.add_artist(image)
    for x, value in ((0.09 * _WIDTH, low), (0.91 * _WIDTH, high)):
        figure.text(x, 0.25, f"{value:.3g}", transform=figure.dpi_scale_trans, ha="center", va="center")
