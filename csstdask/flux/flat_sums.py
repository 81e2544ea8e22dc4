"""The least-squares fit of a flat as sums over stars, which add over any groups of them.

Per wavelength, the ratio of star s is r_s = sum_k c_k P_k(x_s, y_s) with the Legendre products of
`csstdask.numerics.polynomials`. With weights w_s = g_s / v_s (robust weight over variance) the sums are

    A = sum w P P^T,   b = sum w r P,   N = sum w^2 v P P^T,   c = A^-1 b,   cov(c) = A^-1 N A^-1.

N holds the variances as they are, so that neither robust weights nor floors enter the covariance. (Tukey weights at
normal errors make the true scatter 1.5 % larger than this.) Between wavelengths l and m, N(l, m) = sum w(l) w(m)
C(l, m) P P^T with the covariance C of a star's ratios, on at most 24 wavelengths.

Errors of a prediction are the same in all images of a star. With m = sqrt(relative variance) * model, their part of N
is the sum over stars of (sum over images w m P)(sum over images w m P)^T. Stars are too many to be kept apart over all
exposures: each has a random sign, and the signed sums are added in 512 buckets, G_b. The sum of G_b G_b^T is an
unbiased estimate of that part of N, and gives errors that are known to 3 %. Of a single exposure, in which each star
occurs once, N is exact.

Robust weights depend on the previous solution, so the fit is iterated. The weights of a pass are a function of the
solution that is passed in: `normal_equations` of each group, added in a fixed order, then `solve_sums`.
Medians of residuals come from histograms, which add exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import IntFlag
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from csstdask.core.errors import InputError
from csstdask.core.packed_arrays import get_array, pack, unpack
from csstdask.flux.ratios import StarRatios
from csstdask.numerics.linear import invert_symmetric, smallest_eigenvalue
from csstdask.numerics.polynomials import n_terms, term_degrees
from csstdask.numerics.robust import HUBER_CUTOFF, NORMAL_MAD, TUKEY_CUTOFF, min_kept_points

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Single = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

START, HUBER, TUKEY = 0, 1, 2
PASSES = (START, HUBER, HUBER, TUKEY, TUKEY, TUKEY)
"""Robust weights of each pass."""
SCALE_PASSES = 4
"""The scale of the residuals is measured in passes 1 to this one (excluded), then fixed."""
MAX_NODES = 24
"""Wavelengths between which covariances are kept."""
N_BUCKETS = 512
"""Of the signed sums over stars: their estimate of a variance is good to sqrt(2 / 512)."""
N_BINS = 320
"""Bins of the histogram of residuals z, in quoted errors: 16 for each factor of two of z + 0.5, up to 2^19."""
_BIN_SHIFT = 19
"""Bits of a float32 below the bins: its exponent and four bits of its fraction are the number of the bin."""
_FIRST_BIN = 126 << 4
"""Number of the bin of z = 0."""
_LARGEST = 5e5
"""Larger residuals are counted as this one [sigma]."""
_START_REACH = 0.5
"""In the first pass, ratios that differ from 1 by more than this lose weight: nominal sensitivities are better."""
_LEAST_SCALE = 0.2
"""Floor of the scale, in quoted errors, with at least 10 degrees of freedom; 1 with fewer."""
_LEAST_EIGENVALUE = 1e-9
"""Smaller ones mean that the stars cannot constrain all terms."""
_BLOCK = 128
"""Wavelengths whose sums are formed together."""
_MAD_ERROR = 1.17
"""Standard error of a MAD scale of n normal values, times sqrt(n)."""


class FlatFlag(IntFlag):
    """What is wrong with a flat at a wavelength or point."""

    LOWER_DEGREE = 1
    """Too few stars for the degree asked for; a lower one was fitted."""
    NO_STARS = 2
    """No usable star: sensitivity NaN, flat 1, variance inf."""
    FEW_KEPT = 4
    """Robust weights would have left too few stars; the previous iteration was kept."""
    OUTSIDE_WAVELENGTH = 8
    """Wavelength out of range: flat 1, variance inf."""
    OUTSIDE_FRAME = 16
    """Position off the detector: flat 1, variance inf."""
    NO_VARIANCE = 32
    """Read from a file without errors: variance 0."""


@dataclass(frozen=True)
class FlatSums:
    """Sums over star images; those of several groups add."""

    matrix: Float
    """(wave, p, p) A."""
    vector: Float
    """(wave, p) b."""
    noise: Float
    """(wave, p, p) N."""
    cross: Float
    """(node, node, p, p) N between the wavelengths of `nodes`; of the last pass only, else (0, 0, p, p)."""
    count: Int
    """(wave,) Usable samples."""
    kept: Int
    """(wave,) Samples of positive weight."""
    histogram: Int
    """(wave, N_BINS) Residuals from the solution passed in, in quoted errors."""
    predicted: Float
    """(wave, p, p) Part of N from errors of predictions, if all images were of different stars; of the last pass."""
    buckets: Single
    """(bucket, wave, p) Signed sums over stars of w m P; of the last pass, else (0, wave, p)."""
    node_buckets: Single
    """(bucket, node, p) The same for each mode of the prediction, at `nodes`."""
    exposures: Int
    """(1,) Largest number of images that a star may have."""

    def __add__(self, other: FlatSums) -> FlatSums:
        return FlatSums(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})

    def to_bytes(self) -> bytes:
        """Return the sums as safetensors."""
        return pack("flat sums", {one.name: getattr(self, one.name) for one in fields(self)}, {})

    @classmethod
    def from_bytes(cls, data: bytes, source: object = "flat sums") -> FlatSums:
        """Return the sums of `to_bytes`; InputError if they are torn or foreign."""
        arrays, _ = unpack("flat sums", data, source)
        return cls(**{one.name: get_array(arrays, one.name, source) for one in fields(cls)})


@dataclass(frozen=True)
class FlatSolution:
    """Coefficients after some passes; it decides the weights of the next."""

    coefficients: Float
    """(wave, p) c_k; NaN in term 0 without usable stars."""
    covariance: Float
    """(wave, p, p)"""
    nodes: Int
    """(node,) Indices of wavelengths between which covariances are kept."""
    node_covariance: Float
    """(node, node, p, p) Covariance of c between them; (0, 0, p, p) before the last pass."""
    degree: Int
    """(wave,) Degree fitted; -1 without usable stars."""
    flag: Int
    """(wave,) `FlatFlag`."""
    scale: Float
    """(wave,) Scatter of the residuals over quoted errors."""
    cutoff: Float
    """(wave,) Residual over scale at which Tukey weights of the next pass are 0."""
    count: Int
    """(wave,) Usable samples."""
    kept: Int
    """(wave,) Samples of positive weight."""
    n_passes: int
    """Passes done."""

    @property
    def finished(self) -> bool:
        """Whether all passes are done."""
        return self.n_passes >= len(PASSES)

    def to_bytes(self) -> bytes:
        """Return the solution as safetensors."""
        arrays = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "n_passes"}
        return pack("flat solution", arrays, {"n_passes": self.n_passes})

    @classmethod
    def from_bytes(cls, data: bytes, source: object = "flat solution") -> FlatSolution:
        """Return the solution of `to_bytes`; InputError if it is torn or foreign."""
        arrays, facts = unpack("flat solution", data, source)
        names = [one.name for one in fields(cls) if one.name != "n_passes"]
        return cls(**{name: get_array(arrays, name, source) for name in names}, n_passes=facts["n_passes"])


def covariance_nodes(n_wave: int) -> Int:
    """Return the indices of the wavelengths between which covariances are kept."""
    return np.unique(np.linspace(0, n_wave - 1, min(MAX_NODES, n_wave)).round().astype(np.int64))


def normal_equations(ratios: StarRatios, solution: FlatSolution | None = None, *, degree: int = 2) -> FlatSums:
    """Return the sums of one group of star images for the pass that follows a solution.

    Parameters
    ----------
    ratios : StarRatios
        One or many units of one detector.
    solution : FlatSolution, optional
        Of the previous pass; None in the first.
    degree : int
        Total degree of the polynomial.

    Returns
    -------
    FlatSums
        Single-threaded sums in the order of the stars: the same input gives the same bits.
    """
    n, wave = ratios.ratio.shape
    p = n_terms(degree)
    n_passes = 0 if solution is None else solution.n_passes
    kind = PASSES[min(n_passes, len(PASSES) - 1)]
    correlated = np.asarray(ratios.grey_error, dtype=np.float64)[:, None] ** 2 + np.zeros((n, wave))
    modes = np.asarray(ratios.modes, dtype=np.float64)
    for mode in range(modes.shape[1]):
        correlated += modes[:, mode] ** 2
    last = n_passes == len(PASSES) - 1
    nodes = covariance_nodes(wave) if last else np.zeros(0, dtype=np.int64)
    rows, models = np.zeros((n if last else 0, wave, p)), np.zeros((n if last else 0, wave))
    n_buckets = N_BUCKETS if last else 0
    sums = FlatSums(
        np.zeros((wave, p, p)), np.zeros((wave, p)), np.zeros((wave, p, p)), np.zeros((len(nodes), len(nodes), p, p)),
        np.zeros(wave, dtype=np.int64), np.zeros(wave, dtype=np.int64), np.zeros((wave, N_BINS), dtype=np.int64),
        np.zeros((wave, p, p)), np.zeros((n_buckets, wave, p), dtype=np.float32),
        np.zeros((n_buckets, len(nodes), p), dtype=np.float32), np.array([_most_images(ratios.star)], dtype=np.int64),
    )  # fmt: skip
    if solution is None:
        coefficients, scale, cutoff = np.full((wave, p), np.nan), np.ones(wave), np.full(wave, TUKEY_CUTOFF)
    else:
        coefficients, scale, cutoff = solution.coefficients, solution.scale, solution.cutoff
    if coefficients.shape != (wave, p):
        raise InputError("flat solution", f"coefficients {coefficients.shape}", f"{(wave, p)}: same grid and degree")
    powers = term_degrees(degree)
    ny, nx = ratios.shape
    by_star = (ratios.x, ratios.y, ratios.ratio, ratios.variance_observed, ratios.variance_sed, correlated)
    x, y, ratio, observed, independent, total = [np.ascontiguousarray(one, dtype=np.float64) for one in by_star]
    n_pairs = p * (p + 1) // 2
    matrix, noise, vector = np.zeros((n_pairs, wave)), np.zeros((n_pairs, wave)), np.zeros((p, wave))
    _accumulate(
        x, y, ratio, observed, independent, total, np.ascontiguousarray(coefficients.T), scale, cutoff, kind, powers,
        degree, float(nx), float(ny), matrix, vector, noise, sums.count, sums.kept, sums.histogram, rows,
        models,
    )  # fmt: skip
    sums.vector[...] = vector.T
    row, column = np.tril_indices(p)
    for packed, whole in ((matrix, sums.matrix), (noise, sums.noise)):
        whole[:, row, column] = packed.T
        whole[:, column, row] = packed.T
    if last:
        grey = np.broadcast_to(np.asarray(ratios.grey_error)[:, None, None], (n, 1, len(nodes)))
        factors = np.concatenate([grey, modes[:, :, nodes]], axis=1)
        factors = np.nan_to_num(np.ascontiguousarray(factors * models[:, None, nodes]))
        of_nodes = np.ascontiguousarray(rows[:, nodes])
        flat_cross = np.zeros((len(nodes) * p, len(nodes) * p))
        _outer_products(of_nodes.reshape(n, len(nodes) * p), factors, p, flat_cross)
        sums.cross[...] = flat_cross.reshape(len(nodes), p, len(nodes), p).transpose(0, 2, 1, 3)
        for index, node in enumerate(nodes):
            sums.cross[index, index] = sums.noise[node]
        own = rows * (np.sqrt(np.maximum(np.nan_to_num(independent + total), 0.0)) * models)[..., None]
        sums.predicted[...] = np.einsum("swk,swl->wkl", own, own)
        for star in range(n):
            bucket, sign = _bucket(ratios.star[star], 0)
            sums.buckets[bucket] += sign * own[star].astype(np.float32)
            for mode in range(factors.shape[1]):
                bucket, sign = _bucket(ratios.star[star], mode + 1)
                sums.node_buckets[bucket] += (sign * factors[star, mode, :, None] * of_nodes[star]).astype(np.float32)
    return sums


def _most_images(star: Array) -> int:
    """Return the largest number of images of one star; 0 without any."""
    return int(np.unique(star, return_counts=True)[1].max(initial=0))


def _bucket(star: object, mode: int) -> tuple[int, int]:
    """Return the bucket of a star's mode, and its sign: the same in all exposures and processes."""
    digest = hashlib.blake2b(f"{star} {mode}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return number % N_BUCKETS, 1 if (number >> 32) & 1 else -1


def _clustered(sums: FlatSums) -> tuple[Float, Float]:
    """Return N, and N between the wavelengths of `nodes`, with the errors that images of a star have in common."""
    if sums.exposures.sum() < 2 or not len(sums.buckets):
        return sums.noise, sums.cross
    by_bucket, by_node = sums.buckets.astype(np.float64), sums.node_buckets.astype(np.float64)
    noise = sums.noise - sums.predicted + np.einsum("bwk,bwl->wkl", by_bucket, by_bucket)
    cross = np.einsum("bik,bjl->ijkl", by_node, by_node)
    for index, node in enumerate(covariance_nodes(len(noise))):
        cross[index, index] = noise[node]
    return noise, cross


def solve_sums(sums: FlatSums, previous: FlatSolution | None = None) -> FlatSolution:
    """Solve the normal equations of all wavelengths at once.

    Parameters
    ----------
    sums : FlatSums
        Of all groups.
    previous : FlatSolution, optional
        The solution that decided the weights; None in the first pass.

    Returns
    -------
    FlatSolution
        Where stars are too few for the degree (fewer than terms + 3) or cannot constrain its terms, of a lower degree
        and flagged.
    """
    wave, p = sums.vector.shape
    most = (round(float(np.sqrt(8 * p + 1))) - 3) // 2
    degree = np.full(wave, -1, dtype=np.int64)
    for one in range(most + 1):
        terms = n_terms(one)
        enough = sums.count >= (terms + 3 if one else 1)
        if not enough.any():
            continue
        independent = np.zeros(wave, dtype=bool)
        independent[enough] = smallest_eigenvalue(sums.matrix[enough, :terms, :terms]) > _LEAST_EIGENVALUE
        degree[enough & independent & (degree == one - 1)] = one
    fitted = np.where(degree >= 0, (degree + 1) * (degree + 2) // 2, 0)
    active = np.arange(p) < fitted[:, None]
    both = active[:, :, None] & active[:, None, :]
    inverse = np.where(both, invert_symmetric(np.where(both, sums.matrix, np.eye(p))), 0.0)
    coefficients = (inverse @ np.where(active, sums.vector, 0.0)[..., None])[..., 0]
    coefficients[degree < 0, 0] = np.nan
    n_passes = 1 if previous is None else previous.n_passes + 1
    if previous is None:
        scale, cutoff = np.ones(wave), np.full(wave, TUKEY_CUTOFF)
    else:
        scale, cutoff = _scale_and_cutoff(sums, previous, fitted, n_passes)
    inflation = np.where(scale > 1 + 2 * _MAD_ERROR / np.sqrt(np.maximum(sums.count, 1)), scale, 1.0)
    noise, cross = _clustered(sums)
    covariance = inverse @ noise @ inverse * (inflation**2)[:, None, None]
    covariance[degree < 0] = np.inf
    flag: Any = np.where(degree < most, int(FlatFlag.LOWER_DEGREE), 0) | np.where(degree < 0, int(FlatFlag.NO_STARS), 0)
    nodes = covariance_nodes(wave)
    if len(cross):
        of_nodes = inverse[nodes] * inflation[nodes, None, None]
        between = of_nodes[:, None] @ cross @ of_nodes[None, :]
    else:
        between = np.zeros((0, 0, p, p))
    found = FlatSolution(
        coefficients, covariance, nodes, between, degree, flag, scale, cutoff, sums.count, sums.kept, n_passes
    )
    return found if previous is None else _keep_previous(found, previous, fitted)


def fit_ratios(groups: Iterable[StarRatios], *, degree: int = 2) -> FlatSolution:
    """Fit a flat to groups of star images in one process: the passes that a distributed reduction makes.

    Parameters
    ----------
    groups : iterable of StarRatios
        Their sums are added in this order.
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


def bin_edges() -> Float:
    """Return the edges of the histogram of residuals, in quoted errors: (N_BINS + 1,)."""
    bits = (np.arange(_FIRST_BIN, _FIRST_BIN + N_BINS + 1) << _BIN_SHIFT).astype(np.int32)
    return bits.view(np.float32).astype(np.float64) - 0.5


def histogram_quantile(histogram: npt.ArrayLike, rank: npt.ArrayLike) -> Float:
    """Return the value below which `rank` entries of each histogram lie, by linear interpolation within a bin."""
    histogram = np.asarray(histogram)
    total = np.cumsum(histogram, axis=-1)
    wanted = np.asarray(np.minimum(np.asarray(rank, dtype=np.float64), total[..., -1]))
    index = np.minimum((total < wanted[..., None]).sum(axis=-1), N_BINS - 1)
    inside = np.take_along_axis(histogram, index[..., None], -1)[..., 0]
    before = np.take_along_axis(total, index[..., None], -1)[..., 0] - inside
    edges = bin_edges()
    share = np.where(inside > 0, (wanted - before) / np.maximum(inside, 1), 0.0)
    return edges[index] + share * (edges[index + 1] - edges[index])


def _scale_and_cutoff(sums: FlatSums, previous: FlatSolution, fitted: Int, n_passes: int) -> tuple[Float, Float]:
    """Return the scale of the residuals (fixed after some passes), and the cutoff that keeps enough stars."""
    n = sums.histogram.sum(axis=1)
    spare = np.maximum(n - fitted, 1)
    scale = previous.scale
    if n_passes <= SCALE_PASSES:
        scale = histogram_quantile(sums.histogram, n / 2) / NORMAL_MAD * np.sqrt(n / spare)
        scale = np.where(n > 0, np.maximum(scale, np.where(spare >= 10, _LEAST_SCALE, 1.0)), 1.0)
    reach = 1.05 * histogram_quantile(sums.histogram, min_kept_points(n, fitted)) / scale
    return scale, np.maximum(TUKEY_CUTOFF, reach)


def _keep_previous(found: FlatSolution, previous: FlatSolution, fitted: Int) -> FlatSolution:
    """Return a solution with the previous one where too few stars kept a weight."""
    few = (found.kept < min_kept_points(found.count, fitted)) & (previous.degree >= 0)
    if not few.any():
        return found
    coefficients = np.where(few[:, None], previous.coefficients, found.coefficients)
    covariance = np.where(few[:, None, None], previous.covariance, found.covariance)
    degree = np.where(few, previous.degree, found.degree)
    flag = np.where(few, previous.flag | int(FlatFlag.FEW_KEPT), found.flag)
    cutoff = np.where(few, 1.5 * previous.cutoff, found.cutoff)
    kept = np.where(few, previous.kept, found.kept)
    return replace(
        found, coefficients=coefficients, covariance=covariance, degree=degree, flag=flag, cutoff=cutoff, kept=kept
    )


@njit(cache=True, nogil=True)
def _accumulate(  # noqa: PLR0915  # pragma: no cover
    x: Any, y: Any, ratio: Any, observed: Any, independent: Any, correlated: Any, coefficients: Any, scale: Any,
    cutoff: Any, kind: int, powers: Any, degree: int, nx: float, ny: float,
    matrix: Any, vector: Any, noise: Any, count: Any, kept: Any, histogram: Any, rows: Any, models: Any,
) -> None:  # fmt: skip
    """Add the stars (star, wave) to the sums, a block of wavelengths at a time so that inner loops are vectorised.

    `coefficients` (term, wave); `matrix` and `noise` (term (term + 1) / 2, wave), lower triangles;
    `vector` (term, wave).
    """
    n, wave = ratio.shape
    p = len(powers)
    u, v = np.empty(_BLOCK), np.empty(_BLOCK)
    of_x, of_y, terms = np.ones((degree + 1, _BLOCK)), np.ones((degree + 1, _BLOCK)), np.empty((p, _BLOCK))
    usable, r, fixed, relative = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    model, variance, z, robust = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    weight, spread = np.empty(_BLOCK), np.empty(_BLOCK)
    single = np.empty(_BLOCK, dtype=np.float32)
    bits = single.view(np.int32)
    n_pairs = matrix.shape[0]
    of_matrix, of_noise, of_vector = np.empty((n_pairs, _BLOCK)), np.empty((n_pairs, _BLOCK)), np.empty((p, _BLOCK))
    series, sigma, reach = np.zeros((p, _BLOCK)), np.ones(_BLOCK), np.ones(_BLOCK)
    for low in range(0, wave, _BLOCK):
        m = min(_BLOCK, wave - low)
        of_matrix[:], of_noise[:], of_vector[:] = 0.0, 0.0, 0.0
        series[:, :m] = coefficients[:, low : low + m]
        sigma[:m], reach[:m] = scale[low : low + m], scale[low : low + m] * cutoff[low : low + m]
        for s in range(n):
            for j in range(m):
                w = low + j
                total = independent[s, w] + correlated[s, w]
                # a number minus itself is 0, unless it is infinite or NaN
                nothing = (ratio[s, w] - ratio[s, w]) + (observed[s, w] - observed[s, w]) + (total - total)
                nothing += (x[s, w] - x[s, w]) + (y[s, w] - y[s, w])
                fine = (nothing == 0) & (observed[s, w] > 0) & (total >= 0)
                usable[j] = 1.0 if fine else 0.0
                r[j] = ratio[s, w] if fine else 1.0
                fixed[j] = observed[s, w] if fine else 1.0
                relative[j] = total if fine else 0.0
                u[j] = 2 * (x[s, w] + 0.5) / nx - 1 if fine else 0.0
                v[j] = 2 * (y[s, w] + 0.5) / ny - 1 if fine else 0.0
            if degree > 0:
                for j in range(m):
                    of_x[1, j], of_y[1, j] = u[j], v[j]
            for i in range(1, degree):
                for j in range(m):
                    of_x[i + 1, j] = ((2 * i + 1) * u[j] * of_x[i, j] - i * of_x[i - 1, j]) / (i + 1)
                    of_y[i + 1, j] = ((2 * i + 1) * v[j] * of_y[i, j] - i * of_y[i - 1, j]) / (i + 1)
            for j in range(m):
                model[j] = 0.0
            for k in range(p):
                a, b = powers[k, 0], powers[k, 1]
                for j in range(m):
                    terms[k, j] = of_x[a, j] * of_y[b, j]
                    model[j] += series[k, j] * terms[k, j]
            for j in range(m):
                model[j] = model[j] if model[j] - model[j] == 0 else 1.0
                variance[j] = fixed[j] + relative[j] * model[j] * model[j]
                z[j] = min(abs(r[j] - model[j]) / np.sqrt(variance[j]), 1e30)
            if kind == START:
                for j in range(m):
                    robust[j] = 1.0 / max(1.0, abs(r[j] - model[j]) / _START_REACH)
            elif kind == HUBER:
                for j in range(m):
                    robust[j] = HUBER_CUTOFF / max(HUBER_CUTOFF, z[j] / sigma[j])
            else:
                for j in range(m):
                    t = min(z[j] / reach[j], 1.0)
                    robust[j] = (1 - t * t) ** 2
            for j in range(m):
                robust[j] *= usable[j]
                weight[j] = robust[j] / variance[j]
                spread[j] = weight[j] * weight[j] * variance[j]
                count[low + j] += 1 if usable[j] > 0 else 0
                kept[low + j] += 1 if robust[j] > 0 else 0
            if kind != START:
                for j in range(m):
                    single[j] = min(z[j], _LARGEST) + 0.5
                for j in range(m):
                    if usable[j] > 0:
                        histogram[low + j, (bits[j] >> _BIN_SHIFT) - _FIRST_BIN] += 1
            index = 0
            for k in range(p):
                for j in range(m):
                    of_vector[k, j] += weight[j] * r[j] * terms[k, j]
                for q in range(k + 1):
                    for j in range(m):
                        product = terms[k, j] * terms[q, j]
                        of_matrix[index, j] += weight[j] * product
                        of_noise[index, j] += spread[j] * product
                    index += 1
            if len(rows):
                for j in range(m):
                    models[s, low + j] = model[j]
                    for k in range(p):
                        rows[s, low + j, k] = weight[j] * terms[k, j]
        matrix[:, low : low + m], noise[:, low : low + m] = of_matrix[:, :m], of_noise[:, :m]
        vector[:, low : low + m] = of_vector[:, :m]


@njit(cache=True, nogil=True)
def _outer_products(rows: Any, factors: Any, p: int, total: Any) -> None:  # pragma: no cover
    """Add sum over stars and modes of (f * row) (f * row)^T, with one factor f per wavelength."""
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
