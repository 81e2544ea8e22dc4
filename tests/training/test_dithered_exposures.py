"""Labels from repeated exposures: a small mock field with its truth, and simulated exposures with confusing sources."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from scipy.ndimage import binary_dilation

from csstdask.core.errors import InputError
from csstdask.datasets.labelled_units import select_units
from csstdask.mock import Recipe
from csstdask.mock.recipe_tables import Pointing, Sky, SkyField
from csstdask.pipeline.mock_survey import mock
from csstdask.store.campaign import Campaign
from csstdask.store.shards import read_shard
from csstdask.training.cosmicray.frames import from_labelled_frame
from csstdask.training.cosmicray.material import load_material
from csstdask.training.labels.dithered_exposures import Exposure, label_exposures
from csstdask.training.labels.registration import fit_pixel_map, register, resample, shift_wcs
from csstdask.training.labels.repeats import is_same_field, label_repeats
from csstdask.training.labels.score import score_labels

SKY, NOISE, EXPTIME = 0.2, 5.0, 150.0


def plate(dx=0.0, dy=0.0, turn=0.0):
    """Return a WCS of 0.074 arcsec pixels."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [130.0 + dx, 130.0 + dy]
    angle = np.deg2rad(turn)
    wcs.wcs.cd = 0.074 / 3600 * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.set()
    return wcs


def stars_on(wcs, sky_positions, fluxes, shape, width=1.1):
    """Draw Gaussian stars [e-/s]."""
    x, y = wcs.all_world2pix(*sky_positions, 0)
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for x0, y0, flux in zip(x, y, fluxes, strict=True):
        image += flux / (2 * np.pi * width**2) * np.exp(-((xx - x0) ** 2 + (yy - y0) ** 2) / (2 * width**2))
    return image


def field_of_stars(rng, shape, number):
    x, y = rng.uniform(-10, shape[1] + 10, number), rng.uniform(-10, shape[0] + 10, number)
    return plate().all_pix2world(x, y, 0), 10 ** rng.uniform(0.5, 2.5, number)


def exposures_of(rng, light, positions, charges, passing=None):
    """Draw photon counts, add read noise and charge."""
    made = []
    for index, (expected, position, charge) in enumerate(zip(light, positions, charges, strict=True)):
        counts = rng.poisson((expected + SKY) * EXPTIME) + charge + rng.normal(0, NOISE, expected.shape)
        sky = np.full(expected.shape, SKY, np.float32)
        noise = np.full(expected.shape, np.sqrt(SKY * EXPTIME + NOISE**2) / EXPTIME, np.float32)
        nothing = np.zeros(expected.shape, bool)
        seen = passing if passing is not None and index == 0 else nothing
        made.append(Exposure((counts / EXPTIME - sky).astype(np.float32), sky, noise, nothing, seen, position, EXPTIME))
    return made


@pytest.mark.parametrize("turn", [0.0, 90.0])
def test_shifts_are_measured_to_a_twentyfifth_of_a_pixel(rng, turn):
    """Errors of the headers of a fraction of a pixel and of several, with and without a rotation between exposures."""
    shape = (260, 260)
    positions, fluxes = field_of_stars(rng, shape, 200)
    true = [plate(), plate(11.3, -7.8, turn), plate(-6.4, 4.1)]
    errors = [np.zeros(2), np.array([0.4, -0.3]), np.array([6.3, -4.7])]
    frames = []
    for wcs in true:
        hits = np.zeros(shape)
        hits[tuple(rng.integers(0, 260, (2, 1500)))] = 300
        counts = stars_on(wcs, positions, fluxes, shape) * EXPTIME + hits + rng.normal(0, 8, shape)
        frames.append((counts / EXPTIME).astype(np.float32))
    stated = [shift_wcs(wcs, error) for wcs, error in zip(true, errors, strict=True)]
    found = register(frames, stated, [8 / EXPTIME] * 3)
    middle = (130.0, 130.0)
    for index in (1, 2):
        at = [wcs[index].all_world2pix(*wcs[0].all_pix2world(*middle, 0), 0) for wcs in (true, found)]
        np.testing.assert_allclose(at[0], at[1], atol=0.04)


