"""The network AZP-RC as its article describes it, for comparisons.

The article (freederia, section 3.2; not refereed, no code) gives layers and widths. Choices that it leaves open:

* image: pixels minus the median in units of the noise, compressed by asinh; the statistics of section 3.1 are appended
  to the output of the convolutions;
* stars: magnitude, colour, distance from the centre, airmass, instrumental magnitude. In orbit there is no airmass: the
  Earth-limb angle replaces it. Stars are read from the smallest error to the largest, at most `MAX_ENCODER_STARS`;
* telemetry: that of a space telescope instead of (airmass, temperature, humidity, wind speed), gaps filled with the
  mean. The clock is left out: the article has none, and with it the network is worse on later exposures.

The network has no sigma; its root mean square error on the validation exposures is used (buffer ``rms``). Names of
modules and buffers are the keys of stored weights.
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
from csstdask.zeropoint.prior.fallback import Prior
from csstdask.zeropoint.prior.image_statistics import IMAGE_STATISTICS
from csstdask.zeropoint.prior.inputs import TELEMETRY_NAMES, PriorInputs, prior_arrays
from csstdask.zeropoint.prior.network import CLOCKS

MAX_ENCODER_STARS = 128
"""Stars that the recurrent encoder reads."""
PUBLISHED_TELEMETRY = tuple(name for name in TELEMETRY_NAMES if name not in CLOCKS)
"""Names of the telemetry vector."""
N_STAR_CHANNELS = 5
"""Channels of a star: magnitude, colour, distance from the centre, Earth-limb angle, instrumental magnitude."""
IMAGE_FEATURES = 64
"""Outputs of the convolutions."""
PATCH_SIZE = 64
"""Side of the empty patch that replaces a missing image [pixel]."""
_BATCH_SIZE = 64
"""Exposures per evaluation of the network."""
_CLIP = 8.0
"""Limit of normalised inputs [standard deviations]."""
_MIN_NOISE = 1e-6
"""Smallest noise of a patch [electron s-1]."""


@dataclass(frozen=True)
class PublishedTensors:
    """Normalised inputs of n exposures.

    Attributes
    ----------
    patch : tensor (n, 1, y, x) or (n, 64)
        Image patches, or the output of the convolutions.
    statistics : tensor (n, s)
        Image statistics.
    stars : tensor (n, m, 5)
        Channels of the stars, padded.
    count : tensor (n,)
        Number of stars.
    telemetry : tensor (n, t)
        Telemetry vector.
    """

    patch: Tensor
    statistics: Tensor
    stars: Tensor
    count: Tensor
    telemetry: Tensor

    def __len__(self) -> int:
        return len(self.telemetry)

    def take(self, index: Tensor | slice) -> PublishedTensors:
        """Return a subset of the exposures."""
        return PublishedTensors(**{name: value[index] for name, value in vars(self).items()})


class AzpRc(nn.Module):
    """The published network (section 3.2).

    Parameters
    ----------
    telemetry : sequence of str
        Names of the telemetry vector.
    image, stars : bool
        Whether the network has an image branch and a catalogue branch.
    telemetry_branch : bool
        Whether it has a telemetry branch. Without it and ``stars`` it is the image-only CNN of section 4.3.
    kind : str
        ``azprc``; stored in the card.
    """

    rms: Tensor
    offset_mean: Tensor

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
        sizes = {"statistics": n_statistics, "star": N_STAR_CHANNELS, "telemetry": len(self.telemetry)}
        for name, size in sizes.items():
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.register_buffer("offset_mean", torch.tensor(0.0))
        self.register_buffer("rms", torch.tensor(0.1))
        width = 0
        self.image = self.rnn = self.conditions = None
        if image:
            self.image = nn.Sequential(
                nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, IMAGE_FEATURES),
            )  # fmt: skip
            width += IMAGE_FEATURES + n_statistics
        if stars:
            self.rnn = nn.GRU(N_STAR_CHANNELS, 64, batch_first=True, bidirectional=True)
            self.attention = nn.Linear(128, 1)
            width += 128
        if telemetry_branch:
            self.conditions = _perceptron(len(self.telemetry), 32, 32, 32)
            width += 32
        self.head = nn.Sequential(_perceptron(width, 128, 64, 32), nn.Linear(32, 1))

    def forward(self, x: PublishedTensors) -> Tensor:
        """Return the zero point minus nominal, tensor (n,) [mag]."""
        return self.offset_mean + self.head(self.latent(x)).squeeze(-1)

    def latent(self, x: PublishedTensors) -> Tensor:
        """Return the concatenated outputs of the branches, tensor (n, width)."""
        parts = []
        if self.image is not None:
            reduced_precision = self.training and x.patch.device.type == "cpu" and has_bfloat16()
            with torch.autocast(x.patch.device.type, torch.bfloat16, enabled=reduced_precision):
                features = x.patch if x.patch.ndim == 2 else self.image(x.patch)
            parts += [features.float(), x.statistics]
        if self.rnn is not None:
            parts.append(self._stars(x.stars, x.count))
        if self.conditions is not None:
            parts.append(self.conditions(x.telemetry))
        return torch.cat(parts, dim=1)

    def _stars(self, stars: Tensor, count: Tensor) -> Tensor:
        """Return the attention-pooled states of the recurrent encoder, tensor (n, 128); 0 without stars."""
        assert self.rnn is not None  # noqa: S101
        length = count.clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(stars, length, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        exists = torch.arange(states.shape[1], device=states.device) < count[:, None]
        score = torch.where(exists, self.attention(states).squeeze(-1), torch.full((), -1e4, dtype=states.dtype))
        weight = torch.where(exists, score.softmax(dim=1), torch.zeros((), dtype=states.dtype))
        return (weight[..., None] * states).sum(dim=1)


def _perceptron(*widths: int) -> nn.Sequential:
    """Return linear layers of the given widths, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers)


