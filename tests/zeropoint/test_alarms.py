"""Alarms in simulated histories of zero points."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.zeropoint.alarms import DRIFT_EXPOSURES, MIN_JUMP, find_alarms

NOISE = 0.002
N = 30


def history(seed=1, n=N):
    rng = np.random.default_rng(seed)
    return np.arange(n, dtype=float), 25.0 + rng.normal(0, NOISE, n), np.full(n, NOISE)


def kinds(days, value, sigma, prior=None, prior_sigma=None):
    nothing = np.full(len(days), np.nan)
    found = find_alarms(
        days, value, sigma, nothing if prior is None else prior, nothing if prior is None else prior_sigma
    )
    return [(row, alarm.kind) for row, alarm in found]


@pytest.mark.parametrize("seed", range(8))
def test_constant_history_raises_no_alarm(seed):
    days, value, sigma = history(seed)
    assert kinds(days, value, sigma, np.full(N, 25.0), np.full(N, NOISE)) == []


def test_disagreement_of_stars_and_prior_raises_an_alarm():
    days, value, sigma = history()
    prior = np.full(N, 25.0)
    prior[12] = value[12] + 6 * np.hypot(NOISE, NOISE)
    ((row, alarm),) = find_alarms(days, value, sigma, prior, np.full(N, NOISE))
    assert (row, alarm.kind) == (12, "disagreement")
    assert alarm.sigma == pytest.approx(-6)
    assert "contradict" in alarm.meaning


def test_drift_uses_only_the_latest_exposures():
    days, value, sigma = history()
    drifting = value - np.where(days >= N - DRIFT_EXPOSURES, 0.002 * (days - (N - DRIFT_EXPOSURES)), 0.0)
    ((row, alarm),) = find_alarms(days, drifting, sigma, np.full(N, np.nan), np.full(N, np.nan))
    assert (row, alarm.kind) == (N - 1, "drift")
    assert alarm.size == pytest.approx(-0.018, abs=0.005)
    early = value - np.where(days < 10, 0.002 * (10 - days), 0.0)
    assert kinds(days, early, sigma) == []


def test_excess_scatter_is_not_a_drift():
    days, value, _ = history()
    assert kinds(days, value, np.full(N, NOISE / 20)) == []


@pytest.mark.parametrize(("jump", "alarmed"), [(0.05, True), (-0.05, False), (0.8 * MIN_JUMP, False)])
def test_sudden_rise_is_a_decontamination(jump, alarmed):
    days, value, sigma = history()
    value[10:] += jump
    assert kinds(days, value, sigma) == ([(10, "decontamination")] if alarmed else [])


def test_unsolved_exposures_and_order_do_not_matter():
    days, value, sigma = history()
    value[10:] += 0.05
    value[[3, 10, 11]], sigma[[3, 10, 11]] = np.nan, np.inf
    assert kinds(days, value, sigma) == [(12, "decontamination")]
    order = np.random.default_rng(2).permutation(N)
    ((row, kind),) = kinds(days[order], value[order], sigma[order])
    assert (order[row], kind) == (12, "decontamination")


def test_short_histories_have_no_drift():
    assert kinds(np.arange(3.0), np.array([25.0, 24.0, 23.0]), np.full(3, 0.001)) == []
    assert kinds(np.zeros(0), np.zeros(0), np.zeros(0)) == []
    assert kinds(np.zeros(6), np.full(6, 25.0), np.full(6, 0.001)) == []  # all at one time


def test_recovery_from_a_wrong_zero_point_is_not_a_rise():
    days, expected = np.arange(6.0), np.full(6, 25.0)
    errors = np.full(6, 0.002), expected, np.full(6, 0.005)
    wrong = find_alarms(days, np.array([25, 25, 24, 25, 25, 25.0]), *errors)
    assert [(row, alarm.kind) for row, alarm in wrong] == [(2, "disagreement")]
    # A true rise disagrees as well, and stays.
    risen = find_alarms(days, np.array([25, 25, 25, 25.1, 25.1, 25.1]), *errors)
    assert (3, "decontamination") in [(row, alarm.kind) for row, alarm in risen]
