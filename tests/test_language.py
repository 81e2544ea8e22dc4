"""The project is written in plain English: no spelling mistakes, and none of the idioms that style.md replaces."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Idioms that a reader has to read twice, with the plain words for them.
BANNED = {
    r"\bforetell|\bforetold": "predict",
    r"\bfore(?:see|sees|saw|seen)\b": "estimate, predict",
    r"\bgo(?:es|ne)? on (?:with|from|where)\b|\bwent on (?:with|from)\b": "resume, continue",
    # "Units of their own noise" is a plain possessive; "a process of its own" is not.
    r"\bof (?:its|their|his) own\b(?! (?:error|noise|series|stars|sum|unit)\b)": "separate, own",
    r"\bso many\b": "N, as many",
    r"\bnobody\b": "no one; or the passive",
    r"\bbeside (?:the|a|an|it|them|ours|each|other|what|truth)\b": "next to, compared with",
    r"\b(?:is|are|was|were) told\b|\btold (?:by|from|it)\b": "given, reported",
    r"\btells? (?:how|what|which|that|of|it)\b": "shows, determines",
    r"\bwhat is left\b": "residual, the rest",
    r"\bas (?:is|are) wont\b|\bhitherto\b|\bwhereupon\b|\bthereof\b|\bnought\b": "plain words",
    r"\bWho (?:has|knows|gives|reads|trains|wants|asks)\b": "if you ...",
    r"\b(?:believes?|believed) (?:in|that|to|its|the)\b": "assume",
    r"\bno(?:-| )one else's\b": "other",
    r"\ba (?:unit|frame|detector|star|pixel|second|batch|epoch|band|line|row|mask) each\b": "one ... per",
    r"\bis of no use\b": "is useless",
    r"\bhangs? (?:on|together)\b": "depend on, connected",
    r"\bvery (?:same|stars|pixels)\b": "same",
    r"\bmakes? much of\b": "weights highly",
}
CHECKED = {".py", ".md", ".toml", ".yml", ".yaml", ".html", ".j2", ".cff"}
#: Pages whose text is quoted or generated.
EXCLUDED = ("tests/test_language.py", "benchmarks/results/", "CODE_OF_CONDUCT.md")


def texts() -> list[Path]:
    """Return the project's text files."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git clone")
    names = [name for name in listed.stdout.splitlines() if not name.startswith(EXCLUDED)]
    return [ROOT / name for name in names if Path(name).suffix in CHECKED and (ROOT / name).exists()]


@pytest.mark.parametrize("idiom", BANNED, ids=list(BANNED.values()))
def test_idioms(idiom: str) -> None:
    pattern = re.compile(idiom)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == [], f"write: {BANNED[idiom]}"


def test_spelling() -> None:
    command = [sys.executable, "-m", "codespell_lib", *map(str, texts())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == ""
