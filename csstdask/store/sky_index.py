"""Sky coordinates of a campaign's pixels: an index for xarray that computes them on access.

``ra`` and ``dec`` have a value for each pixel of each unit, 38 GiB for one exposure of the CSST's main camera. Here
they are computed from the headers, for the pixels that are read. A position is looked up through the footprints of the
units and the WCS of those near it.
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

KEPT_WCS = 256
"""WCS that are kept after use: parsing a header takes a millisecond."""


@functools.lru_cache(maxsize=KEPT_WCS)
def wcs_of(header: str) -> WCS | None:
    """Return the celestial WCS of a header given as text; None if it has none that can be used."""
    with suppress_warnings():
        return celestial_wcs(Header.fromstring(header, sep="\n")) if header else None


def units_near(dataset: xr.Dataset, position: SkyCoord, radius: float) -> list[tuple[int, int]]:
    """Return the units that may come within a radius of a position, by their footprints.

    Parameters
    ----------
    dataset : xarray.Dataset
        A campaign, with ``present``, and the circles around its units where they are recorded.
    position : SkyCoord
        One position, in any frame.
    radius : float
        [deg]

    Returns
    -------
    list of (int, int)
        Indices (exposure, detector) of present units in the order of the dataset. Units whose footprint is not known
        are among them; those without a usable WCS are not.
    """
    present = _over_units(dataset, "present").astype(bool)
    circles = _circles(dataset)
    rows, columns = np.nonzero(present & _has_wcs(circles))
    near = _within(circles[rows, columns], position, radius)
    return [(int(row), int(column)) for row, column in zip(rows[near], columns[near], strict=True)]


def _circles(dataset: xr.Dataset) -> Float:
    """Return centre and diameter of each unit (exposure, detector, 3) [deg]; NaN where they are not recorded."""
    if "s_fov" not in dataset:
        return np.full((*_units_first(dataset, "header").shape, 3), np.nan)
    return np.stack([_over_units(dataset, name).astype(np.float64) for name in ("s_ra", "s_dec", "s_fov")], axis=-1)


def _has_wcs(circles: Float) -> npt.NDArray[np.bool_]:
    return np.asarray(circles[..., 2] != 0)


def _units_first(dataset: xr.Dataset, name: str) -> xr.Variable:
    """Return a variable over (exposure, detector, ...), also where one of both has been selected."""
    values = dataset[name].variable
    missing = [dim for dim in UNIT_DIMS if dim not in values.dims]
    return values.set_dims([*missing, *values.dims]).transpose(*UNIT_DIMS, ...)


def _over_units(dataset: xr.Dataset, name: str) -> npt.NDArray[Any]:
    return np.asarray(_units_first(dataset, name).values)


def _within(circles: Float, position: SkyCoord, radius: float) -> npt.NDArray[np.bool_]:
    """Return which circles (unit, 3) come within a radius [deg] of a position; those that are not known do."""
    where = position.icrs
    distance = angle_between(
        unit_vectors(circles[..., 0], circles[..., 1]), unit_vectors(float(where.ra.deg), float(where.dec.deg))
    )
    return ~(np.degrees(distance) > circles[..., 2] / 2 + radius)


class SkyTransform(CoordinateTransform):
    """Right ascension and declination of pixels as a function of (exposure, detector, y, x).

    Parameters
    ----------
    headers : xarray.Variable (exposure, detector)
        FITS headers of the units, a card a line; lazy ones are read when a unit is looked at.
    circles : float array (exposure, detector, 3)
        The circles around them: centre, ICRS, and diameter [deg]; NaN where unknown, 0 where there is no usable WCS.
    places : mapping
        For each of (exposure, detector, y, x) the indices along it: an array, or a number for one that is selected.
        Of y and x these are pixels of the whole frame.
    """

    def __init__(self, headers: xr.Variable, circles: Float, places: Mapping[str, npt.NDArray[Any] | int]) -> None:
        self.headers, self.circles = headers, circles
        self.places = dict(places)
        self.axes = tuple(name for name in PIXEL_DIMS if np.ndim(self.places[name]) == 1)
        super().__init__(("ra", "dec"), {name: len(np.atleast_1d(self.places[name])) for name in self.axes})

    def forward(self, dim_positions: dict[str, Any]) -> dict[Hashable, Any]:
        """Return ra and dec [deg, ICRS] of grid positions; NaN in units without a usable WCS."""
        positions = dict(zip(self.axes, (np.asarray(dim_positions[dim]) for dim in self.dims), strict=True))
        shape = np.broadcast_shapes(*(value.shape for value in positions.values()))
        exposure, detector, y, x = (self._place(name, positions, shape) for name in PIXEL_DIMS)
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

    def _place(self, name: str, positions: Mapping[str, npt.NDArray[Any]], shape: tuple[int, ...]) -> Float:
        """Return where along one of the original axes grid positions lie; between grid points linearly."""
        places = self.places[name]
        if name not in positions:
            return np.broadcast_to(np.asarray(places, dtype=np.float64), shape)
        found = np.interp(positions[name], np.arange(len(np.atleast_1d(places))), np.atleast_1d(places))
        return np.broadcast_to(found, shape)

    def reverse(self, coord_labels: dict[Hashable, Any]) -> dict[str, Any]:
        """Return the grid positions of the pixels that hold sky positions [deg, ICRS].

        Of several units that cover a position, the one whose edge is farthest from it.

        Raises
        ------
        KeyError
            If no unit here covers a position.
        """
        first, second = self.coord_names
        ra, dec = np.broadcast_arrays(np.asarray(coord_labels[first], float), np.asarray(coord_labels[second], float))
        found = np.array([self._locate(*pair) for pair in zip(ra.ravel(), dec.ravel(), strict=True)], dtype=np.int64)
        columns = {name: found[:, index].reshape(ra.shape) for index, name in enumerate(PIXEL_DIMS)}
        return {dim: columns[name] for name, dim in zip(self.axes, self.dims, strict=True)}

    def _locate(self, ra: float, dec: float) -> tuple[int, int, int, int]:
        position = SkyCoord(ra, dec, unit="deg")
        rows, columns = (np.atleast_1d(self.places[name]) for name in UNIT_DIMS)
        y_pixels, x_pixels = (np.atleast_1d(self.places[name]) for name in ("y", "x"))
        if not (len(y_pixels) and len(x_pixels)):
            raise KeyError(f"ra = {ra}, dec = {dec}: no pixels here")
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
            raise KeyError(f"ra = {ra}, dec = {dec}: no unit here covers this position")
        return best[1]

    def equals(self, other: CoordinateTransform, **_: Any) -> bool:
        """Return whether another transform gives the same positions for the same pixels."""
        if not isinstance(other, SkyTransform) or (self.axes, self.dims) != (other.axes, other.dims):
            return False
        same = all(np.array_equal(self.places[name], other.places[name]) for name in PIXEL_DIMS)
        return same and (self.headers is other.headers or self.headers.equals(other.headers))

    def select(self, indexers: Mapping[Any, Any]) -> SkyTransform | None:
        """Return the transform of an outer selection; None for one that is point by point, or of a single pixel."""
        places = dict(self.places)
        for name, dim in zip(self.axes, self.dims, strict=True):
            indexer = indexers.get(dim, slice(None))
            if isinstance(indexer, xr.Variable):
                if indexer.dims not in ((), (dim,)):
                    return None
                indexer = indexer.values
            if np.ndim(indexer) > 1:
                return None
            chosen = np.atleast_1d(self.places[name])[indexer]
            places[name] = chosen if np.ndim(chosen) else int(chosen)
        selected = SkyTransform(self.headers, self.circles, places)
        if not selected.axes:
            return None
        selected.coord_names = self.coord_names
        dims = {name: dim for name, dim in zip(self.axes, self.dims, strict=True) if name in selected.axes}
        selected.dims = tuple(dims[name] for name in selected.axes)
        selected.dim_size = {dims[name]: len(np.atleast_1d(places[name])) for name in selected.axes}
        return selected


def _nearest(pixels: npt.NDArray[Any], value: float) -> int | None:
    """Return the index of the pixel that holds a coordinate; None if none does."""
    if not np.isfinite(value):
        return None
    index = int(np.abs(pixels - value).argmin())
    step = float(np.abs(np.diff(pixels)).min()) if len(pixels) > 1 else 1.0
    return index if abs(pixels[index] - value) <= 0.5 * step else None


class SkyIndex(CoordinateTransformIndex):
    """The index of ``ra`` and ``dec``: kept by selections of exposures, detectors, rows and columns.

    ``dataset.sel(ra=150.1, dec=2.2, method="nearest")`` is the pixel that holds a position, in the unit whose edge is
    farthest from it; arrays of positions as `xarray.DataArray` give as many pixels. KeyError if no unit covers one.
    """

    transform: SkyTransform

    def isel(self, indexers: Mapping[Any, Any]) -> Index | None:
        """Return the index of a selection; None where only computed values are left."""
        selected = self.transform.select(indexers)
        return None if selected is None else type(self)(selected)

    def sel(self, labels: dict[Any, Any], method: str | None = None, tolerance: Any = None) -> IndexSelResult:
        """Return the pixels of positions [deg, ICRS]: numbers, or arrays of the same dimensions."""
        if method != "nearest":
            raise ValueError('found positions on the sky without method="nearest"; wanted sel(..., method="nearest")')
        if set(labels) != set(self.transform.coord_names):
            raise ValueError(f"found {', '.join(map(str, labels))}; wanted both of {self.transform.coord_names}")
        if tolerance is not None:
            raise ValueError("found a tolerance; wanted none: the pixel that holds a position is found, or KeyError")
        places = {name: _in_degrees(label) for name, label in labels.items()}
        if all(np.ndim(label) == 0 for label in places.values()):
            found = self.transform.reverse({name: np.asarray(label) for name, label in places.items()})
            return IndexSelResult({dim: int(position) for dim, position in found.items()})
        return super().sel(places, method=method)

    def join(self, other: Index, how: str = "inner") -> SkyIndex:  # noqa: ARG002
        """Raise: pixels at other positions cannot be aligned."""
        raise ValueError(_NOT_ALIGNED)

    def reindex_like(self, other: Index) -> dict[Hashable, Any]:  # noqa: ARG002
        """Raise: pixels at other positions cannot be aligned."""
        raise ValueError(_NOT_ALIGNED)

    @classmethod
    def concat(cls, indexes: Any, dim: Hashable, positions: Any = None) -> SkyIndex:  # noqa: ARG003
        """Raise: the frames of a concatenation have separate headers."""
        raise ValueError(_NOT_ALIGNED)


_NOT_ALIGNED = (
    "found sky coordinates of different pixels; wanted data without them to combine: "
    'drop_vars(["ra", "dec"]) first, and csst.with_sky() on the result'
)


def _in_degrees(label: Any) -> Any:
    """Return a label of sel in degrees: numbers are, quantities and angles are converted, lists become points."""
    if isinstance(label, xr.DataArray | xr.Variable):
        return label
    if isinstance(label, slice):
        raise TypeError("found a slice; wanted positions: numbers, quantities or arrays [deg]")
    values = Angle(label, u.deg).deg
    return values if np.ndim(values) == 0 else xr.Variable(("position",), values)


def sky_coordinates(dataset: xr.Dataset) -> xr.Coordinates:
    """Return lazy ``ra`` and ``dec`` over a campaign's pixels, with their index.

    Parameters
    ----------
    dataset : xarray.Dataset
        A campaign or a run, or a selection of exposures, detectors, rows and columns from one.

    Returns
    -------
    xarray.Coordinates
        ``ra`` and ``dec`` [deg, ICRS, 0 <= ra < 360]; NaN in units without a usable WCS.
    """
    headers = _units_first(dataset, "header")
    places: dict[str, npt.NDArray[Any] | int] = {
        name: np.arange(dataset.sizes[name]) if name in dataset.sizes else 0 for name in UNIT_DIMS
    }
    for axis in ("y", "x"):
        if axis in dataset.sizes:
            places[axis] = dataset[axis].values if axis in dataset.coords else np.arange(dataset.sizes[axis])
        else:
            places[axis] = int(dataset[axis]) if axis in dataset.coords else 0
    coordinates = xr.Coordinates.from_xindex(SkyIndex(SkyTransform(headers, _circles(dataset), places)))
    for name, text in (("ra", "right ascension"), ("dec", "declination")):
        coordinates[name].attrs.update({"units": "deg", "long_name": f"{text}, ICRS"})
    return coordinates
