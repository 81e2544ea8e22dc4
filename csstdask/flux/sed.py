"""Predict SEDs of stars from their normalised spectra, with errors and their covariance between wavelengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtri
from scipy.stats import t as student_t
from torch import nn

from csstdask.core.errors import InputError
from csstdask.flux.extinction import redden
from csstdask.flux.normalised_spectra import NormalisedSpectra, normalise_spectra
from csstdask.flux.sed_network import SedNetwork
from csstdask.flux.sed_table import SedTable
from csstdask.flux.spectral_grids import INPUT_RANGE, INPUT_RESOLUTION, N_SED, REFERENCE_PIXELS, SED_WAVELENGTH
from csstdask.flux.uaranet import UaRANet
from csstdask.nn.card import ModelCard
from csstdask.nn.device import choose_device
from csstdask.nn.models import find_card
from csstdask.nn.weights import load_network

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Stars = Literal["auto", "real", "synthetic"]

#: Number of spectra in a batch.
_BATCH_SIZE = 2048
#: Excess of the reduced chi2 that is significant: five standard deviations over 2238 pixels.
_SIGNIFICANT_MISFIT = 5 * (2 / 2238) ** 0.5
#: Fields of a prediction in the order of the arrays that a batch returns.
_ARRAY_FIELDS = ("mean", "sigma", "modes", "out_of_domain", "chi2", "real", "dof")
#: Share of a normal distribution below +1 sigma.
_UPPER_ONE_SIGMA = 0.841345
_REAL_PROBABILITY: dict[str, float | None] = {"auto": None, "real": 1.0, "synthetic": 0.0}


@dataclass(frozen=True, repr=False)
class SedPrediction:
    """SEDs of n stars, relative to their mean flux in 5526-5586 A.

    Attributes
    ----------
    wavelength : float64 array (574,)
        2500-10500 A, vacuum, in the rest frame of the star.
    mean : float32 array (n, 574)
    sigma : float32 array (n, 574)
        1 sigma of each pixel: noise of the spectrum, scatter of stars with similar spectra, and uncertainty of the
        network. Errors of neighbouring wavelengths are strongly correlated: use `covariance` for averages over a band.
    modes : float32 array (n, rank, 574)
        Correlated part of the errors: the covariance is ``modes.T @ modes`` off the diagonal, ``sigma**2`` on it.
    out_of_domain : bool array (n,)
        Whether the spectrum is unlike those of the training. Do not use these SEDs.
    chi2 : float64 array (n,)
        Mean squared (spectrum - reconstruction) / error; NaN for ``uaranet``.
    real : float64 array (n,)
        Probability with which the correction for real stars was applied; NaN for ``uaranet``.
    dof : float64 array (n,)
        Degrees of freedom of the errors, which follow a Student distribution scaled so that one sigma contains the
        central 68.3 %. inf (Gaussian) for ``uaranet``.
    model : ModelCard
    """

    wavelength: Float
    mean: Float32
    sigma: Float32
    modes: Float32
    out_of_domain: npt.NDArray[np.bool_]
    chi2: Float
    real: Float
    dof: Float
    model: ModelCard

    def __len__(self) -> int:
        return len(self.mean)

    def __repr__(self) -> str:
        """Return a summary in one line."""
        return (
            f"SedPrediction({len(self)} stars, model {self.model.name}, {int(self.out_of_domain.sum())} out of domain)"
        )

    def interval(self, level: float = 0.95) -> tuple[Float, Float]:
        """Return lower and upper ends (n, 574) of the central interval with probability `level`."""
        if not 0 < level < 1:
            raise ValueError(f"level: found {level}; wanted a probability between 0 and 1")
        width = student_t.ppf(0.5 + level / 2, self.dof) / student_t.ppf(_UPPER_ONE_SIGMA, self.dof)
        half = width[:, None] * self.sigma
        return self.mean - half, self.mean + half

    def gaussian_pulls(self, truth: npt.ArrayLike) -> Float:
        """Return residuals over sigma (n, 574), mapped to a unit normal if `sigma` and `dof` are right."""
        scale = student_t.ppf(_UPPER_ONE_SIGMA, self.dof)[:, None]
        pulls = (self.mean - np.asarray(truth)) / self.sigma
        return np.asarray(np.clip(ndtri(student_t.cdf(pulls * scale, self.dof[:, None])), -8, 8))

    def covariance(self, i: int) -> Float:
        """Return the covariance (574, 574) of the i-th SED."""
        modes = self.modes[i].astype(float)
        out = modes.T @ modes
        np.fill_diagonal(out, self.sigma[i].astype(float) ** 2)
        return np.asarray(out)

    def table(self, ids: list[str]) -> SedTable:
        """Return the table that ``csstdask sed`` writes, with one id for each star."""
        return SedTable(
            np.array(ids, dtype=str), self.wavelength, self.mean, self.sigma, self.modes, self.out_of_domain
        )


MIN_RESOLUTION = 1500.0
"""Smallest resolving power of an input; the networks were trained with 1600 to 2000."""


def predict_sed(
    wavelength: npt.ArrayLike,
    flux: npt.ArrayLike,
    error: npt.ArrayLike | None = None,
    *,
    medium: str = "vacuum",
    model: str = "default",
    device: Any = None,
    resolution: float | None = None,
    stars: Stars = "auto",
    ebv: npt.ArrayLike = 0.0,
    ebv_error: npt.ArrayLike = 0.0,
) -> SedPrediction:
    """Predict the SED of stars, 2500-10500 A at R = 200, from spectra of 4000-7000 A at R of about 2000.

    Only lines are used: the spectrum is divided by its moving average, so that its flux calibration and reddening do
    not matter. The SED is that of the unreddened star, unless `ebv` is given.

    Parameters
    ----------
    wavelength : array (pixel,) or (n, pixel)
        Wavelengths in the rest frame of the star [A]; any grid that covers 4000-7000 A.
    flux : array (pixel,) or (n, pixel)
        Flux densities in any unit per Angstrom; NaN where data are missing.
    error : array like flux, optional
        1 sigma; inf for pixels to ignore. By default estimated from neighbouring pixels.
    medium : str
        Medium of the wavelengths, ``vacuum`` or ``air``.
    model : str
        ``default``, a name that ``csstdask models`` lists (``sed``, ``uaranet``), or the path of a card.
    device : optional
        ``cpu`` or ``cuda``.
    resolution : float, optional
        Resolving power of the spectra, at least 1500; by default about 2000. Spectra of a higher one are degraded; a
        lower one is an input of the network, which was trained with 1600 to 2000.
    stars : str
        ``real``: corrected by CALSPEC and MILES stars; ``synthetic``: not corrected; ``auto``: decided from each
        spectrum's lines.
    ebv, ebv_error : float or array (n,)
        Reddening E(B - V) of the star, which is applied to the SED, and its error [mag]; R_V = 3.1.

    Returns
    -------
    SedPrediction

    Raises
    ------
    ValueError
        If shapes differ, or medium, stars, model or device are unknown.
    InputError
        If spectra do not cover 4000-7000 A, too many pixels lack data, or errors are NaN, zero or negative.

    Examples
    --------
    >>> wave = np.arange(3990.0, 7010.0, 1.0)
    >>> line = 1 - 0.5 * np.exp(-0.5 * ((wave - 4862.7) / 8) ** 2)
    >>> sed = predict_sed(wave, line, 0.02 * line)
    >>> sed.mean.shape, sed.covariance(0).shape
    ((1, 574), (574, 574))
    """
    if stars not in _REAL_PROBABILITY:
        raise ValueError(f"stars: found {stars!r}; wanted one of {', '.join(_REAL_PROBABILITY)}")
    if resolution is not None and not resolution >= MIN_RESOLUTION:
        raise InputError("resolution", f"{resolution:g}", f"a resolving power of at least {MIN_RESOLUTION:g}")
    card = find_card("sed", model)
    torch_device = choose_device(device)
    spectra = normalise_spectra(wavelength, flux, error, medium=medium, resolution=resolution)
    found = predict_normalised(
        spectra, card, torch_device, fwhm=_line_widths(len(spectra), resolution), real=_REAL_PROBABILITY[stars]
    )
    return _redden_prediction(found, np.broadcast_to(ebv, len(found)), np.broadcast_to(ebv_error, len(found)))


def _line_widths(n: int, resolution: float | None) -> Float32:
    """Return the FWHM at 4000 and 7000 A (n, 2) of spectra on the input grid [A]."""
    power = INPUT_RESOLUTION if resolution is None else min(resolution, INPUT_RESOLUTION)
    return np.tile(np.array(INPUT_RANGE, dtype=np.float32) / np.float32(power), (n, 1))


def predict_normalised(
    spectra: NormalisedSpectra, card: ModelCard, device: torch.device, *, fwhm: Float32, real: float | None = None
) -> SedPrediction:
    """Predict SEDs of normalised spectra.

    Parameters
    ----------
    spectra : NormalisedSpectra
        Spectra on the input grid.
    card : ModelCard
        Card of an SED network.
    device : torch.device
        Device to compute on.
    fwhm : float32 array (n, 2)
        FWHM of the line-spread function at 4000 and 7000 A [A].
    real : float, optional
        Probability that the stars are real; by default inferred from each spectrum.
    """
    network = load_network(card, build_network, device)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(spectra), _BATCH_SIZE):
            batch = slice(start, start + _BATCH_SIZE)
            flux, error, width = (
                torch.from_numpy(np.ascontiguousarray(one[batch])).to(device)
                for one in (spectra.flux, spectra.error, fwhm)
            )
            if isinstance(network, UaRANet):
                parts.append(_predict_uaranet(network, flux, error))
            else:
                parts.append(_predict_sed_network(network, flux, error, width, real))
    arrays = [np.concatenate(part) for part in zip(*parts, strict=True)] if parts else _empty_arrays()
    return SedPrediction(SED_WAVELENGTH.copy(), **dict(zip(_ARRAY_FIELDS, arrays, strict=True)), model=card)


def build_network(kind: str, **architecture: Any) -> nn.Module:
    """Build the network of a card's architecture; raise InputError if its kind is unknown."""
    if kind == "uaranet":
        return UaRANet(kind, **architecture)
    if kind == "sed":
        return SedNetwork(kind, **architecture)
    raise InputError("architecture", f"kind = {kind!r}", "'sed' or 'uaranet'")


