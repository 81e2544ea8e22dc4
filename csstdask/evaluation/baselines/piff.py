"""Piff (Jarvis et al. 2021, MNRAS 501, 1282) on the very same stamps: a peer of PSF reconstruction.

It is a package of its own (extra ``bench``): a grid of samples with an interpolating kernel, fitted
to all stars at once, each sample a polynomial of the place.
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

#: Samples a pixel, and along the edge of its grid.
_SAMPLING, _SIDE = 0.5, 25
#: Of rejection, rounds at most.
_ROUNDS = 10


@dataclass(frozen=True)
class PiffModel:
    """What Piff has fitted."""

    fitted: Any
    """A ``piff.SimplePSF``."""

    def __call__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Pixels:
        """Return PSFs at zero-based places, float32 (n, 64, 64), the source at ``[32, 32]``; each sums to 1."""
        import galsim  # noqa: PLC0415

        images = []
        places = zip(np.atleast_1d(np.asarray(x)), np.atleast_1d(np.asarray(y)), strict=True)
        for column, row in places:
            profile, method = self.fitted.get_profile(float(column) + 1, float(row) + 1)
            image = galsim.Image(OVERSAMPLED_SIZE + 1, OVERSAMPLED_SIZE + 1, scale=_SAMPLING)
            profile.drawImage(image, method=method, center=image.true_center)
            images.append(image.array[:OVERSAMPLED_SIZE, :OVERSAMPLED_SIZE])
        found = np.asarray(images, dtype=np.float32).reshape(-1, OVERSAMPLED_SIZE, OVERSAMPLED_SIZE)
        return np.asarray(found / found.sum(axis=(1, 2), keepdims=True))


def is_installed() -> bool:
    """Tell whether this machine has Piff."""
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
    """Fit Piff's model to stamps.

    Parameters
    ----------
    stamps : float32 array (n, y, x)
        Background-subtracted; pixel ``[size // 2, size // 2]`` is that of the star's place.
    variance : float32 array (n, y, x)
        Of each pixel, inf where nothing is known.
    x, y : float64 arrays (n,)
        Zero-based [pixel].
    side : int
        Samples along the edge of its grid, two a pixel.
    degree : int
        Of the polynomial over the detector.

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
        for stamp, doubt, column, row in zip(stamps, variance, x, y, strict=True):
            known = np.isfinite(doubt) & (doubt > 0)
            weight = np.where(known, 1 / np.where(known, doubt, 1), 0).astype(float)
            corner = {
                key: int(np.floor(place + 0.5)) - stamp.shape[0] // 2 + 1
                for key, place in (("xmin", column), ("ymin", row))
            }
            planes = np.where(known, stamp, 0.0).astype(float), weight
            image, inverse = (galsim.Image(plane, scale=1.0, **corner) for plane in planes)
            place = galsim.PositionD(float(column) + 1, float(row) + 1)
            data = piff.StarData(image, place, weight=inverse, properties={"chipnum": 0})
            stars.append(piff.Star(data, None))
        grid = piff.PixelGrid(scale=_SAMPLING, size=side, centered=True)
        fitted = piff.SimplePSF(grid, piff.BasisPolynomial(order=degree), max_iter=_ROUNDS)
        try:
            fitted.fit(stars, {0: galsim.PixelScale(1.0)}, None)
        except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
            raise InputError("piff", f"no fit ({error})", "a model of these stars") from None
    return PiffModel(fitted)
