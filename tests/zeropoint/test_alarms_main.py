"""Alarms in the history of zero points."""

from __future__ import annotations

import numpy as np

from csstdask.zeropoint.alarms import find_alarms

NOTHING = np.full(6, np.nan)


def kinds(value: np.ndarray, prior: np.ndarray = NOTHING, prior_sigma: float = 0.005) -> list[tuple[int, str]]:
    found = find_alarms(np.arange(6.0), value, np.full(6, 0.002), prior, np.full(6, prior_sigma))
    return [(row, alarm.kind) for row, alarm in found]


def test_a_quiet_history_has_no_alarm() -> None:
    assert kinds(25 + 0.001 * np.array([0, 1, -1, 0, 1, 0])) == []


def test_a_rise_is_a_decontamination_and_a_slope_a_drift() -> None:
    assert kinds(np.array([25, 25, 25, 25.05, 25.05, 25.05]))[0] == (3, "decontamination")
    assert kinds(25 - 0.01 * np.arange(6)) == [(5, "drift")]


def test_the_return_from_one_wrong_zero_point_is_no_rise() -> None:
    expected = np.full(6, 25.0)
    wrong = np.array([25, 25, 24, 25, 25, 25])
    assert kinds(wrong, expected) == [(2, "disagreement")]
    # A true rise disagrees as well, and stays.
    assert (3, "decontamination") in kinds(np.array([25, 25, 25, 25.1, 25.1, 25.1]), expected)
