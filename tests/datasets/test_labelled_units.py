"""Units of a campaign with truth: their splits, and what is read of them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.datasets.labelled_units import select_units
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import CosmicRays, SkyField
from csstdask.pipeline.mock_survey import mock


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Five exposures of three detectors, one field for training and one for validation."""
    path = tmp_path_factory.mktemp("labelled") / "labelled.zarr"
    fields = (
        SkyField(name="a", pointing=(10.0, -20.0), split="training"),
        SkyField(name="b", pointing=(50.0, 20.0), split="validation"),
    )
    rays = CosmicRays(pixel_fraction=(0.03,))
    recipe = Recipe(name="labelled", seed=3, exposures=4, shape=(160, 192), fields=fields, cosmic_rays=rays)
    mock(recipe, path, workers=1)
    return path


def test_units_of_a_campaign_are_split_by_field_and_by_detector(campaign):
    every = select_units(campaign)
    training, validation = select_units(campaign, "training"), select_units(campaign, "validation")
    assert len(every) == 12
    assert len(training) == len(validation) == 6
    assert not set(training.indices) & set(validation.indices)
    first, second = (select_units(campaign, "validation", part=(i, 2)) for i in (0, 1))
    assert {column for _, column in first.indices} == {0, 2}
    assert {column for _, column in second.indices} == {1}
    with pytest.raises(InputError, match="no unit for test"):
        select_units(campaign, "test")
    with pytest.raises(InputError, match="no campaign"):
        select_units(campaign / "sci")


def test_a_campaign_without_splits_is_split_by_detector(campaign, tmp_path):
    """Exposures of one field share its sky; a single detector is split by exposure."""
    unassigned = tmp_path / "unassigned.zarr"
    shutil.copytree(campaign, unassigned)
    (unassigned / "tables" / "truth_exposures.parquet").unlink()
    training, validation = select_units(unassigned, "training"), select_units(unassigned, "validation")
    assert {column for _, column in training.indices} == {0, 1}
    assert {column for _, column in validation.indices} == {2}
    assert len(select_units(unassigned, "training", exposures=1)) == 2
    alone = [select_units(unassigned, split, detectors=(8,)) for split in ("training", "validation")]
    assert [len(units) for units in alone] == [3, 1]
    assert {column for units in alone for _, column in units.indices} == {1}


def test_a_unit_is_in_electrons_with_its_truth(campaign):
    """Cosmic rays add their charge, except in saturated or trailed pixels; the noise is that of the counts."""
    frame = select_units(campaign).read(0)
    use = ~frame.ignore
    held = use & (frame.charge > 100) & (frame.data < 5e4)
    assert np.median((frame.data - frame.clean)[held] / frame.charge[held]) == pytest.approx(1, abs=0.02)
    assert np.median(np.abs(frame.data - frame.clean)[use & (frame.charge == 0)]) == 0
    sky = use & (frame.charge == 0) & (frame.clean < np.median(frame.clean))
    assert np.median(frame.error[sky]) == pytest.approx(np.sqrt(np.median(frame.clean[sky]) + 25), rel=0.05)
