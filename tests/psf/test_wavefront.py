"""The PSF that a wavefront makes, against GalSim's, through open and obscured pupils."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.optics.pupil import Pupil
from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING
from csstdask.psf.wavefront import FourierOptics, Wavefront, blur_transfer

galsim = pytest.importorskip("galsim")
ORDERS = tuple(range(4, 23))
PUPILS = [Pupil(2.0, 0.0, 0.074), Pupil(2.4, 0.33, 0.06)]


@pytest.mark.parametrize("wavelength", [480.0, 950.0])
@pytest.mark.parametrize("pupil", PUPILS)
def test_image_agrees_with_galsim(pupil, wavelength, rng):
    diameter, obscuration, scale = pupil
    coefficients = rng.normal(0, 12, len(ORDERS))
    blur = np.array([0.2, 0.15, 0.05, 0.0, 0.0])
    of_field = np.concatenate([coefficients[None], np.zeros((5, len(ORDERS)))])
    ours = FourierOptics(pupil, wavelength).image(Wavefront(ORDERS, of_field, np.zeros_like(of_field), blur))
    aberrations = np.concatenate([np.zeros(4), coefficients / wavelength])
    optics = galsim.OpticalPSF(
        lam=wavelength, diam=diameter, obscuration=obscuration, aberrations=aberrations,
        annular_zernike=False, pad_factor=4, oversampling=3,
    )  # fmt: skip
    covariance = np.array([[0.2, 0.05], [0.05, 0.15]])
    jitter = galsim.Gaussian(sigma=1.0).transform(*(np.linalg.cholesky(covariance) * scale).ravel()).withFlux(1)
    profile = galsim.Convolve(optics, jitter, galsim.Pixel(scale))
    theirs = profile.drawImage(
        nx=BASIS_SIZE + 1, ny=BASIS_SIZE + 1, scale=scale / OVERSAMPLING, method="no_pixel"
    ).array[:-1, :-1]
    theirs = theirs * OVERSAMPLING**2
    assert ours.sum() / OVERSAMPLING**2 == pytest.approx(1, abs=1e-6)
    middle = slice(BASIS_SIZE // 4, -BASIS_SIZE // 4)
    share = (ours * theirs)[middle, middle].sum() / (theirs**2)[middle, middle].sum()
    # All light lies within the image here: what GalSim has beyond it is folded back.
    assert share == pytest.approx(1, abs=0.05)
    assert np.abs(ours - share * theirs)[middle, middle].max() < 2e-3 * ours.max()


@pytest.mark.parametrize("pupil", PUPILS)
def test_derivatives_equal_finite_differences(pupil, rng):
    optics = FourierOptics(pupil, 600.0)
    coefficients = rng.normal(0, 12, len(ORDERS))
    slopes = optics.spectra(ORDERS, coefficients)[1:]
    for number in (0, 5, 18):
        step = np.zeros(len(ORDERS))
        step[number] = 0.5
        ahead, behind = (optics.spectra(ORDERS, coefficients + sign * step)[0] for sign in (1, -1))
        assert np.abs(ahead - behind - slopes[number]).max() < 0.01 * np.abs(slopes[number]).max()


def test_blur_derivatives_equal_finite_differences(rng):
    fx, fy = rng.uniform(-1, 1, (2, 40))
    blur = np.array([0.25, 0.2, 0.02, 0.5, 0.3])
    _, change = blur_transfer(fx, fy, blur)
    for number in range(5):
        step = np.zeros(5)
        step[number] = 1e-3
        ahead, behind = (blur_transfer(fx, fy, blur + sign * step)[0].astype(float) for sign in (1, -1))
        assert np.allclose((ahead - behind) / 2e-3, change[number], atol=2e-3)
    still = blur_transfer(fx, fy, np.array([0.25, 0.2, 0.02, 0.0, 0.0]))[1]
    assert np.isfinite(still).all()
