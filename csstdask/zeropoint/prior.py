"""Priors of zero points from telemetry, image and memory: the network's, or a simpler one where it has no input."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card
from csstdask.zeropoint.features import (
    PriorInputs,
    StarLists,
    build_star_lists,
    image_statistics,
    prior_arrays,
    stack_image_statistics,
)

if TYPE_CHECKING:
    import torch

    from csstdask.zeropoint.network import PriorNetwork
    from csstdask.zeropoint.state import Memory

log = logging.getLogger("csstdask")

Float = npt.NDArray[np.float64]

NOMINAL_SIGMA = 0.3
"""Standard deviation of a zero point about the camera's description [mag]: sensitivities before launch, aging."""
BORROWED_WALK = 0.01
"""Random walk of a zero point of which nothing but its past is known [mag day^-1/2]."""
BORROWED_WHITE = 0.01
"""Scatter between exposures of which nothing is known [mag]."""
_BATCH = 1024
"""Exposures that are computed together."""


@dataclass(frozen=True)
class Prior:
    """Zero points of n exposures before their stars are solved.

    Attributes
    ----------
    value, sigma : float64 array (n,)
        [mag]; NaN and inf where not even a nominal value is known.
    method : str array (n,)
        ``prior`` (the network), ``borrowed`` (recent zero points alone) or ``nominal``.
    """

    value: Float
    sigma: Float
    method: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.value)


def predict_prior(inputs: PriorInputs, *, model: str = "default", device: Any = None) -> Prior:
    """Predict zero points of exposures from their telemetry, images, star lists and memory.

    The network is used where a condition or an image is known. Exposures without them borrow their zero point from the
    memory, those without memory get the nominal one.

    Parameters
    ----------
    inputs : PriorInputs
    model : str
        ``default``, a name that ``csstdask models`` lists, or the path of a card.
    device : optional
        ``cpu`` or ``cuda``.

    Returns
    -------
    Prior
        Independent of the level of the stars, so that it can be joined with their solve by precision.

    Raises
    ------
    ValueError
        If model or device are unknown.
    InputError
        If a path leads to no card of a zero-point network, or the network is one that reads the level of the stars.

    Examples
    --------
    >>> inputs = PriorInputs(np.array([25.0]), np.array([9000.0]), telemetry={})
    >>> prior = predict_prior(inputs)
    >>> prior.method.tolist(), prior.value.tolist(), prior.sigma.tolist()
    (['nominal'], [25.0], [0.3])
    """
    prior = fallback_prior(inputs)
    card = find_prior_card(model)
    inputs = within_domain(inputs, card)
    informed = _informed(inputs, card)
    if not informed.any():
        return prior
    from csstdask.nn.device import choose_device  # noqa: PLC0415  torch takes seconds
    from csstdask.nn.weights import load_network  # noqa: PLC0415
    from csstdask.zeropoint.azprc import build_network  # noqa: PLC0415

    network = load_network(card, build_network, choose_device(device))
    found = predict_with_network(network, take_inputs(inputs, informed))
    value, sigma, method = prior.value.copy(), prior.sigma.copy(), prior.method.copy()
    value[informed], sigma[informed], method[informed] = found.value, found.sigma, found.method
    return Prior(value, sigma, method)


def fallback_prior(inputs: PriorInputs) -> Prior:
    """Return the prior without a network: ``borrowed`` where there is a memory, else ``nominal``."""
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
    """Estimate zero points from the last solved ones alone.

    A level that walks at random is measured by each entry of the memory. Estimates are filtered from the oldest entry
    to the newest (Kalman), starting from the nominal value with a wide error.

    Parameters
    ----------
    memory : Memory
    nominal : array (n,)
        NaN where unknown: the memory stands alone.

    Returns
    -------
    value, sigma : float64 arrays (n,)
        NaN and inf without memory.

    Examples
    --------
    >>> from csstdask.zeropoint.state import recent
    >>> memory = recent([0.0], [25.1], [0.003], at=[1.0, 10_000.0])
    >>> value, sigma = borrow(memory, [25.0, 25.0])
    >>> value.round(2).tolist(), sigma.round(2).tolist()
    ([25.1, 25.01], [0.02, 0.29])
    """
    start = np.broadcast_to(np.asarray(nominal, dtype=float), (len(memory.value),))
    anchored = np.isfinite(start)
    wide = NOMINAL_SIGMA**2
    level, variance = np.where(anchored, start, 0.0), np.full(len(start), np.where(anchored, wide, 1e6))
    time = np.full(len(start), np.nan)
    for k in range(memory.value.shape[1] - 1, -1, -1):
        value, sigma, age = memory.value[:, k], memory.sigma[:, k], memory.age[:, k]
        known = np.isfinite(value) & np.isfinite(sigma) & np.isfinite(age)
        level, variance = _drift(level, variance, np.where(np.isfinite(time), time - age, 0.0), start, known)
        noise = sigma**2 + BORROWED_WHITE**2
        gain = variance / (variance + noise)
        level = np.where(known, level + gain * (value - level), level)
        variance = np.where(known, (1 - gain) * variance, variance)
        time = np.where(known, age, time)
    solved = np.isfinite(time)
    level, variance = _drift(level, variance, np.where(solved, time, 0.0), start, solved)
    sigma = np.sqrt(variance + BORROWED_WHITE**2)
    return np.where(solved, level, np.nan), np.where(solved, sigma, np.inf)


