"""Review the cosmic rays of a run: rates, spectra, alarms, and checks that need no truth."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
from astropy.io.fits import Header
from astropy.wcs import WCS

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import StoreError
from csstdask.core.warnings import suppress_warnings
from csstdask.cosmicray import ModelCard, detect
from csstdask.engine.ledger import Ledger
from csstdask.engine.work_units import Unit
from csstdask.instrument import celestial_wcs
from csstdask.metrics.consistency import (
    CHARGE_BINS,
    Recovery,
    Recurrence,
    detector_recurrence,
    injection_recovery,
    sky_recurrence,
)
from csstdask.metrics.drift import (
    EDGES,
    Alarm,
    UnitEvents,
    count_events,
    derive_expectations,
    find_drift,
    pixel_area_cm2,
    rates,
    spectra,
    sum_by_exposure,
)
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.recipe_tables import CosmicRays
from csstdask.nn.models import find_card
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.status import load_plan
from csstdask.store.campaign_pixels import read_unit_pixels
from csstdask.store.shards import read_shard
from csstdask.store.store_metadata import open_group
from csstdask.store.tables import table_path
from csstdask.store.unit_metadata import read_header
from csstdask.store.zarr_arrays import array_names, get_array

log = logging.getLogger("csstdask")

#: Units whose tables are read; of a larger run, those of every n-th exposure.
_MAX_UNITS = 3000
#: Exposures of a detector that are compared pixel by pixel.
_MAX_DETECTOR_EXPOSURES = 48
#: Exposures of a detector that are compared on the sky; the time grows with the number of pairs.
_MAX_SKY_EXPOSURES = 8
#: Units that known events are added to, and fraction of their pixels that get charge.
_INJECTED_UNITS, _INJECTED_FRACTION = 3, 0.003
_SEED = 1912
#: Recurrent positions that are listed for a detector.
_MAX_LISTED = 100
TABLE = "cosmic_rays"
#: Step that writes the table.
_STEP = "repair"


@dataclass(frozen=True)
class CosmicRayReview:
    """Cosmic rays of a run, and how they deviate from the expectation."""

    units: list[UnitEvents]
    alarms: tuple[Alarm, ...]
    card: ModelCard
    every: int
    """Every n-th exposure was read."""


def review_run(run: str | Path, campaign: str | Path | None = None) -> CosmicRayReview:
    """Read the tables of cosmic rays of a run, and compare them with the model card and the first exposures.

    Expected rates and spectra of a card are used only if it names the detectors it was made for. A model for any camera
    was trained on mock surveys, whose rates and spectra are not those of a real camera.

    Parameters
    ----------
    run : path
    campaign : path, optional
        Store of the campaign, if it has moved.
    """
    root = Path(run)
    plan = load_plan(root, campaign)
    every, chosen = _sampled_units(root, plan)
    card = find_card("cosmicray", plan.config.detect.model)
    units = [_read_unit(root, plan, *one) for one in chosen]
    reference = card if card.valid.get("detectors") else replace(card, expects={})
    return CosmicRayReview(units, find_drift(units, reference, advice=_advice(root, plan)), card, every)


def _advice(root: Path, plan: Plan) -> str:
    """Return the command that addresses an alarm, complete except for the output folder."""
    campaign = plan.campaign.path
    if (campaign / "truth" / "zarr.json").is_file():
        return f"retrain with `{shlex.join(['csstdask', 'train', 'cosmicray', '--campaign', str(campaign)])} --to DIR`"
    return f"check it with `{shlex.join(['csstdask', 'evaluate', 'cosmicray', '--run', str(root)])} --to DIR`"


def _sampled_units(root: Path, plan: Plan) -> tuple[int, list[tuple[Unit, float]]]:
    """Return n, and the units of every n-th exposure that have recorded events, with their usable pixels."""
    ignored = np.zeros((len(plan.campaign.exposures), len(plan.campaign.detectors)))
    if "n_ignored_pixels" in array_names(root):
        stored = np.asarray(get_array(open_group(root, "run"), "n_ignored_pixels")[...])
        ignored[: len(stored)] = np.nan_to_num(stored)
    ledger = Ledger(root)
    every = max(1, -(-int(plan.campaign.present.sum()) // _MAX_UNITS))
    chosen = [
        (unit, float(plan.pixels - ignored[row, column]))
        for unit, row, column in plan.units()
        if row % every == 0 and _has_events(root, unit, ledger)
    ]
    return every, chosen


def _has_events(root: Path, unit: Unit, ledger: Ledger) -> bool:
    """Return whether the table of events of a unit is recorded in the ledger, and unchanged."""
    record = ledger.read(unit).steps.get(_STEP)
    wanted = table_path(root, TABLE, unit.exposure, unit.detector).relative_to(root).as_posix()
    return record is not None and any(one.path == wanted and one.is_intact(root) for one in record.objects)


def _read_unit(root: Path, plan: Plan, unit: Unit, pixels: float) -> UnitEvents:
    metadata = plan.campaign.metadata(unit.exposure, unit.detector)
    area = pixels * pixel_area_cm2(plan.campaign.instrument)
    charge, length = _columns(root, unit, "charge", "length")
    events = count_events(charge, length, area * metadata.exptime if metadata.exptime > 0 else float("nan"))
    return UnitEvents(unit.exposure, unit.detector, metadata.when, events)


def _columns(root: Path, unit: Unit, *names: str) -> list[npt.NDArray[np.float64]]:
    """Return columns of the cosmic rays of a unit, without the satellites and trailed stars in the table."""
    table = pq.read_table(table_path(root, TABLE, unit.exposure, unit.detector))
    if "origin" in table.column_names:  # not in runs of earlier versions
        table = table.filter(pc.equal(table["origin"], "cosmic_ray"))
    return [table[name].to_numpy().astype(np.float64) for name in names]


def evaluate_run(
    run: str | Path,
    to: Path | None = None,
    campaign: str | Path | None = None,
    *,
    on_progress: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Evaluate the cosmic rays of a run, without truth.

    Parameters
    ----------
    run : path
        Store of a run with the step ``repair``.
    to : Path, optional
        Folder for ``cosmicray_run.json``.
    campaign : path, optional
        Store of the campaign, if it has moved.
    on_progress : callable
        Receives a line per step.

    Raises
    ------
    StoreError
        If the run has no table of cosmic rays.
    """
    root = Path(run)
    review = review_run(root, campaign)
    if not review.units:
        raise StoreError(f"{root}: found no table of cosmic rays; wanted a run with the step repair (run it again)")
    plan = load_plan(root, campaign)
    on_progress(f"{len(review.units)} units read; comparing exposures with each other")
    by_detector: dict[int, list[Unit]] = {}
    for unit in review.units:
        by_detector.setdefault(unit.detector, []).append(Unit(unit.exposure, unit.detector))
    in_pixels = {str(detector): _in_pixels(root, plan, units) for detector, units in sorted(by_detector.items())}
    on_sky = {str(detector): _on_sky(root, plan, units) for detector, units in sorted(by_detector.items())}
    recovery, units = _recovery(root, plan, on_progress)
    exposures = sum_by_exposure(review.units)
    results = {
        "run": root.name,
        "model": {"name": review.card.name, "version": review.card.version, "sha256": review.card.sha256},
        "one_exposure_in": review.every,
        "rates": rates(review.units),
        "log10_edges": {name: edges.tolist() for name, edges in EDGES.items()},
        "spectra": {name: counts.tolist() for name, counts in spectra(review.units).items()},
        "as_a_card_would_expect": derive_expectations(list(exposures.values())),
        "alarms": [asdict(alarm) for alarm in review.alarms],
        "repeated_in_pixels": {"share": _pooled(in_pixels.values()), "detectors": in_pixels},
        "repeated_on_sky": {"share": _pooled(on_sky.values()), "detectors": on_sky},
        "recovered": _as_json(recovery, units),
    }
    results = _without_nan(results)
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        write_atomic(to / "cosmicray_run.json", f"{json.dumps(results, indent=1)}\n".encode())
    return results


