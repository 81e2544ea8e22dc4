"""Apply CSST-PSFNet: normalise stamps of stars, predict their PSFs, and compare these with the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csstdask.arrays.stamps import sky_from_border
from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.nn.card import ModelCard
from csstdask.nn.device import choose_device
from csstdask.nn.weights import load_network
from csstdask.psf.network import PSF, PsfNet
from csstdask.psf.pixels import subpixel_offset

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]

#: Width of the border of a stamp that shows its sky [pixel].
_BORDER = 3
#: Number of stars per batch of the network.
_BATCH_SIZE = 256


def build_psfnet(*, kind: str, instrument: str, detectors: list[int], **sizes: Any) -> PsfNet:
    """Return an untrained network for the detectors of an instrument.

    Parameters
    ----------
    kind : str
        ``psfnet``
    instrument : str
        Name or file of the instrument.
    detectors : list of int
        Ids of the detectors.
    **sizes
        Sizes of the network, as `PsfNet` takes them.

    Raises
    ------
    InputError
        If the kind is another, or there is no such instrument.
    """
    if kind != "psfnet":
        raise InputError("kind", repr(kind), "psfnet")
    load_instrument(instrument)  # fail now, not where its detectors are needed
    return PsfNet(len(detectors), **sizes)


def normalise_stamps(pixels: npt.NDArray[np.floating[Any]], ignored: npt.NDArray[np.bool_]) -> Images:
    """Return stamps (n, 32, 32) with sky 0 and the brightest pixel 1, the input of the network.

    Ignored pixels are set to the sky; so is a stamp without a pixel above it.
    """
    sky = sky_from_border(pixels, ignored, _BORDER)[:, None, None]
    light = np.where(ignored, 0, pixels - sky)
    peak = light.max(axis=(1, 2), keepdims=True, initial=0)
    return np.asarray(np.where(peak > 0, light / np.where(peak > 0, peak, 1), 0), dtype=np.float32)


def normalise_positions(x: Float, y: Float, shape: tuple[int, int]) -> Images:
    """Return positions (n, 2) on a detector of a shape (y, x) as x and y between 0 and 1, input of the network."""
    return np.column_stack([(x + 0.5) / shape[1], (y + 0.5) / shape[0]]).astype(np.float32)


def detector_indices(card_detectors: list[int], detector: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return the indices of detectors in a model's list.

    Raises
    ------
    ValueError
        If the model was not trained on one of them.

    Examples
    --------
    >>> detector_indices([6, 7, 8], np.array([8, 6])).tolist()
    [2, 0]
    """
    indices = {one: index for index, one in enumerate(card_detectors)}
    if unknown := sorted({int(one) for one in np.unique(detector)} - set(indices)):
        raise ValueError(f"detector: found {unknown[0]}; wanted one of {', '.join(map(str, card_detectors))}")
    return np.array([indices[int(one)] for one in detector], dtype=np.int64)


def predict_psfs(
    card: ModelCard,
    pixels: Images,
    variance: Images,
    detector: npt.NDArray[np.int64],
    x: Float,
    y: Float,
    shape: tuple[int, int],
    device: Any = None,
) -> tuple[Images, Images, Float]:
    """Predict the PSF of each star from its own pixels.

    Parameters
    ----------
    card : ModelCard
    pixels, variance : float32 arrays (n, 32, 32)
        Stamps, and the variance of each pixel, inf where unknown.
    detector : int64 array (n,)
        Ids of detectors.
    x, y : float64 arrays (n,)
        Positions on the whole detector [pixel].
    shape : (int, int)
        Shape of the detectors (y, x).
    device : optional
        Device of the network.

    Returns
    -------
    image, sigma : float32 arrays (n, 64, 64)
        PSFs of unit sum; sigmas by the card's calibration on validation stars.
    chi2 : float64 array (n,)
        Chi^2 per degree of freedom of each star's pixels.

    Raises
    ------
    ValueError
        If the model was not trained on a detector.
    """
    chosen = choose_device(device)
    network = load_network(card, build_psfnet, chosen)
    ignored = ~np.isfinite(variance)
    offsets = (torch.from_numpy(subpixel_offset(position).astype(np.float32)) for position in (x, y))
    inputs = (
        torch.from_numpy(normalise_stamps(pixels.astype(float), ignored)),
        torch.from_numpy(normalise_positions(x, y, shape)),
        torch.from_numpy(detector_indices(card.architecture["detectors"], detector)),
        *offsets,
        torch.from_numpy(pixels),
        torch.from_numpy(1 / variance),
    )
    n = len(pixels)
    image, chi2 = np.empty((n, PSF, PSF), np.float32), np.full(n, np.nan)
    with torch.inference_mode():
        for first in range(0, n, _BATCH_SIZE):
            batch = slice(first, first + _BATCH_SIZE)
            stamp, position, index, *star = (one[batch].to(chosen) for one in inputs)
            psf = network(stamp, position, index).image
            pull2 = pixel_pulls(psf, *star).square().sum(dim=(1, 2)).cpu().numpy()
            degrees = np.maximum((~ignored[batch]).sum(axis=(1, 2)) - 2, 0)
            image[batch] = psf.cpu().numpy()
            chi2[batch] = np.where(degrees > 0, pull2 / np.maximum(degrees, 1), np.nan)
    sigma = predict_sigma(image, card.calibration["floor"], card.calibration["share"])
    return image, sigma, chi2


def predict_sigma(image: Images, floor: float, share: float) -> Images:
    """Return sigmas of PSFs: a share of the peak everywhere, and a share of each sample, added in quadrature."""
    peak = image.max(axis=(1, 2), keepdims=True)
    return np.hypot(np.float32(floor) * peak, np.float32(share) * image).astype(np.float32)


def render_at_stars(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the pixels (n, 32, 32) of stars of unit flux, from half-pixel PSFs shifted by Fourier phases.

    Parameters
    ----------
    image : float32 (n, 64, 64)
        PSFs centred on ``[32, 32]``.
    x, y : float32 (n,)
        Offset of each star from the centre of pixel ``[16, 16]`` [pixel].
    """
    rows, columns = (make(PSF, device=image.device) for make in (torch.fft.fftfreq, torch.fft.rfftfreq))
    turns = 2 * (y[:, None, None] * rows[:, None] + x[:, None, None] * columns)
    shifted = torch.fft.irfft2(torch.fft.rfft2(image) * torch.exp(-2j * torch.pi * turns), s=(PSF, PSF))
    return shifted[:, ::2, ::2]


def pixel_pulls(image: Tensor, x: Tensor, y: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Return (pixel - model) / sigma of stars (n, 32, 32), with the flux and sky that fit each of them best.

    Parameters
    ----------
    image, x, y
        As `render_at_stars` takes them.
    pixels, weight : float32 (n, 32, 32)
        Pixels of the stars, and 1 / variance; 0 where unknown.
    """
    unit = render_at_stars(image, x, y)
    root = weight.sqrt()
    weight = weight / weight.amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)  # any unit: sums of the order of one
    total, light = weight.sum(dim=(1, 2)), (weight * unit).sum(dim=(1, 2))
    light2, product = (weight * unit**2).sum(dim=(1, 2)), (weight * unit * pixels).sum(dim=(1, 2))
    values = (weight * pixels).sum(dim=(1, 2))
    flux = (product * total - light * values) / (light2 * total - light**2).clamp_min(1e-20)
    sky = (values - flux * light) / total.clamp_min(1e-20)
    return (pixels - flux[:, None, None] * unit - sky[:, None, None]) * root
