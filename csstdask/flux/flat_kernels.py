"""Add stars to the sums of a flat's least-squares fit: compiled loops (equations in `csstdask.flux.flat_sums`).

Stars are the outer loop and blocks of wavelengths the inner one, so that inner loops run over contiguous memory and
are vectorised. Sums are formed by one thread in the order of the stars: the same input gives the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from csstdask.flux.residual_histogram import BIN_SHIFT, FIRST_BIN, MAX_RESIDUAL
from csstdask.numerics.robust import HUBER_CUTOFF

NOMINAL, HUBER, TUKEY = 0, 1, 2
"""Kinds of robust weights: about a ratio of 1, without a solution; Huber's and Tukey's about the previous solution."""
_NOMINAL_CUTOFF = 0.5
"""Without a solution, ratios that differ from 1 by more than this lose weight: nominal sensitivities are better."""
_BLOCK_SIZE = 128
"""Wavelengths whose sums are formed together."""


class StarSamples(NamedTuple):
    """Ratios of n stars: float64 arrays (n, wave)."""

    x: Any
    y: Any
    ratio: Any
    variance_observed: Any
    independent: Any
    """Relative variance of the prediction, independent between wavelengths."""
    correlated: Any
    """Relative variance of the prediction, common to all wavelengths or by modes."""


class PreviousFit(NamedTuple):
    """Previous solution, which determines the robust weights."""

    coefficients: Any
    """(term, wave)"""
    scale: Any
    """(wave,)"""
    cutoff: Any
    """(wave,)"""


class SumArrays(NamedTuple):
    """Sums over stars, added to in place; matrices are lower triangles of p (p + 1) / 2 terms."""

    matrix: Any
    """(pair, wave) A."""
    vector: Any
    """(term, wave) b."""
    noise: Any
    """(pair, wave) N."""
    count: Any
    """(wave,) Usable samples."""
    kept: Any
    """(wave,) Samples of positive weight."""
    histogram: Any
    """(wave, bin) Residuals in quoted errors."""
    rows: Any
    """(n, wave, term) w P of every star; no star: not kept."""
    models: Any
    """(n, wave) Model of every star, likewise."""


class _Block(NamedTuple):
    """One star at the wavelengths of a block, and the sums of the block."""

    u: Any
    v: Any
    powers_u: Any  # (degree + 1, wave) Legendre polynomials
    powers_v: Any
    terms: Any  # (term, wave)
    usable: Any  # 1.0 or 0.0
    ratio: Any
    fixed: Any  # variance of the observation
    relative: Any  # relative variance of the prediction
    model: Any
    variance: Any
    z: Any  # |residual| in quoted errors
    robust: Any
    weight: Any
    spread: Any  # weight^2 variance
    coefficients: Any
    scale: Any
    cutoff: Any  # scale * cutoff
    single: Any  # float32 residuals, whose bits give the bins of the histogram
    matrix: Any
    vector: Any
    noise: Any


@njit(cache=True, nogil=True)
def add_stars(  # pragma: no cover
    samples: Any, previous: Any, kind: int, term_degrees: Any, shape: tuple[int, int], sums: Any
) -> None:
    """Add stars to the sums.

    Parameters
    ----------
    samples : StarSamples
        Samples with a number that is not finite, or without a positive variance, are left out.
    previous : PreviousFit
        Solution of the previous pass.
    kind : int
        `NOMINAL`, `HUBER` or `TUKEY`.
    term_degrees : int array (term, 2)
        Degrees in x and y of every term.
    shape : (int, int)
        (y, x) of the detector.
    sums : SumArrays
        Sums of zero, filled in place.
    """
    n, wave = samples.ratio.shape
    block = _empty_block(len(term_degrees), term_degrees.max())
    for low in range(0, wave, _BLOCK_SIZE):
        m = min(_BLOCK_SIZE, wave - low)
        block.matrix[:], block.noise[:], block.vector[:] = 0.0, 0.0, 0.0
        block.coefficients[:, :m] = previous.coefficients[:, low : low + m]
        block.scale[:m] = previous.scale[low : low + m]
        block.cutoff[:m] = previous.scale[low : low + m] * previous.cutoff[low : low + m]
        for s in range(n):
            _load_samples(samples, s, low, m, shape, block)
            _evaluate_model(term_degrees, m, block)
            _set_weights(kind, m, block)
            _count_samples(kind != NOMINAL, low, m, block, sums)
            _add_products(m, block)
            if len(sums.rows):
                _keep_rows(s, low, m, block, sums)
        sums.matrix[:, low : low + m] = block.matrix[:, :m]
        sums.noise[:, low : low + m] = block.noise[:, :m]
        sums.vector[:, low : low + m] = block.vector[:, :m]


@njit(cache=True, nogil=True)
def _empty_block(p: int, degree: int) -> Any:  # pragma: no cover
    size = _BLOCK_SIZE
    n_pairs = p * (p + 1) // 2
    return _Block(
        np.empty(size), np.empty(size), np.ones((degree + 1, size)), np.ones((degree + 1, size)), np.empty((p, size)),
        np.empty(size), np.empty(size), np.empty(size), np.empty(size), np.empty(size), np.empty(size), np.empty(size),
        np.empty(size), np.empty(size), np.empty(size), np.zeros((p, size)), np.ones(size), np.ones(size),
        np.empty(size, np.float32),        np.empty((n_pairs, size)), np.empty((p, size)), np.empty((n_pairs, size)),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _load_samples(samples: Any, s: int, low: int, m: int, shape: Any, block: Any) -> None:  # pragma: no cover
    """Copy one star's samples, with harmless values in place of unusable ones."""
    ny, nx = shape
    for j in range(m):
        w = low + j
        total = samples.independent[s, w] + samples.correlated[s, w]
        ratio, observed, x, y = samples.ratio[s, w], samples.variance_observed[s, w], samples.x[s, w], samples.y[s, w]
        # a number minus itself is 0, unless it is infinite or NaN
        zero = (ratio - ratio) + (observed - observed) + (total - total)
        zero += (x - x) + (y - y)
        usable = (zero == 0) & (observed > 0) & (total >= 0)
        block.usable[j] = 1.0 if usable else 0.0
        block.ratio[j] = ratio if usable else 1.0
        block.fixed[j] = observed if usable else 1.0
        block.relative[j] = total if usable else 0.0
        block.u[j] = 2 * (x + 0.5) / nx - 1 if usable else 0.0
        block.v[j] = 2 * (y + 0.5) / ny - 1 if usable else 0.0


