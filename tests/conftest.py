"""Shared fixtures, one thread a process, and a warning of long tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from csstdask.mock import Recipe
from csstdask.pipeline.mock_survey import mock

#: Libraries compute on one thread: two workers with two threads each wait for each other. Subprocesses inherit it.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
#: An unmarked test that takes longer is listed with a warning [s].
LONGEST = 20.0
REAL_SPECTRA = Path(__file__).resolve().parents[2] / "shared" / "data" / "spectra"
REAL_IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "images"


@pytest.fixture(scope="session")
def real_images() -> Path:
    if not REAL_IMAGES.is_dir():
        pytest.skip(f"real images are not here ({REAL_IMAGES})")
    return REAL_IMAGES


@pytest.fixture(scope="session")
def real_spectra() -> Path:
    if not REAL_SPECTRA.is_dir():
        pytest.skip(f"libraries of spectra are not here ({REAL_SPECTRA})")
    return REAL_SPECTRA


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    return Recipe(name="small", seed=11, exposures=2, detectors=(7, 8), shape=(192, 160))


@pytest.fixture(scope="session")
def small_campaign(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mock campaign of four units: read it, copy it, never change it."""
    path = tmp_path_factory.mktemp("small") / "campaign.zarr"
    mock(small_recipe, path)
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261120)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Warn of long tests that are not marked slow."""
    if "not slow" not in config.option.markexpr:
        return
    reports = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, [])]
    long = sorted(
        ((report.duration, report.nodeid) for report in reports if report.when == "call"), reverse=True
    )  # fmt: skip
    for seconds, name in long:
        if seconds > LONGEST:
            terminalreporter.write_line(
                f"WARNING: {name} took {seconds:.0f} s; mark it slow or make it faster", yellow=True
            )
