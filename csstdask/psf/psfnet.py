"""CSST-PSFNet at work: from stamps of stars to what it sees, and to PSFs with their sigmas."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.nn.card import ModelCard
from csstdask.nn.device import choose_device
from csstdask.nn.weights import load_network
from csstdask.psf.network import PSF, PsfNet
from csstdask.psf.pixels import subpixel_offset

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]

#: Rows and columns along a stamp's edge that tell the sky.
_RIM = 3
_BATCH = 256


def build_psfnet(*, kind: str, instrument: str, detectors: list[int], **sizes: Any) -> PsfNet:
    """Return an untrained network for the detectors of an instrument.

    Parameters
    ----------
    kind : str
        ``psfnet``
    instrument : str
        By name or file.
    detectors : list of int
        Ids.
    **sizes
        Of the network, as `PsfNet` takes them.

    Raises
    ------
    InputError
        If the kind is another, or there is no such instrument.
    """
    if kind != "psfnet":
        raise InputError("kind", repr(kind), "psfnet")
    load_instrument(instrument)  # refused now, and not where its detectors are asked for
    return PsfNet(len(detectors), **sizes)


def normalise_stamps(pixels: npt.NDArray[np.floating[Any]], ignored: npt.NDArray[np.bool_]) -> Images:
    """Return stamps as the network sees them (n, 32, 32): sky at nought, the brightest pixel at one.

    Ignored pixels are taken for sky; so is all of a stamp without a bright pixel.
    """
    known = np.ma.masked_array(pixels, ignored)
    rim = np.ones(pixels.shape[1:], dtype=bool)
    rim[_RIM:-_RIM, _RIM:-_RIM] = False
    sky = np.ma.filled(np.ma.median(known[:, rim], axis=1), 0.0)[:, None, None]
    light = np.where(ignored, 0, pixels - sky)
    highest = light.max(axis=(1, 2), keepdims=True, initial=0)
    return np.asarray(np.where(highest > 0, light / np.where(highest > 0, highest, 1), 0), dtype=np.float32)


def normalise_positions(x: Float, y: Float, shape: tuple[int, int]) -> Images:
    """Return places on a detector as the network sees them (n, 2): x and y, 0 to 1."""
    return np.column_stack([(x + 0.5) / shape[1], (y + 0.5) / shape[0]]).astype(np.float32)


def detector_indices(card_detectors: list[int], detector: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return detectors as the network counts them, from 0.

    Raises
    ------
    ValueError
        If it has not learnt one of them.
    """
    numbers = {one: number for number, one in enumerate(card_detectors)}
    if unknown := sorted({int(one) for one in np.unique(detector)} - set(numbers)):
        raise ValueError(f"detector: found {unknown[0]}; wanted one of {', '.join(map(str, card_detectors))}")
    return np.array([numbers[int(one)] for one in detector], dtype=np.int64)


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
    """Return PSFs of stars, each by itself.

    Parameters
    ----------
    card : ModelCard
    pixels, variance : float32 arrays (n, 32, 32)
        Stamps, and the variance of each pixel, inf where nothing is known.
    detector : int64 array (n,)
    x, y : float64 arrays (n,)
        On the whole detector [pixel].
    shape : (int, int)
        Of the detectors (y, x).
    device : optional
        Where the network runs.

    Returns
    -------
    image, sigma : float32 arrays (n, 64, 64)
        Of unit sum; sigmas are what the card says of validation stars.
    chi2 : float64 array (n,)
        A degree of freedom, of each star's pixels beside its PSF.

    Raises
    ------
    ValueError
        If the card knows nothing of a detector.
    """
    chosen = choose_device(device)
    network = load_network(card, build_psfnet, chosen)
    ignored = ~np.isfinite(variance)
    phases = (torch.from_numpy(subpixel_offset(place).astype(np.float32)) for place in (x, y))
    given = (
        torch.from_numpy(normalise_stamps(pixels.astype(float), ignored)),
        torch.from_numpy(normalise_positions(x, y, shape)),
        torch.from_numpy(detector_indices(card.architecture["detectors"], detector)),
        *phases,
        torch.from_numpy(pixels),
        torch.from_numpy(1 / variance),
    )
    n = len(pixels)
    image, chi2 = np.empty((n, PSF, PSF), np.float32), np.full(n, np.nan)
    with torch.inference_mode():
        for first in range(0, n, _BATCH):
            some = slice(first, first + _BATCH)
            stamp, place, number, *star = (one[some].to(chosen) for one in given)
            found = network(stamp, place, number).image
            pull2 = pixel_pulls(found, *star).square().sum(dim=(1, 2)).cpu().numpy()
            freedom = np.maximum((~ignored[some]).sum(axis=(1, 2)) - 2, 0)
            image[some], chi2[some] = found.cpu().numpy(), np.where(freedom > 0, pull2 / np.maximum(freedom, 1), np.nan)
    sigma = predict_sigma(image, card.calibration["floor"], card.calibration["share"])
    return image, sigma, chi2


def predict_sigma(image: Images, floor: float, share: float) -> Images:
    """Return sigmas of PSFs: a share of a PSF's peak everywhere, and a share of each sample's own light."""
    peak = image.max(axis=(1, 2), keepdims=True)
    return np.hypot(np.float32(floor) * peak, np.float32(share) * image).astype(np.float32)


def render_at_stars(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return what the pixels of stars show of PSFs (n, 64, 64): (n, 32, 32), two samples a pixel, moved by a phase.

    Parameters
    ----------
    image : float32 (n, 64, 64)
        Centred on ``[32, 32]``.
    x, y : float32 (n,)
        Of each star from the middle of pixel ``[16, 16]`` [pixel].
    """
    rows, columns = (make(PSF, device=image.device) for make in (torch.fft.fftfreq, torch.fft.rfftfreq))
    turn = 2 * (y[:, None, None] * rows[:, None] + x[:, None, None] * columns)
    moved = torch.fft.irfft2(torch.fft.rfft2(image) * torch.exp(-2j * torch.pi * turn), s=(PSF, PSF))
    return moved[:, ::2, ::2]


def pixel_pulls(image: Tensor, x: Tensor, y: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Return (pixel - what the PSF shows of it) / sigma of stars, each with the flux and the sky that fit it best.

    Parameters
    ----------
    image, x, y
        As `render_at_stars` takes them.
    pixels, weight : float32 (n, 32, 32)
        Of the stars, and 1 / variance; 0 where nothing is known.
    """
    seen = render_at_stars(image, x, y)
    root = weight.sqrt()
    weight = weight / weight.amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)  # any unit: sums of the order of one
    total, light = weight.sum(dim=(1, 2)), (weight * seen).sum(dim=(1, 2))
    light2, both = (weight * seen**2).sum(dim=(1, 2)), (weight * seen * pixels).sum(dim=(1, 2))
    alone = (weight * pixels).sum(dim=(1, 2))
    flux = (both * total - light * alone) / (light2 * total - light**2).clamp_min(1e-20)
    sky = (alone - flux * light) / total.clamp_min(1e-20)
    return (pixels - flux[:, None, None] * seen - sky[:, None, None]) * root
