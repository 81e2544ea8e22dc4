"""Read the source tables of a run with calibrated magnitudes.

The tables on disk contain fluxes. Zero points are derived from the whole campaign, and change when it grows: magnitudes
are therefore computed when a table is read, and no table is rewritten. Only results of the present settings and pixels
are used: tables and aperture corrections of finished units, and zero points of the present units.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from csstdask.core.errors import InputError
from csstdask.engine.ledger import Ledger
from csstdask.engine.work_units import Unit
from csstdask.pipeline.calibrations import current_zero_points
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.reductions.zeropoints import METHOD_ARRAY
from csstdask.pipeline.status import load_plan
from csstdask.pipeline.steps.sources import SOURCES
from csstdask.store.tables import read_arrow, table_path
from csstdask.zeropoint.photometry import instrumental_magnitude

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ZeroPointValue:
    """The zero point of one unit."""

    value: float = float("nan")
    """[mag]; NaN where unknown."""
    sigma: float = float("inf")
    """1 sigma of it [mag]; inf where unknown."""
    method: str = ""
    """Method (``solve``, ``joined``, ``prior``, ``borrowed``, ``nominal``); empty where unknown."""
    correction: float = float("nan")
    """Aperture correction to the total light of a star [mag]; NaN where unknown."""

    @property
    def known(self) -> bool:
        """Return whether there is a value with a finite error."""
        return bool(np.isfinite(self.value) and np.isfinite(self.sigma))


class ZeroPointTable:
    """The zero points of the present units of a run.

    Parameters
    ----------
    root : Path
        Store of the run. The records of all units are read, about 0.2 ms each.
    plan : Plan
        As the run remembers it (`csstdask.pipeline.status.load_plan`).
    """

    def __init__(self, root: Path, plan: Plan) -> None:
        self._plan = plan
        self._arrays = current_zero_points(root, plan)

    @property
    def finished(self) -> bool:
        """Return whether the run has zero points of its present units."""
        return self._arrays is not None

    def of(self, exposure: str, detector: int) -> ZeroPointValue:
        """Return the zero point of a unit; InputError if the campaign has no such unit."""
        row, column = self._plan.campaign.index(exposure, detector)
        if self._arrays is None or row >= len(self._arrays["zp"]):
            return ZeroPointValue()
        return ZeroPointValue(
            value=float(self._arrays["zp"][row, column]),
            sigma=float(self._arrays["zp_sigma"][row, column]),
            method=str(self._arrays[METHOD_ARRAY][row, column]),
            correction=float(self._arrays["zp_correction"][row, column]),
        )


class SourceTables:
    """The source tables of the finished units of a run, with calibrated magnitudes.

    Parameters
    ----------
    root : Path
        The run's store.
    plan : Plan
        As the run remembers it (`csstdask.pipeline.status.load_plan`).
    """

    def __init__(self, root: Path, plan: Plan) -> None:
        self._root, self._plan, self._ledger = root, plan, Ledger(root)
        self._zero_points = ZeroPointTable(root, plan)

    def is_done(self, exposure: str, detector: int) -> bool:
        """Return whether the source table of a unit belongs to the present settings and pixels."""
        campaign, unit = self._plan.campaign, Unit(exposure, detector)
        if not table_path(self._root, "sources", exposure, detector).is_file():
            return False
        if not campaign.is_present(exposure, detector):
            return False
        wanted = self._plan.fingerprints(campaign.metadata(exposure, detector)).get(SOURCES.name)
        return wanted is not None and bool(self._ledger.read(unit).up_to_date(self._root, {SOURCES.name: wanted}))

    def read(self, exposure: str, detector: int) -> pa.Table:
        """Return the sources of a finished unit; see `read_sources`."""
        path = table_path(self._root, "sources", exposure, detector)
        return add_magnitudes(read_arrow(path), self._zero_points.of(exposure, detector))


def read_sources(
    run: str | Path,
    exposure: str | None = None,
    detector: int | None = None,
    *,
    campaign: str | Path | None = None,
) -> pa.Table:
    """Read the source tables of a run, with calibrated magnitudes.

    Parameters
    ----------
    run : str or Path
        The run's store.
    exposure : str, optional
        Id of an exposure; default: all.
    detector : int, optional
        Id of a detector; default: all.
    campaign : str or Path, optional
        Path of the campaign, if it has moved.

    Returns
    -------
    pyarrow.Table
        The columns of ``tables/sources``, fluxes in electron s-1, and

        * ``mag``, ``mag_err``: magnitude of ``flux``, the light in the Kron ellipse, zp - 2.5 log10(flux);
        * ``mag_aperture``, ``mag_aperture_err``: magnitude of ``flux_aperture``, corrected to the total light of a star
          with the PSF of the unit: the magnitude of a point source.

        AB magnitudes in the natural system of the camera: neither a colour term nor a correction over the field is
        applied. Errors include that of the zero point, ``zp_sigma``, which all sources of a unit share. Null where the
        flux is not positive, and everywhere if the zero points of the run do not belong to its present units.
        Units that are unfinished for the present settings and pixels are left out. Units of columns are in the schema.

    Raises
    ------
    InputError
        If the run has no such exposure or detector, or no finished source table of it.
    StoreError
        If there is no run or no campaign, or a file of the run is damaged.
    """
    root = Path(run)
    tables = SourceTables(root, load_plan(root, campaign))
    pattern = f"{exposure or '*'}/{'*' if detector is None else detector}.parquet"
    found = (
        sorted((path.parent.name, int(path.stem)) for path in (root / "tables" / "sources").glob(pattern))
        if exposure is None or detector is None
        else [(exposure, detector)]
    )
    units = [unit for unit in found if tables.is_done(*unit)]
    if not units:
        unit = f"{'any exposure' if exposure is None else exposure}/{'any detector' if detector is None else detector}"
        raise InputError(
            root, f"no source table of {unit} that is done", "units that are done (csstdask status says which)"
        )
    return pa.concat_tables([tables.read(*unit) for unit in units])


def add_magnitudes(sources: pa.Table, zero_point: ZeroPointValue) -> pa.Table:
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
