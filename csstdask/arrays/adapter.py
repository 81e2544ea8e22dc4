"""Conversion of the array arguments of the public functions (`detect`, `inpaint`, `clean`, `reconstruct`).

`adapt` unpacks the caller's data, errors and mask (`csstdask.arrays.containers`), joins all masks, converts units and
returns plain arrays for the kernels, with the conversion back to the caller's library (`csstdask.arrays.namespace`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.containers import ContainerContent, read_container
from csstdask.arrays.namespace import ArrayAdapter, array_adapter, namespace_of, to_host

ELECTRON = "electron"


@dataclass(frozen=True)
class InputArrays:
    """A caller's arrays as the kernels need them: NumPy, or CuPy if the data are on a GPU."""

    adapter: ArrayAdapter
    """Conversion back to the caller's library."""
    data: Any
    """Native floats, C-ordered. Never write to it: it may share memory with the caller's array."""
    error: Any
    """float32, 1 sigma in the unit of `data`; None if unknown."""
    ignore: Any
    """A new bool array: pixels that any argument masks, or that are not finite."""


def adapt(data: Any, error: Any = None, mask: Any = None, *, stamps: bool = False) -> InputArrays:
    """Convert a caller's arrays to those of the kernels.

    Parameters
    ----------
    data : array-like (y, x), or (n, y, x) for stamps
        Frames without a unit are in electrons; other units are converted if a factor suffices. Stamps may have any
        unit.
    error : array-like, optional
        1 sigma, in the unit of `data` or a convertible one, or an astropy uncertainty. By default the uncertainty of
        `data`, if it has one. Its masked elements are ignored.
    mask : array-like, optional
        True = ignore: booleans, or integers 0 and 1. Joined with the masks of `data` and `error`.
    stamps : bool
        Whether `data` are stamps.

    Raises
    ------
    ValueError
        If shapes differ, `data` has a wrong number of dimensions or holds no real numbers, or `mask` does not hold
        booleans.
    TypeError
        If a unit cannot be converted, or a container carries something that would be lost.
    """
    name = "stamps" if stamps else "data"
    content = read_container(data, name)
    if not stamps:
        content = content.to(ELECTRON, name)
    adapter = array_adapter(content.values, stamps=stamps)
    frame = adapter.to_internal(content.values)
    frame = frame if frame.dtype == adapter.dtype else frame.astype(adapter.dtype)
    ignore = ~namespace_of(frame).isfinite(frame)
    if content.mask is not None:
        ignore |= convert_mask(adapter, content.mask, frame.shape, f"{name}.mask")
    if mask is not None:
        ignore |= convert_mask(adapter, mask, frame.shape)
    sigma = None
    if error is not None:
        sigma, unknown = _take_error(adapter, error, frame.shape, content, stamps=stamps)
        if unknown is not None:
            ignore |= unknown
    elif content.sigma is not None:
        sigma = _in_shape(adapter.to_internal(content.sigma, np.float32), frame.shape, f"{name}.uncertainty")
    return InputArrays(adapter, frame, sigma, ignore)


def convert_mask(adapter: ArrayAdapter, mask: Any, shape: tuple[int, ...], name: str = "mask") -> Any:
    """Return a mask, given as booleans or integers 0 and 1, as bool; its own masked elements count as True.

    Raises
    ------
    ValueError
        If it has another shape, or holds other values, such as probabilities or flags.
    TypeError
        If it has a unit.
    """
    if mask is np.ma.nomask or mask is False:
        return namespace_of_adapter(adapter).zeros(shape, dtype=bool)
    content = read_container(mask, name)
    if content.unit is not None and str(content.unit):
        raise TypeError(f"{name}: found an array in {content.unit}; wanted booleans without a unit")
    taken = adapter.to_internal(content.values)
    if taken.dtype.kind in "iu" and bool(((taken != 0) & (taken != 1)).any()):
        raise ValueError(f"{name}: found integers other than 0 and 1; wanted booleans (of flags: (flags & bits) != 0)")
    if taken.dtype.kind not in "biu":
        raise ValueError(
            f"{name}: found {taken.dtype} values; wanted booleans (of probabilities: probability >= threshold)"
        )
    taken = _in_shape(taken.astype(bool), shape, name)
    return taken if content.mask is None else taken | convert_mask(adapter, content.mask, shape, f"{name}.mask")


def convert_column(values: Any, name: str, unit: str | None = None) -> npt.NDArray[np.float64]:
    """Return a column of numbers on the host; masked elements are NaN.

    Parameters
    ----------
    values : array-like (n,)
        Numbers, with or without a unit or a mask.
    name : str
        Name of the argument, for error messages.
    unit : str, optional
        Unit to convert to; plain arrays are assumed to be in it. None: any unit is dropped.

    Raises
    ------
    TypeError
        If its unit cannot be converted.
    """
    content = read_container(values, name)
    if unit is not None:
        content = content.to(unit, name)
    plain = content.values
    column = np.array(plain.detach().cpu().numpy() if hasattr(plain, "detach") else to_host(plain), dtype=np.float64)
    if content.mask is not None:
        column[np.asarray(content.mask, dtype=bool)] = np.nan
    return column


def namespace_of_adapter(adapter: ArrayAdapter) -> Any:
    """Return the module, NumPy or CuPy, that kernels use for a caller's arrays."""
    if adapter.on_gpu:
        import cupy  # noqa: PLC0415

        return cupy
    return np


def _take_error(
    adapter: ArrayAdapter, error: Any, shape: tuple[int, ...], data: ContainerContent, *, stamps: bool
) -> tuple[Any, Any]:
    """Return errors as float32, and their mask, if any."""
    content = read_container(error, "error")
    dtype = str(getattr(content.values, "dtype", ""))
    if dtype.endswith("bool"):
        raise ValueError("error: found booleans; wanted 1 sigma [e-] (the mask is the next argument: mask=...)")
    if "complex" in dtype:
        raise ValueError(f"error: found {dtype} values; wanted real numbers")
    unit = data.unit if stamps else ELECTRON
    if unit is None and content.unit is not None:
        raise TypeError(f"error: found the unit {content.unit}, but stamps without one; wanted both in one unit")
    if unit is not None and content.unit is None and data.unit is not None:
        content = replace(content, unit=data.unit)  # a plain array is in the unit of the data
    sigma = adapter.to_internal(content.values if unit is None else content.to(unit, "error").values, np.float32)
    unknown = None if content.mask is None else convert_mask(adapter, content.mask, shape, "error.mask")
    return _in_shape(sigma, shape, "error"), unknown


def _in_shape(array: Any, shape: tuple[int, ...], name: str) -> Any:
    if array.shape != shape:
        raise ValueError(f"{name}: found shape {array.shape}; wanted that of data, {shape}")
    return array
