"""Means, standard deviations and logarithms by which network inputs are normalised."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import skew
from torch import Tensor


def finite_moments(values: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each column.

    Parameters
    ----------
    values : array (n, k)
        Non-finite values are ignored.

    Returns
    -------
    mean, std : float32 tensors (k,)
        0 and 1 for columns without a finite value; std is 1 for constant columns.
    """
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, values, 0.0).astype(float)
    mean = filled.sum(axis=0) / count
    variance = (np.where(known, filled - mean, 0.0) ** 2).sum(axis=0) / count
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))


def lower_skew_in_log(values: np.ndarray) -> np.ndarray:
    """Return which columns are positive and less skewed after a logarithm, bool array (k,)."""
    logarithmic = np.zeros(values.shape[1], dtype=bool)
    for k, column in enumerate(values.T):
        known = column[np.isfinite(column)].astype(float)
        if len(known) > 2 and known.min() > 0 and np.ptp(known) > 0:
            logarithmic[k] = abs(skew(np.log(known))) < abs(skew(known))
    return logarithmic
