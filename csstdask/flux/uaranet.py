"""UaRA-net as published: SEDs and their errors from normalised spectra (Yang et al., section 3 and table 1).

``Conv(4, 3, 2)``, six residual sub-units, batch normalisation and a global average pool give 16 latent numbers ``Z``;
four fully connected layers turn them into the SED. The error branch maps the errors of the spectrum to 16 numbers,
joins them with ``Z`` and returns the *relative* error of each SED pixel. A sub-unit has four convolutions: one on the
feature map ``M``, and three, each with a ReLU, that turn ``|M|`` into the attention ``A``; ``M`` is then shrunk softly
by the threshold ``tau = A |M|`` (equations 4 to 6). The shortcut is padded with zeros where the number of
channels grows.

Two choices that the paper leaves open: the last layer of the error branch is a softplus, so that sigma is positive,
and the smallest relative error is 1e-4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from csstdask.flux.spectral_grids import N_INPUT, N_SED

#: (channels, stride) of the six sub-units.
SUB_UNITS = ((4, 2), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1))
#: Smallest relative error.
_MIN_SIGMA = 1e-4


class SubUnit(nn.Module):
    """Residual sub-unit whose soft threshold follows from an attention map."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(before)
        self.conv = nn.Conv1d(before, after, 3, stride, padding=1)
        self.attention = nn.ModuleList(nn.Conv1d(after, after, 3, padding=1) for _ in range(3))
        self.stride = stride
        self.n_new_channels = after - before

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps (n, after, width / stride) of feature maps (n, before, width)."""
        feature = self.conv(functional.relu(self.norm(x)))
        size = feature.abs()
        attention = size
        for conv in self.attention:
            attention = functional.relu(conv(attention))
        shrunk = feature.sign() * functional.relu(size - attention * size)
        shortcut = x[..., :: self.stride]
        if self.n_new_channels:
            shortcut = functional.pad(shortcut, (0, 0, 0, self.n_new_channels))
        return shrunk + shortcut


class UaRANet(nn.Module):
    """UaRA-net as published.

    Examples
    --------
    >>> network = UaRANet().eval()
    >>> mean, sigma = network(torch.ones(2, 2238), torch.full((2, 2238), 0.05))
    >>> tuple(mean.shape), tuple(sigma.shape)
    ((2, 574), (2, 574))
    """

    def __init__(self, kind: str = "uaranet") -> None:
        super().__init__()
        if kind != "uaranet":
            raise TypeError(f"kind: found {kind!r}; wanted 'uaranet'")
        channels = [4, *(channels for channels, _ in SUB_UNITS)]
        self.first = nn.Conv1d(1, 4, 3, 2, padding=1)
        self.units = nn.Sequential(
            *(SubUnit(before, after, stride) for before, (after, stride) in zip(channels[:-1], SUB_UNITS, strict=True))
        )
        self.norm = nn.BatchNorm1d(16)
        self.sed = nn.Sequential(
            nn.Linear(16, 100), nn.ReLU(), nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 300), nn.ReLU(),
            nn.Linear(300, N_SED),
        )  # fmt: skip
        self.of_error = nn.Sequential(nn.Linear(N_INPUT, 16), nn.ReLU())
        self.sigma = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, N_SED))
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Conv1d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]

    def forward(self, flux: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Return the SED (n, 574) and its relative error (n, 574).

        Parameters
        ----------
        flux, error : tensor (n, 2238)
            Normalised spectra and their 1-sigma errors.
        """
        latent = self.norm(self.units(self.first(flux[:, None]))).mean(dim=-1)
        joined = torch.cat([latent, self.of_error(error)], dim=1)
        return self.sed(latent), functional.softplus(self.sigma(joined)) + _MIN_SIGMA


def published_loss(mean: Tensor, sigma: Tensor, truth: Tensor) -> Tensor:
    """Return the mean over pixels of r^2 / (2 sigma^2) + log sigma + log Y, r = (mean - Y) / Y (equation 17)."""
    residual = (mean - truth) / truth
    return (0.5 * (residual / sigma) ** 2 + torch.log(sigma) + torch.log(truth)).mean()
