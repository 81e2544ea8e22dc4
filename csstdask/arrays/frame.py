"""Ignored pixels, electrons and variance of a frame: the one definition for runs, trainings and evaluations.

A camera delivers a science plane in some unit, its inverse variance ("weight") and a plane of flag bits. Everything
that measures works in electrons, with a variance per pixel and a mask of ignored pixels:

* **ignored**: a flag bit that the instrument declares unusable, a weight that is not positive, or a value that is not
  finite (`ignored_pixels`);
* **electrons**: value times the electrons per unit, which follow from unit, exposure time and gain
  (`csstdask.instrument.electrons_per_unit`);
* **variance**: scale^2 / weight where a weight is given (`variance_from_weight`), else that of a model,
  noise^2 + max(data - background, 0), the noise of the sky and the Poisson noise of the light above it
  (`frame_variance`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.background import estimate_background
from csstdask.arrays.mesh import Mesh
from csstdask.arrays.namespace import namespace_of


@dataclass(frozen=True)
class ElectronFrame:
    """Pixels of one frame, or of some of its rows, in electrons."""

    data: npt.NDArray[np.float32]
    """(y, x) [e-], sky included; ignored pixels keep the value that was read."""
    error: npt.NDArray[np.float32]
    """(y, x) 1 sigma [e-]; inf where the weight is not positive."""
    ignore: npt.NDArray[np.bool_]
    """(y, x) Pixels that are unusable by flag, weight or value."""
    flag: npt.NDArray[np.integer[Any]]
    """(y, x) Flag bits."""


def to_electrons(
    sci: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    flag: npt.NDArray[np.integer[Any]],
    *,
    scale: float,
    ignore_bits: int,
) -> ElectronFrame:
    """Convert the planes of a frame to electrons.

    Parameters
    ----------
    sci : float32 array (y, x)
        Science plane, in any unit.
    weight : float32 array (y, x)
        Inverse variance [unit^-2]; 0 where unusable.
    flag : int array (y, x)
        Flag bits.
    scale : float
        Electrons per unit of `sci`.
    ignore_bits : int
        Flag bits that make a pixel unusable.

    Examples
    --------
    >>> planes = np.float32([[2.0, np.nan, 3.0, 4.0]]), np.float32([[4.0, 1.0, 0.0, 1.0]]), np.int32([[0, 0, 0, 8]])
    >>> frame = to_electrons(*planes, scale=10.0, ignore_bits=8)
    >>> frame.error.tolist(), frame.ignore.tolist()
    ([[5.0, 10.0, inf, 10.0]], [[False, True, True, True]])
    """
    data = sci * np.float32(scale)
    variance = variance_from_weight(weight, scale)
    ignore = ignored_pixels(flag, ignore_bits, data=data, variance=variance)
    return ElectronFrame(data, np.sqrt(variance, out=variance), ignore, flag)


def ignored_pixels(
    flag: Any, ignore_bits: int, *, data: Any = None, variance: Any = None, exempt: Any = None
) -> npt.NDArray[np.bool_]:
    """Return the pixels that no measurement may use.

    Parameters
    ----------
    flag : int array (y, x)
        Flag bits.
    ignore_bits : int
        Flag bits that make a pixel unusable.
    data : float array (y, x), optional
        Values; a pixel whose value is not finite is ignored.
    variance : float array (y, x), optional
        Variances; a pixel whose variance is not finite (`variance_from_weight`: no weight) is ignored.
    exempt : bool array (y, x), optional
        Pixels whose variance is disregarded. A pipeline that sets the weight to 0 where it suspects a cosmic ray says
        nothing about the pixel itself.

    Examples
    --------
    >>> ignored_pixels(np.int32([0, 1, 2]), 1, variance=np.float32([np.inf, 1, 1])).tolist()
    [True, True, False]
    """
    ignore = (flag & ignore_bits) != 0
    if variance is not None:
        unknown = ~np.isfinite(variance)
        ignore |= unknown if exempt is None else unknown & ~exempt
    if data is not None:
        ignore |= ~np.isfinite(data)
    return np.asarray(ignore)


def variance_from_weight(weight: npt.NDArray[np.float32], scale: float = 1.0, *, out: Any = None) -> Any:
    """Return the variance that a weight states [e-^2]: scale^2 / weight, inf where the weight is not positive.

    Parameters
    ----------
    weight : float32 array (y, x)
        Inverse variance [unit^-2].
    scale : float
        Electrons per unit.
    out : float32 array (y, x), optional
        Array for the result; `weight` itself saves a plane.

    Examples
    --------
    >>> variance_from_weight(np.float32([4.0, 0.0, np.nan]), 2.0).tolist()
    [1.0, inf, inf]
    """
    known = weight > 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        variance = np.divide(np.float32(scale**2), weight, out=out)
    variance[~known] = np.inf
    return variance


def poisson_variance(counts: Any, noise: Any) -> Any:
    """Return noise^2 + max(counts, 0): the variance of expected counts, read with a noise [e-^2].

    Parameters
    ----------
    counts : float array
        Expected photoelectrons [e-], above whatever `noise` already includes; negative values count as 0.
    noise : float or float array
        1 sigma of everything else: the read noise, or the noise of the sky [e-].

    Examples
    --------
    >>> poisson_variance(np.array([100.0, -5.0]), 3.0).tolist()
    [109.0, 9.0]
    """
    return namespace_of(counts).maximum(counts, 0) + noise * noise


def frame_variance(data: Any, mask: Any, mesh: Mesh | None = None, rows: slice = slice(None)) -> Any:
    """Return the variance of each pixel of a frame whose error plane is unknown.

    Parameters
    ----------
    data : float array (y, x)
        Pixels [e-], sky included; NumPy or CuPy.
    mask : bool array (y, x) or None
        True = ignore, while the background is estimated.
    mesh : Mesh, optional
        Background and noise [e-]; estimated by default.
    rows : slice
        Rows of the frame that `data` holds, for work in parts.

    Returns
    -------
    float32 array (y, x)
        ``noise^2 + max(data - background, 0)`` [e-^2]; noise^2 where data are not finite.
    """
    xp = namespace_of(data)
    mesh = estimate_background(data, mask) if mesh is None else mesh
    height = (data - mesh.background_at(rows)).astype(np.float32)
    height = xp.where(xp.isfinite(height), height, np.float32(0))
    return poisson_variance(height, mesh.noise_at(rows))
