"""Arguments of detect and inpaint: what could be lost or confused is refused, with what to pass instead."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from astropy import units as u
from astropy.nddata import CCDData

import csstdask
from csstdask.arrays.background import measure

detect, inpaint = csstdask.cosmicray.detect, csstdask.cosmicray.inpaint
MODEL = {"model": "lacosmic"}


@pytest.fixture
def frame(rng):
    return rng.normal(100, 5, (64, 64)).astype(np.float32)


@pytest.mark.parametrize(
    ("wrap", "cure"),
    [
        (lambda a: np.ma.masked_greater(a, 110), "mask=array.mask"),
        (lambda a: a * u.adu, "to_value"),
        (lambda a: CCDData(a, unit="electron"), "mask=ccd.mask"),
        (lambda a: xr.DataArray(a, attrs={"units": "adu"}), "electrons"),
    ],
    ids=["masked", "quantity", "ccddata", "dataarray"],
)
def test_masks_and_units_are_never_dropped_silently(frame, wrap, cure):
    given = wrap(frame)
    with pytest.raises(TypeError, match=cure):
        detect(given, **MODEL)
    with pytest.raises(TypeError, match=cure):
        inpaint(given, np.zeros(frame.shape, bool))
    with pytest.raises(TypeError):
        detect(frame, error=given, **MODEL)
    with pytest.raises(TypeError, match=r"mask or unit|electrons"):
        csstdask.psf.reconstruct(wrap(np.ones((2, 32, 32), np.float32)), [8, 8], [100.0, 200.0], [100.0, 200.0])


def test_an_array_in_electrons_is_an_array(frame):
    plain = detect(frame, **MODEL)
    labelled = detect(xr.DataArray(frame, attrs={"units": "electron"}), **MODEL)
    assert np.array_equal(plain.mask, labelled.mask)


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
    noise = measure(frame, box=64).noise_at()
    assert np.abs(noise[:, 256:] - 5).max() < 1
    assert (noise > 4).all()
