"""Rho statistics: the correlation of PSF errors over the field, from stars that no fit has used.

As in Rowe (2010, MNRAS 404, 350) and Jarvis et al. (2016, MNRAS 460, 2245): with a star's ellipticity ``e``, its error
``de = e - e_psf`` and the relative error of the size ``t = (T - T_psf) / T``, T = 2 sigma^2,

rho1 = <de* de>, rho2 = <e* de>, rho3 = <(e t)* (e t)>, rho4 = <de* (e t)>, rho5 = <e* (e t)>,

averaged over pairs of stars at a separation. They are additive biases of the shear correlation function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Float = npt.NDArray[np.float64]

RHO = ("rho1", "rho2", "rho3", "rho4", "rho5")
#: Default number of bins of separation.
_BINS = 8
#: Lower edge of the first bin, as a share of the largest separation.
_MIN_SEPARATION = 1 / 30


def rho_statistics(
    frames: Sequence[Mapping[str, Any]], *, max_separation: float | None = None, bins: int = _BINS
) -> dict[str, Float]:
    """Compute the five rho statistics of stars.

    Parameters
    ----------
    frames : sequence of mapping
        Columns (n,) of the stars of one frame each: ``x, y`` [pixel], ``size, e1, e2`` and ``model_size, model_e1,
        model_e2``, as `csstdask.psf.frame.measure_residuals` returns them. Pairs are within one frame; stars without
        moments are ignored.
    max_separation : float, optional
        Largest separation [pixel]; by default that of all pairs.
    bins : int
        Number of bins of separation, equal in its logarithm, from a thirtieth of the largest.

    Returns
    -------
    dict of float64 arrays (bins,)
        ``separation`` (mean of the pairs) [pixel], ``pairs``, and the real parts of ``rho1`` to ``rho5``; NaN in bins
        without a pair.

    Examples
    --------
    A PSF model with the same error everywhere:

    >>> x, y = np.random.default_rng(1).uniform(0, 1000, (2, 50))
    >>> frame = {"x": x, "y": y, "size": np.ones(50), "e1": np.full(50, 0.02), "e2": np.zeros(50)}
    >>> frame |= {"model_size": np.ones(50), "model_e1": np.full(50, 0.01), "model_e2": np.zeros(50)}
    >>> float(rho_statistics([frame])["rho1"][-1].round(6))
    0.0001
    """
    stars = [_measured_stars(frame) for frame in frames]
    if max_separation is None:
        max_separation = max(
            (float(np.hypot(np.ptp(one["x"]), np.ptp(one["y"]))) for one in stars if len(one["x"])), default=1
        )
    max_separation = max_separation if max_separation > 0 else 1.0
    edges = np.geomspace(max_separation * _MIN_SEPARATION, max_separation, bins + 1)
    total = np.zeros((len(RHO) + 2, bins))
    for one in stars:
        if len(one["x"]) < 2:
            continue
        i, j = cKDTree(np.column_stack([one["x"], one["y"]])).query_pairs(max_separation, output_type="ndarray").T
        distance = np.hypot(one["x"][i] - one["x"][j], one["y"][i] - one["y"][j])
        number = np.minimum(
            np.searchsorted(edges, distance, side="right") - 1, bins - 1
        )  # the largest belongs to the last bin
        use = number >= 0
        i, j, distance, number = i[use], j[use], distance[use], number[use]
        e, error, sized = one["e"], one["error"], one["sized"]
        products = (
            (error, error), (e, error), (sized, sized), (error, sized), (e, sized),
        )  # fmt: skip
        values = [((a[i].conj() * b[j] + a[j].conj() * b[i]) / 2).real for a, b in products]
        for row, each in enumerate((np.ones_like(distance), distance, *values)):
            total[row] += np.bincount(number, each, bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(total[0] > 0, total[1:] / total[0], np.nan)
    return {"pairs": total[0], "separation": means[0], **dict(zip(RHO, means[1:], strict=True))}


def _measured_stars(frame: Mapping[str, Any]) -> dict[str, Any]:
    """Return the complex ellipticities and errors of the stars of a frame that have moments."""
    names = ("x", "y", "size", "e1", "e2", "model_size", "model_e1", "model_e2")
    columns = {name: np.asarray(frame[name], dtype=np.float64) for name in names}
    good = np.logical_and.reduce([np.isfinite(values) for values in columns.values()]) & (columns["size"] > 0)
    columns = {name: values[good] for name, values in columns.items()}
    e = columns["e1"] + 1j * columns["e2"]
    error = e - (columns["model_e1"] + 1j * columns["model_e2"])
    return {"x": columns["x"], "y": columns["y"], "e": e, "error": error} | {
        "sized": e * (1 - (columns["model_size"] / columns["size"]) ** 2)
    }
