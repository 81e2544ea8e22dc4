"""A frame prepared for detection: nothing missing, its sky known, the noise of every pixel known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from csstdask.arrays.background import estimate_background
from csstdask.arrays.frame import frame_variance
from csstdask.arrays.median import fill_masked
from csstdask.arrays.mesh import Mesh, mesh_shape
from csstdask.arrays.namespace import namespace_of

#: Wanted size of a box of the background mesh [pixel].
BOX = 128
#: Of a frame, so many are worked on at once where few pixels need it.
_ROWS = 256


@dataclass(frozen=True)
class PreparedFrame:
    """A frame as detection sees it."""

    data: Any
    """float32 (y, x) [e-]; ignored pixels hold the median of their neighbours."""
    mesh: Mesh
    """Background and noise [e-]."""
    error: Any
    """float32 (y, x): 1 sigma of each pixel [e-]."""
    ignore: Any
    """bool (y, x)"""
    excess: float = 1.0
    """By which factor significance is lowered, because noise is correlated (`csstdask.arrays.correlation`)."""


def prepare_frame(frame: Any, error: Any, ignore: Any, *, box: int = BOX, mesh: Mesh | None = None) -> PreparedFrame:
    """Prepare a frame.

    Ignored pixels are filled from their neighbours, whatever the method does with masks: L.A.Cosmic would grow
    a mask by a pixel and miss every cosmic ray beside a bad column, a network would see a hole
    where there is none.

    Parameters
    ----------
    frame : float array (y, x)
        [e-], sky included.
    error : float32 array (y, x) or None
        1 sigma [e-]; where it is unknown (None, not finite or not positive) it is the sky's plus Poisson noise.
    ignore : bool array (y, x)
        Pixels that take no part; some pixel must.
    box : int
        Of the background mesh [pixel].
    mesh : Mesh, optional
        Background of the frame [e-], if it has been measured; used if its boxes are those that are wanted.
    """
    xp = namespace_of(frame)
    frame = frame.astype(np.float32, copy=False)
    if mesh is None or tuple(mesh.background.shape) != mesh_shape(frame.shape, box):
        mesh = estimate_background(frame, ignore, box=box)
    if bool(ignore.any()):
        frame = fill_masked(frame, ignore, mesh.background_at)
    error = xp.sqrt(frame_variance(frame, ignore, mesh)) if error is None else _completed(error, frame, ignore, mesh)
    return PreparedFrame(frame, mesh, error, ignore)


def _completed(error: Any, frame: Any, ignore: Any, mesh: Mesh) -> Any:
    """Return errors with those that are no errors estimated, a few rows at a time."""
    xp = namespace_of(frame)
    unknown = ~(xp.isfinite(error) & (error > 0))
    if not bool(unknown.any()):
        return error
    error = error.copy()
    for first in range(0, frame.shape[0], _ROWS):
        rows = slice(first, min(first + _ROWS, frame.shape[0]))
        if bool(unknown[rows].any()):
            estimate = xp.sqrt(frame_variance(frame[rows], ignore[rows], mesh, rows))
            error[rows] = xp.where(unknown[rows], estimate, error[rows])
    return error
