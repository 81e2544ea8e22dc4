"""Optional packages: the command that installs the extra that contains them."""

from __future__ import annotations

from pathlib import Path


def install_hint(extra: str) -> str:
    """Return the command that installs an extra.

    csstdask is installed from a clone of its repository; the command is for a shell in that folder.

    Examples
    --------
    >>> install_hint("plot").partition(" (")[0]
    "pip install -e '.[plot]'"
    """
    clone = Path(__file__).resolve().parents[2]
    where = str(clone) if (clone / "pyproject.toml").is_file() else "a clone of csstdask"
    return f"pip install -e '.[{extra}]' (in {where})"
