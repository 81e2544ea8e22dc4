"""The convolutional blocks that networks are built from, and how far they see.

Everything here can be tiled exactly: normalisation is by frozen statistics (no GroupNorm, no InstanceNorm),
padding is with zeros at the edges alone, and a network states the radius within which a pixel of its input can
change a pixel of its output and the grid on which tiles must begin (see ``arrays/tiles.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import lcm
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

#: Convolutions at full resolution after the U-Net, where there are such.
_SETTLING = 2


class ExactConv2d(nn.Conv2d):
    """A convolution in float32, whatever type the rest of its network computes in.

    Convolutions that see the image itself take the differences between neighbouring pixels. In the core of a bright
    star what matters is a hundredth of a pixel's value: less than bfloat16 or eight bits can hold.
    """

    gives: torch.dtype | None = None
    """What the next layer computes in; by default the weights' own type."""

    def over_pixels(self, stem: int) -> ExactConv2d:
        """Return the same convolution of the image before it was folded.

        Its kernel is `stem` times as long, and it goes `stem` pixels a step: (n, inputs, stem y, stem x) to what this
        one makes of (n, inputs stem^2, y, x).
        """
        inputs, size = self.in_channels // stem**2, stem * self.kernel_size[0]
        padding = stem * int(self.padding[0])
        whole = ExactConv2d(inputs, self.out_channels, size, stride=stem, padding=padding)
        taps = self.weight.unflatten(1, (inputs, stem, stem)).permute(0, 1, 4, 2, 5, 3)
        whole.weight = nn.Parameter(taps.reshape(whole.weight.shape), requires_grad=False)
        whole.bias, whole.gives = self.bias, self.gives
        return whole

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, y, x) of the weights' type to (n, outputs, y, x) of that which the next layer computes in."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x).to(self.gives)


class ConvStack(nn.Module):
    """Several 3 x 3 convolutions, each with batch normalisation and ReLU; on request the first one is exact."""

    def __init__(self, inputs: int, outputs: int, convolutions: int = 2, *, exact: bool = False) -> None:
        super().__init__()
        widths = [inputs, *[outputs] * convolutions]
        self.convolutions = nn.ModuleList(
            (ExactConv2d if exact and index == 0 else nn.Conv2d)(a, b, 3, padding=1, bias=False)
            for index, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(convolutions))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, y, x) to (n, outputs, y, x)."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = torch.relu_(norm(convolution(x)))
        return x

    def fuse(self) -> None:
        """Take the frozen normalisation into the convolutions: the same function, half the passes over memory."""
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            self.convolutions[index] = fuse_conv_bn_eval(cast("nn.Conv2d", convolution), cast("nn.BatchNorm2d", norm))
            self.norms[index] = nn.Identity()


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015, arXiv:1505.04597), on request behind a space-to-depth stem.

    The stem folds `stem` x `stem` pixels into channels, so that the costly full-resolution layers work on
    ``1 / stem^2`` of the pixels and see `stem` times as far; the head unfolds them again. What a folded pixel then
    lacks are channels of its own; on request a few layers at full resolution, beside the stem, take up what the U-Net
    says of a pixel's surroundings and settle what the pixel itself is. Beside it a second U-Net without a stem may look
    closely: what both say is added, and what it sees goes to the layers at full resolution as well.

    Parameters
    ----------
    inputs, outputs : int
        Channels of the image that comes in and of the one that goes out, at full resolution.
    channels : sequence of int
        Of each level, the finest first; one level more than there are pools.
    stem : int
        1 for none.
    merge : str
        How what a level saw on the way down meets what rises from below: ``concatenate``, as published, or ``add``,
        which halves the work of the convolution after it.
    down, up : int
        Convolutions of a level on the way down and up; the lowest level has those of the way down.
    fine : int
        Channels at full resolution, 0 for none. Untrained they add nothing to what comes out.
    close : sequence of int
        Channels of each level of the second U-Net, none for none; it wants `fine`.

    Raises
    ------
    ValueError
        If there is `close`, but not `fine`.
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
    ) -> None:
        super().__init__()
        if close and not fine:
            raise ValueError(f"close: found {list(close)} without fine; wanted both, or neither")
        self.stem, self.pools, self.merge = stem, len(channels) - 1, merge
        self._folds = stem > 1
        self.radius = receptive_radius(self.pools, stem, down=down, up=up) + (_SETTLING if fine else 0)
        widths = [inputs * stem**2, *channels]
        self.down = nn.ModuleList(
            ConvStack(a, b, down, exact=level == 0) for level, (a, b) in enumerate(pairwise(widths))
        )
        pairs = list(pairwise(channels))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(coarser, finer, 2, stride=2) for finer, coarser in pairs)
        self.up = nn.ModuleList(ConvStack(finer if merge == "add" else 2 * finer, finer, up) for finer, _ in pairs)
        self.head = nn.Conv2d(channels[0], outputs * stem**2, 1)
        self.close = UNet(inputs=inputs, outputs=outputs, channels=close) if close else None
        seen = close[0] if close else 0
        self.fine = FineLayers(inputs, outputs, channels[0], fine, stem, close=seen) if fine else None
        if self.close is not None:
            self.radius = max(self.radius, self.close.radius + _SETTLING)
            nn.init.zeros_(self.close.head.weight)
            nn.init.zeros_(cast("Tensor", self.close.head.bias))

    @property
    def grid(self) -> int:
        """Return the pixels on whose multiples tiles must begin and end."""
        return lcm(unet_grid(self.pools, self.stem), 1 if self.close is None else self.close.grid)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, y, x) to (n, outputs, y, x); y and x are multiples of `grid`."""
        seen = self.see(x)
        coarse = nn.functional.pixel_shuffle(self.head(seen), self.stem)
        if self.fine is None:
            return coarse
        if self.close is None:
            return coarse + self.fine(x, seen)
        closely = self.close.see(x)
        return coarse + self.close.head(closely) + self.fine(x, seen, closely)

    def see(self, x: Tensor) -> Tensor:
        """Map (n, inputs, y, x) to the channels of folded pixels that the head decides by."""
        x = nn.functional.pixel_unshuffle(x, self.stem) if self._folds else x
        passed = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            passed.append(x)
        for level in reversed(range(self.pools)):
            risen = self.rise[level](x)
            both = risen.add_(passed[level]) if self.merge == "add" else torch.cat([passed[level], risen], dim=1)
            x = self.up[level](both)
        return x

    @property
    def first(self) -> ExactConv2d:
        """Return the U-Net's first convolution, which is always exact."""
        return cast("ExactConv2d", cast("ConvStack", self.down[0]).convolutions[0])

    def fuse(self) -> None:
        """Take all frozen normalisation, and the stem, into the convolutions: the same function in fewer passes."""
        for block in self.modules():
            if isinstance(block, ConvStack):
                block.fuse()
        if self._folds:
            cast("ConvStack", self.down[0]).convolutions[0] = self.first.over_pixels(self.stem)
            self._folds = False

    def lower(self, dtype: torch.dtype) -> None:
        """Compute in a shorter type from here on, but for the convolutions that see the image itself."""
        for part in self.modules():
            if not isinstance(part, ExactConv2d) and not any(True for _ in part.children()):
                part.to(dtype)
            elif isinstance(part, ExactConv2d):
                part.gives = dtype


