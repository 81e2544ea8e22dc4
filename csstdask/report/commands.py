"""The commands that a report gives: each can be pasted into a shell as it stands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.steps import STEPS

#: Name of the file of settings in a command, where a run's differ from the defaults.
SETTINGS_FILE = "settings.toml"


def run_commands(run: Path, plan: Plan, attributes: Mapping[str, Any]) -> list[str]:
    """Return the commands that make or resume a run: one for each selection of units, with its steps and settings."""
    options = ["--steps", ",".join(step.name for step in plan.steps), *settings_option(plan.config)]
    commands = []
    for one in attributes.get("selections", []):
        parts = [f"exposure={','.join(one['exposures'])}"] if one["exposures"] else []
        parts += [f"detector={','.join(map(str, one['detectors']))}"] if one["detectors"] else []
        select = ["--select", ",".join(parts)] if parts else []
        commands.append(_run_command(run, plan.campaign.path, *select, *options))
    return commands


def _run_command(run: Path, campaign: Path, *options: str) -> str:
    return shlex.join(["csstdask", "run", str(campaign), "--to", str(run), *options])


def settings_option(config: RunConfig) -> tuple[str, ...]:
    """Return the option that a command needs to repeat what a run did with its settings."""
    return ("--config", SETTINGS_FILE) if changed_settings(config) else ()


def reproduce_command(run: Path, campaign: Path, failure: Mapping[str, Any], *options: str) -> str:
    """Return the command that repeats one failed unit, up to the step that failed.

    Parameters
    ----------
    run, campaign : Path
    failure : mapping
        ``exposure``, ``detector`` and ``step``. A step that is none of the pipeline's (a killed worker) is left out.
    *options : str
        Further options, such as ``--config settings.toml``.

    Examples
    --------
    >>> failure = {"exposure": "n1", "detector": 7, "step": "detect"}
    >>> reproduce_command(Path("r.zarr"), Path("c.zarr"), failure)
    'csstdask run c.zarr --to r.zarr --select exposure=n1,detector=7 --steps detect'
    """
    step = ("--steps", str(failure["step"])) if failure["step"] in STEPS else ()
    select = f"exposure={failure['exposure']},detector={failure['detector']}"
    return _run_command(run, campaign, "--select", select, *step, *options)


def changed_settings(config: RunConfig) -> str:
    """Return the settings that differ from the defaults as TOML; an empty text if none do."""
    defaults, lines = RunConfig().model_dump(mode="json"), []
    for part, values in config.model_dump(mode="json").items():
        changed = {key: value for key, value in values.items() if value != defaults[part][key] and value is not None}
        if changed:
            lines += [f"[{part}]", *(f"{key} = {json.dumps(value)}" for key, value in changed.items()), ""]
    return "\n".join(lines).strip()
