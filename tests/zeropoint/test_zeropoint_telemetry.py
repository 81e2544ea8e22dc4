"""Tables of telemetry: gaps, unknown columns, and errors that name the file."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csstdask.core.errors import InputError
from csstdask.zeropoint.telemetry import check_telemetry, read_telemetry


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_exposures_are_selected_by_name_and_gaps_are_nan(tmp_path):
    path = write(
        tmp_path / "t.parquet", exposure=["b", "a"], focus=[0.5, None], sun_angle=[np.inf, 90], mystery=["x", "y"]
    )
    assert check_telemetry(path) == ["focus", "sun_angle"]
    found = read_telemetry(path).select(["a", "c", "b", "a"])
    assert set(found) == {"focus", "sun_angle"}
    np.testing.assert_array_equal(found["focus"], [np.nan, np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(found["sun_angle"], [90, np.nan, np.nan, 90])


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"focus": [1.0]}, "found columns focus"),
        ({"exposure": ["a"], "other": [1.0]}, "found columns exposure, other"),
        ({"exposure": ["a", "a"], "focus": [1.0, 2.0]}, "found several rows of exposure a"),
        ({"exposure": ["a"], "focus": ["high"]}, "found column focus of type string; wanted numbers"),
    ],
)
def test_tables_without_telemetry_are_refused(tmp_path, columns, found):
    path = write(tmp_path / "t.parquet", **columns)
    with pytest.raises(InputError, match=found):
        read_telemetry(path)


def test_files_that_are_not_tables_are_refused(tmp_path):
    (tmp_path / "t.parquet").write_text("focus")
    with pytest.raises(InputError, match="found no readable Parquet table"):
        check_telemetry(tmp_path / "t.parquet")
