"""The ledger: done means recorded, and what is recorded is on disk."""

from __future__ import annotations

import pytest

from csstdask.engine.fingerprint import fingerprint
from csstdask.engine.ledger import Ledger, OwnedObject, StepRecord, UnitRecord
from csstdask.engine.usage import Usage
from csstdask.engine.work_units import Unit

UNIT = Unit("e1", 7)
USAGE = Usage(0.6, 0.5, 1 << 20, 100, 10)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    ledger = Ledger(tmp_path)
    step = StepRecord("f1", (OwnedObject.of(tmp_path, tmp_path / "a.bin"),), {"n": 3}, 0.5, USAGE, {"numpy": "2"})
    ledger.write(UnitRecord(UNIT, {"one": step}, None, "t"))
    return tmp_path, ledger


def test_round_trip(store):
    _, ledger = store
    record = ledger.read(UNIT)
    assert record.steps["one"].metrics == {"n": 3}
    assert record.steps["one"].software == {"numpy": "2"}
    assert record.steps["one"].usage == USAGE
    assert ledger.read(Unit("e1", 8)).steps == {}


def test_fresh_only_with_the_same_fingerprint_and_whole_objects(store):
    root, ledger = store
    record = ledger.read(UNIT)
    assert record.up_to_date(root, {"one": "f1"}) == ["one"]
    assert record.up_to_date(root, {"one": "f2"}) == []
    (root / "a.bin").write_bytes(b"01234")
    assert record.up_to_date(root, {"one": "f1"}) == []
    (root / "a.bin").unlink()
    assert record.up_to_date(root, {"one": "f1"}) == []


def test_sizes_miss_what_checksums_see(store):
    root, ledger = store
    (root / "a.bin").write_bytes(b"0123456780")
    record = ledger.read(UNIT)
    assert record.up_to_date(root, {"one": "f1"}) == ["one"]
    assert record.up_to_date(root, {"one": "f1"}, checksum=True) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 0}', '{"version": 2}', '{"version": 2, "steps": []}', "\xff"]
)
def test_a_broken_record_is_no_record(store, content):
    _, ledger = store
    ledger.path(UNIT).write_bytes(content.encode("latin-1"))
    assert ledger.read(UNIT).steps == {}


def test_fingerprints_do_not_depend_on_order():
    assert fingerprint({"a": 1, "b": 2.5}) == fingerprint({"b": 2.5, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_objects_of_another_versions_record_are_known(store):
    """They are not done, and can be deleted when their unit runs again."""
    root, ledger = store
    path = ledger.path(UNIT)
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    record = ledger.read(UNIT)
    assert record.up_to_date(root, {"one": "f1"}) == []
    assert [item.path for item in record.steps["one"].objects] == ["a.bin"]