class FineLayers(nn.Module):
    """Layers at full resolution: what a pixel looks like, beside what a U-Net says of where it lies.

    `close` channels of another U-Net, which has no stem, may come to that. Untrained they count for nothing.
    """

    def __init__(self, inputs: int, outputs: int, coarse: int, width: int, stem: int, *, close: int = 0) -> None:
        super().__init__()
        self.stem = stem
        self.look = ConvStack(inputs, width, 1, exact=True)
        self.spread = nn.Conv2d(coarse, width * stem**2, 1)
        self.settle = ConvStack(2 * width + close, width, _SETTLING)
        self.head = nn.Conv2d(width, outputs, 1)
        nn.init.zeros_(cast("nn.Conv2d", self.settle.convolutions[0]).weight[:, 2 * width :])
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(cast("Tensor", self.head.bias))

    def forward(self, image: Tensor, coarse: Tensor, *closely: Tensor) -> Tensor:
        """Map an image (n, inputs, y, x), channels of its folded pixels and perhaps its own to (n, outputs, y, x)."""
        spread = nn.functional.pixel_shuffle(self.spread(coarse), self.stem)
        return cast("Tensor", self.head(self.settle(torch.cat([self.look(image), spread, *closely], dim=1))))


def unet_grid(pools: int, stem: int = 1) -> int:
    """Return the pixels on whose multiples the tiles of a U-Net must begin and end."""
    return int(stem * 2**pools)


def receptive_radius(pools: int, stem: int = 1, *, down: int = 2, up: int = 2) -> int:
    """Return the receptive radius of a U-Net [pixel].

    Level `l` has convolutions of reach ``2^l``, `down` of them on the way down and `up` on the way up (the lowest
    has the first alone); the pools' cells add ``2^L - 1``. For double convolutions that is
    ``6 * 2^L - 4 + 2^L - 1``. A stem of `r` stretches it to ``r R + r - 1``.
    """
    radius = (down + up) * (2**pools - 1) + down * 2**pools + 2**pools - 1
    return stem * radius + stem - 1
