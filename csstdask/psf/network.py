"""CSST-PSFNet: a variational Transformer that turns a star's stamp into its PSF (CSST-PSFNet paper, section III.1).

The paper tells what the parts are and how they follow each other, and lost the numbers of its figure 3: widths, depths
and the size of the latent code are ours.

A stamp goes through three residual modules of convolutions, which halve it twice, and attention over channels and
space. Its 8 x 8 features, what is known of the place on the detector, and the detector itself are tokens of a
Transformer's encoder; their mean tells a Gaussian in the latent space. A decoder's 8 x 8 tokens look at a draw from it,
at the place and at the detector, and are laid out twice as fine three times. A sigmoid keeps light from being negative,
and the image sums to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Pixels of a stamp's edge, samples of a PSF's, and tokens along either.
STAMP, PSF, _TOKENS = 32, 64, 8
#: Groups of channels that are normalised together.
GROUPS = 8
#: Logarithm of the variance of a latent number, at most and at least: beyond, its exponential means nothing.
_LOG_LARGEST, _LOG_LEAST = 4.0, -16.0
#: What the sigmoid says of dark sky before anything is learnt: a thousandth of the brightest.
_DARK = -7.0


class NetworkOutput(NamedTuple):
    """What the network says of n stars."""

    image: Tensor
    """(n, 64, 64), of unit sum."""
    mean: Tensor
    """(n, latent)"""
    log_variance: Tensor
    """(n, latent)"""


class _Residual(nn.Module):
    """Two convolutions beside a short cut, perhaps to half the size."""

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
    """Weights of channels, then of places, from their means and their highest."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = nn.Sequential(nn.Linear(channels, channels // 4), nn.GELU(), nn.Linear(channels // 4, channels))
        self.places = nn.Conv2d(2, 1, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        of_channels = self.channels(x.mean(dim=(2, 3))) + self.channels(x.amax(dim=(2, 3)))
        x = x * torch.sigmoid(of_channels)[:, :, None, None]
        of_places = torch.stack([x.mean(dim=1), x.amax(dim=1)], dim=1)
        return x * torch.sigmoid(self.places(of_places))


class PsfNet(nn.Module):
    """The network.

    Parameters
    ----------
    detectors : int
        How many there are, numbered from 0.
    channels : sequence of int
        Of the three residual modules.
    width : int
        Of a token.
    heads, layers : int
        Of encoder and decoder.
    latent : int
        Numbers of the latent code.
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
        nn.init.constant_(self.head[-1].bias, _DARK)  # type: ignore[arg-type]

    def forward(self, stamp: Tensor, place: Tensor, detector: Tensor) -> NetworkOutput:
        """Return PSFs.

        Parameters
        ----------
        stamp : float32 (n, 32, 32)
            Of the order of one.
        place : float32 (n, 2)
            x and y on the detector, 0 to 1.
        detector : int64 (n,)
            Its number, from 0.
        """
        n = len(stamp)
        known = torch.stack([self.place(place), self.detector(detector)], dim=1)
        features = self.to_tokens(self.features(stamp[:, None])).flatten(2).transpose(1, 2)
        encoded = self.encoder(torch.cat([features + self.where, known], dim=1))
        mean, log_variance = self.code(encoded.mean(dim=1)).chunk(2, dim=1)
        log_variance = log_variance.clamp(_LOG_LEAST, _LOG_LARGEST)
        code = mean
        if self.training:
            code = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        memory = torch.cat([self.from_code(code)[:, None], known], dim=1)
        tokens = self.decoder(self.queries.expand(n, -1, -1) + memory[:, :1], memory)
        laid_out = tokens.transpose(1, 2).reshape(n, -1, _TOKENS, _TOKENS)
        light = torch.sigmoid(self.head(self.upwards(laid_out))[:, 0].float())
        return NetworkOutput(light / light.sum(dim=(1, 2), keepdim=True), mean, log_variance)
