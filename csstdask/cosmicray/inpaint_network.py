"""Repair of stars and galaxies: a network that sees a stamp round each, and says what its hit pixels would have held.

Two ways of seeing. ``noise``, ours: heights above the sky as an inverse hyperbolic sine of their significance, with hit
pixels at the median of their neighbours; the network says how far that is off, and how uncertain it leaves the pixel,
in units of the noise that the pixel itself would have had. ``min-max``, as the CSST rejection paper has it: a stamp
between its lowest and highest value, taken over pixels that are not hit, with hit ones at zero.
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
#: Side of a stamp [pixel].
SIZE = 64
#: Channels that a network sees, and those that it returns, by its scaling.
INPUTS: dict[Scaling, int] = {"noise": 4, "min-max": 2}
OUTPUTS: dict[Scaling, int] = {"noise": 2, "min-max": 1}
#: asinh(significance) of a pixel that nothing can exceed, and log of the largest variance beside the pixel's own.
_HIGHEST, _LARGEST_LOG = 14.0, 12.0
_LEAST_NOISE, _LEAST_SPAN = 1e-6, 1e-3
#: What an untrained network believes of the log variance.
_FIRST_LOG = 1.0
#: A pixel of a source stands so far above the sky [sigma].
_SOURCE_SIGMA = 3.0
#: Stamps that are computed at once.
_BATCH = 128

Positions = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Stamps:
    """Stamps of one frame, or of several, in electrons."""

    height: Tensor
    """float32 (n, y, x) above the sky [e-]; hit and unknown pixels hold their neighbours' median."""
    noise: Tensor
    """float32 (n, y, x) of the sky [e-]."""
    hit: Tensor
    """bool (n, y, x)"""
    unknown: Tensor
    """bool (n, y, x) Ignored, or beyond the frame."""

    def to(self, device: torch.device) -> Stamps:
        """Return them on a device."""
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
        network.head.bias.data.copy_(torch.tensor([0.0, _FIRST_LOG]).repeat_interleave(network.stem**2))
    return network


def network_inputs(stamps: Stamps, scaling: Scaling) -> Tensor:
    """Return what a network sees, float32 (n, channel, y, x)."""
    marks = [stamps.hit.float(), stamps.unknown.float()]
    if scaling == "noise":
        peak = stamps.height.amax(dim=(1, 2), keepdim=True).clamp_min(_LEAST_SPAN)
        return torch.stack([_significance(stamps), stamps.height / peak, *marks], dim=1)
    low, span = _extent(stamps)
    shown = (stamps.height - low) / span
    return torch.stack([torch.where(stamps.hit, 0.0, shown), marks[0]], dim=1)


