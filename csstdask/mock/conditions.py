"""The true conditions of the exposures of a mock survey: times, orbit, temperature, focus, ice.

Arrays are over the exposures of one survey, in time order. The draws of exposure i do not depend on how many exposures
are requested: each kind of draw has a separate stream, which is read in order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.core.constants import DAYS_PER_YEAR, SECONDS_PER_DAY, days_since_j2000
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.schedule import LAUNCH
from csstdask.mock.zeropoint_settings import Survey, ZeroPoints

Float = npt.NDArray[np.float64]

CHANNELS = (
    "detector_temperature", "focus", "jitter", "earth_limb_angle", "sun_angle", "background", "days_since_launch",
    "contamination",
)  # fmt: skip
"""Names of the conditions and of the telemetry channels."""
MAX_SURVEY_YEARS = 100.0
"""Upper limit of the length of a survey [yr]."""
LAUNCH_DAYS = float(days_since_j2000(LAUNCH))
"""Launch in days since J2000."""


def survey_days(settings: ZeroPoints, name: str, seed: int, n: int) -> Float:
    """Return the start times of the first n exposures of a survey [days since J2000].

    A visit consists of `visit` exposures of one field, `cadence` seconds apart. The time between visits is uniform
    between half and one and a half times its mean (slews, South Atlantic anomaly, occultations), and the mean fills
    the length of the survey.

    Parameters
    ----------
    settings : ZeroPoints
        Table of the recipe.
    name : str
        Name of the survey.
    seed : int
        Seed of the recipe.
    n : int
        Number of exposures.

    Returns
    -------
    float64 array (n,)
    """
    survey = settings.survey(name)
    visit, within = np.divmod(np.arange(n), survey.visit)
    mean = survey.years * DAYS_PER_YEAR * survey.visit / survey.exposures
    rng = stream(seed, Purpose.ZEROPOINT_SCHEDULE, settings.number(name))
    gaps = mean * rng.uniform(0.5, 1.5, -(-n // survey.visit))
    start = LAUNCH_DAYS + survey.start * DAYS_PER_YEAR + np.cumsum(gaps)
    return np.asarray(start[visit] + within * survey.cadence / SECONDS_PER_DAY)


def decontaminations(settings: ZeroPoints, name: str, seed: int) -> Float:
    """Return the times of decontaminations [days since J2000], for longer than any survey lasts."""
    low, high = settings.conditions.decontamination
    rng = stream(seed, Purpose.DECONTAMINATION, settings.number(name))
    gaps = rng.uniform(low, high, int(MAX_SURVEY_YEARS * DAYS_PER_YEAR / low) + 1)
    # The phase of the cycle at launch is random.
    gaps[0] *= rng.random()
    return np.asarray(LAUNCH_DAYS + np.cumsum(gaps))


def true_conditions(settings: ZeroPoints, name: str, seed: int, days: Float, *, lag: float = 0.0) -> dict[str, Float]:
    """Return the true conditions of a survey's first exposures.

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
    lag : float
        Delay of the conditions that vary with time [min]; those that vary between exposures are not delayed.

    Returns
    -------
    dict
        Float64 arrays (n,) for each name of `CHANNELS`: temperature [K], focus [um], jitter [arcsec], angles [deg],
        background [e-/s/pixel], time since launch [d], ice thickness [nm].
    """
    nominal, survey, number = settings.conditions, settings.survey(name), settings.number(name)
    n = len(days)
    time = np.asarray(days, dtype=np.float64) - lag / 1440.0
    years = (time - LAUNCH_DAYS) / DAYS_PER_YEAR
    orbit = 2 * np.pi * np.mod(time * 1440.0 / nominal.orbit, 1.0)
    late = np.clip(
        ((years - survey.start) / survey.years - nominal.late_from) / (1 - nominal.late_from + 1e-9), 0, None
    )
    phases = stream(seed, Purpose.CONDITIONS, number, 0).uniform(0, 2 * np.pi, 5)
    limb_mean, limb_amplitude, limb_phase, sun_offset, sky = _field_conditions(survey, number, seed, n)
    scatter = stream(seed, Purpose.CONDITIONS, number, 1).normal(size=(n, 2))

    # From 15 deg, the avoidance angle, to 110 deg: the range of a low orbit.
    limb = np.clip(limb_mean + limb_amplitude * np.sin(orbit + limb_phase), 15.0, None)
    sun = np.clip(95 + 30 * np.sin(2 * np.pi * years + phases[0]) + sun_offset, 50.0, 175.0)
    temperature = nominal.temperature + nominal.temperature_orbit * np.sin(orbit + phases[1])
    temperature += nominal.temperature_year * np.sin(2 * np.pi * years + phases[2])
    temperature += nominal.temperature_slow * np.sin(2 * np.pi * years * DAYS_PER_YEAR / 210 + phases[3])
    temperature += nominal.late_temperature * late
    focus = nominal.focus_slope * (temperature - nominal.temperature)
    focus += (
        nominal.focus_slow * np.sin(2 * np.pi * years * DAYS_PER_YEAR / 160 + phases[4])
        + nominal.focus_scatter * scatter[:, 0]
    )
    # Zodiacal light decreases with the Sun angle, scattered light with the Earth-limb angle.
    background = nominal.background * (0.75 + 0.6 * np.exp((50 - sun) / 40) + 1.2 * np.exp((15 - limb) / 15))
    background *= np.exp(sky) * (1 + nominal.late_background * late)
    return {
        "detector_temperature": temperature,
        "focus": focus,
        "jitter": nominal.jitter * np.exp(nominal.jitter_scatter * scatter[:, 1]),
        "earth_limb_angle": limb,
        "sun_angle": sun,
        "background": background,
        "days_since_launch": time - LAUNCH_DAYS,
        "contamination": ice_thickness(settings, name, seed, time),
    }


def _field_conditions(survey: Survey, number: int, seed: int, n: int) -> Float:
    """Return properties of the pointing, equal for all exposures of a visit (5, n).

    These are the mean, amplitude and phase of the Earth-limb angle over an orbit, an offset of the Sun angle, and the
    natural log of a factor on the background.
    """
    visit = np.arange(n) // survey.visit
    rng = stream(seed, Purpose.ZEROPOINT_FIELD, number)
    uniform = rng.random((-(-n // survey.visit), 5))[visit].T
    return np.stack(
        [
            40 + 35 * uniform[0],
            10 + 20 * uniform[1],
            2 * np.pi * uniform[2],
            50 * (uniform[3] - 0.5),
            0.2 * (uniform[4] - 0.5),
        ]
    )


def ice_thickness(settings: ZeroPoints, name: str, seed: int, time: Float) -> Float:
    """Return the ice thickness: saturating growth from the residue of the last decontamination [nm]."""
    nominal = settings.conditions
    cycle, since = decontamination_cycle(decontaminations(settings, name, seed), time)
    rng = stream(seed, Purpose.DECONTAMINATION, settings.number(name), 1)
    residue, strength = rng.random((cycle.max(initial=0) + 1, 2))[cycle].T
    # The saturation thickness differs between cycles by up to 15 %.
    limit = nominal.contamination * (0.85 + 0.3 * strength)
    residue = 0.1 * limit * residue
    return np.asarray(residue + (limit - residue) * -np.expm1(-since / nominal.contamination_days))


def decontamination_cycle(events: Float, time: Float) -> tuple[npt.NDArray[np.int64], Float]:
    """Return the number of events before each time, and the time since the last one or since launch [d].

    Parameters
    ----------
    events : float64 array (event,)
        Times of the events, ascending [days since J2000].
    time : float64 array (n,)
        Times [days since J2000].
    """
    cycle = np.searchsorted(events, time, side="right")
    last = np.concatenate([[LAUNCH_DAYS], events])[cycle]
    return cycle.astype(np.int64), np.maximum(time - last, 0.0)
