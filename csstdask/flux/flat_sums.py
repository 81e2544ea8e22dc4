"""The least-squares fit of a flat as sums over stars, which add over any groups of stars.

Per wavelength, the ratio of star s is modelled as r_s = sum_k c_k P_k(x_s, y_s) with the Legendre products of
`csstdask.numerics.polynomials`. With weights w_s = g_s / v_s (robust weight over variance) the sums are

    A = sum w P P^T,   b = sum w r P,   N = sum w^2 v P P^T,   c = A^-1 b,   cov(c) = A^-1 N A^-1.

N holds the quoted variances, so that neither robust weights nor floors enter the covariance. (With Tukey weights and
normal errors the true scatter is 1.5 % larger.) Between wavelengths l and m, N(l, m) = sum w(l) w(m) C(l, m) P P^T
with the covariance C of a star's ratios, on at most 24 wavelengths.

The error of a prediction is the same in all images of a star. With m = sqrt(relative variance) * model, its part of N
is the sum over stars of (sum over images w m P)(sum over images w m P)^T. There are too many stars to keep one sum for
each over all exposures. Instead, each star gets a random sign, and the signed sums are added in 512 buckets G_b: the
sum of G_b G_b^T is an unbiased estimate of that part of N (Alon, Matias & Szegedy 1999, J. Comput. Syst. Sci. 58, 137)
and gives errors that are accurate to 3 %. For a single exposure, where each star occurs once, N is exact.

Robust weights depend on the previous solution, so the fit is iterated: each pass adds the `normal_equations` of all
groups in a fixed order and solves them (`csstdask.flux.solve_flat`). Medians of residuals come from histograms.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.core.packed_arrays import get_array, pack, unpack
from csstdask.flux.flat_kernels import PreviousFit, StarSamples, SumArrays, add_outer_products, add_stars
from csstdask.flux.flat_solution import PASSES, FlatSolution, covariance_nodes
from csstdask.flux.ratios import StarRatios
from csstdask.flux.residual_histogram import N_BINS
from csstdask.numerics.polynomials import n_terms, term_degrees
from csstdask.numerics.robust import TUKEY_CUTOFF

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Single = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

N_BUCKETS = 512
"""Number of buckets of signed sums: their estimate of a variance is accurate to sqrt(2 / 512) = 6 %."""


@dataclass(frozen=True)
class FlatSums:
    """Sums over star images; the sums of several groups add."""

    matrix: Float
    """(wave, p, p) A."""
    vector: Float
    """(wave, p) b."""
    noise: Float
    """(wave, p, p) N."""
    cross: Float
    """(node, node, p, p) N between the wavelengths of `covariance_nodes`; last pass only, else (0, 0, p, p)."""
    count: Int
    """(wave,) Number of usable samples."""
    kept: Int
    """(wave,) Number of samples with a positive weight."""
    histogram: Int
    """(wave, N_BINS) Residuals from the previous solution, in quoted errors."""
    predicted: Float
    """(wave, p, p) Part of N from errors of predictions as if all images were of different stars; last pass only."""
    buckets: Single
    """(bucket, wave, p) Signed sums over stars of w m P; last pass only, else (0, wave, p)."""
    node_buckets: Single
    """(bucket, node, p) The same for each mode of the prediction, at the nodes."""
    exposures: Int
    """(1,) Largest number of images that a star may have."""

    def __add__(self, other: FlatSums) -> FlatSums:
        return FlatSums(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})

    def to_bytes(self) -> bytes:
        """Serialise the sums as safetensors."""
        return pack("flat sums", {one.name: getattr(self, one.name) for one in fields(self)}, {})

    @classmethod
    def from_bytes(cls, data: bytes, source: object = "flat sums") -> FlatSums:
        """Read the bytes of `to_bytes`.

        Raises
        ------
        InputError
            If they are damaged or of another kind.
        """
        arrays, _ = unpack("flat sums", data, source)
        return cls(**{one.name: get_array(arrays, one.name, source) for one in fields(cls)})


def normal_equations(ratios: StarRatios, solution: FlatSolution | None = None, *, degree: int = 2) -> FlatSums:
    """Form the sums of one group of star images, for the pass that follows a solution.

    Parameters
    ----------
    ratios : StarRatios
        Ratios of one or more exposures of one detector.
    solution : FlatSolution, optional
        Solution of the previous pass; None in the first pass.
    degree : int
        Total degree of the polynomial.

    Returns
    -------
    FlatSums
        Formed by one thread in the order of the stars: the same input gives the same bits.

    Raises
    ------
    InputError
        If the solution has another wavelength grid or degree.
    """
    n, wave = ratios.ratio.shape
    p = n_terms(degree)
    n_passes = 0 if solution is None else solution.n_passes
    last = n_passes == len(PASSES) - 1
    n_kept = n if last else 0
    correlated = np.asarray(ratios.grey_error, dtype=np.float64)[:, None] ** 2 + np.zeros((n, wave))
    for mode in np.moveaxis(np.asarray(ratios.modes, dtype=np.float64), 1, 0):
        correlated += mode**2
    arrays = (ratios.x, ratios.y, ratios.ratio, ratios.variance_observed, ratios.variance_sed, correlated)
    samples = StarSamples(*(np.ascontiguousarray(one, dtype=np.float64) for one in arrays))
    n_pairs = p * (p + 1) // 2
    sums = SumArrays(
        matrix=np.zeros((n_pairs, wave)), vector=np.zeros((p, wave)), noise=np.zeros((n_pairs, wave)),
        count=np.zeros(wave, dtype=np.int64), kept=np.zeros(wave, dtype=np.int64),
        histogram=np.zeros((wave, N_BINS), dtype=np.int64),
        rows=np.zeros((n_kept, wave, p)), models=np.zeros((n_kept, wave)),
    )  # fmt: skip
    kind = PASSES[min(n_passes, len(PASSES) - 1)]
    add_stars(samples, _previous_fit(solution, wave, p), kind, term_degrees(degree), ratios.shape, sums)
    noise = _full_matrices(sums.noise, p)
    return FlatSums(
        matrix=_full_matrices(sums.matrix, p), vector=np.ascontiguousarray(sums.vector.T), noise=noise,
        count=sums.count, kept=sums.kept, histogram=sums.histogram,
        exposures=np.array([_max_images(ratios.star)], dtype=np.int64),
        **_last_pass_sums(ratios, samples, sums, noise) if last else _no_last_pass_sums(wave, p),
    )  # fmt: skip


def _previous_fit(solution: FlatSolution | None, wave: int, p: int) -> PreviousFit:
    if solution is None:
        return PreviousFit(np.full((p, wave), np.nan), np.ones(wave), np.full(wave, TUKEY_CUTOFF))
    shape = solution.coefficients.shape
    if shape != (wave, p):
        raise InputError("flat solution", f"coefficients {shape}", f"{(wave, p)}: the same grid and degree")
    return PreviousFit(np.ascontiguousarray(solution.coefficients.T), solution.scale, solution.cutoff)


def _full_matrices(triangles: Float, p: int) -> Float:
    """Return symmetric matrices (wave, p, p) of lower triangles (pair, wave)."""
    row, column = np.tril_indices(p)
    full = np.zeros((triangles.shape[1], p, p))
    full[:, row, column] = triangles.T
    full[:, column, row] = triangles.T
    return full


def _max_images(star: Array) -> int:
    """Return the largest number of images of one star; 0 without any."""
    return int(np.unique(star, return_counts=True)[1].max(initial=0))


def _no_last_pass_sums(wave: int, p: int) -> dict[str, Array]:
    return {
        "cross": np.zeros((0, 0, p, p)),
        "predicted": np.zeros((wave, p, p)),
        "buckets": np.zeros((0, wave, p), dtype=np.float32),
        "node_buckets": np.zeros((0, 0, p), dtype=np.float32),
    }


def _last_pass_sums(ratios: StarRatios, samples: StarSamples, sums: SumArrays, noise: Float) -> dict[str, Array]:
    """Return the sums that only the covariance needs: between wavelengths, and of the errors of predictions."""
    n, wave, p = sums.rows.shape
    nodes = covariance_nodes(wave)
    grey = np.broadcast_to(np.asarray(ratios.grey_error)[:, None, None], (n, 1, len(nodes)))
    factors = np.concatenate([grey, np.asarray(ratios.modes, dtype=np.float64)[:, :, nodes]], axis=1)
    factors = np.nan_to_num(np.ascontiguousarray(factors * sums.models[:, None, nodes]))
    node_rows = np.ascontiguousarray(sums.rows[:, nodes])
    flat_cross = np.zeros((len(nodes) * p, len(nodes) * p))
    add_outer_products(node_rows.reshape(n, len(nodes) * p), factors, p, flat_cross)
    cross = flat_cross.reshape(len(nodes), p, len(nodes), p).transpose(0, 2, 1, 3).copy()
    for index, node in enumerate(nodes):
        cross[index, index] = noise[node]
    relative = np.maximum(np.nan_to_num(samples.independent + samples.correlated), 0.0)
    errors = sums.rows * (np.sqrt(relative) * sums.models)[..., None]
    buckets = np.zeros((N_BUCKETS, wave, p), dtype=np.float32)
    node_buckets = np.zeros((N_BUCKETS, len(nodes), p), dtype=np.float32)
    for star in range(n):
        bucket, sign = _bucket(ratios.star[star], 0)
        buckets[bucket] += sign * errors[star].astype(np.float32)
        for mode in range(factors.shape[1]):
            bucket, sign = _bucket(ratios.star[star], mode + 1)
            node_buckets[bucket] += (sign * factors[star, mode, :, None] * node_rows[star]).astype(np.float32)
    predicted = np.einsum("swk,swl->wkl", errors, errors)
    return {"cross": cross, "predicted": predicted, "buckets": buckets, "node_buckets": node_buckets}


def _bucket(star: object, mode: int) -> tuple[int, int]:
    """Return the bucket and the sign of a mode of a star: the same in all exposures and processes."""
    digest = hashlib.blake2b(f"{star} {mode}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return number % N_BUCKETS, 1 if (number >> 32) & 1 else -1
