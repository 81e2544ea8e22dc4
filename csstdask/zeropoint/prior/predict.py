"""Predict zero points from telemetry, images, star lists and memory, by a network where it has inputs."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card
from csstdask.zeropoint.prior.fallback import Prior, fallback_prior
from csstdask.zeropoint.prior.inputs import PriorInputs, prior_arrays, stack_image_statistics

if TYPE_CHECKING:
    import torch

log = logging.getLogger("csstdask")

_BATCH_SIZE = 1024
"""Exposures per evaluation of the network."""


def predict_prior(inputs: PriorInputs, *, model: str = "default", device: Any = None) -> Prior:
    """Predict zero points of exposures from their telemetry, images, star lists and memory.

    The network is used for exposures with telemetry or an image. Others get the level of their recent zero points
    (``borrowed``), or the nominal zero point if there is no memory either.

    Parameters
    ----------
    inputs : PriorInputs
        Inputs of n exposures.
    model : str
        ``default``, a name that ``csstdask models`` lists, or the path of a card.
    device : optional
        ``cpu`` or ``cuda``.

    Returns
    -------
    Prior
        Independent of the level of the stars, so that it can be combined with their fit by precision.

    Raises
    ------
    ValueError
        If the model or the device is unknown.
    InputError
        If a path is not the card of a zero-point network, or the network reads the level of the stars.

    Examples
    --------
    >>> inputs = PriorInputs(np.array([25.0]), np.array([9000.0]), telemetry={})
    >>> prior = predict_prior(inputs)
    >>> prior.method.tolist(), prior.value.tolist(), prior.sigma.tolist()
    (['nominal'], [25.0], [0.3])
    """
    prior = fallback_prior(inputs)
    card = find_prior_card(model)
    inputs = _mask_outside_domain(inputs, card)
    informed = _has_network_inputs(inputs, card)
    if not informed.any():
        return prior
    from csstdask.nn.device import choose_device  # noqa: PLC0415  torch takes seconds
    from csstdask.nn.weights import load_network  # noqa: PLC0415
    from csstdask.zeropoint.prior.build import build_network  # noqa: PLC0415

    network = load_network(card, build_network, choose_device(device))
    predicted = predict_with_network(network, inputs.take(informed))
    value, sigma, method = prior.value.copy(), prior.sigma.copy(), prior.method.copy()
    value[informed], sigma[informed], method[informed] = predicted.value, predicted.sigma, predicted.method
    return Prior(value, sigma, method)


def find_prior_card(model: str) -> ModelCard:
    """Return the card of a network whose prior may be combined with stars.

    Parameters
    ----------
    model : str
        ``default``, a name that ``csstdask models`` lists, or the path of a card.

    Raises
    ------
    ValueError
        If there is no model of that name.
    InputError
        If the network reads the level of the stars, as the published ones do. Combined with the fit of the stars, its
        prediction would count them twice.
    """
    card = find_card("zeropoint", model)
    if card.architecture.get("kind") != "zeropoint" or card.architecture.get("star_level"):
        raise InputError(f"model {card.name}", "a network that reads the level of the stars", "one of kind zeropoint")
    return card


def telemetry_names(card: ModelCard) -> list[str]:
    """Return the names of the telemetry that a network uses; clocks are listed in its card but do not enter."""
    clocks = card.architecture.get("clocks", ())
    return [name for name in card.architecture["telemetry"] if name not in clocks]


def predict_with_network(network: torch.nn.Module, inputs: PriorInputs) -> Prior:
    """Predict zero points of n exposures with a network, whichever of its inputs are known; see `predict_prior`."""
    import torch  # noqa: PLC0415

    from csstdask.zeropoint.prior.network import PriorNetwork, PriorTensors  # noqa: PLC0415

    if not isinstance(network, PriorNetwork):  # the published network, in comparisons
        from csstdask.zeropoint.prior.azprc import predict_published  # noqa: PLC0415

        return predict_published(network, inputs)

    device = next(network.parameters()).device
    offset, sigma = np.zeros(len(inputs)), np.zeros(len(inputs))
    for start in range(0, len(inputs), _BATCH_SIZE):
        batch = slice(start, start + _BATCH_SIZE)
        arrays = prior_arrays(inputs.take(batch), network.telemetry, memory=network.memory)
        with torch.inference_mode():
            predicted = network.predict(PriorTensors.from_arrays(arrays, device))
        offset[batch], sigma[batch] = (tensor.double().cpu().numpy() for tensor in predicted)
    return Prior(inputs.nominal + offset, sigma, np.full(len(inputs), "prior", dtype="<U8"))


def _mask_outside_domain(inputs: PriorInputs, card: ModelCard) -> PriorInputs:
    """Replace telemetry outside the domain of a network by gaps.

    The card lists a range for each name, three times as wide as that of the training. Values outside are sentinels, or
    belong to another unit or camera.
    """
    stored: Any = card.calibration.get("telemetry_range", {})
    ranges: dict[str, tuple[float, float]] = dict(stored)
    masked = {}
    for name, values in inputs.telemetry.items():
        column = np.asarray(values, dtype=float)
        low, high = ranges.get(name, (-np.inf, np.inf))
        with np.errstate(invalid="ignore"):
            outside = (column < low) | (column > high)
        if outside.any():
            log.warning("telemetry %s: ignoring %d values outside %g to %g", name, outside.sum(), low, high)
        masked[name] = np.where(outside, np.nan, column)
    return replace(inputs, telemetry=masked)


def _has_network_inputs(inputs: PriorInputs, card: ModelCard) -> npt.NDArray[np.bool_]:
    """Return which exposures have a nominal value, and telemetry or an image that the network reads."""
    informed = np.zeros(len(inputs), dtype=bool)
    for name in telemetry_names(card):
        if name in inputs.telemetry:
            informed |= np.isfinite(np.asarray(inputs.telemetry[name], dtype=float))
    if inputs.image is not None and card.architecture.get("image"):
        informed |= np.isfinite(stack_image_statistics(inputs)).any(axis=1)
    return informed & np.isfinite(inputs.nominal)
