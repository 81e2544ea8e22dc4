"""The focal plane as a drawing: at each detector's place a box coloured by a number, or a small image.

SVG and grey levels, no plotting library.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument

Image = npt.NDArray[np.uint8]

#: From low to high: dark blue, teal, yellow; told apart in grey as well.
_COLOURS = np.array([(48, 18, 59), (40, 92, 160), (26, 160, 140), (140, 200, 70), (250, 225, 60)], dtype=float)
_NOTHING = "#e6e6e6"
_WIDTH = 340


def colour(value: float, low: float, high: float) -> str:
    """Return the colour of a value between two others; grey for none."""
    if not np.isfinite(value):
        return _NOTHING
    place = (len(_COLOURS) - 1) * float(np.clip((value - low) / max(high - low, 1e-30), 0, 1))
    red, green, blue = (np.interp(place, np.arange(len(_COLOURS)), _COLOURS[:, channel]) for channel in range(3))
    return f"#{round(red):02x}{round(green):02x}{round(blue):02x}"


def ink(background: str) -> str:
    """Return black or white, whichever has more contrast on a colour ``#rrggbb``.

    Contrast is that of WCAG 2, (L1 + 0.05) / (L2 + 0.05) with relative luminances L; of the two it is at least 4.5.

    Examples
    --------
    >>> ink("#fae13c"), ink("#30123b")
    ('#000', '#fff')
    """
    channels = np.array([int(background[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "#000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#fff"


def limits(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the range to colour: the middle 96 % of what is there."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = np.percentile(known, [2, 98])
    return float(low), float(high)


def draw_focal_plane(instrument: Instrument, values: Mapping[int, float], title: str, link: str = "") -> str:
    """Return an SVG of the focal plane; an empty text for a camera without geometry.

    Parameters
    ----------
    instrument : Instrument
    values : mapping
        Detector id to the number that colours it.
    title : str
        With the unit of the numbers.
    link : str
        Where detectors with a number lead to; there a search shows the detector's units.
    """
    geometry = instrument.geometry
    if geometry is None or instrument.shape is None:
        return ""
    ny, nx = instrument.shape
    centres = np.array(list(geometry.centres.values()))
    half = np.array([nx / 2, ny / 2])
    (left, bottom), (right, top) = centres.min(axis=0) - half, centres.max(axis=0) + half
    scale = _WIDTH / (right - left)
    height = (top - bottom) * scale
    low, high = limits(np.array(list(values.values()), dtype=float))
    boxes = []
    for detector, (x, y) in geometry.centres.items():
        value = values.get(detector, np.nan)
        place = (x - nx / 2 - left) * scale, (top - y - ny / 2) * scale
        shown = f"{value:.4g}" if np.isfinite(value) else "no data"
        fill = colour(value, low, high)
        box = (
            f'<g><title>detector {detector}: {shown}</title><rect x="{place[0]:.1f}" y="{place[1]:.1f}" '
            f'width="{nx * scale:.1f}" height="{ny * scale:.1f}" fill="{fill}" stroke="#888"/>'
            f'<text x="{place[0] + nx * scale / 2:.1f}" y="{place[1] + ny * scale / 2 + 4:.1f}" '
            f'style="fill:{ink(fill)}">{detector}</text></g>'
        )
        linked = link and np.isfinite(value)
        boxes.append(f'<a href="{link}" data-find="detector={detector}">{box}</a>' if linked else box)
    scale_bar = _bar(low, high, height + 14)
    label = html.escape(title)
    return (
        f'<figure><svg class="drawing" role="img" aria-label="{label}" '
        f'viewBox="0 0 {_WIDTH} {height + 44:.0f}" width="{_WIDTH}">'
        f"{''.join(boxes)}{scale_bar}</svg><figcaption>{label}</figcaption></figure>"
    )


def _bar(low: float, high: float, y: float) -> str:
    steps = 40
    cells = "".join(
        f'<rect x="{60 + index * 220 / steps:.1f}" y="{y:.0f}" width="{220 / steps + 0.5:.1f}" height="10" '
        f'fill="{colour(index / (steps - 1), 0, 1)}"/>'
        for index in range(steps)
    )
    return f'{cells}<text x="30" y="{y + 9:.0f}">{low:.3g}</text><text x="310" y="{y + 9:.0f}">{high:.3g}</text>'


def mosaic(tiles: Sequence[Sequence[Image | None]], gap: int = 1) -> Image:
    """Return images of one size side by side, top row first; None leaves a place empty."""
    height, width = next(tile.shape for row in tiles for tile in row if tile is not None)
    rows, columns = len(tiles), len(tiles[0])
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap), dtype=np.uint8)
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            if tile is not None:
                y, x = i * (height + gap), j * (width + gap)
                canvas[y : y + height, x : x + width] = tile
    return canvas


def on_focal_plane(instrument: Instrument, tiles: Mapping[int, Image]) -> Image:
    """Return one image a detector, of one size, each at its detector's place; without geometry, in a row."""
    if instrument.geometry is None:
        return mosaic([list(tiles.values())])
    centres = instrument.geometry.centres
    ny, nx = instrument.shape or (1, 1)
    across = {detector: (round(centres[detector][1] / ny), round(centres[detector][0] / nx)) for detector in tiles}
    rows = sorted({row for row, _ in across.values()}, reverse=True)
    columns = sorted({column for _, column in across.values()})
    plane: list[list[Image | None]] = [[None] * len(columns) for _ in rows]
    for detector, tile in tiles.items():
        row, column = across[detector]
        plane[rows.index(row)][columns.index(column)] = tile
    return mosaic(plane)
