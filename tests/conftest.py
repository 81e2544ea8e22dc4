"""Shared ground: small recipes and campaigns, and where the real images lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from csstdask.mock import Recipe
from csstdask.pipeline.mock_survey import mock

REAL_IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "images"


@pytest.fixture(scope="session")
def real_images() -> Path:
    if not REAL_IMAGES.is_dir():
        pytest.skip(f"real images are not here ({REAL_IMAGES})")
    return REAL_IMAGES


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
