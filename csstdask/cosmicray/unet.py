"""The cosmic-ray U-Net: what it sees of a frame, and what it says about it.

It sees three channels: the inverse hyperbolic sine of a pixel's height above the background, in units of the
sky's noise, which tells shapes; the same in units of the pixel's own noise, which tells what is significant on a
source; and where a pixel was ignored, so that its height is only its neighbours' median.

Background and noise are measured once on the whole frame, so that what the network sees does not depend on how
the frame is tiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from csstdask.arrays.namespace import kind_of, namespace_of
from csstdask.arrays.tiles import Window, in_batches, plan_tiles
from csstdask.cosmicray.view import View
from csstdask.errors import InputError
from csstdask.nn.blocks import UNet
from csstdask.nn.card import ModelCard
from csstdask.nn.device import Precision, autocast, choose_device
from csstdask.nn.weights import load_network

#: What the channels are; the card of a network names them, so that one made for other channels is refused.
CHANNELS = ("asinh of height over sky noise", "asinh of height over own noise", "ignored")
#: Size of a tile's core [pixel]: larger ones leave the processor's cache, smaller ones are mostly halo.
TILE = 512
#: How many are computed at once: a host gains nothing from more than one, a GPU wants to be filled.
BATCH = {"cpu": 1, "cuda": 8}
_LEAST_NOISE = np.float32(1e-6)
#: One hit in twenty, as a logit: where an untrained network begins.
_PRIOR_LOGIT = -3.0


def build_unet(**architecture: Any) -> UNet:
    """Return an untrained network: one logit for each pixel."""
    network = UNet(inputs=len(CHANNELS), outputs=1, **architecture)
    torch.nn.init.constant_(network.head.bias, _PRIOR_LOGIT)  # type: ignore[arg-type]
    return network


def channels_of(view: View, window: Window = (slice(None), slice(None))) -> Any:
    """Return what the network sees of a window, float32 (3, y, x); beyond the frame it is zero."""
    xp = namespace_of(view.data)
    shape = view.data.shape
    rows, columns = (slice(*part.indices(length)) for part, length in zip(window, shape, strict=True))
    height = view.data[rows, columns] - view.mesh.background_at(rows, columns)
    sky = xp.maximum(view.mesh.noise_at(rows, columns), _LEAST_NOISE)
    own = xp.maximum(xp.sqrt(view.variance[rows, columns]), _LEAST_NOISE)
    ignored = view.ignore[rows, columns].astype(np.float32)
    seen = xp.stack([xp.arcsinh(height / sky), xp.arcsinh(height / own), ignored])
    beyond = [(0, max(0, (part.stop or 0) - length)) for part, length in zip(window, shape, strict=True)]
    return xp.pad(seen, [(0, 0), *beyond]) if any(after for _, after in beyond) else seen


def probability(
    view: View,
    card: ModelCard,
    *,
    device: Any = None,
    precision: Precision = "float32",
    tile: int = TILE,
    halo: int | None = None,
    batch: int | None = None,
) -> Any:
    """Return the probability that each pixel of a frame is hit.

    Parameters
    ----------
    view : View
        Of the frame.
    card : ModelCard
        Of the network.
    device : optional
        By default the data's own.
    precision : str
        ``float32`` or ``bfloat16``.
    tile : int
        Largest size of a tile's core [pixel].
    batch : int, optional
        How many are computed at once; by default what suits the device.
    halo : int, optional
        By default the network's receptive radius. A smaller one makes seams.

    Returns
    -------
    float32 array (y, x)
        In the view's own library.

    Raises
    ------
    InputError
        If the card's weights cannot be used, or are for other channels.
    """
    if tuple(card.normalisation.get("channels", ())) != CHANNELS:
        found = f"a network for the channels {card.normalisation.get('channels')}"
        raise InputError(card.name, found, f"one for {list(CHANNELS)}")
    on_gpu = kind_of(view.data) == "cupy"
    own = torch.device("cuda", view.data.device.id) if on_gpu else torch.device("cpu")
    place = choose_device(device, like=own)
    network = load_network(card, build_unet, place)
    scale, offset = card.calibration["scale"], card.calibration["offset"]

    def compute(windows: list[Any]) -> Tensor:
        stack = torch.stack([torch.as_tensor(window) for window in windows]).to(place)
        stack = stack.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), autocast(place, precision):
            logit = network(stack)[:, 0].float()
        return torch.sigmoid(scale * logit + offset)

    result = torch.empty(view.data.shape, dtype=torch.float32, device=own)
    reach = network.radius if halo is None else halo
    tiles = plan_tiles(view.data.shape, tile=tile, halo=reach, grid=network.grid)
    for core, part in in_batches(
        tiles, lambda window: channels_of(view, window), compute, batch or BATCH.get(place.type, 1)
    ):
        result[core] = part.to(own)
    if on_gpu:
        import cupy  # noqa: PLC0415

        return cupy.from_dlpack(result)
    return result.numpy()
