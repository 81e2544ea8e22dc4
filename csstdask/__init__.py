"""csstdask: reprocessing of space-telescope surveys on chunked arrays.

Main entry points:

* `open_campaign`, `open_run`: open stores as lazy xarray datasets with the accessor ``.csst``;
* `clean`, `cosmicray`: detect and repair cosmic rays of one frame;
* `psf`: reconstruct point spread functions from star stamps;
* `flux`: spectra, SEDs and flat-field cubes of slitless data;
* `zeropoint`: photometric zero points.

Examples
--------
>>> import csstdask
>>> campaign = csstdask.open_campaign("campaign.zarr")  # doctest: +SKIP
>>> run = csstdask.open_run("run.zarr")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csstdask import cosmicray, flux, psf, zeropoint
    from csstdask.cosmicray.clean import clean
    from csstdask.pipeline.views import open_run
    from csstdask.store.campaign_dataset import open_campaign

try:
    __version__ = version("csstdask")
except PackageNotFoundError:  # source tree that is not installed
    __version__ = "0"

__all__ = ["__version__", "clean", "cosmicray", "flux", "open_campaign", "open_run", "psf", "zeropoint"]

_SUBPACKAGES = {"cosmicray", "flux", "psf", "zeropoint"}
_MODULES = {
    "clean": "csstdask.cosmicray.clean",
    "open_campaign": "csstdask.store.campaign_dataset",
    "open_run": "csstdask.pipeline.views",
}
"""Modules of the public functions, imported on first use so that `import csstdask` is fast."""
_RETURN_DATASETS = {"open_campaign", "open_run"}
"""Functions whose results need the xarray accessor."""


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"csstdask.{name}")
    if name in _MODULES:
        if name in _RETURN_DATASETS:
            import_module("csstdask.accessor")
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'csstdask' has no attribute {name!r}")
