"""Tables of SEDs: round trip, selected stars, and invalid tables."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csstdask.core.errors import InputError
from csstdask.flux.sed_table import ROW_GROUP_SIZE, SedTable, check_seds, read_seds, write_seds

WAVELENGTH = np.geomspace(2500, 10500, 20)


@pytest.fixture
def seds():
    rng = np.random.default_rng(0)
    mean = rng.uniform(0.5, 2, (3, 20)).astype(np.float32)
    modes = rng.normal(size=(3, 2, 20)).astype(np.float32)
    ids = np.array(["a", "b", "c"], dtype=object)
    return SedTable(ids, WAVELENGTH, mean, 0.1 * mean, modes, np.array([False, True, False]))


def test_round_trip(seds, tmp_path):
    write_seds(tmp_path / "seds.parquet", seds)
    found = read_seds(tmp_path / "seds.parquet")
    for name in seds.__dataclass_fields__:
        assert np.array_equal(getattr(found, name), getattr(seds, name)), name
    first = (tmp_path / "seds.parquet").read_bytes()
    write_seds(tmp_path / "seds.parquet", found)
    assert (tmp_path / "seds.parquet").read_bytes() == first


def test_select_stars(seds, tmp_path):
    write_seds(tmp_path / "seds.parquet", seds)
    found = read_seds(tmp_path / "seds.parquet", ["c", "unknown"])
    assert found.id.tolist() == ["c"]
    assert np.array_equal(found.modes[0], seds.modes[2])
    nothing = read_seds(tmp_path / "seds.parquet", [])
    assert len(nothing) == 0
    assert nothing.mean.shape == (0, 20)


@pytest.mark.parametrize(
    ("columns", "metadata", "message"),
    [
        ({"id": ["a"]}, {}, "found no column mean, sigma"),
        ({"id": ["a"], "mean": [[1.0]], "sigma": [[1.0]]}, {}, "found no wavelengths in the metadata"),
        (
            {"id": ["a"], "mean": [[1.0] * 3], "sigma": [[1.0] * 4]},
            {"wavelength": json.dumps([1, 2, 3, 4])},
            "found 3 values of mean for star a; wanted 4",
        ),
        ({"id": ["a"], "mean": [[1.0]], "sigma": [[1.0]]}, {"wavelength": "[4, 3, 2, 1]"}, "do not ascend"),
        (
            {
                "id": ["a", "b"],
                "mean": [[1.0] * 4] * 2,
                "sigma": [[1.0] * 4] * 2,
                "modes": [[1.0] * 4, [1.0] * 12],
            },
            {"wavelength": json.dumps([1, 2, 3, 4])},
            "found 12 values of modes for star b; wanted 4, as of the first star",
        ),
        (
            {"id": ["a", "a"], "mean": [[1.0] * 4] * 2, "sigma": [[1.0] * 4] * 2},
            {"wavelength": json.dumps([1, 2, 3, 4])},
            r"found a duplicate id \(a\); wanted each star once",
        ),
    ],
    ids=["columns", "wavelengths", "length", "order", "rank", "twice"],
)
def test_invalid_tables_raise(tmp_path, columns, metadata, message):
    path = tmp_path / "seds.parquet"
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match=message) as caught:
        read_seds(path)
    assert str(path) in str(caught.value)


def test_other_formats_raise(tmp_path):
    (tmp_path / "seds.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match="no readable Parquet table"):
        check_seds(tmp_path / "seds.parquet")


def test_numbers_as_ids_and_unusable_rows(tmp_path):
    columns = {
        "id": [7, 8, 9, 10],
        "mean": [[1.0] * 4, [1.0, float("nan"), 1.0, 1.0], [1.0, 1.0, 0.0, 1.0], [1.0] * 4],
        "sigma": [[0.1] * 4] * 4,
        "out_of_domain": [False, False, False, True],
    }
    table = pa.table(columns).replace_schema_metadata({"wavelength": json.dumps([1, 2, 3, 4])})
    pq.write_table(table, tmp_path / "seds.parquet")
    found = read_seds(tmp_path / "seds.parquet", ["10", "7"])
    assert found.id.tolist() == ["7", "10"]
    assert found.usable.tolist() == [True, False]
    assert read_seds(tmp_path / "seds.parquet").usable.tolist() == [True, False, False, False]


def test_only_needed_row_groups_are_read(tmp_path, monkeypatch):
    n = 5 * ROW_GROUP_SIZE + 7
    rng = np.random.default_rng(4)
    mean = rng.uniform(0.5, 2, (n, 20)).astype(np.float32)
    ids = np.array([f"s{i}" for i in range(n)], dtype=object)
    whole = SedTable(ids, WAVELENGTH, mean, 0.1 * mean, np.zeros((n, 0, 20), np.float32), np.zeros(n, bool))
    write_seds(tmp_path / "seds.parquet", whole)
    chosen = [3, ROW_GROUP_SIZE + 1, 4 * ROW_GROUP_SIZE - 1, n - 1]
    read = []
    original = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_groups", lambda self, groups: read.extend(groups) or original(self, groups)
    )
    found = read_seds(tmp_path / "seds.parquet", [f"s{i}" for i in chosen])
    assert read == [0, 1, 3, 5]
    assert found.id.tolist() == [f"s{i}" for i in chosen]
    assert np.array_equal(found.mean, mean[chosen])
