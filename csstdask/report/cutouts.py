"""Show the busiest cut-outs of a run: before, mask, after."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup

from csstdask.report.document import join
from csstdask.report.images import grey_levels, picture, stretch
from csstdask.store.campaign_dataset import open_campaign

#: Side of a cut-out [pixel], and number of units that are shown.
_SIDE, _UNITS = 160, 2


def draw_cutouts(dataset: xr.Dataset, ignore_mask: int) -> Markup:
    """Return pictures of the units with most hit pixels, where most of their pixels are hit.

    Parameters
    ----------
    dataset : xarray.Dataset
        The run, as `csstdask.open_run` returns it.
    ignore_mask : int
        Flag bits of pixels that are ignored, for example saturated ones.
    """
    if "clean" not in dataset or "n_cr_pixels" not in dataset:
        return Markup()
    counts = np.nan_to_num(dataset["n_cr_pixels"].values, nan=-1)
    busiest = [np.unravel_index(flat, counts.shape) for flat in np.argsort(counts, axis=None)[::-1][:_UNITS]]
    return join(
        _triptych(dataset, int(row), int(column), ignore_mask) for row, column in busiest if counts[row, column] > 0
    )


def _triptych(dataset: xr.Dataset, row: int, column: int, ignore_mask: int) -> Markup:
    unit = dataset.isel(exposure=row, detector=column)
    window = _busiest_window(unit["cr_mask"].values)
    original = open_campaign(dataset.attrs["campaign_path"]).isel(exposure=row, detector=column).isel(window)
    before, after = original["sci"].values, unit["clean"].isel(window).values
    mask = unit["cr_mask"].isel(window).values
    ignored = (original["flag"].values & np.int32(ignore_mask)) != 0
    low, high = stretch(after, mask | ignored | (original["wht"].values <= 0))
    name = f"{unit['exposure'].item()} / {unit['detector'].item()}"
    images = (("before", before), ("mask", np.where(mask, high, low)), ("after", after))
    return join(picture(grey_levels(image, low, high), f"{name}: {title}") for title, image in images)


def _busiest_window(mask: npt.NDArray[np.bool_]) -> dict[str, slice]:
    """Return the cut-out with most hit pixels, on a grid of adjacent cut-outs."""
    side_y, side_x = min(_SIDE, mask.shape[0]), min(_SIDE, mask.shape[1])
    rows, columns = mask.shape[0] // side_y, mask.shape[1] // side_x
    blocks = mask[: rows * side_y, : columns * side_x].reshape(rows, side_y, columns, side_x).sum(axis=(1, 3))
    row, column = (int(index) for index in np.unravel_index(int(np.argmax(blocks)), blocks.shape))
    return {"y": slice(row * side_y, (row + 1) * side_y), "x": slice(column * side_x, (column + 1) * side_x)}
