"""Repair: what hit pixels would have held, and how well that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from csstdask.arrays.median import adaptive_median
from csstdask.arrays.namespace import namespace_of, open_door
from csstdask.cosmicray.card import find_card
from csstdask.cosmicray.detect import ignored_pixels
from csstdask.cosmicray.noise import frame_variance
from csstdask.nn.card import ModelCard

#: How many donors' worth of trust the noise model has against the donors' own scatter.
_PRIOR_WEIGHT = 4.0


@dataclass(frozen=True)
class Inpainting:
    """A repaired frame.

    Attributes
    ----------
    data : array (y, x)
        Untouched pixels are bit-identical to the input's.
    variance : float32 array (y, x)
        [e-^2] of repaired pixels, inf where a hit pixel had no donor, NaN where nothing was repaired.
    model : ModelCard
    """

    data: Any
    variance: Any
    model: ModelCard


def inpaint(
    data: Any,
    cr_mask: Any,
    error: Any = None,
    mask: Any = None,
    *,
    sources: Any = None,
    model: str = "default",
    device: Any = None,
) -> Inpainting:
    r"""Repair the pixels of one frame that cosmic rays have hit.

    Parameters
    ----------
    data : array (y, x)
        [e-], sky included; NumPy, CuPy or torch. Never modified.
    cr_mask : bool array (y, x)
        Pixels to repair.
    error : array (y, x), optional
        1 sigma including Poisson noise [e-]; by default background noise plus Poisson.
    mask : bool array (y, x), optional
        True = ignore: never a donor, never changed. Non-finite pixels count as masked.
    sources, device : optional
        For models that treat sources apart, or run on a device; the median needs neither.
    model : str
        ``default`` or a name that ``csstdask models`` lists. Now: ``median``.

    Returns
    -------
    Inpainting
        Arrays of the caller's kind, on the caller's device.

    Raises
    ------
    ValueError
        If shapes differ, `data` is not 2-D or the model is unknown.

    Notes
    -----
    The variance is that of (repaired value - what the pixel would have measured): for `n` donors of scatter
    `s`, :math:`s^2 (1 + \pi / 2n)`, the pixel's own noise and that of a median. `s`
    combines the donors' sample variance, which sees structure, with their mean noise variance, which is
    known better than a handful of donors can tell: weights `n - 1` and 4.
    """
    del sources, device
    card = find_card("inpaint", model)
    door = open_door(data)
    frame = door.take(data)
    if frame.dtype != door.dtype:
        frame = frame.astype(door.dtype)
    work = frame if frame.dtype.itemsize >= 4 else frame.astype(np.float32)
    xp = namespace_of(frame)
    ignore = ignored_pixels(door, frame, mask)
    hit = door.take(cr_mask, bool)
    if hit.shape != frame.shape:
        raise ValueError(f"cr_mask: found shape {hit.shape}; wanted that of data, {frame.shape}")
    target = hit & ~ignore
    donor = ~(hit | ignore)
    fixed, variance = frame.copy(), xp.full(frame.shape, np.nan, dtype=np.float32)
    if bool(target.any()):
        noise = _noise_variance(door, error, frame, hit | ignore)
        median, scatter, count = adaptive_median(work, target, donor, **card.parameters)
        expected = _donor_noise(noise, target, donor, card.parameters["largest_radius"])
        prior = xp.where(xp.isfinite(expected), expected, 0.0)
        samples = xp.where(count > 1, count - 1, 0)
        spread = (xp.where(count > 1, scatter, 0.0) * samples + _PRIOR_WEIGHT * prior) / (samples + _PRIOR_WEIGHT)
        reachable = count > 0
        fixed[target] = xp.where(reachable, median, frame[target]).astype(frame.dtype)
        predicted = spread * (1 + np.pi / (2 * xp.maximum(count, 1)))
        variance[target] = xp.where(reachable, predicted, np.inf).astype(np.float32)
    return Inpainting(door.give(fixed), door.give(variance), card)


def _noise_variance(door: Any, error: Any, frame: Any, excluded: Any) -> Any:
    if error is None:
        return frame_variance(frame, excluded)
    sigma = door.take(error, np.float32)
    if sigma.shape != frame.shape:
        raise ValueError(f"error: found shape {sigma.shape}; wanted that of data, {frame.shape}")
    return sigma * sigma


def _donor_noise(noise: Any, target: Any, donor: Any, largest_radius: int) -> Any:
    """Return a typical noise variance of the donors round each target: their median."""
    usable = donor & namespace_of(noise).isfinite(noise)
    median, _, _ = adaptive_median(noise, target, usable, largest_radius=largest_radius)
    return median.astype(np.float64)
