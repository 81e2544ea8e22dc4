"""Prepare a run: check the request, resolve it to a plan, estimate its cost. Nothing here imports Dask."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csstdask.core.atomic_io import sha256_file
from csstdask.core.errors import InputError, StoreError
from csstdask.engine.ledger import Ledger
from csstdask.engine.schedulers import check_scheduler
from csstdask.engine.work_units import Selection
from csstdask.nn.card import ModelCard, copy_model
from csstdask.nn.models import find_card
from csstdask.nn.precision import Precision, fastest_precision
from csstdask.pipeline.config import INPUT_TABLES, MODEL_SETTINGS, RunConfig, load_run_settings
from csstdask.pipeline.plan import Plan, make_plan
from csstdask.pipeline.reduction_status import reduction_status
from csstdask.pipeline.reductions import REDUCTIONS
from csstdask.pipeline.stages import resolve_stages
from csstdask.pipeline.status import Summary
from csstdask.pipeline.steps import STEPS
from csstdask.pipeline.usage_report import UsageTotals, recorded_usage, total_usage
from csstdask.store.store_metadata import open_group, refuse_inside_store, store_kind

#: Files that a run writes before the store itself: a driver may be killed at that point, and the run resumed.
_BEFORE_STORE = ("driver.json", "models")


def prepare(
    campaign: str | Path,
    root: Path,
    steps: Sequence[str] | None,
    chosen: Selection,
    config: RunConfig | None,
    scheduler: str,
    workers: int | None,
    *,
    repair: bool = False,
) -> tuple[Plan, int, int]:
    """Check a request and resolve it.

    Parameters
    ----------
    campaign, root : path
        Input and output store.
    steps, chosen, config, scheduler, workers
        As for `csstdask.pipeline.run.run`.
    repair : bool
        Accept an existing run with damaged metadata.

    Returns
    -------
    plan, total, workers
        The plan, and the numbers of units and workers.

    Raises
    ------
    InputError, StoreError, MemoryProjectionError
        If the run could not start.
    """
    check_scheduler(scheduler)
    settings = config or RunConfig()
    if scheduler == "cuda" and settings.engine.device is None:
        engine = settings.engine.model_copy(update={"device": "cuda"})
        settings = settings.model_copy(update={"engine": engine})
    settings = choose_precision(resolve_inputs(settings, Path(campaign)), root)
    stages = resolve_stages(steps if steps is not None else default_stages(settings))
    plan = make_plan(Path(campaign), stages.steps, settings, chosen, stages.reductions)
    check_inputs(plan)
    check_target(root, plan, repair=repair)
    total = sum(1 for _ in plan.units())
    if total == 0 and not chosen.selects_all:
        raise InputError("--select", "no unit", f"units of {campaign} that are present")
    return plan, total, plan.choose_workers(scheduler, workers)


def estimate(
    campaign: str | Path,
    to: str | Path,
    *,
    steps: Sequence[str] | None = None,
    selection: Selection | None = None,
    config: RunConfig | None = None,
    scheduler: str = "threads",
    workers: int | None = None,
    verify: bool = False,
    redo: bool = False,
) -> dict[str, Any]:
    """Estimate what a run with these arguments would do and cost, without writing anything.

    Returns
    -------
    dict
        ``units`` and ``failures`` as a run's summary has them, ``steps``, ``bytes_read``,
        ``bytes_written_at_most``, ``memory_bytes``, ``workers``, ``seconds_estimated``, ``calibrated_on`` (number of
        finished units whose times the estimate is based on; 0: the reference machine's), ``fingerprint``.
    """
    root = Path(to)
    plan, total, count = prepare(
        campaign, root, steps, selection or Selection(), config, scheduler, workers, repair=verify
    )
    ledger, tally = Ledger(root), UsageTotals()
    for unit, _, _ in plan.units():
        wanted = plan.fingerprints(plan.campaign.metadata(unit.exposure, unit.detector))
        record = ledger.read(unit)
        if not redo and len(fresh := record.up_to_date(root, wanted, checksum=verify)) == len(wanted):
            tally.add(recorded_usage(record, fresh))
    done, measured = tally.units, tally.rows(plan)
    pending = total - done
    unit_seconds = total_usage(measured).actual.seconds if measured else None
    slots = max(1, min(count, pending))
    return {
        **Summary(total=total, skipped=done, fingerprint=plan.fingerprint, usage=measured).to_json(),
        "steps": [step.name for step in plan.steps],
        "bytes_read": pending * plan.pixels * 12,
        "bytes_written_at_most": pending * plan.stored_bytes(),
        "memory_bytes": plan.projection(scheduler, slots).total,
        "workers": slots,
        "seconds_estimated": plan.seconds(pending, slots, unit_seconds),
        "calibrated_on": done,
        "fingerprint": plan.fingerprint,
        "reductions": [one.to_json() for one in reduction_status(plan, ledger)],
    }


def choose_precision(config: RunConfig, root: Path | None = None) -> RunConfig:
    """Return settings with the arithmetic of the detection network, if they leave the choice to the run.

    All units are computed with one arithmetic. An existing run keeps its own, and a new one, or products without a
    store, take the fastest of the machine that asks for them. A worker whose processor lacks the instructions emulates
    them.
    """
    if config.detect.precision != "auto":
        return config
    card = find_card("cosmicray", config.detect.model)
    device = config.engine.device or "cpu"
    precision = recorded_precision(root, card, device) if root is not None else None
    precision = precision or fastest_precision(card, device)
    return config.model_copy(update={"detect": config.detect.model_copy(update={"precision": precision})})


def recorded_precision(root: Path, card: ModelCard, device: str) -> Precision | None:
    """Return the arithmetic of an existing run; None if there is no run, or it used another model or kind of device."""
    try:
        recorded = load_run_settings(root)
    except (InputError, StoreError):
        return None
    same_model = find_card("cosmicray", recorded.detect.model).identity == card.identity
    same_device = (recorded.engine.device or "cpu").partition(":")[0] == device.partition(":")[0]
    precision = recorded.detect.precision
    return precision if same_model and same_device and precision != "auto" else None


def resolve_inputs(config: RunConfig, campaign: Path) -> RunConfig:
    """Return settings with the paths and checksums of all input tables.

    A table that the settings do not name is that of the campaign, if it has one, as mock campaigns do.

    Raises
    ------
    InputError
        If a table that the settings name does not exist.
    """
    for name, part in INPUT_TABLES.items():
        settings = getattr(config, part)
        own, given = campaign / "tables" / f"{name}.parquet", getattr(settings, name)
        path = Path(given) if given is not None else own if own.is_file() else None
        if path is not None and not path.is_file():
            raise InputError(path, "no such file", f"the Parquet table of --{name}")
        found = {
            name: None if path is None else str(path.resolve()),
            f"{name}_sha256": None if path is None else _checksum(str(path), path.stat().st_mtime_ns),
        }
        config = config.model_copy(update={part: settings.model_copy(update=found)})
    return config


@functools.lru_cache(maxsize=8)
def _checksum(path: str, _changed: int) -> str:
    return sha256_file(Path(path))


def default_stages(config: RunConfig) -> list[str]:
    """Return the names of all steps and reductions whose input tables there are."""
    given = {name for name, section in INPUT_TABLES.items() if getattr(getattr(config, section), name) is not None}
    needs = {step.name: set(step.inputs) for step in STEPS.values()}
    needs |= {one.name: set(one.inputs) | needs[one.step] for one in REDUCTIONS.values()}
    return [name for name, wanted in needs.items() if wanted <= given]


def check_inputs(plan: Plan) -> None:
    """Raise InputError if a step or reduction for frames of the campaign could not succeed."""
    for step in plan.active_steps:
        step.check(plan)
    for reduction in plan.active_reductions:
        reduction.check(plan)


def copy_user_models(root: Path, config: RunConfig) -> RunConfig:
    """Copy the user's models into the run, under their identity; return settings that name the copies.

    Later training in the same folder then does not affect the run, and the run can be read without the folder.
    """
    for (part, key), task in MODEL_SETTINGS.items():
        settings = getattr(config, part)
        model = getattr(settings, key)
        if model.endswith(".json"):
            copy = copy_model(find_card(task, model), Path(model), root / "models")
            changed = settings.model_copy(update={key: str(copy.resolve())})
            config = config.model_copy(update={part: changed})
    return config


def check_target(root: Path, plan: Plan, *, repair: bool = False) -> None:
    """Raise unless a target is a run, or free to become one; with `repair`, a damaged run is accepted."""
    if root.resolve() == plan.campaign.path.resolve():
        raise InputError("--to", "the campaign itself", "another path for the run")
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root}: found a file; wanted a folder for the run, or none")
    if repair and (root / "ledger").is_dir() and store_kind(root) in {None, "run"}:
        return
    if (root / "zarr.json").exists():
        open_group(root, "run")
        return
    if (root / "ledger").is_dir():
        raise StoreError(f"{root / 'zarr.json'}: found no file; wanted that of a run (--verify restores it)")
    refuse_inside_store(root)
    if root.is_dir() and any(not item.name.lstrip(".").startswith(_BEFORE_STORE) for item in root.iterdir()):
        raise StoreError(f"{root}: found a folder that is no run; wanted a csstdask run, or a new name")
