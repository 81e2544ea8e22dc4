"""Products of Legendre polynomials over a frame, for smooth functions of the position on a detector.

Term k of total degree at most d is P_i(u) P_j(v), with u = 2 (x + 0.5) / nx - 1 and v = 2 (y + 0.5) / ny - 1, which are
-1 and 1 at the edges of the frame. Terms are sorted by total degree, and within a degree by decreasing power of x:
1; u, v; P_2(u), u v, P_2(v); ... The terms of a lower degree are therefore the first ones of a higher degree. Term 0 is
constant, and the mean of every other term over the frame is 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


def n_terms(degree: int) -> int:
    """Return the number of terms of total degree at most `degree`.

    Examples
    --------
    >>> n_terms(2)
    6
    """
    return (degree + 1) * (degree + 2) // 2


def term_degrees(degree: int) -> npt.NDArray[np.int64]:
    """Return the degrees in x and y of every term, int array (term, 2).

    Examples
    --------
    >>> term_degrees(2).tolist()
    [[0, 0], [1, 0], [0, 1], [2, 0], [1, 1], [0, 2]]
    """
    return np.array([(total - j, j) for total in range(degree + 1) for j in range(total + 1)], dtype=np.int64)


def normalised_coordinate(position: npt.ArrayLike, size: int) -> Float:
    """Return the position on a frame of `size` pixels, with centres at 0 to size - 1, as a number from -1 to 1."""
    return 2.0 * (np.asarray(position, dtype=np.float64) + 0.5) / size - 1.0


def legendre_values(u: npt.ArrayLike, degree: int) -> Float:
    """Return P_0(u) to P_degree(u) along a new last axis."""
    u = np.asarray(u, dtype=np.float64)
    values = np.empty((*u.shape, degree + 1))
    values[..., 0] = 1.0
    if degree:
        values[..., 1] = u
    for n in range(1, degree):
        values[..., n + 1] = ((2 * n + 1) * u * values[..., n] - n * values[..., n - 1]) / (n + 1)
    return values


def legendre_products(x: npt.ArrayLike, y: npt.ArrayLike, degree: int, shape: tuple[int, int]) -> Float:
    """Return all terms at given positions.

    Parameters
    ----------
    x, y : array-like
        Zero-based positions [pixel]; broadcast.
    degree : int
        Largest total degree.
    shape : (int, int)
        (y, x) of the frame.

    Returns
    -------
    float64 array (..., term)

    Examples
    --------
    >>> legendre_products(99.5, 49.5, 1, (100, 100)).tolist()
    [1.0, 1.0, 0.0]
    """
    x, y = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
    of_x = legendre_values(normalised_coordinate(x, shape[1]), degree)
    of_y = legendre_values(normalised_coordinate(y, shape[0]), degree)
    powers = term_degrees(degree)
    return of_x[..., powers[:, 0]] * of_y[..., powers[:, 1]]


def mean_squares(degree: int) -> Float:
    """Return the mean over the frame of the square of every term, 1 / ((2 i + 1) (2 j + 1)).

    Examples
    --------
    >>> mean_squares(1).round(3).tolist()
    [1.0, 0.333, 0.333]
    """
    return np.asarray(1.0 / np.prod(2 * term_degrees(degree) + 1, axis=1))


def evaluate_on_grid(
    coefficients: npt.ArrayLike, x: npt.ArrayLike, y: npt.ArrayLike, degree: int, shape: tuple[int, int]
) -> Float:
    """Return sum_k coefficients[..., k] P_k on the grid of given columns and rows.

    Parameters
    ----------
    coefficients : array-like (..., term)
        In the order of `legendre_products`.
    x, y : array-like (nx,), (ny,)
        Columns and rows [pixel].
    degree : int
        Largest total degree.
    shape : (int, int)
        (y, x) of the frame.

    Returns
    -------
    float64 array (..., ny, nx)
    """
    coefficients = np.asarray(coefficients, dtype=np.float64)
    square = np.zeros((*coefficients.shape[:-1], degree + 1, degree + 1))
    powers = term_degrees(degree)
    square[..., powers[:, 1], powers[:, 0]] = coefficients
    of_x = legendre_values(normalised_coordinate(x, shape[1]), degree)
    of_y = legendre_values(normalised_coordinate(y, shape[0]), degree)
    return np.asarray(of_y @ square @ of_x.T)
