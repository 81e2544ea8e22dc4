"""A small model of one band, and stars of a telescope that it has not seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from csstdask.metrics.psf import draw_stars
from csstdask.mock import Recipe
from csstdask.mock.recipe import Nodes, Optics, Sensor, SkyField, Stamps
from csstdask.training.psf.train import load_psf_config, train_psf

TINY = {"bands": ("i",), "telescopes": 12, "held_out": 2, "nodes": 4, "degree": 2, "images": 24}
#: Of band i.
DETECTOR = 7


@pytest.fixture(scope="session")
def psf_model(tmp_path_factory) -> Path:
    return train_psf(load_psf_config(None, **TINY), tmp_path_factory.mktemp("psf"), announce=lambda _: None)


@pytest.fixture(scope="session")
def psf_recipe() -> Recipe:
    return Recipe(
        name="psf-small",
        seed=5,
        exposures=1,
        detectors=(DETECTOR,),
        shape=(1200, 1200),
        fields=(SkyField(name="nodes", pointing=(10.0, -20.0)),),
        nodes=Nodes(per_axis=7, snr=(150.0, 150.0)),
        optics=Optics(seed=31, exact=True),
        sensor=Sensor(brighter_fatter=0.0, cti=0.0, non_linearity=0.0),
        cosmic_rays={"pixel_fraction": (0.0,)},
        artefacts={"satellites": 0.0, "ghosts_above": 0.0},
        stamps=Stamps(kind="isolated", size=64, per_unit=60),
    )


@pytest.fixture(scope="session")
def psf_stars(psf_recipe):
    return draw_stars(psf_recipe, 0, DETECTOR)
