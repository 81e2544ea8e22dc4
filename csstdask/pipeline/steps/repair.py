"""Step 3: what the hit pixels would have held."""

from __future__ import annotations

import numpy as np

from csstdask.cosmicray import inpaint
from csstdask.cosmicray.card import find_card
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.step import Cost, Output, Product, Step


def repair_pixels(frame: Frame, config: RunConfig) -> Output:
    """Repair hit pixels; the result is in the units of ``sci``, NaN elsewhere."""
    hit = frame.product("cr_mask")
    fixed = inpaint(frame.data, hit, frame.error, frame.ignore, model=config.repair.model)
    scale = np.float32(frame.scale)
    repaired = np.where(hit, fixed.data / scale, np.float32(np.nan)).astype(np.float32, copy=False)
    variance = (fixed.variance / (scale * scale)).astype(np.float32, copy=False)
    return Output(
        arrays={"repair": repaired, "repair_variance": variance},
        metrics={"n_unrepaired_pixels": int(np.isinf(variance[hit]).sum())},
    )


REPAIR = Step(
    name="repair",
    requires=("background", "detect"),
    kinds=frozenset({"imaging", "slitless", "dark"}),
    numerics_version=2,
    body=repair_pixels,
    settings=lambda _: {},
    model=lambda config: find_card("inpaint", config.repair.model).identity,
    products=(
        Product("repair", "float32", float("nan"), 1, long_name="repaired value, NaN outside cr_mask"),
        Product("repair_variance", "float32", float("nan"), 2, long_name="variance of repair, inf without a donor"),
    ),
    metrics=("n_unrepaired_pixels",),
    halo=5,
    cost=lambda _: Cost(bytes_per_pixel=40.0, pixels_per_second=2.5e7),
)
