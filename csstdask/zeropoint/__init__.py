"""Photometric zero points: from stars, recent history and telemetry, for one exposure or a whole campaign."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csstdask.zeropoint.result import ZeroPoint
    from csstdask.zeropoint.solve import solve

__all__ = ["ZeroPoint", "solve"]

#: Where public names live. They are imported when first asked for: networks need PyTorch.
_HOMES = {"ZeroPoint": "csstdask.zeropoint.result", "solve": "csstdask.zeropoint.solve"}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # the function, not the module of the same name
        return value
    raise AttributeError(f"module 'csstdask.zeropoint' has no attribute {name!r}")
