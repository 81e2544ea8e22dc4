"""Events from darks: simulated darks with known hits, and the STIS frames compared with their published library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import csstdask.instrument
from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.event_libraries import read_event_library
from csstdask.mock.recipe_tables import CosmicRays
from csstdask.pipeline.ingest import ingest
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_creation import create_campaign
from csstdask.store.campaign_pixels import write_unit_pixels
from csstdask.store.unit_metadata import UnitMetadata
from csstdask.training.cosmicray.material import load_material
from csstdask.training.labels.darks import extract_detector_events, label_darks

SHAPE, READ_NOISE, EXPTIMES = (240, 200), 5.0, (900.0, 900.0, 1200.0, 900.0, 1500.0)
BAD = 1


def write_darks(path, frames, exptimes, *, kind="dark", detector=7, flag=None):
    """Write a campaign of frames [e-] of one detector."""
    create_campaign(path, load_instrument("csst"), frames[0].shape, "electron", [detector])
    campaign = Campaign(path, "r+")
    for number, (frame, exptime) in enumerate(zip(frames, exptimes, strict=True)):
        name = f"dark{number}"
        campaign.append_exposures([name])
        row, column = campaign.index(name, detector)
        metadata = UnitMetadata(name, detector, kind, "", exptime, 0, 1.0, READ_NOISE, name)
        campaign.describe_exposures([metadata])
        write_unit_pixels(path, row, column, "sci", frame.astype(np.float32))
        write_unit_pixels(path, row, column, "wht", np.full(frame.shape, 1 / READ_NOISE**2, np.float32))
        write_unit_pixels(path, row, column, "flag", np.zeros(frame.shape, np.int32) if flag is None else flag)
        campaign.mark_present([metadata])


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Five darks of three exposure times: dark current, hot and flickering pixels, hits with known charge."""
    rng = np.random.default_rng(7)
    rate = np.full(SHAPE, 0.01) * (1 + 0.3 * np.linspace(-1, 1, SHAPE[0])[:, None])
    hot = rng.random(SHAPE) < 0.01
    rate[hot] += rng.uniform(0.05, 5, hot.sum())
    flickers = (rng.random(SHAPE) < 0.003) & ~hot
    frames, charges = [], []
    settings = CosmicRays(pixel_fraction=(0.02,), log_charge=3.0)
    for number, exptime in enumerate(EXPTIMES):
        charge = draw_cosmic_rays(rng, settings, SHAPE)
        on = flickers & (number % 2 == 0)  # in three of five
        light = rng.poisson(rate * exptime + np.where(on, 400, 0))
        frames.append(light + charge + rng.normal(0, READ_NOISE, SHAPE) + 30 * number)  # pedestals differ
        charges.append(charge)
    flag = np.zeros(SHAPE, np.int32)
    flag[100, 50:60] = BAD
    path = tmp_path_factory.mktemp("darks") / "c.zarr"
    write_darks(path, frames, EXPTIMES, flag=flag)
    return path, charges, hot, flickers, rate


def event_image(events):
    """Return the charge of a frame's events."""
    frame = np.zeros(SHAPE, np.float32)
    size = np.diff(events.offset)
    frame[np.repeat(events.y, size) + events.dy, np.repeat(events.x, size) + events.dx] = events.charge
    return frame


def events_of(path, detector=7):
    campaign = Campaign(path)
    return list(extract_detector_events(campaign, [campaign.metadata(name, detector) for name in campaign.exposures]))


def test_events_are_hits_without_hot_pixels(known):
    path, charges, hot, flickers, _ = known
    strong = found = pixels = right = 0
    ratios = []
    for (_, events, _), charge in zip(events_of(path), charges, strict=True):
        image = event_image(events)
        assert not (image[hot | flickers] > 0).any()
        pixels += np.count_nonzero(image)
        right += np.count_nonzero(image[charge > 0])
        # Above 5 sigma of read noise, dark current and reference (6.5 e-), on no excluded pixel.
        visible = (charge > 33) & ~hot & ~flickers
        strong += np.count_nonzero(visible)
        found += np.count_nonzero(image[visible])
        ratios.append(image[(image > 0) & (charge > 100)].sum() / charge[(image > 0) & (charge > 100)].sum())
    assert right / pixels > 0.985  # down to 3 sigma, some pixels are noise
    assert found / strong > 0.7  # the others belong to events with a hot pixel, or are single pixels
    np.testing.assert_allclose(ratios, 1, atol=0.01)


def test_only_single_pixels_and_events_on_hot_pixels_are_lost(known):
    """Nearly all hits of two or more pixels above 5 sigma without an excluded neighbour are found."""
    from scipy.ndimage import binary_dilation, label

    path, charges, hot, flickers, _ = known
    complete = missed = 0
    near = binary_dilation(hot | flickers, np.ones((3, 3)))
    near[99:102, 49:61] = near[[0, -1]] = near[:, [0, -1]] = True
    for (_, events, _), charge in zip(events_of(path), charges, strict=True):
        parts, number = label(charge > 1, np.ones((3, 3)))
        image = event_image(events)
        for index in range(1, number + 1):
            inside = parts == index
            if not near[inside].any() and np.count_nonzero(charge[inside] > 40) >= 2:
                complete += 1
                missed += not (image[inside] > 0).any()
    assert complete > 100
    # The rest touch pixels that look hot because of noise or two hits on one pixel.
    assert missed / complete < 0.06


