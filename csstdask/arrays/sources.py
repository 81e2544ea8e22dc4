"""Detection of sources, and their photometry in circular apertures and Kron ellipses.

The algorithms are those of SExtractor, as implemented by SEP (Barbary 2016, JOSS 1, 58). They run on the host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import sep

#: The limits of SEP belong to the process, not to a thread.
_SEP_LOCK = threading.Lock()
#: Smallest size of SEP's buffer of detected pixels.
_PIXEL_STACK = 5_000_000
#: Largest number of objects that SEP separates in one blend.
_SUB_OBJECTS = 4096

#: Standard deviation of a uniform pixel [pixel].
_PIXEL_SIGMA = 12**-0.5

#: Size of the photometric ellipse in Kron radii (Bertin & Arnouts 1996).
KRON_FACTOR = 2.5
#: Smallest radius of the photometric ellipse [pixel].
MIN_KRON_RADIUS = 3.5


def find_sources(
    data: npt.NDArray[np.float32],
    noise: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    *,
    threshold: float = 2.5,
    least_area: int = 5,
    deblend_contrast: float = 0.005,
) -> npt.NDArray[Any]:
    """Detect the sources of a background-subtracted frame; see `measure_sources` for the parameters.

    Returns
    -------
    structured array (n,)
        Columns of SEP: isophotal ``x``, ``y``, ``a``, ``b``, ``theta``, ``npix``, ``flux``, ``peak``, ``flag`` ...
    """
    with _SEP_LOCK:
        sep.set_extract_pixstack(max(_PIXEL_STACK, data.size // 4))
        sep.set_sub_object_limit(_SUB_OBJECTS)
        return np.asarray(
            sep.extract(data, threshold, err=noise, mask=mask, minarea=least_area, deblend_cont=deblend_contrast)
        )


def measure_sources(
    data: npt.NDArray[np.float32],
    error: npt.NDArray[np.float32],
    noise: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    *,
    repaired: npt.NDArray[np.bool_] | None = None,
    repair_correlation: float = 0.0,
    threshold: float = 2.5,
    least_area: int = 5,
    aperture_radius: float = 4.0,
    deblend_contrast: float = 0.005,
    noise_excess: float = 1.0,
) -> dict[str, npt.NDArray[Any]]:
    """Detect and measure the sources of a background-subtracted frame.

    Parameters
    ----------
    data : float32 array (y, x)
        Pixels above the sky, repaired [e-].
    error : float32 array (y, x)
        1 sigma including Poisson noise [e-], for the flux errors.
    noise : float32 array (y, x)
        1 sigma of the sky [e-], for the detection threshold.
    mask : bool array (y, x)
        True = ignore.
    repaired : bool array (y, x), optional
        Pixels whose value is an estimate.
    repair_correlation : float
        Correlation between the errors of the repaired pixels of a source, excess their own noise; `sum_covariance`
        adds their covariance to the flux errors.
    threshold : float
        Smallest significance of a pixel after the matched filter [sigma of the sky].
    least_area : int
        Smallest number of connected pixels.
    aperture_radius : float
        Radius of the circular aperture [pixel].
    deblend_contrast : float
        Smallest fraction of the flux of a blend that makes a separate source.
    noise_excess : float
        Factor on `noise` in the detection threshold, for correlated noise (`csstdask.arrays.correlation`). Flux errors
        assume white noise.

    Returns
    -------
    dict of arrays (n,)
        ``x, y`` (zero-based, Gaussian-weighted where that converges), ``flux, flux_err`` (Kron) and
        ``flux_aperture, flux_aperture_err`` [e-], ``a, b`` [pixel], ``theta`` [deg], ``kron_radius``,
        ``half_light_radius`` [pixel], ``area``, ``peak`` [e-], ``ellipticity``, SEP's ``flag``, and the
        ``repaired_fraction`` of the Kron ellipse's pixels.
    """
    significant = noise if noise_excess == 1 else noise * np.float32(noise_excess)
    found = find_sources(
        data, significant, mask, threshold=threshold, least_area=least_area, deblend_contrast=deblend_contrast
    )
    x, y, a, b, theta = (np.asarray(found[name], dtype=np.float64) for name in ("x", "y", "a", "b", "theta"))
    flag = found["flag"].astype(np.int32)
    # The second moment of a source one pixel wide is 0 or NaN; that of the pixel itself replaces it.
    a, b = np.fmax(a, _PIXEL_SIGMA), np.fmax(b, _PIXEL_SIGMA)
    theta = np.clip(np.nan_to_num(theta), -np.pi / 2, np.pi / 2)
    radius, kron_flag = sep.kron_radius(data, x, y, a, b, theta, 6.0, mask=mask)
    radius = np.where(np.isfinite(radius), radius, 0.0)
    kron = np.maximum(KRON_FACTOR * radius, MIN_KRON_RADIUS / np.sqrt(a * b))
    flux, flux_err, flux_flag = sep.sum_ellipse(data, x, y, a, b, theta, kron, err=error, mask=mask, subpix=5)
    inside, inside_err, _ = sep.sum_circle(data, x, y, aperture_radius, err=error, mask=mask, subpix=5)
    if repaired is not None and repair_correlation and len(x):
        shared = shared_repair_error(data, error, noise, repaired & ~mask)
        in_ellipses = sum_covariance(
            shared, repair_correlation, lambda one: sep.sum_ellipse(one, x, y, a, b, theta, kron, subpix=5)[0]
        )
        in_circles = sum_covariance(
            shared, repair_correlation, lambda one: sep.sum_circle(one, x, y, aperture_radius, subpix=5)[0]
        )
        flux_err, inside_err = np.sqrt(flux_err**2 + in_ellipses), np.sqrt(inside_err**2 + in_circles)
    half, half_flag = sep.flux_radius(
        data, x, y, 6.0 * a, 0.5, normflux=np.where(flux > 0, flux, np.nan), mask=mask, subpix=5
    )
    good = np.isfinite(half) & (half > 0)
    x_win, y_win, window_flag = sep.winpos(data, x, y, np.where(good, half, 1.0) * 2 / 2.355, mask=mask)
    shift = np.hypot(x_win - x, y_win - y)
    use = good & (window_flag == 0) & np.isfinite(shift) & (shift < 1.0)
    return {
        "x": np.where(use, x_win, x),
        "y": np.where(use, y_win, y),
        "flux": flux,
        "flux_err": flux_err,
        "flux_aperture": inside,
        "flux_aperture_err": inside_err,
        "a": a,
        "b": b,
        "theta": np.degrees(theta),
        "ellipticity": 1 - b / a,
        "kron_radius": kron,
        "half_light_radius": np.where(half_flag == 0, half, np.nan),
        "area": found["npix"].astype(np.int32),
        "peak": found["peak"].astype(np.float64),
        "repaired_fraction": _repaired_fraction(repaired, x, y, a, b, theta, kron),
        "flag": flag | kron_flag.astype(np.int32) | flux_flag.astype(np.int32),
    }


def shared_repair_error(
    data: npt.NDArray[np.float32],
    error: npt.NDArray[np.float32],
    noise: npt.NDArray[np.float32] | np.float32,
    repaired: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float32]:
    """Return 1 sigma of repaired pixels excess their own noise [e-]; 0 for all others.

    The noise of the sky and of the source's photons is independent between pixels. Errors of a repair in the brightness
    or shape of a source affect all of its pixels alike.
    """
    excess = error**2 - noise**2 - np.maximum(data, 0)
    return np.where(repaired, np.sqrt(np.maximum(excess, 0)), 0).astype(np.float32)


def sum_covariance(
    sigma: npt.NDArray[np.float32], correlation: float, total: Callable[[npt.NDArray[np.float32]], Any]
) -> Any:
    """Return the covariance that correlated errors add to the variance of sums over pixels.

    Parameters
    ----------
    sigma : float32 array (y, x)
        Correlated error of each pixel (`shared_repair_error`); 0 elsewhere.
    correlation : float
        Correlation of each pair of pixels.
    total : callable
        Returns the sums over a plane.

    Returns
    -------
    float array
        ``correlation * (sum(sigma)^2 - sum(sigma^2))`` of each sum.
    """
    return correlation * np.maximum(total(sigma) ** 2 - total(sigma * sigma), 0)


def _repaired_fraction(
    repaired: npt.NDArray[np.bool_] | None, x: Any, y: Any, a: Any, b: Any, theta: Any, kron: Any
) -> Any:
    """Return the repaired fraction of the part of each Kron ellipse that lies on the frame."""
    if repaired is None or not len(x):
        return np.zeros(len(x))
    planes = (repaired.astype(np.float32), np.ones(repaired.shape, np.float32))
    inside, total = (sep.sum_ellipse(plane, x, y, a, b, theta, kron, subpix=5)[0] for plane in planes)
    return inside / np.maximum(total, 1e-9)
