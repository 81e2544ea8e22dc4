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

from csstdask.core.constants import DAYS_PER_YEAR
from csstdask.mock.conditions import LAUNCH_DAYS, MAX_SURVEY_YEARS, decontaminations, true_conditions
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.zeropoint_settings import Response, ZeroPoints

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Throughput:
    """Parts of the offset of the zero point from nominal; all arrays (n,) [mag]."""

    explained: Float
    walk: Float
    jumps: Float
    white: Float

    @property
    def offset(self) -> Float:
        """Return the total offset (n,) [mag]."""
        return self.explained + self.walk + self.jumps + self.white


def explained_offset(settings: ZeroPoints, response: Response, conditions: Mapping[str, Float]) -> Float:
    """Return the part of the offset that depends on the true conditions.

    With t = T - nominal [K], f = focus / 10 um, j = ln(jitter / nominal), b = ln(background / nominal), the Earth-limb
    angle e, the Sun angle s, the ice thickness c and the age a in years, it is

        - contamination c (1 + contamination_cold t) + temperature t + temperature_square t^2
        - (focus + focus_jitter j) f^2 - jitter j - limb exp((15 deg - e) / limb_scale) (1 + t / 4)
        + sun cos(s) + background b - ageing a

    Each term has a scatter of 2 to 20 mmag and the sum one of 20 to 40 mmag, typical of a space telescope between
    decontaminations. The products (ice and temperature, focus and jitter, limb and temperature) are invented; with
    them, a linear model leaves a residual of 3 to 6 mmag.

    Parameters
    ----------
    settings : ZeroPoints
        Table of the recipe.
    response : Response
        Coefficients.
    conditions : mapping
        True conditions, from `csstdask.mock.conditions.true_conditions`.

    Returns
    -------
    float64 array (n,)
        Offset of the zero point [mag].
    """
    nominal = settings.conditions
    t = conditions["detector_temperature"] - nominal.temperature
    f = conditions["focus"] / 10
    j = np.log(conditions["jitter"] / nominal.jitter)
    b = np.log(conditions["background"] / nominal.background)
    age = conditions["days_since_launch"] / DAYS_PER_YEAR
    limb = np.exp((15.0 - conditions["earth_limb_angle"]) / response.limb_scale)
    offset = -response.contamination * conditions["contamination"] * (1 + response.contamination_cold * t)
    offset += response.temperature * t + response.temperature_square * t**2
    offset -= (response.focus + response.focus_jitter * j) * f**2 + response.jitter * j
    offset -= response.limb * limb * (1 + t / 4)
    offset += response.sun * np.cos(np.radians(conditions["sun_angle"])) + response.background * b
    return np.asarray(offset - response.ageing * age)


def throughput(
    settings: ZeroPoints, name: str, seed: int, days: Float, conditions: Mapping[str, Float] | None = None
) -> Throughput:
    """Return the parts of the offset of a survey's first exposures.

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
    conditions : mapping, optional
        True conditions of the same exposures; default: computed.

    Returns
    -------
    Throughput
    """
    survey, number = settings.survey(name), settings.number(name)
    days = np.asarray(days, dtype=np.float64)
    conditions = true_conditions(settings, name, seed, days) if conditions is None else conditions
    normal = stream(seed, Purpose.THROUGHPUT, number, 0).normal(size=(len(days), 2))
    # The walk starts at 0. 2 mmag / sqrt(day) is 1 mmag between visits and 40 mmag per year, comparable to the part
    # that telemetry explains.
    steps = survey.walk * np.sqrt(np.diff(days, prepend=days[:1])) * normal[:, 0]
    return Throughput(
        explained=explained_offset(settings, survey.response, conditions),
        walk=np.cumsum(steps),
        jumps=_jumps(settings, name, seed, days),
        white=survey.white * normal[:, 1],
    )


def _jumps(settings: ZeroPoints, name: str, seed: int, days: Float) -> Float:
    """Return the sum of all jumps since the first exposure (n,) [mag].

    Jumps at decontaminations are positive and other steps, equally frequent, negative, so that the sum has no trend.
    """
    if len(days) == 0:
        return np.zeros(0)
    nominal, number = settings.conditions, settings.number(name)
    events = decontaminations(settings, name, seed)
    up = stream(seed, Purpose.DECONTAMINATION, number, 2).uniform(*nominal.decontamination_jump, len(events))
    n_steps = int(4 * MAX_SURVEY_YEARS * DAYS_PER_YEAR / nominal.step_days) + 10
    gaps = stream(seed, Purpose.DECONTAMINATION, number, 3).exponential(nominal.step_days, n_steps)
    other = LAUNCH_DAYS + np.cumsum(gaps)
    down = stream(seed, Purpose.DECONTAMINATION, number, 4).uniform(*nominal.step, len(other))
    total = np.zeros(len(days))
    for when, size in ((events, up), (other, down)):
        sums = np.concatenate([[0.0], np.cumsum(size)])
        count = np.searchsorted(when, days, side="right")
        total += sums[count] - sums[count[0]]
    return total
