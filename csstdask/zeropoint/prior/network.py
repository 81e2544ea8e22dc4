"""The network ``zeropoint``: a prior of the zero point with a calibrated error, from everything but the star levels.

1. *Conditions.* Telemetry gives a latent ``u`` and the offset ``G(u)``, which is linear in ``u`` with weights that
   depend on the nominal zero point: cameras differ. A gap is filled with a learned fraction of the last value in the
   memory (large for slow conditions, small for those that change with every exposure) and flagged. Image statistics
   and a permutation-invariant summary of the stars enter a second latent ``z``, with a further offset ``C(z)``.
2. *Memory.* Each of the last K solved zero points gives a residual ``r_k = solved_k - nominal - G(u_k)`` that its
   conditions did not explain. Residuals are a Gaussian process (`csstdask.zeropoint.prior.gaussian_process`) of
   learned covariance: a drift with time scales from minutes to years, and a response to conditions that differs from
   the mean one. Its prediction for now is the memory's part of the mean. Without memory, or with an old one, the mean
   is ``nominal + G + C`` and sigma that of the whole process. A gate increases the variance of entries that disagree
   with the most recent ones, as after a decontamination.
3. *Sigma.* The variance of the process and of ``G``, and a factor from ``z`` and the scatter of the residuals.

Stars enter without their level: their offsets ``ref_mag - inst_mag`` are taken from the median of the exposure. A prior
that had seen the level would count the stars twice when it is combined with their fit.

The network is trained in place by `csstdask.training.zeropoint.fit.fit_prior`, and evaluated by `predict_with_network`.
Names of modules and buffers are the keys of stored weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from csstdask.zeropoint.prior.image_statistics import IMAGE_STATISTICS
from csstdask.zeropoint.prior.inputs import TELEMETRY_NAMES, PriorArrays
from csstdask.zeropoint.prior.network_member import NetworkMember
from csstdask.zeropoint.prior.normalisation import finite_moments, lower_skew_in_log
from csstdask.zeropoint.prior.star_encoder import star_channels

CLOCKS = ("days_since_launch",)
"""Telemetry that does not enter the network."""
SIGMA_FLOOR = 5e-4
"""Smallest error [mag], added in quadrature."""
_QUADRATIC_CLIP = 3.0
"""Limit of normalised telemetry in products [standard deviations]."""
_CLIP = 6.0
"""Limit of normalised inputs [standard deviations]."""
_MIN_OFFSET_STD = 1e-3
"""Smallest scatter of zero points about their nominal values [mag]."""
_MIN_NOMINAL_RANGE = 0.01
"""Range of nominal zero points below which all exposures are of one camera [mag]."""
_ONE_CAMERA_STD = 1e6
"""Standard deviation of nominal zero points for one camera [mag]: the normalised value is then 0."""


@dataclass(frozen=True)
class PriorTensors:
    """`PriorArrays` on a device."""

    telemetry: Tensor
    memory: Tensor
    memory_telemetry: Tensor
    stars: Tensor
    n_stars: Tensor
    image: Tensor
    nominal: Tensor

    @classmethod
    def from_arrays(cls, arrays: PriorArrays, device: torch.device | str = "cpu") -> PriorTensors:
        """Copy arrays to a device."""
        return cls(**{k: torch.from_numpy(np.ascontiguousarray(v)).to(device) for k, v in vars(arrays).items()})

    def __len__(self) -> int:
        return len(self.telemetry)

    def take(self, index: Tensor | slice) -> PriorTensors:
        """Return a subset of the exposures."""
        return PriorTensors(**{name: value[index] for name, value in vars(self).items()})


@dataclass(frozen=True)
class PriorOutput:
    """Output of the network for n exposures.

    Attributes
    ----------
    offset : tensor (member, n)
        Zero point minus nominal [mag] of each member of the ensemble.
    log_variance : tensor (member, n)
        ln of its variance [mag^2], before the calibration.
    latent : tensor (member, n, 2 latent)
        Latents of the conditions, and of image and stars.
    has_memory : bool tensor (n,)
        Whether the memory has an entry.
    """

    offset: Tensor
    log_variance: Tensor
    latent: Tensor
    has_memory: Tensor


class PriorNetwork(nn.Module):
    """An ensemble of small networks for the prior of the zero point.

    Parameters
    ----------
    telemetry : sequence of str
        Names of the telemetry, at least one; any names.
    memory : int
        Number of solved zero points to read; 0: none.
    clocks : sequence of str
        Telemetry that does not enter. A network with a clock memorises the drift of every month of the training, and
        even a slope cannot be separated from the drift. The Gaussian process models both.
    stars, image : bool
        Whether star lists and image statistics are inputs.
    star_level : bool
        Whether stars keep their level ``ref_mag - inst_mag``. The output is then a posterior, which must not be
        combined with the fit of the stars. For comparison only.
    by_camera : bool
        Whether the response to conditions depends on the nominal zero point.
    members : int
        Number of networks in the ensemble.
    width, latent : int
        Units of the hidden layers and of the latents.
    kind : str
        ``zeropoint``; stored in the card.
    """

    telemetry_mean: Tensor
    telemetry_std: Tensor
    logarithmic: Tensor
    entering: Tensor
    image_mean: Tensor
    image_std: Tensor
    magnitude_mean: Tensor
    nominal_mean: Tensor
    nominal_std: Tensor
    offset_mean: Tensor
    offset_std: Tensor
    log_scale: Tensor

    def __init__(
        self, telemetry: Sequence[str] = TELEMETRY_NAMES, *, memory: int = 8, clocks: Sequence[str] = CLOCKS,
        stars: bool = True, image: bool = True, star_level: bool = False, by_camera: bool = True, members: int = 1,
        width: int = 24, latent: int = 10, kind: str = "zeropoint",
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind, self.telemetry, self.memory = kind, tuple(telemetry), memory
        self.stars, self.image, self.latent = stars, image, latent
        self.by_camera = by_camera
        self.architecture = {
            "kind": kind, "telemetry": list(telemetry), "memory": memory, "clocks": list(clocks), "stars": stars,
            "image": image, "star_level": star_level, "by_camera": by_camera, "members": members, "width": width,
            "latent": latent,
        }  # fmt: skip
        n_telemetry, n_statistics = len(self.telemetry), len(IMAGE_STATISTICS)
        self.register_buffer("telemetry_mean", torch.zeros(n_telemetry))
        self.register_buffer("telemetry_std", torch.ones(n_telemetry))
        self.register_buffer("logarithmic", torch.zeros(n_telemetry, dtype=torch.bool))
        entering = torch.tensor([name not in clocks for name in self.telemetry])
        self.register_buffer("entering", entering, persistent=False)
        self.register_buffer("image_mean", torch.zeros(n_statistics))
        self.register_buffer("image_std", torch.ones(n_statistics))
        self.register_buffer("magnitude_mean", torch.tensor(20.0))
        self.register_buffer("nominal_mean", torch.tensor(25.0))
        self.register_buffer("nominal_std", torch.tensor(1.0))
        self.hold = nn.Parameter(torch.zeros(n_telemetry))  # logit of the fraction of an older value that fills a gap
        self.register_buffer("offset_mean", torch.tensor(0.0))
        self.register_buffer("offset_std", torch.tensor(0.1))
        self.register_buffer("log_scale", torch.zeros(2))  # ln of the calibration of sigma, without and with memory
        self.members = nn.ModuleList(
            NetworkMember(n_telemetry, n_statistics if image else 0, stars, width, latent, star_level=star_level)
            for _ in range(members)
        )

    def normalise_by(self, arrays: PriorArrays, offset: np.ndarray) -> None:
        """Set means and standard deviations of the inputs and of the target from training exposures.

        Parameters
        ----------
        arrays : PriorArrays
            Inputs of the training exposures.
        offset : array (n,)
            Zero points minus nominal [mag]; NaN where unknown.
        """
        self.logarithmic.copy_(torch.from_numpy(lower_skew_in_log(arrays.telemetry)))
        mean, std = finite_moments(self._scale_telemetry(torch.from_numpy(arrays.telemetry)).numpy())
        self.telemetry_mean.copy_(mean)
        self.telemetry_std.copy_(std)
        mean, std = finite_moments(arrays.image)
        self.image_mean.copy_(mean)
        self.image_std.copy_(std)
        magnitude = arrays.stars[..., 2]
        if np.isfinite(magnitude).any():
            self.magnitude_mean.fill_(float(np.nanmedian(magnitude)))
        nominal = arrays.nominal[np.isfinite(arrays.nominal)].astype(float)
        self.nominal_mean.fill_(float(nominal.mean()))
        self.nominal_std.fill_(float(nominal.std()) if np.ptp(nominal) > _MIN_NOMINAL_RANGE else _ONE_CAMERA_STD)
        known = offset[np.isfinite(offset)]
        self.offset_mean.fill_(float(np.median(known)))
        self.offset_std.fill_(max(_MIN_OFFSET_STD, float(known.std())))

    def forward(self, x: PriorTensors) -> PriorOutput:
        """Return offsets, variances and latents; see `PriorOutput`."""
        quadratic_terms, conditions = self._conditions(x)
        memory = x.memory[:, : self.memory]
        known = torch.isfinite(memory).all(dim=-1)
        memory = torch.where(known[..., None], memory, torch.zeros((), dtype=memory.dtype))
        image, stars = self._image(x), self._stars(x)
        camera = ((x.nominal - self.nominal_mean) / self.nominal_std).clamp(-2, 2).nan_to_num()[:, None, None]
        camera = camera if self.by_camera else torch.zeros_like(camera)
        outputs = [
            member(camera, quadratic_terms, conditions, memory, known, image, stars, self.offset_mean, self.offset_std)
            for member in self.members
        ]
        offset, log_variance, latent = (torch.stack([output[k] for output in outputs]) for k in range(3))
        return PriorOutput(offset, log_variance, latent, known.any(dim=1))

    def predict(self, x: PriorTensors) -> tuple[Tensor, Tensor]:
        """Return the offset from nominal and its calibrated sigma, tensors (n,) [mag]."""
        output = self(x)
        offset = output.offset.mean(dim=0)
        variance = output.log_variance.exp().mean(dim=0) + output.offset.var(dim=0, unbiased=False)
        scale = torch.where(output.has_memory, self.log_scale[1], self.log_scale[0]).exp()
        return offset, torch.sqrt(variance + SIGMA_FLOOR**2) * scale

    def _conditions(self, x: PriorTensors) -> tuple[Tensor, Tensor]:
        """Return normalised conditions of now and of the memory, tensors (n, 1 + K, q) and (n, 1 + K, 4 t).

        The first are values and their products, for the linear term. The second are values (gaps filled with a
        fraction of the next older one), changes since the next older exposure, and flags of known and filled values.
        """
        series = self._scale_telemetry(torch.cat([x.telemetry[:, None], x.memory_telemetry[:, : self.memory]], dim=1))
        values = ((series - self.telemetry_mean) / self.telemetry_std).clamp(-_CLIP, _CLIP)
        known = torch.isfinite(values)
        keep = torch.sigmoid(self.hold)
        value, available = torch.zeros_like(values[:, -1]), torch.zeros_like(known[:, -1])
        steps = []
        for k in range(values.shape[1] - 1, -1, -1):  # from the oldest exposure to the current one
            value = torch.where(known[:, k], values[:, k], keep * value)
            available = available | known[:, k]
            steps.append((value, available))
        filled, available = (torch.stack(column[::-1], dim=1) for column in zip(*steps, strict=True))
        older = torch.cat([filled[:, 1:], filled[:, -1:]], dim=1)
        both = available & torch.cat([available[:, 1:], available[:, -1:]], dim=1)
        change = torch.where(both, filled - older, torch.zeros(()))
        entering = torch.cat([filled, change], dim=-1) * self.entering.float().repeat(2)
        conditions = torch.cat([entering, known.float(), available.float()], dim=-1)
        return _with_products(filled * self.entering), conditions

    def _scale_telemetry(self, telemetry: Tensor) -> Tensor:
        """Return telemetry, with the logarithm of skewed conditions; NaN where that is undefined."""
        return torch.where(self.logarithmic, torch.log(telemetry.clamp(min=1e-9)), telemetry)

    def _image(self, x: PriorTensors) -> Tensor | None:
        """Return normalised image statistics and a flag, tensor (n, s + 1)."""
        if not self.image:
            return None
        values = ((x.image - self.image_mean) / self.image_std).clamp(-_CLIP, _CLIP)
        known = torch.isfinite(values)
        return torch.cat([torch.where(known, values, torch.zeros(())), known.any(dim=1, keepdim=True).float()], dim=1)

    def _stars(self, x: PriorTensors) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return channels of stars (n, m, c), whether a star exists (n, m), and summaries (n, 3)."""
        if not self.stars:
            return None
        return star_channels(x.stars, x.n_stars, self.magnitude_mean)


def _with_products(values: Tensor) -> Tensor:
    """Append squares and products, clipped to a few units, to values: (..., t) to (..., t (t + 3) / 2)."""
    t = values.shape[-1]
    limited = values.clamp(-_QUADRATIC_CLIP, _QUADRATIC_CLIP)
    rows, columns = torch.triu_indices(t, t)
    return torch.cat([values, limited[..., rows] * limited[..., columns] / 2], dim=-1)
