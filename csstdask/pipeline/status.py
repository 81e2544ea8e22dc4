"""Report which units of a run are finished, failed and pending. Nothing here imports Dask."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, cast

from csstdask.core.errors import StoreError
from csstdask.engine.collector import JobSummary
from csstdask.engine.ledger import Ledger, UnitRecord
from csstdask.engine.work_units import Selection, SelectionUnion, Unit
from csstdask.pipeline.config import RunConfig, parse_run_settings
from csstdask.pipeline.plan import Plan, make_plan
from csstdask.pipeline.reduction_status import ReductionSummary, reduction_status
from csstdask.pipeline.stages import resolve_stages
from csstdask.pipeline.steps import STEPS
from csstdask.pipeline.usage_report import StepUsage, UsageTotals, recorded_usage
from csstdask.store.campaign import Campaign
from csstdask.store.run import campaign_path, check_metadata, check_same_campaign
from csstdask.store.store_metadata import open_group


@dataclass
class Summary(JobSummary):
    """Result of a run."""

    total: int = 0
    """Number of selected units."""
    done: int = 0
    """Number of units processed now; in a status, of all finished units."""
    skipped: int = 0
    """Number of units that were finished before."""
    fingerprint: str = ""
    """SHA-256 of everything that the run does, without its input."""
    kernel_seconds: float = 0.0
    """Time of the bodies of steps, over all units processed now [s]."""
    usage: list[StepUsage] = field(default_factory=list)
    """Predicted and actual usage of each step."""
    reductions: list[ReductionSummary] = field(default_factory=list)
    """State of each reduction."""
    damaged: list[str] = field(default_factory=list)
    """Lines that name lost files of pending units, and files whose size differs from the record."""

    @property
    def failed(self) -> int:
        """Return the number of failed units."""
        return len(self.failures)

    @property
    def failed_reductions(self) -> list[ReductionSummary]:
        """Return the reductions that failed for some detector."""
        return [one for one in self.reductions if one.failures]

    @property
    def pending(self) -> int:
        """Return the number of units that are neither finished nor failed."""
        return self.total - self.done - self.skipped - self.failed

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        units = {name: getattr(self, name) for name in ("total", "done", "skipped", "failed", "pending")}
        usage = [row.to_json() for row in self.usage]
        return {
            "units": units,
            "failures": self.failures,
            "fingerprint": self.fingerprint,
            "usage": usage,
            "reductions": [one.to_json() for one in self.reductions],
        }


def status(path: str | Path, *, campaign: str | Path | None = None, verify: bool = False) -> Summary:
    """Report which units of a run are finished, failed and pending.

    A unit with damaged products is pending: the next run redoes it. Sizes reveal most damage; with `verify`,
    which reads everything, every damaged unit is listed among the failures.

    Parameters
    ----------
    path : str or Path
        The run's store.
    campaign : str or Path, optional
        Path of the campaign, if it has moved.
    verify : bool
        Compare the checksums of everything that is recorded, not only sizes.

    Raises
    ------
    StoreError
        If there is no run, or its campaign does not exist; with `verify`, if metadata or metrics are damaged.
    """
    root = Path(path)
    plan = load_plan(root, campaign)
    if verify:
        check_metadata(root)
    ledger = Ledger(root)
    summary, tally = Summary(fingerprint=plan.fingerprint), UsageTotals()
    for unit, _, _ in plan.units():
        summary.total += 1
        record = ledger.read(unit)
        fingerprints = plan.fingerprints(plan.campaign.metadata(unit.exposure, unit.detector))
        fresh = record.up_to_date(root, fingerprints, checksum=verify)
        tally.add(recorded_usage(record, fresh))
        if len(fresh) == len(fingerprints):
            summary.done += 1
        elif record.failure is not None:
            summary.failures.append(
                failure_entry(plan, root, unit, step=record.failure["step"], reason=record.failure["reason"])
            )
        elif (damage := describe_damage(record, ledger, fingerprints, checksum=verify)) is not None:
            step, reason = damage
            if verify:
                summary.failures.append(failure_entry(plan, root, unit, step=step, reason=reason, verify=True))
            else:
                summary.damaged.append(f"{unit}: {reason}")
    summary.usage = tally.rows(plan)
    summary.reductions = reduction_status(plan, ledger, verify=verify)
    return summary


def describe_damage(
    record: UnitRecord, ledger: Ledger, fingerprints: Mapping[str, str], *, checksum: bool
) -> tuple[str, str] | None:
    """Return step and description of the first damaged file of a unit; None if there is none."""
    if record.unreadable:
        return "record", f"{ledger.path(record.unit)}: found a damaged record; the next run redoes the unit"
    found = record.damaged(ledger.root, fingerprints, checksum=checksum)
    if found is None:
        return None
    step, item = found
    path = ledger.root / item.path
    what = "found content that differs from its record" if path.exists() else "found no file, which its record lists"
    return (
        step,
        f"{path}: {what}; the next run{' with --verify' if item.is_intact(ledger.root) else ''} redoes the step",
    )


def reproduce_command(
    campaign: Path,
    run: Path,
    unit: Unit,
    step: str,
    *,
    steps: Sequence[str] = (),
    config: RunConfig | None = None,
    verify: bool = False,
) -> str:
    """Return the shell command that redoes one unit.

    Parameters
    ----------
    campaign, run : Path
        The stores.
    unit : Unit
        The unit.
    step : str
        The step that failed; anything else, such as the death of a worker, stands for all `steps`.
    steps : sequence of str
        Steps of the run; default: all.
    config : RunConfig, optional
        Settings of the run: unless they are the defaults, the command reads them from the run.
    verify : bool
        Whether the unit is finished judging by sizes, so that its checksums must be compared.

    Examples
    --------
    >>> reproduce_command(Path("my night.zarr"), Path("run.zarr"), Unit("101", 7), "detect")
    "csstdask run 'my night.zarr' --to run.zarr --select exposure=101,detector=7 --steps detect"
    """
    select = f"exposure={escape(unit.exposure)},detector={unit.detector}"
    command = ["csstdask", "run", str(campaign), "--to", str(run), "--select", select]
    if step in STEPS:
        command += ["--steps", step]
    elif steps and set(steps) != set(STEPS):
        command += ["--steps", ",".join(steps)]
    if config is not None and config != RunConfig():
        command += ["--config", str(run)]
    return shlex.join([*command, *(["--verify"] if verify else [])])


def failure_entry(plan: Plan, run: Path, unit: Unit, *, step: str, reason: str, verify: bool = False) -> dict[str, Any]:
    """Return a failure of a unit for a summary, with the command that reproduces it."""
    names = [one.name for one in plan.steps]
    command = reproduce_command(plan.campaign.path, run, unit, step, steps=names, config=plan.config, verify=verify)
    return {
        "exposure": unit.exposure,
        "detector": unit.detector,
        "step": step,
        "reason": reason,
        "reproduce": command,
    }


def load_plan(path: str | Path, campaign: str | Path | None = None) -> Plan:
    """Return the plan of an existing run: all steps and units so far, with the last settings."""
    root = Path(path)
    attributes = dict(open_group(root, "run").attrs)
    if "steps" not in attributes:
        raise StoreError(f"{root}: found a run that was stopped before it began; wanted one to look at (run it again)")
    selections: Any = attributes["selections"]
    names: Any = [*cast("list[str]", attributes["steps"]), *cast("list[str]", attributes.get("reductions", []))]
    config = parse_run_settings(root, attributes)
    source = campaign_path(root, campaign)
    check_same_campaign(root, Campaign(source))
    stages = resolve_stages(names)
    chosen = SelectionUnion(
        tuple(Selection(tuple(one["exposures"]), frozenset(one["detectors"])) for one in selections)
    )
    return make_plan(source, stages.steps, config, chosen, stages.reductions)
