"""Inputs that all methods share on tables of exposures: extinction fit, conditions, memory, and folds of nights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from csstdask.datasets.zeropoint_table import ExposureTable
from csstdask.evaluation.zeropoint.baselines import MIN_ROWS, linear_regression, tree_features
from csstdask.numerics.robust import nan_median
from csstdask.zeropoint.memory import Memory, build_memory
from csstdask.zeropoint.prior import PriorInputs

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

MEMORY_LENGTH = 8
"""Earlier zero points of the night in the memory."""
MEMORY_SIGMA = 0.003
"""Error of a zero point in the memory [mag]; tables do not give it, and 100 matched stars have about this."""
N_RECENT = 4
"""Zero points whose scatter is summarised."""
MAX_STEP = 0.5
"""Limit of earlier zero points relative to the newest one [mag]: larger differences are clouds."""
FRAMINGS = ("level", "recent", "newest")
"""Ways to present the memory to networks; see `TableInputs.prior_inputs`."""
CONDITIONS = ("airmass", "ebv", "log_exptime", "log_seeing", "sky")
"""Conditions of all campaigns; flags of the bands follow. Sky is relative to the median of its band in the training."""


@dataclass(frozen=True)
class TableInputs:
    """Exposures of one or several campaigns.

    Attributes
    ----------
    campaign : str array (n,)
        Name of the campaign.
    days : float64 array (n,)
        Start of the exposure, days since J2000.
    night : int64 array (n,)
        Number of the night, different for each campaign: the series of the memory.
    zero_point : float64 array (n,)
        Measured zero point [mag].
    level : float64 array (n,)
        Extinction fit of the campaign and band [mag]: the look-up table, which zero points in the memory refer to.
    memory : Memory
        Zero points minus the level of their exposure, of the same night and any band.
    conditions : dict of str to float64 array (n,)
        Conditions by name.
    categories : tuple of int
        Columns of the conditions that are flags.
    train : bool array (n,)
        Whether methods learn from the exposure.
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
        """Zero points minus the extinction fit, the target of all methods, float64 array (n,) [mag]."""
        return self.zero_point - self.level

    @property
    def matrix(self) -> Float:
        """Conditions as a float64 array (n, condition)."""
        return np.column_stack(list(self.conditions.values()))

    @property
    def features(self) -> Float:
        """Features of trees, float64 array (n, feature)."""
        return tree_features(self.matrix, self.memory, categories=self.categories)

    @property
    def persistence(self) -> Float:
        """Offset of the previous exposure of the night, 0 without one, float64 array (n,) [mag]."""
        return np.nan_to_num(self.memory.value[:, 0])

    def prior_inputs(self, framing: str) -> tuple[PriorInputs, Float]:
        """Return the inputs of networks, and the offsets (n,) to which their predictions are added.

        Parameters
        ----------
        framing : str
            One of `FRAMINGS`. ``level``: the memory is relative to the extinction fit. ``recent``: likewise, with a
            summary of the memory (`memory_summary`) among the conditions of the exposure. ``newest``: memory and
            prediction are relative to the newest zero point, so that clouds do not move them out of the domain.
        """
        memory, base, summary = self.memory, np.zeros(len(self)), {}
        if framing != "level":
            summary = self.memory_summary
        if framing == "newest":
            base = self.persistence
            relative = np.clip(memory.value - memory.value[:, :1], -MAX_STEP, MAX_STEP)
            memory = replace(memory, value=relative)
        inputs = PriorInputs(
            nominal=np.zeros(len(self)),
            days=self.days,
            telemetry={**self.conditions, **summary},
            memory=memory,
            memory_telemetry={name: memory.lookup(column) for name, column in self.conditions.items()},
        )
        return inputs, base

    @property
    def memory_summary(self) -> dict[str, Float]:
        """Newest offset, last step, scatter, and changes of sky and seeing since then, arrays (n,)."""
        value = self.memory.value
        steps = np.abs(np.diff(value[:, :N_RECENT], axis=1))
        known = np.isfinite(steps)
        mean_step = np.where(known, steps, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        sky, seeing = self.conditions["sky"], self.conditions["log_seeing"]
        return {
            "newest": np.arcsinh(value[:, 0] / 0.05),
            "step": np.arcsinh((value[:, 0] - value[:, 1]) / 0.02),
            "unrest": np.where(known.any(axis=1), np.log(mean_step + MEMORY_SIGMA), np.nan),
            "sky_change": np.arcsinh((sky - self.memory.lookup(sky)[:, 0]) / 0.1),
            "seeing_change": seeing - self.memory.lookup(seeing)[:, 0],
        }

    def folds(self, n: int) -> Int:
        """Return the fold of each training exposure, -1 elsewhere, int64 array (n,): blocks of successive nights."""
        nights = np.unique(self.night[self.train])
        fold = np.full(len(self), -1, dtype=np.int64)
        for k, block in enumerate(np.array_split(nights, min(n, len(nights)))):
            fold[self.train & np.isin(self.night, block)] = k
        return fold


def table_inputs(tables: Mapping[str, ExposureTable], train: Mapping[str, Bool]) -> TableInputs:
    """Prepare the inputs of the exposures of campaigns, with fits to their training rows.

    Parameters
    ----------
    tables : mapping of str to ExposureTable
        Exposures by campaign. The extinction fit of a campaign uses its own training rows. A band with fewer than
        `MIN_ROWS` of them takes the fit of the band with the same first letter (z, zd) in the other campaigns.
    train : mapping of str to bool array
        Training rows of each campaign, at least one in total.

    Raises
    ------
    ValueError
        If there is no training row.

    Notes
    -----
    The conditions exclude the number of matched stars, which becomes known with the zero point and falls with it under
    clouds. They also exclude the direction of the telescope and the hour: with them, trees and networks were worse on
    nights outside the training.
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
    table_night = np.concatenate([tables[name].night for name in names])
    night = np.unique([f"{c} {n}" for c, n in zip(campaign, table_night, strict=True)], return_inverse=True)[1]
    group = _fit_groups(campaign, band, chosen)
    level = linear_regression(raw["airmass"], zero_point, chosen, groups=group)
    letter = np.array([name[:1] for name in band])
    letters = [name for name in np.unique(letter[chosen]) if (chosen & (letter == name)).sum() >= MIN_ROWS]
    conditions = {
        "airmass": raw["airmass"],
        "ebv": raw["ebv"],
        "log_exptime": _log(raw["exptime"]),
        "log_seeing": _log(raw["seeing"]),
        "sky": raw["sky"] - _group_medians(raw["sky"], group, chosen),
        **({f"band_{name}": (letter == name).astype(float) for name in letters} if len(letters) > 1 else {}),
        **{
            f"campaign_{name}": (campaign == name).astype(float)
            for name in names[1:]
            if (chosen & (campaign == name)).sum() >= MIN_ROWS and (chosen & (campaign != name)).any()
        },
    }
    memory = build_memory(
        days, zero_point - level, np.full(len(days), MEMORY_SIGMA), length=MEMORY_LENGTH, series=night
    )
    return TableInputs(
        campaign=campaign, days=days, night=night.ravel(), zero_point=zero_point, level=level, memory=memory,
        conditions=conditions, categories=tuple(range(len(CONDITIONS), len(conditions))), train=chosen,
    )  # fmt: skip


def _fit_groups(campaign: npt.NDArray[np.str_], band: npt.NDArray[np.str_], train: Bool) -> npt.NDArray[np.str_]:
    """Return the extinction fit of each exposure: its campaign and band, or the largest band of the same letter."""
    group = np.array([f"{c}:{b}" for c, b in zip(campaign, band, strict=True)])
    names, counts = np.unique(group[train], return_counts=True)
    n_train = dict(zip(names.tolist(), counts.tolist(), strict=True))
    out = group.copy()
    for label in np.unique(group):
        if n_train.get(str(label), 0) >= MIN_ROWS:
            continue
        letter = _first_letter(str(label))
        others = [name for name, n in n_train.items() if n >= MIN_ROWS and _first_letter(name) == letter]
        if others:
            out[group == label] = max(others, key=lambda name: n_train[name])
    return out


def _first_letter(group: str) -> str:
    """Return the first letter of the band of a group."""
    return group.rpartition(":")[2][:1]


def _group_medians(values: Float, group: npt.NDArray[np.str_], train: Bool) -> Float:
    """Return the median of the training rows of each group, or of all training rows for groups without any."""
    out = np.full(len(values), np.nan_to_num(float(nan_median(values[train]))))
    for label in np.unique(group):
        rows = group == label
        known = values[rows & train]
        if np.isfinite(known).any():
            out[rows] = float(nan_median(known))
    return out


def _log(values: Float) -> Float:
    """Return the natural logarithm, NaN where it is undefined."""
    return np.log(np.where(values > 0, values, np.nan))
