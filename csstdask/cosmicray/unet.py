"""The cosmic-ray U-Net: what it sees of a frame, and what it says about it.

It sees three channels: the inverse hyperbolic sine of a pixel's height above the background, in units of the
sky's noise, which tells shapes; the same in units of the pixel's own noise, which tells what is significant on a
source; and where a pixel was ignored, so that its height is only its neighbours' median.

Background and noise are measured once on the whole frame, so that what the network sees does not depend on how
the frame is tiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csstdask.arrays.namespace import kind_of, namespace_of
from csstdask.arrays.tiles import Window, in_batches, plan_tiles
from csstdask.core.errors import InputError
from csstdask.cosmicray.preprocess import PreparedFrame
from csstdask.nn.blocks import UNet
from csstdask.nn.card import ModelCard
from csstdask.nn.device import Precision, choose_device
from csstdask.nn.weights import load_network

#: What channels may be; the card of a network names those it was made for.
CHANNELS = ("asinh of height over sky noise", "asinh of height over own noise", "ignored")
#: Of other people's networks: the counts as they are [e-], or less their mean and in units of their deviation.
COUNTS, STANDARDISED = "counts", "standardised counts"
#: Size of a tile's core [pixel]: larger ones leave the processor's cache, smaller ones are mostly halo.
TILE = 864
#: How many are computed at once: a host gains nothing from more than one, a GPU wants to be filled.
BATCH = {"cpu": 1, "cuda": 8}
#: Rows of which a host computes the channels at once.
_ROWS = 128
_LEAST_NOISE = np.float32(1e-6)
#: One hit in twenty, as a logit: where an untrained network begins.
_PRIOR_LOGIT = -3.0


def build_unet(*, inputs: int = len(CHANNELS), **architecture: Any) -> UNet:
    """Return an untrained network: one logit for each pixel."""
    network = UNet(inputs=inputs, outputs=1, **architecture)
    torch.nn.init.constant_(network.head.bias, _PRIOR_LOGIT)  # type: ignore[arg-type]
    return network


@dataclass(frozen=True)
class ChannelReader:
    """What a network sees of a frame, window by window."""

    view: PreparedFrame
    names: tuple[str, ...] = CHANNELS
    """Of the channels."""

    def __post_init__(self) -> None:
        known = {*CHANNELS, COUNTS, STANDARDISED}
        if not self.names or not set(self.names) <= known:
            raise InputError("channels of a network", f"{list(self.names)}", f"some of {sorted(known)}")

    @cached_property
    def _moments(self) -> tuple[float, float]:
        return float(self.view.data.mean()), max(float(self.view.data.std()), float(_LEAST_NOISE))

    def at(self, window: Window = (slice(None), slice(None))) -> Any:
        """Return the channels of a window, float32 (channel, y, x).

        Beyond the frame, where a grid ends, it is mirrored: after zeros a star's halo at the edge would break off, and
        look like a cosmic ray.
        """
        xp = namespace_of(self.view.data)
        shape = self.view.data.shape
        rows, columns = (slice(*part.indices(length)[:2]) for part, length in zip(window, shape, strict=True))
        ny, nx = rows.stop - rows.start, columns.stop - columns.start
        seen = xp.empty((len(self.names), ny, nx), dtype=np.float32)
        # A host computes a few rows at a time: what lies between two operations then stays in the processor's cache.
        step = _ROWS if xp is np else ny
        for first in range(0, ny, step):
            strip = slice(rows.start + first, min(rows.start + first + step, rows.stop))
            for index, name in enumerate(self.names):
                seen[index, first : first + step] = self._channel(name, strip, columns)
        beyond = [(0, max(0, (part.stop or 0) - length)) for part, length in zip(window, shape, strict=True)]
        return xp.pad(seen, [(0, 0), *beyond], mode="symmetric") if any(after for _, after in beyond) else seen

    def _channel(self, name: str, rows: slice, columns: slice) -> Any:
        view, xp = self.view, namespace_of(self.view.data)
        if name == CHANNELS[2]:
            return view.ignore[rows, columns]
        if name == COUNTS:
            return view.data[rows, columns]
        if name == STANDARDISED:
            mean, deviation = self._moments
            return (view.data[rows, columns] - np.float32(mean)) / np.float32(deviation)
        height = view.data[rows, columns] - view.mesh.background_at(rows, columns)
        noise = view.mesh.noise_at(rows, columns) if name == CHANNELS[0] else view.error[rows, columns]
        if view.excess != 1:
            noise = noise * np.float32(view.excess)
        return xp.arcsinh(height / xp.maximum(noise, _LEAST_NOISE))


def network_channels(view: PreparedFrame) -> Any:
    """Return all channels of a frame, float32 (3, y, x)."""
    return ChannelReader(view).at()


def hit_probability(
    view: PreparedFrame,
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
        ``float32``, ``bfloat16`` or, on the host, ``int8``.
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
    seen = ChannelReader(view, tuple(card.normalisation["channels"]))
    inputs = card.architecture.get("inputs", len(CHANNELS))
    if len(seen.names) != inputs:
        raise InputError(card.name, f"{inputs} channels for {list(seen.names)}", "one for each that its card names")
    on_gpu = kind_of(view.data) == "cupy"
    own = torch.device("cuda", view.data.device.id) if on_gpu else torch.device("cpu")
    place = choose_device(device, like=own)
    network = load_network(card, build_unet, place, precision)
    scale, offset = card.calibration["scale"], card.calibration["offset"]
    if precision == "int8":
        offset += scale * card.calibration.get("int8_offset", 0.0)

    def compute(windows: list[Any]) -> Tensor:
        stack = torch.stack([torch.as_tensor(window).to(place) for window in windows])
        stack = stack.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            logit = network(stack)[:, 0].float()
        return torch.sigmoid(scale * logit + offset)

    result = torch.empty(view.data.shape, dtype=torch.float32, device=own)
    reach = network.radius if halo is None else halo
    tiles = plan_tiles(view.data.shape, tile=tile, halo=reach, grid=network.grid)
    for core, part in in_batches(tiles, seen.at, compute, batch or BATCH.get(place.type, 1)):
        result[core] = part.to(own)
    if on_gpu:
        import cupy  # noqa: PLC0415

        return cupy.from_dlpack(result)
    return result.numpy()
