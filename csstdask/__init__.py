"""csstdask: reprocessing of space-telescope surveys on chunked arrays.

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
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0"

__all__ = ["__version__", "clean", "cosmicray", "flux", "open_campaign", "open_run", "psf", "zeropoint"]

_ROOMS = {"cosmicray", "flux", "psf", "zeropoint"}
#: Where public names live. They are imported when first asked for, so that `import csstdask` is quick.
_HOMES = {
    "clean": "csstdask.cosmicray.clean",
    "open_campaign": "csstdask.store.campaign_dataset",
    "open_run": "csstdask.pipeline.views",
}
#: Those whose results have the xarray accessor.
_DATASETS = {"open_campaign", "open_run"}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"csstdask.{name}")
    if name in _HOMES:
        if name in _DATASETS:
            import_module("csstdask.accessor")
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'csstdask' has no attribute {name!r}")
