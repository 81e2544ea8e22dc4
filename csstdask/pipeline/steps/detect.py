"""Step 2: detect the pixels hit by cosmic rays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.instrument import Instrument
from csstdask.nn.models import find_card
from csstdask.nn.precision import Precision, resolve_precision
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.step import TORCH, Cost, Output, Product, Step

if TYPE_CHECKING:
    from csstdask.pipeline.frame import Frame
    from csstdask.pipeline.plan import Plan

FEATURE_UNITS = {"x": "pixel", "y": "pixel", "length": "pixel", "width": "pixel", "angle": "deg"}
"""Units of the columns of ``tables/straight_features``."""
log = logging.getLogger("csstdask")

#: Time of each network on one core, by precision (`benchmarks/cosmicray.py`) [s / Mpix]; others cost as much as `unet`.
_SECONDS_PER_MPIX: dict[str, dict[Precision, float]] = {
    "unet": {"float32": 1.15, "bfloat16": 0.67, "int8": 0.32},
    "unet-medium": {"float32": 0.128, "bfloat16": 0.105, "int8": 0.092},
    "unet-fast": {"float32": 0.103, "bfloat16": 0.088, "int8": 0.084},
    "deepcr": {"float32": 0.555, "bfloat16": 0.315, "int8": 0.177},
}


def detect_cosmic_rays(frame: Frame, config: RunConfig) -> Output:
    """Detect cosmic rays, and compare them with those flagged in the input."""
    from csstdask.arrays.morphology import label_components
    from csstdask.cosmicray import detect
    from csstdask.cosmicray.preprocess import STAR_SHARPNESS
    from csstdask.cosmicray.straight_features import StraightFeatures

    settings = config.detect
    saturation = Saturation.of(frame)
    found = detect(
        frame.data,
        frame.error,
        frame.unusable if saturation is None else frame.unusable & ~saturation.candidate,
        detector=frame.metadata.detector,
        threshold=settings.threshold,
        model=settings.model,
        device=config.engine.device,
        rate=settings.rate,
        precision=settings.precision,
        mesh=frame.mesh,
        release_straight=frame.metadata.kind == "imaging",
    )
    if found.outside:
        log.warning("outside the range of the training of %s: %s", found.model.name, ", ".join(found.outside))
    features = found.features or StraightFeatures(found.mask.shape)
    hit = found.mask if saturation is None else saturation.added_to(found.mask)
    if frame.metadata.kind == "slitless":
        hit = _without_traces(frame, hit)
    usable = int(hit.size - (frame.unusable & ~hit).sum())
    count = int(hit.sum())
    events = label_components(hit)[1]
    theirs = frame.cr_mask_input & ~frame.unusable
    return Output(
        arrays={"cr_mask": hit, "satellite_mask": features.satellite_mask()},
        tables={"straight_features": features.table()},
        metrics={
            "n_cr_pixels": count,
            "n_cr_events": events,
            "cr_fraction": count / usable if usable else None,
            "n_cr_saturated_pixels": int((hit & frame.saturated).sum()),
            "n_cr_input_pixels": int(theirs.sum()),
            "n_cr_both_pixels": int((hit & theirs).sum()),
            "n_satellite_trails": len(features.trails),
            "star_sharpness": found.conditions.get(STAR_SHARPNESS) or None,
            "n_outside_training": len(found.outside),
            "n_trailed_stars": 0 if features.stars is None else len(features.stars.x),
        },
    )


def _without_traces(frame: Frame, hit: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the detections of a slitless frame without pixels of spectra."""
    from csstdask.cosmicray.traces import release_traces

    mesh = frame.mesh
    if not np.isfinite(mesh.background).all():
        return hit
    return release_traces(frame.data - mesh.background_at(), frame.error, mesh.noise_at(), hit, frame.unusable)


