"""PSFs of a camera that has not been simulated, learnt from its stars only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import csstdask
from csstdask.core.errors import InputError
from csstdask.metrics.held_out_stars import compare_with_stars
from csstdask.metrics.psf import psf_errors, psf_pulls
from csstdask.nn.models import find_card
from csstdask.psf.basis import estimate_fwhm
from csstdask.psf.empirical import GaussianProcessPrior, learn_from_stars
from csstdask.psf.pixels import subpixel_offset

BELIEVED = GaussianProcessPrior.of(find_card("psf", "empirical"))


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


def test_psf_is_fitted_from_stars_only(found, psf_stars):
    """Without training on any telescope, from an undersampled PSF: 49 stars, anywhere within their pixels."""
    errors = psf_errors(found.image, psf_stars.truth)
    assert errors["psnr"].mean() > 54
    assert errors["ssim"].mean() > 0.998
    assert abs(errors["size"].mean()) < 0.01
    assert errors["e1"].std() < 0.02
    assert np.median(found.chi2) < 1.3
    assert found.used.mean() > 0.9
    assert 0.5 < psf_pulls(found.image, found.sigma, psf_stars.truth).std() < 2


def test_field_can_be_evaluated_anywhere(found, psf_stars):
    image, sigma = found.fields[0](psf_stars.x, psf_stars.y)
    assert image.shape == sigma.shape == found.image.shape
    assert psf_errors(image, psf_stars.truth)["psnr"].mean() > 54
    assert found.fields[0].shape == psf_stars.shape


def test_results_are_reproducible_and_equal_for_tensors(found, given):
    (stamps, *places), options = given
    again = csstdask.psf.reconstruct(torch.from_numpy(stamps), *places, **options)
    assert isinstance(again.image, torch.Tensor)
    assert np.array_equal(again.image.numpy(), found.image)


def test_detector_size_is_required(given):
    args, options = given
    with pytest.raises(InputError, match="detectors of no known size"):
        csstdask.psf.reconstruct(*args, **options | {"shape": None})
    with pytest.raises(ValueError, match="wanted a position on the detector, 0 to 99"):
        csstdask.psf.reconstruct(*args, **options | {"shape": (100, 100)})
    for wrong in ((2048,), 2048, (2048, 2048, 1), (0, 5), (5.5, 6)):
        with pytest.raises(ValueError, match="shape: found"):
            csstdask.psf.reconstruct(*args, **options | {"shape": wrong})


def test_masked_stars_take_the_psf_of_the_others(given, psf_stars):
    """Most stars are fully masked: the others determine their PSF. If all are masked, there is no PSF."""
    (stamps, detector, x, y), options = given
    mask = options["mask"].copy()
    mask[10:] = True
    some = csstdask.psf.reconstruct(stamps, detector, x, y, **options | {"mask": mask})
    assert 9 <= some.used.sum() <= 10
    assert np.isinf(some.sigma[10:]).all()
    image, sigma = some.fields[detector[0]](x, y)
    errors = psf_errors(image, psf_stars.truth)
    assert errors["psnr"].mean() > 45
    assert abs(errors["size"].mean()) < 0.05
    assert np.isfinite(sigma).all()
    blind = csstdask.psf.reconstruct(stamps, detector, x, y, **options | {"mask": np.ones_like(mask)})
    assert np.isinf(blind.sigma).all()
    assert blind.fields == {}


def test_single_star_has_a_sigma(psf_stars):
    stars = psf_stars.take([5])
    alone = csstdask.psf.reconstruct(
        stars.stamps, [0], stars.x, stars.y, error=stars.error, model="empirical", shape=stars.shape
    )
    assert 0.3 < psf_pulls(alone.image, alone.sigma, stars.truth).std() < 2


def test_wings_follow_the_profile_with_wide_sigma(found, psf_stars):
    """Nothing is fitted beyond twelve pixels, where sigma is half of the predicted light."""
    rows, columns = np.indices((64, 64)) - 32
    far = np.hypot(rows, columns) > 2 * 13
    assert np.allclose(found.sigma[0][far], 0.5 * found.image[0][far], rtol=0.2)


def test_too_wide_psfs_raise_a_warning(rng, caplog):
    steps = np.arange(32) - 16
    star = np.exp(-(steps[:, None] ** 2 + steps**2) / 2 / 5.0**2)
    stamps = 1e4 * star + rng.normal(0, 3, (20, 32, 32))
    with caplog.at_level("WARNING", logger="csstdask"):
        csstdask.psf.reconstruct(
            stamps, np.zeros(20), np.full(20, 50.0), np.full(20, 50.0), error=np.full(stamps.shape, 3.0),
            model="empirical", shape=(100, 100),
        )  # fmt: skip
    assert "wider than 8 pixels" in caplog.text


def test_a_card_of_another_method_is_refused():
    with pytest.raises(InputError, match="parameters of another method"):
        GaussianProcessPrior.of(replace(find_card("psf", "empirical"), parameters={"length": 0.3}))


def test_prior_is_centred_with_the_width_of_the_stars_and_zero_sum(psf_stars):
    stars = psf_stars
    variance = np.where(stars.mask, np.inf, stars.error.astype(float) ** 2).astype(np.float32)
    psfs = learn_from_stars(BELIEVED, stars.stamps, variance, subpixel_offset(stars.x), subpixel_offset(stars.y))
    true = stars.truth.mean(axis=0)
    wide = 2 * np.sqrt((true > true.max() / 2).sum() / np.pi) / 2
    assert estimate_fwhm(psfs.mean) == pytest.approx(wide, rel=0.1)
    assert psfs.mean.sum() == pytest.approx(16, rel=1e-5)
    assert np.abs(psfs.images.sum(axis=(1, 2))).max() < 1e-3
    assert len(psfs) == BELIEVED.images


def test_true_psfs_fit_their_stars_and_others_do_not(psf_stars):
    stars = psf_stars
    variance = np.where(stars.mask, np.inf, stars.error.astype(float) ** 2).astype(np.float32)
    given = stars.stamps, variance, stars.x, stars.y
    right = compare_with_stars(stars.truth, *given)
    assert np.median(right["chi2"]) == pytest.approx(1, abs=0.15)
    assert np.median(right["snr"]) == pytest.approx(150, rel=0.15)
    assert abs(np.mean(right["size"])) < 0.005
    assert abs(np.mean(right["e1"])) < 0.01
    wider = (np.roll(stars.truth, -1, axis=2) + stars.truth + np.roll(stars.truth, 1, axis=2)) / 3
    wrong = compare_with_stars(wider, *given)
    assert np.median(wrong["chi2"]) > 1.5 * np.median(right["chi2"])
    assert np.mean(wrong["size"]) > 0.02
    assert np.mean(wrong["e1"]) > 0.02
