"""Step 3: what the hit pixels would have held, and what that leaves of each cosmic ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation, uniform_filter

from csstdask.cosmicray import inpaint
from csstdask.cosmicray.catalogue import KINDS, measure_events
from csstdask.cosmicray.scoring import EIGHT_NEIGHBOURS
from csstdask.nn.models import find_card
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.step import Cost, Output, Product, Step, Table
from csstdask.psf.frame import knows_band

#: A source's pixels: the mean of each and its neighbours stands this above the sky [sigma of one pixel].
_SOURCE_SIGMA = 3.0
_COUNTED = dict(zip(KINDS, ("n_points", "n_tracks", "n_worms"), strict=True))


def repair_pixels(frame: Frame, config: RunConfig) -> Output:
    """Repair hit pixels, and list the cosmic rays; repairs are in the units of ``sci``, NaN elsewhere."""
    hit = frame.product("cr_mask")
    fixed = inpaint(
        frame.data,
        hit,
        frame.error,
        frame.ignore,
        model=config.repair.model,
        device=config.engine.device,
        detector=frame.facts.detector if psf_is_known(frame, config) else None,
        psf=config.repair.psf,
    )
    height = np.subtract(frame.data, fixed.data, where=hit, out=np.zeros_like(frame.data))  # elsewhere may be inf
    events = measure_events(hit, height, fixed.variance, source=_source_pixels(frame, fixed.data))
    scale = np.float32(frame.scale)
    repaired = np.where(hit, fixed.data / scale, np.float32(np.nan)).astype(np.float32, copy=False)
    variance = (fixed.variance / (scale * scale)).astype(np.float32, copy=False)
    charge = events["charge"][np.isfinite(events["charge"])]
    return Output(
        arrays={"repair": repaired, "repair_variance": variance},
        table=_table(frame, events),
        metrics={
            "n_unrepaired_pixels": int(np.isinf(variance[hit]).sum()),
            **{name: int((events["kind"] == kind).sum()) for kind, name in _COUNTED.items()},
            "cr_charge_median": float(np.median(charge)) if charge.size else None,
        },
    )


def _source_pixels(frame: Frame, clean: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_] | None:
    """Return where a repaired frame [e-] holds sources; None where its sky is not known."""
    mesh = frame.mesh
    if not np.isfinite(mesh.background).all():
        return None
    above = clean - mesh.background_at()
    above[frame.ignore] = 0
    uniform_filter(above, 3, output=above)
    return np.asarray(binary_dilation(above > _SOURCE_SIGMA * mesh.noise_at(), EIGHT_NEIGHBOURS))


def _table(frame: Frame, events: Table) -> Table:
    n = len(events["id"])
    return {
        "exposure": np.full(n, frame.facts.exposure, dtype=object),
        "detector": np.full(n, frame.facts.detector, dtype=np.int32),
        **events,
    }


def psf_is_known(frame: Frame, config: RunConfig) -> bool:
    """Tell whether the stars of a frame are repaired by their PSF."""
    if config.repair.psf == "none" or frame.facts.kind != "imaging":
        return False
    return knows_band(frame.instrument.name, frame.facts.detector, frame.facts.band, config.repair.psf)


def model_identity(config: RunConfig) -> str:
    """Return the identity of the models of repair."""
    repair, psf = find_card("inpaint", config.repair.model), config.repair.psf
    return repair.identity if psf == "none" else f"{repair.identity} {find_card('psf', psf).identity}"


def uses_network(config: RunConfig) -> bool:
    """Tell whether sources are repaired by a network."""
    return bool(find_card("inpaint", config.repair.model).architecture)


def decisive_settings(config: RunConfig) -> dict[str, Any]:
    """Return what decides the repair besides the model: for a network the kind of device where it is not the host."""
    kind = (config.engine.device or "cpu").partition(":")[0]
    return {"device": kind} if kind != "cpu" and uses_network(config) else {}


def cost_of_repair(config: RunConfig) -> Cost:
    """Return the cost of the configured models; the memory of a network is an estimate."""
    if uses_network(config):
        return Cost(bytes_per_pixel=110.0, pixels_per_second=5e5)
    if config.repair.psf != "none":
        return Cost(bytes_per_pixel=95.0, pixels_per_second=8e5)
    return Cost(bytes_per_pixel=50.0, pixels_per_second=1.0e7)


REPAIR = Step(
    name="repair",
    requires=("background", "detect"),
    kinds=frozenset({"imaging", "slitless", "dark"}),
    numerics_version=9,
    body=repair_pixels,
    settings=decisive_settings,
    model=model_identity,
    products=(
        Product("repair", "float32", float("nan"), 1, long_name="repaired value, NaN outside cr_mask"),
        Product("repair_variance", "float32", float("nan"), 2, long_name="variance of repair, inf without a donor"),
    ),
    table="cosmic_rays",
    metrics=("n_unrepaired_pixels", *_COUNTED.values(), "cr_charge_median"),
    cost=cost_of_repair,
)
