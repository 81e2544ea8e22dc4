"""Masks, units and uncertainties of array containers.

NumPy drops all three when it converts a masked array, an astropy ``Quantity``, ``CCDData`` or an xarray ``DataArray``
to a plain array. `read_container` returns them instead. Containers are recognised by the module and name of
their class, so neither astropy's ``nddata`` nor xarray is imported unless the caller has done so.

=============================================  =====================================================================
container                                      what is read
=============================================  =====================================================================
``numpy.ma.MaskedArray``                       mask
``astropy.units.Quantity``, table columns      unit; the mask of a ``MaskedColumn``
``astropy.utils.masked.Masked``                mask, and the unit of a masked quantity
``astropy.nddata``: ``NDData``, ``CCDData``    mask, unit, and uncertainty (standard deviation, variance or its inverse)
``astropy.nddata`` uncertainties               as `error`: 1 sigma, and the unit
``xarray.DataArray``, ``pandas.DataFrame``     ``attrs["units"]``; dimensions called y and x must be in that order
lists of any of these                          each of them, stacked
=============================================  =====================================================================

Anything else that has a unit (pint, unyt) is refused, and so are file objects such as ``ImageHDU``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from csstdask.arrays.namespace import kind_of

#: What to do about a unit that no factor converts.
_CURES = {
    "adu": "multiply by the gain in electron / adu",
    "ct": "multiply by the gain in electron / ct",
    "": "state the unit, or pass the plain array if these are {wanted}: array.value",
}


@dataclass(frozen=True)
class ContainerContent:
    """Values, mask, uncertainty and unit of a container."""

    values: Any
    """The plain array: NumPy, CuPy or torch."""
    mask: Any = None
    """Elements that the container marks as invalid: anything that `take_mask` accepts; None if it has no mask."""
    sigma: Any = None
    """1 sigma, in `unit`; None if unknown."""
    unit: Any = None
    """An astropy unit, or None if the container states none."""

    def to(self, unit: str | Any, name: str) -> ContainerContent:
        """Return the content in a unit; content without a unit is assumed to be in that unit.

        Raises
        ------
        TypeError
            If no factor converts the unit.
        """
        if self.unit is None:
            return self
        scale = conversion_factor(self.unit, unit, name)
        if scale == 1:
            return self
        values, sigma = (None if part is None else _scaled(part, scale) for part in (self.values, self.sigma))
        return replace(self, values=values, sigma=sigma)


def read_container(array: Any, name: str) -> ContainerContent:
    """Read a container, or a plain array.

    Parameters
    ----------
    array : array-like
        Any of the containers that the module lists.
    name : str
        Name of the argument, for error messages.

    Raises
    ------
    TypeError
        If something would be lost; the message says what to pass instead.
    """
    if kind_of(array) in ("torch", "cupy"):
        return ContainerContent(array)
    if isinstance(array, list | tuple):
        return _stacked(array, name) if any(map(_carries, array)) else ContainerContent(_plain(array, name))
    names = {(kind.__module__, kind.__name__) for kind in type(array).__mro__}
    if isinstance(array, np.ma.MaskedArray):
        unit = _unit_of(getattr(array, "unit", None), name)
        mask = None if array.mask is np.ma.nomask else np.ma.getmaskarray(array)
        return ContainerContent(np.ma.getdata(array, subok=False), mask, unit=unit)
    if _is(names, "astropy.utils.masked", "Masked"):
        inner = read_container(array.unmasked, name)
        return replace(inner, mask=np.asarray(array.mask))
    if _is(names, "astropy.nddata", "NDDataBase"):
        return _nddata(array, name)
    if _is(names, "astropy.nddata", "NDUncertainty"):
        sigma, unit = _uncertainty(array, name)
        return ContainerContent(sigma, unit=unit)
    if isinstance(array, np.ndarray):  # a Quantity or a table column among them
        if _is(names, "unyt", "unyt_array"):
            _refuse(name)
        return ContainerContent(array.view(np.ndarray), unit=_unit_of(getattr(array, "unit", None), name))
    if _is(names, "xarray", "DataArray") or _is(names, "pandas", "NDFrame"):
        return _labelled(array, name)
    if any(hasattr(array, one) for one in ("magnitude", "units", "unit")):
        _refuse(name)
    return ContainerContent(_plain(array, name))


def conversion_factor(unit: Any, wanted: str | Any, name: str) -> float:
    """Return the factor from one unit to another; a TypeError says what to do if there is none."""
    from astropy import units as u  # noqa: PLC0415  imported by any caller with units

    target = u.Unit(wanted)
    try:
        return float(unit.to(target)) if isinstance(unit, u.UnitBase) else _no_factor(unit)
    except (u.UnitConversionError, TypeError):
        of_rate = isinstance(unit, u.UnitBase) and (unit * u.s).is_equivalent(target)
        cure = "multiply by the exposure time" if of_rate else _CURES.get(str(unit), "convert it first")
        stated = f"the unit {unit}" if str(unit) else "a dimensionless quantity"
        cure = cure.format(wanted=target.to_string())
        raise TypeError(f"{name}: found {stated}; wanted {target.to_string()} ({cure})") from None


def _no_factor(unit: Any) -> float:
    raise TypeError(f"{unit} is logarithmic")


def _is(names: set[tuple[str, str]], package: str, class_name: str) -> bool:
    return any(module.split(".")[: len(parts)] == parts and one == class_name
               for parts in [package.split(".")] for module, one in names)  # fmt: skip


def _carries(array: Any) -> bool:
    """Return whether an element of a list is more than numbers."""
    if type(array) in (np.ndarray, float, int, bool) or isinstance(array, np.generic):
        return False
    return any(map(_carries, array)) if isinstance(array, list | tuple) else not isinstance(array, float | int)


def _plain(array: Any, name: str) -> Any:
    """Return an array-like as NumPy."""
    found = np.asarray(array)
    if found.dtype == object:
        cure = "hdu.data" if hasattr(array, "header") else "an array of numbers"
        raise TypeError(f"{name}: found {type(array).__name__}; wanted {cure}")
    return found


def _refuse(name: str) -> None:
    raise TypeError(
        f"{name}: found a unit of a package other than astropy, which would be lost; wanted a plain array,"
        " or an astropy Quantity"
    )


def _unit_of(stated: Any, name: str) -> Any:
    """Return a stated unit, possibly text as in FITS headers, as an astropy unit; None if none is stated."""
    if stated is None:
        return None
    from astropy import units as u  # noqa: PLC0415  imported by any caller with units

    if not isinstance(stated, str):
        return stated
    from csstdask.instrument.physical_units import parse_units  # noqa: PLC0415

    if not stated.strip():
        return None
    try:
        return u.Unit(parse_units(stated) or stated)
    except ValueError:
        raise TypeError(f"{name}: found units {stated!r}, which are not understood; wanted 'electron'") from None


def _labelled(array: Any, name: str) -> ContainerContent:
    """Read an array of xarray or pandas."""
    dims = [one for one in getattr(array, "dims", ()) if one in ("y", "x")]
    if dims == ["x", "y"]:
        raise TypeError(f"{name}: found dimensions {array.dims}; wanted y before x: array.transpose(..., 'y', 'x')")
    inner = getattr(array, "data", None)  # the array inside a DataArray, which may have units too
    content = (
        read_container(inner, name)
        if kind_of(inner) == "cupy" or _carries_unit(inner)
        else ContainerContent(_plain(array, name))
    )
    stated = getattr(array, "attrs", {}).get("units")
    return content if content.unit is not None else replace(content, unit=_unit_of(stated, name))


def _carries_unit(array: Any) -> bool:
    return any(hasattr(array, one) for one in ("unit", "units", "unmasked"))


def _nddata(array: Any, name: str) -> ContainerContent:
    """Read an NDData: its uncertainty in the unit of its values."""
    inner = read_container(array.data, name)
    unit = array.unit if array.unit is not None else inner.unit
    sigma = None
    if array.uncertainty is not None and array.uncertainty.array is not None:
        sigma, of_sigma = _uncertainty(array.uncertainty, f"{name}.uncertainty")
        if of_sigma is not None and unit is not None:
            sigma = _scaled(sigma, conversion_factor(of_sigma, unit, f"{name}.uncertainty"))
    mask = inner.mask if array.mask is None else np.asarray(array.mask)
    if sigma is not None and np.isinf(sigma).any():  # a weight of 0: not usable
        mask = np.isinf(sigma) if mask is None else np.asarray(mask, dtype=bool) | np.isinf(sigma)
    if mask is not None and mask.shape != np.shape(inner.values):
        mask = np.broadcast_to(mask, np.shape(inner.values))
    return ContainerContent(inner.values, mask, sigma, unit)


def _uncertainty(uncertainty: Any, name: str) -> tuple[Any, Any]:
    """Return 1 sigma and its unit, of an astropy uncertainty; inf where the weight is 0."""
    kind = getattr(uncertainty, "uncertainty_type", None)
    values, unit = np.asarray(uncertainty.array), uncertainty.unit
    power = {"std": 1.0, "var": 0.5, "ivar": -0.5}.get(str(kind))
    if power is None:
        raise TypeError(
            f"{name}: found an uncertainty of kind {kind}; wanted StdDevUncertainty, VarianceUncertainty or"
            " InverseVariance"
        )
    if power != 1:
        values = values if values.dtype.kind == "f" else values.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.sqrt(values) if power > 0 else 1 / np.sqrt(values)
    return values, None if unit is None else unit**power


def _stacked(arrays: Any, name: str) -> ContainerContent:
    """Read a list of containers and stack them in the unit of the first."""
    parts = [read_container(one, f"{name}[{index}]") for index, one in enumerate(arrays)]
    unit = parts[0].unit
    if any((part.unit is None) != (unit is None) for part in parts):
        raise TypeError(f"{name}: found elements with and without a unit; wanted all in one unit")
    if unit is not None:
        parts = [part.to(unit, f"{name}[{index}]") for index, part in enumerate(parts)]
    values = np.stack([_on_host(part.values) for part in parts])
    mask = sigma = None
    if any(part.mask is not None for part in parts):
        mask = np.stack(
            [np.zeros(np.shape(part.values), bool) if part.mask is None else np.asarray(part.mask) for part in parts]
        )
    if all(part.sigma is not None for part in parts):
        sigma = np.stack([np.asarray(part.sigma) for part in parts])
    return ContainerContent(values, mask, sigma, unit)


def _on_host(array: Any) -> Any:
    if kind_of(array) == "torch":
        return array.detach().cpu().float().numpy() if array.is_floating_point() else array.detach().cpu().numpy()
    return array.get() if kind_of(array) == "cupy" else array


def _scaled(values: Any, scale: float) -> Any:
    """Return an array times a factor; floats keep their type."""
    if scale == 1:
        return values
    dtype = values.dtype
    return values * (dtype.type(scale) if dtype.kind == "f" and dtype.itemsize >= 4 else np.float64(scale))
