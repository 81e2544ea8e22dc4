"""STIS frames with truth: the truth is what it claims to be, and so are the references."""

from __future__ import annotations

import numpy as np

from csstdask.datasets import stis_1999
from csstdask.evaluation.cosmicray import real
from csstdask.mock.event_libraries import STIS_PAIRS, pair_exposures


def test_the_truth_of_the_stis_frames_is_its_definition(real_images):
    """With the reference of all exposures, 6 sigma grown twice to 3 gives the stored masks, pixel for pixel."""
    folder = real_images / "hst_stis"
    with np.load(folder / "ref_rate_1999.npz") as stored:
        reference = stis_1999.StisReference(stored["ref_rate"], stored["hot"], 8)
    for name in pair_exposures(sum(STIS_PAIRS.values(), ())):
        frame = stis_1999.read_frame(folder, name)
        assert np.array_equal(real.threshold_control(frame, reference) & frame.valid, frame.hit & frame.valid)


def test_a_reference_of_three_pairs_is_near_that_of_all(real_images):
    """From three pairs: the same dark to a read noise in almost all pixels."""
    folder = real_images / "hst_stis"
    frames = [stis_1999.read_frame(folder, name) for name in pair_exposures(stis_1999.DEVELOPMENT_PAIRS)]
    reference = stis_1999.build_reference(frames)
    with np.load(folder / "ref_rate_1999.npz") as stored:
        everything, hot = stored["ref_rate"], stored["hot"]
    valid = frames[0].valid
    difference = np.abs(reference.rate - everything)[valid] * frames[0].exptime
    assert np.quantile(difference, 0.99) < 10
    assert (reference.hot == hot)[valid].mean() > 0.95
