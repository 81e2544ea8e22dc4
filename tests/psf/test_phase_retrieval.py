"""Phase retrieval from a detector's stars, and the prior that it makes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from csstdask.instrument import load_instrument
from csstdask.metrics.psf import draw_stars, psf_errors
from csstdask.mock.psf import AT_LAUNCH, PsfModel
from csstdask.mock.recipe_tables import Nodes, Optics
from csstdask.nn.card import read_card
from csstdask.numerics.gaussian import GaussianPrior
from csstdask.psf.basis import BASIS_PIXELS, BASIS_SIZE, load_basis, resample
from csstdask.psf.field import to_unit_square
from csstdask.psf.phase_retrieval import PhaseRetrieval, ZernikeModes
from csstdask.psf.reconstruct import reconstruct
from csstdask.psf.wavefront import FourierOptics, Wavefront

#: Of band i.
DETECTOR = 7
ORDERS = tuple(range(4, 12))
EVEN = np.array([True, True, True, False, False, False, False, True])  # radial orders of 4 to 11


@pytest.fixture(scope="module")
def psfs(psf_model):
    return load_basis(read_card(psf_model), "i")


@pytest.fixture(scope="module")
def retrieval(psfs):
    count = len(psfs.field_covariance) * len(psfs)
    optics = FourierOptics.of(load_instrument("csst"), "i")
    return ZernikeModes(optics, psfs, ORDERS[-1], np.eye(count), np.zeros(count))


def test_evidence_and_posterior_are_those_of_gaussians(rng):
    size = 6
    roots = rng.normal(size=(2, size, size))
    covariance, noise = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(size)
    mean, other, seen = rng.normal(size=(3, size))
    normal = np.linalg.inv(noise)
    priors = [GaussianPrior(mean, covariance), GaussianPrior(other, 2 * covariance)]
    wanted = [multivariate_normal(one.mean, one.covariance + noise).logpdf(seen) for one in priors]
    found = [one.given(normal, normal @ seen).evidence for one in priors]
    assert np.isclose(found[1] - found[0], wanted[1] - wanted[0])
    posterior = priors[0].given(normal, normal @ seen)
    amounts, spread = posterior.mean, posterior.covariance
    assert np.allclose(np.linalg.inv(spread), np.linalg.inv(covariance) + normal)
    gain = covariance @ np.linalg.inv(covariance + noise)
    assert np.allclose(amounts, mean + gain @ (seen - mean))


@pytest.fixture(scope="module")
def of_mock():
    """PSFs of the mock at two places, sampled as principal PSFs are, and their coefficients and blurs."""
    model = PsfModel(Optics(seed=31), load_instrument("csst"))
    x, y = np.array([1000.0, 8000.0]), np.array([500.0, 7000.0])
    fine = model.sampling(DETECTOR).fine
    images = model.effective(DETECTOR, x, y, temperature=6200.0, sampling=fine, size=BASIS_PIXELS * fine).image
    blur = model.blur(AT_LAUNCH)
    (xx, xy), (_, yy) = blur.jitter + np.eye(2) * blur.diffusion**2
    coefficients = model.wavefront.coefficients(DETECTOR, x, y)
    return resample(images * np.float32(fine**2), BASIS_SIZE), coefficients, np.array([xx, yy, xy, 0, 0])


def test_optics_are_those_of_the_mock(retrieval, psfs, of_mock):
    """The same aperture and wavefront: amounts as the mock's PSF has them, but for the colours of its light."""
    images, coefficients, blur = of_mock
    flat = (images - psfs.mean).reshape(2, -1)
    wanted = np.linalg.lstsq(psfs.images.reshape(len(psfs), -1).T, flat.T, rcond=None)[0].T
    found = np.stack([retrieval.predict_at_centre(np.append(one, blur)).coefficients for one in coefficients])
    assert np.std(found - wanted) < 0.1 * np.std(wanted)
    assert np.std(np.diff(found - wanted, axis=0)) < 0.05 * np.std(np.diff(wanted, axis=0))


