"""CSST-PSFNet: its parts, what it sees, what teaches it, and what comes out of the public door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import csstdask
from csstdask.core.errors import InputError
from csstdask.metrics.psf import psf_errors
from csstdask.nn.models import find_card
from csstdask.pipeline.mock_survey import mock
from csstdask.psf.network import NetworkOutput, PsfNet
from csstdask.psf.psfnet import normalise_stamps, pixel_pulls, render_at_stars
from csstdask.training.psf.examples import Batch, label_with_psfex, read_stars
from csstdask.training.psf.psfex import is_installed
from csstdask.training.psf.psfnet import calibrate_sigma
from csstdask.training.psf.train import load_psf_config, train_psf

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
    return train_psf(config, tmp_path_factory.mktemp("psfnet"), on_progress=lambda _: None)


def test_psfs_are_non_negative_and_sum_to_one():
    network = PsfNet(3, channels=(8, 8, 16), width=16, heads=2, layers=1, latent=8, upward=(16, 8, 8)).eval()
    told = network(torch.rand(5, 32, 32), torch.rand(5, 2), torch.tensor([0, 1, 2, 0, 1]))
    assert told.image.shape == (5, 64, 64)
    assert (told.image > 0).all()
    assert torch.allclose(told.image.sum(dim=(1, 2)), torch.ones(5), atol=1e-5)
    assert told.mean.shape == told.log_variance.shape == (5, 8)
    again = network(torch.rand(5, 32, 32), torch.rand(5, 2), torch.tensor([0, 1, 2, 0, 1]))
    assert not torch.equal(told.image, again.image)


def test_code_is_sampled_only_in_training():
    network = PsfNet(1, channels=(8, 8, 16), width=16, heads=2, layers=1, latent=8, upward=(16, 8, 8))
    given = torch.rand(2, 32, 32), torch.rand(2, 2), torch.tensor([0, 0])
    images = [network(*given).image for _ in range(2)]
    assert not torch.equal(*images)
    network.eval()
    assert torch.equal(*(network(*given).image for _ in range(2)))


def test_inputs_do_not_depend_on_flux_and_sky(rng):
    star = rng.normal(0, 1, (2, 32, 32))
    star[:, 16, 16] += 100
    ignored = np.zeros(star.shape, dtype=bool)
    ignored[1, 3, 3] = True
    plain = normalise_stamps(star, ignored)
    star[1, 3, 3] = 1e6
    assert np.allclose(normalise_stamps(7 * star + 300, ignored), plain, atol=1e-5)
    assert plain.max(axis=(1, 2)) == pytest.approx(1)
    assert plain[1, 3, 3] == 0
    assert not normalise_stamps(star, np.ones_like(ignored)).any()


def test_predicted_pixels_use_the_phase_of_the_star(psf_stars):
    """The true PSF at the star's phase leaves only noise as the residual; another phase does not."""
    stars = psf_stars
    places = [torch.from_numpy((one - np.floor(one + 0.5)).astype(np.float32)) for one in (stars.x, stars.y)]
    truth, pixels = torch.from_numpy(stars.truth), torch.from_numpy(stars.stamps)
    weight = torch.from_numpy(np.where(stars.mask, 0, 1 / np.where(stars.mask, 1, stars.error) ** 2).astype(np.float32))
    chi2 = pixel_pulls(truth, *places, pixels, weight).square().mean(dim=(1, 2))
    assert 0.9 < float(chi2.median()) < 1.15
    moved = pixel_pulls(truth, places[0] + 0.2, places[1], pixels, weight).square().mean(dim=(1, 2))
    assert float(moved.median()) > 1.3
    still = render_at_stars(truth[:1], torch.zeros(1), torch.zeros(1))
    assert torch.allclose(still[0], truth[0, ::2, ::2], atol=1e-6)


def test_training_reduces_the_error_and_writes_a_card(trained, psf_stars):
    """24 epochs with 40 stars of one telescope: the network fits it, and gives calibrated errors."""
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
    assert psf_errors(found.image, psf_stars.truth)["psnr"].mean() > 40
    assert found.fields == {}
    assert np.isfinite(found.chi2).all()
    assert (found.sigma > 0).all()


