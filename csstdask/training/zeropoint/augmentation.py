"""Withhold and degrade inputs at random, so that exposures with gaps are within the domain of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.zeropoint.prior import PriorArrays

if TYPE_CHECKING:
    from csstdask.training.zeropoint.fit import FitSettings

CHANNEL_GAPS = 0.3
"""Probability that a channel of telemetry is missing, in exposures with gaps."""
EXPOSURES_WITH_GAPS = 1 / 3
"""Fraction of exposures with gaps in the telemetry."""
LONG_OUTAGES = 0.3
"""Fraction of gaps that extend over the memory."""
DEGRADED_NOISE = (0.004, 0.06)
"""Smallest and largest noise of a degraded memory [mag]: from a hundred stars to one."""
RUN_LENGTH = 5.0
"""Mean number of successive entries of one field."""
DEGRADED_RUNS = 0.7
"""Fraction of runs that are degraded, in a degraded memory."""
WRONG_FRACTION = 0.06
"""Fraction of wrong values among the noisiest entries."""
WRONG_SIZE = 0.15
"""Standard deviation of wrong values [mag]."""


def drop_inputs(arrays: PriorArrays, settings: FitSettings, rng: np.random.Generator) -> PriorArrays:
    """Withhold telemetry, memory, stars and images at random.

    Parameters
    ----------
    arrays : PriorArrays
        Inputs of n exposures; not modified.
    settings : FitSettings
        Fractions of exposures.
    rng : numpy.random.Generator
        Source of random numbers.
    """
    n, t = arrays.telemetry.shape
    telemetry, memory = arrays.telemetry.copy(), arrays.memory.copy()
    history, stars = arrays.memory_telemetry.copy(), arrays.stars.copy()
    n_stars, image = arrays.n_stars.copy(), arrays.image.copy()
    gaps = (rng.random((n, t)) < CHANNEL_GAPS) & (rng.random((n, 1)) < EXPOSURES_WITH_GAPS)
    no_telemetry = rng.random((n,)) < settings.drop_telemetry
    telemetry[gaps | no_telemetry[:, None]] = np.nan
    history[no_telemetry] = np.nan
    # A channel in a long outage is also missing from the memory.
    history[np.broadcast_to((gaps & (rng.random((n, 1)) < LONG_OUTAGES))[:, None], history.shape)] = np.nan
    no_memory = rng.random((n,)) < settings.drop_memory
    memory[no_memory] = history[no_memory] = np.nan
    k = memory.shape[1]
    if k > 1:
        without_newest = np.flatnonzero(~no_memory & (rng.random((n,)) < settings.drop_memory))
        for row, first in zip(without_newest, rng.integers(1, k, len(without_newest)), strict=True):
            memory[row], history[row] = _from_entry(memory[row], first), _from_entry(history[row], first)
    memory = degrade_memory(memory, settings.degrade_memory, rng)
    no_stars = rng.random((n,)) < settings.drop_stars
    stars[no_stars], n_stars[no_stars] = np.nan, 0
    image[rng.random((n,)) < settings.drop_image] = np.nan
    return PriorArrays(telemetry, memory, history, stars, n_stars, image, arrays.nominal)


def degrade_memory(memory: npt.NDArray[Any], fraction: float, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Make the memory noisier for a fraction of the exposures, with a few wrong values.

    Noise has one size for runs of entries, as the exposures of one field are alike, and their errors include it. Wrong
    values, those of a variable or blended star, have no larger error.

    Parameters
    ----------
    memory : array (n, K, 3)
        Zero point minus nominal [mag], sigma [mag] and age [d]; not modified.
    fraction : float
        Fraction of exposures.
    rng : numpy.random.Generator
        Source of random numbers.
    """
    n, k, _ = memory.shape
    out = memory.copy()
    if fraction <= 0 or k == 0:
        return out
    run: npt.NDArray[np.int64] = np.cumsum(rng.random((n, k)) < 1 / RUN_LENGTH, axis=1, dtype=np.int64)
    log_size = rng.uniform(np.log(DEGRADED_NOISE[0]), np.log(DEGRADED_NOISE[1]), (n, k + 1))
    size = np.exp(np.take_along_axis(log_size, run, axis=1))
    size *= (rng.random((n, k + 1)) < DEGRADED_RUNS)[np.arange(n)[:, None], run] * (rng.random((n, 1)) < fraction)
    wrong = (rng.random((n, k)) < WRONG_FRACTION) & (size > DEGRADED_NOISE[1] / 3)
    out[..., 0] += size * rng.standard_normal((n, k)) + np.where(wrong, WRONG_SIZE * rng.standard_normal((n, k)), 0.0)
    out[..., 1] = np.hypot(out[..., 1], size)
    return out


def _from_entry(rows: npt.NDArray[Any], first: int) -> npt.NDArray[Any]:
    """Return rows from `first` on, padded with NaN at the end."""
    out = np.full_like(rows, np.nan)
    out[: len(rows) - first] = rows[first:]
    return out
