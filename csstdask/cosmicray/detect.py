"""Detection: which pixels of one frame a cosmic ray has hit."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from csstdask.arrays.adapter import InputArrays, adapt
from csstdask.arrays.correlation import noise_correlation
from csstdask.arrays.mesh import Mesh
from csstdask.arrays.namespace import namespace_of
from csstdask.cosmicray.lacosmic import lacosmic
from csstdask.cosmicray.preprocess import BOX, PreparedFrame, prepare_frame
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card

log = logging.getLogger("csstdask")

#: Of the search for a frame's own density: at most so many steps, until it changes by less; of so many pixels; within.
_STEPS, _SAME_DENSITY, _SAMPLE = 200, 1e-3, 1_000_000
_LEAST_DENSITY, _LARGEST_DENSITY = 1e-4, 0.5

if TYPE_CHECKING:  # it takes seconds to import torch, and L.A.Cosmic needs none
    from csstdask.nn.device import Precision


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
    rate: float | Literal["frame"] | None = None,
    precision: Precision = "float32",
    mesh: Mesh | None = None,
) -> Detection:
    """Find the pixels of one frame that cosmic rays have hit.

    Parameters
    ----------
    data : array (y, x)
        [e-], sky included; NumPy, CuPy or torch, either byte order, integers or floats. Never modified. The mask, unit
        and uncertainty of a masked array, ``Quantity``, ``CCDData`` or ``DataArray`` are used
        (`csstdask.arrays.containers`).
    error : array (y, x), optional
        1 sigma including Poisson noise [e-]; by default background noise plus Poisson. It is estimated as well where it
        is not finite or not positive.
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
    rate : float or ``frame``, optional
        Share of pixels that cosmic rays hit, where it is known: a network's probabilities are for the density that
        its calibration was for, and are rescaled to this one. ``frame``: the share is that which the probabilities
        themselves add up to.
    precision : str
        Of a network's arithmetic: ``float32``; ``bfloat16``, about twice as fast on processors that have it; ``int8``,
        on hosts with integer dot products, three times; elsewhere it is emulated, slowly. Probabilities move by about a
        hundredth.
    mesh : Mesh, optional
        Background of the frame [e-] (`csstdask.arrays.background.estimate_background`); used if its boxes are those of
        the model, else estimated.

    Returns
    -------
    Detection
        Arrays of the caller's kind, on the caller's device.

    Raises
    ------
    ValueError
        If shapes differ, `data` is not 2-D, threshold or rate are out of range, the model or the precision is
        unknown or this machine has not the device.
    TypeError
        If `data`, `error` or `mask` have a unit that does not convert to electrons, or carry something that would be
        lost.
    InputError
        If the model's card or weights cannot be used.
    """
    del detector  # one model for all of them, so far
    card = find_card("cosmicray", model)
    cut = select_threshold(card, threshold)
    if rate is not None and rate != "frame" and not 0 < rate < 1:
        raise ValueError(f"rate: found {rate!r}; wanted a share of pixels in (0, 1), or 'frame'")
    if rate is not None and "prior" not in card.calibration:
        raise ValueError(f"rate: {card.name} was calibrated without a density of cosmic rays; wanted a model that was")
    given = adapt(data, error, mask)
    hit_probability, _ = detect_probability(given, card, device=device, rate=rate, precision=precision, mesh=mesh)
    to_caller = given.adapter.to_caller
    return Detection(to_caller((hit_probability >= cut) & ~given.ignore), to_caller(hit_probability), cut, card)


def select_threshold(card: ModelCard, threshold: float | None = None) -> float:
    """Return the threshold that applies: the requested one, else the card's; ValueError if it is no probability."""
    cut = card.threshold if threshold is None else threshold
    if cut is None or not 0 <= cut <= 1:
        raise ValueError(f"threshold: found {threshold}; wanted a probability in [0, 1]")
    return float(cut)


def detect_probability(
    given: InputArrays,
    card: ModelCard,
    *,
    device: Any = None,
    rate: float | Literal["frame"] | None = None,
    precision: Precision = "float32",
    mesh: Mesh | None = None,
) -> tuple[Any, PreparedFrame | None]:
    """Return the probability of a hit, float32 (y, x), and the prepared frame; None if no pixel is usable."""
    xp = namespace_of(given.data)
    if bool(given.ignore.all()):
        return xp.zeros(given.data.shape, dtype=np.float32), None
    view = prepare_frame(given.data, given.error, given.ignore, box=card.normalisation.get("box", BOX), mesh=mesh)
    if bool((view.mesh.noise > 0).any()):
        view = replace(view, excess=_excess(view))
        hit_probability = xp.asarray(_probability(view, card, device, precision), dtype=np.float32)
        hit_probability[given.ignore] = 0
    else:  # without noise nothing is significant
        hit_probability = xp.zeros(given.data.shape, dtype=np.float32)
    return hit_probability if rate is None else rescale_to_rate(hit_probability, card, given.ignore, rate), view


def _excess(view: PreparedFrame) -> float:
    """Return by which factor significance is lowered on a frame whose noise is correlated; a warning says so."""
    correlation = noise_correlation(view.data, view.ignore, view.mesh)
    if (excess := correlation.excess()) > 1:
        log.warning(
            "the noise of neighbouring pixels is correlated (%.2f): the frame was resampled. Significance is lowered by"
            " %.2f, but false detections and missed cosmic rays are to be expected; detect them before resampling",
            correlation.mean, excess,
        )  # fmt: skip
    return excess


def rescale_to_rate(hit_probability: Any, card: ModelCard, ignore: Any, rate: float | Literal["frame"]) -> Any:
    """Return probabilities for another density of cosmic rays than that of the calibration.

    Odds are multiplied by those of the density, over those of the calibration's, to a power that was fitted with
    the calibration: 1 for a network that knows nothing of the density, less for one that sees it round a pixel.
    ``frame`` is the fixed point: the density that the probabilities add up to (Saerens et al. 2002, Neural
    Computation 14, 21).
    """
    power, reference = card.calibration["prior"], card.calibration["density"]

    def rescaled(density: float, p: Any) -> Any:
        factor = np.float32((density * (1 - reference) / (reference * (1 - density))) ** power)
        return p * factor / (1 + (factor - 1) * p)

    if rate != "frame":
        return rescaled(rate, hit_probability)
    usable = hit_probability[~ignore]
    usable = usable[:: max(1, usable.size // _SAMPLE)]
    density, before = reference, 0.0
    for _ in range(_STEPS):
        if usable.size == 0 or abs(density - before) <= _SAME_DENSITY * density:
            break
        before = density
        mean = float(rescaled(density, usable).mean(dtype=np.float64))
        density = min(max(mean, _LEAST_DENSITY), _LARGEST_DENSITY)
    return rescaled(density, hit_probability)


def _probability(view: PreparedFrame, card: ModelCard, device: Any, precision: Precision) -> Any:
    """Return the probability of a hit, from whichever method a card describes."""
    if not card.architecture:
        return lacosmic(view, card.parameters)
    from csstdask.cosmicray.unet import hit_probability  # noqa: PLC0415  torch takes seconds to import

    return hit_probability(view, card, device=device, precision=precision)
