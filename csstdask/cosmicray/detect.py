"""Detection: which pixels of one frame a cosmic ray has hit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from csstdask.arrays.background import measure
from csstdask.arrays.median import adaptive_median
from csstdask.arrays.namespace import namespace_of, open_door, to_host
from csstdask.cosmicray.card import ModelCard, find_card
from csstdask.cosmicray.noise import frame_variance


@dataclass(frozen=True)
class Detection:
    """Cosmic rays of one frame.

    Attributes
    ----------
    mask : bool array (y, x)
        Where probability >= threshold.
    probability : float32 array (y, x)
        That a pixel is hit; 0 where the input was masked or not finite. L.A.Cosmic decides without a
        probability: 0 or 1.
    threshold : float
        The one that was used.
    model : ModelCard
    """

    mask: Any
    probability: Any
    threshold: float
    model: ModelCard


def detect(
    data: Any,
    error: Any = None,
    mask: Any = None,
    *,
    detector: int | None = None,
    threshold: float | None = None,
    model: str = "default",
    device: Any = None,
) -> Detection:
    """Find the pixels of one frame that cosmic rays have hit.

    Parameters
    ----------
    data : array (y, x)
        [e-], sky included; NumPy, CuPy or torch, either byte order, integers or floats. Never modified.
    error : array (y, x), optional
        1 sigma including Poisson noise [e-]; by default background noise plus Poisson.
    mask : bool array (y, x), optional
        True = ignore. Non-finite pixels count as masked.
    detector : int, optional
        Its id, for models that differ between detectors.
    threshold : float, optional
        In [0, 1]; by default the model card's.
    model : str
        ``default`` or a name that ``csstdask models`` lists. Now: ``lacosmic`` (van Dokkum 2001, PASP 113, 1420).
    device : optional
        Where a network would run; L.A.Cosmic runs on the host.

    Returns
    -------
    Detection
        Arrays of the caller's kind, on the caller's device.

    Raises
    ------
    ValueError
        If shapes differ, `data` is not 2-D, the threshold is out of range or the model is unknown.
    """
    del detector, device  # a classical method knows neither
    card = find_card("cosmicray", model)
    cut = card.threshold if threshold is None else threshold
    if cut is None or not 0 <= cut <= 1:
        raise ValueError(f"threshold: found {threshold}; wanted a probability in [0, 1]")
    door = open_door(data)
    frame = door.take(data)
    if frame.dtype.kind != "f":
        frame = frame.astype(np.float32)
    ignore = ignored_pixels(door, frame, mask)
    variance = None
    if error is not None:
        variance = door.take(error, np.float32)
        _check_shape("error", variance, frame)
        variance = variance * variance
    hit = _lacosmic(frame, variance, ignore, card.parameters)
    xp = namespace_of(frame)
    hit = xp.asarray(hit) & ~ignore
    probability = hit.astype(np.float32)
    return Detection(door.give((probability >= cut) & ~ignore), door.give(probability), float(cut), card)


def ignored_pixels(door: Any, frame: Any, mask: Any) -> Any:
    """Return a new bool array: the caller's mask and every non-finite pixel."""
    xp = namespace_of(frame)
    ignore = ~xp.isfinite(frame)
    if mask is not None:
        given = door.take(mask, bool)
        _check_shape("mask", given, frame)
        ignore |= given
    return ignore


def _check_shape(name: str, array: Any, frame: Any) -> None:
    if array.shape != frame.shape:
        raise ValueError(f"{name}: found shape {array.shape}; wanted that of data, {frame.shape}")


def _lacosmic(frame: Any, variance: Any, ignore: Any, parameters: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Run L.A.Cosmic on the host.

    Ignored pixels are filled from their neighbours instead of being passed as a mask: astroscrappy grows the
    mask it is given by a pixel, and would miss every cosmic ray beside a bad column or a hot pixel.
    """
    import astroscrappy  # noqa: PLC0415

    xp = namespace_of(frame)
    if bool(ignore.all()):
        return np.zeros(frame.shape, dtype=bool)
    frame = frame.astype(np.float32, copy=False)
    known = None if variance is None else xp.isfinite(variance) & (variance > 0)
    holes = bool(ignore.any())
    if holes or known is None or not bool(known.all()):
        mesh = measure(frame, ignore)
        if holes:
            frame = _filled(frame, ignore, mesh.background_at())
        if known is None:
            variance = frame_variance(frame, ignore, mesh)
        elif not bool(known.all()):
            variance = xp.where(known, variance, frame_variance(frame, ignore, mesh))
    # A noiseless frame (constant, or made by hand) would divide by zero.
    variance = xp.maximum(variance, np.float32(1e-12), dtype=np.float32)
    hit, _ = astroscrappy.detect_cosmics(
        to_host(frame), invar=to_host(variance), gain=1.0, satlevel=np.inf, **parameters
    )
    return np.asarray(hit)


def _filled(frame: Any, ignore: Any, background: Any) -> Any:
    """Return a frame whose ignored pixels hold the median of their neighbours, far from any the background."""
    xp = namespace_of(frame)
    median, _, _ = adaptive_median(frame, ignore, ~ignore)
    filled = frame.copy()
    filled[ignore] = xp.where(xp.isfinite(median), median, background[ignore])
    return filled
