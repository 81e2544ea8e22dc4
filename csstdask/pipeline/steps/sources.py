"""Step 5: detect sources on the repaired frame, and measure their photometry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from csstdask.instrument import sky_positions
from csstdask.nn.models import find_card
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.step import Cost, Output, Step, Table

if TYPE_CHECKING:
    from csstdask.pipeline.frame import Frame

SOURCE_UNITS = {
    "x": "pixel", "y": "pixel", "ra": "deg", "dec": "deg", "a": "pixel", "b": "pixel", "theta": "deg",
    "half_light_radius": "pixel", "area": "pixel", "flux": "electron s-1", "flux_err": "electron s-1",
    "flux_aperture": "electron s-1", "flux_aperture_err": "electron s-1", "peak": "electron s-1",
}  # fmt: skip
"""Units of the columns of ``tables/sources``."""
#: Half the side of the box in which hit pixels of a source are counted [semi-major axis].
_BOX_RADIUS = 3.0


def find_sources(frame: Frame, config: RunConfig) -> Output:
    """Detect and measure sources; fluxes in electron s-1."""
    from csstdask.arrays.sources import measure_sources

    repaired = frame.repaired()
    if repaired is None:
        return Output(tables={"sources": _table(frame, None)}, metrics={"n_sources": 0})
    correlation = find_card("inpaint", config.repair.model).calibration.get("correlation", 0.0)
    settings = config.sources
    found = measure_sources(
        repaired.height,
        repaired.error,
        repaired.noise,
        repaired.mask,
        repaired=repaired.repaired,
        repair_correlation=correlation,
        noise_excess=repaired.noise_excess,
        threshold=settings.threshold,
        least_area=settings.min_area,
        aperture_radius=settings.aperture_radius,
        deblend_contrast=settings.deblend_contrast,
    )
    table = _table(frame, found, frame.product("cr_mask"))
    return Output(tables={"sources": table}, metrics={"n_sources": len(table["id"])})


def _table(frame: Frame, found: Table | None, hit: npt.NDArray[np.bool_] | None = None) -> Table:
    """Return the columns of the table, sorted by id (down the frame, then along it)."""
    names = (
        "flux", "flux_err", "flux_aperture", "flux_aperture_err", "peak", "a", "b", "theta", "ellipticity",
        "kron_radius", "half_light_radius", "repaired_fraction",
    )  # fmt: skip
    if found is None:
        found = {name: np.empty(0) for name in ("x", "y", *names)} | {
            "flag": np.empty(0, np.int32), "area": np.empty(0, np.int32),
        }  # fmt: skip
    order = np.lexsort((found["x"], found["y"]))
    found = {name: values[order] for name, values in found.items()}
    n = len(order)
    x, y = found["x"], found["y"]
    ra, dec = sky_positions(frame.header, x, y)
    per_second = {"flux", "flux_err", "flux_aperture", "flux_aperture_err", "peak"}
    exptime = frame.metadata.exptime if frame.metadata.exptime > 0 else np.nan
    table: Table = {
        "exposure": np.full(n, frame.metadata.exposure, dtype=object),
        "detector": np.full(n, frame.metadata.detector, dtype=np.int32),
        "id": np.arange(n, dtype=np.int32),
        "x": x,
        "y": y,
        "ra": ra,
        "dec": dec,
    }
    for name in names:
        table[name] = found[name] / exptime if name in per_second else found[name]
    table["area"] = found["area"]
    table["flag"] = found["flag"]
    table["n_cr_pixels"] = _hits(hit, x, y, found["a"]) if hit is not None else np.zeros(n, np.int32)
    return table


def _hits(
    hit: npt.NDArray[np.bool_],
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    a: npt.NDArray[np.float64],
) -> npt.NDArray[np.int32]:
    """Count the hit pixels in a box of three semi-major axes around each source."""
    count = np.zeros(len(x), np.int32)
    reach = np.ceil(_BOX_RADIUS * a).astype(int)
    for i, (column, row) in enumerate(zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True)):
        window = (
            slice(max(0, row - reach[i]), row + reach[i] + 1),
            slice(max(0, column - reach[i]), column + reach[i] + 1),
        )
        count[i] = np.count_nonzero(hit[window])
    return count


SOURCES = Step(
    name="sources",
    requires=("background", "detect", "repair"),
    kinds=frozenset({"imaging"}),
    numerics_version=7,
    body=find_sources,
    settings=lambda config: config.sources.decisive(),
    tables={"sources": SOURCE_UNITS},
    metrics=("n_sources",),
    cost=lambda _config, _instrument: Cost(
        seconds_per_mpix=0.075, fixed_seconds=0.03, bytes_per_pixel=56.0, fixed_bytes=100 << 20
    ),
)
