"""Satellites in a run: metrics, mask, the table of events, and the flags that are exported."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from quick import quick_run as run

import csstdask
from csstdask.arrays.morphology import dilate
from csstdask.evaluation.run_consistency import review_run
from csstdask.instrument import load_instrument
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import Artefacts
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.export import export
from csstdask.pipeline.mock_survey import mock


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("satellites")
    recipe = Recipe(
        name="satellites", seed=5, exposures=1, detectors=(7, 8), shape=(448, 448),
        artefacts=Artefacts(satellites=3.0, ghosts_above=0.0),
    )  # fmt: skip
    mock(recipe, folder / "c.zarr")
    config = RunConfig.model_validate({"detect": {"model": "lacosmic"}})
    assert run(folder / "c.zarr", folder / "r.zarr", steps=["repair"], config=config, workers=1).done == 2
    return folder


def test_satellites_are_counted_and_their_pixels_marked(finished):
    dataset, campaign = csstdask.open_run(finished / "r.zarr"), csstdask.open_campaign(finished / "c.zarr")
    bit = load_instrument("csst").flags.bits["satellite_trail"]
    lit = (campaign["flag"].values & bit) != 0
    found = dataset["satellite_mask"].values
    assert dataset["n_satellite_trails"].values.sum() >= 2
    assert (found & lit).sum() > 0.6 * lit.sum()  # short chords in corners are not found
    # The mock flags what exceeds 8 electrons; the wings of a wide trail reach 8 pixels further.
    near = np.stack([dilate(plane, 8) for plane in lit[0]])[None]
    assert (found & ~near).sum() < 0.05 * found.sum()
    assert np.array_equal((dataset["flag_out"].values & bit) != 0, lit | found)


def test_satellites_are_in_the_table_and_not_among_the_cosmic_rays(finished):
    dataset = csstdask.open_run(finished / "r.zarr")
    n = 0
    for j, detector in enumerate(dataset["detector"].values):
        exposure = str(dataset["exposure"].values[0])
        table = pq.read_table(finished / f"r.zarr/tables/cosmic_rays/{exposure}/{detector}.parquet")
        unit = dataset.isel(exposure=0, detector=j)
        origin = np.array(table["origin"].to_pylist())
        assert (origin == "satellite").sum() == unit["n_satellite_trails"]
        assert (origin == "cosmic_ray").sum() == unit["n_cr_events"]
        assert sum(unit[name] for name in ("n_points", "n_tracks", "n_worms")) == unit["n_cr_events"]
        n += int((origin == "cosmic_ray").sum())
    reviewed = review_run(finished / "r.zarr").units
    assert sum(one.events.charge.sum() for one in reviewed) <= n


def test_export_has_the_bit_of_the_camera(finished):
    export(finished / "r.zarr", finished / "out")
    dataset = csstdask.open_run(finished / "r.zarr")
    for path, unit in zip(sorted((finished / "out").glob("*.fits")), dataset["flag_out"].values[0], strict=True):
        with fits.open(path) as hdus:
            assert np.array_equal(hdus["FLG"].data, unit)
