"""Measure the time per exposure by batch size, for our prior and the published network on one core."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from csstdask.evaluation.zeropoint.published_results import ARTICLE
from csstdask.training.zeropoint.surveys import SurveyInputs
from csstdask.zeropoint.prior import PriorInputs, build_star_lists, predict_with_network
from csstdask.zeropoint.prior.azprc import AzpRc
from csstdask.zeropoint.prior.network import PriorNetwork

BATCHES = (1, 8, 64, 512)
_SECONDS = 2.0
"""Time after which no further repetition of a measurement is started [s]."""
_MAX_PUBLISHED_BATCH = 64
"""Largest batch of the published network: it computes larger ones in parts of this size."""
_MAX_REPEATS = 7
"""Largest number of repetitions; the shortest time counts."""
_N_PATCHES = 64
"""Number of different image patches."""


def latencies(
    surveys: Mapping[str, SurveyInputs],
    network: PriorNetwork,
    published: AzpRc | None,
    *,
    batches: Sequence[int] = BATCHES,
    repeats: int = _MAX_REPEATS,
) -> dict[str, Any]:
    """Measure the time from patches, star tables and telemetry to the zero point, on one thread.

    Both networks get the same exposures. The statistics of the patches of 256 x 256 pixels are part of the time.

    Parameters
    ----------
    surveys : mapping of SurveyInputs
        Surveys by name; the first one is used.
    network : PriorNetwork
        Our network.
    published : AzpRc or None
        The published network.
    batches : sequence of int
        Numbers of exposures per call.
    repeats : int
        Largest number of repetitions.

    Returns
    -------
    dict
        ``rows``: for each batch size the time per exposure [ms] of ``zeropoint``, ``azprc``, and
        ``zeropoint_without_image``, our network without patches.
    """
    survey = next(iter(surveys.values()))
    exposures = survey.exposures
    rows = np.arange(max(0, len(exposures) - max(batches)), len(exposures))
    patches = np.stack([exposures.patch(int(i)) for i in rows[:_N_PATCHES]])
    tables = [exposures.stars(int(i)) for i in rows]
    last_inputs = survey.inputs.take(rows)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    try:
        for batch in batches:
            index = np.arange(batch) % len(rows)
            image = patches[index % len(patches)]
            inputs, stars = last_inputs.take(index), [tables[i] for i in index]
            row: dict[str, float] = {"batch": batch}
            candidates: dict[str, nn.Module] = {"zeropoint": network}
            if published is not None:
                candidates["azprc"] = published
            for name, candidate in candidates.items():
                if name == "azprc" and batch > _MAX_PUBLISHED_BATCH:
                    continue
                row[name] = _time(candidate, inputs, stars, exposures.shape, image, repeats) / batch
            without_image = _time(network, inputs, stars, exposures.shape, None, repeats)
            row["zeropoint_without_image"] = without_image / batch
            times.append(row)
    finally:
        torch.set_num_threads(threads)
    return {"unit": "ms an exposure, one core", "rows": times, "article_a100_ms": ARTICLE["azprc"]["ms"]}


def _time(
    network: nn.Module, inputs: PriorInputs, tables: list[Any], shape: tuple[int, int], image: Any, repeats: int
) -> float:
    """Return the shortest time of a prediction [ms]."""

    def run() -> None:
        stars = build_star_lists(tables, shape=shape)
        predict_with_network(network, replace(inputs, stars=stars, image=image))

    return 1e3 * _shortest(run, repeats)


def _shortest(run: Callable[[], None], repeats: int) -> float:
    """Return the shortest duration of several runs [s]."""
    best, begin = np.inf, time.perf_counter()
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begin > _SECONDS:
            break
    return float(best)
