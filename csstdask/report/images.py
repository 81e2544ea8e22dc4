"""Show arrays as pictures: grey levels, mosaics, and PNG images inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from csstdask.instrument import Instrument
from csstdask.report.document import render

#: Grey levels of a picture (y, x), top row first.
GreyLevels = npt.NDArray[np.uint8]

#: Pictures higher than this many times their width are scaled to a fixed height.
_PORTRAIT_RATIO = 1.5


def stretch(image: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the values that are shown as black and as white.

    Parameters
    ----------
    image : float array (y, x)
    mask : bool array (y, x)
        Pixels that are not considered: hit by cosmic rays, saturated or unusable.

    Returns
    -------
    low, high : float
        The 1st and the 99.5th percentile of the other pixels, limited to 60 sigma of the sky above their median: a
        saturated core does not turn the rest of the picture black. Sigma is the median minus the 16th percentile.
    """
    use = image[~mask & np.isfinite(image)]
    if not use.size:
        use = image[np.isfinite(image)]
    if not use.size:
        return 0.0, 1.0
    low, low_sigma, median, high = (float(value) for value in np.percentile(use, [1, 16, 50, 99.5]))
    sigma = median - low_sigma
    if sigma <= 0:
        return low, max(high, low + 1e-30)
    return max(low, median - 5 * sigma), min(max(high, median + 5 * sigma), median + 60 * sigma)


def grey_levels(image: npt.NDArray[Any], low: float, high: float) -> GreyLevels:
    """Return the grey levels of an image, asinh between two values, with the last row on top.

    Examples
    --------
    >>> grey_levels(np.array([[0.0, np.nan], [1.0, 2.0]]), 0, 1).tolist()
    [[255, 255], [0, 0]]
    """
    unit = np.clip((np.nan_to_num(image, nan=low) - low) / max(high - low, 1e-30), 0, 1)
    return (255 * np.arcsinh(10 * unit) / np.arcsinh(10)).astype(np.uint8)[::-1]


def log_grey_levels(image: npt.NDArray[Any]) -> GreyLevels:
    """Return the grey levels of an image: its logarithm over the four decades below the maximum."""
    relative = np.maximum(image / max(float(np.max(image)), 1e-30), 1e-4)
    return np.asarray(255 * (np.log10(relative) / 4 + 1), dtype=np.uint8)


def difference_grey_levels(difference: npt.NDArray[Any], limit: float) -> GreyLevels:
    """Return the grey levels of a difference: medium grey is zero, black and white are minus and plus the limit."""
    return np.asarray(255 * np.clip(difference / limit / 2 + 0.5, 0, 1), dtype=np.uint8)


def mosaic(tiles: Sequence[Sequence[GreyLevels | None]], gap: int = 1) -> GreyLevels:
    """Return tiles of equal size side by side, top row first; None leaves a position empty."""
    height, width = next(tile.shape for row in tiles for tile in row if tile is not None)
    rows, columns = len(tiles), len(tiles[0])
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap), dtype=np.uint8)
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            if tile is not None:
                y, x = i * (height + gap), j * (width + gap)
                canvas[y : y + height, x : x + width] = tile
    return canvas


def focal_plane_mosaic(instrument: Instrument, tiles: Mapping[int, GreyLevels]) -> GreyLevels:
    """Return one tile per detector, at the detector's position in the focal plane; without geometry, in one row."""
    if instrument.geometry is None:
        return mosaic([list(tiles.values())])
    centres = instrument.geometry.centres
    ny, nx = instrument.shape or (1, 1)
    cells = {detector: (round(centres[detector][1] / ny), round(centres[detector][0] / nx)) for detector in tiles}
    rows = sorted({row for row, _ in cells.values()}, reverse=True)
    columns = sorted({column for _, column in cells.values()})
    plane: list[list[GreyLevels | None]] = [[None] * len(columns) for _ in rows]
    for detector, tile in tiles.items():
        row, column = cells[detector]
        plane[rows.index(row)][columns.index(column)] = tile
    return mosaic(plane)


def picture(grey: GreyLevels, caption: str) -> Markup:
    """Return an HTML figure that contains the picture as a PNG image."""
    data = base64.b64encode(png(grey)).decode()
    portrait = grey.shape[0] > _PORTRAIT_RATIO * grey.shape[1]
    return render("picture.html.jinja", data=data, caption=caption, portrait=portrait)


def png(grey: GreyLevels) -> bytes:
    """Return a picture as a PNG file with 8 bits per pixel."""
    from PIL import Image  # noqa: PLC0415  only a report needs it

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(grey)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
