"""Solve the normal equations of the joint solve, and compute the diagonal of the inverse of their matrix.

A sky survey overlaps like the tiles of a plane, so its matrix has sparse triangular factors. It is factorised, and the
elements of the inverse at the nonzeros of the factors follow from the recursion of Takahashi, Fagan and Chen (1973).
With A = L D L^T and S_j the rows of column j of L below the diagonal,

    Z_ij = -sum_k in S_j Z_ik L_kj  (i in S_j),        Z_jj = 1 / D_j - sum_k in S_j L_kj Z_kj,

from the last column to the first. The result is exact. Larger matrices are solved by conjugate gradients with the
diagonal as preconditioner. Variances are then estimated from N solutions for seeded random right-hand sides of
covariance A (Papandreou and Yuille 2010), with a relative error of each sigma of at most 1 / sqrt(2 N). The part
1 / A_ii of the variance of x_i is known; only that of its mean given all others is estimated (Siden et al. 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from numba import njit
from scipy.sparse.linalg import SuperLU, cg, splu
from threadpoolctl import threadpool_limits

from csstdask.zeropoint.joint.normal_equations import Overlaps, StarEquations
from csstdask.zeropoint.joint.prior_terms import PriorTerms

Float = npt.NDArray[np.float64]

TOLERANCE = 1e-11
"""Residual at which conjugate gradients stop, relative to the right-hand side."""
SAMPLE_TOLERANCE = 1e-6
"""The same for random right-hand sides: far below the error of a variance from samples."""
SEED = 20250101
"""Seed of the random right-hand sides: results are reproducible."""


@dataclass(frozen=True)
class Factor:
    """Triangular factors of a symmetric positive definite matrix."""

    matrix: sp.csc_array
    lu: SuperLU

    def solve(self, vector: Float) -> Float:
        """Return A^-1 vector."""
        with threadpool_limits(1, "blas"):
            return np.asarray(self.lu.solve(vector))

    def inverse_diagonal(self) -> Float:
        """Return the diagonal of A^-1, float64 array (n,)."""
        lower = self.lu.L.tocsc()
        lower.sort_indices()
        if not _is_closed(lower.indptr, lower.indices):
            lower = self._with_zeros(lower)
        pivot = self.lu.U.diagonal()
        diagonal = _selected_inverse(lower.indptr, lower.indices, lower.data, pivot)
        return np.asarray(diagonal[self.lu.perm_c])

    def _with_zeros(self, lower: sp.csc_array) -> sp.csc_array:
        """Return L with explicit zeros where elements vanish by cancellation, which SuperLU leaves out.

        The recursion needs the elements of the inverse there. A matrix of the same sparsity pattern with a dominant
        diagonal and only negative elements off it has factors in which nothing can cancel.
        """
        pattern = self.matrix.copy()
        pattern.data = np.full(pattern.nnz, -1.0)
        pattern.setdiag(1.0 + np.bincount(pattern.indices, minlength=pattern.shape[0]))
        full = _decompose(pattern.tocsc()).L.tocsc()
        full.sort_indices()
        full.data = _values_at(full.indptr, full.indices, lower.indptr, lower.indices, lower.data)
        if np.count_nonzero(full.data) != np.count_nonzero(lower.data):
            raise ArithmeticError("the factors of the joint solve have elements outside their sparsity pattern")
        return full


def _decompose(matrix: sp.csc_array) -> SuperLU:
    """Factorise with SuperLU, ordered by minimum degree; the order depends on the sparsity pattern alone."""
    with threadpool_limits(1, "blas"):  # the number of threads must not change sums
        return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})


def factorise(matrix: sp.csc_array) -> Factor:
    """Factorise a symmetric positive definite matrix, ordered by minimum degree.

    Raises
    ------
    ArithmeticError
        If the matrix is not positive definite.

    Examples
    --------
    >>> matrix = sp.csc_array([[2.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 2.0]])
    >>> factorise(matrix).inverse_diagonal().round(12).tolist()
    [0.75, 1.0, 0.75]
    """
    lu = _decompose(matrix)
    if not np.array_equal(lu.perm_r, lu.perm_c):
        raise ArithmeticError("the matrix of the joint solve is not positive definite")
    return Factor(matrix, lu)


def solve_iteratively(matrix: sp.csc_array, vector: Float, start: Float | None = None) -> tuple[Float, int]:
    """Solve by conjugate gradients with Jacobi's preconditioner; return the solution and the number of iterations.

    Raises
    ------
    ArithmeticError
        If the iteration does not converge.
    """
    return _conjugate_gradients(matrix, vector, start, TOLERANCE)


def sampled_variance(
    matrix: sp.csc_array, stars: StarEquations, pairs: Overlaps, prior: PriorTerms, free: npt.ArrayLike, n_samples: int
) -> Float:
    """Estimate the diagonal of the inverse of the precision matrix by sampling.

    The matrix is a sum of squares of linear forms, so a right-hand side with this covariance is a sum of independent
    normal deviates times these forms: differences of two units, single units, small terms of units, errors that
    magnitudes of a unit share, and terms of detectors.

    Parameters
    ----------
    matrix : sparse array (unknown, unknown)
        As `precision_matrix` returns it.
    stars, pairs, prior, free
        Arguments of `precision_matrix`.
    n_samples : int
        Number of solutions.

    Returns
    -------
    float64 array (unknown,)
        Variances of the unknowns.
    """
    rng = np.random.default_rng(SEED)
    n = prior.n_units
    first, design = pairs.first, prior.design
    terms = slice(n + prior.n_exposures, n + prior.n_exposures + prior.n_terms)
    diagonal = matrix.diagonal()
    squares = np.zeros(len(diagonal))
    free = np.asarray(free, dtype=np.int64)
    for _ in range(n_samples):
        pair_deviate = np.sqrt(np.maximum(-stars.pair, 0)) * rng.standard_normal(len(stars.pair))
        vector = design.T @ (rng.standard_normal(len(prior.sigma)) / prior.sigma)
        vector[:n] += np.bincount(first, pair_deviate, n) - np.bincount(pairs.second, pair_deviate, n)
        vector[:n] += np.sqrt(np.maximum(stars.from_reference, 0)) * rng.standard_normal(n)
        vector[n + free] += rng.standard_normal(len(free)) / prior.pin
        vector[terms] += rng.standard_normal(prior.n_terms) / prior.term_sigma
        solution, _ = _conjugate_gradients(matrix, vector, None, SAMPLE_TOLERANCE)
        squares += (solution - vector / diagonal) ** 2
    return np.asarray(1 / diagonal + squares / n_samples)


def _conjugate_gradients(
    matrix: sp.csc_array, vector: Float, start: Float | None, tolerance: float
) -> tuple[Float, int]:
    """Solve to a relative tolerance; return the solution and the number of iterations."""
    iterations = 0

    def count(_: Float) -> None:
        nonlocal iterations
        iterations += 1

    jacobi = sp.diags_array(1 / matrix.diagonal())
    with threadpool_limits(1, "blas"):
        solution, failed = cg(
            matrix, vector, x0=start, rtol=tolerance, maxiter=20 * len(vector) + 100, M=jacobi, callback=count
        )
    if failed:
        raise ArithmeticError(f"the joint solve did not converge in {iterations} iterations")
    return np.asarray(solution), iterations


@njit(cache=True, nogil=True)
def _is_closed(start: Any, row: Any) -> Any:  # pragma: no cover
    """Return whether the pattern of L is closed under elimination, so that the recursion finds all elements.

    The rows of each column below its first one, k, must be rows of column k.
    """
    n = len(start) - 1
    marked = np.full(n, -1, dtype=np.int64)
    for j in range(n):
        if start[j + 1] - start[j] < 3:
            continue
        parent = row[start[j] + 1]
        for a in range(start[parent], start[parent + 1]):
            marked[row[a]] = j
        for a in range(start[j] + 2, start[j + 1]):
            if marked[row[a]] != j:
                return False
    return True


@njit(cache=True, nogil=True)
def _values_at(start: Any, row: Any, other_start: Any, other_row: Any, other: Any) -> Any:  # pragma: no cover
    """Return the values of a matrix in the pattern of another one that contains its own; 0 elsewhere."""
    values = np.zeros(len(row))
    for j in range(len(start) - 1):
        b = other_start[j]
        for a in range(start[j], start[j + 1]):
            if b < other_start[j + 1] and other_row[b] == row[a]:
                values[a] = other[b]
                b += 1
    return values


@njit(cache=True, nogil=True)
def _selected_inverse(start: Any, row: Any, lower: Any, pivot: Any) -> Any:  # pragma: no cover
    """Return the diagonal of (L D L^T)^-1; rows of each column of L ascend, the unit diagonal first."""
    n = len(pivot)
    inverse = np.zeros(len(row))
    position = np.full(n, -1, dtype=np.int64)
    diagonal = np.empty(n)
    total = np.zeros(n)
    for j in range(n - 1, -1, -1):
        low, high = start[j] + 1, start[j + 1]
        for a in range(low, high):
            position[row[a]] = a
            total[a - low] = 0.0
        for a in range(low, high):
            k = row[a]
            lower_k = lower[a]
            summed = diagonal[k] * lower_k
            for b in range(start[k] + 1, start[k + 1]):
                at = position[row[b]]
                if at >= 0:
                    summed += inverse[b] * lower[at]
                    total[at - low] += inverse[b] * lower_k
            total[a - low] += summed
        correction = 0.0
        for a in range(low, high):
            inverse[a] = -total[a - low]
            correction += lower[a] * inverse[a]
            position[row[a]] = -1
        diagonal[j] = 1.0 / pivot[j] - correction
    return diagonal
