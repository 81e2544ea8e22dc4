"""The panels of the report: each is named by a step or a reduction, and drawn by a function of the registry."""

from __future__ import annotations

from csstdask.report.panels import PANELS, panel_names


def test_steps_and_reductions_name_the_panels_of_the_registry():
    assert panel_names() == set(PANELS)
