"""Draw the plots of the report: rates over time, spectra of events, rho statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from csstdask.report.figures import COLOURS, plot, svg_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float = npt.NDArray[np.float64]

#: Number of detectors that are drawn separately; of more, the median and the central 68 % are drawn.
_MAX_CURVES = 8
#: Exposures that are drawn; of more, every n-th.
_MAX_EXPOSURES = 500
#: Bins of a spectrum that are drawn as one: it is recorded in bins that are narrower than needed here.
_REBIN = 5
_SPECTRUM_SIZE = (4.7, 2.4)


def plot_rates(
    times: npt.NDArray[Any], rates: Float, detectors: Sequence[int], limits: tuple[float, float] | None
) -> Markup:
    """Plot the rate of cosmic-ray events of each detector over time; nothing with fewer than two exposures.

    Parameters
    ----------
    times : datetime64 array (exposure,)
        Start of each exposure. If one is NaT, the exposures are numbered instead.
    rates : float64 array (exposure, detector)
        Events per second and area [s-1 cm-2].
    detectors : sequence of int
        Ids of the detectors.
    limits : (float, float), optional
        Expected range of the rates.
    """
    rows = np.flatnonzero(np.isfinite(rates).any(axis=1))
    if len(rows) < 2:
        return Markup()
    step = -(-len(rows) // _MAX_EXPOSURES)
    rows = rows[::step]
    has_times = not np.isnat(times[rows]).any() and len(np.unique(times[rows])) > 1
    x = times[rows] if has_times else rows

    def draw(axes: Axes) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415

        columns = [column for column in range(len(detectors)) if np.isfinite(rates[rows, column]).any()]
        if len(columns) <= _MAX_CURVES:
            for column in columns:
                axes.plot(x, rates[rows, column], "o", ms=3.5, label=f"detector {detectors[column]}")
        else:
            low, median, high = np.nanpercentile(rates[rows], [16, 50, 84], axis=1)
            errors = [median - low, high - median]
            axes.errorbar(x, median, errors, fmt="o", ms=3.5, label="median, 68 % of detectors")
        if limits is not None:
            axes.axhspan(*limits, alpha=0.12, color=COLOURS[2], lw=0, label="expected")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("time (UTC)" if has_times else "number of the exposure")
        if has_times:
            locator = AutoDateLocator()
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_ylabel("cosmic-ray events [s⁻¹ cm⁻²]")
        axes.legend(frameon=False, ncols=4, loc="lower right", fontsize=8)

    sampled = f", one exposure in {step}" if step > 1 else ""
    return plot(draw, f"Rate of cosmic-ray events over time{sampled}", "plot-rates")


def plot_rho(statistics: Mapping[str, Float], names: Sequence[str], separation: Float, unit: str) -> Markup:
    """Plot the rho statistics of held-out stars over their separation; negative values are hollow.

    Parameters
    ----------
    statistics : mapping
        Values (bin,) by name, as `csstdask.metrics.rho_statistics.rho_statistics` returns them.
    names : sequence of str
        Statistics that are drawn.
    separation : float64 array (bin,)
        Mean separation of the pairs of each bin.
    unit : str
        Unit of the separations.
    """
    shown = {name: np.isfinite(statistics[name]) & (statistics[name] != 0) & (separation > 0) for name in names}
    if not any(use.any() for use in shown.values()):
        return Markup()

    def draw(axes: Axes) -> None:
        for colour, (name, use) in zip(COLOURS, shown.items(), strict=False):
            if not use.any():
                continue
            size, positive = np.abs(statistics[name][use]), statistics[name][use] > 0
            axes.plot(separation[use], size, "-", color=colour, lw=1, label=f"ρ{name.removeprefix('rho')}")
            axes.plot(separation[use][positive], size[positive], "o", color=colour, ms=4)
            axes.plot(separation[use][~positive], size[~positive], "o", color=colour, ms=4, mfc="none")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(f"separation [{unit}]")
        axes.set_ylabel("|ρ|")
        axes.legend(frameon=False, ncols=5, fontsize=8)

    return plot(draw, "Rho statistics of held-out stars; hollow: negative", "plot-rho")


def plot_spectrum(name: str, edges: Float, curves: Mapping[str, npt.NDArray[np.int64]], label: str) -> Markup:
    """Plot histograms, each as fractions of its own sum.

    Parameters
    ----------
    name : str
        Name of the quantity.
    edges : float64 array (n + 1,)
        Bin edges: log10 of the quantity.
    curves : mapping
        Counts (n,) of each curve.
    label : str
        Quantity and unit: label of the axis, and caption.
    """
    first = np.arange(0, len(edges) - 1, _REBIN)
    wide_edges = 10.0 ** edges[[*first, len(edges) - 1]]

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.16, 0.21, 0.81, 0.75))
        axes.patch.set_alpha(0)
        for colour, (curve, counts) in zip(COLOURS, curves.items(), strict=False):
            fraction = np.add.reduceat(counts, first) / max(1, int(counts.sum()))
            axes.stairs(fraction, wide_edges, color=colour, label=curve)
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("fraction of events")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False, fontsize=8)

    return svg_figure(draw, label, f"spectrum-{name}", size=_SPECTRUM_SIZE, css="drawing")
