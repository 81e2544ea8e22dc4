"""The arguments of `detect`, `inpaint`, `clean` and `reconstruct`: one way in for every kind of array.

`adapt` takes the caller's data, errors and mask apart (`csstdask.arrays.containers`), joins all masks, converts units,
and returns plain arrays for the kernels, with the way back to the caller's kind (`csstdask.arrays.namespace`).
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
    """What a caller has given, as kernels take it: NumPy, or CuPy where the data is on a GPU."""

    adapter: ArrayAdapter
    """The way back to the caller's kind of array."""
    data: Any
    """Native floats, C-ordered. It may share memory with the caller's array: never write to it."""
    error: Any
    """float32, 1 sigma in the unit of `data`; None if unknown."""
    ignore: Any
    """A new bool array: masked by any of the arguments, or not finite."""


def adapt(data: Any, error: Any = None, mask: Any = None, *, stamps: bool = False) -> InputArrays:
    """Take a caller's arrays.

    Parameters
    ----------
    data : array-like (y, x), or (n, y, x) for stamps
        Plain arrays, and frames without a unit, are in electrons; other units are converted where a factor does it.
        Stamps may have any unit.
    error : array-like, optional
        1 sigma, in the unit of `data` or one that converts to it; or an astropy uncertainty. By default the
        uncertainty of `data`, if it has one. Elements masked in it are ignored.
    mask : array-like, optional
        True = ignore: booleans, or integers 0 and 1. It is joined to the masks of `data` and `error`.
    stamps : bool
        Whether `data` are stamps.

    Raises
    ------
    ValueError
        If shapes differ, `data` has another number of dimensions or holds no real numbers, or `mask` holds anything
        else than booleans.
    TypeError
        If a unit does not convert, or a container carries something that would be lost.
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
    """Return a mask as bool: booleans, or integers 0 and 1. Elements that are masked themselves count as True.

    Raises
    ------
    ValueError
        If it has another shape, or holds anything else, such as probabilities or flags.
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
        Perhaps with a unit or a mask.
    name : str
        Of the argument, for messages.
    unit : str, optional
        Which is wanted, and which plain arrays are in. None: any unit is dropped.

    Raises
    ------
    TypeError
        If its unit does not convert.
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
    """Return errors as float32, and where they are masked (None: nowhere)."""
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