def test_optics_predict_the_truncation_error(psfs, of_mock):
    images, coefficients, blur = of_mock
    optics = FourierOptics.of(load_instrument("csst"), "i")
    for image, one in zip(images, coefficients, strict=True):
        wavefront = Wavefront(
            ORDERS, np.concatenate([one[None], np.zeros((5, len(ORDERS)))]), np.zeros((6, len(ORDERS))), blur
        )
        missed = psfs.conditioned_on(image).mean - psfs.mean
        left = missed - (psfs.conditioned_on(optics.image(wavefront)).mean - psfs.mean)
        middle = slice(BASIS_SIZE // 4, -BASIS_SIZE // 4)
        assert np.std(left[middle, middle]) < 0.5 * np.std(missed[middle, middle])


def test_conditioned_basis_represents_the_image(psfs, rng):
    image = psfs.mean + np.tensordot(rng.normal(size=len(psfs)), psfs.images, 1) + 1e-3 * psfs.mean[::-1]
    told = psfs.conditioned_on(image)
    amounts = psfs.project((image - told.mean)[None])
    assert np.allclose(told.compose(amounts)[0], image, atol=1e-6)
    assert (told.truncation_variance < psfs.truncation_variance).all()
    within = psfs.conditioned_on(psfs.compose(rng.normal(size=(1, len(psfs))))[0])
    assert np.allclose(within.mean, psfs.mean, atol=1e-6)


def test_bright_stars_reduce_the_error(psf_recipe):
    """The truncation error is not averaged away; 2.7 times the S/N at least halves the error of the PSF."""
    errors = {}
    for snr in (150.0, 400.0):
        nodes = Nodes(per_axis=7, snr=(snr, snr))
        stars = draw_stars(psf_recipe.model_copy(update={"nodes": nodes}), 0, DETECTOR)
        found = reconstruct(
            stars.stamps, np.full(len(stars), DETECTOR), stars.x, stars.y, error=stars.error, mask=stars.mask
        )
        errors[snr] = psf_errors(found.image, stars.truth)
    assert errors[400.0]["psnr"].mean() > errors[150.0]["psnr"].mean() + 6
    for axis in "xy":
        assert abs(errors[400.0][axis].mean()) < 0.004


def test_derivatives_equal_finite_differences(retrieval, rng):
    unknowns = np.array([*rng.normal(0, 20, 8), 0.25, 0.2, 0.02, 0.5, 0.3])
    change = retrieval.predict_at_centre(unknowns).jacobian
    for number in range(len(unknowns)):
        step = np.zeros(len(unknowns))
        step[number] = 0.5 if number < 8 else 0.01
        ahead, behind = (retrieval.predict_at_centre(unknowns + sign * step).coefficients for sign in (1, -1))
        slope = (ahead - behind) / (2 * step[number])
        assert np.abs(slope - change[:, number]).max() < 0.02 * np.abs(change[:, number]).max()
    still = retrieval.predict_at_centre(np.array([*unknowns[:-2], 0, 0])).jacobian
    assert np.isfinite(still).all()


def test_wavefront_is_recovered_from_stars(psf_stars, psf_recipe):
    stars = psf_stars
    detectors = np.full(len(stars), DETECTOR)
    found = reconstruct(stars.stamps, detectors, stars.x, stars.y, error=stars.error, mask=stars.mask)
    wavefront = found.fields[DETECTOR].wavefront
    assert wavefront is not None
    instrument = load_instrument("csst")
    x, y = np.median(stars.x, keepdims=True), np.median(stars.y, keepdims=True)
    truth = PsfModel(psf_recipe.optics, instrument).wavefront.coefficients(DETECTOR, x, y)[0]
    here = wavefront.at(*to_unit_square(x, y, instrument.shape))[0]
    # Stars in focus do not tell the sign of even orders; and of odd ones nothing else does.
    wrong = min(np.abs(sign * here[EVEN] - truth[EVEN]).max() for sign in (1, -1))
    assert wrong < 6
    assert np.abs(here[~EVEN] - truth[~EVEN]).max() < 5
    assert np.abs(truth).max() > 20


@pytest.mark.parametrize("stars", [5, 100])
def test_higher_orders_are_fitted_where_needed(psfs, stars):
    """The mean PSF has 30 nm of tetrafoil and secondary trefoils, which lower orders do not explain."""
    retrieval = PhaseRetrieval(FourierOptics.of(load_instrument("csst"), "i"), psfs)
    count, k = len(psfs.field_covariance) * len(psfs), len(psfs)
    unknowns = np.zeros(19 + 5)
    unknowns[0], unknowns[[10, 14, 15]], unknowns[-5:] = 20, 30, [0.25, 0.25, 0, 0, 0]
    amounts = np.zeros(count)
    amounts[:k] = (
        ZernikeModes(retrieval.optics, psfs, 22, np.eye(count), amounts).predict_at_centre(unknowns).coefficients
    )
    said = 1e4 * np.eye(count), 1e4 * amounts
    start = retrieval.search(*said)
    assert start.orders == ORDERS
    _, wavefront = retrieval.prior(*said, stars, start)
    assert (wavefront is not None and wavefront.orders[-1] == 22) == (stars == 100)


def test_unphysical_coefficients_are_left_unchanged(psfs, rng):
    """The coefficients of all polynomials are random and independent, unlike those of any telescope."""
    prior = psfs.prior
    count = len(prior.mean)
    amounts = rng.multivariate_normal(prior.mean, 4 * prior.covariance)
    normal = 1e4 * np.eye(count)
    optics = FourierOptics.of(load_instrument("csst"), "i")
    said = normal, normal @ amounts
    retrieval = PhaseRetrieval(optics, psfs)
    found, wavefront = retrieval.prior(*said, 100, retrieval.search(*said))
    assert found.prior is prior
    assert wavefront is None
