"""Files of PSF fields: they predict the same PSFs, and a foreign or damaged file is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.nn.models import find_card
from csstdask.psf.basis import PsfBasis, load_basis
from csstdask.psf.field import PsfField
from csstdask.psf.field_file import read_field, write_field
from csstdask.psf.model_card import band_of
from csstdask.psf.wavefront import Wavefront

DETECTOR = 8
CARD = find_card("psf", "principal")
X, Y = np.array([10.0, 500.0, 1000.0]), np.array([900.0, 512.0, 3.0])


def field_of(psfs: PsfBasis, rng: np.random.Generator, wavefront: Wavefront | None = None) -> PsfField:
    """A field whose stars have narrowed the prior tenfold in most directions."""
    k = len(psfs)
    count = len(psfs.field_covariance) * k
    root = np.linalg.cholesky(psfs.prior.covariance) * np.where(rng.random(count) < 0.8, 0.1, 1.0)
    return PsfField(
        DETECTOR, (1024, 1024), psfs, rng.normal(size=(len(psfs.field_covariance), k)) * 0.1, root @ root.T, wavefront
    )


@pytest.fixture(scope="module")
def psfs() -> PsfBasis:
    return load_basis(CARD, band_of(CARD, DETECTOR))


def test_field_survives_a_round_trip(psfs, rng):
    blur = np.array([0.25, 0.25, 0.0, 0.1, 0.0])
    wavefront = Wavefront((4, 5), rng.normal(size=(6, 2)), np.ones((6, 2)), blur)
    own = replace(
        psfs, mean=psfs.mean * np.float32(1.001), truncation_variance=psfs.truncation_variance * np.float32(0.4)
    )
    field = field_of(own, rng, wavefront)
    data = write_field(field, CARD)
    found = read_field(data, CARD)
    image, sigma = field(X, Y)
    again, sigma_again = found(X, Y)
    assert np.abs(again - image).max() < 2e-6 * image.max()
    assert np.allclose(sigma_again, sigma, rtol=0.01, atol=1e-6 * sigma.max())
    assert found.wavefront is not None
    assert found.wavefront.orders == (4, 5)
    assert np.array_equal(found.wavefront.coefficients, wavefront.coefficients)
    assert len(data) < 1_500_000


def test_second_round_trip_is_exact(psfs, rng):
    """An interrupted run and an uninterrupted one then use the same field."""
    once = read_field(write_field(field_of(psfs, rng), CARD), CARD)
    for mine, theirs in zip(once(X, Y), read_field(write_field(once, CARD), CARD)(X, Y), strict=True):
        assert np.allclose(mine, theirs, rtol=1e-3)


def test_fields_without_weights_hold_their_images(rng):
    card = find_card("psf", "empirical")
    known = load_basis(CARD, band_of(CARD, DETECTOR))
    few = replace(
        known,
        images=known.images[:8],
        field_covariance=known.field_covariance[:, :8, :8],
        intrinsic_scatter=known.intrinsic_scatter[:8],
    )
    field = field_of(few, rng)
    found = read_field(write_field(field, card), card)
    image, _ = field(X, Y)
    assert np.abs(found(X, Y)[0] - image).max() < 1e-3 * image.max()
    assert np.array_equal(found.basis.mean, few.mean)


def test_foreign_and_damaged_files_are_refused(psfs, rng):
    data = write_field(field_of(psfs, rng), CARD)
    with pytest.raises(InputError, match="run the step psf again"):
        read_field(data, find_card("psf", "empirical"))
    for damaged in (b"", data[:100], data[:-10]):
        with pytest.raises(InputError, match="damaged file"):
            read_field(damaged, CARD)
