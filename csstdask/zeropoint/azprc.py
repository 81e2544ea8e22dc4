"""AZP-RC as described by its article, and the choice of a network by its card.

The article (freederia, section 3.2; not refereed, no code) gives layers and widths. What it leaves open is decided
here:

* image: pixels minus the median in units of the noise, compressed by asinh; the statistics of section 3.1 join the
  output of the convolutions;
* stars: magnitude, colour, distance from the centre, airmass, instrumental magnitude. In orbit there is no airmass: the
  Earth-limb angle takes its place. Stars are read from the smallest error to the largest, at most `MAX_ENCODER_STARS`;
* telemetry: that of a space telescope in place of (airmass, temperature, humidity, wind speed), gaps filled with the
  mean. The clock is left out: the article has none, and with it the network is worse on later exposures.

It has no sigma; the root mean square error on its validation exposures stands for it (buffer ``rms``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from csstdask.core.errors import InputError
from csstdask.nn.device import has_bfloat16
from csstdask.numerics.robust import mad_scale
from csstdask.zeropoint.features import IMAGE_STATISTICS, TELEMETRY_NAMES, PriorInputs, image_statistics
from csstdask.zeropoint.network import CLOCKS, PriorNetwork
from csstdask.zeropoint.prior import Prior

MAX_ENCODER_STARS = 128
"""Stars that the recurrent encoder reads."""
PUBLISHED_TELEMETRY = tuple(name for name in TELEMETRY_NAMES if name not in CLOCKS)
"""Its telemetry vector."""
N_CHANNELS = 5
"""Of a star: magnitude, colour, distance from the centre, Earth-limb angle, instrumental magnitude."""
_BATCH = 64
"""Exposures that are computed together."""


@dataclass(frozen=True)
class PublishedTensors:
    """Normalised inputs: patch (n, 1, y, x), statistics (n, s), stars (n, m, 5), count (n,), telemetry (n, t).

    In place of patches the output of the convolutions (n, 64) is accepted.
    """

    patch: Tensor
    statistics: Tensor
    stars: Tensor
    count: Tensor
    telemetry: Tensor

    def __len__(self) -> int:
        return len(self.telemetry)

    def take(self, index: Tensor | slice) -> PublishedTensors:
        """Return some of the exposures."""
        return PublishedTensors(**{name: value[index] for name, value in vars(self).items()})


class AzpRc(nn.Module):
    """The published network (section 3.2).

    Parameters
    ----------
    telemetry : sequence of str
        Names of the telemetry vector.
    image, stars : bool
        Whether the branches of image and catalogue are there.
    telemetry_branch : bool
        Whether that of telemetry is there; without it and ``stars`` it is the image-only CNN of section 4.3.
    kind : str
        ``azprc``.
    """

    def __init__(
        self, telemetry: Sequence[str] = PUBLISHED_TELEMETRY, *, image: bool = True, stars: bool = True,
        telemetry_branch: bool = True, kind: str = "azprc",
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind, self.telemetry = kind, tuple(telemetry)
        self.architecture = {
            "kind": kind, "telemetry": list(telemetry), "image": image, "stars": stars,
            "telemetry_branch": telemetry_branch,
        }  # fmt: skip
        n_statistics = len(IMAGE_STATISTICS)
        for name, size in (("statistics", n_statistics), ("star", N_CHANNELS), ("telemetry", len(self.telemetry))):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.register_buffer("offset_mean", torch.tensor(0.0))
        self.register_buffer("rms", torch.tensor(0.1))
        self.rms: Tensor
        self.offset_mean: Tensor
        width = 0
        self.image = self.rnn = self.conditions = None
        if image:
            self.image = nn.Sequential(
                nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 64),
            )  # fmt: skip
            width += 64 + n_statistics
        if stars:
            self.rnn = nn.GRU(N_CHANNELS, 64, batch_first=True, bidirectional=True)
            self.attention = nn.Linear(128, 1)
            width += 128
        if telemetry_branch:
            self.conditions = _perceptron(len(self.telemetry), 32, 32, 32)
            width += 32
        self.head = nn.Sequential(_perceptron(width, 128, 64, 32), nn.Linear(32, 1))

    def forward(self, x: PublishedTensors) -> Tensor:
        """Return the zero point minus nominal (n,) [mag]."""
        return self.offset_mean + self.head(self.latent(x)).squeeze(-1)

    def latent(self, x: PublishedTensors) -> Tensor:
        """Return the concatenated outputs of the branches (n, width)."""
        parts = []
        if self.image is not None:
            lowered = self.training and x.patch.device.type == "cpu" and has_bfloat16()
            with torch.autocast(x.patch.device.type, torch.bfloat16, enabled=lowered):
                found = x.patch if x.patch.ndim == 2 else self.image(x.patch)
            parts += [found.float(), x.statistics]
        if self.rnn is not None:
            parts.append(self._stars(x.stars, x.count))
        if self.conditions is not None:
            parts.append(self.conditions(x.telemetry))
        return torch.cat(parts, dim=1)

    def _stars(self, stars: Tensor, count: Tensor) -> Tensor:
        """Return the attention-pooled states of the recurrent encoder (n, 128); 0 without stars."""
        assert self.rnn is not None  # noqa: S101
        length = count.clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(stars, length, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        there = torch.arange(states.shape[1], device=states.device) < count[:, None]
        score = torch.where(there, self.attention(states).squeeze(-1), torch.full((), -1e4, dtype=states.dtype))
        weight = torch.where(there, score.softmax(dim=1), torch.zeros((), dtype=states.dtype))
        return (weight[..., None] * states).sum(dim=1)


def _perceptron(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


def normalise_patch(patch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return a patch minus its median in units of its noise, compressed by asinh; zeros where it is not finite."""
    data = np.asarray(patch, dtype=np.float32)
    known = np.isfinite(data)
    if not known.any():
        return np.zeros(data.shape, np.float32)
    flat = data[known][::4]
    middle = np.float32(np.median(flat))
    noise = np.float32(max(float(mad_scale(flat, center=middle)), 1e-6))
    return np.where(known, np.arcsinh((data - middle) / noise), np.float32(0.0))


