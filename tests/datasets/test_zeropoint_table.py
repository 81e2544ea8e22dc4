"""Tables of measured zero points: cuts, nights, splits, and errors of unusable files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.datasets.zeropoint_table import night_number, read_exposures, split_by_night, train_nights

HEADER = "campaign,camera,band,mjd_obs,exptime,airmass,ebv,seeing,sky,nmatched,zeropoint"
GOOD = "one,cam,g,57000.9,90,1.2,0.05,1.1,21.5,120,26.5"


def _write(folder: Path, rows: list[str], header: str = HEADER, name: str = "exposures.csv.gz") -> Path:
    path = folder / name
    data = "\n".join([header, *rows, ""]).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def test_cuts_and_order(tmp_path: Path) -> None:
    rows = [
        GOOD.replace("57000.9", "57001.2"),
        GOOD,
        GOOD.replace("26.5", "15.0"),  # must exceed 15
        GOOD.replace("120", "14"),
        GOOD.replace("120", "15"),  # 15 stars are enough
        GOOD.replace(",90,", ",9.9,"),
        GOOD.replace("1.2,", "0.0,"),
        GOOD.replace("26.5", ""),
        GOOD.replace("57000.9", ""),
        GOOD.replace("one", "two").replace("0.05", ""),
    ]
    tables = read_exposures(_write(tmp_path, rows))
    assert list(tables) == ["one", "two"]
    one = tables["one"]
    assert (len(one), one.n_rejected) == (3, 6)
    assert one.days.tolist() == sorted(one.days.tolist())
    assert one.days[0] == pytest.approx(57000.9 - 51544.5)
    assert one.night.tolist() == [57000] * 3
    assert np.isnan(tables["two"].conditions["ebv"]).all()
    assert np.isnan(one.conditions["rabore"]).all()  # a column that is absent is unknown
    plain = read_exposures(_write(tmp_path, rows, name="exposures.csv"))
    assert plain["one"].zero_point.tolist() == one.zero_point.tolist()
    assert one.take(one.n_matched > 20).n_matched.tolist() == [120, 120]


def test_nights_and_split() -> None:
    assert night_number([57000.69, 57000.71, 57001.69]).tolist() == [56999, 57000, 57000]
    assert train_nights(np.arange(65)).tolist() == list(range(39))
    assert len(train_nights(np.arange(15))) == 9  # 0.6 * 15 is 8.999... in floating point
    assert train_nights([4, 9]).tolist() == [4]
    assert train_nights([4]).tolist() == []


def test_split_keeps_nights_together_and_in_order(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = [GOOD.replace("57000.9", f"{mjd:.5f}") for mjd in 57000.8 + rng.uniform(0, 10, 200)]
    table = read_exposures(_write(tmp_path, rows))["one"]
    train = split_by_night(table)
    assert table.night[train].max() < table.night[~train].min()
    assert len(np.unique(table.night[train])) == int(0.6 * len(table.nights))


@pytest.mark.parametrize(
    ("header", "row", "found", "wanted"),
    [
        (HEADER.replace(",zeropoint", ""), GOOD.rpartition(",")[0], "no column zeropoint", "a header with campaign"),
        (HEADER, GOOD.replace("26.5", "5"), "no usable row among 1", "zeropoint > 15"),
        (HEADER, GOOD.replace("1.2,", "low,"), "a column airmass of type string", "numbers"),
        (HEADER, "one,cam", "a file that cannot be read", "a CSV file"),
        (HEADER.replace("camera", "band"), GOOD, "several columns band", "once"),
    ],
)
def test_unusable_tables(tmp_path: Path, header: str, row: str, found: str, wanted: str) -> None:
    path = _write(tmp_path, [row], header)
    with pytest.raises(InputError, match=found) as caught:
        read_exposures(path)
    assert wanted in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        read_exposures(tmp_path / "absent.csv.gz")
    with pytest.raises(InputError, match="cannot be read"):
        read_exposures(tmp_path)
    damaged = tmp_path / "damaged.csv.gz"
    damaged.write_bytes(b"not compressed")
    with pytest.raises(InputError, match="cannot be read"):
        read_exposures(damaged)
    empty = tmp_path / "empty.csv"
    empty.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        read_exposures(empty)
    with pytest.raises(InputError, match="no usable row among 0"):
        read_exposures(_write(tmp_path, []))
