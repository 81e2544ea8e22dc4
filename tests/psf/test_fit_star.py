"""Fits of stars with a known PSF field: masked pixels are predicted, with their uncertainty."""

from __future__ import annotations

import numpy as np
import pytest
from psf_night import Night

from csstdask.psf.field import PsfField
from csstdask.psf.fit_field import fit_field
from csstdask.psf.fit_star import fit_stars
from csstdask.psf.star_model import FIT_BOX

SHAPE = (2000, 2000)


@pytest.fixture(scope="module")
def field(psfs):
    night = Night(150, 100)
    fit = fit_field(psfs, night.pixels, night.variance, night.x, night.y, night.places)
    return PsfField(1, SHAPE, psfs, fit.field, fit.covariance)


def of_field(night):
    """Return where stars lie on the detector, to whole pixels where the night has them and as far off in them."""
    along = [np.rint((place + 1) / 2 * SHAPE[0] - 0.5) for place in (night.u, night.v)]
    return along[0] + night.x, along[1] + night.y


def fit_of(field, night, variance, **settings):
    return fit_stars(field, night.pixels, variance, *of_field(night), **settings)


def without_core(night):
    variance = night.variance.copy()
    variance[:, 15:17, 15:18] = np.inf
    return variance


WINDOW = (slice(None), slice(16 - FIT_BOX // 2, 16 + FIT_BOX // 2), slice(16 - FIT_BOX // 2, 16 + FIT_BOX // 2))


@pytest.mark.parametrize("snr", [30, 300])
def test_masked_core_is_predicted_with_calibrated_sigmas(field, snr):
    night = Night(80, snr)
    found = fit_of(field, night, without_core(night))
    lost = np.isinf(without_core(night)[WINDOW])
    own = night.variance[WINDOW]
    pull = (found.light - night.pixels[WINDOW])[lost] / np.sqrt(found.variance + own)[lost]
    assert abs(pull.mean()) < 0.25
    assert 0.85 < pull.std() < 1.2
    assert np.median(found.chi2) == pytest.approx(1, abs=0.15)
    # Less accurate than with the core unmasked, but nearly all of the light is recovered.
    predicted, true = (plane[lost].reshape(80, -1).sum(axis=1) for plane in (found.light, night.pixels[WINDOW]))
    assert np.std(predicted / true - 1) < (0.02 if snr == 300 else 0.15)


def test_unflagged_cosmic_ray_does_not_bias_the_fit(field):
    """Pixels of a cosmic ray without a flag are rejected as outliers."""
    night = Night(40, 200)
    clean = fit_of(field, night, night.variance)
    night.pixels[:, 18, 12:22] += 3000
    night.variance[:, 18, 12:22] += 3000
    struck = fit_of(field, night, night.variance)
    assert np.abs(struck.flux / clean.flux - 1).max() < 0.03
    assert np.abs(struck.x_offset - clean.x_offset).max() < 0.05


def test_galaxies_have_a_large_chi2(field):
    night = Night(20, 150)
    wide = (night.pixels - 20 + np.roll(night.pixels - 20, 2, axis=1) + np.roll(night.pixels - 20, -2, axis=2)) / 3
    night.pixels = (wide + 20).astype(np.float32)
    assert fit_of(field, night, night.variance, tolerance=0.003).chi2.min() > 3


def test_rigid_stars_have_the_fields_psf(field):
    night = Night(30, 400)
    x, y = of_field(night)
    found = fit_stars(field, night.pixels, night.variance, x, y, rigid=True)
    free = fit_stars(field, night.pixels, night.variance, x, y)
    assert np.median(found.chi2) > np.median(free.chi2)
    assert (found.variance[:, 12, 12] < 0.9 * free.variance[:, 12, 12]).mean() > 0.9


def test_variances_from_counts_do_not_bias_the_sky(field):
    """Weights that follow the noise would bias it by one electron per pixel."""
    night = Night(200, 100)
    found = fit_of(field, night, night.with_variances_of_counts().variance)
    assert np.median(found.sky) == pytest.approx(20, abs=0.2)


def test_no_stars_give_empty_results(field):
    none = np.empty((0, 32, 32), np.float32)
    found = fit_stars(field, none, none, np.empty(0), np.empty(0))
    assert found.light.shape == (0, FIT_BOX, FIT_BOX)
    assert len(found.chi2) == 0
    night = Night(2, 100)
    unknown = fit_of(field, night, np.full_like(night.variance, np.inf))
    assert np.isinf(unknown.chi2).all()
    assert np.isfinite(unknown.light).all()
