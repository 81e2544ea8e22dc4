"""Convolutional blocks of the networks, and their receptive radius.

All blocks can be tiled exactly: normalisation uses frozen statistics (no GroupNorm, no InstanceNorm), zero padding only
occurs at the edges, and a network states its receptive radius and the grid on which tiles must begin (features
``arrays/tiles.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import lcm
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

#: Number of convolutions at full resolution after the U-Net.
_FINE_CONVOLUTIONS = 2
#: Number of hidden values between the conditions of an image and the shifts of channels.
_CONDITION_WIDTH = 16


class ExactConv2d(nn.Conv2d):
    """A convolution in float32, whatever precision the rest of the network has.

    The first convolutions take differences of neighbouring pixels. In the core of a bright star a hundredth of the
    value matters, which is below the resolution of bfloat16 and of eight bits.
    """

    output_dtype: torch.dtype | None = None
    """Type of the output, that of the next layer; by default the type of the weights."""

    def over_pixels(self, stem: int) -> ExactConv2d:
        """Return the equivalent convolution of the image before it is folded into channels.

        Its kernel is `stem` times as large and its stride is `stem` pixels: it maps (n, inputs, stem y, stem x) to the
        result of this one for (n, inputs stem^2, y, x).
        """
        inputs, size = self.in_channels // stem**2, stem * self.kernel_size[0]
        padding = stem * int(self.padding[0])
        equivalent = ExactConv2d(inputs, self.out_channels, size, stride=stem, padding=padding)
        taps = self.weight.unflatten(1, (inputs, stem, stem)).permute(0, 1, 4, 2, 5, 3)
        equivalent.weight = nn.Parameter(taps.reshape(equivalent.weight.shape), requires_grad=False)
        equivalent.bias, equivalent.output_dtype = self.bias, self.output_dtype
        return equivalent

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, y, x) of the type of the weights to (n, outputs, y, x) of that of the next layer."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x).to(self.output_dtype)


class ConvStack(nn.Module):
    """A stack of 3 x 3 convolutions, each with batch normalisation and ReLU; the first is optionally exact."""

    def __init__(self, inputs: int, outputs: int, convolutions: int = 2, *, exact: bool = False) -> None:
        super().__init__()
        widths = [inputs, *[outputs] * convolutions]
        self.convolutions = nn.ModuleList(
            (ExactConv2d if exact and index == 0 else nn.Conv2d)(a, b, 3, padding=1, bias=False)
            for index, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(convolutions))
        self.activations = nn.ModuleList(nn.ReLU(inplace=True) for _ in range(convolutions))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Map (n, inputs, y, x) to (n, outputs, y, x); `shift` (n, outputs) is added to the first convolution."""
        for convolution, norm, activation in zip(self.convolutions, self.norms, self.activations, strict=True):
            x = norm(convolution(x))
            if shift is not None:
                x, shift = x + shift[:, :, None, None].to(x.dtype), None
            x = activation(x)
        return x

    def fuse(self) -> None:
        """Fuse the frozen normalisation into the convolutions: the same function with half the memory traffic."""
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            self.convolutions[index] = fuse_conv_bn_eval(cast("nn.Conv2d", convolution), cast("nn.BatchNorm2d", norm))
            self.norms[index] = nn.Identity()


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015, arXiv:1505.04597), optionally with a space-to-depth stem.

    The stem folds `stem` x `stem` pixels into channels, so that the costly full-resolution layers work on
    ``1 / stem^2`` of the pixels and have `stem` times the receptive radius; the head unfolds them again. To restore
    detail, a few layers at full resolution can combine the image with the features of the U-Net, and a second U-Net
    without a stem can run in parallel: the outputs are added, and its features also enter the layers at full
    resolution.

    Numbers that describe the whole image (*conditions*, such as the width of its stars) can shift the channels of the
    first convolution. This costs nothing per pixel.

    Parameters
    ----------
    inputs, outputs : int
        Number of channels of input and output, at full resolution.
    channels : sequence of int
        Number of channels of each level, the finest first; one level more than there are pools.
    stem : int
        Size of the stem; 1 for none.
    merge : str
        How skip connections are merged: ``concatenate``, as published, or ``add``, which halves the cost of the next
        convolution.
    down, up : int
        Number of convolutions per level of the encoder and the decoder; the lowest level belongs to the encoder.
    fine : int
        Number of channels of the layers at full resolution, 0 for none. Before training their output is 0.
    close : sequence of int
        Number of channels of each level of the second U-Net; empty for none. It needs `fine`.
    conditions : int
        Number of conditions of an image.

    Raises
    ------
    ValueError
        If `close` is given without `fine`.
    """

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        channels: Sequence[int],
        stem: int = 1,
        merge: Literal["concatenate", "add"] = "concatenate",
        down: int = 2,
        up: int = 2,
        fine: int = 0,
        close: Sequence[int] = (),
        conditions: int = 0,
    ) -> None:
        super().__init__()
        if close and not fine:
            raise ValueError(f"close: found {list(close)} without fine; wanted both, or neither")
        self.stem, self.pools, self.merge = stem, len(channels) - 1, merge
        self._folds = stem > 1
        self.radius = receptive_radius(self.pools, stem, down=down, up=up) + (_FINE_CONVOLUTIONS if fine else 0)
        widths = [inputs * stem**2, *channels]
        self.down = nn.ModuleList(
            ConvStack(a, b, down, exact=level == 0) for level, (a, b) in enumerate(pairwise(widths))
        )
        pairs = list(pairwise(channels))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(coarser, finer, 2, stride=2) for finer, coarser in pairs)
        self.join = nn.ModuleList(Join(merge) for _ in pairs)
        self.up = nn.ModuleList(ConvStack(finer if merge == "add" else 2 * finer, finer, up) for finer, _ in pairs)
        self.head = nn.Conv2d(channels[0], outputs * stem**2, 1)
        self.condition = ConditionLayers(conditions, channels[0]) if conditions else None
        self.close = UNet(inputs=inputs, outputs=outputs, channels=close) if close else None
        coarse_features = close[0] if close else 0
        self.fine = FineLayers(inputs, outputs, channels[0], fine, stem, close=coarse_features) if fine else None
        if self.close is not None:
            self.radius = max(self.radius, self.close.radius + _FINE_CONVOLUTIONS)
            nn.init.zeros_(self.close.head.weight)
            nn.init.zeros_(cast("Tensor", self.close.head.bias))

    @property
    def grid(self) -> int:
        """Return the pixels on whose multiples tiles must begin and end."""
        return lcm(unet_grid(self.pools, self.stem), 1 if self.close is None else self.close.grid)

    def forward(self, x: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Map (n, inputs, y, x) and (n, conditions) to (n, outputs, y, x); y and x are multiples of `grid`."""
        coarse_features = self.features(x, conditions)
        coarse = nn.functional.pixel_shuffle(self.head(coarse_features), self.stem)
        if self.fine is None:
            return coarse
        if self.close is None:
            return coarse + self.fine(x, coarse_features)
        close_features = self.close.features(x)
        return coarse + self.close.head(close_features) + self.fine(x, coarse_features, close_features)

    def features(self, x: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Map (n, inputs, y, x) and (n, conditions) to the features of folded pixels that enter the head."""
        x = nn.functional.pixel_unshuffle(x, self.stem) if self._folds else x
        skips = []
        for level, block in enumerate(self.down):
            x = block(x, self.shift(conditions)) if level == 0 else block(nn.functional.max_pool2d(x, 2))
            skips.append(x)
        for level in reversed(range(self.pools)):
            x = self.up[level](self.join[level](skips[level], self.rise[level](x)))
        return x

    def shift(self, conditions: Tensor | None) -> Tensor | None:
        """Return the shift of the channels of the first convolution (n, channels) for some conditions, None without."""
        if self.condition is None:
            return None
        if conditions is None:
            raise ValueError("conditions: found none; wanted those that the network was trained with")
        return cast("Tensor", self.condition(conditions))

    @property
    def first(self) -> ExactConv2d:
        """Return the first convolution, which is always exact."""
        return cast("ExactConv2d", cast("ConvStack", self.down[0]).convolutions[0])

    def fuse(self) -> None:
        """Fuse all frozen normalisation and the stem into the convolutions: the same function in fewer passes."""
        for block in self.modules():
            if isinstance(block, ConvStack):
                block.fuse()
        if self._folds:
            cast("ConvStack", self.down[0]).convolutions[0] = self.first.over_pixels(self.stem)
            self._folds = False

    def lower(self, dtype: torch.dtype) -> None:
        """Convert all layers to a shorter type, except those of the image itself and of its conditions."""
        exact = set() if self.condition is None else set(self.condition.modules())
        for part in set(self.modules()) - exact:
            if not isinstance(part, ExactConv2d) and not any(True for _ in part.children()):
                part.to(dtype)
            elif isinstance(part, ExactConv2d):
                part.output_dtype = dtype


class Join(nn.Module):
    """Merge a skip connection with upsampled features: concatenate, or add."""

    def __init__(self, merge: Literal["concatenate", "add"]) -> None:
        super().__init__()
        self.adds = merge == "add"

    def forward(self, skip: Tensor, upsampled: Tensor) -> Tensor:
        """Map twice (n, channels, y, x) to (n, channels or twice as many, y, x)."""
        return upsampled.add_(skip) if self.adds else torch.cat([skip, upsampled], dim=1)


class ConditionLayers(nn.Module):
    """Layers that turn the conditions of an image into shifts of channels, in float32; before training these are 0."""

    def __init__(self, conditions: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(conditions, _CONDITION_WIDTH)
        self.output = nn.Linear(_CONDITION_WIDTH, outputs)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, conditions: Tensor) -> Tensor:
        """Map (n, conditions) to (n, outputs)."""
        with torch.autocast(conditions.device.type, enabled=False):
            shift = self.output(torch.relu(self.hidden(conditions.float())))
        return cast("Tensor", shift)


class FineLayers(nn.Module):
    """Layers at full resolution, which combine the image with the features of a U-Net.

    The features of a second U-Net without a stem (`close` channels) are optional; their initial weights are 0.
    """

    def __init__(self, inputs: int, outputs: int, coarse: int, width: int, stem: int, *, close: int = 0) -> None:
        super().__init__()
        self.stem = stem
        self.look = ConvStack(inputs, width, 1, exact=True)
        self.spread = nn.Conv2d(coarse, width * stem**2, 1)
        self.settle = ConvStack(2 * width + close, width, _FINE_CONVOLUTIONS)
        self.head = nn.Conv2d(width, outputs, 1)
        nn.init.zeros_(cast("nn.Conv2d", self.settle.convolutions[0]).weight[:, 2 * width :])
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(cast("Tensor", self.head.bias))

    def forward(self, image: Tensor, coarse: Tensor, *close_features: Tensor) -> Tensor:
        """Map an image (n, inputs, y, x), features of folded pixels and optionally of pixels to (n, outputs, y, x)."""
        spread = nn.functional.pixel_shuffle(self.spread(coarse), self.stem)
        return cast("Tensor", self.head(self.settle(torch.cat([self.look(image), spread, *close_features], dim=1))))


def unet_grid(pools: int, stem: int = 1) -> int:
    """Return the pixels on whose multiples the tiles of a U-Net must begin and end."""
    return int(stem * 2**pools)


def receptive_radius(pools: int, stem: int = 1, *, down: int = 2, up: int = 2) -> int:
    """Return the receptive radius of a U-Net [pixel].

    A convolution of level l has the radius ``2^l``. Level l has `down` convolutions in the encoder and `up` in the
    decoder, the lowest level L only those of the encoder; the cells of the pools add ``2^L - 1``. With double
    convolutions the sum is ``R = 6 * 2^L - 4 + 2^L - 1``. A stem of size r increases it to ``r R + r - 1``.

    Examples
    --------
    >>> receptive_radius(1), receptive_radius(1, stem=2)
    (9, 19)
    """
    radius = (down + up) * (2**pools - 1) + down * 2**pools + 2**pools - 1
    return stem * radius + stem - 1
