"""The PSF model: interpolation, sampling, colours, time, and the numbers that the mission quotes."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.arrays.moments import adaptive_moments
from csstdask.instrument import load_instrument
from csstdask.mock.psf import OpticalState, PsfModel, energy_radius, sub_band_weights
from csstdask.mock.recipe_tables import Optics
from csstdask.mock.scene_psf import ExactPsf, InterpolatedPsf, Window

CSST = load_instrument("csst")
ARCSEC = 0.074


@pytest.fixture(scope="module")
def model() -> PsfModel:
    return PsfModel(Optics(), CSST)


@pytest.mark.parametrize("detector", [13, 8, 25])
def test_the_interpolated_psf_is_the_exact_one_to_90_db(model, rng, detector):
    """On a full detector, for stars of any colour: at half-pixel sampling, over the 64 x 64 box of the PSF work."""
    window = Window.of((9232, 9216), CSST)
    x, y = rng.uniform(0, 9215, (2, 6))
    weights = sub_band_weights(model.limits(detector), rng.uniform(3000, 10000, 6))
    exact = ExactPsf(model, detector, window).cores(x, y, weights)
    interpolated = InterpolatedPsf(model, detector, window).cores(x, y, weights)
    step = model.sampling(detector).fine // 2
    box = slice(exact.shape[1] // 2 - 32 * step, exact.shape[1] // 2 + 32 * step, step)
    rmse = np.sqrt(((exact - interpolated)[:, box, box] ** 2).mean(axis=(1, 2))) / exact.max(axis=(1, 2))
    assert (-20 * np.log10(rmse)).min() > 110  # 90 is asked
    a, b = adaptive_moments(exact), adaptive_moments(interpolated)
    assert abs(b.sigma / a.sigma - 1).max() < 1e-5  # 1e-4 is asked
    assert abs(b.e1 - a.e1).max() < 1e-5


def test_energy_radii_and_widths_are_those_of_the_mission(model):
    """REE80 of 0.11 to 0.15 arcsec with errors, FWHM 1.5 to 2 pixels: over bands and field, the pixel included."""
    radii, widths = {}, {}
    for band in CSST.bands:
        detectors = [one.id for one in CSST.detectors if one.band == band]
        cores = [model.cores(detector, [500, 4600, 8700], [8700, 4600, 500], 2) for detector in detectors]
        fine = model.sampling(detectors[0]).fine
        flat = np.concatenate(cores)
        radii[band] = np.median([energy_radius(core, fine) for core in flat]) * ARCSEC
        widths[band] = np.median(2.3548 * adaptive_moments(flat).sigma) / fine
    assert 0.11 < np.median(list(radii.values())) < 0.15
    assert min(radii.values()) > 0.09
    assert max(radii.values()) < 0.165
    assert all(1.4 < width < 2.1 for width in widths.values())
    assert radii["NUV"] < radii["r"] < radii["z"]  # diffraction


def test_effective_psfs_are_centred_and_normalised_with_light_outside(model):
    psf = model.effective(8, [100.2, 5000.0], [100.7, 5000.0])
    assert psf.image.shape == (2, 64, 64)
    assert np.allclose(psf.image.sum(axis=(1, 2)), 1, atol=1e-5)
    centres = adaptive_moments(psf.image)
    assert np.allclose([centres.x, centres.y], 32, atol=0.7)  # coma moves it a little
    assert np.unravel_index(psf.image[1].argmax(), (64, 64)) == pytest.approx((32, 32), abs=1)
    # An aperture of 2 m sends 2 lambda / (pi^2 D r) beyond r; the box of 32 pixels is a disk of 18 in area.
    assert psf.outside == pytest.approx(2 * 475e-9 / (np.pi**2 * 2 * 18 * ARCSEC / 206265), rel=0.1)


def test_native_sampling_is_half_pixel_sampling_taken_every_other(model):
    fine = model.effective(8, [3000], [3000], sampling=2, size=64)
    native = model.effective(8, [3000], [3000], sampling=1, size=32)
    thinned = fine.image[0, ::2, ::2] * (1 - fine.outside[0]) * 4
    assert np.allclose(native.image[0] * (1 - native.outside[0]), thinned, atol=1e-6)
    with pytest.raises(ValueError, match="divisor of 4"):
        model.effective(8, [3000], [3000], sampling=3)
    with pytest.raises(ValueError, match="at most 128"):
        model.effective(8, [3000], [3000], size=130)


def test_the_psf_varies_smoothly_on_a_detector_and_jumps_between_detectors():
    """Two edges that face each other across the gap between detectors 12 and 13: alike without steps, else not."""

    def sizes(**steps):
        model = PsfModel(Optics(**steps), CSST)
        facing = [
            model.cores(12, [4608], [9231], 1),
            model.cores(13, [4608], [0], 1),
            model.cores(13, [4608], [100], 1),
        ]
        return [adaptive_moments(core).sigma[0] for core in facing]

    low, high, inside = sizes(detector_step=0.0)
    assert abs(high / low - 1) < 0.02
    low, high, inside = sizes(detector_step=0.6)
    assert abs(inside / high - 1) < 0.01
    assert abs(high / low - 1) > 3 * abs(inside / high - 1)


def test_red_stars_are_larger_and_time_changes_the_psf(model):
    blue, red = (model.effective(8, [4600], [4600], temperature=heat) for heat in (12000, 3000))
    assert adaptive_moments(red.image).sigma[0] > adaptive_moments(blue.image).sigma[0] * 1.002
    later = model.effective(8, [4600], [4600], state=OpticalState(epoch=2.3))
    assert abs(later.image - model.effective(8, [4600], [4600]).image).max() > 1e-4
    twin = PsfModel(Optics(), CSST).effective(8, [4600], [4600], state=OpticalState(epoch=2.3))
    assert np.array_equal(later.image, twin.image)
    shaken = model.effective(8, [4600], [4600], state=OpticalState(jitter=1.5))
    assert adaptive_moments(shaken.image).sigma[0] > adaptive_moments(blue.image).sigma[0] * 1.03
    assert abs(PsfModel(Optics(seed=1), CSST).effective(8, [4600], [4600]).image - blue.image).max() > 1e-4


@pytest.mark.parametrize("growth", [0.02, 0.05, 0.10])
def test_enlarged_psfs_grow_by_the_requested_fraction(model, growth):
    """R is that of adaptive moments, at the middle of the detector and of the filter."""
    plain, larger = (
        adaptive_moments(model.effective(9, [4608], [4616], state=OpticalState(enlarge=enlarge)).image).sigma[0]
        for enlarge in (0.0, growth)
    )
    assert larger / plain - 1 == pytest.approx(growth, rel=0.05)
