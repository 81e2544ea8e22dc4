"""Repair of stars and galaxies by a network that takes a stamp around each source.

There are two scalings of the stamps. ``noise``: the inverse hyperbolic sine of the significance of the height above the
sky, with hit pixels at the median of their neighbours; the network predicts the correction to that median and the
variance of the result in units of the noise of the pixel. ``min-max``, of the CSST cosmic-ray rejection paper: values
between the minimum and maximum of the stamp over pixels that are not hit, with hit pixels at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csstdask.arrays.namespace import kind_of, namespace_of, to_host
from csstdask.arrays.stamps import centre_pixels, cut_stamps, nearest_stamp
from csstdask.core.errors import InputError
from csstdask.nn.blocks import UNet
from csstdask.nn.card import ModelCard
from csstdask.nn.device import choose_device
from csstdask.nn.unetpp import UNetPlusPlus
from csstdask.nn.weights import load_network

Scaling = Literal["noise", "min-max"]
#: Size of a stamp [pixel].
SIZE = 64
#: Number of input and output channels of a network, by scaling.
INPUTS: dict[Scaling, int] = {"noise": 4, "min-max": 2}
OUTPUTS: dict[Scaling, int] = {"noise": 2, "min-max": 1}
#: Largest asinh(significance) of a prediction, against overflow.
_MAX_ASINH = 14.0
#: Largest log of the predicted variance in units of the variance of the pixel.
_MAX_LOG_VARIANCE = 12.0
#: Smallest noise to divide by [e-].
_MIN_NOISE = 1e-6
#: Smallest range of a stamp to divide by [e-].
_MIN_RANGE = 1e-3
#: Log of the relative variance that an untrained network predicts.
_INITIAL_LOG_VARIANCE = 1.0
#: Height above the sky from which a pixel belongs to a source [sigma].
_SOURCE_SIGMA = 3.0
#: Number of stamps per batch.
_BATCH_SIZE = 128

Positions = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Stamps:
    """Stamps in electrons."""

    height: Tensor
    """float32 (n, y, x), height above the sky [e-]; hit and unknown pixels hold the median of their neighbours."""
    noise: Tensor
    """float32 (n, y, x), noise of the sky [e-]."""
    hit: Tensor
    """bool (n, y, x), pixels hit by cosmic rays."""
    unknown: Tensor
    """bool (n, y, x), pixels that are ignored or outside the frame."""

    def to(self, device: torch.device) -> Stamps:
        """Return the stamps on a device."""
        return Stamps(*(plane.to(device) for plane in (self.height, self.noise, self.hit, self.unknown)))


def build_inpainting_network(
    *, kind: Literal["unet", "unetpp"], scaling: Scaling, **architecture: Any
) -> UNet | UNetPlusPlus:
    """Return an untrained network."""
    if scaling not in INPUTS:
        raise InputError("scaling", repr(scaling), f"one of {', '.join(INPUTS)}")
    channels: dict[str, Any] = {"inputs": INPUTS[scaling], "outputs": OUTPUTS[scaling]}
    if kind not in ("unet", "unetpp"):
        raise InputError("kind", repr(kind), "unet or unetpp")
    if kind == "unetpp":
        return UNetPlusPlus(**channels, **architecture)
    network = UNet(**channels, **architecture)
    torch.nn.init.zeros_(network.head.weight)
    if network.head.bias is not None and scaling == "noise":
        network.head.bias.data.copy_(torch.tensor([0.0, _INITIAL_LOG_VARIANCE]).repeat_interleave(network.stem**2))
    return network


def network_inputs(stamps: Stamps, scaling: Scaling) -> Tensor:
    """Return the input of a network, float32 (n, channel, y, x)."""
    marks = [stamps.hit.float(), stamps.unknown.float()]
    if scaling == "noise":
        peak = stamps.height.amax(dim=(1, 2), keepdim=True).clamp_min(_MIN_RANGE)
        return torch.stack([_significance(stamps), stamps.height / peak, *marks], dim=1)
    low, span = _range(stamps)
    shown = (stamps.height - low) / span
    return torch.stack([torch.where(stamps.hit, 0.0, shown), marks[0]], dim=1)


def decode_output(output: Tensor, stamps: Stamps, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Return heights above the sky [e-] and their variance [e-^2], float32 (n, y, x), from a network's output.

    The variance is that of (predicted height - height without the cosmic ray).
    """
    if scaling == "min-max":
        low, span = _range(stamps)
        height = output[:, 0] * span + low
        return height, pixel_variance(height, stamps.noise)
    asinh = (_significance(stamps) + output[:, 0]).clamp(-_MAX_ASINH, _MAX_ASINH)
    height = stamps.noise.clamp_min(_MIN_NOISE) * torch.sinh(asinh)
    return height, pixel_variance(height, stamps.noise) * output[:, 1].clamp(
        -_MAX_LOG_VARIANCE, _MAX_LOG_VARIANCE
    ).exp()


