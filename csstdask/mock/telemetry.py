"""Telemetry of a mock survey: the true conditions, reported with noise, delay and gaps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.mock.conditions import (
    CHANNELS,
    LAUNCH_DAYS,
    MAX_SURVEY_YEARS,
    YEAR,
    decontamination_cycle,
    decontaminations,
    ice_thickness,
    true_conditions,
)
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.zeropoint_settings import ZeroPoints

Float = npt.NDArray[np.float64]


def reported_telemetry(settings: ZeroPoints, name: str, seed: int, days: Float) -> dict[str, Float]:
    """Return the telemetry of a survey's first exposures: noisy, late, NaN in gaps.

    Noise is of the size of housekeeping sensors, so that all of it together moves a prediction by less than the 3 mmag
    that nothing explains. The thickness of ice is a model's: reset at decontaminations, updated daily,
    in steps, with an error of scale that stays the same for a cycle. Only single values of it are missing.

    Parameters
    ----------
    settings : ZeroPoints
    name : str
        Of the survey.
    seed : int
    days : array (n,)
        When the exposures begin, ascending [days since J2000].

    Returns
    -------
    mapping of the names of `CHANNELS` to arrays (n,)
    """
    how, number = settings.reported, settings.number(name)
    days = np.asarray(days, dtype=np.float64)
    n = len(days)
    values = true_conditions(settings, name, seed, days, lag=how.lag)
    normal = stream(seed, Purpose.TELEMETRY, number, 0).normal(size=(n, len(CHANNELS)))
    noise = dict(zip(CHANNELS, normal.T, strict=True))
    for channel in ("detector_temperature", "focus", "earth_limb_angle", "sun_angle"):
        values[channel] = values[channel] + getattr(how, channel) * noise[channel]
    for channel in ("jitter", "background"):
        values[channel] = values[channel] * np.exp(getattr(how, channel) * noise[channel])
    values["days_since_launch"] = days - LAUNCH_DAYS  # a clock, not a sensor
    values["contamination"] = _reported_contamination(settings, name, seed, days)
    lost = stream(seed, Purpose.TELEMETRY, number, 1).random((n, len(CHANNELS))) < how.gap_share
    for position, channel in enumerate(CHANNELS):
        gap = lost[:, position]
        if channel != "contamination":  # no sensor, so no stretch without values
            gap = gap | _outages(settings, number, seed, position, days)
        if channel != "days_since_launch":
            values[channel] = np.where(gap, np.nan, values[channel])
    return values


def _reported_contamination(settings: ZeroPoints, name: str, seed: int, days: Float) -> Float:
    how = settings.reported
    cycle, since = decontamination_cycle(decontaminations(settings, name, seed), days)
    updated = np.floor(since / how.contamination_days) * how.contamination_days
    thickness = ice_thickness(settings, name, seed, days - since + updated)
    rng = stream(seed, Purpose.TELEMETRY, settings.number(name), 2)
    scale = np.exp(how.contamination * rng.normal(size=cycle.max(initial=0) + 1))[cycle]
    return np.asarray(np.rint(thickness * scale / how.contamination_step) * how.contamination_step)


def _outages(settings: ZeroPoints, number: int, seed: int, channel: int, days: Float) -> npt.NDArray[np.bool_]:
    """Return which exposures fall into a stretch without values of a channel (n,)."""
    how = settings.reported
    rng = stream(seed, Purpose.OUTAGE, number, channel)
    several = int(4 * MAX_SURVEY_YEARS * YEAR / how.outage_days) + 10
    between, length = rng.exponential(1.0, (several, 2)).T * np.array([[how.outage_days], [how.outage_length]])
    begin = LAUNCH_DAYS + np.cumsum(between) + np.concatenate([[0.0], np.cumsum(length)[:-1]])
    last = np.searchsorted(begin, days, side="right") - 1
    return np.asarray((last >= 0) & (days < (begin + length)[np.maximum(last, 0)]))
