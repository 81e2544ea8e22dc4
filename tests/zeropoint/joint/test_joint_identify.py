"""Identification of detections of the same star."""

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from csstdask.zeropoint.joint import identify_stars

ARCSEC = 1 / 3600


def unit_vectors(ra, dec):
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def same_stars(one, two):
    """Whether two labellings are the same partition."""
    pairs = len(np.unique(np.stack([one, two]), axis=1).T)
    return pairs == len(np.unique(one)) == len(np.unique(two))


def components(ra, dec, unit, radius):
    """Brute force: components of pairs of different units within the radius."""
    reach = 2 * np.sin(np.deg2rad(radius * ARCSEC) / 2)
    pairs = cKDTree(unit_vectors(ra, dec)).query_pairs(reach, output_type="ndarray")
    pairs = pairs[unit[pairs[:, 0]] != unit[pairs[:, 1]]]
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(ra), len(ra)))
    return connected_components(graph, directed=False)[1]


def detections(rng, center, n_stars=300, n_units=5, error=0.1, size=120.0):
    """Detections of stars round a position, in tangent coordinates, and which star each is."""
    ra, dec = center
    east = np.array([-np.sin(np.deg2rad(ra)), np.cos(np.deg2rad(ra)), 0])
    toward = unit_vectors(np.array([ra]), np.array([dec]))[0]
    north = np.cross(toward, east)
    x, y = rng.uniform(-size, size, (2, n_stars))
    star, unit = np.tile(np.arange(n_stars), n_units), np.repeat(np.arange(n_units), n_stars)
    seen = rng.random(len(star)) < 0.7
    star, unit = star[seen], unit[seen]
    x, y = (np.deg2rad((one[star] + error * rng.normal(size=len(star))) * ARCSEC) for one in (x, y))
    vector = toward + x[:, None] * east + y[:, None] * north
    vector /= np.linalg.norm(vector, axis=1, keepdims=True)
    return np.rad2deg(np.arctan2(vector[:, 1], vector[:, 0])) % 360, np.rad2deg(np.arcsin(vector[:, 2])), unit, star


@pytest.mark.parametrize(
    "center", [(150.0, 2.0), (0.0, 0.0), (0.0, -60.0), (30.0, 90.0), (200.0, -90.0), (359.99, 89.9)]
)
def test_positions_anywhere_on_the_sky(center):
    rng = np.random.default_rng(0)
    ra, dec, unit, _ = detections(rng, center)
    labels = identify_stars(ra, dec, np.full(len(ra), -1), unit)
    expected = components(ra, dec, unit, 1.0)
    keys, count = np.unique(np.stack([expected, unit]), axis=1, return_counts=True)
    repeated = np.isin(expected, keys[0][count > 1])
    assert same_stars(labels[~repeated], expected[~repeated])
    assert np.count_nonzero(~repeated) > 0.9 * len(ra)
    assert len(np.unique(np.stack([labels, unit]), axis=1).T) == len(labels)


@pytest.mark.parametrize("radius", [0.3, 1.0, 5.0])
def test_star_has_one_detection_per_unit_in_crowded_fields(radius):
    rng = np.random.default_rng(1)
    ra, dec, unit, _ = detections(rng, (0.0, 40.0), n_stars=400, size=15.0)
    labels = identify_stars(ra, dec, np.full(len(ra), -1), unit, radius=radius)
    assert len(np.unique(np.stack([labels, unit]), axis=1).T) == len(labels)
    assert labels.min() == 0
    assert len(np.unique(labels)) == labels.max() + 1
    order = rng.permutation(len(ra))
    moved = identify_stars(ra[order], dec[order], np.full(len(ra), -1), unit[order], radius=radius)
    assert same_stars(moved, labels[order])


def test_close_pairs_go_to_their_own_stars():
    """Two stars 1.2 arcsec apart, seen in three units with errors of 0.1 arcsec and joined within 1.5 arcsec."""
    rng = np.random.default_rng(2)
    star, unit = np.tile([0, 1], 3), np.repeat([0, 1, 2], 2)
    ra = 10 + 1.2 * ARCSEC * star + 0.1 * ARCSEC * rng.normal(size=6)
    dec = 0.1 * ARCSEC * rng.normal(size=6)
    assert same_stars(identify_stars(ra, dec, np.full(6, -1), unit, radius=1.5), star)


def test_reference_rows_identify_stars():
    reference = np.array([9, 9, 4, -1, -1, -1])
    ra = np.array([10.0, 50.0, 10.0, 10.0, 10.0, np.nan])
    labels = identify_stars(ra, np.zeros(6), reference, np.array([0, 1, 2, 3, 4, 0]))
    assert labels.tolist() == [1, 1, 0, 2, 2, 3]


def test_no_detections():
    assert len(identify_stars([], [], [], [])) == 0
