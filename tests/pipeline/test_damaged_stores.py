"""Damaged metadata and campaigns: every command names the file and the command that restores it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from quick import quick_run as run
from shell import Finished, csstdask_command
from store_equality import differences

from csstdask.core.errors import StoreError
from csstdask.engine.events import UnitDone
from csstdask.engine.work_units import Unit, parse_selection
from csstdask.pipeline.config import load_config
from csstdask.pipeline.export import export
from csstdask.pipeline.status import status
from csstdask.store.shards import shard_path


def flip(path: Path, place: float = 0.5) -> None:
    """Change one byte and not the size."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 255
    path.write_bytes(data)


def units_done(campaign: Path, product: Path, **options) -> list[Unit]:
    done = []
    run(campaign, product, listeners=[lambda e: done.append(e.unit) if isinstance(e, UnitDone) else None], **options)
    return done


QUICK = '[detect]\nmodel = "unet-fast"\n[psf]\nmodel = "none"\n'


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("zarr.json", content) for content in ("", "{", "null", "{}", "\xff\x00")),
        *(("cr_mask/zarr.json", content) for content in ("", "null", "\xff\x00")),
        ("n_cr_pixels/zarr.json", "{}"),
    ],
)
def test_damaged_metadata_of_a_run(small_campaign, reference, product, file, content):
    """One line that names the file; a run restores that of arrays, with --verify all; no unit is done again."""
    (product / file).write_bytes(content.encode("latin-1"))
    config = product.parent / "quick.toml"
    config.write_text(QUICK)
    command = ["run", small_campaign, "--to", product, "--config", config]
    seen = csstdask_command("status", product, "--campaign", small_campaign, "--verify")
    _one_line(
        seen, str(product / file), f"csstdask run CAMPAIGN --to {product} --config {product} --steps ", "--verify"
    )
    if file == "zarr.json":
        _one_line(csstdask_command(*command), str(product / file), "--verify")
    done = csstdask_command(*command, *(["--verify"] if file == "zarr.json" else []), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["units"]["skipped"] == 4
    assert differences(reference, product) == []
    assert status(product, campaign=small_campaign, verify=True).done == 4


def test_the_command_for_damaged_metadata_keeps_the_settings(small_campaign, tmp_path):
    """Settings and steps that are not the defaults are in the command, and survive."""
    config, path = tmp_path / "mine.toml", tmp_path / "r.zarr"
    config.write_text('[detect]\nmodel = "lacosmic"\n[repair]\npsf = false\n')
    first = csstdask_command("run", small_campaign, "--to", path, "--config", config, "--steps", "repair")
    assert first.returncode == 0, first.stderr
    before = load_config(path)
    (path / "zarr.json").write_text("{")
    seen = csstdask_command("run", small_campaign, "--to", path)
    command = re.search(r"\((csstdask run .* --verify)\)", seen.stderr)[1].replace("CAMPAIGN", str(small_campaign))
    done = csstdask_command(*shlex.split(command)[1:], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["units"]["skipped"] == 4
    assert load_config(path) == before
    assert not (path / "tables" / "sources").exists()


def _one_line(done: Finished, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("csstdask: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert [word for word in words if word not in lines[0]] == []


def test_a_lost_zarr_json_of_a_run(small_campaign, reference, product):
    (product / "zarr.json").unlink()
    with pytest.raises(StoreError, match="--verify"):
        run(small_campaign, product)
    assert units_done(small_campaign, product, verify=True) == []
    assert differences(reference, product) == []


def test_lost_metadata_in_both_copies_costs_the_array_alone(small_campaign, reference, product):
    (product / "zarr.json").write_text("{")
    (product / "repair" / "zarr.json").write_text("{")
    assert len(units_done(small_campaign, product, verify=True)) == 4
    assert differences(reference, product) == []


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("plane", "damage"),
    [("sci", flip), ("wht", _cut), ("flag", lambda path: path.write_bytes(b"")), ("flag", Path.unlink)],
    ids=["flip", "cut", "empty", "lost"],
)
def test_damaged_pixels_of_a_campaign(campaign_copy, reference, tmp_path, plane, damage: Callable[[Path], object]):
    """Every reader fails the unit by the name of its file, with the command that copies it again."""
    shard = shard_path(campaign_copy, plane, 0, 0)
    damage(shard)
    one = parse_selection("detector=7")
    summary = run(campaign_copy, tmp_path / "run.zarr", selection=one, steps=["background"])
    written = export(campaign_copy, tmp_path / "out", selection=one)
    from_run = export(reference, tmp_path / "out2", campaign=campaign_copy, selection=one)
    assert (summary.done, written.written, from_run.written) == (1, 1, 1)
    for failures in (summary.failures, written.failures, from_run.failures):
        assert len(failures) == 1
        assert str(shard) in failures[0]["reason"]
        assert f"csstdask mock RECIPE --to {campaign_copy}" in failures[0]["reason"]


def test_the_command_for_a_damaged_campaign_mends_it(tmp_path):
    from make_fits import level_1

    file, path = level_1(tmp_path, 8), tmp_path / "c.zarr"
    assert csstdask_command("ingest", file, "--to", path).returncode == 0
    shard = shard_path(path, "sci", 0, 7)
    flip(shard)
    (failed,) = export(path, tmp_path / "out").failures
    command = failed["reason"].rpartition("(run: ")[2].rstrip(")")
    words = shlex.split(command)
    assert words == ["csstdask", "ingest", str(file), "--to", str(path), "--supersede"]
    assert csstdask_command(*words[1:]).returncode == 0
    assert export(path, tmp_path / "out").written == 1


def test_a_lost_shard_of_a_mock_is_rendered_again(small_recipe, campaign_copy):
    from csstdask.pipeline.mock_survey import mock

    before = xr.open_zarr(campaign_copy)["sci"].values
    shard_path(campaign_copy, "sci", 0, 0).unlink()
    summary = mock(small_recipe, campaign_copy)
    assert (summary.rendered, summary.unchanged) == (1, 3)
    assert np.array_equal(xr.open_zarr(campaign_copy)["sci"].values, before, equal_nan=True)


def test_a_torn_table_of_a_mock_is_written_again(small_recipe, campaign_copy):
    from csstdask.pipeline.mock_survey import mock
    from csstdask.store.tables import read_table

    table = campaign_copy / "tables" / "truth_sources.parquet"
    before = read_table(table)
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(StoreError, match=f"{table}: found a damaged table"):
        read_table(table)
    assert mock(small_recipe, campaign_copy).unchanged == 4
    assert {name: values.tolist() for name, values in read_table(table).items()} == {
        name: values.tolist() for name, values in before.items()
    }


@pytest.mark.parametrize("file", ["zarr.json", "sci/zarr.json", "kind/zarr.json"])
def test_damaged_metadata_of_a_campaign(campaign_copy, tmp_path, file):
    (campaign_copy / file).write_text("{")
    for command in (
        ["run", campaign_copy, "--to", tmp_path / "r.zarr"],
        ["export", campaign_copy, "--to", tmp_path / "out"],
    ):
        _one_line(csstdask_command(*command), str(campaign_copy / file), "csstdask ingest")


def test_a_damaged_coordinate_of_a_campaign(campaign_copy, tmp_path):
    chunk = next(path for path in (campaign_copy / "digest" / "c").rglob("*") if path.is_file())
    flip(chunk)
    _one_line(csstdask_command("run", campaign_copy, "--to", tmp_path / "r.zarr"), str(campaign_copy / "digest"))
