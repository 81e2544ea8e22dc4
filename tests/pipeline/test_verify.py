"""Damaged stores: every command names the file, `run --verify` mends the run, and nothing finished is lost."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from quick import quick_run as run
from quick import quick_settings
from shell import csstdask_command
from store_equality import differences

from csstdask.core.errors import StoreError
from csstdask.engine.events import UnitDone
from csstdask.engine.ledger import Ledger
from csstdask.engine.work_units import Unit, parse_selection
from csstdask.pipeline.export import export
from csstdask.pipeline.status import reproduce_command, status
from csstdask.store.shards import shard_path

FIRST = Unit("10100000001", 7)


def flip(path: Path, place: float = 0.5) -> None:
    """Change one byte and not the size."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 255
    path.write_bytes(data)


def units_done(campaign: Path, product: Path, **options) -> list[Unit]:
    done = []
    run(campaign, product, listeners=[lambda e: done.append(e.unit) if isinstance(e, UnitDone) else None], **options)
    return done


def test_a_damaged_shard_is_seen_by_all_and_redone(small_campaign, reference, product, tmp_path):
    shard = shard_path(product, "cr_mask", 0, 0)
    flip(shard)
    seen = status(product, campaign=small_campaign, verify=True)
    assert (seen.done, seen.failed) == (3, 1)
    assert str(shard) in seen.failures[0]["reason"]
    exported = export(product, tmp_path / "out", campaign=small_campaign)
    assert (exported.written, len(exported.failures), exported.pending) == (3, 1, 0)
    assert str(shard) in exported.failures[0]["reason"]
    assert f"--select exposure={FIRST.exposure},detector=7" in exported.failures[0]["reason"]
    assert not (tmp_path / "out" / "10100000001_7.fits").exists()
    assert units_done(small_campaign, product) == []  # sizes do not tell
    assert units_done(small_campaign, product, verify=True) == [FIRST]
    assert differences(reference, product) == []
    assert status(product, campaign=small_campaign, verify=True).done == 4
    again = export(product, tmp_path / "out", campaign=small_campaign)
    assert (again.written, again.unchanged, again.failures) == (1, 3, [])


def owned_file(product: Path, start: str) -> Path:
    """Return the first file of the first unit that its record lists under a folder."""
    steps = Ledger(product).read(FIRST).steps.values()
    return next(product / item.path for step in steps for item in step.objects if item.path.startswith(start))


@pytest.mark.parametrize(
    ("folder", "damage"),
    [("background", "cut"), ("repair_variance", "empty"), ("tables/sources", "flipped"), ("tables/detections", "lost")],
)
def test_whatever_a_unit_owns_is_verified_and_redone(small_campaign, reference, product, folder, damage):
    file = owned_file(product, folder)
    if damage == "flipped":
        flip(file)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    seen = status(product, campaign=small_campaign, verify=True)
    assert (seen.done, seen.failed) == (3, 1)
    assert str(file) in seen.failures[0]["reason"]
    if damage != "flipped":
        assert str(file) in status(product, campaign=small_campaign).damaged[0]
    assert units_done(small_campaign, product, verify=True) == [FIRST]
    assert differences(reference, product) == []


def test_the_file_of_a_psf_is_verified(small_campaign, tmp_path):
    config = quick_settings(psf={"model": "principal"})
    product = tmp_path / "run.zarr"
    one = parse_selection("exposure=10100000001,detector=7")
    run(small_campaign, product, config=config, selection=one, steps=["repair"])
    files = list(product.glob("files/*/*/*"))
    assert files
    flip(files[0])
    seen = status(product, verify=True)
    assert str(files[0]) in seen.failures[0]["reason"]
    assert units_done(small_campaign, product, config=config, selection=one, steps=["repair"], verify=True) == [FIRST]
    assert status(product, verify=True).done == 1


