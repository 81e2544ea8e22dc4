"""Step 4: repair hit pixels, and list the cosmic rays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.nn.models import EMPIRICAL, find_card
from csstdask.pipeline.config import NO_PSF, RunConfig
from csstdask.pipeline.step import TORCH, Cost, Output, Product, Step, Table
from csstdask.pipeline.steps.psf import PSF, PSF_FIELD, psf_model

if TYPE_CHECKING:
    from csstdask.pipeline.frame import Frame
    from csstdask.psf.inpaint import StarRepair

EVENT_UNITS = {
    "x": "pixel", "y": "pixel", "area": "pixel", "charge": "electron", "charge_err": "electron", "peak": "electron",
    "length": "pixel", "width": "pixel", "angle": "deg",
}  # fmt: skip
"""Units of the columns of ``tables/cosmic_rays``."""
#: Height above the sky, averaged over 3 x 3 pixels, from which a pixel belongs to a source [sigma of one pixel].
_SOURCE_SIGMA = 3.0
#: Metric that counts the events of each kind.
_COUNTED = {"point": "n_points", "track": "n_tracks", "worm": "n_worms"}


def repair_pixels(frame: Frame, config: RunConfig) -> Output:
    """Repair hit pixels, in the units of ``sci`` (NaN elsewhere), and list the cosmic rays."""
    from csstdask.cosmicray.events import measure_events
    from csstdask.cosmicray.inpaint import combine_repairs
    from csstdask.cosmicray.straight_features import append_features

    hit, card = frame.product("cr_mask"), find_card("inpaint", config.repair.model)
    fixed, variance_electrons = combine_repairs(
        frame.data,
        hit,
        frame.ignore,
        frame.fill if card.parameters in ({}, find_card("inpaint", "median").parameters) else frame.fill_by(card),
        card=card,
        stars=_repaired_stars(frame, config),
        sources=frame.table("detections") if _has_detections(frame, config) else None,
        mesh=frame.mesh,
        device=config.engine.device,
    )
    frame.release_masked()
    height = np.subtract(frame.data, fixed, where=hit, out=np.zeros_like(frame.data))  # elsewhere may be inf
    events = measure_events(hit, height, variance_electrons, source=_source_pixels(frame, fixed))
    scale = np.float32(frame.scale)
    repaired = np.where(hit, fixed / scale, np.float32(np.nan)).astype(np.float32, copy=False)
    variance = (variance_electrons / (scale * scale)).astype(np.float32, copy=False)
    charge = events["charge"][np.isfinite(events["charge"])]
    return Output(
        arrays={"repair": repaired, "repair_variance": variance},
        tables={"cosmic_rays": _table(frame, append_features(events, frame.table("straight_features")))},
        metrics={
            "n_unrepaired_pixels": int(np.isinf(variance[hit]).sum()),
            **{name: int((events["kind"] == kind).sum()) for kind, name in _COUNTED.items()},
            "cr_charge_median": float(np.median(charge)) if charge.size else None,
        },
    )


def _source_pixels(frame: Frame, clean: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_] | None:
    """Return the source pixels (y, x) of a repaired frame [e-]; None where its sky is unknown."""
    from scipy.ndimage import uniform_filter

    from csstdask.arrays.morphology import dilate

    mesh = frame.mesh
    if not np.isfinite(mesh.background).all():
        return None
    above = clean - mesh.background_at()
    above[frame.ignore] = 0
    uniform_filter(above, 3, output=above)
    return dilate(above > _SOURCE_SIGMA * mesh.noise_at())


def _table(frame: Frame, events: Table) -> Table:
    n = len(events["id"])
    return {
        "exposure": np.full(n, frame.metadata.exposure, dtype=object),
        "detector": np.full(n, frame.metadata.detector, dtype=np.int32),
        **events,
    }


def _repaired_stars(frame: Frame, config: RunConfig) -> StarRepair | None:
    """Return the stars of a frame, repaired with the PSF of the step psf; None if the frame has no PSF."""
    from csstdask.psf.field_file import card_of, read_field
    from csstdask.psf.inpaint import repair_stars

    model = psf_model(frame, config) if config.repair.psf and _has_detections(frame, config) else None
    stored = None if model is None else frame.file(PSF_FIELD)
    if model is None or stored is None or frame.masked is None:
        return None
    names = [
        model,
        *([EMPIRICAL] if config.psf.model == "default" else []),
    ]  # the fallback of the step psf
    field = read_field(stored, card_of(stored, (find_card("psf", name) for name in names)))
    return repair_stars(frame.masked, frame.table("detections"), field, frame.mesh)


def _has_detections(frame: Frame, config: RunConfig) -> bool:
    """Return whether the step psf has detected sources in a frame."""
    return frame.metadata.kind in PSF.kinds and config.psf.model != NO_PSF


def uses_network(config: RunConfig) -> bool:
    """Return whether sources are repaired by a network."""
    return bool(find_card("inpaint", config.repair.model).architecture)


def fingerprint_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide the repair; for a network also the kind of device, unless it is the CPU."""
    kind = (config.engine.device or "cpu").partition(":")[0]
    device = {"device": kind} if kind != "cpu" and uses_network(config) else {}
    return {"psf": config.repair.psf, **device}


def cost_of_repair(config: RunConfig, _instrument: Instrument) -> Cost:
    """Return the cost of the configured model; that of networks is a rough estimate."""
    if uses_network(config):
        return Cost(seconds_per_mpix=2.0, bytes_per_pixel=110.0, fixed_bytes=330 << 20)
    return Cost(seconds_per_mpix=0.09, fixed_seconds=0.05, bytes_per_pixel=56.0, fixed_bytes=100 << 20)


REPAIR = Step(
    name="repair",
    requires=("background", "detect", "psf"),
    kinds=frozenset({"imaging", "slitless", "dark"}),
    numerics_version=12,
    body=repair_pixels,
    settings=fingerprint_settings,
    model=lambda config: find_card("inpaint", config.repair.model).identity,
    products=(
        Product("repair", "float32", float("nan"), 1, codec="sparse", long_name="repaired value, NaN outside cr_mask"),
        Product(
            "repair_variance",
            "float32",
            float("nan"),
            2,
            codec="sparse",
            long_name="variance of repair, inf without a donor",
        ),
    ),
    tables={"cosmic_rays": EVENT_UNITS},
    metrics=("n_unrepaired_pixels", *_COUNTED.values(), "cr_charge_median"),
    cost=cost_of_repair,
    libraries=lambda config: TORCH if uses_network(config) else {},
    panel="cutouts",
)
