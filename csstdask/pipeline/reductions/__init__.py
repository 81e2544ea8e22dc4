"""Registry of the reductions, in their order."""

from __future__ import annotations

from csstdask.pipeline.reduction import Reduction
from csstdask.pipeline.reductions.flat import FLAT
from csstdask.pipeline.reductions.zeropoints import ZEROPOINTS

REDUCTIONS: dict[str, Reduction] = {reduction.name: reduction for reduction in (FLAT, ZEROPOINTS)}
