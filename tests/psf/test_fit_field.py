"""The fit of principal PSFs: of a family whose members are known, without optics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dense_interpolation import interpolation_matrix
from psf_night import Night, blob, decibels_of

from csstdask.optics.pupil import Pupil
from csstdask.psf.basis import BASIS_SIZE
from csstdask.psf.field import PsfField, oversampled
from csstdask.psf.wavefront import FourierOptics


def test_many_stars_reduce_the_error(psfs):
    night = Night(200, 100)
    true = night.half(psfs)
    together = night.fit(psfs)
    image, _ = oversampled(psfs, together.coefficients, together.coefficient_covariance)
    alone = np.concatenate(
        [
            oversampled(psfs, one.coefficients, one.coefficient_covariance)[0]
            for one in (night.fit(psfs, slice(i, i + 1)) for i in range(20))
        ]
    )
    mean = np.repeat(true.mean(axis=0)[None], len(true), axis=0)
    of_all, of_one, by_mean = (decibels_of(*pair).mean() for pair in ((image, true), (alone, true[:20]), (mean, true)))
    assert of_all > of_one + 8
    assert of_one > by_mean
    assert of_all > 70
    assert np.allclose(image.sum(axis=(1, 2)), 1, atol=1e-4)
    assert abs(np.median(together.flux / night.flux) - 1) < 0.01


def test_sigmas_are_calibrated(psfs):
    """For pixels with errors above a few 10^-5 of the peak; for one star, for a few, and for many."""
    for n, snr in ((1, 60), (10, 60), (100, 60)):
        pulls = []
        for seed in range(12 if n < 100 else 4):
            night = Night(n, snr, seed=100 + seed)
            fit = night.fit(psfs)
            image, sigma = oversampled(psfs, fit.coefficients, fit.coefficient_covariance)
            true = night.half(psfs)
            counted = sigma > 3e-4 * sigma.max()
            counted &= true > 0.02 * true.max(axis=(1, 2), keepdims=True)
            pulls.append((image - true)[counted] / sigma[counted])
        pull = np.concatenate(pulls)
        assert 0.6 < pull.std() < 1.5, (n, pull.std())


def test_field_can_be_evaluated_anywhere(psfs):
    night = Night(200, 100)
    fit = night.fit(psfs)
    field = PsfField(8, (2000, 1000), psfs, fit.field, fit.covariance)
    image, sigma = field((np.array([0.3]) + 1) / 2 * 1000 - 0.5, (np.array([-0.6]) + 1) / 2 * 2000 - 0.5)
    window = slice(BASIS_SIZE // 2 - 64, BASIS_SIZE // 2 + 64, 2)
    true = night.truth(0.3, -0.6)[:, window, window]
    assert image.shape == sigma.shape == (1, 64, 64)
    assert decibels_of(image, true / true.sum()).min() > 68


@pytest.fixture(scope="module")
def unsure(psfs):
    """The same, of which it is said that they miss 2e-3 of the peak, as wide as the PSF."""
    return replace(psfs, truncation_variance=(2e-3 * psfs.mean) ** 2)


def test_a_bright_star_is_no_worse_among_faint_ones(unsure):
    """The common model error is weighted by the information of each star, not by the number of stars."""
    night = Night(200, [600.0, *[20.0] * 199])
    true = night.half(unsure)
    alone, among = (night.fit(unsure, some) for some in (slice(0, 1), slice(None)))
    told = [
        decibels_of(oversampled(unsure, fit.coefficients, fit.coefficient_covariance)[0][:1], true[:1])[0]
        for fit in (alone, among)
    ]
    assert told[1] > told[0] - 0.5
    assert among.coefficient_covariance[0].trace() < 1.05 * alone.coefficient_covariance[0].trace()


def test_bright_stars_share_the_truncation_error(unsure):
    """Errors of many stars exceed those for independent noise; outliers are found as well as with one star."""
    night = Night(100, 400)
    night.pixels[0, 14, 18] += 0.02 * night.flux[0] * unsure.mean.max()
    shared, apart = (night.fit(unsure, shared=shared) for shared in (True, False))
    assert shared.covariance[0, 0] > 1.5 * apart.covariance[0, 0]
    true = night.half(unsure)
    of_hit, of_next = decibels_of(oversampled(unsure, shared.coefficients, shared.coefficient_covariance)[0], true)[:2]
    assert of_hit > of_next - 3
    assert np.median(shared.chi2) == pytest.approx(np.median(apart.chi2), rel=0.02)


def test_optics_without_explanatory_power_change_nothing(unsure):
    """The aperture is too small for such narrow PSFs: the truncation error stays unchanged."""
    night = Night(60, 200)
    found, without = (
        night.fit(unsure, optics=optics) for optics in (FourierOptics(Pupil(0.3, 0.0, 0.074), 800.0), None)
    )
    assert found.wavefront is None
    assert found.basis is unsure
    assert np.abs(found.coefficients - without.coefficients).max() < 0.05 * np.abs(without.coefficients).max()


def test_wrong_positions_are_corrected(psfs):
    night = Night(100, 200)
    night.x = night.x + 0.03
    fit = night.fit(psfs)
    assert abs(np.median(fit.x_offset) + 0.03) < 0.01
    assert abs(np.median(fit.y_offset)) < 0.005


def test_contaminated_pixels_and_galaxies_are_rejected(psfs):
    """A cosmic ray on one star, a companion of another, ignored pixels with arbitrary values, a galaxy."""
    night = Night(60, 150)
    clean = night.fit(psfs)
    night.pixels[0, 14, 18] += 5000
    night.pixels[1] += np.roll(night.pixels[2] - 20, (3, 3), axis=(0, 1))
    night.pixels[3, 16, 16] = np.nan
    night.pixels[4, 15, 16], night.variance[4, 15, 16] = 1e9, np.inf
    wide = interpolation_matrix(night.y, 32)[5] @ blob(2.5, 0.3, 0.0)[0] @ interpolation_matrix(night.x, 32)[5].T
    night.pixels[5] = (night.flux[5] * wide + 20).astype(np.float32)
    fit = night.fit(psfs)
    true = night.half(psfs)
    found, without = (oversampled(psfs, one.coefficients, one.coefficient_covariance)[0] for one in (fit, clean))
    for star in (0, 1, 3, 4):
        assert decibels_of(found, true)[star] > decibels_of(without, true)[star] - 3
    assert fit.used[[0, 2, 3, 4, *range(6, 60)]].all()
    assert not fit.used[5]
    assert clean.used.all()


@pytest.mark.parametrize("charge", [1e5, 1e6, 1e8, 1e30])
def test_one_bad_star_does_not_bias_the_others(psfs, charge):
    """A cosmic ray is brighter than the star, and the given errors do not include it."""
    night = Night(60, 150)
    true = night.half(psfs)
    clean = night.fit(psfs)
    night.pixels[7, 14, 18] += charge
    fit = night.fit(psfs)
    found, without = (oversampled(psfs, one.coefficients, one.coefficient_covariance)[0] for one in (fit, clean))
    assert (decibels_of(found, true) > decibels_of(without, true) - 4).all()
    assert fit.used.sum() >= 59


def test_stars_without_usable_pixels_are_reported_and_ignored(psfs):
    night = Night(40, 150)
    clean = night.fit(psfs, slice(20, 40))
    night.variance[:20] = np.inf
    fit = night.fit(psfs)
    assert not fit.used[:20].any()
    assert np.isnan(fit.chi2[:20]).all()
    assert fit.used[20:].all()
    assert np.allclose(fit.field, clean.field, atol=1e-3)


def test_variances_from_counts_do_not_bias_fluxes(psfs):
    """Weights that follow the noise would overestimate fluxes of faint stars by 0.0008."""
    night = Night(200, 30)
    told, exact = night.with_variances_of_counts().fit(psfs), night.fit(psfs)
    assert abs(np.median(told.flux / exact.flux) - 1) < 3e-4
    assert np.median(told.chi2) == pytest.approx(np.median(exact.chi2), abs=0.01)


def test_without_stars_the_prior_remains(psfs):
    fit = Night(3, 100).fit(psfs, slice(0, 0))
    assert len(fit.flux) == 0
    assert np.allclose(fit.field, 0)
    assert np.allclose(fit.covariance, psfs.prior.covariance)
