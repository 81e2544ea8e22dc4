"""Read the telemetry of exposures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from csstdask.core.errors import InputError
from csstdask.zeropoint.prior import TELEMETRY_NAMES

Float = npt.NDArray[np.float64]

_WANTED = f"columns exposure (text) and some of {', '.join(TELEMETRY_NAMES)}"


@dataclass(frozen=True)
class TelemetryTable:
    """Telemetry of exposures, one per row."""

    exposure: npt.NDArray[np.object_]
    """(m,) Ids of the exposures, each once."""
    values: Mapping[str, Float]
    """Values (m,) by name, of `csstdask.zeropoint.prior.TELEMETRY_NAMES`; NaN in gaps."""

    def select(self, exposures: Sequence[str]) -> dict[str, Float]:
        """Return the values (n,) of each name for given exposures; NaN for exposures without a row.

        Examples
        --------
        >>> table = TelemetryTable(np.array(["a"], dtype=object), {"focus": np.array([0.3])})
        >>> table.select(["a", "b"])["focus"].tolist()
        [0.3, nan]
        """
        rows = {str(name): row for row, name in enumerate(self.exposure)}
        index = np.array([rows.get(str(name), -1) for name in exposures], dtype=np.int64)
        # Row -1 is the NaN that is appended.
        return {name: np.append(values, np.nan)[index] for name, values in self.values.items()}


def check_telemetry(path: Path) -> list[str]:
    """Return the names of the telemetry in a table; only its schema is read.

    Raises
    ------
    InputError
        If the file is not a readable table of telemetry.
    """
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise InputError(path, f"no readable Parquet table ({type(error).__name__})", _WANTED) from None
    known = [name for name in TELEMETRY_NAMES if name in names]
    if "exposure" not in names or not known:
        raise InputError(path, f"columns {', '.join(names)}", _WANTED)
    return known


def read_telemetry(path: Path) -> TelemetryTable:
    """Read a table of telemetry.

    Parameters
    ----------
    path : Path
        Parquet table with a row per exposure: ``exposure`` and some of `csstdask.zeropoint.prior.TELEMETRY_NAMES`.
        Other columns are ignored; absent ones are gaps.

    Raises
    ------
    InputError
        If the file is no such table, a column holds no numbers, or an exposure has two rows.
    """
    names = check_telemetry(path)
    table = pq.read_table(path, columns=["exposure", *names])
    exposure = np.array([str(name) for name in table["exposure"].to_pylist()], dtype=object)
    unique, counts = np.unique(exposure.astype(str), return_counts=True)
    if (counts > 1).any():
        raise InputError(path, f"several rows of exposure {unique[counts > 1][0]}", "one row an exposure")
    values = {}
    for name in names:
        try:
            column = table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowException:
            raise InputError(path, f"column {name} of type {table[name].type}", "numbers") from None
        values[name] = np.where(np.isfinite(column), column, np.nan)
    return TelemetryTable(exposure, values)
