"""Flux calibration of slitless spectra: SEDs, extraction, and the flat over position and wavelength."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csstdask.flux.extract import extract_spectrum
    from csstdask.flux.flat import Flat
    from csstdask.flux.flat_fit import fit_flat
    from csstdask.flux.sed import predict_sed

__all__ = ["Flat", "extract_spectrum", "fit_flat", "predict_sed"]

#: Module of each public name. They are imported on first use: some need PyTorch, others Numba.
_MODULES = {
    "Flat": "csstdask.flux.flat",
    "extract_spectrum": "csstdask.flux.extract",
    "fit_flat": "csstdask.flux.flat_fit",
    "predict_sed": "csstdask.flux.sed",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'csstdask.flux' has no attribute {name!r}")
