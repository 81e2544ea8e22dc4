"""A small plain page: what was done, what failed, what the cosmic rays look like, before and after."""

from __future__ import annotations

import base64
import html
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from csstdask.durable import write_atomic
from csstdask.pipeline.run import Summary, status
from csstdask.pipeline.views import open_run
from csstdask.store.campaign import open_campaign

_CUTOUT = 160
_LARGEST_TABLE = 500

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .7rem; text-align: right }
th { border-bottom: 1px solid #888 } td:first-child, th:first-child { text-align: left }
figure { display: inline-block; margin: 0 1rem 1rem 0 } figcaption { font-size: 13px; color: #555 }
img { image-rendering: pixelated; width: 19rem } .failed { color: #a00 }
"""


def write_report(run: str | Path, to: str | Path, campaign: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about a run.

    Parameters
    ----------
    run : path
        The run's store.
    to : path
        The page.
    campaign : path, optional
        Where the campaign lies, if it has moved.
    """
    summary = status(run, campaign=campaign)
    dataset = open_run(run, campaign)
    parts = [
        _title(run, dataset, summary),
        _failures(summary),
        _metrics_table(dataset),
        _cutouts(dataset),
        _settings(dataset),
    ]
    body = "\n".join(part for part in parts if part)
    head = f'<meta charset="utf-8"><title>{html.escape(Path(run).name)}</title><style>{_STYLE}</style>'
    page = f'<!doctype html><html lang="en">{head}<body>{body}</body></html>'
    write_atomic(Path(to), page.encode())
    return Path(to)


def _title(run: str | Path, dataset: xr.Dataset, summary: Summary) -> str:
    ny, nx = dataset.sizes["y"], dataset.sizes["x"]
    return (
        f"<h1>{html.escape(Path(run).name)}</h1>"
        f"<p>{summary.total} units of {ny} x {nx} pixels: <b>{summary.done} done</b>, "
        f'<span class="{"failed" if summary.failed else ""}">{summary.failed} failed</span>, '
        f"{summary.pending} pending.</p>"
    )


def _failures(summary: Summary) -> str:
    if not summary.failures:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(item['exposure'])}</td><td>{item['detector']}</td><td>{html.escape(item['step'])}</td>"
        f"<td>{html.escape(item['reason'])}</td></tr>"
        for item in summary.failures[:_LARGEST_TABLE]
    )
    head = "".join(f"<th>{name}</th>" for name in ("exposure", "detector", "step", "reason"))
    return f'<h2 class="failed">Failures</h2><table><tr>{head}</tr>{rows}</table>'


def _metrics_table(dataset: xr.Dataset) -> str:
    names = [
        name
        for name in dataset.data_vars
        if dataset[name].dims == ("exposure", "detector") and dataset[name].dtype == "f8"
    ]
    if not names:
        return ""
    values = {name: dataset[name].values for name in names}
    head = "".join(f"<th>{name}</th>" for name in ("exposure", "detector", "band", *names))
    rows = []
    for row, column in zip(*np.nonzero(np.isfinite(np.stack(list(values.values()))).any(axis=0)), strict=True):
        cells = [str(dataset["exposure"].values[row]), str(dataset["detector"].values[column])]
        cells.append(str(dataset["band"].values[row, column]))
        cells += [_number(values[name][row, column]) for name in names]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    more = f"<p>and {len(rows) - _LARGEST_TABLE} more</p>" if len(rows) > _LARGEST_TABLE else ""
    note = (
        "<p>Incoming cosmic-ray flags (<i>n_cr_input_pixels</i>) are those of the files' own pipeline: "
        "compared with ours (<i>n_cr_both_pixels</i> agree), never used.</p>"
    )
    return f"<h2>Units</h2><table><tr>{head}</tr>{''.join(rows[:_LARGEST_TABLE])}</table>{more}{note}"


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"


def _cutouts(dataset: xr.Dataset) -> str:
    """Show the busiest of a few units, before and after, at the place with most hit pixels."""
    if "clean" not in dataset or "n_cr_pixels" not in dataset:
        return ""
    counts = np.nan_to_num(dataset["n_cr_pixels"].values, nan=-1)
    order = np.argsort(counts, axis=None)[::-1][:2]
    figures = []
    for flat in order:
        row, column = np.unravel_index(flat, counts.shape)
        if counts[row, column] <= 0:
            continue
        one = dataset.isel(exposure=int(row), detector=int(column))
        sci_source = one["clean"].where(~one["cr_mask"])
        window = _busiest(one["cr_mask"].values)
        before, after = (
            _original(dataset, int(row), int(column)).isel(window).values,
            one["clean"].isel(window).values,
        )
        mask = one["cr_mask"].isel(window).values
        low, high = np.nanpercentile(sci_source.isel(window).values, [2, 99.5])
        name = f"{one['exposure'].item()} / {one['detector'].item()}"
        for what, image in (("before", before), ("mask", np.where(mask, high, low)), ("after", after)):
            figures.append(_figure(_scale(image, low, high), f"{name}: {what}"))
    return f"<h2>Before, mask, after</h2>{''.join(figures)}" if figures else ""


def _original(dataset: xr.Dataset, row: int, column: int) -> xr.DataArray:
    return open_campaign(dataset.attrs["campaign_path"])["sci"].isel(exposure=row, detector=column)


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


def _scale(image: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Return grey levels: asinh between two values, north of the array up."""
    unit = np.clip((np.nan_to_num(image, nan=low) - low) / max(high - low, 1e-30), 0, 1)
    return (255 * np.arcsinh(10 * unit) / np.arcsinh(10)).astype(np.uint8)[::-1]


def _figure(grey: npt.NDArray[np.uint8], caption: str) -> str:
    data = base64.b64encode(_png(grey)).decode()
    label = html.escape(caption)
    return f'<figure><img alt="{label}" src="data:image/png;base64,{data}"><figcaption>{label}</figcaption></figure>'


def _png(grey: npt.NDArray[np.uint8]) -> bytes:
    """Encode an 8-bit grey image: a page needs no plotting library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = grey.shape
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _settings(dataset: xr.Dataset) -> str:
    kept = {key: dataset.attrs[key] for key in ("steps", "config", "fingerprint", "software") if key in dataset.attrs}
    return f"<h2>Settings</h2><pre>{html.escape(json.dumps(kept, indent=1))}</pre>"
