"""The noise of a frame whose caller gave none: the background's, plus the Poisson noise of what stands above it."""

from __future__ import annotations

from typing import Any

import numpy as np

from csstdask.arrays.background import estimate_background
from csstdask.arrays.mesh import Mesh
from csstdask.arrays.namespace import namespace_of


def frame_variance(data: Any, mask: Any, mesh: Mesh | None = None, rows: slice = slice(None)) -> Any:
    """Return the variance of each pixel of a frame in electrons.

    Parameters
    ----------
    data : float array (y, x)
        [e-], sky included.
    mask : bool array (y, x)
        True = ignore.
    mesh : Mesh, optional
        Background and noise, if already measured.
    rows : slice
        Which rows of the mesh's frame `data` is, for work in parts.

    Returns
    -------
    float32 array (y, x)
        ``noise^2 + max(data - background, 0)`` [e-^2]; where data is not finite, noise^2.
    """
    xp = namespace_of(data)
    mesh = estimate_background(data, mask) if mesh is None else mesh
    variance = (data - mesh.background_at(rows)).astype(np.float32)
    variance = xp.where(xp.isfinite(variance), xp.maximum(variance, 0), np.float32(0))
    noise = mesh.noise_at(rows)
    return variance + noise * noise
