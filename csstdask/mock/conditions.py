"""The true conditions of the exposures of a mock survey: times, orbit, temperature, focus, ice.

Arrays are over the exposures of one survey, in time order. The draws of exposure i do not depend on how many exposures
are requested: each kind of draw has a separate stream, which is read in order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.schedule import LAUNCH
from csstdask.mock.zeropoint_settings import Survey, ZeroPoints

Float = npt.NDArray[np.float64]

CHANNELS = (
    "detector_temperature", "focus", "jitter", "earth_limb_angle", "sun_angle", "background", "days_since_launch",
    "contamination",
)  # fmt: skip
"""Names of the telemetry."""

CHANNEL_UNITS = ("K", "um", "arcsec", "deg", "deg", "electron s-1 pixel-1", "d", "nm")

YEAR = 365.25
"""[d]"""

_J2000 = np.datetime64("2000-01-01T12:00:00", "us")

_DAY = 86400.0
"""[s]"""

MAX_SURVEY_YEARS = 100.0
"""No survey lasts longer [yr]."""


def days_since_2000(time: np.datetime64 | npt.NDArray[np.datetime64]) -> Float:
    """Return days since J2000 (12:00 UTC on 2000-01-01; leap seconds are ignored).

    Examples
    --------
    >>> float(days_since_2000(np.datetime64("2000-01-03T00:00:00")))
    1.5
    """
    return np.asarray((time - _J2000) / np.timedelta64(1, "s") / _DAY, dtype=np.float64)


LAUNCH_DAYS = float(days_since_2000(LAUNCH))
"""Launch in days since J2000."""


def survey_days(settings: ZeroPoints, name: str, seed: int, n: int) -> Float:
    """Return when the first n exposures of a survey begin [days since J2000].

    A visit is `visit` exposures of one field, `cadence` apart. The time from visit to visit scatters by half of its
    mean, as slews, the South Atlantic anomaly and occultations have it; the mean fills the survey's years.
    """
    survey = settings.survey(name)
    visit, within = np.divmod(np.arange(n), survey.visit)
    mean = survey.years * YEAR * survey.visit / survey.exposures
    rng = stream(seed, Purpose.ZEROPOINT_SCHEDULE, settings.number(name))
    gaps = mean * rng.uniform(0.5, 1.5, -(-n // survey.visit))
    start = LAUNCH_DAYS + survey.start * YEAR + np.cumsum(gaps)
    return np.asarray(start[visit] + within * survey.cadence / _DAY)


def decontaminations(settings: ZeroPoints, name: str, seed: int) -> Float:
    """Return when a survey's camera is decontaminated [days since J2000], for longer than any survey lasts."""
    low, high = settings.conditions.decontamination
    rng = stream(seed, Purpose.DECONTAMINATION, settings.number(name))
    gaps = rng.uniform(low, high, int(MAX_SURVEY_YEARS * YEAR / low) + 1)
    # The first may follow launch at once: the phase of a cycle in which a survey begins is random.
    gaps[0] *= rng.random()
    return np.asarray(LAUNCH_DAYS + np.cumsum(gaps))


def true_conditions(settings: ZeroPoints, name: str, seed: int, days: Float, *, lag: float = 0.0) -> dict[str, Float]:
    """Return the true conditions of a survey's first exposures.

    Parameters
    ----------
    settings : ZeroPoints
    name : str
        Of the survey.
    seed : int
    days : array (n,)
        When the exposures begin, ascending [days since J2000].
    lag : float
        What varies with time is that of `lag` earlier [min]; what varies from exposure to exposure stays.

    Returns
    -------
    mapping of the names of `CHANNELS` to arrays (n,)
    """
    now, survey, number = settings.conditions, settings.survey(name), settings.number(name)
    n = len(days)
    time = np.asarray(days, dtype=np.float64) - lag / 1440.0
    years = (time - LAUNCH_DAYS) / YEAR
    orbit = 2 * np.pi * np.mod(time * 1440.0 / now.orbit, 1.0)
    late = np.clip(((years - survey.start) / survey.years - now.late_from) / (1 - now.late_from + 1e-9), 0, None)
    phases = stream(seed, Purpose.CONDITIONS, number, 0).uniform(0, 2 * np.pi, 5)
    limb_middle, limb_swing, limb_phase, sun_offset, sky = _field_conditions(survey, number, seed, n)
    scatter = stream(seed, Purpose.CONDITIONS, number, 1).normal(size=(n, 2))

    # From 15 deg, where exposures are not allowed to be, to 110 deg: the range of a low orbit.
    limb = np.clip(limb_middle + limb_swing * np.sin(orbit + limb_phase), 15.0, None)
    sun = np.clip(95 + 30 * np.sin(2 * np.pi * years + phases[0]) + sun_offset, 50.0, 175.0)
    temperature = now.temperature + now.temperature_orbit * np.sin(orbit + phases[1])
    temperature += now.temperature_year * np.sin(2 * np.pi * years + phases[2])
    temperature += now.temperature_slow * np.sin(2 * np.pi * years * YEAR / 210 + phases[3])
    temperature += now.late_temperature * late
    focus = now.focus_slope * (temperature - now.temperature)
    focus += now.focus_slow * np.sin(2 * np.pi * years * YEAR / 160 + phases[4]) + now.focus_scatter * scatter[:, 0]
    # Zodiacal light falls with the distance from the Sun, scattered light with that from the Earth's limb.
    background = now.background * (0.75 + 0.6 * np.exp((50 - sun) / 40) + 1.2 * np.exp((15 - limb) / 15))
    background *= np.exp(sky) * (1 + now.late_background * late)
    return {
        "detector_temperature": temperature,
        "focus": focus,
        "jitter": now.jitter * np.exp(now.jitter_scatter * scatter[:, 1]),
        "earth_limb_angle": limb,
        "sun_angle": sun,
        "background": background,
        "days_since_launch": time - LAUNCH_DAYS,
        "contamination": ice_thickness(settings, name, seed, time),
    }


def _field_conditions(survey: Survey, number: int, seed: int, n: int) -> Float:
    """Return what the pointing decides, the same for a visit (5, n).

    The middle, swing and phase of the Earth-limb angle over an orbit, an offset of the Sun angle, and the natural log
    of a factor on the background.
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
    """Return the thickness of ice: saturating growth from what the last decontamination left [nm]."""
    now = settings.conditions
    cycle, since = decontamination_cycle(decontaminations(settings, name, seed), time)
    rng = stream(seed, Purpose.DECONTAMINATION, settings.number(name), 1)
    rest, strength = rng.random((cycle.max(initial=0) + 1, 2))[cycle].T
    # Outgassing slows down over the mission and differs from cycle to cycle by up to 15 %.
    limit = now.contamination * (0.85 + 0.3 * strength)
    rest = 0.1 * limit * rest
    return np.asarray(rest + (limit - rest) * -np.expm1(-since / now.contamination_days))


def decontamination_cycle(events: Float, time: Float) -> tuple[npt.NDArray[np.int64], Float]:
    """Return how many events came before each time, and the time since the last one (or since launch) [d]."""
    cycle = np.searchsorted(events, time, side="right")
    last = np.concatenate([[LAUNCH_DAYS], events])[cycle]
    return cycle.astype(np.int64), np.maximum(time - last, 0.0)