def _drift(level: Float, variance: Float, dt: Float, start: Float, known: npt.NDArray[np.bool_]) -> tuple[Float, Float]:
    """Move a level forward in time: it forgets its measurements and returns to the nominal value, if there is one.

    The process is that of Ornstein and Uhlenbeck: a random walk of `BORROWED_WALK` at first, and in the end a scatter
    of `NOMINAL_SIGMA`.
    """
    step = np.where(known, np.maximum(dt, 0.0), 0.0)
    wide = NOMINAL_SIGMA**2
    keep = np.exp(-step * BORROWED_WALK**2 / (2 * wide))
    anchored = np.isfinite(start)
    moved = np.where(anchored, np.nan_to_num(start) + keep * (level - np.nan_to_num(start)), level)
    grown = np.where(anchored, keep**2 * variance + (1 - keep**2) * wide, variance + step * BORROWED_WALK**2)
    return moved, grown


def find_prior_card(model: str) -> ModelCard:
    """Return the card of a network whose prior may be joined with stars.

    Raises
    ------
    ValueError
        If there is no model of that name.
    InputError
        If it reads the level of the stars, as the published networks do: joined with them, it would count them twice.
    """
    card = find_card("zeropoint", model)
    if card.architecture.get("kind") != "zeropoint" or card.architecture.get("star_level"):
        raise InputError(f"model {card.name}", "a network that reads the level of the stars", "one of kind zeropoint")
    return card


def telemetry_names(card: ModelCard) -> list[str]:
    """Return the names of the telemetry that a network reads."""
    clocks = card.architecture.get("clocks", ())
    return [name for name in card.architecture["telemetry"] if name not in clocks]


def within_domain(inputs: PriorInputs, card: ModelCard) -> PriorInputs:
    """Return inputs with gaps in place of telemetry far outside of what the network was trained on.

    A sentinel, another unit or another camera is no condition that a network has learned anything about; ranges are in
    the card, and twice as wide on either side as what was seen.
    """
    of_card: Any = card.calibration.get("telemetry_range", {})
    ranges: dict[str, tuple[float, float]] = dict(of_card)
    changed = {}
    for name, values in inputs.telemetry.items():
        column = np.asarray(values, dtype=float)
        low, high = ranges.get(name, (-np.inf, np.inf))
        with np.errstate(invalid="ignore"):
            outside = (column < low) | (column > high)
        if outside.any():
            log.warning("telemetry %s: %d values outside of %g to %g are ignored", name, outside.sum(), low, high)
        changed[name] = np.where(outside, np.nan, column)
    return replace(inputs, telemetry=changed)


def _informed(inputs: PriorInputs, card: ModelCard) -> npt.NDArray[np.bool_]:
    """Return which exposures have a nominal value and a condition or an image that the network reads."""
    known = np.zeros(len(inputs), dtype=bool)
    for name in telemetry_names(card):
        if name in inputs.telemetry:
            known |= np.isfinite(np.asarray(inputs.telemetry[name], dtype=float))
    if inputs.image is not None and card.architecture.get("image"):
        known |= np.isfinite(stack_image_statistics(inputs)).any(axis=1)
    return known & np.isfinite(inputs.nominal)


def take_inputs(inputs: PriorInputs, index: Any) -> PriorInputs:
    """Return some of the exposures."""
    from csstdask.zeropoint.state import Memory  # noqa: PLC0415  Numba takes seconds

    memory = inputs.memory
    history = inputs.memory_telemetry
    return PriorInputs(
        inputs.nominal[index],
        inputs.days[index],
        {name: np.asarray(column)[index] for name, column in inputs.telemetry.items()},
        memory=None if memory is None else Memory(**{name: value[index] for name, value in vars(memory).items()}),
        memory_telemetry=None if history is None else {name: value[index] for name, value in history.items()},
        stars=None if inputs.stars is None else inputs.stars.take(index),
        image=None if inputs.image is None else inputs.image[index],
    )


def predict_with_network(network: PriorNetwork | torch.nn.Module, inputs: PriorInputs) -> Prior:
    """Predict with a network, whatever of its inputs is known; see `predict_prior`."""
    import torch  # noqa: PLC0415

    from csstdask.zeropoint.network import PriorNetwork, PriorTensors  # noqa: PLC0415

    if not isinstance(network, PriorNetwork):  # the published network, in comparisons
        from csstdask.zeropoint.azprc import predict_published  # noqa: PLC0415

        return predict_published(network, inputs)

    device = next(network.parameters()).device
    offset, sigma = np.zeros(len(inputs)), np.zeros(len(inputs))
    for start in range(0, len(inputs), _BATCH):
        some = slice(start, start + _BATCH)
        arrays = prior_arrays(take_inputs(inputs, some), network.telemetry, memory=network.memory)
        with torch.inference_mode():
            found = network.predict(PriorTensors.of(arrays, device))
        offset[some], sigma[some] = (one.double().cpu().numpy() for one in found)
    return Prior(inputs.nominal + offset, sigma, np.full(len(inputs), "prior", dtype="<U8"))


__all__ = [
    "Prior",
    "PriorInputs",
    "StarLists",
    "build_star_lists",
    "fallback_prior",
    "image_statistics",
    "predict_from_memory",
    "predict_prior",
    "predict_with_network",
    "take_inputs",
]  # fmt: skip
