"""The fit of principal PSFs: of a family whose members are known, without optics."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from csstdask.datasets.psf_samples import Sights
from csstdask.psf.basis import FINE, SIDE, polynomials
from csstdask.psf.field import PsfField, half_pixels
from csstdask.psf.fit_field import fit_field
from csstdask.psf.pixels import interpolation
from csstdask.psf.wavefront import FourierOptics
from csstdask.training.psf.basis import decibels, learn

AXIS = (np.arange(SIDE) - SIDE // 2) / FINE
NODES = np.cos(np.pi * (np.arange(4) + 0.5) / 4)


def blob(width, e1, e2):
    """Return Gaussians of a width and two distortions, each a number or an array (n,); sum over native pixels 1."""
    width, e1, e2 = (np.atleast_1d(one)[:, None, None] for one in (width, e1, e2))
    xx, yy, xy = width**2 * (1 + e1), width**2 * (1 - e1), width**2 * e2
    det = xx * yy - xy**2
    x, y = AXIS[None, None, :], AXIS[None, :, None]
    image = np.exp(-0.5 * (yy * x**2 - 2 * xy * x * y + xx * y**2) / det) / (2 * np.pi * np.sqrt(det))
    return image.astype(np.float32)


def telescope(rng):
    """Return how width and distortions of a telescope change over its detector."""
    width, tilt, e1, e2 = (
        rng.uniform(0.75, 0.95),
        rng.normal(0, 0.03, 2),
        rng.normal(0, 0.05, 2),
        rng.normal(0, 0.05, 2),
    )
    return lambda u, v: blob(width + tilt[0] * u + tilt[1] * v, e1[0] + e1[1] * u, e2[0] + e2[1] * v * u)


@pytest.fixture(scope="module")
def psfs():
    rng = np.random.default_rng(1)
    v, u = (part.ravel() for part in np.meshgrid(NODES, NODES, indexing="ij"))
    seen = [Sights(telescope(rng)(u, v), u, v, np.full(len(u), 6000.0)) for _ in range(40)]
    found = learn(seen, 12, 3, (690.0, 820.0))
    assert decibels(found, [Sights(telescope(rng)(u, v), u, v, np.full(len(u), 6000.0))]).min() > 75
    return found


class Night:
    """Stars on one detector of a telescope that nobody has learnt from."""

    def __init__(self, n, snr, seed=2, noise=5.0):
        rng = np.random.default_rng(seed)
        self.truth = telescope(rng)
        self.u, self.v = rng.uniform(-1, 1, (2, n))
        self.x, self.y = rng.uniform(-0.5, 0.5, (2, n))
        self.places = polynomials(self.u, self.v, 3)
        self.image = self.truth(self.u, self.v)
        along_y, along_x = interpolation(self.y, 32), interpolation(self.x, 32)
        snr = np.asarray(snr, dtype=float)
        flux = snr**2 / 2 * (1 + np.sqrt(1 + 4 * 49 * noise**2 / snr**2))  # in 49 pixels
        flux = np.broadcast_to(flux, n)
        light = flux[:, None, None] * (along_y @ self.image @ along_x.transpose(0, 2, 1)) + 20
        self.variance = (noise**2 + light).astype(np.float32)
        self.pixels = (light + rng.normal(size=light.shape) * np.sqrt(self.variance)).astype(np.float32)
        self.flux = flux

    def with_variances_of_counts(self, noise=5.0):
        """Return the same stars with variances that follow the photons which came, as frames have them."""
        night = copy(self)
        night.variance = np.maximum(noise**2 + self.pixels, 1).astype(np.float32)
        return night

    def fit(self, psfs, some=slice(None), **asked):
        arrays = (self.pixels, self.variance, self.x, self.y, self.places)
        return fit_field(psfs, *(array[some] for array in arrays), **asked)

    def half(self, psfs):
        window = slice(SIDE // 2 - 64, SIDE // 2 + 64, 2)
        image = self.image[:, window, window]
        return image / image.sum(axis=(1, 2), keepdims=True)


def decibels_of(found, true):
    peak = true.max(axis=(1, 2), keepdims=True)
    return -20 * np.log10(np.sqrt((((found - true) / peak) ** 2).mean(axis=(1, 2))))


def test_many_stars_know_more_than_one(psfs):
    night = Night(200, 100)
    true = night.half(psfs)
    together = night.fit(psfs)
    image, _ = half_pixels(psfs, together.amounts, together.spread)
    alone = np.concatenate(
        [half_pixels(psfs, one.amounts, one.spread)[0] for one in (night.fit(psfs, slice(i, i + 1)) for i in range(20))]
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
            image, sigma = half_pixels(psfs, fit.amounts, fit.spread)
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
    window = slice(SIDE // 2 - 64, SIDE // 2 + 64, 2)
    true = night.truth(0.3, -0.6)[:, window, window]
    assert image.shape == sigma.shape == (1, 64, 64)
    assert decibels_of(image, true / true.sum()).min() > 68


@pytest.fixture(scope="module")
def unsure(psfs):
    """The same, of which it is said that they miss 2e-3 of the peak, as wide as the PSF."""
    return replace(psfs, beyond=(2e-3 * psfs.mean) ** 2)


def test_a_bright_star_is_no_worse_among_faint_ones(unsure):
    """What images cannot tell is shared by what stars know of it, not by how many they are."""
    night = Night(200, [600.0, *[20.0] * 199])
    true = night.half(unsure)
    alone, among = (night.fit(unsure, some) for some in (slice(0, 1), slice(None)))
    told = [decibels_of(half_pixels(unsure, fit.amounts, fit.spread)[0][:1], true[:1])[0] for fit in (alone, among)]
    assert told[1] > told[0] - 0.5
    assert among.spread[0].trace() < 1.05 * alone.spread[0].trace()


def test_bright_stars_share_what_images_cannot_tell(unsure):
    """Many know the field less well than if that were noise of each; pixels of others are found as well as by one."""
    night = Night(100, 400)
    night.pixels[0, 14, 18] += 0.02 * night.flux[0] * unsure.mean.max()
    shared, apart = (night.fit(unsure, shared=shared) for shared in (True, False))
    assert shared.covariance[0, 0] > 1.5 * apart.covariance[0, 0]
    true = night.half(unsure)
    of_hit, of_next = decibels_of(half_pixels(unsure, shared.amounts, shared.spread)[0], true)[:2]
    assert of_hit > of_next - 3
    assert np.median(shared.chi2) == pytest.approx(np.median(apart.chi2), rel=0.02)


def test_optics_that_explain_nothing_change_nothing(unsure):
    """An aperture that is too small for PSFs so narrow: what images cannot tell is as it was."""
    night = Night(60, 200)
    found, without = (night.fit(unsure, optics=optics) for optics in (FourierOptics((0.3, 0.0, 0.074), 800.0), None))
    assert found.wavefront is None
    assert found.psfs is unsure
    assert np.abs(found.amounts - without.amounts).max() < 0.05 * np.abs(without.amounts).max()


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
    wide = interpolation(night.y, 32)[5] @ blob(2.5, 0.3, 0.0)[0] @ interpolation(night.x, 32)[5].T
    night.pixels[5] = (night.flux[5] * wide + 20).astype(np.float32)
    fit = night.fit(psfs)
    true = night.half(psfs)
    found, without = (half_pixels(psfs, one.amounts, one.spread)[0] for one in (fit, clean))
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
    found, without = (half_pixels(psfs, one.amounts, one.spread)[0] for one in (fit, clean))
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
