"""Check that dotted names in docstrings, model cards and documentation name objects that exist."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAME = re.compile(r"(?<![\w/.])csstdask(?:\.[A-Za-z_]\w*)+")
SUFFIXES_OF_FILES = {"io", "json", "toml", "zarr", "wavelength"}
"""Last parts of a website's address, of files, and of a metadata key, which are no names of objects."""
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("csstdask/**/*.py", "csstdask/**/*.json", "benchmarks/*.py", "docs/**/*.md", "*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)


@cache
def exists(name: str) -> bool:
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[:i]))
            except ImportError:
                return part in getattr(found, "__dataclass_fields__", {})
        found = getattr(found, part)
    return True


def test_a_name_that_does_not_exist_is_recognised():
    assert exists("csstdask.flux.fit_flat")
    assert not exists("csstdask.flux.no_such_function")


@pytest.mark.skipif(not (ROOT / "csstdask").is_dir(), reason="needs the source tree")
def test_names_in_texts_exist():
    absent = [
        f"{file}: {name}"
        for file in FILES
        for name in NAME.findall((ROOT / file).read_text(encoding="utf-8"))
        if name.rsplit(".", 1)[1] not in SUFFIXES_OF_FILES and not exists(name)
    ]
    assert not absent
