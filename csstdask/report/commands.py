"""Compose the commands that a report shows: each can be pasted into a shell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.plan import Plan


def run_commands(run: Path, plan: Plan, attributes: Mapping[str, Any]) -> list[str]:
    """Return the commands that make or resume a run, one for each selection of units."""
    options = ["--steps", ",".join(step.name for step in plan.steps)]
    options += ["--config", str(run)] if plan.config != RunConfig() else []
    commands = []
    for one in attributes.get("selections", []):
        parts = [f"exposure={','.join(one['exposures'])}"] if one["exposures"] else []
        parts += [f"detector={','.join(map(str, one['detectors']))}"] if one["detectors"] else []
        select = ["--select", ",".join(parts)] if parts else []
        commands.append(shlex.join(["csstdask", "run", str(plan.campaign.path), "--to", str(run), *select, *options]))
    return commands


def changed_settings(config: RunConfig) -> str:
    """Return the settings that differ from the defaults as TOML; an empty text if none do."""
    defaults, lines = RunConfig().model_dump(mode="json"), []
    for part, values in config.model_dump(mode="json").items():
        changed = {key: value for key, value in values.items() if value != defaults[part][key] and value is not None}
        if changed:
            lines += [f"[{part}]", *(f"{key} = {json.dumps(value)}" for key, value in changed.items()), ""]
    return "\n".join(lines).strip()