def test_a_library_is_read_for_training_and_weighted_for_lost_events(known, tmp_path):
    path = known[0]
    library = label_darks(path, tmp_path / "events.npz")
    again = read_event_library(tmp_path / "events.npz")
    assert np.array_equal(again.charge, library.charge)
    assert again.weight.sum() == pytest.approx(1)
    assert again.turns  # square pixels
    assert np.diff(again.offset).min() == 2
    parts = [len(read_event_library(tmp_path / "events.npz", split)) for split in ("training", "validation", "test")]
    assert sum(parts) == len(again)
    assert parts[0] / len(again) == pytest.approx(0.6, abs=0.05)  # of five frames, three
    material = load_material("training", 1, 0, None, events=[tmp_path / "events.npz"])
    assert len(material.libraries[0]) == parts[0]
    sizes = np.diff(again.offset)
    weight = [again.weight[sizes == size].mean() for size in (2, 12)]
    # Ten pixels more survive 1.5 per cent of excluded ones with 0.985^10 = 0.86: one over that.
    assert 1.08 < weight[1] / weight[0] < 1.3


def test_unusable_frames_are_named(tmp_path, rng):
    frames = [rng.normal(100, 5, (64, 64)) for _ in range(3)]
    write_darks(tmp_path / "two.zarr", frames[:2], (900.0, 900.0))
    with pytest.raises(InputError, match=r"detector 7: found 2 dark frames; wanted 3 or more"):
        label_darks(tmp_path / "two.zarr", tmp_path / "e.npz")
    write_darks(tmp_path / "sky.zarr", frames, (900.0,) * 3, kind="imaging")
    with pytest.raises(InputError, match="no dark frame; wanted units of kind dark"):
        label_darks(tmp_path / "sky.zarr", tmp_path / "e.npz")
    write_darks(tmp_path / "quiet.zarr", frames, (900.0,) * 3)
    with pytest.raises(InputError, match="no event in its darks"):
        label_darks(tmp_path / "quiet.zarr", tmp_path / "e.npz")
    with pytest.raises(InputError, match="sigma at least grow"):
        label_darks(tmp_path / "quiet.zarr", tmp_path / "e.npz", sigma=2.0)
    assert not (tmp_path / "e.npz").exists()


def test_stis_frames_agree_with_their_published_library(real_images, tmp_path):
    """Six long-slit frames used as darks: most of the published events of these frames, and no others.

    The library's authors had eight frames, and keep events that hold a hot pixel beside their peak; one pixel in
    fourteen is hot here, and its events are left out: a fifth of the charge.
    """
    folder = real_images / "hst_stis"
    files = sorted((folder / "raw").glob("*_raw.fits"))
    ingest(files, tmp_path / "spectra.zarr")
    with pytest.raises(InputError, match="no dark frame"):  # their headers say that they are spectra
        label_darks(tmp_path / "spectra.zarr", tmp_path / "e.npz")
    camera = (Path(csstdask.instrument.__file__).parent / "hst_stis.toml").read_text()
    (tmp_path / "stis.toml").write_text(camera.replace('["DARK"]', '["DARK", "NGC1068-SEQ1"]'))
    ingest(files, tmp_path / "c.zarr", instrument=str(tmp_path / "stis.toml"))
    with np.load(folder / "cr_events_stis_1999.npz") as stored:
        published = {name: stored[name] for name in stored.files if name != "meta"}
    names = [str(name) for name in published["exposure_name"]]
    size = np.diff(published["offset"])
    campaign = Campaign(tmp_path / "c.zarr")
    units = [campaign.metadata(name, 1) for name in campaign.exposures]
    for metadata, events, _ in extract_detector_events(campaign, units):
        if metadata.exposure not in names:
            continue
        ours = np.zeros(campaign.shape, np.float32)
        pixels = np.diff(events.offset)
        ours[np.repeat(events.y, pixels) + events.dy, np.repeat(events.x, pixels) + events.dx] = events.charge
        reference = np.zeros(campaign.shape, np.float32)
        chosen = (published["exposure"] == names.index(metadata.exposure)) & (published["quality"] == 0) & (size >= 2)
        pixel = np.repeat(chosen, size)
        y = np.repeat(published["y0"], size)[pixel] + published["pix_dy"][pixel]
        x = np.repeat(published["x0"], size)[pixel] + published["pix_dx"][pixel]
        reference[y, x] = published["pix_value"][pixel]
        both = (ours > 0) & (reference > 0)
        assert reference[both].sum() / reference.sum() > 0.75
        assert ours[both].sum() / reference[both].sum() == pytest.approx(1, abs=0.01)
        truth = np.load(folder / "truth" / f"{metadata.exposure}.npz")
        assert truth["crmask"][(ours > 0) & truth["valid"]].mean() > 0.99
    assert not label_darks(tmp_path / "c.zarr", tmp_path / "e.npz").turns  # its pixels are 21 by 42 um
