"""Solve the normal equations of a flat, and iterate its robust fit (equations in `csstdask.flux.flat_sums`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.flux.flat_solution import FlatFlag, FlatSolution, covariance_nodes
from csstdask.flux.flat_sums import FlatSums, normal_equations
from csstdask.flux.ratios import StarRatios
from csstdask.flux.residual_histogram import histogram_quantile
from csstdask.numerics.linear import invert_symmetric, smallest_eigenvalue
from csstdask.numerics.polynomials import n_terms
from csstdask.numerics.robust import NORMAL_MAD, TUKEY_CUTOFF, min_kept_points

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

SCALE_PASSES = 4
"""The scale of the residuals is measured up to this pass (excluded), then fixed, so that the fit converges."""
_MIN_SCALE = 0.2
"""Floor of the scale in quoted errors, where at least `_MIN_DEGREES_OF_FREEDOM` measure it; 1 with fewer."""
_MIN_DEGREES_OF_FREEDOM = 10
"""Degrees of freedom from which a scale below 1 is trusted."""
_MIN_EIGENVALUE = 1e-9
"""Smallest eigenvalue of A (unit diagonal) below which the stars cannot constrain all terms."""
_MAD_SCALE_ERROR = 1.17
"""Standard error of a MAD scale of n normal values, times sqrt(n)."""


def solve_sums(sums: FlatSums, previous: FlatSolution | None = None) -> FlatSolution:
    """Solve the normal equations of all wavelengths at once.

    Parameters
    ----------
    sums : FlatSums
        Sums of all groups.
    previous : FlatSolution, optional
        Solution that decided the weights; None in the first pass.

    Returns
    -------
    FlatSolution
        Has a lower degree and a flag where stars are too few for the degree (fewer than terms + 3) or cannot
        constrain its terms.
    """
    wave, p = sums.vector.shape
    max_degree = (round(float(np.sqrt(8 * p + 1))) - 3) // 2
    degree = _constrained_degree(sums, max_degree)
    fitted_terms = np.where(degree >= 0, (degree + 1) * (degree + 2) // 2, 0)
    active = np.arange(p) < fitted_terms[:, None]
    both = active[:, :, None] & active[:, None, :]
    inverse = np.where(both, invert_symmetric(np.where(both, sums.matrix, np.eye(p))), 0.0)
    coefficients = (inverse @ np.where(active, sums.vector, 0.0)[..., None])[..., 0]
    coefficients[degree < 0, 0] = np.nan
    n_passes = 1 if previous is None else previous.n_passes + 1
    if previous is None:
        scale, cutoff = np.ones(wave), np.full(wave, TUKEY_CUTOFF)
    else:
        scale, cutoff = _scale_and_cutoff(sums, previous, fitted_terms, n_passes)
    covariance, nodes, node_covariance = _covariances(sums, inverse, scale)
    covariance[degree < 0] = np.inf
    flag: Any = np.where(degree < max_degree, int(FlatFlag.LOWER_DEGREE), 0)
    flag = flag | np.where(degree < 0, int(FlatFlag.NO_STARS), 0)
    found = FlatSolution(
        coefficients, covariance, nodes, node_covariance, degree, flag, scale, cutoff, sums.count, sums.kept, n_passes
    )
    return found if previous is None else _keep_previous(found, previous, fitted_terms)


def _constrained_degree(sums: FlatSums, max_degree: int) -> Int:
    """Return the largest degree whose terms the stars constrain at each wavelength; -1 without stars."""
    degree = np.full(len(sums.count), -1, dtype=np.int64)
    for one in range(max_degree + 1):
        terms = n_terms(one)
        enough = sums.count >= (terms + 3 if one else 1)
        if not enough.any():
            continue
        independent = np.zeros(len(degree), dtype=bool)
        independent[enough] = smallest_eigenvalue(sums.matrix[enough, :terms, :terms]) > _MIN_EIGENVALUE
        degree[enough & independent & (degree == one - 1)] = one
    return degree


def _covariances(sums: FlatSums, inverse: Float, scale: Float) -> tuple[Float, Int, Float]:
    """Return the covariance of c per wavelength, the nodes, and the covariance between nodes.

    Both are inflated where residuals scatter significantly more than the quoted errors.
    """
    p = inverse.shape[-1]
    inflation = np.where(scale > 1 + 2 * _MAD_SCALE_ERROR / np.sqrt(np.maximum(sums.count, 1)), scale, 1.0)
    noise, cross = _clustered_noise(sums)
    covariance = inverse @ noise @ inverse * (inflation**2)[:, None, None]
    nodes = covariance_nodes(len(inverse))
    if not len(cross):
        return covariance, nodes, np.zeros((0, 0, p, p))
    at_nodes = inverse[nodes] * inflation[nodes, None, None]
    return covariance, nodes, at_nodes[:, None] @ cross @ at_nodes[None, :]


def _clustered_noise(sums: FlatSums) -> tuple[Float, Float]:
    """Return N, and N between nodes, with the errors that the images of a star have in common."""
    if sums.exposures.sum() < 2 or not len(sums.buckets):
        return sums.noise, sums.cross
    by_bucket, by_node = sums.buckets.astype(np.float64), sums.node_buckets.astype(np.float64)
    noise = sums.noise - sums.predicted + np.einsum("bwk,bwl->wkl", by_bucket, by_bucket)
    cross = np.einsum("bik,bjl->ijkl", by_node, by_node)
    for index, node in enumerate(covariance_nodes(len(noise))):
        cross[index, index] = noise[node]
    return noise, cross


def _scale_and_cutoff(sums: FlatSums, previous: FlatSolution, fitted_terms: Int, n_passes: int) -> tuple[Float, Float]:
    """Return the scale of the residuals (fixed after some passes), and the cutoff that keeps enough stars."""
    n = sums.histogram.sum(axis=1)
    degrees_of_freedom = np.maximum(n - fitted_terms, 1)
    scale = previous.scale
    if n_passes <= SCALE_PASSES:
        floor = np.where(degrees_of_freedom >= _MIN_DEGREES_OF_FREEDOM, _MIN_SCALE, 1.0)
        scale = histogram_quantile(sums.histogram, n / 2) / NORMAL_MAD * np.sqrt(n / degrees_of_freedom)
        scale = np.where(n > 0, np.maximum(scale, floor), 1.0)
    kept_residual = 1.05 * histogram_quantile(sums.histogram, min_kept_points(n, fitted_terms)) / scale
    return scale, np.maximum(TUKEY_CUTOFF, kept_residual)


def _keep_previous(found: FlatSolution, previous: FlatSolution, fitted_terms: Int) -> FlatSolution:
    """Return a solution with the previous one at wavelengths where too few stars kept a weight."""
    few = (found.kept < min_kept_points(found.count, fitted_terms)) & (previous.degree >= 0)
    if not few.any():
        return found
    return replace(
        found,
        coefficients=np.where(few[:, None], previous.coefficients, found.coefficients),
        covariance=np.where(few[:, None, None], previous.covariance, found.covariance),
        degree=np.where(few, previous.degree, found.degree),
        flag=np.where(few, previous.flag | int(FlatFlag.FEW_KEPT), found.flag),
        cutoff=np.where(few, 1.5 * previous.cutoff, found.cutoff),
        kept=np.where(few, previous.kept, found.kept),
    )


def fit_ratios(groups: Iterable[StarRatios], *, degree: int = 2) -> FlatSolution:
    """Fit a flat to groups of star images in one process, by the passes of a distributed reduction.

    Parameters
    ----------
    groups : iterable of StarRatios
        Groups whose sums are added in this order.
    degree : int
        Total degree of the polynomial.

    Raises
    ------
    InputError
        If there is no group.
    """
    groups = tuple(groups)
    if not groups:
        raise InputError("star ratios", "no group", "at least one")
    solution: FlatSolution | None = None
    while solution is None or not solution.finished:
        sums = reduce(FlatSums.__add__, [normal_equations(one, solution, degree=degree) for one in groups])
        solution = solve_sums(sums, solution)
    return solution
