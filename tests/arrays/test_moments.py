"""Adaptive moments agree with GalSim's; failures are reported per object instead of raised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csstdask.arrays.moments import adaptive_moments, moments_on_device, moments_on_host

SIDE = 48


def gaussians(rng, n, *, noise=0.0):
    """Return elliptical Gaussians off the middle, and what is true of them."""
    sigma, x, y = rng.uniform(1.6, 3.5, n), rng.uniform(21, 26, n), rng.uniform(21, 26, n)
    e, angle = rng.uniform(0, 0.6, n), rng.uniform(0, np.pi, n)
    e1, e2 = e * np.cos(2 * angle), e * np.sin(2 * angle)
    half_trace = sigma**2 / np.sqrt(1 - e**2)
    xx, yy, xy = half_trace * (1 + e1), half_trace * (1 - e1), half_trace * e2
    axis = np.arange(SIDE)
    dx, dy = axis[None, None, :] - x[:, None, None], axis[None, :, None] - y[:, None, None]
    det = xx * yy - xy**2
    ixx, ixy, iyy = (part[:, None, None] for part in (yy / det, -xy / det, xx / det))
    image = 1e4 * np.exp(-0.5 * (ixx * dx**2 + 2 * ixy * dx * dy + iyy * dy**2))
    return image + rng.normal(0, 1, image.shape) * noise, (x, y, sigma, e1, e2)


def test_gaussians_have_the_moments_that_they_were_drawn_with(rng):
    images, (x, y, sigma, e1, e2) = gaussians(rng, 200)
    found = adaptive_moments(images, tolerance=1e-9)
    assert found.converged.all()
    for value, true in ((found.x, x), (found.y, y), (found.sigma / sigma, 1), (found.e1, e1), (found.e2, e2)):
        assert np.abs(value - true).max() < 2e-5


@pytest.mark.parametrize("noise", [0.0, 3.0, 60.0])
def test_they_are_those_of_galsim(rng, noise):
    """To 1e-6, its own and our tolerance being tighter than by default; noise up to what it still converges under."""
    galsim = pytest.importorskip("galsim")
    images, _ = gaussians(rng, 60, noise=noise)
    profiles = [galsim.Sersic(n, half_light_radius=2.5).shear(e1=0.4, e2=-0.2) for n in (1.0, 2.5, 4.0)]
    drawn = [profile.drawImage(nx=SIDE, ny=SIDE, scale=1.0).array * 1e4 for profile in profiles]
    images = np.concatenate([images, np.stack(drawn)])
    found = adaptive_moments(images, tolerance=1e-10, iterations=2000)
    params = galsim.hsm.HSMParams(convergence_threshold=1e-10, max_mom2_iter=2000)
    compared = 0
    for index, image in enumerate(images):
        theirs = galsim.hsm.FindAdaptiveMom(galsim.Image(image, xmin=0, ymin=0), strict=False, hsmparams=params)
        if theirs.error_message or not found.converged[index]:
            continue
        compared += 1
        shape = theirs.observed_shape
        pairs = (
            (found.sigma[index], theirs.moments_sigma), (found.e1[index], shape.e1), (found.e2[index], shape.e2),
            (found.x[index], theirs.moments_centroid.x), (found.y[index], theirs.moments_centroid.y),
        )  # fmt: skip
        assert all(abs(ours - other) < 1e-6 for ours, other in pairs)
    assert compared >= 60


def test_what_has_no_moments_is_told_and_the_rest_is_measured(rng):
    images, _ = gaussians(rng, 6)
    images[1], images[2] = 0, -images[2]
    images[3] = rng.normal(0, 1, images[3].shape)
    images[4, 20, 20] = np.nan
    found = adaptive_moments(images)
    assert found.converged[[0, 5]].all()
    assert not found.converged[[1, 2, 4]].any()
    assert np.isnan(found.sigma[[1, 2, 4]]).all()
    alone = adaptive_moments(images[[0, 5]])
    assert np.allclose(alone.sigma, found.sigma[[0, 5]], rtol=1e-12)
    assert adaptive_moments(np.zeros((0, 8, 8))).sigma.shape == (0,)


def test_tensors_in_tensors_out(rng):
    images, _ = gaussians(rng, 5)
    ours, tensors = adaptive_moments(images), adaptive_moments(torch.from_numpy(images))
    for name in ("x", "y", "sigma", "e1", "e2", "converged"):
        assert isinstance(getattr(tensors, name), torch.Tensor)
        assert np.array_equal(getattr(tensors, name).numpy(), getattr(ours, name))


def test_the_loop_and_the_arrays_say_the_same(rng):
    """On the CPU stamps are solved in a loop; what a GPU runs is compared with it, noise and failures included."""
    images, _ = gaussians(rng, 40, noise=20.0)
    images[3], images[7] = 0, rng.normal(0, 1, images[7].shape)
    by_loop, by_arrays = (solve(images, 2.25, 1e-8, 300) for solve in (moments_on_host, moments_on_device))
    done = by_loop[-1]
    assert np.array_equal(done, by_arrays[-1])
    assert 35 < done.sum() < 40
    for ours, other in zip(by_loop[:-1], by_arrays[:-1], strict=True):
        assert np.abs(ours - other)[done].max() < 1e-8
