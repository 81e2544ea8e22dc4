"""Conversion between the caller's array library and that of the kernels: NumPy, CuPy and torch.

Callers pass NumPy, CuPy or torch arrays, in either byte order, as floats or integers. Kernels work on native float
arrays of NumPy or CuPy. Results are returned in the caller's library and on the caller's device. Neither CuPy nor torch
is imported unless the caller has done so. Containers with masks and units are unpacked before
(`csstdask.arrays.containers`).
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
    """Return the module, NumPy or CuPy, whose functions accept this array."""
    if kind_of(array) == "cupy":
        import cupy  # noqa: PLC0415

        return cupy
    return np


@dataclass(frozen=True)
class ArrayAdapter:
    """Conversion of one caller's arrays to those of the kernels, and back."""

    kind: Kind
    """The caller's library."""
    device: Any
    """The caller's torch device, or None."""
    dtype: np.dtype[Any]
    """The floating type of results."""
    on_gpu: bool = False
    """Whether the frame is on a GPU; the work is done where the frame is."""

    def to_internal(self, array: Any, dtype: Any = None) -> Any:
        """Return one of the caller's arrays as native NumPy or CuPy, C-ordered, copied only if needed.

        A mask or error may belong to another library than the frame; it is moved to the frame's device.
        """
        if kind_of(array) == "torch":
            array = _from_torch(array)
        if self.on_gpu:
            import cupy as xp  # noqa: PLC0415
        else:
            xp, array = np, to_host(array)
        array = xp.asarray(array)
        wanted = np.dtype(dtype) if dtype is not None else array.dtype.newbyteorder("=")
        return xp.ascontiguousarray(array, dtype=wanted)

    def to_caller(self, array: Any) -> Any:
        """Return a kernel's array in the caller's library."""
        if self.kind != "torch":
            return array
        import torch  # noqa: PLC0415

        if isinstance(array, np.ndarray):
            return torch.from_numpy(array).to(self.device)
        return torch.from_dlpack(array)


def array_adapter(data: Any, *, stamps: bool = False) -> ArrayAdapter:
    """Return the adapter for a caller's frame, or for stamps (n, y, x).

    Raises
    ------
    ValueError
        If it is not a 2-D array of real numbers, or for stamps a 3-D one.
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
        device, on_gpu = data.device, data.is_cuda
    else:
        xp = namespace_of(data)
        array = xp.asarray(data)
        floating = array.dtype.kind == "f"
        dtype = array.dtype.newbyteorder("=") if floating else np.dtype(np.float32)
        ndim, real, device, on_gpu = array.ndim, array.dtype.kind in "fiub", None, kind == "cupy"
    if ndim != (3 if stamps else 2) or not real:
        wanted = "stamps (n, y, x)" if stamps else "one frame (y, x)"
        raise ValueError(f"data: found {ndim}-D {getattr(data, 'dtype', type(data))}; wanted {wanted} of real numbers")
    return ArrayAdapter(kind, device, np.dtype(dtype), on_gpu)


def _from_torch(tensor: Any) -> Any:
    """Return a tensor as NumPy or CuPy, without a copy if possible."""
    import torch  # noqa: PLC0415

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type
        tensor = tensor.float()
    if tensor.is_cuda:
        import cupy  # noqa: PLC0415

        if tensor.dtype == torch.bool:  # DLPack carries no bool everywhere
            return cupy.from_dlpack(tensor.contiguous().view(torch.uint8)).astype(bool)
        return cupy.from_dlpack(tensor.contiguous())
    return tensor.contiguous().numpy()


def to_host(array: Any) -> np.ndarray[Any, Any]:
    """Return an array in host memory."""
    return array.get() if kind_of(array) == "cupy" else np.asarray(array)
