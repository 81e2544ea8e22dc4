"""Stellar labels: a realistic population, and cells of (Teff, log g, [M/H]) that are split into data sets.

Whole cells are held out, never random stars: neighbours in label space have almost the same spectrum.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Split = Literal["train", "validation", "calibration", "test"]
#: Range of effective temperatures of the stars, as published [K].
TEFF_RANGE = (5000.0, 9750.0)
#: Nodes of the templates, which are the centres of the cells: [K], [dex], [dex].
_TEFF_NODES = np.array([5000, 5500, 6000, 6500, 7000, 7500, 8000, 9000, 10000], dtype=float)
_LOGG_NODES = np.arange(6, dtype=float)
_MH_NODES = np.array([-2.5, -2, -1.5, -1, -0.5, 0, 0.5])
#: Share of the cells in each split.
SHARES: dict[Split, float] = {"train": 0.55, "validation": 0.09, "calibration": 0.18, "test": 0.18}
#: Cells with a smaller share of the population always belong to training: at the edges they have no neighbours.
_MIN_POPULATION_SHARE = 8e-4
#: Number of folds of cells; each member of an ensemble leaves out one.
FOLDS = 5
#: Units of the distance between labels [K at 6000 K], [dex], [dex].
_LABEL_SCALES = (330.0, 0.7, 0.35)


def scale_labels(teff: Float, logg: Float, mh: Float) -> Float:
    """Return labels (n, 3) in units of the distance between templates that contribute to the same mixture."""
    return np.stack([6000 / _LABEL_SCALES[0] * np.log(teff), logg / _LABEL_SCALES[1], mh / _LABEL_SCALES[2]], axis=1)


def cells_of(teff: Float, logg: Float, mh: Float) -> npt.NDArray[np.int64]:
    """Return the (Teff, logg, [M/H]) cell of labels as one number (n,): that of the nearest node of the templates."""
    near = [
        np.abs(np.asarray(values)[:, None] - nodes).argmin(axis=1)
        for values, nodes in ((teff, _TEFF_NODES), (logg, _LOGG_NODES), (mh, _MH_NODES))
    ]
    return (near[0] * len(_LOGG_NODES) + near[1]) * len(_MH_NODES) + near[2]


def split_of_cells(cell: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.str_]:
    """Return the split of each template by its cell (n,): a fixed random order of populated cells, cut by `SHARES`.

    Each temperature is cut separately, so that all splits cover the coolest to the hottest stars.
    """
    found = np.full(len(cell), "train", dtype="U11")
    per_teff = len(_LOGG_NODES) * len(_MH_NODES)
    rng = np.random.default_rng(seed)
    number = np.bincount(cells_of(*population(100_000, rng)), minlength=per_teff * len(_TEFF_NODES)) / 100_000
    for node in range(len(_TEFF_NODES)):
        present = np.unique(cell[(cell // per_teff == node) & (number[cell] >= _MIN_POPULATION_SHARE)])
        order = rng.permutation(present)
        edges = np.rint(np.cumsum(list(SHARES.values())) * len(order)).astype(int)
        start = 0
        for name, end in zip(get_args(Split), edges, strict=True):
            found[np.isin(cell, order[start:end])] = name
            start = end
    return found


def fold_of_cells(cell: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of each template, the same for all templates of a cell (n,)."""
    order = np.random.default_rng(seed + 1).permutation(len(_TEFF_NODES) * len(_LOGG_NODES) * len(_MH_NODES))
    return np.asarray(order[cell] % FOLDS)


def population(n: int, rng: np.random.Generator) -> tuple[Float, Float, Float]:
    """Draw labels of a realistic population: (teff [K], logg, [M/H]), each (n,).

    Teff is uniform over 5000-9750 K. Nine of ten stars have the gravity of a dwarf or, below 5800 K, of a giant
    or, above 7000 K, of an evolved star. One of ten has any gravity, so that rare stars are represented. Half of the
    stars have the metallicity of the thin disc, a quarter that of the thick disc, a quarter that of the halo.
    """
    teff = rng.uniform(TEFF_RANGE[0] - 100, TEFF_RANGE[1] + 100, n)
    dwarf = np.interp(teff, [5000, 5800, 6500, 8000, 10000], [4.5, 4.4, 4.15, 4.0, 3.95]) + rng.normal(0, 0.25, n)
    giant = np.interp(teff, [4900, 5300, 5800], [2.7, 3.1, 3.7]) + rng.normal(0, 0.4, n)
    evolved = rng.uniform(2.8, 3.8, n)
    odds = rng.random(n)
    share_giant = np.interp(teff, [5000, 5800, 6000], [0.45, 0.25, 0.0])
    share_evolved = np.interp(teff, [6500, 7500], [0.05, 0.25])
    logg = np.where(odds < share_giant, giant, np.where(odds > 1 - share_evolved, evolved, dwarf))
    logg = np.where(rng.random(n) < 0.1, rng.uniform(0.5, 5.0, n), logg)
    component = rng.choice(3, n, p=[0.5, 0.25, 0.25])
    mean, scatter = np.array([-0.15, -0.6, -1.5])[component], np.array([0.25, 0.3, 0.5])[component]
    mh = np.clip(rng.normal(mean, scatter), -2.5, 0.5)
    return teff, np.clip(logg, 0.0, 5.0), mh
