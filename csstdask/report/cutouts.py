"""Before, mask, after: the places of a run that a person would want to look at, as pictures in a page."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from csstdask.store.campaign_dataset import open_campaign

_CUTOUT = 160
_UNITS = 2
#: A picture higher than this many times its width is fitted by its height.
_PORTRAIT = 1.5


def draw_cutouts(dataset: xr.Dataset, ignore_mask: int) -> str:
    """Return figures of the units with most hit pixels, at the place with most of them, before and after.

    Parameters
    ----------
    dataset : xarray.Dataset
        Of `csstdask.open_run`.
    ignore_mask : int
        Flag bits of pixels that take no part, saturated ones among them.
    """
    if "clean" not in dataset or "n_cr_pixels" not in dataset:
        return ""
    counts = np.nan_to_num(dataset["n_cr_pixels"].values, nan=-1)
    figures = []
    for flat in np.argsort(counts, axis=None)[::-1][:_UNITS]:
        row, column = (int(index) for index in np.unravel_index(flat, counts.shape))
        if counts[row, column] > 0:
            figures.append(_triptych(dataset, row, column, ignore_mask))
    return "".join(figures)


def _triptych(dataset: xr.Dataset, row: int, column: int, ignore_mask: int) -> str:
    one = dataset.isel(exposure=row, detector=column)
    window = _busiest(one["cr_mask"].values)
    original = open_campaign(dataset.attrs["campaign_path"]).isel(exposure=row, detector=column).isel(window)
    before, after = original["sci"].values, one["clean"].isel(window).values
    mask = one["cr_mask"].isel(window).values
    ignored = (original["flag"].values & np.int32(ignore_mask)) != 0
    low, high = stretch(after, mask | ignored | (original["wht"].values <= 0))
    name = f"{one['exposure'].item()} / {one['detector'].item()}"
    pictures = (("before", before), ("mask", np.where(mask, high, low)), ("after", after))
    return "".join(picture(grey_levels(image, low, high), f"{name}: {what}") for what, image in pictures)


def stretch(image: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the values that are black and white in a picture.

    Parameters
    ----------
    image : float array (y, x)
    mask : bool array (y, x)
        Pixels that have no say: hit, saturated or unusable.

    Notes
    -----
    From the first to the 99.5th percentile of the other pixels, but no further from their median than 60 times the
    distance between the median and the 16th percentile, about one sigma of the sky: unmasked pixels next to a
    saturated core are not to turn the rest black.
    """
    use = image[~mask & np.isfinite(image)]
    if not use.size:
        use = image[np.isfinite(image)]
    if not use.size:
        return 0.0, 1.0
    low, sky, middle, high = (float(value) for value in np.percentile(use, [1, 16, 50, 99.5]))
    sigma = middle - sky
    if sigma <= 0:
        return low, max(high, low + 1e-30)
    return max(low, middle - 5 * sigma), min(max(high, middle + 5 * sigma), middle + 60 * sigma)


def _busiest(mask: npt.NDArray[np.bool_]) -> dict[str, slice]:
    """Return the cut-out with most hit pixels, on a coarse grid."""
    side_y, side_x = min(_CUTOUT, mask.shape[0]), min(_CUTOUT, mask.shape[1])
    rows, columns = mask.shape[0] // side_y, mask.shape[1] // side_x
    blocks = mask[: rows * side_y, : columns * side_x].reshape(rows, side_y, columns, side_x).sum(axis=(1, 3))
    row, column = np.unravel_index(int(np.argmax(blocks)), blocks.shape)
    return {
        "y": slice(int(row) * side_y, (int(row) + 1) * side_y),
        "x": slice(int(column) * side_x, (int(column) + 1) * side_x),
    }


def grey_levels(image: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Return grey levels: asinh between two values, north of the array up."""
    unit = np.clip((np.nan_to_num(image, nan=low) - low) / max(high - low, 1e-30), 0, 1)
    return (255 * np.arcsinh(10 * unit) / np.arcsinh(10)).astype(np.uint8)[::-1]


def four_decades(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return an image as grey levels of its logarithm, four decades from its highest value."""
    share = np.maximum(image / max(float(np.max(image)), 1e-30), 1e-4)
    return np.asarray(255 * (np.log10(share) / 4 + 1), dtype=np.uint8)


def picture(grey: npt.NDArray[np.uint8], caption: str) -> str:
    """Return a figure that holds its own pixels."""
    data = base64.b64encode(png(grey)).decode()
    label = html.escape(caption)
    shape = ' class="portrait"' if grey.shape[0] > _PORTRAIT * grey.shape[1] else ""
    image = f'<img{shape} alt="{label}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{label}</figcaption></figure>"


def png(grey: npt.NDArray[np.uint8]) -> bytes:
    """Encode an 8-bit grey image: a page needs no plotting library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = grey.shape
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
