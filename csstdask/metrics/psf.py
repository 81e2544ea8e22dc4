"""Stars of test recipes with their true PSFs, and the errors of reconstructed PSFs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.moments import adaptive_moments
from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.metrics.similarity import structural_similarity
from csstdask.mock import Recipe, render_unit
from csstdask.mock.unit_stamps import unit_stamps
from csstdask.psf.reconstruct import STAMP_SIZE

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stars:
    """Simulated stars of one unit."""

    detector: int
    band: str
    shape: tuple[int, int]
    """Shape of the detector (y, x) [pixel]."""
    stamps: Images
    """(n, 32, 32) [e-]"""
    error: Images
    """(n, 32, 32) 1 sigma [e-]; 0 where masked."""
    mask: npt.NDArray[np.bool_]
    x: Float
    """(n,) Zero-based position on the whole detector [pixel]."""
    y: Float
    snr: Float
    temperature: Float
    """(n,) Effective temperature [K]."""
    truth: Images
    """(n, 64, 64) True effective PSFs at half-pixel sampling."""

    def __len__(self) -> int:
        return len(self.stamps)

    def take(self, which: Any) -> Stars:
        """Return a subset of the stars."""
        names = ("stamps", "error", "mask", "x", "y", "snr", "temperature", "truth")
        return replace(self, **{name: getattr(self, name)[which] for name in names})


def draw_stars(recipe: Recipe, index: int, detector: int) -> Stars:
    """Render the isolated stars of a unit of a recipe; InputError if there are none."""
    instrument = load_instrument(recipe.instrument)
    unit = render_unit(recipe, instrument, index, detector)
    if unit.targets is None or not len(unit.targets.source):
        raise InputError(recipe.name, f"no isolated star on detector {detector}", "stars that do not saturate")
    found = unit_stamps(recipe, instrument, index, detector, unit)
    low = found.planes["sci"].shape[-1] // 2 - STAMP_SIZE // 2
    window = (slice(None), *2 * (slice(low, low + STAMP_SIZE),))
    rate, weight, flag = (found.planes[name][window] for name in ("sci", "wht", "flag"))
    with np.errstate(divide="ignore"):
        error = recipe.exptime / np.sqrt(weight)
    mask = (flag != 0) | (weight <= 0)
    columns = found.columns
    return Stars(
        detector,
        str(instrument.detector(detector).band),
        instrument.shape or recipe.shape,
        (rate * recipe.exptime).astype(np.float32),
        np.where(mask, 0, error).astype(np.float32),
        mask,
        x=columns["x_detector"],
        y=columns["y_detector"],
        snr=columns["snr"],
        temperature=columns["temperature"],
        truth=found.planes["truth/psf"],
    )


def psf_errors(image: Images, truth: Images) -> dict[str, Float]:
    """Return the errors of reconstructed PSFs.

    Parameters
    ----------
    image, truth : float32 arrays (n, 64, 64)
        Reconstructed and true PSFs at half-pixel sampling, with the same centre.

    Returns
    -------
    dict of arrays (n,)
        ``rmse``, ``psnr`` [dB] and ``ssim`` of images divided by their own peak; from adaptive moments ``size``,
        (R - R_true) / R_true with R = sigma, ``e1`` and ``e2``, differences of the distortions, and ``x`` and ``y``,
        differences of the centroids [native pixel].

    Examples
    --------
    >>> axis = np.arange(64) - 32
    >>> image = np.exp(-0.5 * (axis[:, None] ** 2 + axis**2) / 9)[None]
    >>> float(psf_errors(image, image)["ssim"][0])
    1.0
    """
    found, true = (one.astype(float) / one.max(axis=(1, 2), keepdims=True) for one in (image, truth))
    rmse = np.sqrt(((found - true) ** 2).mean(axis=(1, 2)))
    alike = [structural_similarity(*pair, span=1.0) for pair in zip(found, true, strict=True)]
    of_images = {"rmse": rmse, "psnr": -20 * np.log10(np.maximum(rmse, 1e-12)), "ssim": np.array(alike)}
    return of_images | shape_errors(image, truth)


def shape_errors(image: Images, truth: Images) -> dict[str, Float]:
    """Return the errors of sizes, distortions and centroids, as `psf_errors` returns them."""
    shape, wanted = adaptive_moments(image, start=3.0), adaptive_moments(truth, start=3.0)
    return {
        "size": shape.sigma / wanted.sigma - 1,
        "e1": shape.e1 - wanted.e1,
        "e2": shape.e2 - wanted.e2,
        "x": (shape.x - wanted.x) / 2,
        "y": (shape.y - wanted.y) / 2,
    }


def psf_pulls(image: Images, sigma: Images, truth: Images, *, min_share: float = 0.01) -> Float:
    """Return (reconstruction - truth) / sigma of all samples above a share of the peak of their PSF."""
    counted = truth > min_share * truth.max(axis=(1, 2), keepdims=True)
    return np.asarray((image - truth)[counted] / sigma[counted], dtype=np.float64)
