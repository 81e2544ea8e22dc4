"""Resolve names of steps and reductions, from the command line or from a store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from csstdask.core.errors import InputError
from csstdask.pipeline.reduction import Reduction
from csstdask.pipeline.reductions import REDUCTIONS
from csstdask.pipeline.step import Step
from csstdask.pipeline.steps import STEPS, resolve


@dataclass(frozen=True)
class Stages:
    """Steps in order, and reductions."""

    steps: tuple[Step, ...]
    reductions: tuple[Reduction, ...] = ()

    @property
    def names(self) -> list[str]:
        """Return all names, steps first."""
        return [step.name for step in self.steps] + [one.name for one in self.reductions]


def resolve_stages(names: Iterable[str] | None) -> Stages:
    """Return the requested steps and reductions, and the steps that they require.

    Parameters
    ----------
    names : iterable of str, optional
        Default: all.

    Raises
    ------
    InputError
        If a name is neither a step nor a reduction, or no name is given.
    """
    if names is None:
        return Stages(resolve(None), tuple(REDUCTIONS.values()))
    wanted = [name.strip() for name in names if name.strip()]
    unknown = [name for name in wanted if name not in STEPS and name not in REDUCTIONS]
    if unknown or not wanted:
        known = ", ".join([*STEPS, *REDUCTIONS])
        raise InputError("--steps", ", ".join(unknown) or "nothing", f"some of {known}")
    reductions = tuple(one for name, one in REDUCTIONS.items() if name in wanted)
    steps = [name for name in wanted if name in STEPS] + [one.step for one in reductions]
    return Stages(resolve(steps), reductions)