def _evenly_spaced(units: list[Unit], count: int) -> list[Unit]:
    return [units[i] for i in sorted({round(place) for place in np.linspace(0, len(units) - 1, count)})]


def _in_pixels(root: Path, plan: Plan, units: list[Unit]) -> dict[str, Any] | None:
    chosen = _evenly_spaced(units, _MAX_DETECTOR_EXPOSURES)
    if len(chosen) < 2:
        return None
    x_and_y = [_columns(root, unit, "x", "y") for unit in chosen]
    return _recurrence(detector_recurrence([(x, y) for x, y in x_and_y], plan.campaign.shape))


def _on_sky(root: Path, plan: Plan, units: list[Unit]) -> dict[str, Any] | None:
    chosen = [
        (unit, wcs) for unit in _evenly_spaced(units, _MAX_SKY_EXPOSURES) if (wcs := _wcs(plan, unit)) is not None
    ]
    if len(chosen) < 2:
        return None
    x_and_y = [_columns(root, unit, "x", "y") for unit, _ in chosen]
    found = sky_recurrence([(x, y) for x, y in x_and_y], [wcs for _, wcs in chosen])
    return None if found is None else _recurrence(found)


def _wcs(plan: Plan, unit: Unit) -> WCS | None:
    text = read_header(plan.campaign.path, *plan.campaign.index(unit.exposure, unit.detector))
    with suppress_warnings():
        return celestial_wcs(Header.fromstring(text, sep="\n")) if text else None


def _recurrence(found: Recurrence) -> dict[str, Any]:
    return {
        "least_exposures": found.min_exposures,
        "n_events": found.n_events,
        "n_shared": found.n_shared,
        "by_chance": found.by_chance,
        "share": found.share,
        "share_err": found.share_err,
        "n_places": len(found.table["n_exposures"]),
        "places": {name: values[:_MAX_LISTED].tolist() for name, values in found.table.items()},
    }


