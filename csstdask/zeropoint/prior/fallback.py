"""Priors that need no network: the nominal zero point, or a level estimated from recent zero points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.zeropoint.memory import Memory
from csstdask.zeropoint.prior.inputs import PriorInputs

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

NOMINAL_SIGMA = 0.3
"""Standard deviation of a zero point about the camera's description [mag]: pre-launch sensitivity, and aging."""
BORROWED_WALK = 0.01
"""Random walk of a zero point about which only earlier values are known [mag day^-1/2]."""
BORROWED_WHITE = 0.01
"""Scatter between exposures about which only earlier values are known [mag]."""
_UNKNOWN_VARIANCE = 1e6
"""Variance of a level without a nominal value [mag^2]: larger than any zero point."""


@dataclass(frozen=True)
class Prior:
    """Zero points of n exposures before their stars are fitted.

    Attributes
    ----------
    value, sigma : float64 array (n,)
        Zero point and its error [mag]; NaN and inf where not even a nominal value is known.
    method : str array (n,)
        ``prior`` (the network), ``borrowed`` (recent zero points only) or ``nominal``.
    """

    value: Float
    sigma: Float
    method: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.value)


def fallback_prior(inputs: PriorInputs) -> Prior:
    """Return the prior without a network: ``borrowed`` where there is a memory, else ``nominal``.

    Parameters
    ----------
    inputs : PriorInputs
        Nominal zero points and memory of n exposures; telemetry, stars and images are ignored.

    Returns
    -------
    Prior
        Priors of the n exposures.
    """
    nominal = np.asarray(inputs.nominal, dtype=float)
    known = np.isfinite(nominal)
    value, sigma = np.where(known, nominal, np.nan), np.where(known, NOMINAL_SIGMA, np.inf)
    method = np.full(len(inputs), "nominal", dtype="<U8")
    if inputs.memory is not None:
        mean, error = predict_from_memory(inputs.memory, nominal)
        borrowed = np.isfinite(mean)
        value, sigma = np.where(borrowed, mean, value), np.where(borrowed, error, sigma)
        method[borrowed] = "borrowed"
    return Prior(value, sigma, method)


def predict_from_memory(memory: Memory, nominal: npt.ArrayLike) -> tuple[Float, Float]:
    """Predict zero points from recent ones only, by a Kalman filter.

    The level follows a random walk at first, and returns to the nominal value in the long run (an Ornstein-Uhlenbeck
    process of variance `NOMINAL_SIGMA` squared). The memory is filtered from its oldest entry to its newest.

    Parameters
    ----------
    memory : Memory
        Recent zero points of n exposures.
    nominal : array-like (n,)
        Nominal zero points [mag]; NaN where unknown: the prediction then rests on the memory alone.

    Returns
    -------
    value, sigma : float64 arrays (n,)
        Predictions and their errors [mag]; NaN and inf without memory.

    Examples
    --------
    >>> from csstdask.zeropoint.memory import build_memory
    >>> memory = build_memory([0.0], [25.1], [0.003], at=[1.0, 10_000.0])
    >>> value, sigma = predict_from_memory(memory, [25.0, 25.0])
    >>> value.round(2).tolist(), sigma.round(2).tolist()
    ([25.1, 25.0], [0.02, 0.3])
    """
    nominal = np.broadcast_to(np.asarray(nominal, dtype=float), (len(memory.value),))
    known_nominal = np.isfinite(nominal)
    level = np.where(known_nominal, nominal, 0.0)
    variance = np.full(len(nominal), np.where(known_nominal, NOMINAL_SIGMA**2, _UNKNOWN_VARIANCE))
    age_of_level = np.full(len(nominal), np.nan)
    for k in range(memory.value.shape[1] - 1, -1, -1):
        value, sigma, age = memory.value[:, k], memory.sigma[:, k], memory.age[:, k]
        solved = np.isfinite(value) & np.isfinite(sigma) & np.isfinite(age)
        dt = np.where(np.isfinite(age_of_level), age_of_level - age, 0.0)
        level, variance = _propagate(level, variance, dt, nominal, solved)
        gain = variance / (variance + sigma**2 + BORROWED_WHITE**2)
        level = np.where(solved, level + gain * (value - level), level)
        variance = np.where(solved, (1 - gain) * variance, variance)
        age_of_level = np.where(solved, age, age_of_level)
    measured = np.isfinite(age_of_level)
    level, variance = _propagate(level, variance, np.where(measured, age_of_level, 0.0), nominal, measured)
    sigma = np.sqrt(variance + BORROWED_WHITE**2)
    return np.where(measured, level, np.nan), np.where(measured, sigma, np.inf)


def _propagate(level: Float, variance: Float, dt: Float, nominal: Float, active: Bool) -> tuple[Float, Float]:
    """Propagate levels by dt days where `active`: towards the nominal value, or by a pure random walk without one."""
    step = np.where(active, np.maximum(dt, 0.0), 0.0)
    long_term = NOMINAL_SIGMA**2
    decay = np.exp(-step * BORROWED_WALK**2 / (2 * long_term))
    known_nominal = np.isfinite(nominal)
    new_level = np.where(known_nominal, np.nan_to_num(nominal) + decay * (level - np.nan_to_num(nominal)), level)
    new_variance = np.where(
        known_nominal, decay**2 * variance + (1 - decay**2) * long_term, variance + step * BORROWED_WALK**2
    )
    return new_level, new_variance
