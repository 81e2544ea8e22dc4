"""Alarms in the history of a detector's zero points: disagreement with what was expected, drift, decontamination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from csstdask.zeropoint.result import ALARM_SIGMA

Float = npt.NDArray[np.float64]
Kind = Literal["disagreement", "drift", "decontamination"]

DRIFT_EXPOSURES = 10
"""Solved exposures whose slope is looked at."""
LEAST_FOR_DRIFT = 5
"""Solved exposures without which there is no slope."""
JUMP = 0.02
"""Rise from one solved exposure to the next from which the camera was decontaminated, or a mode was changed [mag]."""
MEANINGS: dict[Kind, str] = {
    "disagreement": "the stars contradict what was expected without them",
    "drift": "the throughput of the last exposures changes steadily",
    "decontamination": "the throughput has risen at once",
}


@dataclass(frozen=True)
class Alarm:
    """One thing that is worth a look."""

    kind: Kind
    size: float
    """Difference, change over the exposures looked at, or jump [mag]."""
    sigma: float
    """It, in units of its error."""

    @property
    def meaning(self) -> str:
        """Return what it says, in words."""
        return MEANINGS[self.kind]


def find_alarms(days: Float, value: Float, sigma: Float, prior: Float, prior_sigma: Float) -> list[tuple[int, Alarm]]:
    """Return the alarms of one detector, with the exposures they are of, in time order.

    Parameters
    ----------
    days : float64 array (n,)
        Begin of the exposures [day].
    value, sigma : float64 array (n,)
        Zero points of stars alone, and their errors [mag]; NaN where unsolved.
    prior, prior_sigma : float64 array (n,)
        What was expected without the stars.

    Examples
    --------
    >>> days, value = np.arange(4.0), np.array([25.0, 25.001, 25.1, 25.099])
    >>> nothing = np.full(4, np.nan)
    >>> [(row, alarm.kind) for row, alarm in find_alarms(days, value, np.full(4, 0.002), nothing, nothing)]
    [(2, 'decontamination')]
    """
    solved = np.flatnonzero(np.isfinite(value) & np.isfinite(sigma) & np.isfinite(days))
    solved = solved[np.argsort(days[solved], kind="stable")]
    found: list[tuple[int, Alarm]] = []
    before = -1
    for row in solved.tolist():
        difference, error = value[row] - prior[row], float(np.hypot(sigma[row], prior_sigma[row]))
        if np.isfinite(difference) and np.isfinite(error) and abs(difference) > ALARM_SIGMA * error:
            found.append((row, Alarm("disagreement", float(difference), float(difference / error))))
        if before >= 0:
            jump, of_jump = float(value[row] - value[before]), float(np.hypot(sigma[row], sigma[before]))
            if jump > JUMP and jump > ALARM_SIGMA * of_jump:
                found.append((row, Alarm("decontamination", jump, jump / of_jump)))
        # A zero point that is too small by mistake is no level from which the next one has risen.
        if not (np.isfinite(error) and difference < -ALARM_SIGMA * error):
            before = row
    last = solved[-DRIFT_EXPOSURES:]
    if len(last) >= LEAST_FOR_DRIFT and (drift := _drift(days[last], value[last], sigma[last])) is not None:
        found.append((int(last[-1]), drift))
    return found


def _drift(days: Float, value: Float, sigma: Float) -> Alarm | None:
    """Return an alarm if zero points change steadily: a slope beyond its error, which their scatter enlarges."""
    weight = 1 / np.maximum(sigma, 1e-4) ** 2
    time = days - np.average(days, weights=weight)
    spread = float((weight * time**2).sum())
    if spread <= 0:
        return None
    slope = float((weight * time * value).sum() / spread)
    residual = value - np.average(value, weights=weight) - slope * time
    chi2 = float((weight * residual**2).sum()) / (len(value) - 2)
    error = float(np.sqrt(max(chi2, 1.0) / spread))
    length = float(np.ptp(days))
    return Alarm("drift", slope * length, slope / error) if abs(slope) > ALARM_SIGMA * error else None
