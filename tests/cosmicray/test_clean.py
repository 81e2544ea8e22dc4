"""clean: what detect and inpaint give together, with every measurement made once."""

from __future__ import annotations

import doctest
import sys

import numpy as np
import pytest
import torch

import csstdask
from csstdask.arrays import background, sources
from csstdask.cosmicray import detect, inpaint

FAST = {"model": "unet-fast"}


@pytest.fixture
def frame(rng):
    """A sky, twenty stars, tracks of cosmic rays, and a defect."""
    y, x = np.mgrid[:300, :320]
    data = np.full(y.shape, 200.0)
    for cy, cx in rng.uniform(25, 275, (20, 2)):
        data += 3e4 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 1.6**2))
    data = rng.poisson(data).astype(np.float32)
    for row, column in rng.integers(20, 270, (60, 2)):
        data[row, column : column + 6] += 1500
    return data


def test_the_precision_is_that_of_detection():
    rng = np.random.default_rng(3)
    frame = rng.normal(100, 5, (96, 96)).astype(np.float32)
    frame[40, 40:60] += rng.uniform(5, 40, 20).astype(np.float32)
    cleaned = csstdask.clean(frame, model="unet-fast", precision="bfloat16", psf="none")
    found = csstdask.cosmicray.detect(frame, model="unet-fast", precision="bfloat16")
    assert np.array_equal(cleaned.mask, found.mask)
    assert found.precision == "bfloat16"
    with pytest.raises(ValueError, match="precision: found 'float16'"):
        csstdask.clean(frame, model="unet-fast", precision="float16", psf="none")


def test_it_is_detection_and_then_repair(frame):
    error, mask = np.sqrt(frame), np.zeros(frame.shape, bool)
    mask[100:103] = True
    cleaned = csstdask.clean(frame, error, mask, **FAST, psf="none")
    found = detect(frame, error, mask, **FAST)
    fixed = inpaint(frame, found, error, mask, psf="none")
    assert found.mask.sum() > 200
    assert np.array_equal(cleaned.mask, found.mask)
    assert np.array_equal(cleaned.data, fixed.data)
    assert np.array_equal(cleaned.variance, fixed.variance, equal_nan=True)
    assert not cleaned.mask[mask].any()
    assert np.array_equal(cleaned.data[~cleaned.mask], frame[~cleaned.mask])
    assert np.isnan(cleaned.variance[~cleaned.mask]).all()


def test_every_measurement_is_made_once(frame, monkeypatch):
    counts = {"estimate_background": 0, "find_sources": 0}

    def counted(module, name):
        function = getattr(module, name)

        def call(*args, **options):
            counts[name] += 1
            return function(*args, **options)

        for one in list(sys.modules.values()):  # wherever it was imported to
            if getattr(one, "__name__", "").startswith("csstdask") and getattr(one, name, None) is function:
                monkeypatch.setattr(one, name, call)

    counted(background, "estimate_background")
    counted(sources, "find_sources")
    cleaned = csstdask.clean(frame, **FAST)
    assert cleaned.mask.any()
    assert counts == {"estimate_background": 1, "find_sources": 1}


def test_stars_are_repaired_by_the_frames_psf(frame):
    by_psf, plain = csstdask.clean(frame, **FAST), csstdask.clean(frame, **FAST, psf="none")
    assert np.array_equal(by_psf.mask, plain.mask)
    assert (by_psf.data != plain.data).any()


def test_kinds(frame):
    cleaned = csstdask.clean(torch.from_numpy(frame), **FAST, psf="none")
    assert all(isinstance(part, torch.Tensor) for part in (cleaned.mask, cleaned.data, cleaned.variance))
    plain = csstdask.clean(frame.astype(">f8"), **FAST, psf="none")
    assert plain.data.dtype == np.float64
    assert np.allclose(plain.data, cleaned.data)


@pytest.mark.parametrize("value", [7, np.nan])
def test_a_frame_without_anything_to_repair(value):
    frame = np.full((40, 50), value, np.float32)
    cleaned = csstdask.clean(frame, **FAST)
    assert not cleaned.mask.any()
    assert np.array_equal(cleaned.data, frame, equal_nan=True)
    assert np.isnan(cleaned.variance).all()


def test_invalid_arguments_are_named(frame):
    with pytest.raises(ValueError, match="model: found 'nonsense'"):
        csstdask.clean(frame, model="nonsense")
    with pytest.raises(ValueError, match="detector: found 99"):
        csstdask.clean(frame, detector=99)
    with pytest.raises(ValueError, match="mask is the next argument"):
        csstdask.clean(frame, np.zeros(frame.shape, bool))
    with pytest.raises(ValueError, match="detector: found none"):
        csstdask.clean(frame, psf="default")


def test_the_example_runs():
    assert doctest.testmod(sys.modules["csstdask.cosmicray.clean"]).failed == 0
