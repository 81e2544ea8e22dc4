"""Reductions: the same bits in any order and on any workers, bounded memory, damage named."""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from dataclasses import dataclass

import numpy as np
import pytest

from csstdask.core.errors import ReductionError
from csstdask.engine.cluster import open_cluster
from csstdask.engine.events import ReductionPass
from csstdask.engine.ledger import OwnedObject
from csstdask.engine.partials import GROUP_SIZE, Manifest, Partial, ReductionRecord
from csstdask.engine.reduce import Pass, TreeSum, reduce_partials


@dataclass(frozen=True)
class RobustMean:
    """The mean of numbers in files, re-weighted twice by their distance from the mean before."""

    passes: int = 3
    shuffle_seed: int | None = None

    def map(self, partials, solution):
        if self.shuffle_seed is not None:
            time.sleep(random.Random(self.shuffle_seed).random() * 0.02)
        total = np.zeros(2)
        for _, content in partials:
            value = float(content)
            weight = 1.0 if solution is None else 1 / (1 + (value - solution[1]) ** 2)
            total += (weight, weight * value)
        return total

    def combine(self, first, second):
        return first + second

    def solve(self, total, solution):
        number = 1 if solution is None else solution[0] + 1
        return Pass((number, float(total[1] / total[0])), number == self.passes)


def make_partials(root, count):
    rng = np.random.default_rng(7)
    partials = []
    for i, value in enumerate(rng.normal(size=count) * 10 ** rng.uniform(-8, 8, count)):
        content = repr(float(value)).encode()
        path = root / f"p{i:06d}"
        path.write_bytes(content)
        partials.append(Partial(path.name, hashlib.sha256(content).hexdigest()))
    return Manifest.write(root / "inputs", partials)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("partials")
    return root, make_partials(root, 5 * GROUP_SIZE + 3)


def reduced(store, scheduler, workers, algorithm, emit=lambda _event: None):
    root, manifest = store
    with open_cluster(scheduler, workers) as slots:
        return reduce_partials(slots, root, manifest, algorithm, emit, name="mean", key="t")


def test_the_same_bits_on_any_workers_in_any_order(store):
    root, manifest = store
    values = [float((root / partial.path).read_bytes()) for group in manifest.groups() for partial in group]
    (_, first), passes = reduced(store, "threads", 1, RobustMean(1))
    assert passes == 1
    assert first == pytest.approx(math.fsum(values) / len(values), rel=1e-9)
    expected = reduced(store, "threads", 1, RobustMean())
    assert expected[1] == 3
    for seed in range(3):
        assert reduced(store, "threads", 3, RobustMean(shuffle_seed=seed)) == expected
    assert reduced(store, "processes", 2, RobustMean()) == expected


def test_passes_are_announced(store):
    seen = []
    reduced(store, "threads", 2, RobustMean(2), seen.append)
    assert seen == [ReductionPass("mean", 1, False), ReductionPass("mean", 2, True)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_the_tree_has_one_shape_for_every_order(count):
    shapes = set()
    for seed in range(20):
        order = list(range(count))
        random.Random(seed).shuffle(order)
        tree = TreeSum(lambda a, b: f"({a}{b})", count)
        for position in order:
            tree.add(position, "abcdefghijklm"[position])
        shapes.add(tree.total)
    assert len(shapes) == 1
    assert shapes.pop().replace("(", "").replace(")", "") == "abcdefghijklm"[:count]


def test_the_tree_holds_few_nodes_whatever_its_length():
    tree, most = TreeSum(lambda a, b: a + b, 100_000), 0
    for block in _blocks(100_000, 8):
        for position in reversed(block):  # as a window of 8 in flight would give them at worst
            tree.add(position, 1)
            most = max(most, len(tree))
    assert tree.total == 100_000
    assert most <= 8 + math.log2(100_000)


def _blocks(length, size):
    return (range(first, min(first + size, length)) for first in range(0, length, size))


def test_an_incomplete_tree_has_no_total():
    tree = TreeSum(lambda a, b: a + b, 4)
    tree.add(0, 1)
    tree.add(1, 1)
    with pytest.raises(ValueError, match="the sum of 4 values is not complete"):
        tree.total  # noqa: B018


def test_a_damaged_or_lost_partial_is_named(tmp_path):
    manifest = make_partials(tmp_path, 3)
    (tmp_path / "p000001").write_bytes(b"0.0")
    with pytest.raises(ReductionError, match=r"p000001: found content that differs .*--verify"):
        reduced((tmp_path, manifest), "threads", 1, RobustMean())
    (tmp_path / "p000001").unlink()
    with pytest.raises(ReductionError, match=r"p000001: found no file; .*--verify"):
        reduced((tmp_path, manifest), "threads", 1, RobustMean())


def test_the_manifest_is_the_identity_of_its_inputs(tmp_path):
    partials = [Partial(f"a b/{i}", f"{i:064d}") for i in range(GROUP_SIZE + 1)]
    manifest = Manifest.write(tmp_path / "m" / "inputs", partials)
    assert (manifest.count, manifest.digest) == Manifest.identity(partials)
    assert [len(group) for group in manifest.groups()] == [GROUP_SIZE, 1]
    assert [partial for group in manifest.groups() for partial in group] == partials
    assert Manifest.identity(partials[1:])[1] != manifest.digest


def test_a_record_holds_while_its_objects_are_whole(tmp_path):
    (tmp_path / "result").write_bytes(b"12345")
    record = ReductionRecord("f", 3, 0, 2, (OwnedObject.of(tmp_path, tmp_path / "result"),), {"n_stars": 5}, 0.1)
    record.write(tmp_path / "r.json")
    read = ReductionRecord.read(tmp_path / "r.json")
    assert read == record
    assert read.is_current(tmp_path, "f")
    assert not read.is_current(tmp_path, "g")
    (tmp_path / "result").write_bytes(b"1234")
    assert not read.is_current(tmp_path, "f")
    (tmp_path / "r.json").write_text(json.dumps({"version": 0}))
    assert ReductionRecord.read(tmp_path / "r.json") == ReductionRecord()
    (tmp_path / "r.json").write_text("{")
    assert ReductionRecord.read(tmp_path / "r.json") == ReductionRecord()
