"""The cosmic-ray U-Net: its input channels, and the hit probability of every pixel.

The network has three input channels: the inverse hyperbolic sine of the height above the background in units of the
sky noise, which shows shapes; the same in units of the noise of the pixel itself, which shows what is significant on a
source; and the mask of ignored pixels, whose height is only the median of their neighbours. A network can also be given
conditions of the frame: the correlation of its noise and the sharpness of its stars.

Background and noise are estimated once on the whole frame, so that the channels do not depend on the tiling.
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
from csstdask.cosmicray.preprocess import CONDITIONS, NOISE_CORRELATION, PreparedFrame
from csstdask.nn.blocks import UNet
from csstdask.nn.card import ModelCard
from csstdask.nn.device import choose_device
from csstdask.nn.precision import Precision
from csstdask.nn.weights import load_network

#: Names of the input channels; the card of a network lists those it was trained on.
CHANNELS = ("asinh of height over sky noise", "asinh of height over own noise", "ignored")
#: Channels of other networks: counts [e-], and counts minus their mean in units of their standard deviation.
COUNTS, STANDARDISED = "counts", "standardised counts"
#: Size of the core of a tile [pixel]: larger ones exceed the cache, smaller ones are mostly halo.
TILE = 864
#: Number of tiles per batch: a host gains nothing from more than one, a GPU does.
BATCH = {"cpu": 1, "cuda": 8}
#: Number of rows whose channels a host computes at once, so that intermediate results stay in the cache.
_ROWS = 128
#: Smallest noise to divide by [e-].
_MIN_NOISE = np.float32(1e-6)
#: Logit of one hit in twenty, the initial output of an untrained network.
_PRIOR_LOGIT = -3.0


def build_unet(*, inputs: int = len(CHANNELS), **architecture: Any) -> UNet:
    """Return an untrained network with one logit for each pixel."""
    network = UNet(inputs=inputs, outputs=1, **architecture)
    torch.nn.init.constant_(network.head.bias, _PRIOR_LOGIT)  # type: ignore[arg-type]
    return network


@dataclass(frozen=True)
class ChannelReader:
    """Input channels of a network, computed window by window."""

    prepared: PreparedFrame
    names: tuple[str, ...] = CHANNELS
    """Names of the channels."""
    lower_significance: bool = True
    """Whether correlated noise lowers significance; not for networks that know the correlation."""

    def __post_init__(self) -> None:
        known = {*CHANNELS, COUNTS, STANDARDISED}
        if not self.names or not set(self.names) <= known:
            raise InputError("channels of a network", f"{list(self.names)}", f"some of {sorted(known)}")

    @cached_property
    def _moments(self) -> tuple[float, float]:
        return float(self.prepared.data.mean()), max(float(self.prepared.data.std()), float(_MIN_NOISE))

    def at(self, window: Window = (slice(None), slice(None))) -> Any:
        """Return the channels of a window, float32 (channel, y, x).

        Outside the frame, up to the grid of the network, the frame is mirrored: with zeros, the halo of a star at the
        edge would end abruptly and look like a cosmic ray.
        """
        xp = namespace_of(self.prepared.data)
        shape = self.prepared.data.shape
        rows, columns = (slice(*part.indices(length)[:2]) for part, length in zip(window, shape, strict=True))
        ny, nx = rows.stop - rows.start, columns.stop - columns.start
        seen = xp.empty((len(self.names), ny, nx), dtype=np.float32)
        step = _ROWS if xp is np else ny
        for first in range(0, ny, step):
            strip = slice(rows.start + first, min(rows.start + first + step, rows.stop))
            for index, name in enumerate(self.names):
                seen[index, first : first + step] = self._channel(name, strip, columns)
        beyond = [(0, max(0, (part.stop or 0) - length)) for part, length in zip(window, shape, strict=True)]
        return xp.pad(seen, [(0, 0), *beyond], mode="symmetric") if any(after for _, after in beyond) else seen

    def _channel(self, name: str, rows: slice, columns: slice) -> Any:
        prepared, xp = self.prepared, namespace_of(self.prepared.data)
        if name == CHANNELS[2]:
            return prepared.ignore[rows, columns]
        if name == COUNTS:
            return prepared.data[rows, columns]
        if name == STANDARDISED:
            mean, deviation = self._moments
            return (prepared.data[rows, columns] - np.float32(mean)) / np.float32(deviation)
        height = prepared.data[rows, columns] - prepared.mesh.background_at(rows, columns)
        noise = prepared.mesh.noise_at(rows, columns) if name == CHANNELS[0] else prepared.error[rows, columns]
        if self.lower_significance and prepared.excess != 1:
            noise = noise * np.float32(prepared.excess)
        return xp.arcsinh(height / xp.maximum(noise, _MIN_NOISE))


def network_channels(prepared: PreparedFrame, *, lower_significance: bool = True) -> Any:
    """Return all channels of a frame, float32 (3, y, x)."""
    return ChannelReader(prepared, lower_significance=lower_significance).at()


def hit_probability(
    prepared: PreparedFrame,
    card: ModelCard,
    *,
    device: Any = None,
    precision: Precision = "float32",
    tile: int = TILE,
    halo: int | None = None,
    batch: int | None = None,
) -> Any:
    """Return the hit probability of each pixel of a frame.

    Parameters
    ----------
    prepared : View
        Frame, prepared for detection.
    card : ModelCard
        Card of the network.
    device : optional
        Torch device; by default that of the data.
    precision : str
        ``float32``, ``bfloat16`` or, on the host, ``int8``.
    tile : int
        Largest size of the core of a tile [pixel].
    halo : int, optional
        Overlap of tiles [pixel], by default the receptive radius of the network; a smaller one makes seams.
    batch : int, optional
        Number of tiles per batch; by default depends on the device.

    Returns
    -------
    float32 array (y, x)
        Probabilities, in the array library of the frame.

    Raises
    ------
    InputError
        If the weights of the card cannot be used, or are for other channels.
    """
    conditions = card.normalisation.get("conditions", [])
    if not set(conditions) <= set(CONDITIONS):
        raise InputError(card.name, f"the conditions {conditions}", f"some of {list(CONDITIONS)}")
    seen = ChannelReader(
        prepared,
        tuple(card.normalisation["channels"]),
        lower_significance=NOISE_CORRELATION not in conditions,
    )
    inputs = card.architecture.get("inputs", len(CHANNELS))
    if len(seen.names) != inputs:
        raise InputError(card.name, f"{inputs} channels for {list(seen.names)}", "one for each that its card names")
    on_gpu = kind_of(prepared.data) == "cupy"
    data_device = torch.device("cuda", prepared.data.device.id) if on_gpu else torch.device("cpu")
    network_device = choose_device(device, like=data_device)
    network = load_network(card, build_unet, network_device, precision)
    scale, offset = card.calibration["scale"], card.calibration["offset"]
    if precision == "int8":
        offset += scale * card.calibration.get("int8_offset", 0.0)

    described = torch.tensor([prepared.conditions(conditions)], device=network_device) if conditions else None

    def compute(windows: list[Any]) -> Tensor:
        stack = torch.stack([torch.as_tensor(window).to(network_device) for window in windows])
        stack = stack.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            logit = network(stack, described)[:, 0].float()
        return torch.sigmoid(scale * logit + offset)

    result = torch.empty(prepared.data.shape, dtype=torch.float32, device=data_device)
    reach = network.radius if halo is None else halo
    tiles = plan_tiles(prepared.data.shape, tile=tile, halo=reach, grid=network.grid)
    for core, part in in_batches(tiles, seen.at, compute, batch or BATCH.get(network_device.type, 1)):
        result[core] = part.to(data_device)
    if on_gpu:
        import cupy  # noqa: PLC0415

        return cupy.from_dlpack(result)
    return result.numpy()
