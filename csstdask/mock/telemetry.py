"""Telemetry of a mock survey: the true conditions, reported with noise, delay and gaps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.core.constants import DAYS_PER_YEAR
from csstdask.mock.conditions import (
    CHANNELS,
    LAUNCH_DAYS,
    MAX_SURVEY_YEARS,
    decontamination_cycle,
    decontaminations,
    ice_thickness,
    true_conditions,
)
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.zeropoint_settings import ZeroPoints

Float = npt.NDArray[np.float64]


def reported_telemetry(settings: ZeroPoints, name: str, seed: int, days: Float) -> dict[str, Float]:
    """Return the telemetry of the first exposures of a survey: noisy, delayed, with NaN in gaps.

    The noise is typical of housekeeping sensors. Together it changes a prediction by less than the independent scatter
    of 3 mmag. The ice thickness is that of a model: reset at decontaminations, updated daily in steps, with a scale
    error that is constant within a cycle. It has no outages, only single missing values.

    Parameters
    ----------
    settings : ZeroPoints
        Table of the recipe.
    name : str
        Name of the survey.
    seed : int
        Seed of the recipe.
    days : float64 array (n,)
        Start times of the exposures, ascending [days since J2000].

    Returns
    -------
    dict
        Float64 arrays (n,) for each name of `csstdask.mock.conditions.CHANNELS`, in the same units.
    """
    reported, number = settings.reported, settings.number(name)
    days = np.asarray(days, dtype=np.float64)
    n = len(days)
    values = true_conditions(settings, name, seed, days, lag=reported.lag)
    normal = stream(seed, Purpose.TELEMETRY, number, 0).normal(size=(n, len(CHANNELS)))
    noise = dict(zip(CHANNELS, normal.T, strict=True))
    for channel in ("detector_temperature", "focus", "earth_limb_angle", "sun_angle"):
        values[channel] = values[channel] + getattr(reported, channel) * noise[channel]
    for channel in ("jitter", "background"):
        values[channel] = values[channel] * np.exp(getattr(reported, channel) * noise[channel])
    values["days_since_launch"] = days - LAUNCH_DAYS  # a clock, not a sensor
    values["contamination"] = _reported_contamination(settings, name, seed, days)
    missing = stream(seed, Purpose.TELEMETRY, number, 1).random((n, len(CHANNELS))) < reported.gap_share
    for position, channel in enumerate(CHANNELS):
        gap = missing[:, position]
        if channel != "contamination":  # a model, not a sensor: no outages
            gap = gap | _outages(settings, number, seed, position, days)
        if channel != "days_since_launch":
            values[channel] = np.where(gap, np.nan, values[channel])
    return values


def _reported_contamination(settings: ZeroPoints, name: str, seed: int, days: Float) -> Float:
    """Return the ice thickness of the model that telemetry reports (n,) [nm]."""
    reported = settings.reported
    cycle, since = decontamination_cycle(decontaminations(settings, name, seed), days)
    updated = np.floor(since / reported.contamination_days) * reported.contamination_days
    thickness = ice_thickness(settings, name, seed, days - since + updated)
    rng = stream(seed, Purpose.TELEMETRY, settings.number(name), 2)
    scale = np.exp(reported.contamination * rng.normal(size=cycle.max(initial=0) + 1))[cycle]
    return np.asarray(np.rint(thickness * scale / reported.contamination_step) * reported.contamination_step)


def _outages(settings: ZeroPoints, number: int, seed: int, channel: int, days: Float) -> npt.NDArray[np.bool_]:
    """Return which exposures are in an outage of a channel, a bool array (n,)."""
    reported = settings.reported
    rng = stream(seed, Purpose.OUTAGE, number, channel)
    n_outages = int(4 * MAX_SURVEY_YEARS * DAYS_PER_YEAR / reported.outage_days) + 10
    between, length = rng.exponential(1.0, (n_outages, 2)).T * np.array(
        [[reported.outage_days], [reported.outage_length]]
    )
    begin = LAUNCH_DAYS + np.cumsum(between) + np.concatenate([[0.0], np.cumsum(length)[:-1]])
    last = np.searchsorted(begin, days, side="right") - 1
    return np.asarray((last >= 0) & (days < (begin + length)[np.maximum(last, 0)]))
