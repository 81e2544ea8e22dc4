"""Reduction `zeropoints`: calibrate all units, from stars, telemetry and recent zero points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.nn.models import NO_MODEL, find_card
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.reduction import Reduced, Reduction, ReductionProduct, read_result
from csstdask.pipeline.steps.zeropoint import ZEROPOINT, ZEROPOINT_STARS
from csstdask.pipeline.zeropoint_inputs import check_unchanged, uses_network
from csstdask.store.campaign import Campaign
from csstdask.store.schema import UNIT_DIMS

if TYPE_CHECKING:
    from csstdask.engine.partials import Partial
    from csstdask.engine.reduce import Pass
    from csstdask.zeropoint.campaign import CampaignStars

METHOD_ARRAY = "zp_method"
"""The array of texts; the others are numbers."""


@dataclass(frozen=True)
class ZeropointsAlgorithm:
    """Concatenation of the stars of all units, in the order of the partials; the driver solves once."""

    max_stars: int
    """Maximum number of stars with a reference per unit in the joint solution."""

    def map(self, partials: Iterable[tuple[Partial, bytes]], _solution: CampaignStars | None) -> CampaignStars:
        """Return the stars of some units."""
        from csstdask.zeropoint.campaign import CampaignStars
        from csstdask.zeropoint.matched_stars import MatchedStars

        units = [
            CampaignStars.from_unit(MatchedStars.from_bytes(content, partial.path), self.max_stars)
            for partial, content in partials
        ]
        return CampaignStars.concatenate(units)

    def combine(self, first: CampaignStars, second: CampaignStars) -> CampaignStars:
        """Return the stars of two groups, in order."""
        from csstdask.zeropoint.campaign import CampaignStars

        return CampaignStars.concatenate([first, second])

    def solve(self, total: CampaignStars, _solution: CampaignStars | None) -> Pass[CampaignStars]:
        """Return all stars: one pass over the partials suffices."""
        from csstdask.engine.reduce import Pass

        return Pass(total, finished=True)


def zero_points(stars: CampaignStars, config: RunConfig, campaign: Campaign, _detectors: tuple[int, ...]) -> Reduced:
    """Return the arrays of the campaign from the stars of its units."""
    from csstdask.zeropoint.campaign import CampaignSettings, calibrate_campaign

    settings = config.zeropoint
    exposures = [str(name) for name in stars.exposure]
    telemetry = _telemetry(config, exposures)
    chosen = CampaignSettings(
        match_radius=settings.match_radius,
        epoch_days=settings.epoch_days,
        grey_sigma=settings.grey_sigma,
        small_sigma=settings.small_sigma,
        color_term=(settings.color_term, settings.color_term_sigma),
        model=settings.model,
        device=config.engine.device,
    )
    found = calibrate_campaign(stars, telemetry, chosen)
    rows = [campaign.index(name, int(one)) for name, one in zip(exposures, stars.detector, strict=True)]
    where = tuple(np.array(rows, dtype=np.intp).T)
    shape = len(campaign.exposures), len(campaign.detectors)

    def spread(values: npt.NDArray[Any], fill: object, dtype: Any = np.float64) -> npt.NDArray[Any]:
        array = np.full(shape, fill, dtype=dtype)
        array[where] = values
        return array

    return Reduced(
        arrays={
            "zp": spread(found.value, np.nan),
            "zp_sigma": spread(found.sigma, np.nan),
            METHOD_ARRAY: spread(found.method.astype(object), "", object),
            "zp_prior": spread(found.prior, np.nan),
            "zp_prior_sigma": spread(found.prior_sigma, np.nan),
            "zp_joint": spread(found.joint, np.nan),
            "zp_joint_sigma": spread(found.joint_sigma, np.nan),
            "zp_correction": spread(found.correction, np.nan),
        },
        metrics=found.metrics
        | {
            "n_without_magnitudes": int(_without_magnitudes(stars).sum()),
            "n_without_telemetry": None if telemetry is None else _without_values(telemetry, len(exposures)),
        },
    )


def _telemetry(config: RunConfig, exposures: list[str]) -> dict[str, npt.NDArray[np.float64]] | None:
    """Return the telemetry of the exposure of each unit; None without a table.

    Raises
    ------
    InputError
        If the table was replaced since the run began: another one would be recorded under its checksum.
    """
    from csstdask.zeropoint.telemetry import read_telemetry

    settings = config.zeropoint
    if settings.telemetry is None:
        return None
    table = read_telemetry(Path(settings.telemetry))
    check_unchanged(Path(settings.telemetry), settings.telemetry_sha256)
    return table.select(exposures)


def _without_magnitudes(stars: CampaignStars) -> npt.NDArray[np.bool_]:
    """Return which units (u,) have stars of the reference, none of them with a magnitude in their band."""
    matched, known = stars.reference >= 0, np.isfinite(stars.ref_mag)
    counts = [np.bincount(stars.unit[chosen], minlength=stars.n_units) for chosen in (matched, matched & known)]
    return np.asarray((counts[0] > 0) & (counts[1] == 0) & (stars.n_used == 0))


def _without_values(telemetry: Mapping[str, npt.NDArray[np.float64]], n: int) -> int:
    """Return the number of n units without any telemetry value."""
    known = np.zeros(n, dtype=bool)
    for values in telemetry.values():
        known |= np.isfinite(values)
    return int(n - known.sum())


def read_zero_points(root: Path, wanted: str | None) -> dict[str, npt.NDArray[Any]] | None:
    """Read the zero points (exposure, detector) of a run, by name; None if it has none of its present units.

    Parameters
    ----------
    root : Path
        The run's store.
    wanted : str or None
        Fingerprint of the result of the present partials (`csstdask.pipeline.reduction_status.current_fingerprints`).
        Zero points count if they are recorded under it and all arrays are on disk as recorded.

    Raises
    ------
    StoreError
        If an array is damaged.
    """
    found = read_result(root, ZEROPOINTS, None, wanted)
    return None if found is None else found[0]


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide the zero points, besides the partials: contents of tables and networks."""
    settings = config.zeropoint
    names = {
        "match_radius",
        "epoch_days",
        "grey_sigma",
        "small_sigma",
        "joint_stars",
        "color_term",
        "color_term_sigma",
        "telemetry_sha256",
    }
    model = find_card("zeropoint", settings.model).identity if uses_network(config) else NO_MODEL
    device = (config.engine.device or "cpu").partition(":")[0]
    return settings.model_dump(mode="json", include=names) | {"model": model, "device": device}


