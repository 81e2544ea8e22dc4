"""Saturated pixels: of cosmic rays they are hit and repaired, of stars they are left as they are."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import gaussian_filter, label

from csstdask.cosmicray.saturation import find_candidates, join_candidates, join_enclosed
from csstdask.instrument import load_instrument
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.steps import STEPS
from csstdask.store.unit_metadata import UnitMetadata

NOISE, FULL, SKY = 10.0, 6e4, 200.0
CAMERA = """
name = "test"
units = "electron"
[electronics]
gain = 1.0
read_noise = 5.0
saturation = 6.0e4
[flags]
bits = { bad = 1, saturated = 2, cosmic_ray = 4, inpainted = 2097152 }
ignore_flags = ["bad", "saturated"]
[[layouts]]
name = "frame"
sci = { hdu = [0] }
[[detectors]]
id = 1
"""


def star(shape, y, x, fwhm, peak):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / 3) - 1)
    return peak * (1 + ((rows - y) ** 2 + (columns - x) ** 2) / alpha**2) ** -3


def track(shape, y, x, angle, length, charge, diffusion=0.35):
    """Charge of a straight track after diffusion [e-]."""
    fine = np.zeros((shape[0] * 4, shape[1] * 4))
    along = np.arange(0, length, 0.05)
    rows, columns = y + along * np.sin(angle), x + along * np.cos(angle)
    np.add.at(fine, ((4 * rows + 2).astype(int), (4 * columns + 2).astype(int)), charge * 0.05)
    return gaussian_filter(fine, 4 * diffusion).reshape(shape[0], 4, shape[1], 4).sum(axis=(1, 3))


def judge(height, full=FULL, *, clip=False, unusable=None):
    saturated = height >= full
    height = np.minimum(height, full) if clip else height
    unusable = np.zeros_like(saturated) if unusable is None else unusable
    return saturated, find_candidates(height, np.full(height.shape, NOISE), saturated & ~unusable, unusable)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("fwhm", [1.5, 2.5, 5.0])
@pytest.mark.parametrize("above", [1.05, 3.0, 100.0])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_stars_are_left(rng, clip, fwhm, above, offset):
    """From just saturated to a hundred times the full well, wherever they lie in their pixel."""
    peak = star((64, 64), 31 + offset, 32 + offset, fwhm, 1.0).max()
    height = star((64, 64), 31 + offset, 32 + offset, fwhm, above * FULL / peak) + rng.normal(0, NOISE, (64, 64))
    saturated, found = judge(height, clip=clip)
    assert saturated.any()
    assert not found.any()


def test_bleed_trails_belong_to_their_star(rng):
    height = star((128, 64), 64, 32, 2.5, 20 * FULL) + rng.normal(0, NOISE, (128, 64))
    height[30:100, 32] = FULL
    saturated, found = judge(height, clip=True)
    assert saturated.sum() > 60
    assert not found.any()


@pytest.mark.parametrize("where", [(1, 1), (0, 30), (40, 63)])
def test_a_star_at_the_edge_is_left(rng, where):
    height = star((64, 64), *where, 2.0, 5 * FULL) + rng.normal(0, NOISE, (64, 64))
    saturated, found = judge(height)
    assert saturated.any()
    assert not found.any()


@pytest.mark.parametrize("angle", [0, 0.3, np.pi / 4, 1.2, np.pi / 2])
@pytest.mark.parametrize("length", [0.1, 3, 25])
@pytest.mark.parametrize("clip", [False, True])
def test_cosmic_rays_may_be_hit(rng, angle, length, clip):
    charge = track((64, 64), 20, 20, angle, length, 1.0)
    height = charge * (3 * FULL / charge.max()) + rng.normal(0, NOISE, (64, 64))
    saturated, found = judge(height, clip=clip)
    assert saturated.any()
    assert np.array_equal(found, saturated)


def test_two_tracks_that_cross_may_be_hit(rng):
    height = sum(track((64, 64), *at, 20, 4e5) for at in ((32, 22, 0.0), (22, 32, np.pi / 2)))
    saturated, found = judge(height + rng.normal(0, NOISE, (64, 64)))
    assert label(saturated, np.ones((3, 3)))[1] == 1
    assert np.array_equal(found, saturated)


def test_a_cosmic_ray_over_a_column_of_unusable_pixels(rng):
    """Lines continue across unusable pixels."""
    height = track((64, 64), 32, 20, 0.0, 24, 4e5) + rng.normal(0, NOISE, (64, 64))
    bad = np.zeros((64, 64), bool)
    bad[34:36] = True
    height[bad] = 9e4
    saturated, found = judge(height, unusable=bad)
    assert np.array_equal(found, saturated & ~bad)


def test_flags_without_light_are_left():
    """Flags of faint pixels come from other pipelines and do not indicate a cosmic ray."""
    saturated = np.zeros((32, 32), bool)
    saturated[10, 10:13] = True
    height = np.zeros((32, 32))
    assert not find_candidates(height, np.ones((32, 32)), saturated, np.zeros_like(saturated)).any()
    assert not find_candidates(height, np.ones((32, 32)), np.zeros_like(saturated), np.zeros_like(saturated)).any()


def test_candidates_join_the_events_that_they_touch():
    candidate = np.zeros((20, 20), bool)
    candidate[5, 5:9] = candidate[15, 2:18] = True
    hit = np.zeros((20, 20), bool)
    hit[5, 5:8] = hit[14, 2] = True  # most of one group, the tip of the other
    found = join_candidates(hit, candidate)
    assert found[5, 5:9].all()
    assert found[15, 2:4].all()
    assert not found[15, 4:].any()
    assert np.array_equal(join_candidates(np.zeros_like(hit), candidate), np.zeros_like(hit))


def test_surrounded_groups_are_classified_again(rng):
    """Tracks on all sides look like a star's light until detection has flagged them."""
    height = rng.normal(0, NOISE, (40, 40))
    height[20, 20] = 2 * FULL
    hit = np.zeros((40, 40), bool)
    hit[17:24, 17:24] = True
    hit[20, 20] = False
    height[hit] = 0.5 * FULL
    saturated = height >= FULL
    candidate = find_candidates(height, np.full(height.shape, NOISE), saturated, np.zeros_like(hit))
    assert not candidate.any()
    found = join_enclosed(height, np.full(height.shape, NOISE), hit, saturated, candidate, np.zeros_like(hit))
    assert found[20, 20]


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    path = tmp_path_factory.mktemp("camera") / "test.toml"
    path.write_text(CAMERA)
    return load_instrument(str(path))


