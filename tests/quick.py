"""Runs for tests that are about neither the default network nor PSFs: a small network, and no PSF."""

from __future__ import annotations

from typing import Any

from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.run import run
from csstdask.pipeline.status import Summary

_QUICK: dict[str, dict[str, Any]] = {"detect": {"model": "unet-fast", "precision": "float32"}, "psf": {"model": "none"}}


def quick_settings(**parts: dict[str, Any]) -> RunConfig:
    """Return quick settings, with those of some parts replaced."""
    return RunConfig.model_validate({name: _QUICK.get(name, {}) | parts.get(name, {}) for name in {*_QUICK, *parts}})


def quick_run(*arguments: Any, config: RunConfig | None = None, **options: Any) -> Summary:
    """Run the pipeline with quick settings, or others."""
    return run(*arguments, config=config or quick_settings(), **options)