def normalise_patch(patch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return a patch minus its median in units of its noise, compressed by asinh; zeros where it is not finite."""
    data = np.asarray(patch, dtype=np.float32)
    finite = np.isfinite(data)
    if not finite.any():
        return np.zeros(data.shape, np.float32)
    sample = data[finite][::4]
    median = np.float32(np.median(sample))
    noise = np.float32(mad_scale(sample, center=median, floor=_MIN_NOISE))
    return np.where(finite, np.arcsinh((data - median) / noise), np.float32(0.0))


def published_star_rows(stars: npt.NDArray[np.float32], limb: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the channels of star lists.

    Parameters
    ----------
    stars : float32 array (n, m, 7)
        Star lists, the nominal zero point added to ``inst_mag``.
    limb : array (n,)
        Earth-limb angle of each exposure [deg].

    Returns
    -------
    float32 array (n, m, 5)
        Channels; see `N_STAR_CHANNELS`.
    """
    distance = np.hypot(stars[..., 5], stars[..., 6])
    angle = np.broadcast_to(np.asarray(limb, dtype=float)[:, None], stars.shape[:2])
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
        Network with its means and standard deviations.
    patches : array (n, y, x) or (n, 64), optional
        Output of `normalise_patch`, or of the convolutions.
    statistics : array (n, s)
        Image statistics.
    stars : array (n, m, 7)
        Star lists as in `PriorArrays`.
    telemetry : array (n, t)
        Telemetry, NaN in gaps.
    """
    limb = earth_limb_angle(network.telemetry, telemetry)
    rows = published_star_rows(stars, limb)[:, :MAX_ENCODER_STARS]
    exists = np.isfinite(stars[:, :MAX_ENCODER_STARS, 0])
    normalised = {
        name: _normalise(values, getattr(network, f"{name}_mean"), getattr(network, f"{name}_std"))
        for name, values in (("statistics", statistics), ("star", rows), ("telemetry", telemetry))
    }
    image = np.zeros((len(telemetry), 1, 1, 1), np.float32) if patches is None else np.asarray(patches)
    if patches is not None and image.ndim == 3:
        image = image[:, None]
    return PublishedTensors(
        torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)), normalised["statistics"], normalised["star"],
        torch.from_numpy(exists.sum(axis=1)), normalised["telemetry"],
    )  # fmt: skip


def earth_limb_angle(names: Sequence[str], telemetry: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the Earth-limb angle of telemetry (n, t), array (n,) [deg]; NaN if `names` does not contain it."""
    if "earth_limb_angle" not in names:
        return np.full(len(telemetry), np.nan)
    return np.asarray(telemetry[:, list(names).index("earth_limb_angle")])


def _normalise(values: npt.NDArray[Any], mean: Tensor, std: Tensor) -> Tensor:
    """Return values in standard deviations, clipped; 0 where unknown."""
    scaled = (torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)) - mean.cpu()) / std.cpu()
    return torch.where(torch.isfinite(scaled), scaled.clamp(-_CLIP, _CLIP), torch.zeros(()))


def predict_published(network: nn.Module, inputs: PriorInputs) -> Prior:
    """Predict zero points with the published network; sigma is its root mean square error in validation.

    Parameters
    ----------
    network : AzpRc
        The published network.
    inputs : PriorInputs
        Inputs of n exposures. The star lists carry their level, as published.

    Returns
    -------
    Prior
        Must not be combined with the fit of the stars: it would count them twice.

    Raises
    ------
    InputError
        If the network is of another kind.
    """
    if not isinstance(network, AzpRc):
        raise InputError(type(network).__name__, "no network of zero points", "zeropoint or azprc")
    value = np.full(len(inputs), np.nan)
    device = network.rms.device
    for start in range(0, len(inputs), _BATCH_SIZE):
        batch = inputs.take(slice(start, start + _BATCH_SIZE))
        arrays = prior_arrays(batch, network.telemetry, memory=0)
        patches = None
        if network.image is not None and batch.image is not None and batch.image.ndim == 3:
            patches = np.stack([normalise_patch(patch) for patch in batch.image])
        elif network.image is not None:
            patches = np.zeros((len(batch), PATCH_SIZE, PATCH_SIZE), np.float32)
        x = published_tensors(network, patches, arrays.image, arrays.stars, arrays.telemetry)
        with torch.inference_mode():
            offset = network(PublishedTensors(**{name: tensor.to(device) for name, tensor in vars(x).items()}))
        value[start : start + _BATCH_SIZE] = batch.nominal + offset.double().cpu().numpy()
    return Prior(value, np.full(len(inputs), float(network.rms)), np.full(len(inputs), "prior", dtype="<U8"))
