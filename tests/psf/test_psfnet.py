"""CSST-PSFNet: its parts, what it sees, what teaches it, and what comes out of the public door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import csstdask
from csstdask.errors import InputError
from csstdask.nn.models import find_card
from csstdask.nn.psfnet import PsfNet
from csstdask.pipeline.mock_survey import mock
from csstdask.psf.evaluate.stars import errors_of
from csstdask.psf.psfex import is_installed
from csstdask.psf.psfnet import pulls_of_pixels, seen_by_stars, stamps_seen
from csstdask.psf.train import load_psf_config, train_psf

SMALL = {
    "kind": "psfnet", "channels": (8, 8, 16), "width": 16, "heads": 2, "layers": 1, "latent": 8, "upward": (16, 8, 8),
    "batch": 8, "epochs": 24, "warm_up": 2.0, "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def stamps(psf_recipe, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stamps") / "stars.zarr"
    mock(psf_recipe, path)
    return path


@pytest.fixture(scope="module")
def trained(stamps, tmp_path_factory) -> Path:
    config = load_psf_config(None, **SMALL, campaigns=(str(stamps),))
    return train_psf(config, tmp_path_factory.mktemp("psfnet"), announce=lambda _: None)


def test_psfs_are_light_and_sum_to_one():
    network = PsfNet(3, channels=(8, 8, 16), width=16, heads=2, layers=1, latent=8, upward=(16, 8, 8)).eval()
    told = network(torch.rand(5, 32, 32), torch.rand(5, 2), torch.tensor([0, 1, 2, 0, 1]))
    assert told.image.shape == (5, 64, 64)
    assert (told.image > 0).all()
    assert torch.allclose(told.image.sum(dim=(1, 2)), torch.ones(5), atol=1e-5)
    assert told.mean.shape == told.log_variance.shape == (5, 8)
    again = network(torch.rand(5, 32, 32), torch.rand(5, 2), torch.tensor([0, 1, 2, 0, 1]))
    assert not torch.equal(told.image, again.image)


def test_the_code_is_drawn_in_training_alone():
    network = PsfNet(1, channels=(8, 8, 16), width=16, heads=2, layers=1, latent=8, upward=(16, 8, 8))
    given = torch.rand(2, 32, 32), torch.rand(2, 2), torch.tensor([0, 0])
    images = [network(*given).image for _ in range(2)]
    assert not torch.equal(*images)
    network.eval()
    assert torch.equal(*(network(*given).image for _ in range(2)))


def test_what_it_sees_of_a_star_is_its_light_whatever_flux_and_sky(rng):
    star = rng.normal(0, 1, (2, 32, 32))
    star[:, 16, 16] += 100
    ignored = np.zeros(star.shape, dtype=bool)
    ignored[1, 3, 3] = True
    plain = stamps_seen(star, ignored)
    star[1, 3, 3] = 1e6
    assert np.allclose(stamps_seen(7 * star + 300, ignored), plain, atol=1e-5)
    assert plain.max(axis=(1, 2)) == pytest.approx(1)
    assert plain[1, 3, 3] == 0
    assert not stamps_seen(star, np.ones_like(ignored)).any()


def test_pixels_are_those_of_a_star_at_its_phase(psf_stars):
    """The truth, seen through the stars' pixels, leaves their noise; seen from elsewhere it does not."""
    stars = psf_stars
    places = [torch.from_numpy((one - np.floor(one + 0.5)).astype(np.float32)) for one in (stars.x, stars.y)]
    truth, pixels = torch.from_numpy(stars.truth), torch.from_numpy(stars.stamps)
    weight = torch.from_numpy(np.where(stars.mask, 0, 1 / np.where(stars.mask, 1, stars.error) ** 2).astype(np.float32))
    chi2 = pulls_of_pixels(truth, *places, pixels, weight).square().mean(dim=(1, 2))
    assert 0.9 < float(chi2.median()) < 1.15
    moved = pulls_of_pixels(truth, places[0] + 0.2, places[1], pixels, weight).square().mean(dim=(1, 2))
    assert float(moved.median()) > 1.3
    still = seen_by_stars(truth[:1], torch.zeros(1), torch.zeros(1))
    assert torch.allclose(still[0], truth[0, ::2, ::2], atol=1e-6)


def test_it_learns_and_its_card_says_what(trained, psf_stars):
    """Two dozen epochs of forty stars, of one telescope: it knows that one, and says how wrong it is."""
    card = find_card("psf", str(trained))
    assert card.architecture["detectors"] == [psf_stars.detector]
    assert card.metrics["psnr"] > 40
    assert 0 < card.calibration["floor"] + card.calibration["share"] < 1
    found = csstdask.psf.reconstruct(
        psf_stars.stamps, np.full(len(psf_stars), psf_stars.detector), psf_stars.x, psf_stars.y,
        error=psf_stars.error, mask=psf_stars.mask, model=str(trained),
    )  # fmt: skip
    assert found.image.shape == found.sigma.shape == (len(psf_stars), 64, 64)
    assert np.allclose(found.image.sum(axis=(1, 2)), 1, atol=1e-4)
    assert errors_of(found.image, psf_stars.truth)["psnr"].mean() > 40
    assert found.fields == {}
    assert np.isfinite(found.chi2).all()
    assert (found.sigma > 0).all()


def test_stars_alone_teach_as_well(trained, stamps, tmp_path):
    """No PSF is looked at: the pixels of stars that were not learnt from are foretold better than before."""
    before = find_card("psf", str(trained))
    config = load_psf_config(
        None,
        **SMALL | {"epochs": 4, "learning_rate": 1e-3},
        campaigns=(str(stamps),),
        labels="stars",
        start_from=str(trained),
    )
    lines: list[str] = []
    card = find_card("psf", str(train_psf(config, tmp_path, announce=lines.append)))
    chi2 = [float(line.split("chi2 ")[1].split(",")[0]) for line in lines if "chi2" in line]
    assert min(chi2) <= chi2[0]
    assert card.metrics["chi2"] == pytest.approx(min(chi2), rel=1e-2)
    assert card.architecture == before.architecture
    assert card.calibration == before.calibration
    assert card.sha256 != before.sha256


@pytest.mark.skipif(not is_installed(), reason="PSFEx is not installed")
def test_psfex_may_teach(stamps, tmp_path):
    config = load_psf_config(None, **SMALL | {"epochs": 1}, campaigns=(str(stamps),), labels="psfex")
    card = find_card("psf", str(train_psf(config, tmp_path, announce=lambda _: None)))
    assert card.trained_on.endswith("psfex")


def test_what_is_refused(trained, stamps, psf_stars, tmp_path):
    few = psf_stars.take(slice(0, 2))
    with pytest.raises(ValueError, match="detector: found 8; wanted one of 7"):
        csstdask.psf.reconstruct(few.stamps, [8, 8], few.x, few.y, model=str(trained))
    with pytest.raises(InputError, match="knows fields: principal"):
        csstdask.psf.fit_frame(
            np.zeros((64, 64), np.float32), np.ones((64, 64), np.float32), np.zeros((64, 64), bool), {}, 7,
            model=str(trained),
        )  # fmt: skip
    with pytest.raises(InputError, match="kind = 'resnet'"):
        load_psf_config(None, kind="resnet")
    with pytest.raises(InputError, match="campaigns"):
        load_psf_config(None, kind="psfnet")
    config = load_psf_config(None, **SMALL | {"width": 24}, campaigns=(str(stamps),))
    with pytest.raises(InputError, match="another schedule, network or examples"):
        train_psf(config, trained.parent, announce=lambda _: None)
