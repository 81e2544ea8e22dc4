"""Rendering: light is conserved, shapes are the model's, positions are exact, galaxies are GalSim's."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.arrays.moments import adaptive_moments
from csstdask.instrument import load_instrument
from csstdask.mock.catalogue import Catalogue
from csstdask.mock.profiles import bulge_spectrum, disk_spectrum, gaussian_spectrum, sersic_spectrum
from csstdask.mock.psf import PsfModel, sub_band_weights
from csstdask.mock.recipe_tables import Optics, Sky
from csstdask.mock.scene import draw_scene
from csstdask.mock.scene_psf import ExactPsf, InterpolatedPsf, Window
from csstdask.mock.sky import draw_sky

CSST = load_instrument("csst")


@pytest.fixture(scope="module")
def model() -> PsfModel:
    return PsfModel(Optics(), CSST)


def sources(x, y, **what) -> Catalogue:
    n = len(x)
    zero, one = np.zeros(n), np.ones(n)
    table = {
        "x": np.asarray(x, dtype=float),
        "y": np.asarray(y, dtype=float),
        "mag": zero,
        "flux": one,
        "is_star": one > 0,
        "temperature": 5800 * one,
        "half_light_radius": zero,
        "axis_ratio": one,
        "angle": zero,
        "bulge_share": zero,
        "bulge_radius": zero,
        "knot_share": zero,
    }
    return Catalogue(**(table | {key: np.broadcast_to(value, n) for key, value in what.items()}))


def galaxy(x, y, **what) -> Catalogue:
    return sources(x, y, is_star=False, **what)


def drawn(catalogue, model, shape=(512, 512), detector=8, kind=InterpolatedPsf):
    window = Window.of(shape, CSST)
    weights = sub_band_weights(model.limits(detector), catalogue.temperature)
    return draw_scene(catalogue, weights, shape, kind(model, detector, window)), window


@pytest.mark.parametrize(
    "catalogue",
    [
        sources([1024.3], [1023.6], flux=1e5),
        galaxy([1024.3], [1023.6], flux=1e5, half_light_radius=3.0, axis_ratio=0.5, angle=0.7),
        galaxy([1024.3], [1023.6], flux=1e5, half_light_radius=6.0, bulge_share=0.6, bulge_radius=3.0),
        galaxy([1024.3], [1023.6], flux=1e5, half_light_radius=8.0, knot_share=0.45, bulge_share=0.1, bulge_radius=2.0),
        galaxy(
            [1024.3], [1023.6], flux=1e5, half_light_radius=40.0, axis_ratio=0.4, bulge_share=0.3, bulge_radius=20.0
        ),
    ],
    ids=["star", "disk", "bulge", "knots", "large"],
)
def test_light_is_conserved_to_a_part_in_a_thousand(model, catalogue):
    image, _ = drawn(catalogue, model, (2048, 2048))
    assert image.sum(dtype=float) == pytest.approx(1e5, rel=1e-3)
    assert image.min() > -1e-6 * image.max()


@pytest.mark.parametrize("detector", [13, 8, 25])
@pytest.mark.parametrize("kind", [InterpolatedPsf, ExactPsf])
def test_rendered_stars_are_the_truth_psf_at_their_sub_pixel_places(model, kind, detector):
    """A star at sixteen sub-pixel places, interlaced, samples the PSF four times finer: it is the truth PSF."""
    window = Window.of((128, 128), CSST)
    psf = kind(model, detector, window)
    truth = model.effective(detector, [64 + window.x], [64 + window.y], sampling=4, size=128)
    interlaced = np.zeros((128, 128))
    for i in range(4):
        for j in range(4):  # a star right of its pixel's centre samples the PSF left of the PSF's centre
            star = sources([64 - j / 4], [64 - i / 4])
            weights = sub_band_weights(model.limits(detector), star.temperature)
            interlaced[i::4, j::4] = draw_scene(star, weights, (128, 128), psf)[48:80, 48:80]
    wanted = truth.image[0] * (1 - truth.outside[0]) * 16
    rmse = np.sqrt(((interlaced - wanted) ** 2).mean())
    assert -20 * np.log10(rmse / wanted.max()) > 100  # 90 is asked
    found, known = adaptive_moments(np.stack([interlaced, wanted]), start=3.0).sigma
    assert found / known == pytest.approx(1, abs=1e-5)  # 1e-4 is asked


def test_galaxies_are_those_of_galsim(model):
    galsim = pytest.importorskip("galsim")
    what = {"half_light_radius": 4.0, "axis_ratio": 0.45, "angle": 0.6, "bulge_share": 0.35, "bulge_radius": 2.0}
    image, window = drawn(galaxy([256.3], [255.8], **what), model, (512, 512))
    fine = model.effective(8, [256.3 + window.x], [255.8 + window.y], sampling=4, size=256)
    psf = galsim.InterpolatedImage(
        galsim.Image(fine.image[0].astype(float)), scale=0.25, x_interpolant="lanczos15", offset=(0.5, 0.5)
    )
    parts = [
        galsim.Exponential(half_light_radius=4.0, flux=0.65),
        galsim.Sersic(4, half_light_radius=2.0, flux=0.35),
    ]
    # Our radii are along the major axis: GalSim shears at constant area, so squeeze the minor axis instead; that of
    # the bulge half as much.
    squeezed = galsim.Add([part.transform(1, 0, 0, q) / q for part, q in zip(parts, (0.45, 0.725), strict=True)])
    profile = galsim.Convolve(squeezed.rotate(0.6 * galsim.radians), psf).shift(0.3, -0.2)
    theirs = profile.drawImage(nx=97, ny=97, scale=1.0, method="no_pixel").array
    ours = image[256 - 48 : 256 + 49, 256 - 48 : 256 + 49]
    assert abs(ours / (1 - fine.outside[0]) - theirs)[24:73, 24:73].max() < 0.01 * theirs.max()


def test_profiles_are_those_of_galsim():
    galsim = pytest.importorskip("galsim")
    k = np.geomspace(1e-3, 300, 40).astype(np.float32)
    sharp = galsim.GSParams(kvalue_accuracy=1e-7)
    for ours, theirs in (
        (bulge_spectrum(k), galsim.Sersic(4, half_light_radius=1.0, gsparams=sharp)),
        (disk_spectrum(k), galsim.Exponential(half_light_radius=1.0, gsparams=sharp)),
        (gaussian_spectrum(k), galsim.Gaussian(half_light_radius=1.0, gsparams=sharp)),
    ):
        assert np.allclose(ours, [theirs.kValue(float(value), 0).real for value in k], atol=2e-5)
    log_k, value = sersic_spectrum(1.0)  # whose answer is known
    usual = (log_k > -8) & (log_k < 5)
    assert np.allclose(value[usual], disk_spectrum(np.exp(log_k[usual])), atol=1e-6)


def test_wings_fall_as_the_third_power_and_join_the_core(model):
    image, _ = drawn(sources([1024.0], [1024.0], flux=1e6), model, (2048, 2048))
    radius = np.hypot(*(np.indices(image.shape) - 1024.0))
    strength = []
    for low, high in ((14, 18), (33, 38), (60, 70), (150, 160), (300, 320)):
        ring = (radius >= low) & (radius < high)
        strength.append(image[ring].mean() * (radius[ring] ** 3).mean())
    assert np.ptp(strength) < 0.2 * np.mean(strength)


def test_a_sky_has_the_numbers_colours_and_shapes_that_are_asked_for(rng):
    sky = Sky(stars_per_mpix=2000, galaxies_per_mpix=3000, large_galaxies_per_mpix=2.0)
    found = draw_sky(rng, sky, (1000, 1000), margin=0)
    stars = found.is_star
    assert stars.sum() == pytest.approx(2000, abs=150)
    assert (~stars).sum() == pytest.approx(3000, abs=170)
    # N(<m) ~ 10^(slope m): a fifth of the stars lies above the magnitude where the law says so.
    half = np.log10((10 ** (0.15 * 16) + 10 ** (0.15 * 26)) / 2) / 0.15
    assert np.mean(found.mag[stars] < half) == pytest.approx(0.5, abs=0.04)
    bright, faint = (np.median(found.half_light_radius[~stars & cut]) for cut in (found.mag < 23, found.mag > 25))
    assert bright > 1.3 * faint
    assert found.axis_ratio.min() >= 0.08
    assert np.median(found.temperature[stars & (found.mag > 24)]) < np.median(
        found.temperature[stars & (found.mag < 20)]
    )
