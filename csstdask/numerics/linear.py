"""Batched solutions of small symmetric systems.

Unknowns of one system may have very different units: fluxes next to positions and coefficients. All functions scale the
matrix to a unit diagonal first, so that neither rounding nor a ridge depends on the units.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

#: A smaller diagonal element means an unconstrained unknown.
_MIN_DIAGONAL = 1e-30
#: Added to the unit diagonal: small for a constrained unknown, enough to solve for an unconstrained one.
RIDGE = 1e-12


def unit_diagonal(matrix: npt.ArrayLike) -> tuple[Float, Float]:
    """Scale symmetric matrices to a diagonal of ones.

    Parameters
    ----------
    matrix : array-like (..., p, p)
        Symmetric, positive semi-definite.

    Returns
    -------
    scaled : float64 array (..., p, p)
        d_i matrix_ij d_j.
    d : float64 array (..., p)
        1 / sqrt(matrix_ii); 1 where the diagonal is not positive.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
    positive = np.isfinite(diagonal) & (diagonal > 0)
    d = 1 / np.sqrt(np.where(positive, diagonal, 1.0))
    return matrix * d[..., :, None] * d[..., None, :], d


def invert_symmetric(matrix: npt.ArrayLike) -> Float:
    """Return the inverses of symmetric positive definite matrices.

    Parameters
    ----------
    matrix : array-like (..., p, p)

    Returns
    -------
    float64 array (..., p, p)

    Raises
    ------
    numpy.linalg.LinAlgError
        If one of the matrices is singular.

    Examples
    --------
    >>> invert_symmetric([[4.0, 0.0], [0.0, 0.25]]).tolist()
    [[0.25, 0.0], [0.0, 4.0]]
    """
    scaled, d = unit_diagonal(matrix)
    inverse = np.linalg.inv(scaled)
    inverse = (inverse + np.swapaxes(inverse, -1, -2)) / 2
    return np.asarray(inverse * (d[..., :, None] * d[..., None, :]))


def smallest_eigenvalue(matrix: npt.ArrayLike) -> Float:
    """Return the smallest eigenvalue of each matrix scaled to a unit diagonal (0: singular)."""
    scaled, _ = unit_diagonal(matrix)
    return np.asarray(np.linalg.eigvalsh(scaled)[..., 0])


def solve_with_ridge(matrix: Float, right: Float, ridge: float = RIDGE) -> Float:
    """Solve systems whose unknowns may be unconstrained.

    Parameters
    ----------
    matrix : float64 array (n, p, p)
        Symmetric, positive semi-definite. A row of zeros is an unknown without any constraint: it becomes 0.
    right : float64 array (n, p, k)
        Right-hand sides.
    ridge : float
        Added to the unit diagonal of the scaled matrix.

    Returns
    -------
    float64 array (n, p, k)

    Examples
    --------
    >>> solve_with_ridge(np.array([[[4.0, 0.0], [0.0, 0.0]]]), np.array([[[8.0], [0.0]]])).round(6).tolist()
    [[[2.0], [0.0]]]
    """
    scaled, scale = _scale_with_ridge(matrix, ridge)
    return np.asarray(scale[:, :, None] * np.linalg.solve(scaled, scale[:, :, None] * right))


def invert_with_ridge(matrix: Float, ridge: float = RIDGE) -> Float:
    """Return inverses of matrices (n, p, p) as `solve_with_ridge` solves them; huge for an unconstrained unknown."""
    scaled, scale = _scale_with_ridge(matrix, ridge)
    return np.asarray(scale[:, :, None] * np.linalg.inv(scaled) * scale[:, None, :])


def _scale_with_ridge(matrix: Float, ridge: float) -> tuple[Float, Float]:
    scale = 1 / np.sqrt(np.maximum(np.einsum("naa->na", matrix), _MIN_DIAGONAL))
    return matrix * scale[:, :, None] * scale[:, None, :] + ridge * np.eye(matrix.shape[-1]), scale
