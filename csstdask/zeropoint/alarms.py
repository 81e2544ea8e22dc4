"""Find alarms in the history of a detector's zero points: disagreement with the prior, drift, decontamination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from csstdask.zeropoint.result import ALARM_SIGMA

Float = npt.NDArray[np.float64]
Kind = Literal["disagreement", "drift", "decontamination"]

DRIFT_EXPOSURES = 10
"""Number of latest solved exposures whose slope is tested."""
MIN_EXPOSURES_FOR_DRIFT = 5
"""Smallest number of solved exposures for a slope."""
MIN_JUMP = 0.02
"""Smallest rise between solved exposures that indicates a decontamination or a change of mode [mag]."""
MIN_SIGMA = 1e-4
"""Smallest error of a zero point in the fit of a slope [mag]."""
MEANINGS: dict[Kind, str] = {
    "disagreement": "the stars contradict the prediction without them",
    "drift": "the throughput of the latest exposures changes steadily",
    "decontamination": "the throughput has risen suddenly",
}


@dataclass(frozen=True)
class Alarm:
    """One alarm."""

    kind: Kind
    """Kind of the alarm."""
    size: float
    """Difference, change over the tested exposures, or jump [mag]."""
    sigma: float
    """The same, in units of its error."""

    @property
    def meaning(self) -> str:
        """Explanation of the alarm in words."""
        return MEANINGS[self.kind]


def find_alarms(days: Float, value: Float, sigma: Float, prior: Float, prior_sigma: Float) -> list[tuple[int, Alarm]]:
    """Find the alarms of one detector.

    Parameters
    ----------
    days : float64 array (n,)
        Start of the exposures [day].
    value, sigma : float64 array (n,)
        Zero points from stars alone, and their errors [mag]; NaN where unsolved.
    prior, prior_sigma : float64 array (n,)
        Predictions without the stars, and their errors [mag]; NaN where there is none.

    Returns
    -------
    list of (int, Alarm)
        Row of the exposure and alarm, in time order; a drift comes last.

    Examples
    --------
    >>> days, value = np.arange(4.0), np.array([25.0, 25.001, 25.1, 25.099])
    >>> no_prior = np.full(4, np.nan)
    >>> [(row, alarm.kind) for row, alarm in find_alarms(days, value, np.full(4, 0.002), no_prior, no_prior)]
    [(2, 'decontamination')]
    """
    solved = np.flatnonzero(np.isfinite(value) & np.isfinite(sigma) & np.isfinite(days))
    solved = solved[np.argsort(days[solved], kind="stable")]
    alarms: list[tuple[int, Alarm]] = []
    previous = -1
    for row in solved.tolist():
        difference, error = value[row] - prior[row], float(np.hypot(sigma[row], prior_sigma[row]))
        if np.isfinite(difference) and np.isfinite(error) and abs(difference) > ALARM_SIGMA * error:
            alarms.append((row, Alarm("disagreement", float(difference), float(difference / error))))
        if previous >= 0:
            jump, jump_error = float(value[row] - value[previous]), float(np.hypot(sigma[row], sigma[previous]))
            if jump > MIN_JUMP and jump > ALARM_SIGMA * jump_error:
                alarms.append((row, Alarm("decontamination", jump, jump / jump_error)))
        # A zero point that is wrongly too small must not make the next one look like a rise.
        if not (np.isfinite(error) and difference < -ALARM_SIGMA * error):
            previous = row
    latest = solved[-DRIFT_EXPOSURES:]
    if len(latest) >= MIN_EXPOSURES_FOR_DRIFT:
        drift = _find_drift(days[latest], value[latest], sigma[latest])
        alarms += [] if drift is None else [(int(latest[-1]), drift)]
    return alarms


def _find_drift(days: Float, value: Float, sigma: Float) -> Alarm | None:
    """Return an alarm if the slope is significant; its error includes the scatter of the zero points."""
    weight = 1 / np.maximum(sigma, MIN_SIGMA) ** 2
    time = days - np.average(days, weights=weight)
    spread = float((weight * time**2).sum())
    if spread <= 0:
        return None
    slope = float((weight * time * value).sum() / spread)
    residual = value - np.average(value, weights=weight) - slope * time
    chi2 = float((weight * residual**2).sum()) / (len(value) - 2)
    error = float(np.sqrt(max(chi2, 1.0) / spread))
    duration = float(np.ptp(days))
    return Alarm("drift", slope * duration, slope / error) if abs(slope) > ALARM_SIGMA * error else None
