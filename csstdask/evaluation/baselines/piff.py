"""Run Piff (Jarvis et al. 2021, MNRAS 501, 1282) on stamps of stars.

Piff is a separate package (extra ``bench``). Its model is a grid of samples with an interpolating kernel, fitted to all
stars at once; each sample is a polynomial of the position.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.psf_grid import OVERSAMPLED_SIZE
from csstdask.core.errors import InputError
from csstdask.core.optional import install_hint
from csstdask.core.warnings import suppress_warnings

Float = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]

#: Pixels per sample of the grid.
_SAMPLING = 0.5
#: Width of the grid [sample].
_SIDE = 25
#: Largest number of rounds of outlier rejection.
_MAX_ROUNDS = 10


@dataclass(frozen=True)
class PiffModel:
    """A model fitted by Piff."""

    fitted: Any
    """A ``piff.SimplePSF``."""

    def __call__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Pixels:
        """Return PSFs of unit sum at zero-based positions, float32 (n, 64, 64), the source at ``[32, 32]``."""
        import galsim  # noqa: PLC0415

        images = []
        positions = zip(np.atleast_1d(np.asarray(x)), np.atleast_1d(np.asarray(y)), strict=True)
        for column, row in positions:
            profile, method = self.fitted.get_profile(float(column) + 1, float(row) + 1)
            image = galsim.Image(OVERSAMPLED_SIZE + 1, OVERSAMPLED_SIZE + 1, scale=_SAMPLING)
            profile.drawImage(image, method=method, center=image.true_center)
            images.append(image.array[:OVERSAMPLED_SIZE, :OVERSAMPLED_SIZE])
        found = np.asarray(images, dtype=np.float32).reshape(-1, OVERSAMPLED_SIZE, OVERSAMPLED_SIZE)
        return np.asarray(found / found.sum(axis=(1, 2), keepdims=True))


def is_installed() -> bool:
    """Return whether Piff is installed."""
    return importlib.util.find_spec("piff") is not None


def run_piff(
    stamps: Pixels,
    variance: Pixels,
    x: Float,
    y: Float,
    *,
    side: int = _SIDE,
    degree: int = 2,
) -> PiffModel:
    """Fit a Piff model to stamps.

    Parameters
    ----------
    stamps : float32 array (n, y, x)
        Background-subtracted; pixel ``[size // 2, size // 2]`` contains the star.
    variance : float32 array (n, y, x)
        Pixel variance, inf where unknown.
    x, y : float64 arrays (n,)
        Zero-based positions [pixel].
    side : int
        Width of the grid, two samples per pixel [sample].
    degree : int
        Degree of the polynomial over the detector.

    Raises
    ------
    InputError
        If Piff is not installed, or fails.
    """
    if not is_installed():
        raise InputError("piff", "no such package", f"Piff: {install_hint('bench')}")
    with suppress_warnings():
        import galsim  # noqa: PLC0415
        import piff  # noqa: PLC0415

        stars = []
        for stamp, stamp_variance, column, row in zip(stamps, variance, x, y, strict=True):
            known = np.isfinite(stamp_variance) & (stamp_variance > 0)
            weight = np.where(known, 1 / np.where(known, stamp_variance, 1), 0).astype(float)
            corner = {
                key: int(np.floor(centre + 0.5)) - stamp.shape[0] // 2 + 1
                for key, centre in (("xmin", column), ("ymin", row))
            }
            planes = np.where(known, stamp, 0.0).astype(float), weight
            image, inverse = (galsim.Image(plane, scale=1.0, **corner) for plane in planes)
            position = galsim.PositionD(float(column) + 1, float(row) + 1)
            data = piff.StarData(image, position, weight=inverse, properties={"chipnum": 0})
            stars.append(piff.Star(data, None))
        grid = piff.PixelGrid(scale=_SAMPLING, size=side, centered=True)
        fitted = piff.SimplePSF(grid, piff.BasisPolynomial(order=degree), max_iter=_MAX_ROUNDS)
        try:
            fitted.fit(stars, {0: galsim.PixelScale(1.0)}, None)
        except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
            raise InputError("piff", f"no fit ({error})", "a model of these stars") from None
    return PiffModel(fitted)
