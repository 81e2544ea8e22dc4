"""Lazy sky coordinates: an xarray index that computes ``ra`` and ``dec`` of pixels on access.

Stored coordinates of each pixel would take 38 GiB for one exposure of the CSST main camera. Here they are computed from
the headers for the pixels that are read. A position is located through the footprints of the units and the WCS of
those near it.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from astropy import units as u
from astropy.coordinates import Angle, SkyCoord
from astropy.io.fits import Header
from astropy.wcs import WCS
from xarray.core.indexing import IndexSelResult
from xarray.indexes import CoordinateTransform, CoordinateTransformIndex, Index

from csstdask.core.warnings import suppress_warnings
from csstdask.instrument import celestial_wcs, pixel_of
from csstdask.instrument.geometry import angle_between, unit_vectors
from csstdask.store.schema import PIXEL_DIMS, UNIT_DIMS

Float = npt.NDArray[np.float64]

WCS_CACHE_SIZE = 256
"""Number of parsed WCS in the cache; parsing a header takes a millisecond."""


@functools.lru_cache(maxsize=WCS_CACHE_SIZE)
def wcs_of(header: str) -> WCS | None:
    """Return the celestial WCS of a header given as text, or None if it has no usable one."""
    with suppress_warnings():
        return celestial_wcs(Header.fromstring(header, sep="\n")) if header else None


def units_near(dataset: xr.Dataset, position: SkyCoord, radius: float) -> list[tuple[int, int]]:
    """Return the units whose footprint is within a radius of a position.

    Parameters
    ----------
    dataset : xarray.Dataset
        Campaign with ``present`` and, if recorded, the circles around its units.
    position : SkyCoord
        One position, in any frame.
    radius : float
        Search radius [deg].

    Returns
    -------
    list of (int, int)
        Indices (exposure, detector) of present units in the order of the dataset, including units with an unknown
        footprint, but not those without a usable WCS.
    """
    present = _over_units(dataset, "present").astype(bool)
    circles = _circles(dataset)
    rows, columns = np.nonzero(present & _has_wcs(circles))
    near = _within(circles[rows, columns], position, radius)
    return [(int(row), int(column)) for row, column in zip(rows[near], columns[near], strict=True)]


def _circles(dataset: xr.Dataset) -> Float:
    """Return centre and diameter of each unit (exposure, detector, 3) [deg]; NaN where not recorded."""
    if "s_fov" not in dataset:
        return np.full((*_units_first(dataset, "header").shape, 3), np.nan)
    return np.stack([_over_units(dataset, name).astype(np.float64) for name in ("s_ra", "s_dec", "s_fov")], axis=-1)


def _has_wcs(circles: Float) -> npt.NDArray[np.bool_]:
    return np.asarray(circles[..., 2] != 0)


def _units_first(dataset: xr.Dataset, name: str) -> xr.Variable:
    """Return a variable over (exposure, detector, ...), also after selection of a single one."""
    values = dataset[name].variable
    missing = [dim for dim in UNIT_DIMS if dim not in values.dims]
    return values.set_dims([*missing, *values.dims]).transpose(*UNIT_DIMS, ...)


def _over_units(dataset: xr.Dataset, name: str) -> npt.NDArray[Any]:
    return np.asarray(_units_first(dataset, name).values)


def _within(circles: Float, position: SkyCoord, radius: float) -> npt.NDArray[np.bool_]:
    """Return which circles (unit, 3) are within a radius [deg] of a position; unknown circles are included."""
    centre = position.icrs
    distance = angle_between(
        unit_vectors(circles[..., 0], circles[..., 1]), unit_vectors(float(centre.ra.deg), float(centre.dec.deg))
    )
    return ~(np.degrees(distance) > circles[..., 2] / 2 + radius)


class SkyTransform(CoordinateTransform):
    """Right ascension and declination of pixels as a function of (exposure, detector, y, x).

    Parameters
    ----------
    headers : xarray.Variable (exposure, detector)
        FITS headers of the units, one card per line; lazy headers are read on demand.
    circles : float array (exposure, detector, 3)
        Circles around the units: centre (ICRS) and diameter [deg]; NaN where unknown, 0 without a usable WCS.
    indices : mapping
        Indices along each of (exposure, detector, y, x): an array, or a number after selection of a single one. Those
        of y and x are pixels of the complete frame.
    """

    def __init__(self, headers: xr.Variable, circles: Float, indices: Mapping[str, npt.NDArray[Any] | int]) -> None:
        self.headers, self.circles = headers, circles
        self.indices = dict(indices)
        self.axes = tuple(name for name in PIXEL_DIMS if np.ndim(self.indices[name]) == 1)
        super().__init__(("ra", "dec"), {name: len(np.atleast_1d(self.indices[name])) for name in self.axes})

    def forward(self, dim_positions: dict[str, Any]) -> dict[Hashable, Any]:
        """Return ra and dec [deg, ICRS] at grid positions; NaN in units without a usable WCS."""
        positions = dict(zip(self.axes, (np.asarray(dim_positions[dim]) for dim in self.dims), strict=True))
        shape = np.broadcast_shapes(*(value.shape for value in positions.values()))
        exposure, detector, y, x = (self._index(name, positions, shape) for name in PIXEL_DIMS)
        ra, dec = np.full(shape, np.nan), np.full(shape, np.nan)
        units = exposure.astype(np.int64) * self.headers.shape[1] + detector.astype(np.int64)
        for unit in np.unique(units):
            wcs = self._wcs(*divmod(int(unit), self.headers.shape[1]))
            if wcs is None:
                continue
            here = units == unit
            with suppress_warnings():
                found = wcs.pixel_to_world(x[here], y[here]).icrs
            ra[here], dec[here] = found.ra.wrap_at(360 * u.deg).deg, found.dec.deg
        first, second = self.coord_names
        return {first: ra, second: dec}

    def _wcs(self, row: int, column: int) -> WCS | None:
        return wcs_of(str(self.headers[row, column].values))

    def _index(self, name: str, positions: Mapping[str, npt.NDArray[Any]], shape: tuple[int, ...]) -> Float:
        """Return indices along an original axis for grid positions, interpolated linearly."""
        indices = self.indices[name]
        if name not in positions:
            return np.broadcast_to(np.asarray(indices, dtype=np.float64), shape)
        found = np.interp(positions[name], np.arange(len(np.atleast_1d(indices))), np.atleast_1d(indices))
        return np.broadcast_to(found, shape)

    def reverse(self, coord_labels: dict[Hashable, Any]) -> dict[str, Any]:
        """Return the grid positions of the pixels that contain sky positions [deg, ICRS].

        If several units cover a position, the unit whose edge is farthest from it is chosen.

        Raises
        ------
        KeyError
            If no unit covers a position.
        """
        first, second = self.coord_names
        ra, dec = np.broadcast_arrays(np.asarray(coord_labels[first], float), np.asarray(coord_labels[second], float))
        found = np.array([self._locate(*pair) for pair in zip(ra.ravel(), dec.ravel(), strict=True)], dtype=np.int64)
        columns = {name: found[:, index].reshape(ra.shape) for index, name in enumerate(PIXEL_DIMS)}
        return {dim: columns[name] for name, dim in zip(self.axes, self.dims, strict=True)}

    def _locate(self, ra: float, dec: float) -> tuple[int, int, int, int]:
        position = SkyCoord(ra, dec, unit="deg")
        rows, columns = (np.atleast_1d(self.indices[name]) for name in UNIT_DIMS)
        y_pixels, x_pixels = (np.atleast_1d(self.indices[name]) for name in ("y", "x"))
        if not (len(y_pixels) and len(x_pixels)):
            raise KeyError(f"ra = {ra}, dec = {dec}: no pixels")
        circles = self.circles[np.ix_(rows, columns)]
        usable = _has_wcs(circles)
        candidates = np.argwhere(usable)[_within(circles[usable], position, 0.0)]
        best: tuple[float, tuple[int, int, int, int]] | None = None
        for row, column in candidates.tolist():
            wcs = self._wcs(rows[row], columns[column])
            if wcs is None:
                continue
            extent = (int(y_pixels.max()) + 1, int(x_pixels.max()) + 1)
            pixel = pixel_of(wcs, position, extent)
            if pixel is None:
                continue
            x, y = _nearest(x_pixels, pixel[0]), _nearest(y_pixels, pixel[1])
            if x is None or y is None:
                continue
            inside = min(x, len(x_pixels) - 1 - x, y, len(y_pixels) - 1 - y)
            if best is None or inside > best[0]:
                best = (inside, (row, column, y, x))
        if best is None:
            raise KeyError(f"ra = {ra}, dec = {dec}: no unit covers this position")
        return best[1]

    def equals(self, other: CoordinateTransform, **_: Any) -> bool:
        """Return whether another transform gives the same positions."""
        if not isinstance(other, SkyTransform) or (self.axes, self.dims) != (other.axes, other.dims):
            return False
        same = all(np.array_equal(self.indices[name], other.indices[name]) for name in PIXEL_DIMS)
        return same and (self.headers is other.headers or self.headers.equals(other.headers))

    def select(self, indexers: Mapping[Any, Any]) -> SkyTransform | None:
        """Return the transform of an outer selection; None for pointwise selections and single pixels."""
        indices = dict(self.indices)
        for name, dim in zip(self.axes, self.dims, strict=True):
            indexer = indexers.get(dim, slice(None))
            if isinstance(indexer, xr.Variable):
                if indexer.dims not in ((), (dim,)):
                    return None
                indexer = indexer.values
            if np.ndim(indexer) > 1:
                return None
            chosen = np.atleast_1d(self.indices[name])[indexer]
            indices[name] = chosen if np.ndim(chosen) else int(chosen)
        selected = SkyTransform(self.headers, self.circles, indices)
        if not selected.axes:
            return None
        selected.coord_names = self.coord_names
        dims = {name: dim for name, dim in zip(self.axes, self.dims, strict=True) if name in selected.axes}
        selected.dims = tuple(dims[name] for name in selected.axes)
        selected.dim_size = {dims[name]: len(np.atleast_1d(indices[name])) for name in selected.axes}
        return selected


def _nearest(pixels: npt.NDArray[Any], value: float) -> int | None:
    """Return the index of the pixel that contains a coordinate, or None."""
    if not np.isfinite(value):
        return None
    index = int(np.abs(pixels - value).argmin())
    step = float(np.abs(np.diff(pixels)).min()) if len(pixels) > 1 else 1.0
    return index if abs(pixels[index] - value) <= 0.5 * step else None


class SkyIndex(CoordinateTransformIndex):
    """Index of ``ra`` and ``dec``, preserved by selections of exposures, detectors, rows and columns.

    ``dataset.sel(ra=150.1, dec=2.2, method="nearest")`` selects the pixel that contains a position, in the unit whose
    edge is farthest from it. Arrays of positions (`xarray.DataArray`) select arrays of pixels. A position that no unit
    covers is a KeyError.
    """

    transform: SkyTransform

    def isel(self, indexers: Mapping[Any, Any]) -> Index | None:
        """Return the index of a selection, or None if only computed values remain."""
        selected = self.transform.select(indexers)
        return None if selected is None else type(self)(selected)

    def sel(self, labels: dict[Any, Any], method: str | None = None, tolerance: Any = None) -> IndexSelResult:
        """Return the pixels of positions [deg, ICRS]: numbers, or arrays of the same dimensions."""
        if method != "nearest":
            raise ValueError('found positions on the sky without method="nearest"; wanted sel(..., method="nearest")')
        if set(labels) != set(self.transform.coord_names):
            raise ValueError(f"found {', '.join(map(str, labels))}; wanted both of {self.transform.coord_names}")
        if tolerance is not None:
            raise ValueError(
                "found a tolerance; wanted none: the pixel that contains a position is selected, or KeyError raised"
            )
        positions = {name: _in_degrees(label) for name, label in labels.items()}
        if all(np.ndim(label) == 0 for label in positions.values()):
            found = self.transform.reverse({name: np.asarray(label) for name, label in positions.items()})
            return IndexSelResult({dim: int(position) for dim, position in found.items()})
        return super().sel(positions, method=method)

    def join(self, other: Index, how: str = "inner") -> SkyIndex:  # noqa: ARG002
        """Raise ValueError: pixels at different positions cannot be aligned."""
        raise ValueError(_NOT_ALIGNED)

    def reindex_like(self, other: Index) -> dict[Hashable, Any]:  # noqa: ARG002
        """Raise ValueError: pixels at different positions cannot be aligned."""
        raise ValueError(_NOT_ALIGNED)

    @classmethod
    def concat(cls, indexes: Any, dim: Hashable, positions: Any = None) -> SkyIndex:  # noqa: ARG003
        """Raise ValueError: concatenated frames have separate headers."""
        raise ValueError(_NOT_ALIGNED)


_NOT_ALIGNED = (
    "found sky coordinates of different pixels; wanted data without them to combine: "
    'drop_vars(["ra", "dec"]) first, and csst.with_sky() on the result'
)


def _in_degrees(label: Any) -> Any:
    """Return a label of `sel` in degrees; quantities and angles are converted, lists become points."""
    if isinstance(label, xr.DataArray | xr.Variable):
        return label
    if isinstance(label, slice):
        raise TypeError("found a slice; wanted positions: numbers, quantities or arrays [deg]")
    values = Angle(label, u.deg).deg
    return values if np.ndim(values) == 0 else xr.Variable(("position",), values)


def sky_coordinates(dataset: xr.Dataset) -> xr.Coordinates:
    """Return lazy ``ra`` and ``dec`` of the pixels of a campaign, with their index.

    Parameters
    ----------
    dataset : xarray.Dataset
        Campaign or run, or a selection of exposures, detectors, rows and columns.

    Returns
    -------
    xarray.Coordinates
        ``ra`` and ``dec`` [deg, ICRS, 0 <= ra < 360]; NaN in units without a usable WCS.
    """
    headers = _units_first(dataset, "header")
    indices: dict[str, npt.NDArray[Any] | int] = {
        name: np.arange(dataset.sizes[name]) if name in dataset.sizes else 0 for name in UNIT_DIMS
    }
    for axis in ("y", "x"):
        if axis in dataset.sizes:
            indices[axis] = dataset[axis].values if axis in dataset.coords else np.arange(dataset.sizes[axis])
        else:
            indices[axis] = int(dataset[axis]) if axis in dataset.coords else 0
    coordinates = xr.Coordinates.from_xindex(SkyIndex(SkyTransform(headers, _circles(dataset), indices)))
    for name, text in (("ra", "right ascension"), ("dec", "declination")):
        coordinates[name].attrs.update({"units": "deg", "long_name": f"{text}, ICRS"})
    return coordinates
