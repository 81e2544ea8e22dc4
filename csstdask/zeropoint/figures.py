"""Plot the residuals of a zero point."""

from __future__ import annotations

from typing import Any

import numpy as np

from csstdask.core.plotting import pyplot
from csstdask.zeropoint.result import ZeroPoint


def plot_zero_point(zero_point: ZeroPoint) -> Any:
    """Plot the residuals of stars against magnitude, colour and distance from the centre of the frame.

    Parameters
    ----------
    zero_point : ZeroPoint
        Zero point with its stars.

    Returns
    -------
    matplotlib.figure.Figure
        Crosses mark rejected stars.
    """
    plt = pyplot()
    stars, fit = zero_point.stars, zero_point.fit
    panels = [("reference magnitude [mag]", stars.ref_mag)]
    if stars.color is not None:
        panels.append(("colour [mag]", stars.color))
    if stars.x is not None and stars.y is not None and fit.shape is not None:
        centre = (fit.shape[1] - 1) / 2, (fit.shape[0] - 1) / 2
        panels.append(("distance from the centre [pixel]", np.hypot(stars.x - centre[0], stars.y - centre[1])))
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), sharey=True, layout="constrained")
    used = fit.weights > 0
    limit = 5 * float(np.nanstd(fit.residuals[used])) if used.any() else 0.1
    for axis, (label, values) in zip(np.atleast_1d(axes), panels, strict=True):
        axis.plot(values[used], fit.residuals[used], ".", ms=3)
        axis.plot(values[~used], np.clip(fit.residuals[~used], -limit, limit), "x", ms=4, color="0.6")
        axis.axhline(0, color="0.5", lw=0.8)
        axis.set(xlabel=label, ylim=(-1.05 * limit, 1.05 * limit))
    np.atleast_1d(axes)[0].set_ylabel("residual [mag]")
    figure.suptitle(str(zero_point), fontsize=8)
    return figure
