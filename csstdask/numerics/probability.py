"""Probability: coverage of Gaussian intervals, and the number of successes in unequal trials."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

WITHIN_ONE_SIGMA = 0.6826894921370859
"""Probability that a Gaussian variable lies within one sigma of its mean."""
WITHIN_TWO_SIGMA = 0.9544997361036416
"""Probability that a Gaussian variable lies within two sigma of its mean."""


def poisson_binomial(probabilities: Iterable[float]) -> npt.NDArray[np.float64]:
    """Return the probability of 0, 1, ... n successes in n independent trials with different probabilities.

    The distributions of the trials are convolved one after the other.

    Examples
    --------
    >>> poisson_binomial([0.5, 0.5]).tolist()
    [0.25, 0.5, 0.25]
    """
    distribution = np.ones(1)
    for probability in probabilities:
        distribution = np.convolve(distribution, [1 - probability, probability])
    return distribution
