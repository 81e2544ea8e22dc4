"""Exposures of tables as the inputs that all methods share: extinction fit, conditions, memory, and folds of nights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from csstdask.datasets.zeropoint_table import ExposureTable
from csstdask.evaluation.zeropoint.baselines import FEWEST, linear_regression, tree_features
from csstdask.numerics.robust import nan_median
from csstdask.zeropoint.memory import Memory, build_memory
from csstdask.zeropoint.prior import PriorInputs

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

MEMORY = 8
"""Solved zero points of the night that methods remember."""
MEMORY_SIGMA = 0.003
"""Error of a zero point in the memory [mag]; tables do not give it, 100 matched stars have about this."""
N_RECENT = 4
"""Zero points of which the scatter is summarised."""
LARGEST_STEP = 0.5
"""Limit of remembered zero points relative to the newest one [mag]: the rest is cloud."""
FRAMINGS = ("level", "recent", "newest")
CONDITIONS = ("airmass", "ebv", "log_exptime", "log_seeing", "sky")
"""Conditions of all campaigns; flags of the bands follow. Sky is relative to the training's median of its band."""


@dataclass(frozen=True)
class TableInputs:
    """Exposures of one or several campaigns.

    Attributes
    ----------
    campaign : str array (n,)
    days : float64 array (n,)
    night : int64 array (n,)
        Series of the memory: nights of different campaigns differ.
    zero_point : float64 array (n,)
        [mag]
    level : float64 array (n,)
        Extinction fit of the campaign and band [mag]: the look-up table, and what memory is relative to.
    memory : Memory
        Zero points less the level of their exposure, of the same night and any band.
    conditions : dict of str to float64 array (n,)
    categories : tuple of int
        Columns of the conditions that are flags.
    train : bool array (n,)
    """

    campaign: npt.NDArray[np.str_]
    days: Float
    night: Int
    zero_point: Float
    level: Float
    memory: Memory
    conditions: dict[str, Float]
    categories: tuple[int, ...]
    train: Bool

    def __len__(self) -> int:
        return len(self.days)

    @property
    def offset(self) -> Float:
        """Return zero points less the extinction fit (n,): what is predicted."""
        return self.zero_point - self.level

    @property
    def matrix(self) -> Float:
        """Return the conditions (n, condition)."""
        return np.column_stack(list(self.conditions.values()))

    @property
    def features(self) -> Float:
        """Return what trees read (n, feature)."""
        return tree_features(self.matrix, self.memory, categories=self.categories)

    @property
    def persistence(self) -> Float:
        """Return the offset of the exposure before in the night, 0 without (n,)."""
        return np.nan_to_num(self.memory.value[:, 0])

    def prior_inputs(self, framing: str) -> tuple[PriorInputs, Float]:
        """Return what networks read, and the offsets (n,) that their predictions are added to.

        Parameters
        ----------
        framing : str
            Of `FRAMINGS`. ``level``: the memory is relative to the extinction fit. ``build_memory``: likewise, with a
            summary of the memory (`memory_summary`) among the conditions of the exposure itself. ``newest``: memory and
            prediction are relative to the newest zero point, which no cloud can take out of the domain.
        """
        memory, base, now = self.memory, np.zeros(len(self)), {}
        if framing != "level":
            now = self.memory_summary
        if framing == "newest":
            base = self.persistence
            relative = np.clip(memory.value - memory.value[:, :1], -LARGEST_STEP, LARGEST_STEP)
            memory = replace(memory, value=relative)
        given = PriorInputs(
            nominal=np.zeros(len(self)),
            days=self.days,
            telemetry={**self.conditions, **now},
            memory=memory,
            memory_telemetry={name: memory.lookup(column) for name, column in self.conditions.items()},
        )
        return given, base

    @property
    def memory_summary(self) -> dict[str, Float]:
        """Return the newest offset, its last step and scatter, and changes of sky and seeing since then (n,)."""
        value = self.memory.value
        steps = np.abs(np.diff(value[:, :N_RECENT], axis=1))
        known = np.isfinite(steps)
        unrest = np.where(known, steps, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        sky, seeing = self.conditions["sky"], self.conditions["log_seeing"]
        return {
            "newest": np.arcsinh(value[:, 0] / 0.05),
            "step": np.arcsinh((value[:, 0] - value[:, 1]) / 0.02),
            "unrest": np.where(known.any(axis=1), np.log(unrest + 0.003), np.nan),
            "sky_change": np.arcsinh((sky - self.memory.lookup(sky)[:, 0]) / 0.1),
            "seeing_change": seeing - self.memory.lookup(seeing)[:, 0],
        }

    def folds(self, n: int) -> Int:
        """Return the fold of each training exposure (n,), -1 elsewhere: blocks of successive nights."""
        nights = np.unique(self.night[self.train])
        fold = np.full(len(self), -1, dtype=np.int64)
        for k, block in enumerate(np.array_split(nights, min(n, len(nights)))):
            fold[self.train & np.isin(self.night, block)] = k
        return fold


def table_inputs(tables: Mapping[str, ExposureTable], train: Mapping[str, Bool]) -> TableInputs:
    """Return the inputs of the exposures of campaigns, learnt from their training rows.

    Parameters
    ----------
    tables : mapping of str to ExposureTable
        A campaign's extinction fit is that of its own training rows. A band without `FEWEST` of them takes that of the
        band of the same first letter (z, zd) in the other campaigns.
    train : mapping of str to bool array
        At least one training row in total.

    Notes
    -----
    Not among the conditions are the number of matched stars, which is known with the zero point and falls with it under
    clouds, and the direction of the telescope and the hour, with which trees and networks did worse on nights that they
    had not seen.
    """
    names = list(tables)
    chosen = np.concatenate([np.asarray(train[name], dtype=bool) for name in names])
    if not chosen.any():
        raise ValueError("found no training exposure; wanted nights to learn from")
    campaign = np.concatenate([np.full(len(tables[name]), name) for name in names])
    band = np.concatenate([tables[name].band for name in names]).astype(str)
    days = np.concatenate([tables[name].days for name in names])
    zero_point = np.concatenate([tables[name].zero_point for name in names])
    raw = {
        key: np.concatenate([tables[name].conditions[key] for name in names])
        for key in ("airmass", "ebv", "exptime", "seeing", "sky")
    }
    night_of = np.concatenate([tables[name].night for name in names])
    night = np.unique([f"{c} {n}" for c, n in zip(campaign, night_of, strict=True)], return_inverse=True)[1]
    group = _groups(campaign, band, chosen)
    level = linear_regression(raw["airmass"], zero_point, chosen, groups=group)
    letter = np.array([one[:1] for one in band])
    letters = [one for one in np.unique(letter[chosen]) if (chosen & (letter == one)).sum() >= FEWEST]
    conditions = {
        "airmass": raw["airmass"],
        "ebv": raw["ebv"],
        "log_exptime": _log(raw["exptime"]),
        "log_seeing": _log(raw["seeing"]),
        "sky": raw["sky"] - _typical(raw["sky"], group, chosen),
        **({f"band_{one}": (letter == one).astype(float) for one in letters} if len(letters) > 1 else {}),
        **{
            f"campaign_{one}": (campaign == one).astype(float)
            for one in names[1:]
            if (chosen & (campaign == one)).sum() >= FEWEST and (chosen & (campaign != one)).any()
        },
    }
    memory = build_memory(days, zero_point - level, np.full(len(days), MEMORY_SIGMA), length=MEMORY, series=night)
    return TableInputs(
        campaign=campaign, days=days, night=night.ravel(), zero_point=zero_point, level=level, memory=memory,
        conditions=conditions, categories=tuple(range(len(CONDITIONS), len(conditions))), train=chosen,
    )  # fmt: skip


def _groups(campaign: npt.NDArray[np.str_], band: npt.NDArray[np.str_], train: Bool) -> npt.NDArray[np.str_]:
    """Return whose extinction fit each exposure takes: campaign and band, or the largest band of the same letter."""
    group = np.array([f"{c}:{b}" for c, b in zip(campaign, band, strict=True)])
    names, counts = np.unique(group[train], return_counts=True)
    known = dict(zip(names.tolist(), counts.tolist(), strict=True))
    out = group.copy()
    for one in np.unique(group):
        if known.get(str(one), 0) >= FEWEST:
            continue
        letter = str(one).rpartition(":")[2][:1]
        others: Sequence[str] = [
            name for name, n in known.items() if n >= FEWEST and name.rpartition(":")[2][:1] == letter
        ]
        if others:
            out[group == one] = max(others, key=lambda name: known[name])
    return out


def _typical(values: Float, group: npt.NDArray[np.str_], train: Bool) -> Float:
    """Return the median of the training rows of each group, or of all training rows where it has none."""
    out = np.full(len(values), np.nan_to_num(float(nan_median(values[train]))))
    for one in np.unique(group):
        rows = group == one
        known = values[rows & train]
        if np.isfinite(known).any():
            out[rows] = float(nan_median(known))
    return out


def _log(values: Float) -> Float:
    return np.log(np.where(values > 0, values, np.nan))
