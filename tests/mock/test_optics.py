"""Optics against GalSim: the effective PSF, adaptive moments, the aperture's wings."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.arrays.moments import adaptive_moments
from csstdask.mock.optics import CORE, Blur, effective_psf, fade, sampling_for, wing_light
from csstdask.optics.pupil import cutoff_frequency

galsim = pytest.importorskip("galsim")
PUPIL = (2.0, 0.0, 0.074)
ORDERS = tuple(range(4, 12))


def coefficients(rng) -> np.ndarray:
    return rng.normal(0, 25, (1, len(ORDERS)))


def one_psf(rng, wavelength: float, blur: Blur):
    fine = sampling_for(cutoff_frequency(wavelength, PUPIL[0], PUPIL[2]), blur).fine
    coef = coefficients(rng)
    return coef, effective_psf(coef, ORDERS, wavelength, pupil=PUPIL, blur=blur, fine=fine)[0], fine


@pytest.mark.parametrize("wavelength", [287.5, 475.0, 950.0])
def test_the_effective_psf_is_that_of_galsim(rng, wavelength):
    covariance = np.array([[0.20, 0.05], [0.05, 0.15]])  # pixel^2
    coef, ours, fine = one_psf(rng, wavelength, Blur(covariance, line=False, diffusion=0.25))
    aberrations = np.concatenate([np.zeros(4), coef[0] / wavelength])
    optics = galsim.OpticalPSF(lam=wavelength, diam=2.0, aberrations=aberrations, pad_factor=4, oversampling=3)
    jitter = galsim.Gaussian(sigma=1.0).transform(*(np.linalg.cholesky(covariance) * 0.074).ravel()).withFlux(1)
    profile = galsim.Convolve(optics, jitter, galsim.Gaussian(sigma=0.25 * 0.074), galsim.Pixel(0.074))
    side = CORE * fine
    theirs = profile.drawImage(nx=side + 1, ny=side + 1, scale=0.074 / fine, method="no_pixel").array[:-1, :-1]
    theirs = theirs * fine**2 * (fade(fine) > 0.99)
    inside = ours * (fade(fine) > 0.99)
    # GalSim folds half a per cent of the light at its image's edge: shapes are compared at one peak.
    scale = (inside * theirs).sum() / (theirs**2).sum()
    assert scale == pytest.approx(1, abs=0.01)
    assert abs(inside - scale * theirs).max() < 5e-4 * inside.max()
    a, b = adaptive_moments(inside[None]), adaptive_moments(theirs[None])
    assert a.sigma[0] == pytest.approx(b.sigma[0], rel=3e-4)
    assert (a.e1[0], a.e2[0]) == pytest.approx((b.e1[0], b.e2[0]), abs=3e-4)


def test_adaptive_moments_are_those_of_galsim_hsm(rng):
    images = []
    for _ in range(6):
        g1, g2, sigma = *rng.uniform(-0.3, 0.3, 2), rng.uniform(1.2, 3.0)
        profile = galsim.Convolve(galsim.Gaussian(sigma=sigma).shear(g1=g1, g2=g2), galsim.Airy(lam_over_diam=1.0))
        profile = profile.shift(*rng.uniform(-0.5, 0.5, 2))
        images.append(profile.drawImage(nx=48, ny=48, scale=1.0, dtype=float).array.copy())
    found = adaptive_moments(np.stack(images))
    assert found.converged.all()
    for i, image in enumerate(images):
        theirs = galsim.hsm.FindAdaptiveMom(galsim.Image(image))
        assert found.sigma[i] == pytest.approx(theirs.moments_sigma, rel=1e-5)
        assert found.e1[i] == pytest.approx(theirs.observed_e1, abs=1e-5)
        assert found.e2[i] == pytest.approx(theirs.observed_e2, abs=1e-5)
        assert found.x[i] + 1 == pytest.approx(theirs.moments_centroid.x, abs=1e-4)
    assert not adaptive_moments(np.zeros((1, 16, 16)) - 1.0).converged[0]


def test_light_outside_the_core_follows_the_airy_pattern(rng):
    """EE(r) of an open aperture is 1 - J0^2 - J1^2; without blur the core must hold as much."""
    from scipy.special import j0, j1

    nothing = Blur(np.zeros((2, 2)), line=False, diffusion=0.0)
    fine = sampling_for(cutoff_frequency(600.0, PUPIL[0], PUPIL[2]), nothing).fine
    core = effective_psf(np.zeros((1, len(ORDERS))), ORDERS, 600.0, pupil=PUPIL, blur=nothing, fine=fine)[0]
    axis = (np.arange(CORE * fine) - CORE * fine // 2) / fine
    radius = np.hypot(axis[:, None], axis[None, :])
    for r in (4.0, 10.0, 20.0):
        v = np.pi * 2.0 / 600e-9 * r * 0.074 * np.pi / 180 / 3600
        enclosed = core[radius < r].sum(dtype=float) / fine**2
        assert enclosed == pytest.approx(1 - j0(v) ** 2 - j1(v) ** 2, abs=2e-3)
    assert core.sum(dtype=float) / fine**2 == pytest.approx(1 - wing_light(600.0, 2.0, 0.0, 0.074), rel=1e-5)


def test_a_line_of_sight_that_drifts_widens_the_psf_along_its_line(rng):
    along_x = np.diag([0.5, 0.0])
    _, image, _ = one_psf(rng, 600.0, Blur(along_x, line=True, diffusion=0.2))
    _, still, _ = one_psf(rng, 600.0, Blur(np.zeros((2, 2)), line=True, diffusion=0.2))
    assert adaptive_moments(image[None]).e1[0] > adaptive_moments(still[None]).e1[0] + 0.1
