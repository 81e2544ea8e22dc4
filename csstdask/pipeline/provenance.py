"""Provenance: versions of software, and header cards of models and flag bits."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from csstdask.instrument import Instrument
from csstdask.nn.models import find_card
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.steps.detect import resolved_threshold

Provenance = tuple[tuple[str, Any, str | None], ...]
"""Header cards: keyword, value, comment."""
_PACKAGES = ("csstdask", "numpy", "scipy", "numba", "zarr", "dask", "astropy", "astroscrappy", "sep", "torch")


@cache
def software_versions() -> dict[str, str]:
    """Return the versions of Python and libraries: recorded, not fingerprinted."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def provenance_cards(config: RunConfig, camera: Instrument | None) -> Provenance:
    """Return header cards of version, models and flag bits; a SHA-256 leaves no room for a comment."""
    detect, repair = find_card("cosmicray", config.detect.model), find_card("inpaint", config.repair.model)
    cards: Provenance = (
        ("CSDVERS", software_versions().get("csstdask", ""), "csstdask version"),
        ("CSDCRMOD", detect.name, "cosmic-ray detection: model"),
        ("CSDCRSHA", detect.sha256, None),
        ("CSDCRTHR", resolved_threshold(config), "its probability threshold"),
        ("CSDIPMOD", repair.name, "repair: model"),
        ("CSDIPSHA", repair.sha256, None),
    )
    if camera is None:
        return cards
    return (
        *cards,
        ("CSDCRBIT", camera.flags.cosmic_ray_mask, "FLG bit: cosmic ray (csstdask)"),
        ("CSDIPBIT", camera.flags.inpainted_mask, "FLG bit: repaired pixel"),
    )
