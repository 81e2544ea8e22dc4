"""Values at the centres of a mesh of boxes, and their interpolation to the pixels of a frame.

Interpolation is linear. Outside the outermost centres the background is extrapolated linearly, and the noise is
constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from csstdask.arrays.namespace import namespace_of


@dataclass(frozen=True)
class Mesh:
    """Background and noise at box centres.

    Attributes
    ----------
    background, noise : array (y_mesh, x_mesh), float32
        Values in the unit of the frame; NaN only if the frame has no good pixel.
    shape : (int, int)
        Shape of the frame (y, x).
    """

    background: Any
    noise: Any
    shape: tuple[int, int]

    def background_at(self, rows: slice = slice(None), columns: slice = slice(None)) -> Any:
        """Return the background of a window of pixels, float32."""
        return interpolate(self.background, self.shape, rows, columns)

    def noise_at(self, rows: slice = slice(None), columns: slice = slice(None)) -> Any:
        """Return the 1 sigma noise of a window of pixels, float32."""
        return interpolate(self.noise, self.shape, rows, columns, beyond="hold")


def mesh_shape(shape: tuple[int, int], box: int) -> tuple[int, int]:
    """Return the number of boxes along y and x, for equal boxes of about a requested size."""
    return max(1, round(shape[0] / box)), max(1, round(shape[1] / box))


def interpolate(
    mesh: Any,
    shape: tuple[int, int],
    rows: slice = slice(None),
    columns: slice = slice(None),
    *,
    beyond: Literal["continue", "hold"] = "continue",
) -> Any:
    """Interpolate a mesh linearly to pixels.

    Parameters
    ----------
    mesh : array (y_mesh, x_mesh)
        Values at box centres.
    shape : (int, int)
        Shape of the frame (y, x).
    rows, columns : slice
        Pixels of the frame to interpolate to, for work in parts.
    beyond : str
        Outside the outermost box centres: ``continue`` the slope, as for a sky, or ``hold`` the value, for quantities
        that must not become negative.

    Returns
    -------
    array (rows, columns), float32
    """
    xp = namespace_of(mesh)
    # Columns first: the mesh has few rows, and the gather along y then reads contiguous memory.
    lower, upper, weight = _weights(xp, xp.arange(*columns.indices(shape[1])), shape[1], mesh.shape[1], beyond)
    across = mesh[:, lower] * (1 - weight) + mesh[:, upper] * weight
    lower, upper, weight = _weights(xp, xp.arange(*rows.indices(shape[0])), shape[0], mesh.shape[0], beyond)
    result = across[lower]
    result *= (1 - weight)[:, None]
    above = across[upper]
    above *= weight[:, None]
    result += above
    return result


def _weights(xp: Any, pixel: Any, length: int, boxes: int, beyond: str) -> tuple[Any, Any, Any]:
    if boxes == 1:
        zero = xp.zeros(pixel.shape, dtype=np.int64)
        return zero, zero, zero.astype(np.float32)
    position = (pixel + 0.5) * (boxes / length) - 0.5
    lower = xp.clip(xp.floor(position).astype(np.int64), 0, boxes - 2)
    weight = position - lower
    if beyond == "hold":
        weight = xp.clip(weight, 0, 1)
    return lower, lower + 1, weight.astype(np.float32)
