"""Batched solutions of small symmetric systems."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


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
    """Return the inverses of symmetric positive definite matrices, scaled before so that units do not matter.

    Parameters
    ----------
    matrix : array-like (..., p, p)

    Raises
    ------
    numpy.linalg.LinAlgError
        If one of them is singular.

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