def published_star_rows(stars: npt.NDArray[np.float32], limb: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the channels (n, m, 5) of star lists (n, m, 7) whose ``inst_mag`` has the nominal zero point added."""
    shape = stars.shape[:2]
    distance = np.hypot(stars[..., 5], stars[..., 6])
    angle = np.broadcast_to(np.asarray(limb, dtype=float)[:, None], shape)
    return np.stack([stars[..., 2], stars[..., 4], distance, angle, stars[..., 0]], axis=-1).astype(np.float32)


def published_tensors(
    network: AzpRc,
    patches: npt.NDArray[Any] | None,
    statistics: npt.NDArray[Any],
    stars: npt.NDArray[np.float32],
    telemetry: npt.NDArray[Any],
) -> PublishedTensors:
    """Normalise inputs of the network.

    Parameters
    ----------
    network : AzpRc
        With means and standard deviations set.
    patches : array (n, y, x), optional
        As of `normalise_patch`.
    statistics : array (n, s)
    stars : array (n, m, 7)
        As in `PriorArrays`.
    telemetry : array (n, t)
    """
    names = network.telemetry
    known = "earth_limb_angle" in names
    limb = telemetry[:, names.index("earth_limb_angle")] if known else np.full(len(telemetry), np.nan)
    rows = published_star_rows(stars, limb)[:, :MAX_ENCODER_STARS]
    there = np.isfinite(stars[:, :MAX_ENCODER_STARS, 0])
    parts = {
        name: _standard(values, getattr(network, f"{name}_mean"), getattr(network, f"{name}_std"))
        for name, values in (("statistics", statistics), ("star", rows), ("telemetry", telemetry))
    }
    image = np.zeros((len(telemetry), 1, 1, 1), np.float32) if patches is None else np.asarray(patches)
    if patches is not None and image.ndim == 3:
        image = image[:, None]
    return PublishedTensors(
        torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)), parts["statistics"], parts["star"],
        torch.from_numpy(there.sum(axis=1)), parts["telemetry"],
    )  # fmt: skip


def _standard(values: npt.NDArray[Any], mean: Tensor, std: Tensor) -> Tensor:
    scaled = (torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)) - mean.cpu()) / std.cpu()
    return torch.where(torch.isfinite(scaled), scaled.clamp(-8, 8), torch.zeros(()))


def predict_published(network: nn.Module, inputs: PriorInputs) -> Prior:
    """Predict zero points with the published network; sigma is its root mean square error in validation.

    The star lists carry their level, as published: the result must not be joined with a solve.
    """
    if not isinstance(network, AzpRc):
        raise InputError(type(network).__name__, "no network of zero points", "zeropoint or azprc")
    from csstdask.zeropoint.prior import prior_arrays, take_inputs  # noqa: PLC0415  mutual

    value = np.full(len(inputs), np.nan)
    device = network.rms.device
    for start in range(0, len(inputs), _BATCH):
        some = take_inputs(inputs, slice(start, start + _BATCH))
        arrays = prior_arrays(some, network.telemetry, memory=0)
        patches = None
        if network.image is not None and some.image is not None and some.image.ndim == 3:
            patches = np.stack([normalise_patch(one) for one in some.image])
        elif network.image is not None:
            patches = np.zeros((len(some), 64, 64), np.float32)
        x = published_tensors(network, patches, arrays.image, arrays.stars, arrays.telemetry)
        with torch.inference_mode():
            found = network(PublishedTensors(**{k: v.to(device) for k, v in vars(x).items()}))
        value[start : start + _BATCH] = some.nominal + found.double().cpu().numpy()
    return Prior(value, np.full(len(inputs), float(network.rms)), np.full(len(inputs), "prior", dtype="<U8"))


def build_network(kind: str, **architecture: Any) -> nn.Module:
    """Make the network of a card's architecture; InputError if its kind is unknown."""
    if kind == "azprc":
        return AzpRc(kind=kind, **architecture)
    if kind == "zeropoint":
        return PriorNetwork(kind=kind, **architecture)
    raise InputError("architecture", f"kind = {kind!r}", "'zeropoint' or 'azprc'")


__all__ = ["AzpRc", "build_network", "image_statistics", "normalise_patch", "predict_published", "published_tensors"]