@njit(cache=True, nogil=True)
def _evaluate_model(term_degrees: Any, m: int, block: Any) -> None:  # pragma: no cover
    """Evaluate the Legendre products and the previous model; residuals in quoted errors follow."""
    degree = len(block.powers_u) - 1
    if degree > 0:
        for j in range(m):
            block.powers_u[1, j], block.powers_v[1, j] = block.u[j], block.v[j]
    for i in range(1, degree):
        _add_legendre_degree(block.u, i, m, block.powers_u)
        _add_legendre_degree(block.v, i, m, block.powers_v)
    for j in range(m):
        block.model[j] = 0.0
    for k in range(len(term_degrees)):
        a, b = term_degrees[k, 0], term_degrees[k, 1]
        for j in range(m):
            block.terms[k, j] = block.powers_u[a, j] * block.powers_v[b, j]
            block.model[j] += block.coefficients[k, j] * block.terms[k, j]
    for j in range(m):
        model = block.model[j] if block.model[j] - block.model[j] == 0 else 1.0
        block.model[j] = model
        block.variance[j] = block.fixed[j] + block.relative[j] * model * model
        block.z[j] = min(abs(block.ratio[j] - model) / np.sqrt(block.variance[j]), 1e30)


@njit(cache=True, nogil=True)
def _add_legendre_degree(u: Any, i: int, m: int, values: Any) -> None:  # pragma: no cover
    """Write P_(i + 1)(u) by Bonnet's recursion."""
    for j in range(m):
        values[i + 1, j] = ((2 * i + 1) * u[j] * values[i, j] - i * values[i - 1, j]) / (i + 1)