def _empty_arrays() -> list[npt.NDArray[Any]]:
    empty = np.zeros((0, N_SED), dtype=np.float32)
    return [empty, empty, np.zeros((0, 0, N_SED), dtype=np.float32), np.zeros(0, dtype=bool), *[np.zeros(0)] * 3]


def _predict_uaranet(network: UaRANet, flux: torch.Tensor, error: torch.Tensor) -> tuple[npt.NDArray[Any], ...]:
    """Return the arrays of `SedPrediction` by UaRA-net; errors as published, without a covariance."""
    typical = torch.where(torch.isinf(error), 0.0, error).mean(dim=1, keepdim=True)
    mean, relative = network(flux, torch.where(torch.isinf(error), 3 * typical, error))
    level = mean[:, REFERENCE_PIXELS].mean(dim=1, keepdim=True)
    mean = mean / level
    n = len(mean)
    unknown = np.full(n, np.nan)
    modes = np.zeros((n, 0, N_SED), dtype=np.float32)
    sed, sigma = (one.cpu().numpy() for one in (mean, relative * mean.abs()))
    return sed, sigma, modes, np.zeros(n, dtype=bool), unknown, unknown, np.full(n, np.inf)


def _predict_sed_network(
    network: nn.Module, flux: torch.Tensor, error: torch.Tensor, fwhm: torch.Tensor, real: float | None
) -> tuple[npt.NDArray[Any], ...]:
    """Return the arrays of `SedPrediction` by the network ``sed``."""
    found = network(flux, error, fwhm, real)
    mean = torch.exp(found.log_mean)
    modes = found.modes * mean[:, None]
    sigma = torch.sqrt((found.noise * mean).square() + modes.square().sum(dim=1))
    excess = torch.sqrt((found.features.chi2 - 1 - _SIGNIFICANT_MISFIT).clamp(min=0)) / found.features.snr
    size = found.features.values.square().mean(dim=1)
    assert isinstance(network, SedNetwork)  # noqa: S101
    outside = (excess > network.domain_limits[0]) | (size > network.domain_limits[1])
    arrays = (
        mean, sigma, modes, outside, found.features.chi2.double(), found.real.double(), found.dof.double(),
    )  # fmt: skip
    return tuple(one.cpu().numpy() for one in arrays)


def _redden_prediction(found: SedPrediction, ebv: npt.NDArray, ebv_error: npt.NDArray) -> SedPrediction:
    """Return reddened SEDs, relative to the reference range; the error of E(B - V) becomes one more mode."""
    if not (np.any(ebv) or np.any(ebv_error)):
        return found
    if not (np.isfinite(ebv).all() and np.isfinite(ebv_error).all() and (np.asarray(ebv_error) >= 0).all()):
        raise ValueError("ebv: found values that are not finite, or negative errors; wanted E(B - V) in magnitudes")
    mean, sigma, modes = redden(SED_WAVELENGTH, found.mean, found.sigma, found.modes, ebv, ebv_error)
    return SedPrediction(
        found.wavelength, mean, sigma, modes, found.out_of_domain, found.chi2, found.real, found.dof, found.model
    )
