"""A frame's PSF: from the frame and its sources alone, without a hand in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csstdask.arrays.background import estimate_background
from csstdask.arrays.sources import measure_sources
from csstdask.cosmicray import inpaint
from csstdask.instrument import load_instrument
from csstdask.mock import Recipe, render_unit
from csstdask.mock.recipe_tables import Optics, Sky
from csstdask.psf.frame import choose_model, compare_stars, fit_frame, supports_band

DETECTOR = 7


@pytest.fixture(scope="module")
def frame():
    """Stars and galaxies of one detector, without and with cosmic rays [e-]."""
    recipe = Recipe(
        name="stars", seed=3, exposures=1, detectors=(DETECTOR,), shape=(900, 900), optics=Optics(seed=44),
        sky=Sky(stars_per_mpix=250, galaxies_per_mpix=150, brightest=17.5, faintest=24),
        cosmic_rays={"pixel_fraction": (0.03,)},
    )  # fmt: skip
    instrument = load_instrument("csst")
    unit = render_unit(recipe, instrument, 0, DETECTOR)
    ignore = ((unit.flag & instrument.flags.ignore_mask) != 0) | ~(unit.wht > 0)
    error = (recipe.exptime / np.sqrt(np.where(unit.wht > 0, unit.wht, 1))).astype(np.float32)
    return unit, unit.sci * np.float32(recipe.exptime), error, ignore, (unit.truth_cr > 0) & ~ignore


@pytest.fixture(scope="module")
def measured(frame):
    _, data, error, ignore, hit = frame
    fixed = np.asarray(inpaint(data, hit, error, ignore, psf="none").data)
    mesh = estimate_background(fixed, ignore)
    height = np.where(ignore, 0, fixed - mesh.background_at()).astype(np.float32)
    return height, error, ignore | hit, measure_sources(height, error, mesh.noise_at(), ignore)


def test_field_is_fitted_and_compared_with_held_out_stars(measured, psf_model):
    psf = fit_frame(*measured, DETECTOR, model=str(psf_model))
    assert psf is not None
    assert psf.fit.used.sum() > 20
    found = compare_stars(psf.field, psf.fitted, psf.selection, *measured)
    held_out = found["held_out"]
    assert 3 < held_out.sum() < len(held_out) / 2
    assert not set(found["star"][held_out]) & set(psf.fitted)
    assert np.median(found["chi2"][held_out]) < 1.5
    change = found["size"][held_out] / found["model_size"][held_out] - 1
    assert abs(np.median(change)) < 0.02
    assert np.std(change) < 0.08


def test_a_frame_without_stars_has_no_psf(measured, psf_model):
    height, error, mask, sources = measured
    none = {name: values[:0] for name, values in sources.items()}
    assert fit_frame(height, error, mask, none, DETECTOR, model=str(psf_model)) is None


def test_detectors_and_bands_of_models():
    assert supports_band("csst", DETECTOR)
    assert not supports_band("hst_stis", DETECTOR)
    assert not supports_band("csst", 99)
    assert supports_band("hst_stis", 1, model="empirical")


def test_choice_of_the_model():
    assert choose_model("csst", DETECTOR, "i") == "default"
    assert choose_model("cfht_wircam", 52, None) == "empirical"
    assert choose_model("csst", DETECTOR, "i", "empirical") == "empirical"
    assert choose_model("cfht_wircam", 52, None, "principal") is None


def test_stars_are_repaired_by_their_own_psf(frame, psf_model):
    """Errors are smaller and agree with the variance; other pixels equal those of the repair model."""
    unit, data, error, ignore, hit = frame
    clean = unit.truth_sci * np.float32(150.0)
    plain = inpaint(data, hit, error, ignore, model="median", psf="none")
    by_psf = inpaint(data, hit, error, ignore, model="median", detector=DETECTOR, psf=str(psf_model))
    changed = hit & (plain.data != by_psf.data)
    assert 50 < changed.sum() < hit.sum() / 2
    assert np.array_equal(by_psf.data[~hit], data[~hit])
    assert np.isnan(by_psf.variance[~hit]).all()
    errors = {
        name: float(np.sqrt(np.mean((fixed.data - clean)[changed] ** 2)))
        for name, fixed in (("median", plain), ("psf", by_psf))
    }
    assert errors["psf"] < 0.5 * errors["median"]
    pull = (by_psf.data - clean)[changed] / np.sqrt(by_psf.variance[changed])
    assert abs(pull.mean()) < 0.2
    assert 0.8 < pull.std() < 1.3


def test_stars_of_any_camera_are_repaired_by_an_empirical_psf(frame):
    unit, data, error, ignore, hit = frame
    clean = unit.truth_sci * np.float32(150.0)
    plain = inpaint(data, hit, error, ignore, model="median", psf="none")
    by_psf = inpaint(data, hit, error, ignore, model="median", detector=1000, psf="empirical")
    changed = hit & (plain.data != by_psf.data)
    assert changed.sum() > 50
    errors = [float(np.sqrt(np.mean((fixed.data - clean)[changed] ** 2))) for fixed in (plain, by_psf)]
    assert errors[1] < 0.6 * errors[0]
    pull = (by_psf.data - clean)[changed] / np.sqrt(by_psf.variance[changed])
    assert 0.6 < pull.std() < 1.5


def test_detector_without_a_psf_model(frame):
    _, data, error, ignore, hit = frame
    with pytest.raises(ValueError, match="detector: found 99"):
        inpaint(data, hit, error, ignore, detector=99)
    with pytest.raises(ValueError, match="detector: found 99"):
        inpaint(np.ones((64, 64), np.float32), np.zeros((64, 64), bool), detector=99)


def test_tensors_and_errors_of_hit_pixels(frame, psf_model):
    """Tensors give the same result, whatever the error of the hit pixels."""
    _, data, error, ignore, hit = frame
    known = {"detector": DETECTOR, "psf": str(psf_model)}
    plain = inpaint(data, hit, error, ignore, **known)
    tensors = (torch.from_numpy(np.ascontiguousarray(plane)) for plane in (data, hit, error, ignore))
    found = inpaint(*tensors, **known)
    assert torch.is_tensor(found.data)
    assert np.array_equal(found.data.numpy(), plain.data)
    unknown = inpaint(data, hit, np.where(hit, np.inf, error), ignore, **known)
    same = np.isclose(unknown.data, plain.data, rtol=0.02, atol=3 * np.nanmedian(error))
    assert same.mean() > 0.999
