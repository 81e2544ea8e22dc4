"""The convolutional blocks that networks are built from, and how far they see.

Everything here can be tiled exactly: normalisation is by frozen statistics (no GroupNorm, no InstanceNorm),
padding is with zeros at the edges alone, and a network states the radius within which a pixel of its input can
change a pixel of its output and the grid on which tiles must begin (see ``arrays/tiles.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class DoubleConv(nn.Module):
    """Two 3 x 3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.first_norm: nn.Module = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, y, x) to (n, outputs, y, x)."""
        x = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(x)))

    def fuse(self) -> None:
        """Take the frozen normalisation into the convolutions: the same function, half the passes over memory."""
        self.first = fuse_conv_bn_eval(self.first, cast("nn.BatchNorm2d", self.first_norm))
        self.second = fuse_conv_bn_eval(self.second, cast("nn.BatchNorm2d", self.second_norm))
        self.first_norm, self.second_norm = nn.Identity(), nn.Identity()


class UNet(nn.Module):
    """A U-Net of double convolutions, behind a space-to-depth stem (Ronneberger et al. 2015, arXiv:1505.04597).

    The stem folds `stem` x `stem` pixels into channels, so that the costly full-resolution layers work on
    ``1 / stem^2`` of the pixels and see `stem` times as far; the head unfolds them again.

    Parameters
    ----------
    inputs, outputs : int
        Channels of the image that comes in and of the one that goes out, at full resolution.
    channels : sequence of int
        Of each level, the finest first; one level more than there are pools.
    stem : int
        1 for none.
    """

    def __init__(self, *, inputs: int, outputs: int, channels: Sequence[int], stem: int = 1) -> None:
        super().__init__()
        self.stem, self.pools = stem, len(channels) - 1
        widths = [inputs * stem**2, *channels]
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in pairwise(widths))
        pairs = list(pairwise(channels))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.up = nn.ModuleList(DoubleConv(2 * fine, fine) for fine, _ in pairs)
        self.head = nn.Conv2d(channels[0], outputs * stem**2, 1)

    @property
    def grid(self) -> int:
        """Return the pixels on whose multiples tiles must begin and end."""
        return self.stem * 2**self.pools

    @property
    def radius(self) -> int:
        """Return how far away a pixel can change the result, at most."""
        return radius_of(self.pools, self.stem)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, y, x) to (n, outputs, y, x); y and x are multiples of `grid`."""
        x = nn.functional.pixel_unshuffle(x, self.stem)
        passed = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            passed.append(x)
        for level in reversed(range(self.pools)):
            x = self.up[level](torch.cat([passed[level], self.rise[level](x)], dim=1))
        return nn.functional.pixel_shuffle(self.head(x), self.stem)

    def fuse(self) -> None:
        """Take all frozen normalisation into the convolutions."""
        for block in self.modules():
            if isinstance(block, DoubleConv):
                block.fuse()


def radius_of(pools: int, stem: int = 1) -> int:
    """Return the receptive radius of a double-convolution U-Net [pixel].

    Level `l` has convolutions of reach ``2^l``: two on the way down, two on the way up (the lowest has two),
    which sum to ``6 * 2^L - 4``; the pools' cells add ``2^L - 1``. A stem of `r` stretches it to
    ``r R + r - 1``.
    """
    radius = 6 * 2**pools - 4 + 2**pools - 1
    return stem * radius + stem - 1