def run_steps(camera, data, flag, *, wht=None, gain=1.0, units="electron", model="unet-fast"):
    config = RunConfig.model_validate({"detect": {"model": model}, "psf": {"model": "none"}})
    wht = 1 / (np.maximum(data, 0) + 25) if wht is None else wht
    planes = {"sci": data.astype("f4"), "wht": wht.astype("f4"), "flag": flag.astype("i4")}
    metadata = UnitMetadata("e", 1, "imaging", None, 1.0, np.datetime64("2026-01-01"), gain, 5.0, "")
    frame = Frame(metadata, camera, units, lambda name: planes[name].copy(), lambda name: planes[name])
    metrics = {}
    for name in ("background", "detect", "psf", "repair", "sources"):
        output = STEPS[name].body(frame, config)
        frame.add_results(output.arrays, output.tables)
        metrics |= output.metrics
    return frame, metrics


@pytest.mark.parametrize("zero_weight", [False, True])
def test_a_run_repairs_saturated_cosmic_rays_and_leaves_stars(rng, camera, zero_weight):
    shape = (256, 256)
    truth = SKY + star(shape, 80, 70, 3.0, 10 * FULL) + star(shape, 180, 200, 2.2, 3 * FULL)
    data = rng.poisson(truth) + rng.normal(0, 5, shape)
    charge = sum(
        track(shape, *at, 12, 2.5e5) for at in ((60, 180, 0.2), (200, 60, 1.2), (130, 130, 2.5), (70, 88, 0.9))
    )
    data = np.minimum(data + charge, FULL)  # clipped, as an amplifier does
    flag = np.where(data >= FULL, 2, 0)
    wht = np.where((flag > 0) & zero_weight, 0, 1 / (np.maximum(data, 0) + 25))
    frame, metrics = run_steps(camera, data, flag, wht=wht)
    hit = frame.product("cr_mask")
    of_star = (flag > 0) & (truth > 0.9 * FULL)
    of_track = (flag > 0) & (truth < 0.2 * FULL)
    assert of_star.sum() > 20
    assert of_track.sum() > 20
    assert not hit[of_star].any()
    assert hit[of_track].all()
    assert metrics["n_cr_saturated_pixels"] == of_track.sum()
    repair, variance = frame.product("repair"), frame.product("repair_variance")
    on_sky = of_track & (truth < 2 * SKY)
    pull = (repair - truth)[on_sky] / np.sqrt(variance[on_sky])
    assert np.isfinite(variance[on_sky]).all()
    assert np.abs(pull).max() < 5
    assert np.abs(repair - truth)[on_sky].max() < 0.01 * FULL
    assert np.isnan(repair[of_star]).all()
    assert not frame.ignore[of_track].any()
    assert frame.ignore[of_star].all()


def test_pixels_that_are_bad_as_well_stay_ignored(rng, camera):
    data = rng.normal(SKY, 15, (128, 128))
    data[60, 40:50] = FULL
    frame, _ = run_steps(camera, data, np.where(data >= FULL, 3, 0))
    assert not frame.product("cr_mask")[60, 40:50].any()
    assert frame.ignore[60, 40:50].all()


@pytest.mark.parametrize("saturation", [7e4, 1e7])
def test_real_m51_whatever_the_saturation(real_images, camera, saturation):
    """Once 4,447 pixels stayed 1,000 counts above the truth with `saturation = 7e4`, and 9 with 1e7."""
    folder = real_images / "m51_inpaint"
    truth, damaged = (
        fits.getdata(folder / name).astype(np.float32) for name in ("m51_org.fits", "m51_with_cosmicrays.fits")
    )
    electrons = damaged * 4
    wht = 16 / (np.maximum(electrons, 0) + 225)
    flag = np.where(electrons >= saturation, 2, 0)
    frame, _ = run_steps(camera, damaged, flag, wht=wht, gain=4.0, units="adu", model="unet")
    clean = np.where(frame.product("cr_mask"), frame.product("repair"), damaged)
    assert (clean - truth > 1000).sum() < 200