@dataclass(frozen=True)
class Saturation:
    """Saturated pixels of a frame, before and after detection."""

    candidate: npt.NDArray[np.bool_]
    """(y, x) Saturated pixels not surrounded by the light of a star: they take part in detection."""
    added_to: Callable[[npt.NDArray[np.bool_]], npt.NDArray[np.bool_]]
    """Adds the saturated pixels of cosmic rays to a detected mask (y, x)."""

    @classmethod
    def of(cls, frame: Frame) -> Saturation | None:
        """Classify the saturated pixels of a frame; None if there are none, or the sky is unknown."""
        from csstdask.cosmicray.saturation import find_candidates, join_enclosed

        saturated, mesh = frame.saturated, frame.mesh
        if not saturated.any() or not np.isfinite(mesh.background).all():
            return None
        unusable = frame.unusable & ~saturated
        candidate = find_candidates(frame.data - mesh.background_at(), mesh.noise_at(), saturated, unusable)

        def added_to(hit: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
            # Both planes are computed again: the network needs the memory in between.
            height, noise = frame.data - mesh.background_at(), mesh.noise_at()
            return join_enclosed(height, noise, hit, saturated, candidate, unusable)

        return cls(candidate, added_to)


def resolved_threshold(config: RunConfig) -> float | None:
    """Return the detection threshold: that of the settings, else that of the model card."""
    card = find_card("cosmicray", config.detect.model)
    return card.threshold if config.detect.threshold is None else config.detect.threshold


def cost_of_detection(config: RunConfig, _instrument: Instrument) -> Cost:
    """Return the cost of the configured model."""
    if not uses_network(config):
        return Cost(seconds_per_mpix=1.6, bytes_per_pixel=86.0)
    card = find_card("cosmicray", config.detect.model)
    precision = resolve_precision(config.detect.precision, card, config.engine.device or "cpu")
    return Cost(
        seconds_per_mpix=_SECONDS_PER_MPIX.get(card.name, _SECONDS_PER_MPIX["unet"])[precision],
        bytes_per_pixel=37.0,
        fixed_bytes=340 << 20,
        buffer_bytes_per_pixel=105.0,
        buffer_pixels=5_000_000,
    )


def uses_network(config: RunConfig) -> bool:
    """Return whether the configured model is a network."""
    return bool(find_card("cosmicray", config.detect.model).architecture)


def fingerprint_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide the mask; for a network its precision, and the device unless it is the CPU."""
    chosen = config.detect.model_dump(include={"rate"}, exclude_defaults=True)
    if uses_network(config):
        kind = (config.engine.device or "cpu").partition(":")[0]
        chosen |= {"precision": config.detect.precision} | ({"device": kind} if kind != "cpu" else {})
    return {"threshold": resolved_threshold(config), **chosen}


def libraries_of(config: RunConfig) -> dict[str, int]:
    """Return the memory of the libraries that the step imports, by library [byte]."""
    return TORCH if uses_network(config) else {}


def check_precision(plan: Plan) -> None:
    """Raise InputError for an arithmetic that the device does not have."""
    config = plan.config
    device = config.engine.device or "cpu"
    if config.detect.precision == "int8" and not device.startswith("cpu"):
        raise InputError("[detect] precision", f"int8 on {device}", "float32 or bfloat16: int8 is for the host")


DETECT = Step(
    name="detect",
    requires=("background",),
    kinds=frozenset({"imaging", "slitless", "dark"}),
    numerics_version=14,
    body=detect_cosmic_rays,
    settings=fingerprint_settings,
    model=lambda config: find_card("cosmicray", config.detect.model).identity,
    products=(
        Product("cr_mask", "bool", False, codec="mask", long_name="hit by a cosmic ray"),
        Product("satellite_mask", "bool", False, codec="mask", long_name="on the trail of a satellite"),
    ),
    metrics=(
        "n_cr_pixels",
        "n_cr_events",
        "cr_fraction",
        "n_cr_saturated_pixels",
        "n_cr_input_pixels",
        "n_cr_both_pixels",
        "n_satellite_trails",
        "n_trailed_stars",
        "star_sharpness",
        "n_outside_training",
    ),
    tables={"straight_features": FEATURE_UNITS},
    cost=cost_of_detection,
    libraries=libraries_of,
    check=check_precision,
    panel="cosmic_rays",
)  # fmt: skip
