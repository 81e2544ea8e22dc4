"""PSFs of a camera that nobody has simulated: learnt from its stars alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import csstdask
from csstdask.errors import InputError
from csstdask.nn.models import find_card
from csstdask.psf.empirical import Smoothness, fwhm_of, learn_from_stars
from csstdask.psf.evaluate.reserve import beside_stars
from csstdask.psf.evaluate.stars import errors_of, pulls_of
from csstdask.psf.psfnet import phase_of

BELIEVED = Smoothness(**find_card("psf", "empirical").parameters)


@pytest.fixture(scope="module")
def given(psf_stars):
    stars = psf_stars
    return (stars.stamps, np.zeros(len(stars)), stars.x, stars.y), {
        "error": stars.error, "mask": stars.mask, "model": "empirical", "shape": stars.shape,
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(given):
    args, options = given
    return csstdask.psf.reconstruct(*args, **options)


def test_stars_alone_tell_their_psf(found, psf_stars):
    """Nothing was learnt of any telescope, and the PSF is undersampled: 49 stars lie anywhere within their pixels."""
    errors = errors_of(found.image, psf_stars.truth)
    assert errors["psnr"].mean() > 54
    assert errors["ssim"].mean() > 0.998
    assert abs(errors["size"].mean()) < 0.01
    assert errors["e1"].std() < 0.02
    assert np.median(found.chi2) < 1.3
    assert found.used.mean() > 0.9
    assert 0.5 < pulls_of(found.image, found.sigma, psf_stars.truth).std() < 2


def test_the_field_answers_anywhere(found, psf_stars):
    image, sigma = found.fields[0](psf_stars.x, psf_stars.y)
    assert image.shape == sigma.shape == found.image.shape
    assert np.abs(image - found.image).max() < 0.05 * found.image.max()
    assert found.fields[0].shape == psf_stars.shape


def test_it_says_the_same_again_and_of_tensors(found, given):
    (stamps, *places), options = given
    again = csstdask.psf.reconstruct(torch.from_numpy(stamps), *places, **options)
    assert isinstance(again.image, torch.Tensor)
    assert np.array_equal(again.image.numpy(), found.image)


def test_it_wants_to_know_how_large_a_detector_is(given):
    args, options = given
    with pytest.raises(InputError, match="detectors of no known size"):
        csstdask.psf.reconstruct(*args, **options | {"shape": None})
    with pytest.raises(ValueError, match="wanted a place on the detector, 0 to 99"):
        csstdask.psf.reconstruct(*args, **options | {"shape": (100, 100)})


def test_nothing_seen_is_nothing_known(given):
    (stamps, detector, x, y), options = given
    some = slice(0, 3)
    everything = np.ones_like(options["mask"][some])
    told = options | {"error": options["error"][some], "mask": everything}
    blind = csstdask.psf.reconstruct(stamps[some], detector[some], x[some], y[some], **told)
    assert np.isfinite(blind.image).all()
    assert not blind.used.any()


def test_what_is_believed_is_centred_has_the_stars_width_and_no_light_of_its_own(psf_stars):
    stars = psf_stars
    variance = np.where(stars.mask, np.inf, stars.error.astype(float) ** 2).astype(np.float32)
    psfs = learn_from_stars(BELIEVED, stars.stamps, variance, phase_of(stars.x), phase_of(stars.y))
    true = stars.truth.mean(axis=0)
    wide = 2 * np.sqrt((true > true.max() / 2).sum() / np.pi) / 2
    assert fwhm_of(psfs.mean) == pytest.approx(wide, rel=0.1)
    assert psfs.mean.sum() == pytest.approx(16, rel=1e-5)
    assert np.abs(psfs.images.sum(axis=(1, 2))).max() < 1e-3
    assert len(psfs) == BELIEVED.images


def test_true_psfs_suit_their_stars_and_others_do_not(psf_stars):
    stars = psf_stars
    variance = np.where(stars.mask, np.inf, stars.error.astype(float) ** 2).astype(np.float32)
    given = stars.stamps, variance, stars.x, stars.y
    right = beside_stars(stars.truth, *given)
    assert np.median(right["chi2"]) == pytest.approx(1, abs=0.15)
    assert np.median(right["snr"]) == pytest.approx(150, rel=0.15)
    assert abs(np.mean(right["size"])) < 0.005
    assert abs(np.mean(right["e1"])) < 0.01
    wider = (np.roll(stars.truth, -1, axis=2) + stars.truth + np.roll(stars.truth, 1, axis=2)) / 3
    wrong = beside_stars(wider, *given)
    assert np.median(wrong["chi2"]) > 1.5 * np.median(right["chi2"])
    assert np.mean(wrong["size"]) > 0.02
    assert np.mean(wrong["e1"]) > 0.02