def test_training_from_stars_only(trained, stamps, tmp_path):
    """Training needs no true PSF: it predicts the pixels of held-out stars better than before."""
    before = find_card("psf", str(trained))
    config = load_psf_config(
        None,
        **SMALL | {"epochs": 4, "learning_rate": 1e-3},
        campaigns=(str(stamps),),
        labels="stars",
        start_from=str(trained),
    )
    card = find_card("psf", str(train_psf(config, tmp_path, on_progress=lambda _: None)))
    still = config.model_copy(update={"learning_rate": 1e-12, "epochs": 1})
    untaught = find_card("psf", str(train_psf(still, tmp_path / "still", on_progress=lambda _: None)))
    assert card.metrics["chi2"] < untaught.metrics["chi2"]
    assert card.architecture == before.architecture
    assert card.calibration == before.calibration
    assert card.sha256 != before.sha256


@pytest.mark.skipif(not is_installed(), reason="PSFEx is not installed")
def test_training_with_psfex_labels(stamps, tmp_path):
    config = load_psf_config(None, **SMALL | {"epochs": 1}, campaigns=(str(stamps),), labels="psfex")
    card = find_card("psf", str(train_psf(config, tmp_path, on_progress=lambda _: None)))
    assert card.trained_on.endswith("psfex")


@pytest.mark.skipif(not is_installed(), reason="PSFEx is not installed")
def test_sky_is_subtracted_for_psfex_labels(stamps, psf_stars):
    config = load_psf_config(None, **SMALL, campaigns=(str(stamps),))
    _, stars = read_stars(config, lambda _: None)
    labelled = label_with_psfex(stars)
    assert psf_errors(labelled.psf, stars.psf)["psnr"].mean() > 35
    assert len(stars) == len(psf_stars)


def test_sigmas_are_calibrated_where_there_is_light():
    """Known errors: a hundredth of the light, and a thousandth of the peak; no sample is dark."""
    light = torch.linspace(0.05, 1, 4096).reshape(1, 64, 64).expand(40, -1, -1)
    image = light / light.sum(dim=(1, 2), keepdim=True)
    peak = image.amax(dim=(1, 2), keepdim=True)
    torch.manual_seed(1)
    wrong = 0.01 * image * torch.randn(40, 64, 64) + 1e-3 * peak * torch.randn(40, 64, 64)
    empty = torch.empty(40, 0, 0)

    class Known(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.anything = torch.nn.Parameter(torch.zeros(1))

        def forward(self, stamp, place, detector):
            return NetworkOutput(image[: len(stamp)], stamp, stamp)

    given = (torch.zeros(40, 1), torch.zeros(40, 2), torch.zeros(40))
    found = calibrate_sigma(Known(), Batch(given, image + wrong, empty, empty, (torch.zeros(40), torch.zeros(40))))
    assert found["floor"] == pytest.approx(1e-3, rel=0.1)
    assert found["share"] == pytest.approx(0.01, rel=0.05)


def test_invalid_arguments_raise(trained, stamps, psf_stars, tmp_path):
    few = psf_stars.take(slice(0, 2))
    with pytest.raises(ValueError, match="detector: found 8; wanted one of 7"):
        csstdask.psf.reconstruct(few.stamps, [8, 8], few.x, few.y, model=str(trained))
    with pytest.raises(InputError, match="which fits fields"):
        csstdask.psf.fit_frame(
            np.zeros((64, 64), np.float32), np.ones((64, 64), np.float32), np.zeros((64, 64), bool), {}, 7,
            model=str(trained),
        )  # fmt: skip
    with pytest.raises(InputError, match="kind = 'resnet'"):
        load_psf_config(None, kind="resnet")
    with pytest.raises(InputError, match="campaigns"):
        load_psf_config(None, kind="psfnet")
    for settings, match in (
        ({"channels": (8, 8, 12)}, "found 12; wanted multiples of 8"),
        ({"width": 10, "heads": 4}, "width = 10 with 4 heads"),
        ({"labels": "stars"}, "wanted a network to start from"),
    ):
        with pytest.raises(InputError, match=match):
            load_psf_config(None, **SMALL | settings, campaigns=(str(stamps),))
    begun = load_psf_config(None, **SMALL, campaigns=(str(stamps),), start_from="principal")
    with pytest.raises(InputError, match=r"start_from: found principal, of kind principal; wanted a network"):
        train_psf(begun, tmp_path, on_progress=lambda _: None)
    with pytest.raises(ValueError, match="x: found 20000; wanted a position on the detector"):
        csstdask.psf.reconstruct(few.stamps, [7, 7], few.x + 20_000 - few.x, few.y, model=str(trained))
    config = load_psf_config(None, **SMALL | {"width": 24}, campaigns=(str(stamps),))
    with pytest.raises(InputError, match="another schedule, network or examples"):
        train_psf(config, trained.parent, on_progress=lambda _: None)
