"""Source tables of a run with calibrated magnitudes, which are computed when the tables are read.

The tables on disk hold fluxes. Zero points follow from the whole campaign and change when it grows: magnitudes are
joined to the rows here, and no table is written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from csstdask.errors import InputError
from csstdask.pipeline.reductions.zeropoints import METHOD, read_zero_points
from csstdask.store.tables import read_arrow, table_path
from csstdask.store.zarr_arrays import array_names, get_array, open_group, read_small
from csstdask.zeropoint.photometry import instrumental_magnitude

Float = npt.NDArray[np.float64]

CORRECTION = "zp_aperture_correction"
"""The metric that leads from the aperture to the total light of a star [mag]."""


@dataclass(frozen=True)
class ZeroPointValue:
    """The zero point of one unit."""

    value: float
    """[mag]; NaN where unknown."""
    sigma: float
    """inf where unknown."""
    method: str
    """Empty where unknown."""
    correction: float
    """From the aperture to the total light of a star [mag]."""

    @property
    def known(self) -> bool:
        """Tell whether there is a value with an error."""
        return bool(np.isfinite(self.value) and np.isfinite(self.sigma))


UNKNOWN = ZeroPointValue(float("nan"), float("inf"), "", 0.0)


class ZeroPointTable:
    """The zero points of a run, by unit.

    Parameters
    ----------
    root : Path
        The run's store.
    """

    def __init__(self, root: Path) -> None:
        group = open_group(root, "run")
        exposures, detectors = (read_small(group, name).tolist() for name in ("exposure", "detector"))
        self._rows = {str(name): row for row, name in enumerate(exposures)}
        self._columns = {int(name): column for column, name in enumerate(detectors)}
        self._arrays: Mapping[str, npt.NDArray[Any]] | None = read_zero_points(root)
        self._correction = np.asarray(get_array(group, CORRECTION)[...]) if CORRECTION in array_names(root) else None

    @property
    def finished(self) -> bool:
        """Tell whether the run has finished zero points."""
        return self._arrays is not None

    def of(self, exposure: str, detector: int) -> ZeroPointValue:
        """Return the zero point of a unit; InputError if the run has no such unit."""
        if exposure not in self._rows or detector not in self._columns:
            raise InputError("unit", f"{exposure}/{detector}", "an exposure and a detector of the run")
        where = self._rows[exposure], self._columns[detector]
        if self._arrays is None:
            return UNKNOWN
        correction = np.nan if self._correction is None else float(self._correction[where])
        return ZeroPointValue(
            value=float(self._arrays["zp"][where]),
            sigma=float(self._arrays["zp_sigma"][where]),
            method=str(self._arrays[METHOD][where]),
            correction=correction if np.isfinite(correction) else 0.0,
        )


def read_sources(
    run: str | Path, exposure: str | None = None, detector: int | None = None, *, table: ZeroPointTable | None = None
) -> pa.Table:
    """Read the source tables of a run, with calibrated magnitudes.

    Parameters
    ----------
    run : str or Path
        The run's store.
    exposure : str, optional
        One exposure; by default all.
    detector : int, optional
        One detector; by default all.
    table : ZeroPointTable, optional
        Of the run, where it has been read already.

    Returns
    -------
    pyarrow.Table
        The columns of ``tables/sources``, fluxes in electron s-1, and

        * ``mag``, ``mag_err``: of ``flux``, the light in the Kron ellipse, zp - 2.5 log10(flux);
        * ``mag_aperture``, ``mag_aperture_err``: of ``flux_aperture``, corrected to the total light of a star by the
          PSF of the unit: the magnitude of a point source.

        AB magnitudes in the natural system of the camera: neither a colour term nor a correction over the field is
        applied. Errors include that of the zero point, ``zp_sigma``, which all sources of a unit share. Null where the
        flux is not positive or the run has no zero point of the unit. Units of columns are in the schema.

    Raises
    ------
    InputError
        If the run has no such exposure or detector, or no source table of it.
    StoreError
        If there is no run, or a file of it is damaged.
    """
    root = Path(run)
    known = ZeroPointTable(root) if table is None else table
    pattern = f"{exposure or '*'}/{'*' if detector is None else detector}.parquet"
    paths = (
        sorted((root / "tables" / "sources").glob(pattern), key=lambda path: (path.parent.name, int(path.stem)))
        if exposure is None or detector is None
        else [table_path(root, "sources", exposure, detector)]
    )
    paths = [path for path in paths if path.is_file()]
    if not paths:
        unit = f"{'any exposure' if exposure is None else exposure}/{'any detector' if detector is None else detector}"
        raise InputError(root, f"no source table of {unit}", "a unit that the step sources has been through")
    units = [(path, known.of(path.parent.name, int(path.stem))) for path in paths]
    return pa.concat_tables([calibrated(read_arrow(path), zero_point) for path, zero_point in units])


def calibrated(sources: pa.Table, zero_point: ZeroPointValue) -> pa.Table:
    """Return a source table with magnitudes; see `read_sources`."""
    for name, flux, correction in (("mag", "flux", 0.0), ("mag_aperture", "flux_aperture", zero_point.correction)):
        rate, error = (
            sources[column].cast(pa.float64()).to_numpy(zero_copy_only=False) for column in (flux, f"{flux}_err")
        )
        magnitude, magnitude_error = instrumental_magnitude(rate, error)
        magnitude = magnitude + correction + (zero_point.value if zero_point.known else np.nan)
        magnitude_error = np.where(np.isfinite(magnitude), np.hypot(magnitude_error, zero_point.sigma), np.nan)
        for column, values in ((name, magnitude), (f"{name}_err", magnitude_error)):
            field = pa.field(column, pa.float64(), metadata={"unit": "mag"})
            sources = sources.append_column(field, pa.array(values, from_pandas=True))
    return sources