def decode_output(output: Tensor, stamps: Stamps, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Return heights above the sky [e-] and their variance [e-^2], float32 (n, y, x), from a network's output.

    The variance is that of (the height - what the pixel would have measured).
    """
    if scaling == "min-max":
        low, span = _extent(stamps)
        height = output[:, 0] * span + low
        return height, pixel_variance(height, stamps.noise)
    most = (_significance(stamps) + output[:, 0]).clamp(-_HIGHEST, _HIGHEST)
    height = stamps.noise.clamp_min(_LEAST_NOISE) * torch.sinh(most)
    return height, pixel_variance(height, stamps.noise) * output[:, 1].clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()


def repair_sources(
    filled: Any, sky: Any, noise: Any, target: Any, ignore: Any, places: Positions, card: ModelCard, device: Any = None
) -> tuple[Any, Any, Any]:
    """Repair the hit pixels that belong to sources.

    Parameters
    ----------
    filled : float array (y, x)
        Hit and ignored pixels hold their neighbours' median [e-], sky included.
    sky, noise : float32 arrays (y, x)
        Background and its noise [e-].
    target, ignore : bool arrays (y, x)
        Pixels to repair, and such as nobody knows.
    places : (float array (n,), float array (n,))
        y and x of sources [pixel]. A pixel belongs to the nearest, if its stamp holds the pixel.
    card : ModelCard
        Of the network.
    device : optional
        Where the network runs; by default where the frame is.

    Returns
    -------
    which : bool array (y, x)
        Pixels that belong to sources.
    value, variance : float32 arrays (k,)
        Of these in row-major order [e-, e-^2].
    """
    xp = namespace_of(filled)
    pixels = np.stack([to_host(index) for index in xp.nonzero(target)])
    owner = nearest_stamp(pixels[0], pixels[1], *places, SIZE)
    which = xp.zeros(target.shape, dtype=bool)
    pixels, owner = pixels[:, owner >= 0], owner[owner >= 0]
    which[xp.asarray(pixels[0]), xp.asarray(pixels[1])] = True
    chosen, number = np.unique(owner, return_inverse=True)
    y, x = (centre_pixels(place)[chosen] for place in places)
    inside = pixels[0] - y[number] + SIZE // 2, pixels[1] - x[number] + SIZE // 2
    place = choose_device(device, like=_device_of(filled))
    network = load_network(card, build_inpainting_network, place)
    if card.normalisation["size"] != SIZE:
        raise InputError(card.name, f"stamps of {card.normalisation['size']} pixels", f"{SIZE}")
    scaling: Scaling = card.architecture["scaling"]
    above = filled - sky
    value, variance = (torch.empty(len(owner), dtype=torch.float32) for _ in range(2))
    for first in range(0, len(chosen), _BATCH):
        some = slice(first, first + _BATCH)
        stamps = Stamps(
            *(
                torch.as_tensor(cut_stamps(plane, y[some], x[some], SIZE, fill)).to(place)
                for plane, fill in ((above, 0), (noise, 1), (target, False), (ignore, True))
            )
        )
        with torch.inference_mode():
            seen = network_inputs(stamps, scaling).contiguous(memory_format=torch.channels_last)
            height, spread = decode_output(deepest_output(network(seen)), stamps, scaling)
        source = is_source(height, stamps)
        spread = spread * torch.where(source, card.calibration["source"], card.calibration["sky"])
        mine = np.flatnonzero((number >= first) & (number < first + _BATCH))
        at = (torch.as_tensor(number[mine] - first), torch.as_tensor(inside[0][mine]), torch.as_tensor(inside[1][mine]))
        value[mine], variance[mine] = height.cpu()[at], spread.cpu()[at]
    return which, xp.asarray(value.numpy()) + sky[which], xp.asarray(variance.numpy())


def _device_of(frame: Any) -> torch.device:
    return torch.device("cuda", frame.device.id) if kind_of(frame) == "cupy" else torch.device("cpu")


def pixel_variance(height: Tensor, noise: Tensor) -> Tensor:
    """Return what a pixel of a height would have had of the sky's noise and of its own photons [e-^2]."""
    return noise * noise + height.clamp_min(0)


def is_source(height: Tensor, stamps: Stamps) -> Tensor:
    """Tell where a height is that of a source's pixel, above 3 sigma of the sky."""
    return height > _SOURCE_SIGMA * stamps.noise


def deepest_output(output: Tensor | list[Tensor]) -> Tensor:
    """Return the output of the deepest of nested networks, or the only one."""
    return output[-1] if isinstance(output, list) else output


def _significance(stamps: Stamps) -> Tensor:
    return torch.asinh(stamps.height / stamps.noise.clamp_min(_LEAST_NOISE))


def _extent(stamps: Stamps) -> tuple[Tensor, Tensor]:
    """Return the lowest value of each stamp and its span, (n, 1, 1), over pixels that are neither hit nor unknown."""
    without = stamps.hit | stamps.unknown
    low = stamps.height.masked_fill(without, torch.inf).amin(dim=(1, 2), keepdim=True)
    high = stamps.height.masked_fill(without, -torch.inf).amax(dim=(1, 2), keepdim=True)
    none = ~torch.isfinite(low)
    low = low.masked_fill(none, 0.0)
    return low, (high.masked_fill(none, 1.0) - low).clamp_min(_LEAST_SPAN)