def _remark(metrics: Mapping[str, float | int | None]) -> str:
    """Return a line of remarks on the zero points."""
    counts = {name: metrics.get(name) or 0 for name in _REMARKS}
    parts = metrics.get("n_unanchored_components") or 0
    return ", ".join(text.format(count, parts=parts) for (name, text) in _REMARKS.items() if (count := counts[name]))


_REMARKS = {
    "n_without_magnitudes": "no magnitudes in the reference for the bands of {} units",
    "n_without_telemetry": "no telemetry of {} units",
    "n_unanchored": "{} units in {parts} unanchored parts",
    "n_strained": "{} units away from the joint solution",
    "n_disagreeing": "{} units whose stars disagree with the prior",
}
"""Remarks on metrics, made where these are positive."""


def _camera(_instrument: Instrument) -> dict[str, Any]:
    return {}  # nominal zero points are in the partials


_NAN = float("nan")


def _product(name: str, long_name: str, dtype: str = "float64", fill: object = _NAN) -> ReductionProduct:
    return ReductionProduct(name, UNIT_DIMS, dtype, fill, None if dtype == "str" else "mag", long_name)


ZEROPOINTS = Reduction(
    name="zeropoints",
    step=ZEROPOINT.name,
    partial=ZEROPOINT_STARS,
    kinds=ZEROPOINT.kinds,
    numerics_version=1,
    settings=_settings,
    camera=_camera,
    algorithm=lambda config, _campaign, _detectors: ZeropointsAlgorithm(config.zeropoint.joint_stars),
    result=zero_points,
    sizes=lambda _config, _campaign: {},
    without_inputs=lambda _config: "found no unit with stars; wanted the files of the step zeropoint (run --verify)",
    scope="campaign",
    panel="zero_points",
    remark=_remark,
    products=(
        _product("zp", "zero point: AB magnitude of 1 electron s-1 in the total light of a star"),
        _product("zp_sigma", "1 sigma of zp"),
        _product(METHOD_ARRAY, "solve, joined, prior, borrowed or nominal", "str", ""),
        _product("zp_prior", "zero point expected without the unit's stars"),
        _product("zp_prior_sigma", "1 sigma of zp_prior"),
        _product("zp_joint", "zero point of the joint solution of all units"),
        _product("zp_joint_sigma", "1 sigma of zp_joint"),
        _product("zp_correction", "from the aperture to the total light of a star, that zp is for"),
    ),
)
