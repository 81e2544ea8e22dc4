"""The network ``zeropoint``: a prior of the zero point with an honest sigma, from everything but the star's own level.

1. *Conditions.* Telemetry gives a latent ``u`` and the offset ``G(u)``, linear in ``u`` with weights that depend on the
   nominal zero point, by which cameras differ. A gap is filled with a learned share of the last value in the memory
   (much of that of slow conditions, little of those that change with every exposure) and marked. Image
   statistics and a permutation-invariant summary of the stars join in a second latent ``z``, with a further offset
   ``C(z)``.
2. *Memory.* Each of the last K solved zero points gives a residual ``r_k = solved_k - nominal - G(u_k)``: what its
   conditions did not explain. Residuals are a Gaussian process (`csstdask.zeropoint.process`) of learned covariance:
   a drift with time scales from minutes to years, and a response to conditions that differs from the mean one. Its
   prediction for now is the memory's share of the mean. Without memory, or with an old one, the mean is
   ``nominal + G + C`` and sigma that of the whole process. A gate increases the variance of entries that disagree with
   the most recent ones, as after a decontamination.
3. *Sigma.* The variance of the process, that of ``G``, and a factor from ``z`` and the scatter of the residuals.

Stars enter without their level: their offsets ``ref_mag - inst_mag`` are taken from the median of the exposure. A prior
that had seen the level would count the stars twice when it is joined with the solve.

Training: ``csstdask.training.zeropoint.fit``::

    network = PriorNetwork(telemetry=("airmass", "seeing"), memory=8, stars=False, image=False)
    history = fit_prior(network, inputs, target, *, target_sigma=None, validation=None, survey=None,
                        settings=FitSettings(), folder=None, announce=log.info)

``inputs`` is a `PriorInputs`, ``target`` the zero points (n,) [mag], ``validation`` a pair (inputs, target) of later
exposures. The network is filled in place; `predict_with` gives a `Prior` from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import skew
from torch import Tensor, nn

from csstdask.zeropoint.features import IMAGE_STATISTICS, TELEMETRY_NAMES, PriorArrays
from csstdask.zeropoint.process import level_from_memory
from csstdask.zeropoint.star_encoder import StarEncoder, star_channels

CLOCKS = ("days_since_launch",)
"""Conditions that do not enter."""
TIME_SCALES = (0.02, 0.3, 5.0, 60.0, 1000.0)
"""Initial time scales of the kernel [d]."""
AMPLITUDES = (0.03, 0.03, 0.1, 0.3, 0.6)
"""Initial standard deviations of its parts, in units of the scatter of zero points."""
N_RESPONSE = 6
"""Directions in which the response to conditions may differ from one camera or epoch to another."""
MAX_LATENT_OFFSET = 0.3
"""Largest offset by image and stars, in units of the scatter of zero points."""
SIGMA_FLOOR = 5e-4
"""Least sigma [mag]."""
_QUADRATIC_CLIP = 3.0
_CLIP = 6.0
"""Normalised inputs are limited to this many standard deviations."""
_N_GATE = 6
_N_SPREAD = 4


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
    def of(cls, arrays: PriorArrays, device: torch.device | str = "cpu") -> PriorTensors:
        """Copy arrays to a device."""
        return cls(**{k: torch.from_numpy(np.ascontiguousarray(v)).to(device) for k, v in vars(arrays).items()})

    def __len__(self) -> int:
        return len(self.telemetry)

    def take(self, index: Tensor | slice) -> PriorTensors:
        """Return some of the exposures."""
        return PriorTensors(**{name: value[index] for name, value in vars(self).items()})


@dataclass(frozen=True)
class PriorOutput:
    """What the network gives for n exposures.

    Attributes
    ----------
    offset : tensor (member, n)
        Zero point minus nominal [mag] of each member of the ensemble.
    log_variance : tensor (member, n)
        ln of its variance [mag^2], before the calibration.
    latent : tensor (member, n, 2 latent)
        Of conditions, image and stars.
    has_memory : bool tensor (n,)
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
        Names of conditions, at least one; any names.
    memory : int
        Solved zero points it looks back at; 0: none.
    clocks : sequence of str
        Conditions that do not enter. A network with a clock learns the drift of every month of the training by heart,
        and even a slope cannot be told from the drift; the process accounts for both.
    stars, image : bool
        Whether star lists and image statistics are inputs.
    star_level : bool
        Whether stars keep their level ``ref_mag - inst_mag``. The output is then a posterior that must not be joined
        with the solve. For comparison only.
    by_camera : bool
        Whether the response to conditions depends on the nominal zero point.
    members : int
        Networks of the ensemble.
    width, latent : int
        Units of hidden layers and of the latents.
    kind : str
        ``zeropoint``.
    """

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
        t, s = len(self.telemetry), len(IMAGE_STATISTICS)
        self.register_buffer("telemetry_mean", torch.zeros(t))
        self.register_buffer("telemetry_std", torch.ones(t))
        self.register_buffer("logarithmic", torch.zeros(t, dtype=torch.bool))
        self.logarithmic: Tensor
        entering = torch.tensor([name not in clocks for name in self.telemetry])
        self.register_buffer("entering", entering, persistent=False)
        self.entering: Tensor
        self.register_buffer("image_mean", torch.zeros(s))
        self.register_buffer("image_std", torch.ones(s))
        self.register_buffer("magnitude_mean", torch.tensor(20.0))
        self.register_buffer("nominal_mean", torch.tensor(25.0))
        self.register_buffer("nominal_std", torch.tensor(1.0))
        self.hold = nn.Parameter(torch.zeros(t))
        self.nominal_mean: Tensor
        self.nominal_std: Tensor
        self.register_buffer("offset_mean", torch.tensor(0.0))
        self.register_buffer("offset_std", torch.tensor(0.1))
        self.register_buffer("log_scale", torch.zeros(2))
        self.telemetry_mean: Tensor
        self.telemetry_std: Tensor
        self.image_mean: Tensor
        self.image_std: Tensor
        self.magnitude_mean: Tensor
        self.offset_mean: Tensor
        self.offset_std: Tensor
        self.log_scale: Tensor
        self.members = nn.ModuleList(
            _Member(t, s if image else 0, stars, width, latent, star_level=star_level) for _ in range(members)
        )

    def normalise_by(self, arrays: PriorArrays, offset: np.ndarray) -> None:
        """Set means and standard deviations of the inputs and the target from training exposures."""
        self.logarithmic.copy_(torch.from_numpy(_skewed(arrays.telemetry)))
        mean, std = finite_moments(self._scaled(torch.from_numpy(arrays.telemetry)).numpy())
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
        self.nominal_std.fill_(float(nominal.std()) if np.ptp(nominal) > 0.01 else 1e6)
        known = offset[np.isfinite(offset)]
        self.offset_mean.fill_(float(np.median(known)))
        self.offset_std.fill_(max(1e-3, float(known.std())))

    def forward(self, x: PriorTensors) -> PriorOutput:
        """Return offsets, variances and latents; see `PriorOutput`."""
        straight, conditions = self._conditions(x)
        residual_of = x.memory[:, : self.memory]
        known = torch.isfinite(residual_of).all(dim=-1)
        history = torch.where(known[..., None], residual_of, torch.zeros((), dtype=residual_of.dtype))
        image, stars = self._image(x), self._stars(x)
        camera = ((x.nominal - self.nominal_mean) / self.nominal_std).clamp(-2, 2).nan_to_num()[:, None, None]
        camera = camera if self.by_camera else torch.zeros_like(camera)
        found = [
            member(camera, straight, conditions, history, known, image, stars, self.offset_mean, self.offset_std)
            for member in self.members
        ]
        offset, log_variance, latent = (torch.stack([one[k] for one in found]) for k in range(3))
        return PriorOutput(offset, log_variance, latent, known.any(dim=1))

    def predict(self, x: PriorTensors) -> tuple[Tensor, Tensor]:
        """Return the offset from nominal (n,) and its sigma (n,) [mag], calibrated."""
        found = self(x)
        offset = found.offset.mean(dim=0)
        variance = found.log_variance.exp().mean(dim=0) + found.offset.var(dim=0, unbiased=False)
        scale = torch.where(found.has_memory, self.log_scale[1], self.log_scale[0]).exp()
        return offset, torch.sqrt(variance + SIGMA_FLOOR**2) * scale

    def _conditions(self, x: PriorTensors) -> tuple[Tensor, Tensor]:
        """Return normalised conditions of now and of the memory (n, 1 + K, q) and (n, 1 + K, 4 t).

        The first are values and their products, for the linear term. The second are values (gaps filled with a share of
        the next older one), changes since the next older exposure, whether values are known, and whether filled.
        """
        series = self._scaled(torch.cat([x.telemetry[:, None], x.memory_telemetry[:, : self.memory]], dim=1))
        values = ((series - self.telemetry_mean) / self.telemetry_std).clamp(-_CLIP, _CLIP)
        known = torch.isfinite(values)
        keep = torch.sigmoid(self.hold)
        filled, there = torch.zeros_like(values[:, -1]), torch.zeros_like(known[:, -1])
        steps = []
        for k in range(values.shape[1] - 1, -1, -1):
            filled = torch.where(known[:, k], values[:, k], keep * filled)
            there = there | known[:, k]
            steps.append((filled, there))
        full, there = (torch.stack(column[::-1], dim=1) for column in zip(*steps, strict=True))
        older = torch.cat([full[:, 1:], full[:, -1:]], dim=1)
        both = there & torch.cat([there[:, 1:], there[:, -1:]], dim=1)
        change = torch.where(both, full - older, torch.zeros(()))
        bent = torch.cat([full, change], dim=-1) * self.entering.float().repeat(2)
        return quadratic(full * self.entering), torch.cat([bent, known.float(), there.float()], dim=-1)

    def _scaled(self, telemetry: Tensor) -> Tensor:
        """Return telemetry with the logarithm of skewed conditions; NaN where it has none."""
        return torch.where(self.logarithmic, torch.log(telemetry.clamp(min=1e-9)), telemetry)

    def _image(self, x: PriorTensors) -> Tensor | None:
        if not self.image:
            return None
        values = ((x.image - self.image_mean) / self.image_std).clamp(-_CLIP, _CLIP)
        known = torch.isfinite(values)
        return torch.cat([torch.where(known, values, torch.zeros(())), known.any(dim=1, keepdim=True).float()], dim=1)

    def _stars(self, x: PriorTensors) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return channels of stars (n, m, c), which are there (n, m), and summaries (n, 3)."""
        if not self.stars:
            return None
        return star_channels(x.stars, x.n_stars, self.magnitude_mean)


