"""Rho statistics: of errors that are drawn, what they must be."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.metrics.rho_statistics import RHO, rho_statistics


def stars(rng, n=600, *, common=0.0, alone=0.0, growth=0.0):
    """Return stars whose PSF is wrong by a common and by a random ellipticity, and by a size."""
    e1, e2 = rng.normal(0.02, 0.001, (2, n))
    size = np.full(n, 1.5)
    wrong = common + alone * rng.normal(size=(2, n))
    return {
        "x": rng.uniform(0, 1000, n), "y": rng.uniform(0, 1000, n), "size": size, "e1": e1, "e2": e2,
        "model_size": size * (1 - growth), "model_e1": e1 - wrong[0], "model_e2": e2 - wrong[1],
    }  # fmt: skip


def test_errors_that_are_alike_add_up_and_others_do_not(rng):
    alike = rho_statistics([stars(rng, common=0.01)])
    assert np.nanmean(alike["rho1"]) == pytest.approx(2 * 0.01**2, rel=0.02)
    assert np.nanmean(alike["rho2"]) == pytest.approx(2 * 0.01 * 0.02, rel=0.05)
    apart = rho_statistics([stars(rng, alone=0.01)])
    assert np.abs(np.nanmean(apart["rho1"])) < 0.05 * 2 * 0.01**2
    assert alike["pairs"].sum() > 100_000


def test_a_size_that_is_wrong_everywhere(rng):
    found = rho_statistics([stars(rng, growth=0.02)])
    share = 1 - 0.98**2
    assert np.nanmean(found["rho3"]) == pytest.approx(2 * (0.02 * share) ** 2, rel=0.05)
    assert np.nanmean(found["rho5"]) == pytest.approx(2 * 0.02**2 * share, rel=0.05)
    assert np.abs(found["rho1"][np.isfinite(found["rho1"])]).max() < 1e-12


def test_pairs_are_of_one_frame_and_separations_lie_in_their_bins(rng):
    frames = [stars(rng, n=50), stars(rng, n=50)]
    both, each = (
        rho_statistics(frames, max_separation=800),
        [rho_statistics([one], max_separation=800) for one in frames],
    )
    assert np.array_equal(both["pairs"], each[0]["pairs"] + each[1]["pairs"])
    edges = np.geomspace(800 / 30, 800, 9)
    known = both["pairs"] > 0
    assert (both["separation"][known] >= edges[:-1][known]).all()
    assert (both["separation"][known] <= edges[1:][known]).all()


def test_stars_without_moments_and_empty_frames_count_for_nothing(rng):
    one = stars(rng, n=40)
    one["size"][:10] = np.nan
    empty = {name: values[:0] for name, values in one.items()}
    assert rho_statistics([one, empty])["pairs"].sum() <= 30 * 29 / 2
    assert np.isnan(rho_statistics([empty])["rho1"]).all()
    assert set(RHO) < set(rho_statistics([one]))


def test_the_rho_statistics_agree_with_treecorr(rng):
    """TreeCorr is an independent implementation; with bin_slop = 0 it bins every pair exactly."""
    treecorr = pytest.importorskip("treecorr", reason="TreeCorr is not installed")
    one = stars(rng, n=400, common=0.004, alone=0.01, growth=0.03)
    found = rho_statistics([one], max_separation=700)
    e = one["e1"] + 1j * one["e2"]
    error = e - (one["model_e1"] + 1j * one["model_e2"])
    scaled = e * (1 - (one["model_size"] / one["size"]) ** 2)
    e, error, scaled = (
        treecorr.Catalog(x=one["x"], y=one["y"], g1=values.real, g2=values.imag) for values in (e, error, scaled)
    )
    pairs = {"rho1": (error,), "rho2": (e, error), "rho3": (scaled,), "rho4": (error, scaled), "rho5": (e, scaled)}
    for name, catalogues in pairs.items():
        reference = treecorr.GGCorrelation(
            min_sep=700 / 30, max_sep=700, nbins=len(found["pairs"]), bin_slop=0, brute=True, num_threads=1
        )
        reference.process(*catalogues)
        assert found[name] == pytest.approx(reference.xip, rel=1e-6, abs=1e-12)
        assert found["separation"] == pytest.approx(reference.meanr, rel=1e-6)
    assert found["pairs"] == pytest.approx(reference.npairs / 2)  # cross-correlations count both orders
