"""Matching to a reference catalogue."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from csstdask.zeropoint.matching import apply_shift, match_sources

ARCSEC = 1 / 3600


def sky(n: int, seed: int = 0, *, ra: float = 180.0, dec: float = 60.0, half: float = 0.05) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.stack(
        [(ra + rng.uniform(-half, half, n) / np.cos(np.radians(dec))) % 360, dec + rng.uniform(-half, half, n)]
    )


@pytest.mark.parametrize("centre", [(180.0, 60.0), (0.0, -30.0), (10.0, 89.95)])
def test_matches_are_those_of_the_truth(centre: tuple[float, float]) -> None:
    reference = sky(400, ra=centre[0], dec=centre[1])
    seen = np.random.default_rng(1).permutation(400)[:250]
    sources = reference[:, seen]
    match = match_sources(*sources, *reference)
    assert (match.reference == seen).all()
    assert match.shift == pytest.approx((0.0, 0.0), abs=1e-6)


@pytest.mark.parametrize("shift", [(2.0, 0.0), (-1.5, 3.0), (0.4, -0.4)])
def test_pointing_offset_is_recovered(shift: tuple[float, float]) -> None:
    reference = sky(300)
    sources = apply_shift(*reference[:, :200], (-shift[0], -shift[1]))
    others = sky(100, seed=9)
    ra, dec = np.concatenate([sources[0], others[0]]), np.concatenate([sources[1], others[1]])
    match = match_sources(ra, dec, *reference)
    assert match.shift == pytest.approx(shift, abs=0.02)
    assert (match.reference[:200] == np.arange(200)).all()


def test_chance_pairs_give_no_offset() -> None:
    match = match_sources(*sky(300, seed=1), *sky(300, seed=2))
    assert match.shift == (0.0, 0.0)
    # 300 x 300 pairs at random over .1 x .1 degree: 300 * 300 * pi / 360^2 = 2.2 within 1 arcsec.
    assert match.n_matched < 10


def test_pairs_are_unique_and_mutually_nearest() -> None:
    reference = np.array([[10.0], [0.0]])
    ra = 10.0 + np.array([0.5, -0.2, 0.9]) * ARCSEC
    match = match_sources(ra, np.zeros(3), *reference)
    assert match.reference.tolist() == [-1, 0, -1]
    assert match.distance[1] == pytest.approx(0.2, abs=1e-6)


def test_empty_inputs_have_no_match() -> None:
    for sources, reference in ((sky(0), sky(10)), (sky(10), sky(0)), (np.full((2, 3), np.nan), sky(10))):
        match = match_sources(*sources, *reference)
        assert match.n_matched == 0
        assert len(match.reference) == len(sources[0])


def test_distant_reference_stars_are_ignored() -> None:
    reference = np.concatenate([sky(50), sky(50, seed=3, ra=10.0, dec=-20.0)], axis=1)
    assert match_sources(*reference[:, :50], *reference).n_matched == 50


def test_an_offset_is_found_from_few_stars() -> None:
    found = 0
    for seed in range(50):
        reference = sky(60, seed)
        sources = apply_shift(*reference[:, :4], (2.0, 0.0))
        found += match_sources(*sources, *reference).n_matched == 4
    assert found >= 40  # chance pairs sometimes hide it


def test_invalid_positions_have_no_match() -> None:
    reference = sky(20)
    dec = reference[1].copy()
    dec[:2] = -9999.0, 99.0
    match = match_sources(reference[0], dec, *reference)
    assert (match.reference[:2] == -1).all()
    assert (match.reference[2:] == np.arange(2, 20)).all()
