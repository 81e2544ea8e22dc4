"""Throughput of a mock telescope: the offset of the zero point from nominal.

The offset is the sum of four parts:

* explained: a smooth function of the true conditions, `explained_offset`;
* walk: a random walk, for slow changes that no sensor measures;
* jumps: steps at decontaminations, beyond what the reported ice thickness explains, and at other times;
* white: independent from exposure to exposure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.mock.conditions import LAUNCH_DAYS, MAX_SURVEY_YEARS, YEAR, decontaminations, true_conditions
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.zeropoint_settings import Response, ZeroPoints

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Throughput:
    """Parts of the zero point's offset from nominal, each (n,) [mag]."""

    explained: Float
    walk: Float
    jumps: Float
    white: Float

    @property
    def offset(self) -> Float:
        """Return the sum of the parts (n,)."""
        return self.explained + self.walk + self.jumps + self.white


def explained_offset(settings: ZeroPoints, response: Response, conditions: Mapping[str, Float]) -> Float:
    """Return the part of the offset that the true conditions decide (n,) [mag].

    With t = T - nominal [K], f = focus / 10 um, j = ln(jitter / nominal), b = ln(background / nominal), e the
    Earth-limb and s the Sun angle, c the thickness of ice and a the age in years:

        - contamination c (1 + contamination_cold t) + temperature t + temperature_square t^2
        - (focus + focus_jitter j) f^2 - jitter j - limb exp((15 deg - e) / limb_scale) (1 + t / 4)
        + sun cos(s) + background b - ageing a

    The sizes give each term a scatter of 2 to 20 mmag and the sum one of 20 to 40 mmag: what a space telescope
    without an atmosphere loses and regains between decontaminations. The products (ice and temperature, focus and
    jitter, limb and temperature) are there so that a linear model is not enough: it leaves 3 to 6 mmag. They are
    invented.
    """
    nominal = settings.conditions
    t = conditions["detector_temperature"] - nominal.temperature
    f = conditions["focus"] / 10
    j = np.log(conditions["jitter"] / nominal.jitter)
    b = np.log(conditions["background"] / nominal.background)
    age = conditions["days_since_launch"] / YEAR
    near = np.exp((15.0 - conditions["earth_limb_angle"]) / response.limb_scale)
    offset = -response.contamination * conditions["contamination"] * (1 + response.contamination_cold * t)
    offset += response.temperature * t + response.temperature_square * t**2
    offset -= (response.focus + response.focus_jitter * j) * f**2 + response.jitter * j
    offset -= response.limb * near * (1 + t / 4)
    offset += response.sun * np.cos(np.radians(conditions["sun_angle"])) + response.background * b
    return np.asarray(offset - response.ageing * age)


def throughput(
    settings: ZeroPoints, name: str, seed: int, days: Float, conditions: Mapping[str, Float] | None = None
) -> Throughput:
    """Return the parts of the offset of a survey's first exposures.

    Parameters
    ----------
    settings : ZeroPoints
    name : str
        Of the survey.
    seed : int
    days : array (n,)
        When the exposures begin, ascending [days since J2000].
    conditions : mapping, optional
        `true_conditions` of the same exposures, if they are at hand.
    """
    survey, number = settings.survey(name), settings.number(name)
    days = np.asarray(days, dtype=np.float64)
    known = true_conditions(settings, name, seed, days) if conditions is None else conditions
    normal = stream(seed, Purpose.THROUGHPUT, number, 0).normal(size=(len(days), 2))
    # The walk begins at 0 with the first exposure. 2 mmag / sqrt(day) is 1 mmag from visit to visit and 40 mmag a year,
    # of the size of what telemetry explains.
    steps = survey.walk * np.sqrt(np.diff(days, prepend=days[:1])) * normal[:, 0]
    return Throughput(
        explained=explained_offset(settings, survey.response, known),
        walk=np.cumsum(steps),
        jumps=_jumps(settings, name, seed, days),
        white=survey.white * normal[:, 1],
    )


def _jumps(settings: ZeroPoints, name: str, seed: int, days: Float) -> Float:
    """Return the sum of all jumps since the first exposure (n,) [mag].

    Decontaminations jump upward; other steps, as often, downward: their sum wanders without a trend.
    """
    if len(days) == 0:
        return np.zeros(0)
    now, number = settings.conditions, settings.number(name)
    events = decontaminations(settings, name, seed)
    up = stream(seed, Purpose.DECONTAMINATION, number, 2).uniform(*now.decontamination_jump, len(events))
    several = int(4 * MAX_SURVEY_YEARS * YEAR / now.step_days) + 10
    gaps = stream(seed, Purpose.DECONTAMINATION, number, 3).exponential(now.step_days, several)
    other = LAUNCH_DAYS + np.cumsum(gaps)
    down = stream(seed, Purpose.DECONTAMINATION, number, 4).uniform(*now.step, len(other))
    total = np.zeros(len(days))
    for when, size in ((events, up), (other, down)):
        sums = np.concatenate([[0.0], np.cumsum(size)])
        count = np.searchsorted(when, days, side="right")
        total += sums[count] - sums[count[0]]
    return total
