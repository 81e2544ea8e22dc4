"""Report which units of a run are done, failed and pending. Nothing here imports Dask."""

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
    """How each reduction stands."""
    damaged: list[str] = field(default_factory=list)
    """Lines that name files of pending units that are lost or have another size than recorded."""

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
        """Return the units that are neither done nor failed."""
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
    """Report which units of a run are done, failed and pending.

    A unit whose products are damaged is pending: the next run does it again. Sizes show most damage; with `verify`,
    which reads everything, every damaged unit is among the failures.

    Parameters
    ----------
    path : str or Path
        The run's store.
    campaign : str or Path, optional
        Where the campaign lies, if it has moved.
    verify : bool
        Compare checksums of everything that is recorded, not only sizes.

    Raises
    ------
    StoreError
        If there is no run, or its campaign is not there; with `verify`, if metadata or metrics of the run are damaged.
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
        fresh = record.fresh(root, fingerprints, checksum=verify)
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
    """Return the step and a line about the first damaged file of a unit; None if there is none."""
    if record.torn:
        return "record", f"{ledger.path(record.unit)}: found a damaged record; the next run does the unit again"
    found = record.damaged(ledger.root, fingerprints, checksum=checksum)
    if found is None:
        return None
    step, item = found
    path = ledger.root / item.path
    what = "found content that differs from its record" if path.exists() else "found no file, which its record lists"
    return (
        step,
        f"{path}: {what}; the next run{' with --verify' if item.is_intact(ledger.root) else ''} does the step again",
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
    """Return the command that does one unit again, quoted for a shell.

    Parameters
    ----------
    campaign, run : Path
        The stores.
    unit : Unit
        One unit.
    step : str
        The step that failed; what is no step, such as a worker's death, stands for all `steps`.
    steps : sequence of str
        Of the run; by default all there are.
    config : RunConfig, optional
        Settings of the run: where they are not the defaults, the command takes them from the run.
    verify : bool
        Whether the unit is done as far as sizes tell, and its checksums are to be compared.

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
    """Return a failure of a unit as summaries list it, with the command that reproduces it."""
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
    """Return the plan that a run's store remembers: all steps and units so far, with the last settings."""
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
