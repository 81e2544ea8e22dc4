"""Fit a flat to ratios of observed to predicted counts (equations in `csstdask.flux.flat_sums`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.flux.flat import Flat
from csstdask.flux.flat_solution import FlatSolution
from csstdask.flux.ratios import uncorrelated_ratios
from csstdask.flux.solve_flat import fit_ratios
from csstdask.numerics.robust import nan_median

Float = npt.NDArray[np.float64]


def flat_from_solution(
    solution: FlatSolution,
    wavelength: npt.ArrayLike,
    shape: tuple[int, int],
    *,
    detector: int | None = None,
    common_variance: npt.ArrayLike = 0.0,
) -> Flat:
    """Return the flat of a solution.

    Parameters
    ----------
    solution : FlatSolution
        Solution after the last pass.
    wavelength : array-like (wave,)
        Wavelengths of the solution [Angstrom].
    shape : (int, int)
        (y, x) of the detector.
    detector : int, optional
        Detector id.
    common_variance : array-like, scalar or (wave,)
        Relative variance of the predicted spectra that all stars share.
    """
    grid = np.asarray(wavelength, dtype=np.float64)
    return Flat(
        wavelength=grid,
        coefficients=solution.coefficients,
        covariance=solution.covariance,
        shape=shape,
        degree=solution.degree,
        flags=solution.flag,
        n_stars=solution.count,
        n_kept=solution.kept,
        scale=solution.scale,
        common_variance=np.array(np.broadcast_to(np.asarray(common_variance, dtype=np.float64), grid.shape)),
        nodes=solution.nodes,
        node_covariance=solution.node_covariance,
        detector=detector,
    )


def fit_flat(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    wavelength: npt.ArrayLike,
    ratio: npt.ArrayLike,
    weight: npt.ArrayLike,
    *,
    degree: int = 2,
    shape: tuple[int, int] = (9232, 9216),
) -> Flat:
    """Fit sensitivity and flat to ratios of observed to predicted counts.

    Per wavelength, ratio = sum_k c_k P_k(x, y) with products of Legendre polynomials. The sensitivity is c_0, and the
    flat sum_k (c_k / c_0) P_k has a detector mean of 1. All wavelengths are solved at once. Robust weights (Huber's,
    then Tukey's) keep at least half of the stars, and three more than there are coefficients.

    Parameters
    ----------
    x, y : array-like (star,) or (star, wave)
        Zero-based positions on the detector [pixel], of the star or of each wavelength.
    wavelength : array-like (wave,)
        Ascending wavelengths [Angstrom].
    ratio : array-like (star, wave)
        Observed over predicted counts.
    weight : array-like (star, wave)
        Inverse variance of the ratio. Samples that are NaN, or whose weight is not positive, are ignored.
    degree : int
        Largest total degree. Where there are too few stars, a lower one is fitted and flagged.
    shape : (int, int)
        (y, x) of the detector.

    Returns
    -------
    Flat

    Raises
    ------
    InputError
        If shapes do not agree, the degree is negative, or wavelengths do not ascend.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> x, y = rng.uniform(0, 1000, (2, 50))
    >>> flat = fit_flat(x, y, [5000.0], np.full((50, 1), 0.5), np.ones((50, 1)), degree=1, shape=(1000, 1000))
    >>> round(float(flat.sensitivity[0]), 6), round(float(flat.evaluate(0.0, 0.0, 5000.0)), 6)
    (0.5, 1.0)
    """
    if degree < 0 or int(degree) != degree:
        raise InputError("degree", f"{degree}", "an integer from 0")
    ratio, weight = np.asarray(ratio, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where(weight > 0, 1 / weight, np.nan)
    unit: Float = np.ones(1)
    if ratio.ndim == 2:  # the first pass expects ratios of about 1
        if weight.shape not in ((), ratio.shape):
            raise InputError("weight", f"shape {weight.shape}", f"that of ratio, {ratio.shape}")
        unit = _typical_ratios(np.where(np.isfinite(variance), ratio, np.nan))
        ratio, variance = ratio / unit, variance / unit**2
    solution = fit_ratios([uncorrelated_ratios(wavelength, x, y, ratio, variance, shape)], degree=degree)
    flat = flat_from_solution(solution, np.atleast_1d(wavelength), shape)
    at_nodes = unit[flat.nodes]
    return replace(
        flat,
        coefficients=flat.coefficients * unit[:, None],
        covariance=flat.covariance * (unit**2)[:, None, None],
        node_covariance=flat.node_covariance * (at_nodes[:, None] * at_nodes[None, :])[:, :, None, None],
    )


def _typical_ratios(ratio: Float) -> Float:
    """Return the median of each column; 1 where there is none, or it is not positive."""
    medians = nan_median(np.where(np.isfinite(ratio), ratio, np.nan), axis=0)
    return np.where(medians > 0, medians, 1.0)
