"""CSST-PSFNet: a variational Transformer from a star's stamp to its PSF (CSST-PSFNet paper, section III.1).

The paper describes the modules and their order, but not the numbers of its figure 3: widths, depths and the size of the
latent code are our choice.

A stamp passes three residual modules of convolutions, two of which halve it, and attention over channels and space. Its
8 x 8 features, the position on the detector, and the detector are tokens of a Transformer encoder; their mean gives a
Gaussian in the latent space. The 8 x 8 tokens of a decoder attend to a sample of it, to the position and to the
detector, and are upsampled three times by a factor of two. A sigmoid makes the image positive; its sum is scaled to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Width of a stamp [pixel].
STAMP = 32
#: Width of a PSF [sample].
PSF = 64
#: Tokens along each axis.
_TOKENS = 8
#: Number of groups of channels in group normalisation.
GROUPS = 8
#: Largest logarithm of the variance of a latent number: its exponential must not overflow.
_MAX_LOG_VARIANCE = 4.0
#: Smallest logarithm of the variance of a latent number.
_MIN_LOG_VARIANCE = -16.0
#: Initial bias of the output, before the sigmoid: dark sky at a thousandth of the brightest sample.
_INITIAL_BIAS = -7.0


class NetworkOutput(NamedTuple):
    """Output of the network for n stars."""

    image: Tensor
    """(n, 64, 64) PSFs of unit sum."""
    mean: Tensor
    """(n, latent) Mean of the latent code."""
    log_variance: Tensor
    """(n, latent) Logarithm of its variance."""


class _Residual(nn.Module):
    """Two convolutions and a skip connection, with an optional stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
            nn.GroupNorm(GROUPS, outputs),
            nn.GELU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.GroupNorm(GROUPS, outputs),
        )
        self.short = nn.Conv2d(inputs, outputs, 1, stride=stride)
        self.after = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.body(x) + self.short(x))


class _Attention(nn.Module):
    """Channel attention, then spatial attention, from means and maxima."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = nn.Sequential(nn.Linear(channels, channels // 4), nn.GELU(), nn.Linear(channels // 4, channels))
        self.places = nn.Conv2d(2, 1, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        by_channel = self.channels(x.mean(dim=(2, 3))) + self.channels(x.amax(dim=(2, 3)))
        x = x * torch.sigmoid(by_channel)[:, :, None, None]
        by_position = torch.stack([x.mean(dim=1), x.amax(dim=1)], dim=1)
        return x * torch.sigmoid(self.places(by_position))


class PsfNet(nn.Module):
    """The network CSST-PSFNet.

    Parameters
    ----------
    detectors : int
        Number of detectors, numbered from 0.
    channels : sequence of int
        Channels of the three residual modules.
    width : int
        Width of a token.
    heads, layers : int
        Attention heads and layers of encoder and decoder.
    latent : int
        Size of the latent code.
    upward : sequence of int
        Channels at 16, 32 and 64 samples.
    """

    def __init__(
        self,
        detectors: int,
        *,
        channels: Sequence[int] = (8, 16, 32),
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        latent: int = 64,
        upward: Sequence[int] = (32, 16, 8),
    ) -> None:
        super().__init__()
        first, second, third = channels
        self.features = nn.Sequential(
            _Residual(1, first, 1), _Residual(first, second, 2), _Residual(second, third, 2), _Attention(third)
        )
        self.to_tokens = nn.Conv2d(third, width, 1)
        self.where = nn.Parameter(torch.randn(_TOKENS**2, width) * 0.02)
        self.place = nn.Sequential(nn.Linear(2, width), nn.GELU(), nn.Linear(width, width))
        self.detector = nn.Embedding(detectors, width)
        shape: dict[str, Any] = {"d_model": width, "nhead": heads, "dim_feedforward": 2 * width, "dropout": 0.0}
        kind: dict[str, Any] = {"activation": "gelu", "batch_first": True, "norm_first": True}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**shape, **kind), layers, enable_nested_tensor=False
        )
        self.code = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * latent))
        self.from_code = nn.Linear(latent, width)
        self.queries = nn.Parameter(torch.randn(_TOKENS**2, width) * 0.02)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shape, **kind), layers)
        steps: list[nn.Module] = []
        for wide, narrow in zip((width, *upward[:-1]), upward, strict=True):
            steps += [nn.Conv2d(wide, 4 * narrow, 3, padding=1), nn.PixelShuffle(2), nn.GELU()]
        self.upwards = nn.Sequential(*steps)
        self.head = nn.Sequential(
            nn.Conv2d(upward[-1], upward[-1], 3, padding=1), nn.GELU(), nn.Conv2d(upward[-1], 1, 3, padding=1)
        )
        nn.init.constant_(self.head[-1].bias, _INITIAL_BIAS)  # type: ignore[arg-type]

    def forward(self, stamp: Tensor, place: Tensor, detector: Tensor) -> NetworkOutput:
        """Return the PSFs of stars.

        Parameters
        ----------
        stamp : float32 (n, 32, 32)
            Stamps, normalised to values of the order of one.
        place : float32 (n, 2)
            Positions x and y on the detector, 0 to 1.
        detector : int64 (n,)
            Numbers of the detectors, from 0.
        """
        n = len(stamp)
        position = torch.stack([self.place(place), self.detector(detector)], dim=1)
        features = self.to_tokens(self.features(stamp[:, None])).flatten(2).transpose(1, 2)
        encoded = self.encoder(torch.cat([features + self.where, position], dim=1))
        mean, log_variance = self.code(encoded.mean(dim=1)).chunk(2, dim=1)
        log_variance = log_variance.clamp(_MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE)
        code = mean
        if self.training:
            code = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        memory = torch.cat([self.from_code(code)[:, None], position], dim=1)
        tokens = self.decoder(self.queries.expand(n, -1, -1) + memory[:, :1], memory)
        laid_out = tokens.transpose(1, 2).reshape(n, -1, _TOKENS, _TOKENS)
        light = torch.sigmoid(self.head(self.upwards(laid_out))[:, 0].float())
        return NetworkOutput(light / light.sum(dim=(1, 2), keepdim=True), mean, log_variance)
