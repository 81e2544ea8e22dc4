"""Generate noisy training examples for the SED networks from noise-free spectra."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from csstdask.datasets.synthetic_spectra import SyntheticStars
from csstdask.flux.normalised_spectra import AVERAGING_PIXELS

#: Signal-to-noise ratios of the published training set.
PUBLISHED_SNR = (20.0, 25.0, 30.0, 35.0, 40.0)


@dataclass(frozen=True)
class SedBatch:
    """Noisy spectra and their SEDs.

    Attributes
    ----------
    flux, error : tensor (n, 2238)
        Normalised spectra and their 1-sigma errors.
    fwhm : tensor (n, 2)
        FWHM of the line-spread function at 4000 and 7000 A [A].
    sed : tensor (n, 574)
    shares : tensor (n, 5)
        Weight of each fold of cells in the star.
    """

    flux: Tensor
    error: Tensor
    fwhm: Tensor
    sed: Tensor
    shares: Tensor

    def take(self, which: Tensor) -> SedBatch:
        """Select stars by index or mask."""
        return SedBatch(self.flux[which], self.error[which], self.fwhm[which], self.sed[which], self.shares[which])


def average(flux: Tensor) -> Tensor:
    """Return the moving average of spectra (n, 2238) without gaps, as `normalised_spectra.moving_average` does."""
    half = AVERAGING_PIXELS // 2
    return functional.avg_pool1d(flux[:, None], AVERAGING_PIXELS, 1, half, count_include_pad=False)[:, 0]


def noisy(flux: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Add multiplicative noise, F' = F + r F, and normalise (UaRA-net, equation 1).

    Parameters
    ----------
    flux : tensor (n, 2238)
        Noise-free spectra.
    noise : tensor (n, 1) or (n, 2238)
        Standard deviation of r, 1 / SNR.
    generator : torch.Generator
        Source of the noise.

    Returns
    -------
    flux, error : tensor (n, 2238)
        Noisy spectra and their errors, divided by the moving average of the noisy spectrum.
    """
    r = torch.randn(flux.shape, generator=generator) * noise
    observed = flux * (1 + r)
    mean = average(observed)
    return observed / mean, flux * noise / mean


def as_tensors(stars: SyntheticStars) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return spectra, line widths, SEDs and fold shares of stars as tensors that share memory with them."""
    return tuple(torch.from_numpy(part) for part in (stars.flux, stars.fwhm, stars.sed, stars.shares))  # type: ignore[return-value]


def published_batches(stars: SyntheticStars, batch: int, seed: int) -> Iterator[SedBatch]:
    """Yield the stars in a random order, each with one of the published signal-to-noise ratios."""
    flux, fwhm, sed, shares = as_tensors(stars)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(flux), generator=generator)
    choices = torch.tensor(PUBLISHED_SNR)
    for batch_index in order.split(batch):
        snr = choices[torch.randint(len(choices), (len(batch_index), 1), generator=generator)]
        x, error = noisy(flux[batch_index], 1 / snr, generator)
        yield SedBatch(x, error, fwhm[batch_index], sed[batch_index], shares[batch_index])


def varied_noise(n: int, n_pixel: int, generator: torch.Generator) -> Tensor:
    """Draw noise of spectra (n, n_pixel): SNR 8 to 125, log-uniform; in 40 % of them it varies.

    Half of those have a smooth slope (noisier in the blue or in the red), half also a different noise on each side of
    5000 A, as spectrographs with two arms have.
    """
    snr = torch.exp(torch.rand(n, 1, generator=generator) * 2.75 + 2.08)
    kind = torch.rand(n, 1, generator=generator)
    t = torch.linspace(-1, 1, n_pixel)
    slope = torch.randn(n, 1, generator=generator) * 0.35 * t
    step = torch.randn(n, 1, generator=generator) * 0.3 * torch.sign(t + 0.3)
    shape = torch.where(kind < 0.6, torch.zeros(()), torch.where(kind < 0.8, slope, slope + step))
    return torch.exp(shape) / snr


def varied_batches(stars: SyntheticStars, batch: int, seed: int) -> Iterator[SedBatch]:
    """Yield the stars in a random order, each with noise of `varied_noise`."""
    flux, fwhm, sed, shares = as_tensors(stars)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(flux), generator=generator)
    for batch_index in order.split(batch):
        x, error = noisy(flux[batch_index], varied_noise(len(batch_index), flux.shape[1], generator), generator)
        yield SedBatch(x, error, fwhm[batch_index], sed[batch_index], shares[batch_index])
