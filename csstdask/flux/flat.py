"""The large-scale flat of a slitless detector as a function of position and wavelength.

The ratio of observed to predicted counts of stars is sensitivity(wavelength) times flat(x, y, wavelength). The flat has
a detector mean of 1 at every wavelength, so an error of the predicted spectra that is common to all stars changes the
sensitivity only. Nothing is stored as an image: a few coefficients per wavelength give values and variances anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.core.packed_arrays import get_array, pack, unpack
from csstdask.flux.flat_solution import FlatFlag, FlatSolution
from csstdask.flux.ratios import uncorrelated_ratios
from csstdask.flux.solve_flat import fit_ratios
from csstdask.numerics.polynomials import evaluate_on_grid, legendre_products

if TYPE_CHECKING:
    import xarray as xr

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

KIND = "flat"


@dataclass(frozen=True)
class Calibrated:
    """Counts divided by the flat."""

    counts: Float
    """In the unit of the input."""
    variance: Float
    """With the variance of the flat; inf where the flat is unknown."""
    flag: Int
    """`FlatFlag`."""


@dataclass(frozen=True, repr=False)
class Flat:
    """Sensitivity and flat of one detector, with their covariance.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> x, y = rng.uniform(0, 1000, (2, 100))
    >>> ratio = 2.0 * np.ones((100, 3)) * (1 + 1e-4 * (x - 499.5))[:, None]
    >>> flat = fit_flat(x, y, [4000, 5000, 6000], ratio, np.full(ratio.shape, 1e4), shape=(1000, 1000))
    >>> flat.sensitivity.round(6).tolist(), round(float(flat.evaluate(999.0, 500.0, 5500.0)), 6)
    ([2.0, 2.0, 2.0], 1.04995)
    """

    wavelength: Float
    """(wave,) Ascending [Angstrom]."""
    coefficients: Float
    """(wave, p) c_k of Legendre products: sensitivity times flat = sum_k c_k P_k(x, y)."""
    covariance: Float
    """(wave, p, p) Covariance of c, without errors common to all stars."""
    shape: tuple[int, int]
    """(y, x) of the detector."""
    degree: Int
    """(wave,) Degree fitted; -1 without usable stars."""
    flags: Int
    """(wave,) `FlatFlag`."""
    n_stars: Int
    """(wave,) Usable star images."""
    n_kept: Int
    """(wave,) Star images of positive robust weight."""
    scale: Float
    """(wave,) Scatter of the residuals over quoted errors."""
    common_variance: Float
    """(wave,) Relative variance of the predicted spectra that all stars share: it enters the sensitivity only."""
    nodes: Int
    """(node,) Indices of the wavelengths of `node_covariance`."""
    node_covariance: Float
    """(node, node, p, p) Covariance of c between wavelengths."""
    detector: int | None = None
    """Detector id, if known."""

    def __repr__(self) -> str:
        """Return one line: range, degree, and how well the flat is known."""
        lowered = int(np.count_nonzero(self.flags & int(FlatFlag.LOWER_DEGREE)))
        name = "" if self.detector is None else f"detector {self.detector}, "
        return (
            f"Flat({name}{self.wavelength[0]:.0f}-{self.wavelength[-1]:.0f} Angstrom in {len(self.wavelength)} steps, "
            f"degree {self.requested_degree}{f' (lower at {lowered})' if lowered else ''}, "
            f"{int(np.median(self.n_stars))} stars, median sigma {np.sqrt(np.median(self.mean_variance)):.2g})"
        )

    @property
    def requested_degree(self) -> int:
        """Total degree asked for."""
        return (round(float(np.sqrt(8 * self.coefficients.shape[1] + 1))) - 3) // 2

    @property
    def sensitivity(self) -> Float:
        """(wave,) Sensitivity, in the unit of the ratio; NaN without usable stars."""
        return np.asarray(self.coefficients[:, 0])

    @property
    def sensitivity_variance(self) -> Float:
        """(wave,) Variance of the sensitivity, with the error that all stars share."""
        with np.errstate(invalid="ignore"):
            variance = self.covariance[:, 0, 0] + self.common_variance * self.coefficients[:, 0] ** 2
        return np.where(self.degree < 0, np.inf, variance)

    @property
    def mean_variance(self) -> Float:
        """(wave,) Variance of the flat, averaged over the detector."""
        side = np.array([-0.774596669241, 0.0, 0.774596669241]), np.array([5.0, 8.0, 5.0]) / 18
        ny, nx = self.shape
        x, y = ((side[0] + 1) / 2 * size - 0.5 for size in (nx, ny))
        points = self.variance(x[None, None, :], y[None, :, None], self.wavelength[:, None, None])
        return np.asarray(np.einsum("wyx,y,x->w", points, side[1], side[1]))

    def evaluate(self, x: npt.ArrayLike, y: npt.ArrayLike, wavelength: npt.ArrayLike) -> Float:
        """Return the flat; 1 where it is unknown (see `flag`).

        Parameters
        ----------
        x, y : array-like
            Zero-based positions on the detector [pixel].
        wavelength : array-like
            [Angstrom]; broadcast with `x` and `y`. Coefficients are interpolated linearly.
        """
        x, y, wavelength = _broadcast(x, y, wavelength)
        terms = legendre_products(x, y, self.requested_degree, self.shape)
        low, share = self._between(wavelength)
        relative = self.relative_coefficients
        values = (1 - share) * (terms * relative[low]).sum(axis=-1)
        high = np.minimum(low + 1, len(self.wavelength) - 1)
        values += share * (terms * relative[high]).sum(axis=-1)
        return np.where(self._outside(x, y, wavelength) == 0, values, 1.0)

    def variance(self, x: npt.ArrayLike, y: npt.ArrayLike, wavelength: npt.ArrayLike) -> Float:
        """Return the variance of `evaluate`; inf where the flat is unknown.

        At a wavelength of the grid it is g^T cov(c) g with g_0 = -(flat - 1) / c_0 and g_k = P_k / c_0. Between two of
        them variances are interpolated linearly, an upper bound for any correlation. Terms that were left out for lack
        of stars add nothing: see `flag`.
        """
        x, y, wavelength = _broadcast(x, y, wavelength)
        terms = legendre_products(x, y, self.requested_degree, self.shape)
        low, share = self._between(wavelength)
        high = np.minimum(low + 1, len(self.wavelength) - 1)
        at_low = self._grid_variance(terms, low)
        at_high = self._grid_variance(terms, high)
        with np.errstate(invalid="ignore"):
            variance = np.where(share > 0, (1 - share) * at_low + share * at_high, at_low)
            variance = np.where(share < 1, variance, at_high)
        return np.where(self._outside(x, y, wavelength) == 0, variance, np.inf)

    def flag(self, x: npt.ArrayLike, y: npt.ArrayLike, wavelength: npt.ArrayLike) -> Int:
        """Return `FlatFlag` at some points: out of range, and what is wrong at the nearest wavelengths."""
        x, y, wavelength = _broadcast(x, y, wavelength)
        low, share = self._between(wavelength)
        high = np.where(share > 0, np.minimum(low + 1, len(self.wavelength) - 1), low)
        return np.asarray(self._outside(x, y, wavelength) | self.flags[low] | self.flags[high])

    def covariance_between(self, x: float, y: float) -> Float:
        """Return the covariance of the flat at one position between the wavelengths of `nodes`: (node, node)."""
        terms = legendre_products(x, y, self.requested_degree, self.shape)
        gradient = self._gradient(np.broadcast_to(terms, (len(self.nodes), len(terms))), self.nodes)
        return np.einsum("ik,ijkl,jl->ij", gradient, self.node_covariance, gradient)

    def apply(
        self,
        counts: npt.ArrayLike,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        wavelength: npt.ArrayLike,
        variance: npt.ArrayLike,
        small_scale: npt.ArrayLike | None = None,
    ) -> Calibrated:
        """Divide pixels or extracted spectra by the flat.

        Parameters
        ----------
        counts, variance : array-like
            Counts and their variance.
        x, y, wavelength : array-like
            Position [pixel] and wavelength [Angstrom] of each; broadcast.
        small_scale : array-like, optional
            A flat of pixel-to-pixel differences (from LED exposures) at the same points, taken as exact.

        Returns
        -------
        Calibrated
        """
        counts, variance = np.broadcast_arrays(*(np.asarray(one, dtype=np.float64) for one in (counts, variance)))
        flat = self.evaluate(x, y, wavelength)
        of_flat = self.variance(x, y, wavelength)
        detail = 1.0 if small_scale is None else np.asarray(small_scale, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            divided = counts / (flat * detail)
            total = variance / (flat * detail) ** 2 + np.where(
                np.isfinite(of_flat), (divided / flat) ** 2 * of_flat, np.inf
            )
        return Calibrated(divided, total, np.broadcast_to(self.flag(x, y, wavelength), divided.shape))

    def check(self, detector: int | None = None, shape: tuple[int, int] | None = None) -> None:
        """Raise InputError unless the flat belongs to a detector of some shape."""
        name = "flat" if self.detector is None else f"flat of detector {self.detector}"
        if detector is not None and self.detector is not None and detector != self.detector:
            raise InputError(name, f"detector {self.detector}", f"the flat of detector {detector}")
        if shape is not None and tuple(shape) != tuple(self.shape):
            raise InputError(name, f"a detector of shape {self.shape}", f"one of shape {tuple(shape)} (y, x)")

    def planes(self, x: npt.ArrayLike, y: npt.ArrayLike, wavelength: npt.ArrayLike) -> Float:
        """Return the flat on a grid: (wave, y, x) for columns `x`, rows `y` [pixel] and wavelengths [Angstrom]."""
        x, y, wavelength = (np.atleast_1d(np.asarray(one, dtype=np.float64)) for one in (x, y, wavelength))
        low, share = self._between(wavelength)
        relative = self.relative_coefficients
        high = np.minimum(low + 1, len(self.wavelength) - 1)
        mixed = (1 - share)[:, None] * relative[low] + share[:, None] * relative[high]
        outside = (wavelength < self.wavelength[0]) | (wavelength > self.wavelength[-1])
        mixed[outside] = np.eye(1, mixed.shape[1])
        return evaluate_on_grid(mixed, x, y, self.requested_degree, self.shape)

    def to_dataarray(self, *, detector: int | None = None, chunks: Any = None) -> xr.DataArray:
        """Return the flat as a lazy array over (wavelength, y, x).

        Parameters
        ----------
        detector : int, optional
            Id that becomes a coordinate; by default that of the flat.
        chunks : optional
            As dask has it, for (wavelength, y, x); by default 16 wavelengths by 1024 x 1024 pixels.
        """
        from csstdask.flux.lazy import flat_array  # noqa: PLC0415  Dask and xarray only where they are used

        return flat_array(self, detector=detector, chunks=chunks)

    def to_axe(self, path: str | Path, *, degree: int = 3) -> float:
        """Write a cube as aXe reads it (`csstdask.flux.axe.write_axe`); return the largest error of its values."""
        from csstdask.flux.axe import write_axe  # noqa: PLC0415  astropy

        return write_axe(self, path, degree=degree)

    @classmethod
    def from_axe(cls, path: str | Path, *, degree: int = 2, shape: tuple[int, int] | None = None) -> Flat:
        """Read an aXe cube and describe it by polynomials of the position (`csstdask.flux.axe.read_axe`)."""
        from csstdask.flux.axe import read_axe  # noqa: PLC0415  astropy

        return read_axe(path, degree=degree, shape=shape)

    def plot(self, n_panels: int = 4) -> Any:
        """Draw sensitivity, precision and slices of the flat; return the matplotlib figure."""
        from csstdask.flux.figures import plot_flat  # noqa: PLC0415  matplotlib

        return plot_flat(self, n_panels)

    def to_bytes(self) -> bytes:
        """Return the flat as safetensors."""
        arrays = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("shape", "detector")}
        return pack(KIND, arrays, {"shape": list(self.shape), "detector": self.detector})

    @classmethod
    def from_bytes(cls, data: bytes, source: object = "flat") -> Flat:
        """Return the flat of `to_bytes`; InputError if it is torn or foreign."""
        arrays, facts = unpack(KIND, data, source)
        names = [one.name for one in fields(cls) if one.name not in ("shape", "detector")]
        rows, columns = facts["shape"]
        parts = {name: get_array(arrays, name, source) for name in names}
        return cls(**parts, shape=(rows, columns), detector=facts["detector"])

    @property
    def relative_coefficients(self) -> Float:
        """(wave, p) c_k / c_0: the flat's own; (1, 0, 0, ...) without usable stars."""
        known = (self.degree >= 0) & (self.coefficients[:, 0] > 0)
        first = np.where(known, self.coefficients[:, 0], 1.0)
        return np.where(known[:, None], self.coefficients / first[:, None], np.eye(1, self.coefficients.shape[1]))

    def _gradient(self, terms: Float, index: Int) -> Float:
        """Return d flat / d c_k at wavelengths of the grid."""
        relative = self.relative_coefficients[index]
        with np.errstate(invalid="ignore"):
            gradient = terms / self.coefficients[index, :1].reshape(*index.shape, 1)
        value = (terms * relative).sum(axis=-1)
        gradient[..., 0] *= 1 - value
        return np.asarray(gradient)

    def _grid_variance(self, terms: Float, index: Int) -> Float:
        gradient = self._gradient(terms, index)
        known = self.degree[index] >= 0
        covariance = np.where((self.degree >= 0)[:, None, None], self.covariance, 0.0)[index]
        with np.errstate(invalid="ignore"):
            variance = np.einsum("...k,...kl,...l->...", gradient, covariance, gradient)
        return np.where(known, variance, np.inf)

    def _between(self, wavelength: Float) -> tuple[Int, Float]:
        """Return the index of the grid's wavelength below, and the share of the one above."""
        grid = self.wavelength
        if len(grid) == 1:
            return np.zeros(wavelength.shape, dtype=np.int64), np.zeros(wavelength.shape)
        low = np.clip(np.searchsorted(grid, wavelength, side="right") - 1, 0, len(grid) - 2)
        share = np.clip((wavelength - grid[low]) / (grid[low + 1] - grid[low]), 0.0, 1.0)
        return low, np.nan_to_num(share)

    def _outside(self, x: Float, y: Float, wavelength: Float) -> Int:
        ny, nx = self.shape
        inside = (wavelength >= self.wavelength[0]) & (wavelength <= self.wavelength[-1])
        on_frame = (x >= -0.5) & (x <= nx - 0.5) & (y >= -0.5) & (y <= ny - 0.5)
        flag = np.where(inside, 0, int(FlatFlag.OUTSIDE_WAVELENGTH))
        return np.asarray(flag | np.where(on_frame, 0, int(FlatFlag.OUTSIDE_FRAME)))


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
        After the last pass.
    wavelength : array-like (wave,)
        [Angstrom]
    shape : (int, int)
        (y, x) of the detector.
    detector : int, optional
        Its id.
    common_variance : array-like, scalar or (wave,)
        Relative variance of the predicted spectra that all stars share.
    """
    grid = np.asarray(wavelength, dtype=np.float64)
    common = np.array(np.broadcast_to(np.asarray(common_variance, dtype=np.float64), grid.shape))
    return Flat(
        grid, solution.coefficients, solution.covariance, shape, solution.degree, solution.flag, solution.count,
        solution.kept, solution.scale, common, solution.nodes, solution.node_covariance, detector,
    )  # fmt: skip


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

    Per wavelength, ratio = sum_k c_k P_k(x, y) with products of Legendre polynomials; the sensitivity is c_0, and the
    flat sum_k (c_k / c_0) P_k has a detector mean of 1. All wavelengths are solved at once. Robust weights (Huber,
    then Tukey) keep at least half of the stars, and three more than there are coefficients.

    Parameters
    ----------
    x, y : array-like (star,) or (star, wave)
        Zero-based positions on the detector [pixel], or where each wavelength fell.
    wavelength : array-like (wave,)
        Ascending [Angstrom].
    ratio : array-like (star, wave)
        Observed over predicted counts.
    weight : array-like (star, wave)
        Inverse variance of the ratio. Samples that are NaN, or whose weight is not positive, are ignored.
    degree : int
        Largest total degree. Where stars are too few a lower one is used, and flagged.
    shape : (int, int)
        (y, x) of the detector.

    Returns
    -------
    Flat

    Raises
    ------
    InputError
        If shapes do not agree, the degree is negative, or wavelengths do not ascend.
    """
    if degree < 0 or int(degree) != degree:
        raise InputError("degree", f"{degree}", "an integer from 0")
    ratio, weight = np.asarray(ratio, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where(weight > 0, 1 / weight, np.nan)
    if ratio.ndim == 2:  # the first pass expects ratios about 1
        if weight.shape not in ((), ratio.shape):
            raise InputError("weight", f"shape {weight.shape}", f"that of ratio, {ratio.shape}")
        unit = _medians(np.where(np.isfinite(variance), ratio, np.nan))
        ratio, variance = ratio / unit, variance / unit**2
    else:
        unit = np.ones(1)
    solution = fit_ratios([uncorrelated_ratios(wavelength, x, y, ratio, variance, shape)], degree=degree)
    flat = flat_from_solution(solution, np.atleast_1d(wavelength), shape)
    at_nodes = unit[flat.nodes]
    return Flat(
        flat.wavelength, flat.coefficients * unit[:, None], flat.covariance * (unit**2)[:, None, None], flat.shape,
        flat.degree, flat.flags, flat.n_stars, flat.n_kept, flat.scale, flat.common_variance, flat.nodes,
        flat.node_covariance * (at_nodes[:, None] * at_nodes[None, :])[:, :, None, None],
    )  # fmt: skip


def _medians(values: Float) -> Float:
    """Return the median of each column; 1 where there is none, or it is not positive."""
    finite = np.isfinite(values)
    medians = np.ones(values.shape[1])
    some = finite.any(axis=0)
    if some.any():
        medians[some] = np.nanmedian(np.where(finite, values, np.nan)[:, some], axis=0)
    return np.where(medians > 0, medians, 1.0)


def _broadcast(*parts: npt.ArrayLike) -> tuple[Float, Float, Float]:
    x, y, wavelength = np.broadcast_arrays(*(np.asarray(part, dtype=np.float64) for part in parts))
    return x, y, wavelength
