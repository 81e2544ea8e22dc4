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


def test_many_stars_know_more_than_one(psfs):
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


def test_sigmas_are_honest(psfs):
    """Of pixels that are known worse than a few 10^-5 of the peak; for one star, for a few, for many."""
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


def test_a_field_answers_anywhere(psfs):
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
    """What images cannot tell is shared by what stars know of it, not by how many they are."""
    night = Night(200, [600.0, *[20.0] * 199])
    true = night.half(unsure)
    alone, among = (night.fit(unsure, some) for some in (slice(0, 1), slice(None)))
    told = [
        decibels_of(oversampled(unsure, fit.coefficients, fit.coefficient_covariance)[0][:1], true[:1])[0]
        for fit in (alone, among)
    ]
    assert told[1] > told[0] - 0.5
    assert among.coefficient_covariance[0].trace() < 1.05 * alone.coefficient_covariance[0].trace()


def test_bright_stars_share_what_images_cannot_tell(unsure):
    """Many know the field less well than if that were noise of each; pixels of others are found as well as by one."""
    night = Night(100, 400)
    night.pixels[0, 14, 18] += 0.02 * night.flux[0] * unsure.mean.max()
    shared, apart = (night.fit(unsure, shared=shared) for shared in (True, False))
    assert shared.covariance[0, 0] > 1.5 * apart.covariance[0, 0]
    true = night.half(unsure)
    of_hit, of_next = decibels_of(oversampled(unsure, shared.coefficients, shared.coefficient_covariance)[0], true)[:2]
    assert of_hit > of_next - 3
    assert np.median(shared.chi2) == pytest.approx(np.median(apart.chi2), rel=0.02)


def test_optics_that_explain_nothing_change_nothing(unsure):
    """An aperture that is too small for PSFs so narrow: what images cannot tell is as it was."""
    night = Night(60, 200)
    found, without = (
        night.fit(unsure, optics=optics) for optics in (FourierOptics(Pupil(0.3, 0.0, 0.074), 800.0), None)
    )
    assert found.wavefront is None
    assert found.basis is unsure
    assert np.abs(found.coefficients - without.coefficients).max() < 0.05 * np.abs(without.coefficients).max()


def test_places_that_were_told_wrongly_are_found(psfs):
    night = Night(100, 200)
    night.x = night.x + 0.03
    fit = night.fit(psfs)
    assert abs(np.median(fit.x_offset) + 0.03) < 0.01
    assert abs(np.median(fit.y_offset)) < 0.005


def test_pixels_of_others_and_galaxies_are_left_out(psfs):
    """A cosmic ray on one star, a companion beside another, ignored pixels that hold anything, a galaxy."""
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
def test_one_bad_star_leads_no_other_astray(psfs, charge):
    """A cosmic ray that is brighter than the star, with an error that does not know of it."""
    night = Night(60, 150)
    true = night.half(psfs)
    clean = night.fit(psfs)
    night.pixels[7, 14, 18] += charge
    fit = night.fit(psfs)
    found, without = (oversampled(psfs, one.coefficients, one.coefficient_covariance)[0] for one in (fit, clean))
    assert (decibels_of(found, true) > decibels_of(without, true) - 4).all()
    assert fit.used.sum() >= 59


def test_stars_without_a_pixel_are_told_and_lead_nobody(psfs):
    night = Night(40, 150)
    clean = night.fit(psfs, slice(20, 40))
    night.variance[:20] = np.inf
    fit = night.fit(psfs)
    assert not fit.used[:20].any()
    assert np.isnan(fit.chi2[:20]).all()
    assert fit.used[20:].all()
    assert np.allclose(fit.field, clean.field, atol=1e-3)


def test_variances_of_counts_are_not_believed(psfs):
    """Weights that follow the noise would put fluxes of faint stars .0008 too high."""
    night = Night(200, 30)
    told, exact = night.with_variances_of_counts().fit(psfs), night.fit(psfs)
    assert abs(np.median(told.flux / exact.flux) - 1) < 3e-4
    assert np.median(told.chi2) == pytest.approx(np.median(exact.chi2), abs=0.01)


def test_without_stars_the_prior_remains(psfs):
    fit = Night(3, 100).fit(psfs, slice(0, 0))
    assert len(fit.flux) == 0
    assert np.allclose(fit.field, 0)
    assert np.allclose(fit.covariance, psfs.prior.covariance)
