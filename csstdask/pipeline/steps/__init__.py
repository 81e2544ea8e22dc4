"""Registry of the steps, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

from csstdask.core.errors import InputError
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.step import Step
from csstdask.pipeline.steps.background import BACKGROUND
from csstdask.pipeline.steps.detect import DETECT
from csstdask.pipeline.steps.extract import EXTRACT
from csstdask.pipeline.steps.psf import PSF
from csstdask.pipeline.steps.repair import REPAIR
from csstdask.pipeline.steps.sources import SOURCES
from csstdask.pipeline.steps.zeropoint import ZEROPOINT

STEPS: dict[str, Step] = {step.name: step for step in (BACKGROUND, DETECT, PSF, REPAIR, SOURCES, EXTRACT, ZEROPOINT)}


def resolve(names: Iterable[str] | None) -> tuple[Step, ...]:
    """Return the steps to run, in order: the requested ones and those they require.

    Raises
    ------
    InputError
        If a name is not that of a step.
    """
    wanted = list(STEPS) if names is None else [name.strip() for name in names if name.strip()]
    unknown = [name for name in wanted if name not in STEPS]
    if unknown or not wanted:
        raise InputError("--steps", ", ".join(unknown) or "nothing", f"some of {', '.join(STEPS)}")
    closed: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in closed:
            closed.add(name)
            wanted.extend(STEPS[name].requires)
    return tuple(step for name, step in STEPS.items() if name in closed)


def apply_steps(
    frame: Frame,
    names: Iterable[str],
    config: RunConfig,
    around: Callable[[Step], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Apply steps, and those they require, to a frame outside of a run.

    Parameters
    ----------
    frame : Frame
        Receives the results; steps that do not process its kind are skipped.
    names : iterable of str
        Names of steps.
    config : RunConfig
        Settings.
    around : callable
        Returns the context in which a step runs.
    """
    for step in resolve(names):
        if frame.metadata.kind not in step.kinds:
            continue
        with around(step):
            output = step.body(frame, config)
        frame.add_results(output.arrays, output.tables, dict.fromkeys(step.owned_files) | output.files)
