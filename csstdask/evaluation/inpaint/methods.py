"""The ways of repair that are compared: our own by their cards, and what people use instead, where it is installed."""

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

#: Radius of what Telea's and the Navier-Stokes fill look at, and width of the interpolating kernel [pixel].
_RADIUS, _WIDTH = 3, 1.0
#: Weights of deepCR's inpainter, as the package names them.
_DEEPCR = "ACS-WFC-F606W-2-32"


@dataclass(frozen=True)
class MaskedImage:
    """A frame in which some pixels are to be repaired."""

    data: Float
    """(y, x) [e-]"""
    error: Float | None
    """1 sigma [e-]"""
    ignore: Bool
    """Pixels that nobody asks for, and that are no donors."""
    detector: int | None = None
    """Its id, where the model of PSFs knows its band."""


#: Returns the repaired frame, and the variance of repaired pixels [e-^2] of methods that tell one.
RepairMethod = Callable[[MaskedImage, Bool], tuple[Float, Float | None]]


def inpaint_method(model: str, *, by_psf: bool = False) -> RepairMethod:
    """Return a method of this package: ``median``, or a network by its name or card; perhaps stars by their PSF."""

    def fill(frame: MaskedImage, hit: Bool) -> tuple[Float, Float | None]:
        psf = None if by_psf else NO_PSF
        fixed = inpaint(frame.data, hit, frame.error, frame.ignore, model=model, detector=frame.detector, psf=psf)
        return np.asarray(fixed.data), np.asarray(fixed.variance)

    return fill


def no_repair(frame: MaskedImage, _hit: Bool) -> tuple[Float, None]:
    """Repair nothing."""
    return frame.data, None


def fill_maskfill(frame: MaskedImage, hit: Bool) -> tuple[Float, None]:
    """Fill from the edge inward, with medians (van Dokkum & Pasha 2024, PASP 136, 034503)."""
    from maskfill import maskfill  # noqa: PLC0415

    smooth, _ = maskfill(frame.data, (hit | frame.ignore).astype(np.uint8), size=3, operator="median", smooth=True)
    return _under(frame, hit, np.asarray(smooth)), None


def fill_opencv(frame: MaskedImage, hit: Bool, *, flag: str) -> tuple[Float, None]:
    """Fill as OpenCV does: Telea 2004, or Navier-Stokes (Bertalmio et al. 2001)."""
    import cv2  # noqa: PLC0415

    bad = hit | frame.ignore
    # Bad pixels' own values are not looked at, but must be finite.
    image = np.where(bad, 0, frame.data).astype(np.float32)
    filled = cv2.inpaint(image, bad.astype(np.uint8), _RADIUS, getattr(cv2, flag))
    return _under(frame, hit, np.asarray(filled, dtype=np.float32)), None


def fill_kernel(frame: MaskedImage, hit: Bool) -> tuple[Float, None]:
    """Interpolate with a Gaussian kernel, as astropy does."""
    from astropy.convolution import Gaussian2DKernel, interpolate_replace_nans  # noqa: PLC0415

    holed = np.where(hit | frame.ignore, np.nan, frame.data)
    with suppress_warnings():  # of holes larger than the kernel: their middle keeps its value
        filled = interpolate_replace_nans(holed, Gaussian2DKernel(_WIDTH))
    return _under(frame, hit, np.asarray(filled)), None


def fill_deepcr(frame: MaskedImage, hit: Bool) -> tuple[Float, None]:
    """Repair with deepCR's inpainter and its published weights (Zhang & Bloom 2020)."""
    with torch.inference_mode():  # the package itself keeps what gradients would need
        filled = _deepcr().inpaint(frame.data, (hit | frame.ignore).astype(np.float32))
    return _under(frame, hit, np.asarray(filled)), None


@cache
def _deepcr() -> Any:
    from deepCR import deepCR  # noqa: PLC0415

    return deepCR(mask="ACS-WFC", inpaint=_DEEPCR, device="CPU")


def _under(frame: MaskedImage, hit: Bool, filled: Float) -> Float:
    """Return a frame whose hit pixels alone are another's; a pixel that was not filled keeps its value."""
    return np.where(hit & ~frame.ignore & np.isfinite(filled), filled, frame.data).astype(np.float32)


#: Name: (package, how).
PEERS: dict[str, tuple[str, RepairMethod]] = {
    "maskfill": ("maskfill", fill_maskfill),
    "Telea": ("cv2", partial(fill_opencv, flag="INPAINT_TELEA")),
    "Navier-Stokes": ("cv2", partial(fill_opencv, flag="INPAINT_NS")),
    "astropy kernel": ("astropy", fill_kernel),
    "deepCR, published weights": ("deepCR", fill_deepcr),
}


def absent_peers() -> list[str]:
    """Return the methods whose packages are not installed."""
    return [name for name, (package, _) in PEERS.items() if importlib.util.find_spec(package) is None]


def method_name(model: str, *, by_psf: bool = False) -> str:
    """Return what a model is called in tables: its card's name and version, wherever the card lies."""
    card = find_card("inpaint", model)
    name = card.name if card.parameters else f"{card.name} {card.version}"
    return f"{name}, stars by PSF" if by_psf else name


def own_methods(models: Sequence[str], *, psf: bool) -> dict[str, tuple[str, bool]]:
    """Return our own ways of repair by name, as a model and whether stars are repaired by their PSF.

    The median and every network; with `psf`, the median and the first network once more.
    """
    networks = [model for model in models if method_name(model) != "median"]
    ways = [(model, False) for model in ("median", *networks)]
    if psf:
        ways += [(model, True) for model in ("median", *networks[:1])]
    return {method_name(model, by_psf=stars): (model, stars) for model, stars in ways}


def repair_methods(models: Sequence[str], *, psf: bool = False, peers: bool = True) -> dict[str, RepairMethod]:
    """Return methods by name: nothing, our own ways of repair, and perhaps the peers that are installed.

    Raises
    ------
    ValueError
        If a model is unknown.
    InputError
        If two have the same name and version.
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
