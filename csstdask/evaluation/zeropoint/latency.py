"""Time an exposure takes, by batch size: our prior and the published network, turn by turn on one core."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from csstdask.training.zeropoint.surveys import SurveyInputs
from csstdask.zeropoint.prior import PriorInputs, build_star_lists, predict_with_network
from csstdask.zeropoint.prior.azprc import AzpRc
from csstdask.zeropoint.prior.network import PriorNetwork

BATCHES = (1, 8, 64, 512)
_SECONDS = 2.0
"""Time after which no further repetition of a measurement is begun [s]."""
_LARGEST_PUBLISHED = 64
"""Largest batch of the published network: it computes larger ones in parts of this size."""
_REPEATS = 7
"""Most repetitions, of which the best counts."""
PUBLISHED_MS = 8.7
"""Of the article, one exposure on an A100 [ms]."""


def latencies(
    surveys: Mapping[str, SurveyInputs],
    network: PriorNetwork,
    published: AzpRc | None,
    *,
    batches: Sequence[int] = BATCHES,
    repeats: int = _REPEATS,
) -> dict[str, Any]:
    """Return ms an exposure, from patches, star tables and telemetry to the zero point, on one thread.

    Both networks get the same exposures: patches of 256 x 256 pixels, whose statistics are part of the time. ``without
    image`` is our network when no patch is given.
    """
    one = next(iter(surveys.values()))
    s = one.exposures
    rows = np.arange(len(s) - max(batches), len(s)) if len(s) >= max(batches) else np.arange(len(s))
    patches = np.stack([s.patch(int(i)) for i in rows[: min(len(rows), 64)]])
    tables = [s.stars(int(i)) for i in rows]
    known = one.inputs.take(rows)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    try:
        for batch in batches:
            some = np.arange(batch) % len(rows)
            image = patches[some % len(patches)]
            inputs = known.take(some)
            row: dict[str, float] = {"batch": batch}
            candidates: dict[str, nn.Module] = {"zeropoint": network}
            if published is not None:
                candidates["azprc"] = published
            for name, candidate in candidates.items():
                if name == "azprc" and batch > _LARGEST_PUBLISHED:
                    continue
                row[name] = _time(candidate, inputs, [tables[i] for i in some], s.shape, image, repeats) / batch
            row["zeropoint_without_image"] = _time(network, inputs, [tables[i] for i in some], s.shape, None, repeats)
            row["zeropoint_without_image"] /= batch
            found.append(row)
    finally:
        torch.set_num_threads(threads)
    return {"unit": "ms an exposure, one core", "rows": found, "article_a100_ms": PUBLISHED_MS}


def _time(
    network: nn.Module, inputs: PriorInputs, tables: list[Any], shape: tuple[int, int], image: Any, repeats: int
) -> float:
    """Return the shortest time of several [ms]."""

    def run() -> None:
        stars = build_star_lists(tables, shape=shape)
        whole = PriorInputs(
            inputs.nominal, inputs.days, inputs.telemetry, inputs.memory, inputs.memory_telemetry, stars, image
        )
        predict_with_network(network, whole)

    return 1e3 * _best(run, repeats)


def _best(run: Callable[[], None], repeats: int) -> float:
    best, begin = np.inf, time.perf_counter()
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begin > _SECONDS:
            break
    return float(best)
