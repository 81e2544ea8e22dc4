"""The large-scale flat field of a slitless detector as a function of position and wavelength.

The ratio of observed to predicted counts of stars is sensitivity(wavelength) times flat(x, y, wavelength). The flat has
a detector mean of 1 at every wavelength, so that an error of the predicted spectra that all stars share changes only
the sensitivity. No image is stored: a few coefficients per wavelength give values and variances anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.core.packed_arrays import get_array, pack, unpack
from csstdask.flux.flat_solution import FlatFlag
from csstdask.numerics.polynomials import evaluate_on_grid, legendre_products

if TYPE_CHECKING:
    import xarray as xr

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

KIND = "flat"


@dataclass(frozen=True)
class FlatFielded:
    """Counts divided by the flat."""

    counts: Float
    """Divided counts, in the unit of the input."""
    variance: Float
    """Their variance, that of the flat included; inf where the flat is unknown."""
    flag: Int
    """`FlatFlag`."""


@dataclass(frozen=True, repr=False)
class Flat:
    """Sensitivity and flat of one detector, with their covariance.

    Examples
    --------
    >>> from csstdask.flux import fit_flat
    >>> rng = np.random.default_rng(1)
    >>> x, y = rng.uniform(0, 1000, (2, 100))
    >>> ratio = 2.0 * np.ones((100, 3)) * (1 + 1e-4 * (x - 499.5))[:, None]
    >>> flat = fit_flat(x, y, [4000, 5000, 6000], ratio, np.full(ratio.shape, 1e4), shape=(1000, 1000))
    >>> flat.sensitivity.round(6).tolist(), round(float(flat.evaluate(999.0, 500.0, 5500.0)), 6)
    ([2.0, 2.0, 2.0], 1.04995)
    """

    wavelength: Float
    """(wave,) Ascending wavelengths [Angstrom]."""
    coefficients: Float
    """(wave, p) c_k of Legendre products: sensitivity times flat = sum_k c_k P_k(x, y)."""
    covariance: Float
    """(wave, p, p) Covariance of c, without the errors that all stars share."""
    shape: tuple[int, int]
    """(y, x) of the detector."""
    degree: Int
    """(wave,) Fitted total degree; -1 without usable stars."""
    flags: Int
    """(wave,) `FlatFlag`."""
    n_stars: Int
    """(wave,) Number of usable star images."""
    n_kept: Int
    """(wave,) Number of star images with a positive robust weight."""
    scale: Float
    """(wave,) Scatter of the residuals in quoted errors."""
    common_variance: Float
    """(wave,) Relative variance of the predicted spectra that all stars share; it enters only the sensitivity."""
    nodes: Int
    """(node,) Indices of the wavelengths of `node_covariance`."""
    node_covariance: Float
    """(node, node, p, p) Covariance of c between wavelengths."""
    detector: int | None = None
    """Detector id, if known."""

    def __repr__(self) -> str:
        """Return a summary in one line: wavelength range, degree and precision."""
        lowered = int(np.count_nonzero(self.flags & int(FlatFlag.LOWER_DEGREE)))
        name = "" if self.detector is None else f"detector {self.detector}, "
        return (
            f"Flat({name}{self.wavelength[0]:.0f}-{self.wavelength[-1]:.0f} Angstrom in {len(self.wavelength)} steps, "
            f"degree {self.requested_degree}{f' (lower at {lowered})' if lowered else ''}, "
            f"{int(np.median(self.n_stars))} stars, median sigma {np.sqrt(np.median(self.mean_variance)):.2g})"
        )

    @property
    def requested_degree(self) -> int:
        """Largest total degree of the fit."""
        return (round(float(np.sqrt(8 * self.coefficients.shape[1] + 1))) - 3) // 2

    @property
    def sensitivity(self) -> Float:
        """(wave,) Detector mean of sensitivity times flat, in the unit of the ratio; NaN without usable stars."""
        return np.asarray(self.coefficients[:, 0])

    @property
    def sensitivity_variance(self) -> Float:
        """(wave,) Variance of the sensitivity, the error that all stars share included."""
        with np.errstate(invalid="ignore"):
            variance = self.covariance[:, 0, 0] + self.common_variance * self.coefficients[:, 0] ** 2
        return np.where(self.degree < 0, np.inf, variance)

    @property
    def mean_variance(self) -> Float:
        """(wave,) Variance of the flat, averaged over the detector."""
        # Gauss-Legendre quadrature with three points along each axis
        nodes, weights = np.array([-0.774596669241, 0.0, 0.774596669241]), np.array([5.0, 8.0, 5.0]) / 18
        ny, nx = self.shape
        x, y = ((nodes + 1) / 2 * size - 0.5 for size in (nx, ny))
        points = self.variance(x[None, None, :], y[None, :, None], self.wavelength[:, None, None])
        return np.asarray(np.einsum("wyx,y,x->w", points, weights, weights))

    def evaluate(self, x: npt.ArrayLike, y: npt.ArrayLike, wavelength: npt.ArrayLike) -> Float:
        """Evaluate the flat; 1 where it is unknown (see `flag`).

        Parameters
        ----------
        x, y : array-like
            Zero-based positions on the detector [pixel].
        wavelength : array-like
            Wavelengths [Angstrom], broadcast with `x` and `y`. Coefficients are interpolated linearly.

        Returns
        -------
        float64 array
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
        """Evaluate the variance of the flat; inf where it is unknown.

        At a wavelength of the grid it is g^T cov(c) g with g_0 = -(flat - 1) / c_0 and g_k = P_k / c_0. Between two of
        them, variances are interpolated linearly, which is an upper bound for any correlation. Terms that were dropped
        for lack of stars add nothing: see `flag`. Parameters are those of `evaluate`.
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
        """Return `FlatFlag` of positions and wavelengths: out of range, and the flags of the nearest wavelengths."""
        x, y, wavelength = _broadcast(x, y, wavelength)
        low, share = self._between(wavelength)
        high = np.where(share > 0, np.minimum(low + 1, len(self.wavelength) - 1), low)
        return np.asarray(self._outside(x, y, wavelength) | self.flags[low] | self.flags[high])

    def covariance_between(self, x: float, y: float) -> Float:
        """Return the covariance (node, node) of the flat at one position [pixel] between the wavelengths of `nodes`."""
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
    ) -> FlatFielded:
        """Divide pixels or extracted spectra by the flat.

        Parameters
        ----------
        counts, variance : array-like
            Counts and their variance.
        x, y, wavelength : array-like
            Position [pixel] and wavelength [Angstrom] of each value; broadcast.
        small_scale : array-like, optional
            Pixel-to-pixel flat (for example from LED exposures) at the same points, assumed to have no errors.

        Returns
        -------
        FlatFielded
        """
        counts, variance = np.broadcast_arrays(*(np.asarray(one, dtype=np.float64) for one in (counts, variance)))
        flat = self.evaluate(x, y, wavelength)
        flat_variance = self.variance(x, y, wavelength)
        pixel_flat = 1.0 if small_scale is None else np.asarray(small_scale, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            divided = counts / (flat * pixel_flat)
            total = variance / (flat * pixel_flat) ** 2 + np.where(
                np.isfinite(flat_variance), (divided / flat) ** 2 * flat_variance, np.inf
            )
        return FlatFielded(divided, total, np.broadcast_to(self.flag(x, y, wavelength), divided.shape))

    def check(self, detector: int | None = None, shape: tuple[int, int] | None = None) -> None:
        """Raise InputError unless the flat is that of a detector (if given) and a shape (y, x) (if given)."""
        name = "flat" if self.detector is None else f"flat of detector {self.detector}"
        if detector is not None and self.detector is not None and detector != self.detector:
            raise InputError(name, f"detector {self.detector}", f"the flat of detector {detector}")
        if shape is not None and tuple(shape) != tuple(self.shape):
            raise InputError(name, f"a detector of shape {self.shape}", f"one of shape {tuple(shape)} (y, x)")

    def planes(self, x: npt.ArrayLike, y: npt.ArrayLike, wavelength: npt.ArrayLike) -> Float:
        """Evaluate the flat on a grid (wave, y, x) of columns `x`, rows `y` [pixel] and wavelengths [Angstrom]."""
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
            Value of the coordinate ``detector``; by default that of the flat.
        chunks : optional
            Chunk sizes as in Dask, for (wavelength, y, x); by default 16 wavelengths by 1024 x 1024 pixels.
        """
        from csstdask.flux.lazy import flat_array  # noqa: PLC0415  Dask and xarray only where they are used

        return flat_array(self, detector=detector, chunks=chunks)

    def to_axe(self, path: str | Path, *, degree: int = 3) -> float:
        """Write an aXe cube (`csstdask.flux.axe.write_axe`); return the largest error of its values."""
        from csstdask.flux.axe import write_axe  # noqa: PLC0415  astropy

        return write_axe(self, path, degree=degree)

    @classmethod
    def from_axe(cls, path: str | Path, *, degree: int = 2, shape: tuple[int, int] | None = None) -> Flat:
        """Read an aXe cube and fit polynomials of the position to it (`csstdask.flux.axe.read_axe`)."""
        from csstdask.flux.axe import read_axe  # noqa: PLC0415  astropy

        return read_axe(path, degree=degree, shape=shape)

    def plot(self, n_panels: int = 4) -> Any:
        """Plot sensitivity, precision and slices of the flat; return the matplotlib figure."""
        from csstdask.flux.figures import plot_flat  # noqa: PLC0415  matplotlib

        return plot_flat(self, n_panels)

    def to_bytes(self) -> bytes:
        """Serialise the flat as safetensors."""
        arrays = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("shape", "detector")}
        return pack(KIND, arrays, {"shape": list(self.shape), "detector": self.detector})

    @classmethod
    def from_bytes(cls, data: bytes, source: object = "flat") -> Flat:
        """Read the bytes of `to_bytes`.

        Raises
        ------
        InputError
            If they are damaged or of another kind.
        """
        arrays, metadata = unpack(KIND, data, source)
        names = [one.name for one in fields(cls) if one.name not in ("shape", "detector")]
        rows, columns = metadata["shape"]
        parts = {name: get_array(arrays, name, source) for name in names}
        return cls(**parts, shape=(rows, columns), detector=metadata["detector"])

    @property
    def relative_coefficients(self) -> Float:
        """(wave, p) Coefficients of the flat, c_k / c_0; (1, 0, 0, ...) without usable stars."""
        known = (self.degree >= 0) & (self.coefficients[:, 0] > 0)
        first = np.where(known, self.coefficients[:, 0], 1.0)
        return np.where(known[:, None], self.coefficients / first[:, None], np.eye(1, self.coefficients.shape[1]))

    def _gradient(self, terms: Float, index: Int) -> Float:
        """Return d flat / d c_k (..., p) at wavelengths of the grid, from terms (..., p) and indices (...)."""
        relative = self.relative_coefficients[index]
        with np.errstate(invalid="ignore"):
            gradient = terms / self.coefficients[index, :1].reshape(*index.shape, 1)
        value = (terms * relative).sum(axis=-1)
        gradient[..., 0] *= 1 - value
        return np.asarray(gradient)

    def _grid_variance(self, terms: Float, index: Int) -> Float:
        """Return the variance of the flat at wavelengths of the grid."""
        gradient = self._gradient(terms, index)
        known = self.degree[index] >= 0
        covariance = np.where((self.degree >= 0)[:, None, None], self.covariance, 0.0)[index]
        with np.errstate(invalid="ignore"):
            variance = np.einsum("...k,...kl,...l->...", gradient, covariance, gradient)
        return np.where(known, variance, np.inf)

    def _between(self, wavelength: Float) -> tuple[Int, Float]:
        """Return the index of the grid wavelength below, and the weight of the one above."""
        grid = self.wavelength
        if len(grid) == 1:
            return np.zeros(wavelength.shape, dtype=np.int64), np.zeros(wavelength.shape)
        low = np.clip(np.searchsorted(grid, wavelength, side="right") - 1, 0, len(grid) - 2)
        share = np.clip((wavelength - grid[low]) / (grid[low + 1] - grid[low]), 0.0, 1.0)
        return low, np.nan_to_num(share)

    def _outside(self, x: Float, y: Float, wavelength: Float) -> Int:
        """Return the flags of points outside the detector or the wavelength range."""
        ny, nx = self.shape
        inside = (wavelength >= self.wavelength[0]) & (wavelength <= self.wavelength[-1])
        on_frame = (x >= -0.5) & (x <= nx - 0.5) & (y >= -0.5) & (y <= ny - 0.5)
        flag = np.where(inside, 0, int(FlatFlag.OUTSIDE_WAVELENGTH))
        return np.asarray(flag | np.where(on_frame, 0, int(FlatFlag.OUTSIDE_FRAME)))


def _broadcast(*parts: npt.ArrayLike) -> tuple[Float, Float, Float]:
    x, y, wavelength = np.broadcast_arrays(*(np.asarray(part, dtype=np.float64) for part in parts))
    return x, y, wavelength
