"""Arguments of detect and inpaint: what could be lost or confused is refused, with what to pass instead."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from astropy import units as u
from astropy.nddata import CCDData, StdDevUncertainty, VarianceUncertainty
from astropy.utils.masked import Masked

import csstdask
from csstdask.arrays.background import estimate_background

detect, inpaint = csstdask.cosmicray.detect, csstdask.cosmicray.inpaint
MODEL = {"model": "lacosmic"}


@pytest.fixture
def frame(rng):
    return rng.normal(100, 5, (64, 64)).astype(np.float32)


BAD = (slice(30, 40), slice(20, 50))


def masked(array):
    bad = np.zeros(array.shape, bool)
    bad[BAD] = True
    return bad


@pytest.mark.parametrize("function", ["detect", "inpaint", "clean"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda a: np.ma.masked_array(a, masked(a)),
        lambda a: Masked(a * u.electron, masked(a)),
        lambda a: CCDData(a, unit="electron", mask=masked(a)),
    ],
    ids=["numpy.ma", "Masked", "CCDData"],
)
def test_masks_of_containers_are_honoured(frame, wrap, function):
    """Masked pixels of 1e6 e- were donors once."""
    call = {
        "detect": lambda a, **more: detect(a, **MODEL, **more).mask,
        "inpaint": lambda a, **more: inpaint(a, hit, **more).data,
        "clean": lambda a, **more: csstdask.clean(a, **MODEL, **more).data,
    }[function]
    hit = np.zeros(frame.shape, bool)
    hit[29, 20:50] = True
    frame[hit] += 500
    frame[BAD] = 1e6
    found, expected = call(wrap(frame)), call(frame, mask=masked(frame))
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, expected)
    assert type(found) is np.ndarray
    if function == "inpaint":
        assert found[hit].max() < 150


@pytest.mark.parametrize(
    ("wrap", "cure"),
    [
        (lambda a: a * u.adu, "multiply by the gain"),
        (lambda a: CCDData(a, unit="adu"), "multiply by the gain"),
        (lambda a: xr.DataArray(a, attrs={"units": "adu"}), "multiply by the gain"),
        (lambda a: a * u.electron / u.s, "multiply by the exposure time"),
    ],
    ids=["quantity", "ccddata", "dataarray", "rate"],
)
def test_units_are_never_dropped_silently(frame, wrap, cure):
    given, hit = wrap(frame), np.zeros(frame.shape, bool)
    for call in (detect, lambda a, **more: inpaint(a, hit, **more), csstdask.clean):
        with pytest.raises(TypeError, match=f"data: .*{cure}"):
            call(given)
        with pytest.raises(TypeError, match=f"error: .*{cure}"):
            call(frame, error=given)


def test_stamps_have_any_unit_and_their_masks_count(rng):
    """A PSF does not depend on the unit; pixels that a container masks are not looked at."""
    y, x = np.mgrid[:32, :32] - 16
    star = 1e4 * np.exp(-(x**2 + y**2) / 4.5)
    stamps = rng.normal(star, 5, (4, 32, 32)).astype(np.float32)
    error = np.sqrt(25 + np.maximum(star, 0)) * np.ones_like(stamps)
    args, known = ([1] * 4, [100.0, 300.0, 500.0, 700.0], [500.0] * 4), {"model": "empirical", "shape": (1000, 1000)}
    bad = np.zeros(stamps.shape, bool)
    bad[:, 14, 16] = True
    broken = np.where(bad, 1e6, stamps).astype(np.float32)
    plain = csstdask.psf.reconstruct(broken, *args, error=error, mask=bad, **known)
    for given, of_error in (
        (np.ma.masked_array(broken, bad), error),
        (Masked(broken * u.adu, bad), error * 1e-3 * u.Unit(1000 * u.adu)),
        ([CCDData(a, StdDevUncertainty(e), mask=m, unit="adu") for a, e, m in zip(broken, error, bad, strict=True)],
         None),
    ):  # fmt: skip
        found = csstdask.psf.reconstruct(given, *args, error=of_error, **known)
        assert np.allclose(found.image, plain.image, atol=1e-5)
        assert np.allclose(found.sigma, plain.sigma, rtol=0.01, atol=1e-6)


def test_an_array_in_electrons_is_an_array(frame):
    plain = detect(frame, **MODEL)
    labelled = detect(xr.DataArray(frame, attrs={"units": "electron"}), **MODEL)
    assert np.array_equal(plain.mask, labelled.mask)


def test_an_uncertainty_is_the_error(frame):
    frame[20, 20:24] += 40
    found = detect(CCDData(frame, VarianceUncertainty(np.full(frame.shape, 900.0)), unit="electron"), **MODEL)
    assert detect(frame, **MODEL).mask.any()
    assert not found.mask[20, 20:24].any()
    assert np.array_equal(found.mask, detect(frame, np.full(frame.shape, 30.0), **MODEL).mask)


def test_a_mask_in_the_place_of_errors_is_refused(frame):
    with pytest.raises(ValueError, match="mask is the next argument"):
        detect(frame, np.zeros(frame.shape, bool), **MODEL)
    with pytest.raises(ValueError, match="mask is the next argument"):
        inpaint(frame, np.ones(frame.shape, bool), np.zeros(frame.shape, bool))


def test_probabilities_are_no_mask(frame):
    hit = np.zeros(frame.shape, bool)
    hit[10, 10:14] = True
    with pytest.raises(ValueError, match="threshold"):
        inpaint(frame, hit.astype(np.float32) * 0.9)
    with pytest.raises(ValueError, match="booleans"):
        inpaint(frame, hit * np.int16(7))
    assert np.array_equal(inpaint(frame, hit.astype(np.uint8)).data, inpaint(frame, hit).data)


def test_the_result_of_detect_is_a_mask(frame):
    frame[20, 20:24] += 500
    found = detect(frame, **MODEL)
    assert found.mask.any()
    assert np.array_equal(inpaint(frame, found).data, inpaint(frame, found.mask).data)


@pytest.mark.parametrize("model", ["unet-fast", "lacosmic"])
def test_a_constant_image_has_no_cosmic_rays(model):
    found = detect(np.full((300, 300), 1050, np.float32), model=model)
    assert not found.mask.any()
    assert not found.probability.any()


def test_noise_of_padding_does_not_reach_live_pixels(rng):
    """Half of a frame is padded with zeros: the noise of the other half is what it is, up to the border."""
    frame = rng.normal(100, 5, (512, 512)).astype(np.float32)
    frame[:, :256] = 0
    noise = estimate_background(frame, box=64).noise_at()
    assert np.abs(noise[:, 256:] - 5).max() < 1
    assert (noise > 4).all()
