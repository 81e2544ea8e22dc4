"""The README's figures are those of the committed results, and its promises about files hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_tables_are_made_from_the_committed_results():
    command = [sys.executable, ROOT / "benchmarks" / "tables", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    targets = [
        target.partition("#")[0]
        for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL))
        if "://" not in target
    ]
    made = ("generated/", "api/")  # pages that only a build of the site writes
    assert [
        one for one in targets if one and not (path.parent / one).exists() and not any(name in one for name in made)
    ] == []
