"""Mock telemetry: prefixes, the terms of the throughput, drift, gaps, lag and jumps."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.core.constants import days_since_j2000
from csstdask.core.errors import InputError
from csstdask.mock import load_recipe
from csstdask.mock.conditions import CHANNELS, LAUNCH_DAYS, decontaminations, survey_days, true_conditions
from csstdask.mock.telemetry import reported_telemetry
from csstdask.mock.throughput import explained_offset, throughput
from csstdask.mock.zeropoint_settings import Reported, ZeroPoints

SETTINGS = ZeroPoints()
SEED = 25001
"""That of the recipe `zeropoint`."""
DAYS = survey_days(SETTINGS, "A", SEED, SETTINGS.survey("A").exposures)


def all_parts(days: np.ndarray, settings: ZeroPoints = SETTINGS, name: str = "A") -> dict[str, np.ndarray]:
    parts = throughput(settings, name, SEED, days)
    conditions = true_conditions(settings, name, SEED, days)
    reported = reported_telemetry(settings, name, SEED, days)
    found = {f"true {key}": value for key, value in conditions.items()}
    found |= {f"reported {key}": value for key, value in reported.items()}
    return found | {key: getattr(parts, key) for key in ("explained", "walk", "jumps", "white")}


def test_days_are_counted_from_noon_of_2000_01_01():
    from astropy.time import Time

    time = np.datetime64("2027-06-01T00:00:00")
    assert float(days_since_j2000(time)) == Time("2027-06-01T00:00:00", scale="utc").jd - 2451545.0
    assert float(days_since_j2000(time)) == LAUNCH_DAYS


def test_a_survey_fills_its_years():
    survey = SETTINGS.survey("A")
    assert len(DAYS) >= 8000
    assert DAYS[-1] - DAYS[0] == pytest.approx(survey.years * 365.25, rel=0.05)
    assert np.diff(DAYS).min() == pytest.approx(survey.cadence / 86400)
    assert DAYS[0] > LAUNCH_DAYS


def test_first_exposures_do_not_depend_on_later_ones():
    assert np.array_equal(survey_days(SETTINGS, "A", SEED, 50), DAYS[:50])
    whole, few = all_parts(DAYS[:700]), all_parts(DAYS[:43])
    for name, values in few.items():
        assert np.array_equal(values, whole[name][:43], equal_nan=True), name


def test_surveys_and_seeds_differ():
    a, b = all_parts(DAYS[:300]), all_parts(DAYS[:300], name="B")
    for name in ("true detector_temperature", "walk", "white", "explained"):
        assert not np.allclose(a[name], b[name]), name
    conditions = true_conditions(SETTINGS, "A", SEED, DAYS)
    one, other = (explained_offset(SETTINGS, SETTINGS.survey(name).response, conditions) for name in "AB")
    # The same conditions act differently: the correlation is high (ice dominates) and the size is not the same.
    assert 0.5 < np.corrcoef(one, other)[0, 1] < 0.99
    assert other.std() > 1.1 * one.std()
    assert not np.allclose(throughput(SETTINGS, "A", SEED + 1, DAYS).white, throughput(SETTINGS, "A", SEED, DAYS).white)


def test_sizes_of_the_parts():
    parts = throughput(SETTINGS, "A", SEED, DAYS)
    assert 0.02 < parts.explained.std() < 0.04
    assert parts.white.std() == pytest.approx(0.003, rel=0.03)
    step = np.diff(parts.walk) / np.sqrt(np.diff(DAYS))
    assert step.std() == pytest.approx(SETTINGS.survey("A").walk, rel=0.03)
    assert np.array_equal(parts.offset, parts.explained + parts.walk + parts.jumps + parts.white)


def test_decontaminations_raise_the_zero_point():
    events = decontaminations(SETTINGS, "A", SEED)
    events = events[(events > DAYS[0]) & (events < DAYS[-1])]
    gaps = np.diff(events)
    assert len(events) >= 6
    assert (gaps >= 90).all()
    assert (gaps <= 150).all()
    parts = throughput(SETTINGS, "A", SEED, DAYS)
    ice = true_conditions(SETTINGS, "A", SEED, DAYS)["contamination"]
    jumps = np.diff(parts.jumps)
    for event in events:
        i = np.searchsorted(DAYS, event)
        assert jumps[i - 1] > 0 or (np.diff(DAYS)[i - 1] > 0.3 and jumps[i - 1] != 0)
        assert ice[i] < 0.35 * ice[i - 1]
    # Between them ice grows.
    quiet = np.searchsorted(events, DAYS[1:]) == np.searchsorted(events, DAYS[:-1])
    assert (np.diff(ice)[quiet] >= 0).all()
    assert (jumps < 0).any()


def test_late_conditions_leave_the_range_of_training():
    """Up to a fifth of the last 30 % lies outside the range of the first 60 %."""
    n = len(DAYS)
    outside = {}
    for name in ("detector_temperature", "background", "days_since_launch", "earth_limb_angle"):
        values = true_conditions(SETTINGS, "A", SEED, DAYS)[name]
        train, test = values[: int(0.6 * n)], values[int(0.7 * n) :]
        outside[name] = ((test < train.min()) | (test > train.max())).mean()
    assert 0.005 < outside["detector_temperature"] < 0.3
    assert outside["days_since_launch"] == 1
    assert outside["earth_limb_angle"] < 0.01
    settings = SETTINGS.model_copy(
        update={"conditions": SETTINGS.conditions.model_copy(update={"late_temperature": 0.0})}
    )
    change = (
        true_conditions(SETTINGS, "A", SEED, DAYS)["detector_temperature"]
        - true_conditions(settings, "A", SEED, DAYS)["detector_temperature"]
    )
    assert (change[: int(0.65 * n)] == 0).all()
    assert change[-1] == pytest.approx(1.0, abs=0.1)


def test_the_orbit_modulates_temperature_limb_angle_and_background():
    """Over one orbit, sampled each minute, they go once up and down, with the period of 94 minutes."""
    settings = SETTINGS.model_copy(update={"surveys": (SETTINGS.survey("A").model_copy(update={"visit": 1000}),)})
    days = DAYS[0] + np.arange(188) / 1440
    conditions = true_conditions(settings, "A", SEED, days)
    for name in ("detector_temperature", "earth_limb_angle"):
        one, two = np.split(conditions[name], 2)
        # Nothing else moves by much in 94 minutes.
        assert two == pytest.approx(one, abs=0.01 * np.ptp(one) + 0.005), name
        assert np.count_nonzero(np.diff(np.sign(one - (one.max() + one.min()) / 2))) in (1, 2), name
    near = np.argmin(conditions["earth_limb_angle"])
    assert conditions["background"][near] > np.median(conditions["background"])


def test_reported_telemetry_is_noisy_and_late():
    exact = Reported(
        lag=2.0, detector_temperature=0, focus=0, jitter=0, earth_limb_angle=0, sun_angle=0, background=0, gap_share=0,
        outage_days=1e9,
    )  # fmt: skip
    settings = SETTINGS.model_copy(update={"reported": exact})
    reported = reported_telemetry(settings, "A", SEED, DAYS)
    earlier = true_conditions(settings, "A", SEED, DAYS, lag=2.0)
    for name in ("detector_temperature", "focus", "jitter", "earth_limb_angle", "sun_angle", "background"):
        assert np.array_equal(reported[name], earlier[name]), name
    now = true_conditions(settings, "A", SEED, DAYS)
    assert (reported["earth_limb_angle"] != now["earth_limb_angle"]).mean() > 0.9
    noisy = reported_telemetry(SETTINGS, "A", SEED, DAYS)
    error = noisy["detector_temperature"] - earlier["detector_temperature"]
    assert np.nanstd(error) == pytest.approx(SETTINGS.reported.detector_temperature, rel=0.05)


def test_reported_ice_is_a_coarse_proxy():
    reported = reported_telemetry(SETTINGS, "A", SEED, DAYS)["contamination"]
    true = true_conditions(SETTINGS, "A", SEED, DAYS)["contamination"]
    known = np.isfinite(reported)
    steps = reported[known] / SETTINGS.reported.contamination_step
    assert np.array_equal(steps, np.rint(steps))
    assert np.corrcoef(reported[known], true[known])[0, 1] > 0.9
    assert 0.5 < np.abs(reported - true)[known].mean() < 5  # of up to 40 nm


def test_telemetry_has_gaps_of_single_values_and_of_stretches():
    reported = reported_telemetry(SETTINGS, "A", SEED, DAYS)
    assert np.isfinite(reported["days_since_launch"]).all()
    longest, singles = [], 0
    for name in set(CHANNELS) - {"days_since_launch"}:
        gap = np.isnan(reported[name])
        assert 0.01 < gap.mean() < 0.08, name
        edges = np.diff(np.concatenate([[0], gap.astype(int), [0]]))
        length = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
        singles += int((length == 1).sum())
        if name != "contamination":
            longest.append(length.max())
    assert singles > 100
    assert np.median(longest) >= 8
    assert len(longest) == 6


def test_the_table_is_checked(tmp_path):
    text = 'name = "x"\nseed = 1\n'
    file = tmp_path / "r.toml"
    for table, message in (
        ('[zeropoint]\nrendered = "C"', "wanted one of A, B"),
        ("[zeropoint.reported]\nlags = 1", "lags"),
        ('[[zeropoint.surveys]]\nname = "A"\n[[zeropoint.surveys]]\nname = "A"', "each once"),
    ):
        file.write_text(text + table)
        with pytest.raises(InputError, match=message):
            load_recipe(file)
    file.write_text(text + "[zeropoint]\n")
    assert load_recipe(file).zeropoint == ZeroPoints()