def repair_sources(
    filled: Any,
    sky: Any,
    noise: Any,
    target: Any,
    ignore: Any,
    positions: Positions,
    card: ModelCard,
    device: Any = None,
) -> tuple[Any, Any, Any]:
    """Repair the hit pixels that belong to sources.

    Parameters
    ----------
    filled : float array (y, x)
        Hit and ignored pixels hold their neighbours' median [e-], sky included.
    sky, noise : float32 arrays (y, x)
        Background and its noise [e-].
    target, ignore : bool arrays (y, x)
        Pixels to repair, and unusable pixels.
    positions : (float array (n,), float array (n,))
        y and x of sources [pixel]. A pixel belongs to the nearest source whose stamp holds it.
    card : ModelCard
        Card of the network.
    device : optional
        Torch device of the network; by default that of the frame.

    Returns
    -------
    which : bool array (y, x)
        Repaired pixels, those that belong to sources.
    value, variance : float32 arrays (k,)
        Their values [e-] and variances [e-^2], in row-major order.
    """
    xp = namespace_of(filled)
    pixels = np.stack([to_host(index) for index in xp.nonzero(target)])
    owner = nearest_stamp(pixels[0], pixels[1], *positions, SIZE)
    which = xp.zeros(target.shape, dtype=bool)
    pixels, owner = pixels[:, owner >= 0], owner[owner >= 0]
    which[xp.asarray(pixels[0]), xp.asarray(pixels[1])] = True
    chosen, number = np.unique(owner, return_inverse=True)
    y, x = (centre_pixels(axis)[chosen] for axis in positions)
    inside = pixels[0] - y[number] + SIZE // 2, pixels[1] - x[number] + SIZE // 2
    target_device = choose_device(device, like=_device_of(filled))
    network = load_network(card, build_inpainting_network, target_device)
    if card.normalisation["size"] != SIZE:
        raise InputError(card.name, f"stamps of {card.normalisation['size']} pixels", f"{SIZE}")
    scaling: Scaling = card.architecture["scaling"]
    above = filled - sky
    value, variance = (torch.empty(len(owner), dtype=torch.float32) for _ in range(2))
    for first in range(0, len(chosen), _BATCH_SIZE):
        members = slice(first, first + _BATCH_SIZE)
        stamps = Stamps(
            *(
                torch.as_tensor(cut_stamps(plane, y[members], x[members], SIZE, fill)).to(target_device)
                for plane, fill in ((above, 0), (noise, 1), (target, False), (ignore, True))
            )
        )
        with torch.inference_mode():
            seen = network_inputs(stamps, scaling).contiguous(memory_format=torch.channels_last)
            height, spread = decode_output(deepest_output(network(seen)), stamps, scaling)
        source = is_source(height, stamps)
        spread = spread * torch.where(source, card.calibration["source"], card.calibration["sky"])
        in_batch = np.flatnonzero((number >= first) & (number < first + _BATCH_SIZE))
        at = (
            torch.as_tensor(number[in_batch] - first),
            torch.as_tensor(inside[0][in_batch]),
            torch.as_tensor(inside[1][in_batch]),
        )
        value[in_batch], variance[in_batch] = height.cpu()[at], spread.cpu()[at]
    return which, xp.asarray(value.numpy()) + sky[which], xp.asarray(variance.numpy())


def _device_of(frame: Any) -> torch.device:
    return torch.device("cuda", frame.device.id) if kind_of(frame) == "cupy" else torch.device("cpu")


def pixel_variance(height: Tensor, noise: Tensor) -> Tensor:
    """Return noise^2 + max(height, 0), as `csstdask.arrays.frame.poisson_variance`, for tensors [e-^2]."""
    return noise * noise + height.clamp_min(0)


def is_source(height: Tensor, stamps: Stamps) -> Tensor:
    """Return the pixels of sources: those more than 3 sigma above the sky."""
    return height > _SOURCE_SIGMA * stamps.noise


def deepest_output(output: Tensor | list[Tensor]) -> Tensor:
    """Return the output of the deepest of nested networks, or the only output."""
    return output[-1] if isinstance(output, list) else output


def _significance(stamps: Stamps) -> Tensor:
    return torch.asinh(stamps.height / stamps.noise.clamp_min(_MIN_NOISE))


def _range(stamps: Stamps) -> tuple[Tensor, Tensor]:
    """Return the minimum and range of each stamp, (n, 1, 1), over pixels that are neither hit nor unknown."""
    without = stamps.hit | stamps.unknown
    low = stamps.height.masked_fill(without, torch.inf).amin(dim=(1, 2), keepdim=True)
    high = stamps.height.masked_fill(without, -torch.inf).amax(dim=(1, 2), keepdim=True)
    none = ~torch.isfinite(low)
    low = low.masked_fill(none, 0.0)
    return low, (high.masked_fill(none, 1.0) - low).clamp_min(_MIN_RANGE)
