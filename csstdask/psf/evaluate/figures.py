"""Figures of an evaluation of PSFs: what is left of images, and where (CSST-PSFNet paper, figures 4 to 9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.psf.evaluate.stars import Stars, shape_errors_of
from csstdask.results import pyplot

Float = npt.NDArray[np.float64]

#: Samples about the middle of a PSF that are shown, and what its colours span, as a share of the peak and of the size.
_SHOWN, _OF_PEAK, _OF_SIZE = 32, 1e-3, 0.01


@dataclass(frozen=True)
class Look:
    """How a method's PSFs look on one detector."""

    left: Float
    """(32, 32) Mean of (image - truth), peaks at 1, in half pixels about the middle."""
    x: Float
    """(n,) Of the stars [pixel]."""
    y: Float
    size: Float
    """(n,) (R - R_true) / R_true."""

    @classmethod
    def of(cls, stars: Stars, image: npt.NDArray[np.float32]) -> Look:
        """Return how reconstructions of stars look."""
        found, true = (one.astype(float) / one.max(axis=(1, 2), keepdims=True) for one in (image, stars.truth))
        low = (image.shape[-1] - _SHOWN) // 2
        window = slice(low, low + _SHOWN)
        left = (found - true).mean(axis=0)[window, window]
        return cls(left, stars.x, stars.y, shape_errors_of(image, stars.truth)["size"])


def draw_looks(looks: Mapping[str, Mapping[str, Look]], path: Path) -> None:
    """Draw what methods leave, a column a band: mean images of it, then sizes over the detector.

    Parameters
    ----------
    looks : mapping
        By band and method.
    path : Path
        PNG
    """
    bands = list(looks)
    methods = list(dict.fromkeys(method for band in bands for method in looks[band]))
    plt = pyplot()
    shape = (2 * len(methods), len(bands))
    figure, axes = plt.subplots(*shape, figsize=(1.9 * shape[1], 1.9 * shape[0]), layout="constrained", squeeze=False)
    for row, method in enumerate(methods):
        for column, band in enumerate(bands):
            image, place = axes[2 * row, column], axes[2 * row + 1, column]
            for axis in (image, place):
                axis.set_xticks([])
                axis.set_yticks([])
            look = looks[band].get(method)
            if look is None:
                continue
            shown = image.imshow(look.left, origin="lower", cmap="RdBu_r", vmin=-_OF_PEAK, vmax=_OF_PEAK)
            dots = _scatter(place, look)
            image.set_title(f"{band}, {method}", fontsize=7)
        figure.colorbar(shown, ax=axes[2 * row, :], label="of the peak")
        figure.colorbar(dots, ax=axes[2 * row + 1, :], label="dR/R")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _scatter(axis: Any, look: Look) -> Any:
    return axis.scatter(look.x, look.y, c=look.size, s=3, marker="s", cmap="RdBu_r", vmin=-_OF_SIZE, vmax=_OF_SIZE)
