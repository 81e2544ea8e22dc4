"""UNet++: a U-Net with convolutions in its skip connections (Zhou et al. 2020, arXiv:1912.05074)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from csstdask.nn.blocks import ConvStack


class UNetPlusPlus(nn.Module):
    """Nested U-Nets of every depth up to the number of pools, each with an output.

    Node ``(i, 0)`` is level `i` of the encoder. The input of node ``(i, j)`` consists of all previous nodes of its
    level and the upsampled node ``(i + 1, j - 1)``. Node ``(0, d)`` is the output of a network of depth `d`: all
    outputs enter the loss (deep supervision), and inference can stop at any of them.

    Parameters
    ----------
    inputs, outputs : int
        Number of channels of the input and of each output.
    channels : sequence of int
        Number of channels of each level, the finest first; one level more than there are pools.
    pruned : int, optional
        Depth at which inference stops, by default the full depth; a smaller one costs less with the same weights.

    Raises
    ------
    ValueError
        If `pruned` is not one of the depths.
    """

    def __init__(self, *, inputs: int, outputs: int, channels: Sequence[int], pruned: int | None = None) -> None:
        super().__init__()
        self.depth = len(channels) - 1
        if pruned is not None and not 1 <= pruned <= self.depth:
            raise ValueError(f"pruned: found {pruned}; wanted 1 to {self.depth}")
        self.pruned = pruned
        widths = [inputs, *channels]
        self.down = nn.ModuleList(ConvStack(a, b) for a, b in pairwise(widths))
        self.rise, self.nested = nn.ModuleDict(), nn.ModuleDict()
        for j in range(1, self.depth + 1):
            for i in range(self.depth + 1 - j):
                self.rise[f"{i}_{j}"] = nn.ConvTranspose2d(channels[i + 1], channels[i], 2, stride=2)
                self.nested[f"{i}_{j}"] = ConvStack(channels[i] * (j + 1), channels[i])
        self.heads = nn.ModuleList(nn.Conv2d(channels[0], outputs, 1) for _ in range(self.depth))

    @property
    def grid(self) -> int:
        """Return the pixels on whose multiples images must begin and end."""
        return int(2**self.depth)

    def forward(self, x: Tensor, depth: int | None = None) -> list[Tensor]:
        """Map (n, inputs, y, x) to an output (n, outputs, y, x) of each depth from 1 to `depth`.

        By default the full depth in training, and the pruned depth in inference.
        """
        if depth is None:
            depth = self.depth if self.training or self.pruned is None else self.pruned
        if not 1 <= depth <= self.depth:
            raise ValueError(f"depth: found {depth}; wanted 1 to {self.depth}")
        levels: list[list[Tensor]] = []
        for level in range(depth + 1):
            x = self.down[level](x if level == 0 else nn.functional.max_pool2d(x, 2))
            levels.append([x])
        for j in range(1, depth + 1):
            for i in range(depth + 1 - j):
                upsampled = self.rise[f"{i}_{j}"](levels[i + 1][j - 1])
                levels[i].append(self.nested[f"{i}_{j}"](torch.cat([*levels[i], upsampled], dim=1)))
        return [head(node) for head, node in zip(self.heads, levels[0][1:], strict=False)]

    def fuse(self) -> None:
        """Fuse all frozen normalisation into the convolutions."""
        for block in self.modules():
            if isinstance(block, ConvStack):
                block.fuse()
