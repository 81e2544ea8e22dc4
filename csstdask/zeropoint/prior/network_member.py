"""One network of the ensemble `PriorNetwork`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csstdask.zeropoint.prior.gaussian_process import predict_residual
from csstdask.zeropoint.prior.star_encoder import StarEncoder

TIME_SCALES = (0.02, 0.3, 5.0, 60.0, 1000.0)
"""Initial time scales of the kernel [d]."""
AMPLITUDES = (0.03, 0.03, 0.1, 0.3, 0.6)
"""Initial standard deviations of its components, in units of the scatter of zero points."""
N_RESPONSE = 6
"""Directions in which the response to conditions may differ from one camera or epoch to another."""
MAX_LATENT_OFFSET = 0.3
"""Largest offset by image and stars, in units of the scatter of zero points."""
_N_GATE_CHANNELS = 6
_N_SPREAD_FEATURES = 4
_GATE_WIDTH = 16
"""Hidden units of the gate."""


class NetworkMember(nn.Module):
    """One network of the ensemble; attribute names are keys of stored weights.

    Parameters
    ----------
    n_telemetry, n_image : int
        Number of conditions, and of image statistics (0: no image).
    stars : bool
        Whether star lists are read.
    width, latent : int
        Units of the hidden layers and of the latents.
    star_level : bool
        Whether stars keep their level.
    """

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
        self.gate = nn.Sequential(nn.Linear(_N_GATE_CHANNELS, _GATE_WIDTH), nn.SiLU(), nn.Linear(_GATE_WIDTH, 1))
        self.head = nn.Sequential(nn.Linear(2 * latent + _N_SPREAD_FEATURES, width), nn.SiLU(), nn.Linear(width, 2))
        self.log_amplitude = nn.Parameter(torch.log(torch.tensor(AMPLITUDES)))
        self.log_time = nn.Parameter(torch.log(torch.tensor(TIME_SCALES)))
        self._initialise()

    def _initialise(self) -> None:
        """Start without offsets, with a gate that is open and a small response."""
        for layer in (self.straight, self.of_camera, self.further, self.gate[-1], self.head[-1], self.level):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        nn.init.normal_(self.response.weight, std=0.02)
        nn.init.zeros_(self.noise.weight)
        nn.init.constant_(self.noise.bias, -3.0)

    def forward(
        self, camera: Tensor, quadratic_terms: Tensor, conditions: Tensor, memory: Tensor, known: Tensor,
        image: Tensor | None, stars: tuple[Tensor, Tensor, Tensor] | None, mean: Tensor, scale: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Return the offset (n,), ln of its variance (n,) and the latents (n, 2 latent)."""
        u = self.conditions(conditions)
        camera_term = camera * self.of_camera(torch.cat([u, quadratic_terms], dim=-1))
        explained = (self.level(u) + self.straight(quadratic_terms) + camera_term).squeeze(-1)
        noise = torch.exp(2 * self.noise(u).squeeze(-1).clamp(-8, 2))
        z = self._latent(u[:, 0], image, stars)
        value, sigma, age = ((memory[..., k]) for k in range(3))
        residual = torch.where(known, (value - mean) / scale - explained[:, 1:], torch.zeros((), dtype=value.dtype))
        spread, typical_size = _spread_features(residual, known)
        gate = self.gate(_gate_channels(residual, sigma / scale, age, known, typical_size))
        variance = ((sigma / scale).square() + noise[:, 1:]) * torch.exp(4 * torch.tanh(gate).squeeze(-1))
        response = torch.cat([u, quadratic_terms[..., : self.n_telemetry]], dim=-1)
        level, level_variance = predict_residual(
            residual, variance, age, known, torch.exp(2 * self.log_amplitude), torch.exp(self.log_time),
            3 * torch.tanh(self.response(response) / 3),
        )  # fmt: skip
        level, level_variance = level.float(), level_variance.float()
        summary = torch.cat([spread, torch.log(level_variance)[:, None] / 4], dim=-1)
        shift, factor = self.head(torch.cat([u[:, 0], z, summary], dim=-1)).unbind(dim=-1)
        total = level_variance + noise[:, 0]
        latent_offset = MAX_LATENT_OFFSET * torch.tanh(self.further(z).squeeze(-1))
        offset = explained[:, 0] + (latent_offset + 2 * torch.sqrt(total) * torch.tanh(shift)) + level
        log_variance = torch.log(total) + 4 * torch.tanh(factor / 2) + 2 * torch.log(scale)
        return mean + scale * offset, log_variance, torch.cat([u[:, 0], z], dim=-1)

    def _latent(self, u: Tensor, image: Tensor | None, stars: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        """Return the latent of conditions, image and stars, tensor (n, latent)."""
        parts = [u]
        if image is not None:
            parts.append(self.from_image(image))
        if stars is not None:
            parts.append(self.from_stars(*stars))
        return self.fuse(torch.cat(parts, dim=-1))


def _spread_features(residual: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return scatter features of the residuals of the memory (n, 3) and their typical size (n, 1)."""
    count = known.sum(dim=1, keepdim=True).clamp(min=1)
    mean = residual.sum(dim=1, keepdim=True) / count
    zero = torch.zeros((), dtype=residual.dtype)
    deviation = torch.where(known, (residual - mean).abs(), zero)
    typical_size = deviation.sum(dim=1, keepdim=True) / count + 0.01
    if residual.shape[1] > 1:
        both = known[:, 1:] & known[:, :-1]
        last_step = torch.where(both, (residual[:, 1:] - residual[:, :-1]).abs(), zero)[:, :1]
    else:
        last_step = torch.zeros_like(typical_size)
    features = [torch.log(typical_size) / 2, torch.log(last_step + 0.01) / 2, known.float().mean(1, True)]
    return torch.cat(features, dim=1).float(), typical_size


def _gate_channels(residual: Tensor, sigma: Tensor, age: Tensor, known: Tensor, typical_size: Tensor) -> Tensor:
    """Return the inputs of the gate on each entry of the memory, tensor (n, K, 6)."""
    newest = residual[:, :1]
    second = residual[:, 1:2] if residual.shape[1] > 1 else newest
    rank = torch.linspace(0, 1, residual.shape[1], dtype=residual.dtype, device=residual.device).expand_as(residual)
    channels = [
        torch.log10(age + 1e-3) / 2, torch.log10(sigma + 1e-3), torch.asinh((residual - newest).abs() / 0.1),
        torch.asinh((newest - second).abs() / 0.1).expand_as(residual),
        torch.log(typical_size).expand_as(residual) / 2, rank,
    ]  # fmt: skip
    return torch.where(known[..., None], torch.stack(channels, dim=-1), torch.zeros((), dtype=residual.dtype)).float()