def test_a_pixel_map_agrees_with_the_headers(rng):
    """To a thousandth of a pixel; interpolation of a linear frame is exact."""
    of, to, shape = plate(), plate(3.3, 2.2, 30.0), (40, 60)
    places = fit_pixel_map(of, to, shape).positions()
    y, x = np.mgrid[:40, :60]
    x_to, y_to = to.all_world2pix(*of.all_pix2world(x.ravel(), y.ravel(), 0), 0)
    np.testing.assert_allclose(places.reshape(2, -1), [y_to, x_to], atol=1e-3)
    ramp = (2 * y + 3 * x).astype(np.float32)
    seen = resample(ramp, places, order=1)
    inside = np.isfinite(seen)
    np.testing.assert_allclose(seen[inside], (2 * places[0] + 3 * places[1])[inside], atol=1e-2)
    assert not inside.all()


def test_headers_in_other_coordinate_systems_are_understood():
    """Galactic coordinates with swapped axes, same pointing: pixels map onto themselves, and it is the same field."""
    of = plate()
    to = WCS(naxis=2)
    centre = SkyCoord(150.0, 2.0, unit="deg").galactic
    to.wcs.ctype = ["GLAT-TAN", "GLON-TAN"]
    to.wcs.crval = [centre.b.deg, centre.l.deg]
    to.wcs.crpix = [130.0, 130.0]
    to.wcs.cd = 0.074 / 3600 * np.eye(2)
    to.wcs.set()
    assert is_same_field(of, to, (260, 260))
    places = fit_pixel_map(of, to, (40, 60)).positions()
    expected = to.world_to_pixel(of.pixel_to_world(7, 30))
    np.testing.assert_allclose(places[:, 30, 7][::-1], expected, atol=1e-3)


def test_hot_pixels_trails_and_variable_stars_are_not_labelled(rng):
    """Hot pixels are labelled as clean; a trail, a variable star and a flagged ghost are undecided."""
    shape, number = (260, 260), 8
    positions = [plate(*rng.uniform(-8, 8, 2)) for _ in range(number)]
    sky_positions, fluxes = field_of_stars(rng, shape, 120)
    light = [stars_on(wcs, sky_positions, fluxes, shape) for wcs in positions]
    variable = plate().all_pix2world([200.0], [60.0], 0)
    for index in range(0, number, 2):  # in half of them
        light[index] += stars_on(positions[index], variable, [40.0], shape)
    hot = tuple(rng.integers(20, 240, (2, 30)))
    for plane in light:
        plane[hot] += 2.0
    light[3][150] += 1.0  # a trail from edge to edge
    passing = np.zeros(shape, bool)
    passing[100:120, 100:120] = True
    light[0][passing] += 2.0
    charges = np.zeros((number, *shape))
    for plane in charges:
        y, x = rng.integers(10, 245, (2, 60))
        for step in range(4):
            plane[y, x + step] = 400
    labels = list(label_exposures(exposures_of(rng, light, positions, charges, passing)))
    charge = np.stack([label.charge for label in labels])
    near = binary_dilation(charges[3] > 0, np.ones((5, 5)))
    assert (charge[:, *hot] == 0).mean() > 0.85  # others are beside or under a true one
    # Left open, but for what a bright star cuts off: that is as short as a cosmic ray may be.
    assert (charge[3][150] > 0)[~near[150]].mean() < 0.35
    assert np.isnan(charge[3][150]).mean() > 0.65
    assert not (charge[0][passing] > 0).any()
    x, y = (round(float(at[0])) for at in positions[2].all_world2pix(*variable, 0))
    assert not (charge[2][y - 2 : y + 3, x - 2 : x + 3] > 0).any()
    open_sky = np.ones((number, *shape), bool)
    open_sky[0][passing], open_sky[3][148:153] = False, False
    hit = (charges > 0) & open_sky & np.isfinite(charge)
    assert (charge[hit] > 0).mean() > 0.97
    assert (charges > 0)[(charge > 0) & open_sky].mean() > 0.99
    seen = hit & (charge > 0)
    assert np.median(charge[seen]) == pytest.approx(400, rel=0.02)


def test_pixels_covered_by_too_few_exposures_are_unknown(rng):
    shape = (120, 120)
    positions = [plate(), plate(40.0), plate(80.0)]
    flat = [np.zeros(shape)] * 3
    labels = list(label_exposures(exposures_of(rng, flat, positions, [np.zeros(shape)] * 3)))
    x = np.arange(120)
    shown = sum((x + shift <= 119).astype(int) for shift in (0, 40, 80))
    assert np.isnan(labels[0].charge[:, shown < 3]).all()
    # Of two others: one in thirty stands 3 of their sigma high or low, or looks steep, and is left open.
    assert (labels[0].charge[:, shown == 3] == 0).mean() > 0.95


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    path = tmp_path_factory.mktemp("repeats") / "c.zarr"
    recipe = Recipe(
        name="repeats", seed=31, split="training", exposures=5, detectors=(8,), shape=(320, 300),
        fields=(SkyField(pointing=(200.0, 30.0)),), pointing=Pointing(dither=20.0, wcs_error=0.015),
        sky=Sky(stars_per_mpix=2500, brightest=18.0), artefacts={"satellites": 0.0},
    )  # fmt: skip
    mock(recipe, path)
    lines = []
    assert label_repeats(path, on_progress=lines.append) == 5
    assert len(lines) == 1
    return path


