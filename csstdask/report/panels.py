"""Panels of the report: what a run's steps and reductions show of their results.

A step or reduction names its panel (`Step.panel`, `Reduction.panel`); `PANELS` has the function that draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xarray as xr
from markupsafe import Markup

from csstdask.evaluation.run_consistency import CosmicRayReview
from csstdask.evaluation.run_requirements import Expectation
from csstdask.instrument import Instrument
from csstdask.pipeline.reductions import REDUCTIONS
from csstdask.pipeline.status import Summary
from csstdask.pipeline.steps import STEPS
from csstdask.report.cosmic_rays import show_cosmic_rays
from csstdask.report.cutouts import draw_cutouts
from csstdask.report.psf import draw_psfs
from csstdask.report.slitless import draw_slitless
from csstdask.report.zeropoint import draw_zero_points


@dataclass(frozen=True, eq=False)
class ReportedRun:
    """A run, with all that panels show of it."""

    path: Path
    """Store of the run."""
    dataset: xr.Dataset
    """The opened run, its metrics in memory."""
    instrument: Instrument
    summary: Summary
    review: CosmicRayReview
    """Statistics of the detected cosmic rays."""
    rates: Expectation
    """Expected rates of cosmic-ray events."""


@dataclass(frozen=True)
class Panel:
    """A section of the report."""

    title: str
    draw: Callable[[ReportedRun], Markup]
    """Returns the content; empty if the run has nothing to show."""


#: Panels by name, in the order of the page.
PANELS = {
    "cosmic_rays": Panel("Cosmic rays", lambda run: show_cosmic_rays(run.dataset, run.review, run.rates)),
    "cutouts": Panel("Before, mask, after", lambda run: draw_cutouts(run.dataset, run.instrument.flags.ignore_mask)),
    "psf": Panel("Point spread functions", lambda run: draw_psfs(run.dataset, run.instrument, run.path)),
    "zero_points": Panel("Zero points", lambda run: draw_zero_points(run.dataset, run.path, run.summary)),
    "slitless": Panel(
        "Slitless spectra and flat fields", lambda run: draw_slitless(run.dataset, run.path, run.summary)
    ),
}


def panel_names() -> frozenset[str]:
    """Return the names of the panels of all steps and reductions."""
    named = [step.panel for step in STEPS.values()] + [reduction.panel for reduction in REDUCTIONS.values()]
    return frozenset(named) - {""}


def draw_panels(run: ReportedRun) -> Iterator[tuple[str, Markup]]:
    """Yield title and content of each panel that a step or reduction names."""
    names = panel_names()
    for name, panel in PANELS.items():
        if name in names:
            yield panel.title, panel.draw(run)
