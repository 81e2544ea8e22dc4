"""Memory is projected, and a run that cannot fit is refused with a number that would."""

from __future__ import annotations

from dataclasses import replace

import pytest

from csstdask.core.errors import MemoryProjectionError
from csstdask.engine.memory import Projection, available_bytes, check_projection, choose_workers

GIB = 2**30
LIBRARIES = GIB // 4


def test_what_fits_passes_and_what_does_not_says_what_would():
    budget = 10 * GIB
    check_projection(Projection(2 * GIB, 4, LIBRARIES, processes=False), budget)
    with pytest.raises(MemoryProjectionError, match="--workers 4 fits"):
        check_projection(Projection(2 * GIB, 5, LIBRARIES, processes=False), budget)
    with pytest.raises(MemoryProjectionError, match="not even one unit fits"):
        check_projection(Projection(20 * GIB, 1, LIBRARIES, processes=False), budget)


@pytest.mark.parametrize("processes", [True, False])
def test_fitting_slots_fit(processes):
    one = Projection(GIB, 1, LIBRARIES, processes)
    for budget in (LIBRARIES, 3 * GIB, 17 * GIB):
        n = one.fitting_slots(budget)
        assert n == 0 or replace(one, slots=n).total <= budget
        assert replace(one, slots=n + 1).total > budget


def test_each_process_has_its_libraries():
    threads, processes = (Projection(GIB, 4, LIBRARIES, apart).total for apart in (False, True))
    assert threads == 4 * GIB + LIBRARIES
    assert processes - threads > 3 * LIBRARIES


def test_as_many_workers_as_fit_and_no_more_than_cores():
    assert choose_workers("threads", 1, wanted=None) >= 1
    assert choose_workers("threads", 1, wanted=1000) == 1000
    with pytest.raises(MemoryProjectionError, match="not even one unit fits"):
        choose_workers("threads", available_bytes(), wanted=None)


def test_this_machine_has_memory():
    assert available_bytes() > 0
