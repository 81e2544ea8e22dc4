"""Plot a flat."""

from __future__ import annotations

from typing import Any

import numpy as np

from csstdask.core.plotting import pyplot
from csstdask.flux.flat import Flat


def plot_flat(flat: Flat, n_panels: int = 4) -> Any:
    """Plot sensitivity, precision and slices of a flat.

    Parameters
    ----------
    flat : Flat
        Flat of one detector.
    n_panels : int
        Number of slices at different wavelengths.

    Returns
    -------
    matplotlib.figure.Figure
    """
    plt = pyplot()
    figure, axes = plt.subplots(2, n_panels, figsize=(3.2 * n_panels, 6), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.remove()
    grid = axes[0, 0].get_gridspec()
    left, right = figure.add_subplot(grid[0, : n_panels // 2 or 1]), figure.add_subplot(grid[0, n_panels // 2 :])
    sigma = np.sqrt(flat.sensitivity_variance)
    left.plot(flat.wavelength, flat.sensitivity)
    left.fill_between(flat.wavelength, flat.sensitivity - sigma, flat.sensitivity + sigma, alpha=0.3)
    left.set(xlabel="wavelength [Angstrom]", ylabel="sensitivity")
    ny, nx = flat.shape
    for name, x, y in (("centre", nx / 2, ny / 2), ("corner", nx - 1.0, ny - 1.0)):
        right.semilogy(flat.wavelength, np.sqrt(flat.variance(x, y, flat.wavelength)), label=name)
    right.set(xlabel="wavelength [Angstrom]", ylabel="1 sigma of the flat")
    right.legend()
    chosen = flat.wavelength[np.linspace(0, len(flat.wavelength) - 1, n_panels + 2).round().astype(int)[1:-1]]
    slices = flat.planes(np.linspace(0, nx - 1, 64), np.linspace(0, ny - 1, 64), chosen)
    half_range = max(float(np.abs(slices - 1).max()), 1e-6)
    for axis, image, wavelength in zip(axes[1], slices, chosen, strict=True):
        drawn = axis.imshow(
            image, origin="lower", extent=(0, nx, 0, ny), vmin=1 - half_range, vmax=1 + half_range, cmap="RdBu_r"
        )
        axis.set(title=f"{wavelength:.0f} Angstrom", xlabel="x [pixel]")
    axes[1, 0].set_ylabel("y [pixel]")
    figure.colorbar(drawn, ax=list(axes[1]), label="flat")
    return figure
