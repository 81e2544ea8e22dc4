"""Import matplotlib, an optional package, for figures that are written to files."""

from __future__ import annotations

from typing import Any

from csstdask.core.errors import InputError
from csstdask.core.optional import install_hint


def pyplot() -> Any:
    """Return ``matplotlib.pyplot`` with a backend for files; InputError if matplotlib is not installed."""
    try:
        import matplotlib as mpl  # noqa: PLC0415
    except ImportError:
        raise InputError("figures", "no matplotlib", install_hint("plot")) from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    return plt


def check_figures() -> None:
    """Raise InputError unless figures can be drawn."""
    pyplot()
