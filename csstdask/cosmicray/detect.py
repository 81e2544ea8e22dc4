"""Detection: which pixels of one frame a cosmic ray has hit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from csstdask.arrays.namespace import namespace_of, open_door
from csstdask.cosmicray.card import find_card
from csstdask.cosmicray.lacosmic import lacosmic
from csstdask.cosmicray.view import BOX, View, view_frame
from csstdask.nn.card import ModelCard


@dataclass(frozen=True)
class Detection:
    """Cosmic rays of one frame.

    Attributes
    ----------
    mask : bool array (y, x)
        Where probability >= threshold.
    probability : float32 array (y, x)
        That a pixel is hit, calibrated on the model's validation split; 0 where the input was masked or not
        finite. L.A.Cosmic decides without a probability: 0 or 1.
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
        ``default``, a name that ``csstdask models`` lists (``unet``; ``lacosmic``: van Dokkum 2001, PASP 113,
        1420), or the path of a card that ``csstdask train cosmicray`` wrote.
    device : optional
        Where a network runs, by default where the data is; L.A.Cosmic runs on the host.

    Returns
    -------
    Detection
        Arrays of the caller's kind, on the caller's device.

    Raises
    ------
    ValueError
        If shapes differ, `data` is not 2-D, the threshold is out of range, the model is unknown or this
        machine has not the device.
    InputError
        If the model's card or weights cannot be used.
    """
    del detector  # one model for all of them, so far
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
    xp = namespace_of(frame)
    if bool(ignore.all()):
        probability = xp.zeros(frame.shape, dtype=np.float32)
    else:
        view = view_frame(frame, variance, ignore, box=card.normalisation.get("box", BOX))
        probability = xp.asarray(_probability(view, card, device), dtype=np.float32)
        probability[ignore] = 0
    return Detection(door.give((probability >= cut) & ~ignore), door.give(probability), float(cut), card)


def _probability(view: View, card: ModelCard, device: Any) -> Any:
    """Return the probability of a hit, from whichever method a card describes."""
    if not card.architecture:
        return lacosmic(view, card.parameters)
    from csstdask.cosmicray.unet import probability  # noqa: PLC0415  torch takes seconds to import

    return probability(view, card, device=device)


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