def _pooled(parts: Any) -> dict[str, float | int] | None:
    """Return the fraction of recurrent events over all detectors; None if no exposures could be compared."""
    known = [part for part in parts if part is not None and part["n_events"]]
    if not known:
        return None
    n = sum(part["n_events"] for part in known)
    share = sum(part["n_shared"] - part["by_chance"] for part in known) / n
    error = float(np.sqrt(sum((part["share_err"] * part["n_events"]) ** 2 for part in known))) / n
    return {"share": share, "share_err": error, "n_places": sum(part["n_places"] for part in known)}


def _recovery(root: Path, plan: Plan, on_progress: Callable[[str], None]) -> tuple[Recovery, list[list[Any]]]:
    """Add known events to some units of a run, and detect them with the settings of the run."""
    _, ready = _sampled_units(root, plan)
    chosen = _evenly_spaced([unit for unit, _ in ready], _INJECTED_UNITS)
    on_progress(f"adding known cosmic rays to {len(chosen)} units")
    parts = list(_recovered(root, plan, chosen))
    return reduce(add, parts), [[unit.exposure, unit.detector] for unit in chosen]


def _recovered(root: Path, plan: Plan, units: list[Unit]) -> Iterator[Recovery]:
    path, settings = plan.campaign.path, plan.config.detect
    for unit in units:
        row, column = plan.campaign.index(unit.exposure, unit.detector)
        frame = Frame(
            plan.campaign.metadata(unit.exposure, unit.detector),
            plan.campaign.instrument,
            plan.campaign.units,
            lambda name, row=row, column=column: read_unit_pixels(path, row, column, name),  # type: ignore[misc]
            lambda name, row=row, column=column: read_shard(root, name, row, column),  # type: ignore[misc]
        )

        def find(
            data: npt.NDArray[np.float32], error: npt.NDArray[np.float32], frame: Frame = frame
        ) -> npt.NDArray[np.bool_]:
            found = detect(
                data,
                error,
                frame.ignore,
                detector=frame.metadata.detector,
                threshold=settings.threshold,
                model=settings.model,
                device=plan.config.engine.device,
                rate=settings.rate,
                precision=settings.precision,
            )
            return np.asarray(found.mask)

        charge = draw_cosmic_rays(
            np.random.default_rng([_SEED, row, column]),
            CosmicRays(pixel_fraction=(_INJECTED_FRACTION,)),
            plan.campaign.shape,
        )
        flagged = frame.product("cr_mask")
        yield injection_recovery(frame.data, frame.error, frame.ignore, flagged, charge, find)


def _as_json(recovery: Recovery, units: list[list[Any]]) -> dict[str, Any]:
    return {
        "units": units,
        "recall_visible_pixels": recovery.recall,
        "n_visible_pixels": recovery.n_visible,
        "charge_edges": CHARGE_BINS.tolist(),
        "n_events": recovery.n_events.tolist(),
        "n_events_found": recovery.n_events_found.tolist(),
        "n_flagged_before": recovery.n_flagged,
        "n_lost": recovery.n_lost,
        "n_gained": recovery.n_gained,
    }


def _without_nan(value: Any) -> Any:
    """Replace NaN by None in nested lists and dictionaries, for JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def summary_lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield the evaluation of a run as lines of text."""
    exposures = results["rates"]
    for name, n, rate, error in zip(*exposures.values(), strict=True):
        rate_text = "unknown rate" if rate is None else f"{rate:.3g} +- {error:.2g} events/cm^2/s"
        yield f"{name}  {n} cosmic rays, {rate_text}"
    for key, word in (
        ("repeated_in_pixels", "at one pixel of the detector"),
        ("repeated_on_sky", "at one place of the sky"),
    ):
        pooled = results[key]["share"]
        if pooled is None:
            yield f"{word}: no exposures that can be compared"
        else:
            yield (
                f"{word}: {100 * pooled['share']:.2f} +- {100 * pooled['share_err']:.2f} % of the events above chance, "
                f"{pooled['n_places']} positions stand out"
            )
    known = results["recovered"]
    if known["recall_visible_pixels"] is not None:
        yield (
            f"known cosmic rays: {100 * known['recall_visible_pixels']:.1f} % of {known['n_visible_pixels']} visible "
            f"pixels found; of {known['n_flagged_before']} pixels flagged before {known['n_lost']} lost, "
            f"{known['n_gained']} gained"
        )
    edges = known["charge_edges"]
    for low, high, n, found in zip(edges, edges[1:], known["n_events"], known["n_events_found"], strict=False):
        if n:
            yield f"  {low:.0f} to {high:.0f} e-: {found} of {n} events"
    yield from (alarm["sentence"] for alarm in results["alarms"])
    if not results["alarms"]:
        yield "no alarm"