def test_only_the_damaged_step_runs_again(small_campaign, product):
    """Products derived from the mask have separate checksums, so they stay."""
    before = shard_path(product, "repair", 0, 0).stat().st_mtime_ns
    table = owned_file(product, "tables/sources")
    flip(shard_path(product, "cr_mask", 0, 0))
    kept = table.stat().st_mtime_ns
    run(small_campaign, product, verify=True)
    assert shard_path(product, "repair", 0, 0).stat().st_mtime_ns == before
    assert table.stat().st_mtime_ns == kept


def test_a_lost_mask_does_not_discard_later_products(small_campaign, reference, product):
    """A run of the first steps alone restores the mask; repairs and tables of the unit stay."""
    shard_path(product, "cr_mask", 0, 0).unlink()
    assert units_done(small_campaign, product, steps=["detect"]) == [FIRST]
    assert status(product, campaign=small_campaign, verify=True).done == 4
    assert differences(reference, product) == []


def test_a_unit_in_work_never_builds_on_damage(small_campaign, reference, tmp_path):
    """The mask was damaged before the repair was made: it is made again first, without --verify."""
    product = tmp_path / "run.zarr"
    run(small_campaign, product, steps=["detect"])
    flip(shard_path(product, "cr_mask", 0, 0))
    run(small_campaign, product)
    assert differences(reference, product) == []
    assert status(product, verify=True).done == 4


def test_changed_products_of_a_redone_step_reopen_dependent_steps(small_campaign, product, monkeypatch):
    """The same fingerprint, and other bits (a fault of the first computation): the repair is made again as well."""
    record = Ledger(product).read(FIRST)
    from dataclasses import replace

    old = record.steps["detect"]
    false = tuple(replace(item, sha256="0" * 64) for item in old.objects)
    Ledger(product).write(replace(record, steps=record.steps | {"detect": replace(old, objects=false)}))
    before = shard_path(product, "repair", 0, 0).stat().st_mtime_ns
    assert units_done(small_campaign, product, verify=True) == [FIRST]
    assert shard_path(product, "repair", 0, 0).stat().st_mtime_ns > before
    assert status(product, campaign=small_campaign, verify=True).done == 4


def test_redo(small_campaign, reference, product):
    """Chosen units, even if done; the others are not touched; all without a choice."""
    mask, other = shard_path(product, "cr_mask", 0, 0), shard_path(product, "cr_mask", 0, 1)
    before, kept = mask.stat().st_mtime_ns, other.stat().st_mtime_ns
    chosen = parse_selection("exposure=10100000001,detector=7")
    assert units_done(small_campaign, product, redo=True, selection=chosen) == [FIRST]
    assert mask.stat().st_mtime_ns > before
    assert other.stat().st_mtime_ns == kept
    assert len(units_done(small_campaign, product, redo=True)) == 4
    assert units_done(small_campaign, product) == []
    assert differences(reference, product) == []
    table = owned_file(product, "tables/sources")
    assert len(units_done(small_campaign, product, redo=True, steps=["detect"])) == 4
    assert table.exists()  # the mask came out the same: what was made from it stays
    assert differences(reference, product) == []


def test_a_torn_record(small_campaign, reference, product, tmp_path):
    record = Ledger(product).path(FIRST)
    record.write_text(record.read_text()[:200])
    plain = csstdask_command("status", product, "--campaign", small_campaign)
    assert plain.returncode == 0
    assert f"pending {FIRST}: {record}: found a damaged record" in plain.stderr
    seen = status(product, campaign=small_campaign, verify=True)
    assert (seen.done, seen.failed) == (3, 1)
    assert str(record) in seen.failures[0]["reason"]
    assert units_done(small_campaign, product) == [FIRST]
    assert differences(reference, product) == []


def test_damaged_metrics_come_back_from_the_records(small_campaign, reference, product):
    (chunk,) = (path for path in (product / "n_cr_pixels" / "c").rglob("*") if path.is_file())
    flip(chunk)
    with pytest.raises(StoreError, match=r"n_cr_pixels: found a damaged chunk"):
        status(product, campaign=small_campaign, verify=True)
    one = parse_selection("detector=7")  # those of other units are restored as well
    assert units_done(small_campaign, product, verify=True, selection=one) == []
    assert differences(reference, product) == []


