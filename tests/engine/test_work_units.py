"""Selections as people write them."""

from __future__ import annotations

import pytest

from csstdask.core.errors import InputError
from csstdask.engine.work_units import Unit, parse_selection


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("detector=6-9", Unit("a", 7), Unit("a", 10)),
        ("exposure=a,b,detector=7", Unit("b", 7), Unit("b", 8)),
        ("detector=7,9,exposure=n1*", Unit("n12", 9), Unit("n2", 9)),
        (None, Unit("a", 1), None),
    ],
)
def test_selection(text, inside, outside):
    selection = parse_selection(text)
    assert inside in selection
    assert outside is None or outside not in selection


@pytest.mark.parametrize("text", ["detector=x", "detector=9-6", "band=g", "detector=", "7"])
def test_wrong_selections_are_named(text):
    with pytest.raises(InputError, match="--select"):
        parse_selection(text)
