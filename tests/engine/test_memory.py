"""Memory is projected, and a run that cannot fit is refused with a number that would."""

from __future__ import annotations

import pytest

from csstdask.engine.memory import BASE_BYTES, Projection, available_bytes, check, fitting_slots
from csstdask.errors import MemoryProjectionError

GIB = 2**30


def test_what_fits_passes_and_what_does_not_says_what_would():
    budget = 10 * GIB
    check(Projection(2 * GIB, 4, 1), budget)
    with pytest.raises(MemoryProjectionError, match="--workers 4 fits"):
        check(Projection(2 * GIB, 5, 1), budget)
    with pytest.raises(MemoryProjectionError, match="not even one unit fits"):
        check(Projection(20 * GIB, 1, 1), budget)


@pytest.mark.parametrize("processes", [True, False])
def test_fitting_slots_fit(processes):
    for budget in (BASE_BYTES, 3 * GIB, 17 * GIB):
        n = fitting_slots(GIB, processes=processes, budget=budget)
        assert Projection(GIB, n, n + 1 if processes else 1).total <= budget
        assert Projection(GIB, n + 1, n + 2 if processes else 1).total > budget


def test_this_machine_has_memory():
    assert available_bytes() > 0