def test_a_damaged_model_of_a_run_is_copied_again(small_campaign, tmp_path):
    from own_model import write_own_model

    path, product = write_own_model(tmp_path / "training"), tmp_path / "r.zarr"
    config = quick_settings(detect={"model": str(path)})
    run(small_campaign, product, steps=["detect"], config=config, selection=parse_selection("detector=7"))
    (weights,) = (product / "models").glob("*.safetensors")
    whole = weights.read_bytes()
    flip(weights)
    assert run(small_campaign, product, steps=["detect"], config=config).failed == 0
    assert weights.read_bytes() == whole


QUICK = '[detect]\nmodel = "unet-fast"\n[psf]\nmodel = "none"\n'


def test_commands_that_reproduce_failures(small_campaign, tmp_path, monkeypatch):
    """Each failure has one, quoted for a shell, and it does that unit with the settings of the run."""
    from csstdask.pipeline.steps import STEPS

    def fail_on_8(frame, config):
        if frame.metadata.detector == 8:
            raise ArithmeticError("no numbers left")
        return original(frame, config)

    folder = tmp_path / "my night"
    folder.mkdir()
    campaign, product = shutil.copytree(small_campaign, folder / "c.zarr"), folder / "r.zarr"
    (tmp_path / "run.toml").write_text(QUICK)
    original = STEPS["repair"].body
    object.__setattr__(STEPS["repair"], "body", fail_on_8)
    try:
        done = csstdask_command("run", campaign, "--to", product, "--config", tmp_path / "run.toml", "--json")
    finally:
        object.__setattr__(STEPS["repair"], "body", original)
    assert done.returncode == 1
    failures = json.loads(done.stdout)["failures"]
    expected = (
        f"csstdask run '{campaign}' --to '{product}' --select exposure=10100000001,detector=8 --steps repair "
        f"--config '{product}'"
    )
    assert [item["reproduce"] for item in failures if item["exposure"] == "10100000001"] == [expected]
    assert f"reproduce 10100000001/8: {expected}" in done.stderr
    seen = csstdask_command("status", product)
    assert seen.returncode == 1
    assert f"reproduce 10100000001/8: {expected}" in seen.stderr
    again = csstdask_command(*shlex.split(expected)[1:], "--json")
    assert json.loads(again.stdout)["units"] == {"total": 1, "done": 1, "skipped": 0, "failed": 0, "pending": 0}
    after = status(product)
    assert (after.done, after.failed) == (2, 1)  # the run keeps its settings; the step after repair is pending


@pytest.mark.parametrize(
    ("step", "options", "command"),
    [
        ("detect", {}, "--select exposure=a,detector=7 --steps detect"),
        ("worker died", {}, "--select exposure=a,detector=7"),
        ("worker", {"steps": ["background", "detect"]}, "--select exposure=a,detector=7 --steps background,detect"),
        ("detect", {"verify": True}, "--select exposure=a,detector=7 --steps detect --verify"),
        ("psf", {"config": quick_settings()}, "--select exposure=a,detector=7 --steps psf --config r"),
    ],
)
def test_reproduce_command(step, options, command):
    found = reproduce_command(Path("c"), Path("r"), Unit("a", 7), step, **options)
    assert found == f"csstdask run c --to r {command}"


def test_exposures_with_wildcards_in_their_names():
    found = reproduce_command(Path("c"), Path("r"), Unit("a[1]*", 7), "detect")
    selection = parse_selection(shlex.split(found)[6])
    assert Unit("a[1]*", 7) in selection
    assert Unit("a1b", 7) not in selection


def test_a_dry_run_says_what_verify_and_redo_would_do(small_campaign, product):
    from csstdask.pipeline.prepare import estimate

    flip(shard_path(product, "cr_mask", 0, 0))
    counts = [
        estimate(small_campaign, product, config=quick_settings(), **options)["units"]["pending"]
        for options in ({}, {"verify": True}, {"redo": True})
    ]
    assert counts == [0, 1, 4]
