"""The command line: version, completion, settings, models, and exports to existing files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from astropy.io import fits
from quick import quick_run as run
from quick import quick_settings
from shell import csstdask_command

import csstdask
from csstdask.core.optional import install_hint
from csstdask.engine.work_units import parse_selection
from csstdask.nn.models import DEFAULTS, all_cards
from csstdask.pipeline.config import RunConfig, load_config, to_toml
from csstdask.pipeline.export import export


@pytest.fixture(scope="module")
def product(small_campaign, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("product") / "run.zarr"
    assert run(small_campaign, path, steps=["repair"]).done == 4
    return path


def test_version():
    done = csstdask_command("--version")
    assert (done.returncode, done.stdout) == (0, f"csstdask {csstdask.__version__}\n")


def test_completion_is_offered():
    done = csstdask_command("--help")
    assert "--install-completion" in done.stdout


def test_bash_completes_commands():
    """As bash asks: the commands that start with `st`, without heavy imports."""
    environment = os.environ | {
        "_CSSTDASK_COMPLETE": "complete_bash",
        "COMP_WORDS": "csstdask st",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv[0] = 'csstdask'; from csstdask.cli import app; app(prog_name='csstdask')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert "status" in done.stdout.split()


def test_default_settings_survive_a_round_trip(small_campaign, tmp_path):
    """Each key has a comment; read again, the settings and fingerprints are the defaults."""
    text = csstdask_command("config", "--defaults").stdout
    lines = text.splitlines()
    for part, settings in tomllib.loads(text).items():
        assert any(line.startswith(f"[{part}]  # ") for line in lines)
        for key in settings:
            (number,) = (i for i, line in enumerate(lines) if line.startswith(f"{key} = ") and part in above(lines, i))
            assert lines[number - 1].startswith("# ")
    known = {
        (part, key)
        for part, field in RunConfig.model_fields.items()
        for key, setting in type(field.default).model_fields.items()
        if setting.repr  # the others are filled in by a run
    }
    shown = {(above(lines, i), line.split()[0].lstrip("# ")) for i, line in enumerate(lines) if " = " in line}
    unset = {(above(lines, i), line.split()[1]) for i, line in enumerate(lines) if line.endswith(" is not set")}
    assert shown | unset == known
    (tmp_path / "run.toml").write_text(text)
    assert load_config(tmp_path / "run.toml") == RunConfig()
    plans = [
        csstdask_command("run", small_campaign, "--to", tmp_path / "r.zarr", "--dry-run", "--json", *options).stdout
        for options in ([], ["--config", tmp_path / "run.toml"])
    ]
    assert json.loads(plans[0]) == json.loads(plans[1])


def above(lines: list[str], number: int) -> str:
    """Return the name of the table that a line of TOML is in."""
    heads = [line for line in lines[: number + 1] if line.startswith("[")]
    return heads[-1][1:].partition("]")[0] if heads else ""


def test_changed_settings_survive_a_round_trip():
    config = RunConfig.model_validate(
        {
            "detect": {"threshold": 0.25, "rate": "frame", "precision": "bfloat16"},
            "repair": {"psf": False},
            "engine": {"device": "cpu"},
        }
    )
    assert RunConfig.model_validate(tomllib.loads(to_toml(config))) == config


def test_the_settings_of_a_run(product, tmp_path):
    done = csstdask_command("config", product)
    (tmp_path / "run.toml").write_text(done.stdout)
    assert load_config(tmp_path / "run.toml") == load_config(product) == quick_settings()
    assert csstdask_command("config").returncode == 2
    assert csstdask_command("config", product, "--defaults").returncode == 2


def test_models_mark_the_defaults():
    text = csstdask_command("models").stdout
    marked = {tuple(line.split()[:2]) for line in text.splitlines() if " default " in line}
    assert marked == {(name, task) for task, name in DEFAULTS.items()}
    assert len(text.splitlines()) == len(all_cards())
    assert json.loads(csstdask_command("models", "--json").stdout)["defaults"] == DEFAULTS


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}


def test_an_export_keeps_what_it_has_written(small_campaign, product, tmp_path):
    """A repeated export resumes; `--overwrite` writes all files again."""
    command = ["export", product, "--campaign", small_campaign, "--to", tmp_path / "out"]
    assert csstdask_command(*command, "--select", "detector=7").returncode == 0
    assert set(files(tmp_path / "out")) == {"10100000001_7.fits", "10100000002_7.fits"}
    before = files(tmp_path / "out")
    done = csstdask_command(*command)
    assert done.returncode == 0
    assert "2 files, 2 already there, 0 failed" in done.stderr
    after = files(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert "4 files, 0 failed" in csstdask_command(*command, "--overwrite").stderr
    assert all(files(tmp_path / "out")[name] > time for name, time in after.items())


@pytest.mark.parametrize("kind", ["other pixels", "another program's", "no FITS"])
def test_an_export_replaces_nothing_silently(small_campaign, product, tmp_path, kind):
    out = tmp_path / "out"
    out.mkdir()
    path = out / "10100000001_7.fits"
    if kind == "other pixels":  # those of the campaign, not repaired
        export(small_campaign, out, selection=parse_selection("exposure=10100000001,detector=7"))
    elif kind == "another program's":
        fits.PrimaryHDU().writeto(path)
    else:
        path.write_text("my notes")
    before = path.read_bytes()
    done = csstdask_command("export", product, "--campaign", small_campaign, "--to", out)
    assert done.returncode == 1
    assert f"failed 10100000001/7 [export]: {path}: found " in done.stderr
    assert "--overwrite" in done.stderr
    assert "3 files, 1 failed" in done.stderr
    assert path.read_bytes() == before
    forced = csstdask_command("export", product, "--campaign", small_campaign, "--to", out, "--overwrite")
    assert forced.returncode == 0
    assert "CSDFPRNT" in fits.getheader(path)


def test_an_export_of_a_campaign_keeps_what_it_has_written(small_campaign, tmp_path):
    assert export(small_campaign, tmp_path / "out").written == 4
    again = export(small_campaign, tmp_path / "out")
    assert (again.written, again.unchanged, again.failures) == (0, 4, [])


def test_exports_of_all_schedulers_are_the_same(small_campaign, product, tmp_path, monkeypatch):
    """Relative paths are relative to the folder of the driver."""
    monkeypatch.chdir(tmp_path)
    relative = os.path.relpath(product)
    for scheduler in ("threads", "processes"):
        done = csstdask_command(
            "export", relative, "--campaign", os.path.relpath(small_campaign), "--to", scheduler,
            "--scheduler", scheduler, "--select", "exposure=10100000002",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    for name in files(tmp_path / "threads"):
        assert (tmp_path / "threads" / name).read_bytes() == (tmp_path / "processes" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--select", "detector=30"], "--select"), (["--scheduler", "magic"], "threads, processes")],
)
def test_unusable_options_of_an_export(product, small_campaign, tmp_path, options, message):
    done = csstdask_command("export", product, "--campaign", small_campaign, "--to", tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_install_hints_name_existing_extras():
    clone = Path(csstdask.__file__).resolve().parent.parent
    assert install_hint("plot") == f"pip install -e '.[plot]' (in {clone})"
    package = Path(csstdask.__file__).parent
    advised = [path for path in package.rglob("*.py") if "pip install 'csstdask[" in path.read_text()]
    assert advised == []


def test_light_commands_import_no_heavy_library(product, small_campaign):
    """No PyTorch, Dask or xarray for status, config and --version."""
    code = (
        "import sys\nfrom csstdask.cli import app\n"
        "try:\n    app(sys.argv[1:], standalone_mode=False)\nexcept BaseException as e:\n    pass\n"
        "print([m for m in ('torch', 'dask', 'distributed', 'xarray') if m in sys.modules])"
    )
    for command in (["status", product, "--campaign", small_campaign], ["config", "--defaults"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.splitlines()[-1] == "[]"


def test_an_export_of_a_campaign_replaces_no_files_of_a_run(small_campaign, product, tmp_path):
    """Repaired files are not an export of the campaign, although they come from the same pixels."""
    one = parse_selection("exposure=10100000001,detector=7")
    assert export(product, tmp_path / "out", campaign=small_campaign, selection=one).written == 1
    again = export(small_campaign, tmp_path / "out", selection=one)
    assert (again.unchanged, len(again.failures)) == (0, 1)
    assert "an export of other pixels" in again.failures[0]["reason"]
