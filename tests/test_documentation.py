"""The code blocks of the documentation run as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import typer
from astropy.io import fits
from make_fits import science_header
from shell import csstdask_command

import csstdask
from csstdask.cli import app
from csstdask.instrument import validate_instrument

ROOT = Path(__file__).resolve().parent.parent


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in a language; "" is for blocks without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Return a folder with a small UVIS file, named as on the pages, and its campaign and run."""
    folder = tmp_path_factory.mktemp("night")
    header = fits.Header({"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "UVIS"})
    header.update({"ROOTNAME": "ibo821kvq", "EXPTIME": 350.0, "FILTER": "F606W"})
    rng = np.random.default_rng(3)
    hdus = [fits.PrimaryHDU(header=header)]
    for version, chip in enumerate((2, 1), 1):
        science = fits.ImageHDU(rng.normal(60, 8, (96, 80)).astype(np.float32), header=science_header(), name="SCI")
        science.header.update({"BUNIT": "ELECTRONS", "CCDCHIP": chip, "CRVAL1": 150.1, "CRVAL2": 2.2})
        hdus += [science, fits.ImageHDU(np.full((96, 80), 8, np.float32), name="ERR")]
        hdus.append(fits.ImageHDU(np.zeros((96, 80), np.int16), name="DQ"))
        for hdu in hdus[-3:]:
            hdu.ver = version
    fits.HDUList(hdus).writeto(folder / "ibo821kvq_flt.fits")
    shutil.copy(folder / "ibo821kvq_flt.fits", folder / "raw.fits")
    shutil.copy(folder / "ibo821kvq_flt.fits", folder / "in.fits")
    for command in shell_commands("README.md"):
        done = csstdask_command(*command, cwd=folder)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    return folder


def shell_commands(page: str) -> list[list[str]]:
    """Return the arguments of the csstdask commands of a page."""
    lines = [line for language in ("", "bash") for block in blocks(page, language) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("csstdask ")]


def test_the_survey_of_the_readme(night):
    assert (night / "report.html").stat().st_size > 10_000
    assert {path.name for path in (night / "fits").iterdir()} == {"ibo821kvq_1.fits", "ibo821kvq_2.fits"}
    assert (night / "out.fits").exists()


@pytest.mark.parametrize("page", ["README.md", "docs/reference/fits.md", "docs/how-to/one-frame.md"])
def test_python_blocks(night, page, monkeypatch):
    monkeypatch.chdir(night)
    frame = np.random.default_rng(1).normal(100, 5, (64, 64)).astype(np.float32)
    names = {"csstdask": csstdask, "data": frame, "campaign": csstdask.open_campaign("campaign.zarr")}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)


def test_the_backend_brings_the_accessor(night):
    """In a fresh interpreter, without an import of csstdask."""
    block = next(block for block in blocks("docs/reference/fits.md", "python") if "open_dataset" in block)
    done = subprocess.run([sys.executable, "-c", block], cwd=night, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted((ROOT / "docs/explanation").glob("*.md")), ids=lambda page: page.stem)
def test_examples_of_the_explanations(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(str(page.relative_to(ROOT)), "python"):
        exec(compile(block, page.name, "exec"), {})


def test_toml_blocks():
    camera, two_chips, *more = blocks("docs/how-to/add-a-camera.md", "toml")
    assert validate_instrument(tomllib.loads(two_chips), "page").detector_ids == (1, 2)
    for block in (*more, *blocks("docs/reference/fits.md", "toml")):
        changed = tomllib.loads(camera) | tomllib.loads(block)
        assert validate_instrument(changed, "page").name == changed["name"]


def test_commands_and_options_of_all_pages_exist():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    lines = {
        line.removeprefix("!").strip()
        for page in pages
        if "generated" not in page.parts
        for block in re.findall(r"^```.*?^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for line in re.findall(r"^!?csstdask [^|`\n]*$", block, flags=re.MULTILINE)
    }
    commands = typer.main.get_command(app)
    for line in sorted(lines):
        words = shlex.split(line.rstrip("\\"), comments=True)[1:]
        command, used = commands, []
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
            used.append(command.name)
        assert used, line
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        assert [word for word in words if word.startswith("-") and word.partition("=")[0] not in known] == [], line
