"""Summarise the stars of an exposure, independently of their order and of their level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csstdask.zeropoint.prior.star_lists import STAR_COLUMNS

MAX_STAR_OFFSET = 0.1
"""Limit of the offset of a star from the median of its exposure [mag]: a variable star must not matter."""
_N_STAR_CHANNELS = 8


def star_channels(stars: Tensor, count: Tensor, magnitude_mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return input channels of the stars, and a summary of each exposure.

    Parameters
    ----------
    stars : tensor (n, m, 7)
        Columns as in `StarLists`, the nominal zero point added to ``inst_mag``.
    count : tensor (n,)
        Number of usable stars.
    magnitude_mean : tensor ()
        Mean reference magnitude of the training [mag].

    Returns
    -------
    channels : tensor (n, m, 8)
        The first is the offset from nominal, which only networks with ``star_level`` use; the second is the offset from
        the median of the exposure.
    exists : bool tensor (n, m)
        Whether there is a star.
    summary : tensor (n, 3)
        Number and scatter of the stars, and whether there are any.
    """
    inst, inst_err, ref, ref_err, color, px, py = (stars[..., k] for k in range(len(STAR_COLUMNS)))
    offset = ref - inst
    exists = torch.isfinite(offset)
    median = torch.nanmedian(offset, dim=1, keepdim=True).values
    residual = torch.where(exists, offset - median, torch.zeros(())).clamp(-MAX_STAR_OFFSET, MAX_STAR_OFFSET)
    scatter = residual.abs().sum(dim=1) / exists.sum(dim=1).clamp(min=1)
    channels = torch.stack(
        [
            offset.clamp(-1, 1) / 0.1,
            torch.tanh(residual / 0.03),
            torch.log10(inst_err.clamp(min=1e-4)) + 2,
            torch.log10(ref_err.clamp(min=1e-4)) + 2,
            color.clamp(-3, 3),
            (ref - magnitude_mean) / 2,
            px,
            py,
        ],
        dim=-1,
    )
    channels = torch.where(torch.isfinite(channels), channels, torch.zeros(()))
    has_stars = (count > 0).float()
    summary = torch.stack([torch.log1p(count) / 3, has_stars * (torch.log10(scatter + 1e-3) + 2), has_stars], dim=-1)
    return channels, exists, summary


class StarEncoder(nn.Module):
    """A permutation-invariant summary of a set of stars (Zaheer et al. 2017, theorem 2)."""

    def __init__(self, width: int, latent: int, *, star_level: bool) -> None:
        super().__init__()
        self.star_level = star_level
        self.each = nn.Sequential(nn.Linear(_N_STAR_CHANNELS, width), nn.SiLU(), nn.Linear(width, latent + 1))
        self.all = nn.Sequential(nn.Linear(latent + 4, width), nn.SiLU(), nn.Linear(width, latent))

    def forward(self, channels: Tensor, exists: Tensor, summary: Tensor) -> Tensor:
        """Return summaries (n, latent): a mean over the stars with learned weights."""
        level = channels[..., :1]
        if not self.star_level:
            level = torch.zeros_like(level)
        each = self.each(torch.cat([level, channels[..., 1:]], dim=-1))
        weight = torch.where(exists, each[..., :1].squeeze(-1), torch.full((), -1e4)).softmax(dim=1)
        weight = torch.where(exists, weight, torch.zeros(()))[..., None]
        pooled = (weight * each[..., 1:]).sum(dim=1)
        return self.all(torch.cat([pooled, (weight * level).sum(dim=1), summary], dim=-1))
