"""Same kind out as in: the one adapter at the public door.

A frame comes in as NumPy, CuPy or torch, in either byte order, as floats or integers. Inside, kernels see
native float arrays of NumPy or CuPy. What goes out is the caller's kind again, on the caller's device.
Neither CuPy nor torch is imported unless the caller already has.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

Kind = Literal["numpy", "cupy", "torch"]


def kind_of(array: Any) -> Kind:
    """Return the library an array belongs to."""
    root = type(array).__module__.split(".", maxsplit=1)[0]
    if root == "torch":
        return "torch"
    return "cupy" if root == "cupy" else "numpy"


def namespace_of(array: Any) -> ModuleType:
    """Return the module, NumPy or CuPy, whose functions take this array."""
    if kind_of(array) == "cupy":
        import cupy  # noqa: PLC0415

        return cupy
    return np


@dataclass(frozen=True)
class Door:
    """How one caller's arrays are taken in and given back."""

    kind: Kind
    """The caller's library."""
    device: Any
    """The caller's torch device, or None."""
    dtype: np.dtype[Any]
    """The floating type that the caller gets back."""

    def take(self, array: Any, dtype: Any = None) -> Any:
        """Return the caller's array as native NumPy or CuPy, C-ordered; a copy only where one is needed."""
        if self.kind == "torch":
            array = array.detach()
            if array.is_cuda:
                import cupy  # noqa: PLC0415

                array = cupy.from_dlpack(array.contiguous())
            else:
                array = array.contiguous().numpy()
        xp = namespace_of(array)
        array = xp.asarray(array)
        wanted = np.dtype(dtype) if dtype is not None else array.dtype.newbyteorder("=")
        return xp.ascontiguousarray(array, dtype=wanted)

    def give(self, array: Any) -> Any:
        """Return an array of ours as the caller's kind."""
        if self.kind != "torch":
            return array
        import torch  # noqa: PLC0415

        if isinstance(array, np.ndarray):
            return torch.from_numpy(array).to(self.device)
        return torch.from_dlpack(array)


def open_door(data: Any) -> Door:
    """Return the door for a caller's frame.

    Raises
    ------
    ValueError
        If it is not a 2-D array of real numbers.
    """
    kind = kind_of(data)
    if kind == "torch":
        import torch  # noqa: PLC0415

        floating = data.dtype.is_floating_point
        dtype = (
            np.dtype(str(data.dtype).removeprefix("torch."))
            if floating and data.dtype != torch.bfloat16
            else np.dtype(np.float32)
        )
        ndim, real = data.dim(), not data.dtype.is_complex
        device = data.device
    else:
        xp = namespace_of(data)
        array = xp.asarray(data)
        floating = array.dtype.kind == "f"
        dtype = array.dtype.newbyteorder("=") if floating else np.dtype(np.float32)
        ndim, real, device = array.ndim, array.dtype.kind in "fiub", None
    if ndim != 2 or not real:
        raise ValueError(
            f"data: found {ndim}-D {getattr(data, 'dtype', type(data))}; wanted one frame (y, x) of real numbers"
        )
    return Door(kind, device, np.dtype(dtype))


def to_host(array: Any) -> np.ndarray[Any, Any]:
    """Return an array in host memory."""
    return array.get() if kind_of(array) == "cupy" else np.asarray(array)