def test_labels_of_a_mock_agree_with_its_truth(labelled):
    score = score_labels(labelled)
    assert score["all"].pixels > 0.99 * 5 * 320 * 300
    assert score["all"].precision > 0.98
    assert score["all"].recall_visible > 0.94
    assert score["all"].unknown < 0.3  # the dithers' margins, and the cores of a dense field
    assert score["inside sources"].unknown > score["all"].unknown
    assert "precision" in score["all"].line()


def test_the_clean_frame_has_the_scene_and_its_noise(labelled):
    """Scene and noise where a cosmic ray was; the frame itself elsewhere."""
    pulls = []
    for row in range(5):
        sci, clean, truth = (read_shard(labelled, name, row, 0) for name in ("sci", "labels/sci", "truth/sci"))
        charge = read_shard(labelled, "labels/cr", row, 0)
        wht = read_shard(labelled, "wht", row, 0)
        same = (charge == 0) & (wht > 0) & (read_shard(labelled, "flag", row, 0) == 0)
        assert np.allclose(sci[same], clean[same], atol=1e-5)
        hit = charge > 0
        pulls.append(((clean - truth) * EXPTIME / np.sqrt(np.maximum(truth * EXPTIME, 0) + NOISE**2))[hit])
    low, middle, high = np.percentile(np.concatenate(pulls), [16, 50, 84])
    # Of the difference between two draws of the same noise, and of the forecast's own.
    assert (high - low) / 2 == pytest.approx(2**0.5, abs=0.25)
    assert abs(middle) < 0.3


def test_labels_are_kept_unless_thresholds_change(labelled, tmp_path):
    lines = []
    label_repeats(labelled, on_progress=lines.append)
    assert "already labelled" in lines[0]
    dataset = xr.open_zarr(labelled, group="labels")  # warnings are errors
    assert dataset["cr"].attrs["units"] == "electron"
    first = dataset["cr"].values
    try:
        label_repeats(labelled, sigma=8.0, on_progress=lines.append)
        assert "already" not in lines[1]
        again = xr.open_zarr(labelled, group="labels")["cr"].values
        assert (again > 0).sum() < (first > 0).sum()
    finally:
        label_repeats(labelled)
    np.testing.assert_array_equal(xr.open_zarr(labelled, group="labels")["cr"].values, first)


def test_labels_are_read_for_training(labelled):
    """Unknown pixels have no charge."""
    units = select_units(labelled, truth="labels")
    assert (len(units), units.truth) == (5, "labels")
    frame = units.read(0)
    assert np.isfinite(frame.charge).all()
    assert 0 < frame.unknown.mean() < 0.5
    assert not frame.charge[frame.unknown].any()
    np.testing.assert_array_equal(from_labelled_frame(frame).unknown, frame.unknown)
    assert not select_units(labelled).read(0).unknown.any()
    material = load_material("training", 1, 0, None, campaign=select_units(labelled, "training", truth="labels"))
    assert material.has("rendered")
    assert material.campaign is not None
    assert material.campaign.truth == "labels"


def test_new_exposures_have_no_labels(labelled, tmp_path):
    import shutil

    path = tmp_path / "c.zarr"
    shutil.copytree(labelled, path)
    Campaign(path, "r+").append_exposures(["later"])
    assert xr.open_zarr(path, group="labels").sizes["exposure"] == 6
    assert len(select_units(path, truth="labels")) == 5


def test_a_campaign_without_repeats_is_refused(small_campaign, tmp_path):
    """Two exposures of each detector, and of different fields."""
    with pytest.raises(InputError, match="no repeats; wanted 3 exposures of one field"):
        label_repeats(small_campaign)
    with pytest.raises(InputError, match="sigma at least grow"):
        label_repeats(small_campaign, sigma=1.0)
    with pytest.raises(InputError, match="a campaign without labels"):
        select_units(small_campaign, truth="labels")
    assert not (small_campaign / "labels").exists()
    assert "labels" not in json.loads((small_campaign / "zarr.json").read_text())
