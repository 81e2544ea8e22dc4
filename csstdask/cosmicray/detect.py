"""Detection of the pixels of one frame that cosmic rays have hit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from csstdask.arrays.adapter import InputArrays, adapt
from csstdask.arrays.mesh import Mesh
from csstdask.arrays.namespace import kind_of, namespace_of, to_host
from csstdask.cosmicray.lacosmic import lacosmic
from csstdask.cosmicray.preprocess import BOX, CONDITIONS, NOISE_CORRELATION, PreparedFrame, prepare_frame
from csstdask.cosmicray.straight_features import StraightFeatures, release_straight_features
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card
from csstdask.nn.precision import Precision, PrecisionSetting, resolve_precision

log = logging.getLogger("csstdask")

#: Largest number of steps of the search for the density of hit pixels in a frame.
_MAX_STEPS = 200
#: Relative change of the density at which the search stops.
_DENSITY_TOLERANCE = 1e-3
#: Largest number of pixels that the search uses.
_SAMPLE = 1_000_000
#: Range of densities of the search.
_MIN_DENSITY, _MAX_DENSITY = 1e-4, 0.5


@dataclass(frozen=True)
class Detection:
    """Result of `detect`.

    Attributes
    ----------
    mask : bool array (y, x)
        Hit pixels: probability >= threshold, without those of satellite trails and trailed stars.
    probability : float32 array (y, x)
        Probability that a pixel is hit, calibrated on the validation split of the model; 0 where the input was masked
        or not finite. L.A.Cosmic makes a binary decision: 0 or 1.
    threshold : float
        Threshold that was applied.
    model : ModelCard
        Card of the model that was used.
    precision : str or None
        Arithmetic of the network; None for other methods.
    conditions : dict of str to float
        Correlation of the noise and sharpness of the stars (`csstdask.cosmicray.preprocess.CONDITIONS`); empty if no
        pixel is usable.
    outside : tuple of str
        Those of the conditions that lie outside the range of the training of the model.
    features : StraightFeatures or None
        Satellite trails and trailed stars that were released from the mask; None if they were not searched.
    """

    mask: Any
    probability: Any
    threshold: float
    model: ModelCard
    precision: Precision | None
    conditions: dict[str, float]
    outside: tuple[str, ...]
    features: StraightFeatures | None = None


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
    precision: PrecisionSetting = "auto",
    mesh: Mesh | None = None,
    release_straight: bool = True,
) -> Detection:
    """Detect the pixels of one frame that cosmic rays have hit.

    Parameters
    ----------
    data : array (y, x)
        [e-], sky included; NumPy, CuPy or torch, either byte order, integers or floats. Never modified. The mask, unit
        and uncertainty of a masked array, ``Quantity``, ``CCDData`` or ``DataArray`` are used
        (`csstdask.arrays.containers`).
    error : array (y, x), optional
        1 sigma including Poisson noise [e-]; by default background noise plus Poisson noise, which also replaces values
        that are not finite or not positive.
    mask : bool array (y, x), optional
        True = ignore. Non-finite pixels count as masked.
    detector : int, optional
        Id of the detector, for models that differ between detectors.
    threshold : float, optional
        Probability from which a pixel counts as hit, in [0, 1]; by default that of the model card.
    model : str
        ``default``, a name that ``csstdask models`` lists (``unet``; ``lacosmic``: van Dokkum 2001, PASP 113,
        1420), or the path of a card that ``csstdask train cosmicray`` wrote.
    device : optional
        Torch device of the network, by default that of the data; L.A.Cosmic runs on the host.
    rate : float or ``frame``, optional
        Expected fraction of hit pixels, to which the probabilities of a network are rescaled from the fraction of its
        calibration. ``frame``: the fraction to which the probabilities themselves add up.
    precision : str
        Arithmetic of a network: ``float32``; ``bfloat16``, about twice as fast on processors that support it; ``int8``,
        about three times as fast on hosts with integer dot products, and slow elsewhere, where it is emulated. Both
        change probabilities by about 0.01. ``auto`` is the fastest for which the machine has instructions and the card
        states that the masks agree (`csstdask.nn.precision`); results then differ slightly between machines.
    mesh : Mesh, optional
        Background of the frame [e-] (`csstdask.arrays.background.estimate_background`); used if its boxes are those of
        the model, else estimated.
    release_straight : bool
        Search the frame for satellite trails and trailed stars, and release hits that do not stand out from them
        (`csstdask.cosmicray.straight_features`; on the host). Switch it off for spectra without a slit.

    Returns
    -------
    Detection
        Arrays in the caller's library, on the caller's device.

    Raises
    ------
    ValueError
        If shapes differ, `data` is not 2-D, threshold or rate are out of range, the model or the precision is
        unknown, or the device does not exist.
    TypeError
        If `data`, `error` or `mask` have a unit that cannot be converted to electrons, or carry something that would be
        lost.
    InputError
        If the card or the weights of the model cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> frame = np.random.default_rng(1).normal(100, 5, (64, 64)).astype("float32")
    >>> frame[20, 20:26] += 500  # a cosmic ray
    >>> int(detect(frame, model="unet-fast").mask[20, 20:26].sum())
    6
    """
    del detector  # all detectors share one model so far
    card = find_card("cosmicray", model)
    cut = select_threshold(card, threshold)
    if rate is not None and rate != "frame" and not 0 < rate < 1:
        raise ValueError(f"rate: found {rate!r}; wanted a share of pixels in (0, 1), or 'frame'")
    if rate is not None and "prior" not in card.calibration:
        raise ValueError(f"rate: {card.name} was calibrated without a density of cosmic rays; wanted a model that was")
    inputs = adapt(data, error, mask)
    probability, prepared = detect_probability(inputs, card, device=device, rate=rate, precision=precision, mesh=mesh)
    hit, features = (probability >= cut) & ~inputs.ignore, None
    if release_straight:
        hit, features = without_straight_features(hit, inputs, None if prepared is None else prepared.mesh)
    conditions = {} if prepared is None else dict(zip(CONDITIONS, prepared.conditions(), strict=True))
    outside = outside_training(card, conditions)
    used = _resolve(precision, card, device, inputs) if card.architecture else None
    to_caller = inputs.adapter.to_caller
    return Detection(to_caller(hit), to_caller(probability), cut, card, used, conditions, outside, features)


def _resolve(precision: PrecisionSetting, card: ModelCard, device: Any, inputs: InputArrays) -> Precision:
    """Return the precision of a network on the requested device, by default that of the data."""
    own = "cuda" if kind_of(inputs.data) == "cupy" else "cpu"
    return resolve_precision(precision, card, own if device is None else str(device))


def outside_training(card: ModelCard, conditions: Mapping[str, float]) -> tuple[str, ...]:
    """Return the conditions of a frame that lie outside the range in the training of a model; unknown ones do not."""
    ranges = card.valid.get("conditions", {})
    known = {name: value for name, value in conditions.items() if name in ranges and value != 0}
    return tuple(name for name, value in known.items() if not ranges[name][0] <= value <= ranges[name][1])


def without_straight_features(hit: Any, inputs: InputArrays, mesh: Mesh | None) -> tuple[Any, StraightFeatures]:
    """Return hits, bool (y, x), without those of satellites and trailed stars, and these; no mesh: no usable pixel."""
    if mesh is None:
        return hit, StraightFeatures(hit.shape)
    on_host = Mesh(to_host(mesh.background), to_host(mesh.noise), mesh.shape)
    remaining, features = release_straight_features(to_host(hit), to_host(inputs.data), to_host(inputs.ignore), on_host)
    return namespace_of(hit).asarray(remaining), features


def select_threshold(card: ModelCard, threshold: float | None = None) -> float:
    """Return the requested threshold, by default that of the card; ValueError unless it is a probability."""
    cut = card.threshold if threshold is None else threshold
    if cut is None or not 0 <= cut <= 1:
        raise ValueError(f"threshold: found {threshold}; wanted a probability in [0, 1]")
    return float(cut)


def detect_probability(
    inputs: InputArrays,
    card: ModelCard,
    *,
    device: Any = None,
    rate: float | Literal["frame"] | None = None,
    precision: PrecisionSetting = "auto",
    mesh: Mesh | None = None,
) -> tuple[Any, PreparedFrame | None]:
    """Return the hit probability, float32 (y, x), and the prepared frame, None if no pixel is usable."""
    xp = namespace_of(inputs.data)
    if bool(inputs.ignore.all()):
        return xp.zeros(inputs.data.shape, dtype=np.float32), None
    prepared = prepare_frame(
        inputs.data, inputs.error, inputs.ignore, box=card.normalisation.get("box", BOX), mesh=mesh
    )
    if bool((prepared.mesh.noise > 0).any()):
        _warn_of_correlation(prepared, card)
        exact = _resolve(precision, card, device, inputs)
        probability = xp.asarray(_probability(prepared, card, device, exact), dtype=np.float32)
        probability[inputs.ignore] = 0
    else:  # a frame without noise has no significant pixel
        probability = xp.zeros(inputs.data.shape, dtype=np.float32)
    return probability if rate is None else rescale_to_rate(probability, card, inputs.ignore, rate), prepared


def _warn_of_correlation(prepared: PreparedFrame, card: ModelCard) -> None:
    """Log a warning if the noise is correlated, unless the model was trained with such noise."""
    if prepared.excess > 1 and NOISE_CORRELATION not in card.normalisation.get("conditions", ()):
        log.warning(
            "the noise of neighbouring pixels is correlated (%.2f): the frame was resampled. Significance is lowered by"
            " %.2f, but false detections and missed cosmic rays are to be expected; detect them before resampling",
            prepared.correlation.mean, prepared.excess,
        )  # fmt: skip


def rescale_to_rate(probability: Any, card: ModelCard, ignore: Any, rate: float | Literal["frame"]) -> Any:
    """Return probabilities for another density of cosmic rays than that of the calibration.

    The odds are multiplied by the ratio of the odds of both densities, to a power that was fitted with the calibration:
    1 for a network that has no information on the density, less for one that infers it from the surroundings of a
    pixel. ``frame`` is the fixed point, the density to which the probabilities add up (Saerens et al. 2002, Neural
    Computation 14, 21).
    """
    power, reference = card.calibration["prior"], card.calibration["density"]

    def rescaled(density: float, p: Any) -> Any:
        factor = np.float32((density * (1 - reference) / (reference * (1 - density))) ** power)
        return p * factor / (1 + (factor - 1) * p)

    if rate != "frame":
        return rescaled(rate, probability)
    usable = probability[~ignore]
    usable = usable[:: max(1, usable.size // _SAMPLE)]
    density, before = reference, 0.0
    for _ in range(_MAX_STEPS):
        if usable.size == 0 or abs(density - before) <= _DENSITY_TOLERANCE * density:
            break
        before = density
        mean = float(rescaled(density, usable).mean(dtype=np.float64))
        density = min(max(mean, _MIN_DENSITY), _MAX_DENSITY)
    return rescaled(density, probability)


def _probability(prepared: PreparedFrame, card: ModelCard, device: Any, precision: Precision) -> Any:
    """Return the hit probability by the method that a card describes."""
    if not card.architecture:
        return lacosmic(prepared, card.parameters)
    from csstdask.cosmicray.unet import hit_probability  # noqa: PLC0415  importing torch takes seconds

    return hit_probability(prepared, card, device=device, precision=precision)
