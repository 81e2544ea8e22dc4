"""Event libraries: splits share no event, charge is conserved, pixels that are not square are never turned."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.mock.event_libraries import (
    ITL_BANDS,
    STIS_PAIRS,
    EventLibrary,
    pair_exposures,
    read_itl_events,
    read_stis_events,
)


@pytest.fixture
def one_event():
    """Three pixels in a row along x."""
    return EventLibrary(
        "three", np.array([0, 3]), np.zeros(3, int), np.arange(3), np.float32([10, 20, 30]), np.ones(1), turns=False
    )


def test_scatter_keeps_shape_and_charge(one_event, rng):
    charge = one_event.scatter(rng, (400, 400), 0.002)
    # 0.2 % of 160,000 pixels in events of three: 107 of them, some cut by the edge.
    assert 107 * 60 * 0.7 < charge.sum() < 107 * 60 * 1.3
    assert set(np.unique(charge)) <= {0, 10, 20, 30, *range(40, 70, 10)}
    lone = charge[:, 1:-1] == 20
    left, right = charge[:, :-2][lone], charge[:, 2:][lone]
    assert ((np.minimum(left, right) == 10) & (np.maximum(left, right) == 30)).mean() > 0.95
    assert (left == 10).any()
    assert (left == 30).any()  # mirrored in x


def test_brightness_scales(one_event, rng):
    charge = one_event.scatter(rng, (200, 200), 0.002, brightness=[2.0])
    assert set(np.unique(charge)) <= {0, 20, 40, 60, *range(80, 140, 20)}


def test_square_pixels_may_be_turned(one_event, rng):
    turning = EventLibrary(**{**one_event.__dict__, "turns": True})
    charge = turning.scatter(rng, (400, 400), 0.002)
    middle = charge[1:-1, 1:-1] == 20
    upright = (charge[:-2, 1:-1][middle] + charge[2:, 1:-1][middle]) == 40
    assert 0.3 < upright.mean() < 0.7


def test_stis_events_of_held_out_pairs_are_in_no_training_library(real_images):
    path = real_images / "hst_stis" / "cr_events_stis_1999.npz"
    names = {split: pair_exposures(pairs) for split, pairs in STIS_PAIRS.items()}
    assert len(set().union(*names.values())) == sum(map(len, names.values())) == 8
    libraries = {split: read_stis_events(path, exposures) for split, exposures in names.items()}
    with np.load(path) as stored:
        clean = int((stored["quality"] == 0).sum())
        by_exposure = np.bincount(stored["exposure"][stored["quality"] == 0])
        order = [str(name) for name in stored["exposure_name"]]
    assert sum(map(len, libraries.values())) == clean == 13_524
    for split, library in libraries.items():
        assert len(library) == sum(by_exposure[order.index(name)] for name in names[split])
        assert library.weight.sum() == pytest.approx(1)


def test_itl_bands_share_no_footprint(real_images):
    path = real_images / "lsst_itl_darks" / "cosmic_rays_itl_2017.fits.gz"
    counts = [len(read_itl_events(path, band)) for band in ITL_BANDS.values()]
    # 1,764 footprints, 496 of them single pixels.
    assert sum(counts) == len(read_itl_events(path)) == 1_268
    assert min(counts) > 100


def test_invalid_libraries_are_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"no")
    with pytest.raises(InputError, match=r"x\.npz: found no event library"):
        read_stis_events(tmp_path / "x.npz", ["a"])
    with pytest.raises(InputError, match=r"x\.npz: found no table of footprints"):
        read_itl_events(tmp_path / "x.npz")
