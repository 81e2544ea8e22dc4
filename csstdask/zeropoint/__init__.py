"""Photometric zero points from stars, recent exposures and telemetry, for one exposure or a campaign.

* `solve`: one exposure and detector; `fit_stars`, `matching`, `photometry`, `reference` and `telemetry` are its parts.
* `campaign`: all units of a campaign, with the `joint` solution of their overlaps.
* `prior`: prediction without the exposure's own stars; `memory`, `local_level` and `recalibration` of its errors.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csstdask.zeropoint.result import ZeroPoint
    from csstdask.zeropoint.solve import solve

__all__ = ["ZeroPoint", "solve"]

#: Modules of the public names. They are imported on first access: networks need PyTorch.
_HOMES = {"ZeroPoint": "csstdask.zeropoint.result", "solve": "csstdask.zeropoint.solve"}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # the function, not the module of the same name
        return value
    raise AttributeError(f"module 'csstdask.zeropoint' has no attribute {name!r}")


class _Package(ModuleType):
    """The package type: `solve` remains the function after the module of the same name has been imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):  # the import of a module binds its name
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
