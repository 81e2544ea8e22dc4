"""Rho statistics: how errors of the PSF are correlated over the field, from stars that no fit has seen.

As in Rowe (2010, MNRAS 404, 350) and Jarvis et al. (2016, MNRAS 460, 2245): with a star's ellipticity ``e``, its error
``de = e - e_psf`` and the relative error of the size ``t = (T - T_psf) / T``, T = 2 sigma^2,

rho1 = <de* de>, rho2 = <e* de>, rho3 = <(e t)* (e t)>, rho4 = <de* (e t)>, rho5 = <e* (e t)>,

means over pairs of stars of a separation. They add to the correlation function of shear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Float = npt.NDArray[np.float64]

RHO = ("rho1", "rho2", "rho3", "rho4", "rho5")
#: Bins of separation, and where the first begins, as a share of the widest.
_BINS, _NEAREST = 8, 1 / 30


def rho_statistics(
    frames: Sequence[Mapping[str, Any]], *, furthest: float | None = None, bins: int = _BINS
) -> dict[str, Float]:
    """Return the five rho statistics of stars.

    Parameters
    ----------
    frames : sequence of mapping
        Columns (n,) of the stars of one frame each: ``x, y`` [pixel], ``size, e1, e2`` and ``model_size, model_e1,
        model_e2``, as `csstdask.psf.frame.judge` has them. Pairs are of one frame; stars without moments are left out.
    furthest : float, optional
        The widest separation [pixel]; by default the widest there is.
    bins : int
        Of separation, equal in its logarithm, from a thirtieth of the widest.

    Returns
    -------
    dict of float64 arrays (bins,)
        ``separation`` (mean of the pairs) [pixel], ``pairs``, and the real parts of ``rho1`` to ``rho5``; NaN in bins
        without a pair.
    """
    stars = [_known(frame) for frame in frames]
    if furthest is None:
        furthest = max(
            (float(np.hypot(np.ptp(one["x"]), np.ptp(one["y"]))) for one in stars if len(one["x"])), default=1
        )
    furthest = furthest if furthest > 0 else 1.0
    edges = np.geomspace(furthest * _NEAREST, furthest, bins + 1)
    total = np.zeros((len(RHO) + 2, bins))
    for one in stars:
        if len(one["x"]) < 2:
            continue
        i, j = cKDTree(np.column_stack([one["x"], one["y"]])).query_pairs(furthest, output_type="ndarray").T
        distance = np.hypot(one["x"][i] - one["x"][j], one["y"][i] - one["y"][j])
        place = np.minimum(np.searchsorted(edges, distance, side="right") - 1, bins - 1)  # the widest is in the last
        use = place >= 0
        i, j, distance, place = i[use], j[use], distance[use], place[use]
        e, error, sized = one["e"], one["error"], one["sized"]
        products = (
            (error, error), (e, error), (sized, sized), (error, sized), (e, sized),
        )  # fmt: skip
        values = [((a[i].conj() * b[j] + a[j].conj() * b[i]) / 2).real for a, b in products]
        for row, each in enumerate((np.ones_like(distance), distance, *values)):
            total[row] += np.bincount(place, each, bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(total[0] > 0, total[1:] / total[0], np.nan)
    return {"pairs": total[0], "separation": means[0], **dict(zip(RHO, means[1:], strict=True))}


def _known(frame: Mapping[str, Any]) -> dict[str, Any]:
    names = ("x", "y", "size", "e1", "e2", "model_size", "model_e1", "model_e2")
    columns = {name: np.asarray(frame[name], dtype=np.float64) for name in names}
    good = np.logical_and.reduce([np.isfinite(values) for values in columns.values()]) & (columns["size"] > 0)
    columns = {name: values[good] for name, values in columns.items()}
    e = columns["e1"] + 1j * columns["e2"]
    error = e - (columns["model_e1"] + 1j * columns["model_e2"])
    return {"x": columns["x"], "y": columns["y"], "e": e, "error": error} | {
        "sized": e * (1 - (columns["model_size"] / columns["size"]) ** 2)
    }