def quadratic(values: Tensor) -> Tensor:
    """Return values (..., t), then their squares and products (..., t (t + 1) / 2), limited to a few units."""
    t = values.shape[-1]
    limited = values.clamp(-_QUADRATIC_CLIP, _QUADRATIC_CLIP)
    rows, columns = torch.triu_indices(t, t)
    return torch.cat([values, limited[..., rows] * limited[..., columns] / 2], dim=-1)


class _Member(nn.Module):
    """One network of the ensemble."""

    def __init__(
        self, n_telemetry: int, n_image: int, stars: bool, width: int, latent: int, *, star_level: bool
    ) -> None:
        super().__init__()
        self.conditions = nn.Sequential(
            nn.Linear(4 * n_telemetry, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, latent), nn.Tanh(),
        )  # fmt: skip
        self.n_telemetry = n_telemetry
        self.level = nn.Linear(latent, 1)
        n_quadratic = n_telemetry * (n_telemetry + 3) // 2
        self.straight = nn.Linear(n_quadratic, 1, bias=False)
        self.of_camera = nn.Linear(latent + n_quadratic, 1)
        self.noise = nn.Linear(latent, 1)
        self.response = nn.Linear(latent + n_telemetry, N_RESPONSE, bias=False)
        if n_image:
            self.from_image = nn.Sequential(nn.Linear(n_image + 1, width), nn.SiLU(), nn.Linear(width, latent))
        if stars:
            self.from_stars = StarEncoder(width, latent, star_level=star_level)
        n_parts = 1 + bool(n_image) + stars
        self.fuse = nn.Sequential(nn.Linear(n_parts * latent, width), nn.SiLU(), nn.Linear(width, latent), nn.Tanh())
        self.further = nn.Linear(latent, 1)
        self.gate = nn.Sequential(nn.Linear(_N_GATE, 16), nn.SiLU(), nn.Linear(16, 1))
        self.head = nn.Sequential(nn.Linear(2 * latent + _N_SPREAD, width), nn.SiLU(), nn.Linear(width, 2))
        self.log_amplitude = nn.Parameter(torch.log(torch.tensor(AMPLITUDES)))
        self.log_time = nn.Parameter(torch.log(torch.tensor(TIME_SCALES)))
        for last in (self.straight, self.of_camera, self.further, self.gate[-1], self.head[-1], self.level):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        nn.init.normal_(self.response.weight, std=0.02)
        nn.init.zeros_(self.noise.weight)
        nn.init.constant_(self.noise.bias, -3.0)

    def forward(
        self, camera: Tensor, straight: Tensor, conditions: Tensor, history: Tensor, known: Tensor,
        image: Tensor | None, stars: tuple[Tensor, Tensor, Tensor] | None, mean: Tensor, scale: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Return the offset (n,), ln of its variance (n,) and the latents (n, 2 latent)."""
        u = self.conditions(conditions)
        of_camera = camera * self.of_camera(torch.cat([u, straight], dim=-1))
        explained = (self.level(u) + self.straight(straight) + of_camera).squeeze(-1)
        noise = torch.exp(2 * self.noise(u).squeeze(-1).clamp(-8, 2))
        parts = [u[:, 0]]
        if image is not None:
            parts.append(self.from_image(image))
        if stars is not None:
            parts.append(self.from_stars(*stars))
        z = self.fuse(torch.cat(parts, dim=-1))
        value, sigma, age = ((history[..., k]) for k in range(3))
        residual = torch.where(known, (value - mean) / scale - explained[:, 1:], torch.zeros((), dtype=value.dtype))
        spread, typical = _spread(residual, known)
        gate = 4 * torch.tanh(self.gate(_gate_inputs(residual, sigma / scale, age, known, typical))).squeeze(-1)
        variance = ((sigma / scale).square() + noise[:, 1:]) * torch.exp(gate)
        response = 3 * torch.tanh(self.response(torch.cat([u, straight[..., : self.n_telemetry]], dim=-1)) / 3)
        level, level_variance = level_from_memory(
            residual, variance, age, known, torch.exp(2 * self.log_amplitude), torch.exp(self.log_time), response
        )
        level, level_variance = level.float(), level_variance.float()
        summary = torch.cat([spread, torch.log(level_variance)[:, None] / 4], dim=-1)
        shift, factor = self.head(torch.cat([u[:, 0], z, summary], dim=-1)).unbind(dim=-1)
        own = level_variance + noise[:, 0]
        extra = MAX_LATENT_OFFSET * torch.tanh(self.further(z).squeeze(-1)) + 2 * torch.sqrt(own) * torch.tanh(shift)
        offset = explained[:, 0] + extra + level
        log_variance = torch.log(own) + 4 * torch.tanh(factor / 2) + 2 * torch.log(scale)
        return mean + scale * offset, log_variance, torch.cat([u[:, 0], z], dim=-1)


def _spread(residual: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return scatter features of the residuals of the memory (n, 3) and their typical size (n, 1)."""
    count = known.sum(dim=1, keepdim=True).clamp(min=1)
    centre = residual.sum(dim=1, keepdim=True) / count
    about = torch.where(known, (residual - centre).abs(), torch.zeros((), dtype=residual.dtype))
    typical = about.sum(dim=1, keepdim=True) / count + 0.01
    if residual.shape[1] > 1:
        both = known[:, 1:] & known[:, :-1]
        steps = torch.where(both, (residual[:, 1:] - residual[:, :-1]).abs(), torch.zeros((), dtype=residual.dtype))
        last = steps[:, :1]
    else:
        last = torch.zeros_like(typical)
    features = torch.cat([torch.log(typical) / 2, torch.log(last + 0.01) / 2, known.float().mean(1, True)], dim=1)
    return features.float(), typical


def _gate_inputs(residual: Tensor, sigma: Tensor, age: Tensor, known: Tensor, typical: Tensor) -> Tensor:
    """Return what decides how far each entry of the memory is trusted (n, K, 6)."""
    newest = residual[:, :1]
    second = residual[:, 1:2] if residual.shape[1] > 1 else newest
    rank = torch.linspace(0, 1, residual.shape[1], dtype=residual.dtype, device=residual.device).expand_as(residual)
    channels = [
        torch.log10(age + 1e-3) / 2, torch.log10(sigma + 1e-3), torch.asinh((residual - newest).abs() / 0.1),
        torch.asinh((newest - second).abs() / 0.1).expand_as(residual), torch.log(typical).expand_as(residual) / 2,
        rank,
    ]  # fmt: skip
    return torch.where(known[..., None], torch.stack(channels, dim=-1), torch.zeros((), dtype=residual.dtype)).float()


def _skewed(values: np.ndarray) -> np.ndarray:
    """Return which columns are positive and have a logarithm with less skew than themselves."""
    out = np.zeros(values.shape[1], dtype=bool)
    for k, column in enumerate(values.T):
        known = column[np.isfinite(column)].astype(float)
        if len(known) > 2 and known.min() > 0 and np.ptp(known) > 0:
            out[k] = abs(skew(np.log(known))) < abs(skew(known))
    return out


def finite_moments(values: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each column, 0 and 1 where nothing is known."""
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, values, 0.0).astype(float)
    mean = filled.sum(axis=0) / count
    variance = (np.where(known, filled - mean, 0.0) ** 2).sum(axis=0) / count
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))
