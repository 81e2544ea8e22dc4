"""The repair methods that are compared: those of this package, and other tools where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from csstdask.core.errors import InputError
from csstdask.core.warnings import suppress_warnings
from csstdask.cosmicray.inpaint import inpaint
from csstdask.metrics.detection import Bool, Float
from csstdask.nn.models import NO_PSF, find_card

#: Radius of the neighbourhood of the fills of OpenCV, and standard deviation of the interpolating kernel [pixel].
_OPENCV_RADIUS, _KERNEL_SIGMA = 3, 1.0
#: Name of the published weights of the inpainting network of deepCR.
_DEEPCR = "ACS-WFC-F606W-2-32"


@dataclass(frozen=True)
class MaskedImage:
    """A frame some of whose pixels are repaired; arrays have the shape (y, x)."""

    data: Float
    """Pixels [e-]."""
    error: Float | None
    """1 sigma of the pixels [e-]."""
    ignore: Bool
    """Ignored pixels: they are neither repaired nor used as donors."""
    detector: int | None = None
    """Id of the detector; None if the PSF model does not support its band."""


#: Takes a frame and the hit pixels; returns the repaired frame, and the variance of repaired pixels [e-^2] if known.
RepairMethod = Callable[[MaskedImage, Bool], tuple[Float, Float | None]]


def inpaint_method(model: str, *, by_psf: bool = False) -> RepairMethod:
    """Return a method of this package.

    Parameters
    ----------
    model : str
        ``median``, or the name or card of a network.
    by_psf : bool
        Whether stars are repaired with their PSF.
    """

    def fill(frame: MaskedImage, hit: Bool) -> tuple[Float, Float | None]:
        psf = None if by_psf else NO_PSF
        fixed = inpaint(frame.data, hit, frame.error, frame.ignore, model=model, detector=frame.detector, psf=psf)
        return np.asarray(fixed.data), np.asarray(fixed.variance)

    return fill


def no_repair(frame: MaskedImage, _hit: Bool) -> tuple[Float, None]:
    """Return the frame without any repair."""
    return frame.data, None


def fill_maskfill(frame: MaskedImage, hit: Bool) -> tuple[Float, None]:
    """Fill from the edge inward with medians: maskfill (van Dokkum & Pasha 2024, PASP 136, 034503)."""
    from maskfill import maskfill  # noqa: PLC0415

    smooth, _ = maskfill(frame.data, (hit | frame.ignore).astype(np.uint8), size=3, operator="median", smooth=True)
    return _replace_hit(frame, hit, np.asarray(smooth)), None


def fill_opencv(frame: MaskedImage, hit: Bool, *, flag: str) -> tuple[Float, None]:
    """Fill with OpenCV: Telea (2004), or Navier-Stokes (Bertalmio et al. 2001)."""
    import cv2  # noqa: PLC0415

    bad = hit | frame.ignore
    # The values of bad pixels are not used, but must be finite.
    image = np.where(bad, 0, frame.data).astype(np.float32)
    filled = cv2.inpaint(image, bad.astype(np.uint8), _OPENCV_RADIUS, getattr(cv2, flag))
    return _replace_hit(frame, hit, np.asarray(filled, dtype=np.float32)), None


def fill_kernel(frame: MaskedImage, hit: Bool) -> tuple[Float, None]:
    """Interpolate with a Gaussian kernel of astropy."""
    from astropy.convolution import Gaussian2DKernel, interpolate_replace_nans  # noqa: PLC0415

    holed = np.where(hit | frame.ignore, np.nan, frame.data)
    with suppress_warnings():  # about holes larger than the kernel, whose centre keeps its value
        filled = interpolate_replace_nans(holed, Gaussian2DKernel(_KERNEL_SIGMA))
    return _replace_hit(frame, hit, np.asarray(filled)), None


def fill_deepcr(frame: MaskedImage, hit: Bool) -> tuple[Float, None]:
    """Repair with the inpainting network of deepCR and its published weights (Zhang & Bloom 2020)."""
    with torch.inference_mode():  # the package does not switch gradients off
        filled = _deepcr().inpaint(frame.data, (hit | frame.ignore).astype(np.float32))
    return _replace_hit(frame, hit, np.asarray(filled)), None


@cache
def _deepcr() -> Any:
    from deepCR import deepCR  # noqa: PLC0415

    return deepCR(mask="ACS-WFC", inpaint=_DEEPCR, device="CPU")


def _replace_hit(frame: MaskedImage, hit: Bool, filled: Float) -> Float:
    """Replace the hit pixels of a frame by filled ones; pixels that were not filled keep their value."""
    return np.where(hit & ~frame.ignore & np.isfinite(filled), filled, frame.data).astype(np.float32)


#: Methods of other tools: package, and function, by name.
PEERS: dict[str, tuple[str, RepairMethod]] = {
    "maskfill": ("maskfill", fill_maskfill),
    "Telea": ("cv2", partial(fill_opencv, flag="INPAINT_TELEA")),
    "Navier-Stokes": ("cv2", partial(fill_opencv, flag="INPAINT_NS")),
    "astropy kernel": ("astropy", fill_kernel),
    "deepCR, published weights": ("deepCR", fill_deepcr),
}


def absent_peers() -> list[str]:
    """Return the names of the methods whose packages are not installed."""
    return [name for name, (package, _) in PEERS.items() if importlib.util.find_spec(package) is None]


def method_name(model: str, *, by_psf: bool = False) -> str:
    """Return the label of a model in tables: name and version of its card."""
    card = find_card("inpaint", model)
    name = card.name if card.parameters else f"{card.name} {card.version}"
    return f"{name}, stars by PSF" if by_psf else name


def own_methods(models: Sequence[str], *, psf: bool) -> dict[str, tuple[str, bool]]:
    """Return the methods of this package: by name the model, and whether stars are repaired with their PSF.

    These are the median and all networks; with `psf`, the median and the first network are included in both variants.
    """
    networks = [model for model in models if method_name(model) != "median"]
    methods = [(model, False) for model in ("median", *networks)]
    if psf:
        methods += [(model, True) for model in ("median", *networks[:1])]
    return {method_name(model, by_psf=stars): (model, stars) for model, stars in methods}


def repair_methods(models: Sequence[str], *, psf: bool = False, peers: bool = True) -> dict[str, RepairMethod]:
    """Return all methods by name: no repair, those of this package, and other tools that are installed.

    Raises
    ------
    ValueError
        If a model is unknown.
    InputError
        If two models have the same name and version.
    """
    names = ["median", *(method_name(model) for model in models if method_name(model) != "median")]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError("--model", f"two called {', '.join(sorted(twice))}", "cards of different names or versions")
    absent = absent_peers()
    return {
        "no repair": no_repair,
        **{name: inpaint_method(model, by_psf=stars) for name, (model, stars) in own_methods(models, psf=psf).items()},
        **{name: fill for name, (_, fill) in PEERS.items() if peers and name not in absent},
    }
