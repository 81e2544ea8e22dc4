"""Step 1: estimate sky level and noise on a mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from csstdask.arrays.mesh import mesh_shape
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.step import Cost, Output, Product, Step

if TYPE_CHECKING:
    from csstdask.pipeline.frame import Frame


MESH = ("y_mesh", "x_mesh")
"""Dimensions of the mesh."""


def measure_background(frame: Frame, config: RunConfig) -> Output:
    """Estimate sky level and noise of a frame, in the units of ``sci``."""
    from csstdask.arrays.background import estimate_background
    from csstdask.arrays.correlation import noise_correlation

    mesh = estimate_background(frame.data, frame.unusable, box=config.background.box)
    scale = np.float32(frame.scale)
    level, noise = mesh.background / scale, mesh.noise / scale
    known = bool(np.isfinite(level).all())
    return Output(
        arrays={"background": level, "noise": noise},
        metrics={
            "sky_level": float(np.median(level)) if known else None,
            "sky_noise": float(np.median(noise)) if known else None,
            "noise_correlation": noise_correlation(frame.data, frame.unusable, mesh).mean if known else None,
            "n_ignored_pixels": int(frame.unusable.sum()),
        },
    )


def mesh_sizes(config: RunConfig, shape: tuple[int, int]) -> dict[str, int]:
    """Return the number of boxes along y and x."""
    return dict(zip(MESH, mesh_shape(shape, config.background.box), strict=True))


BACKGROUND = Step(
    name="background",
    requires=(),
    kinds=frozenset({"imaging", "slitless", "dark"}),
    numerics_version=5,
    body=measure_background,
    settings=lambda config: config.background.decisive(),
    products=(
        Product("background", "float32", float("nan"), 1, MESH, long_name="sky at box centres"),
        Product("noise", "float32", float("nan"), 1, MESH, long_name="1 sigma of the sky at box centres"),
    ),
    sizes=mesh_sizes,
    metrics=("sky_level", "sky_noise", "noise_correlation", "n_ignored_pixels"),
    cost=lambda _config, _instrument: Cost(seconds_per_mpix=0.05, bytes_per_pixel=22.0),
)
