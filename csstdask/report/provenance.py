"""Show where a run comes from: dates, camera, commands, versions and models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from csstdask.instrument import Instrument
from csstdask.nn.models import find_card
from csstdask.pipeline.config import MODEL_SETTINGS, NO_PSF
from csstdask.pipeline.plan import Plan
from csstdask.report.commands import changed_settings, run_commands
from csstdask.report.document import render, table


def show_provenance(
    root: Path, attributes: Mapping[str, Any], planes: Iterable[str], plan: Plan, instrument: Instrument
) -> Markup:
    """Return the section about the origin of a run.

    Parameters
    ----------
    root : Path
        Store of the run.
    attributes : mapping
        Attributes of the store.
    planes : iterable of str
        For each unit the HDU that each plane was read from, as JSON.
    plan : Plan
        Plan of the run.
    instrument : Instrument
    """
    campaign = plan.campaign.path
    versions = ", ".join(f"{name} {version}" for name, version in attributes.get("software", {}).items())
    camera = f"{instrument.name} ({instrument.description})" if instrument.description else instrument.name
    facts = [
        ("run", str(root.resolve())),
        ("campaign", str(campaign.resolve())),
        ("camera", camera),
        ("planes read", planes_read(planes)),
        ("units recorded", _dates(root)),
        ("steps", ", ".join(attributes.get("steps", []))),
        ("fingerprint", plan.fingerprint),
        ("software", versions or "unknown"),
    ]
    changed = changed_settings(plan.config)
    return render(
        "provenance.html.jinja",
        facts=facts,
        commands=run_commands(root, plan, attributes),
        models=table(("step", "model", "version", "SHA-256"), _models(plan)),
        changed=changed,
        settings=json.dumps(attributes.get("config", {}), indent=1),
    )


def planes_read(planes: Iterable[str]) -> str:
    """Count the units by the HDU that each plane was read from, and by how it was identified."""
    found: Counter[str] = Counter()
    for record in filter(None, planes):
        for role, plane in json.loads(record).items():
            if isinstance(plane, dict):
                name = plane["name"] or f"HDU {plane['hdu']}"
                found[f"{role} from {name} by {plane['found_by']}"] += 1
            else:
                found.update(f"not used: {text}" for text in plane)
    return "; ".join(f"{text} ({count})" for text, count in sorted(found.items())) or "not recorded"


def _dates(root: Path) -> str:
    """Return when the first and the last unit were recorded: the times of the files of the ledger."""
    times = [path.stat().st_mtime for path in (root / "ledger").glob("*/*.json")]
    if not times:
        return "none"
    first, last = (datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S") for time in (min(times), max(times)))
    return f"{first} to {last} UTC" if first != last else f"{first} UTC"


def _models(plan: Plan) -> Iterator[tuple[str, str, str, str]]:
    """Yield step, name, version and SHA-256 of the models of a run; of classical methods the SHA-256 of the card."""
    steps = {step.name for step in plan.steps}
    for (part, key), task in MODEL_SETTINGS.items():
        name = getattr(getattr(plan.config, part), key)
        if part not in steps or name == NO_PSF:
            continue
        card = find_card(task, name)
        yield part, card.name, card.version, card.sha256
