"""Preparation of a frame for detection: ignored pixels filled, background and noise known everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from csstdask.arrays.background import estimate_background
from csstdask.arrays.correlation import NoiseCorrelation, noise_correlation
from csstdask.arrays.frame import frame_variance
from csstdask.arrays.median import fill_masked
from csstdask.arrays.mesh import Mesh, mesh_shape
from csstdask.arrays.namespace import namespace_of
from csstdask.arrays.sharpness import star_sharpness

#: Approximate size of a box of the background mesh [pixel].
BOX = 128
#: Numbers that describe a frame as a whole, which a network can be given: the correlation of the noise of neighbouring
#: pixels, and the sharpness of the stars [1/pixel] (0: unknown).
NOISE_CORRELATION, STAR_SHARPNESS = "noise correlation", "star sharpness"
CONDITIONS = (NOISE_CORRELATION, STAR_SHARPNESS)
#: Number of rows for which missing errors are estimated at once, to bound memory.
_ROWS = 256


@dataclass(frozen=True)
class PreparedFrame:
    """A frame as the detection methods take it."""

    data: Any
    """float32 (y, x) [e-]; ignored pixels hold the median of their neighbours."""
    mesh: Mesh
    """Background and noise [e-]."""
    error: Any
    """float32 (y, x), 1 sigma of each pixel [e-]."""
    ignore: Any
    """bool (y, x)"""
    correlation: NoiseCorrelation = field(default_factory=NoiseCorrelation)
    """Correlation of the noise of neighbouring pixels."""

    @property
    def excess(self) -> float:
        """Return the factor by which significance is lowered because the noise is correlated."""
        return self.correlation.excess()

    @cached_property
    def sharpness(self) -> float:
        """Return the sharpness of the stars [1/pixel], 0 if unknown (`csstdask.arrays.sharpness`)."""
        return star_sharpness(self.data, self.ignore, self.mesh)

    def conditions(self, names: Sequence[str] = CONDITIONS) -> list[float]:
        """Return some of the `CONDITIONS` of the frame."""
        measured = {NOISE_CORRELATION: lambda: self.correlation.mean, STAR_SHARPNESS: lambda: self.sharpness}
        return [measured[name]() for name in names]


def prepare_frame(frame: Any, error: Any, ignore: Any, *, box: int = BOX, mesh: Mesh | None = None) -> PreparedFrame:
    """Prepare a frame for detection.

    Ignored pixels are filled from their neighbours for every method. Otherwise L.A.Cosmic would grow the mask and miss
    cosmic rays next to bad columns, and a network would take a hole for structure.

    Parameters
    ----------
    frame : float array (y, x)
        [e-], sky included.
    error : float32 array (y, x) or None
        1 sigma [e-]; estimated from the sky and Poisson noise where unknown (None, not finite or not positive).
    ignore : bool array (y, x)
        Pixels to ignore; at least one must remain.
    box : int
        Approximate size of a box of the background mesh [pixel].
    mesh : Mesh, optional
        Background and noise of the frame [e-]; used if its boxes have the right size, else estimated.
    """
    xp = namespace_of(frame)
    frame = frame.astype(np.float32, copy=False)
    if mesh is None or tuple(mesh.background.shape) != mesh_shape(frame.shape, box):
        mesh = estimate_background(frame, ignore, box=box)
    if bool(ignore.any()):
        frame = fill_masked(frame, ignore, mesh.background_at)
    error = xp.sqrt(frame_variance(frame, ignore, mesh)) if error is None else _fill_errors(error, frame, ignore, mesh)
    correlation = noise_correlation(frame, ignore, mesh) if bool((mesh.noise > 0).any()) else NoiseCorrelation()
    return PreparedFrame(frame, mesh, error, ignore, correlation)


def _fill_errors(error: Any, frame: Any, ignore: Any, mesh: Mesh) -> Any:
    """Return errors with invalid ones replaced by estimates, a few rows at a time."""
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
