"""Report which units of a run are done, failed and pending. Nothing here imports Dask."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from csstdask.engine.ledger import Ledger
from csstdask.engine.units import AnyOf, Selection
from csstdask.errors import StoreError
from csstdask.pipeline.accounting import StepUsage, UsageTally, fresh_usage
from csstdask.pipeline.config import MODEL_SETTINGS, RunConfig
from csstdask.pipeline.plan import Plan, make_plan
from csstdask.pipeline.steps import resolve
from csstdask.store.campaign import Campaign
from csstdask.store.run import campaign_path, check_same_campaign
from csstdask.store.zarr_arrays import open_group


@dataclass
class Summary:
    """Result of a run."""

    total: int = 0
    done: int = 0
    skipped: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: str = ""
    kernel_seconds: float = 0.0
    """Of the steps' bodies, over all units done now."""
    seconds: float = 0.0
    """Wall time."""
    stopped: str | None = None
    """Why the run ended early, if it did."""
    usage: list[StepUsage] = field(default_factory=list)
    """Predicted and actual usage of each step."""

    @property
    def failed(self) -> int:
        """Return the number of failed units."""
        return len(self.failures)

    @property
    def pending(self) -> int:
        """Return the units that are neither done nor failed."""
        return self.total - self.done - self.skipped - self.failed

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        units = {name: getattr(self, name) for name in ("total", "done", "skipped", "failed", "pending")}
        usage = [row.to_json() for row in self.usage]
        return {"units": units, "failures": self.failures, "fingerprint": self.fingerprint, "usage": usage}


def status(path: str | Path, *, campaign: str | Path | None = None, verify: bool = False) -> Summary:
    """Report which units of a run are done, failed and pending.

    Parameters
    ----------
    path : str or Path
        The run's store.
    campaign : str or Path, optional
        Where the campaign lies, if it has moved.
    verify : bool
        Compare checksums of everything that is recorded, not only sizes.
    """
    root = Path(path)
    plan = plan_of_run(root, campaign)
    ledger = Ledger(root)
    summary, tally = Summary(fingerprint=plan.fingerprint), UsageTally()
    for unit, _, _ in plan.units():
        summary.total += 1
        record = ledger.read(unit)
        fingerprints = plan.fingerprints(plan.campaign.facts(unit.exposure, unit.detector))
        fresh = record.fresh(root, fingerprints, checksum=verify)
        tally.add(fresh_usage(record, fresh))
        if len(fresh) == len(fingerprints):
            summary.done += 1
        elif record.failure is not None:
            summary.failures.append({"exposure": unit.exposure, "detector": unit.detector, **record.failure})
        elif verify and (damaged := _damaged(record.steps, fingerprints, fresh)):
            reason = "what is on disk differs from its record: run it again"
            summary.failures.append(
                {"exposure": unit.exposure, "detector": unit.detector, "step": damaged, "reason": reason}
            )
    summary.usage = tally.rows(plan)
    return summary


def _damaged(recorded: Any, fingerprints: dict[str, str], fresh: list[str]) -> str | None:
    """Return the first step that is recorded with the right fingerprint and yet not fresh."""
    for name, value in fingerprints.items():
        if name not in fresh and name in recorded and recorded[name].fingerprint == value:
            return name
    return None


def plan_of_run(path: str | Path, campaign: str | Path | None = None) -> Plan:
    """Return the plan that a run's store remembers: all steps and units so far, with the last settings."""
    root = Path(path)
    attributes = dict(open_group(root, "run").attrs)
    if "steps" not in attributes:
        raise StoreError(f"{root}: found a run that was stopped before it began; wanted one to look at (run it again)")
    selections: Any = attributes["selections"]
    steps: Any = attributes["steps"]
    stored: Any = attributes["config"]
    try:
        config = RunConfig.model_validate(portable_config(root, dict(stored), back=True))
    except (ValidationError, KeyError) as error:
        unknown = error.error_count() if isinstance(error, ValidationError) else 1
        raise StoreError(f"{root}: found settings of another version ({unknown} unknown); wanted ours") from None
    source = campaign_path(root, campaign)
    if not (source / "zarr.json").exists():
        raise StoreError(f"{source}: found no campaign; wanted that of {root} (moved? give its path: --campaign PATH)")
    check_same_campaign(root, Campaign(source))
    return make_plan(
        source,
        resolve(steps),
        config,
        AnyOf(tuple(Selection(tuple(one["exposures"]), frozenset(one["detectors"])) for one in selections)),
    )


def portable_config(root: Path, config: dict[str, Any], *, back: bool = False) -> dict[str, Any]:
    """Name the models that lie in a run relative to it, or, `back`, by their full path again."""
    folder = f"{root.resolve()}/"
    for part, key in MODEL_SETTINGS:
        known = RunConfig.model_fields[part].default.model_dump() | config.get(part, {})  # of before it had that key
        model = known[key]
        if back and model.startswith("models/"):
            model = folder + model
        config[part] = known | {key: model if back else model.removeprefix(folder)}
    return config