@njit(cache=True, nogil=True)
def _set_weights(kind: int, m: int, block: Any) -> None:  # pragma: no cover
    if kind == NOMINAL:
        for j in range(m):
            block.robust[j] = 1.0 / max(1.0, abs(block.ratio[j] - block.model[j]) / _NOMINAL_CUTOFF)
    elif kind == HUBER:
        for j in range(m):
            block.robust[j] = HUBER_CUTOFF / max(HUBER_CUTOFF, block.z[j] / block.scale[j])
    else:
        for j in range(m):
            t = min(block.z[j] / block.cutoff[j], 1.0)
            block.robust[j] = (1 - t * t) ** 2
    for j in range(m):
        block.robust[j] *= block.usable[j]
        block.weight[j] = block.robust[j] / block.variance[j]
        block.spread[j] = block.weight[j] * block.weight[j] * block.variance[j]


@njit(cache=True, nogil=True)
def _count_samples(with_residuals: bool, low: int, m: int, block: Any, sums: Any) -> None:  # pragma: no cover
    """Count usable samples and their residuals."""
    bits = block.single.view(np.int32)
    for j in range(m):
        sums.count[low + j] += 1 if block.usable[j] > 0 else 0
        sums.kept[low + j] += 1 if block.robust[j] > 0 else 0
    if with_residuals:
        for j in range(m):
            block.single[j] = min(block.z[j], MAX_RESIDUAL) + 0.5
        for j in range(m):
            if block.usable[j] > 0:
                sums.histogram[low + j, (bits[j] >> BIN_SHIFT) - FIRST_BIN] += 1


@njit(cache=True, nogil=True)
def _add_products(m: int, block: Any) -> None:  # pragma: no cover
    """Add w r P, w P P^T and w^2 v P P^T of one star to the sums of the block."""
    index = 0
    for k in range(len(block.terms)):
        for j in range(m):
            block.vector[k, j] += block.weight[j] * block.ratio[j] * block.terms[k, j]
        for q in range(k + 1):
            for j in range(m):
                product = block.terms[k, j] * block.terms[q, j]
                block.matrix[index, j] += block.weight[j] * product
                block.noise[index, j] += block.spread[j] * product
            index += 1


@njit(cache=True, nogil=True)
def _keep_rows(s: int, low: int, m: int, block: Any, sums: Any) -> None:  # pragma: no cover
    for j in range(m):
        sums.models[s, low + j] = block.model[j]
        for k in range(len(block.terms)):
            sums.rows[s, low + j, k] = block.weight[j] * block.terms[k, j]


@njit(cache=True, nogil=True)
def add_outer_products(rows: Any, factors: Any, p: int, total: Any) -> None:  # pragma: no cover
    """Add sum over stars and modes of (f row) (f row)^T to a matrix.

    Parameters
    ----------
    rows : float64 array (n, node * p)
        w P of every star at the nodes.
    factors : float64 array (n, mode, node)
        f: 1-sigma errors of each star, one for each mode and node.
    p : int
        Number of terms.
    total : float64 array (node * p, node * p)
        Changed in place.
    """
    n, size = rows.shape
    row = np.empty(size)
    for s in range(n):
        for mode in range(factors.shape[1]):
            largest = 0.0
            for k in range(size):
                row[k] = rows[s, k] * factors[s, mode, k // p]
                largest = max(largest, abs(row[k]))
            if not largest > 0:
                continue
            for k in range(size):
                for q in range(size):
                    total[k, q] += row[k] * row[q]
