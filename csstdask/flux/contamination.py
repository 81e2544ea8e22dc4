"""Light of other stars in the windows of a star: their first orders, and zeroth orders."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from csstdask.flux.extraction_kernels import add_light, cut
from csstdask.flux.predicted_spectra import PredictedSpectra
from csstdask.flux.profile import CrossProfile
from csstdask.flux.traces import Traces
from csstdask.flux.windows import HALF_ROWS, Frame, Shape, Windows, first_rows
from csstdask.instrument.dispersion import Dispersion

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

CONTAMINATION_LIMIT = 0.05
"""Light of others over a star's own from which a pixel is rejected ..."""
CONTAMINATION_SIGMA = 0.3
"""... if it is also more than this in units of the pixel's noise."""
_ZEROTH_RADIUS = 5.0
"""Distance from a zeroth order of unknown brightness within which pixels are rejected [pixel]."""


@dataclass(frozen=True)
class Spots:
    """Zeroth orders."""

    x: Float
    y: Float
    counts: Float
    """[e-]; NaN = unknown."""
    wavelength: float


def zeroth_orders(zeroth: Dispersion | None, predicted: PredictedSpectra | None, x: Float, y: Float) -> Spots | None:
    """Return positions and counts of the zeroth orders; None without a dispersion relation of theirs."""
    if zeroth is None:
        return None
    middle = float(np.mean(zeroth.limits))
    at_x, at_y = zeroth.position(x, y, middle)
    counts = np.full(len(x), np.nan)
    if predicted is not None and predicted.zeroth_sensitivity is not None:
        counts = predicted.zeroth_counts((0.9 * zeroth.limits[0], 1.1 * zeroth.limits[1]))
    return Spots(at_x, at_y, counts, middle)


def light_of_all(
    frame: Frame, traces: Traces, profile: CrossProfile, shape: Shape, light: Float, spots: Spots | None
) -> Single:
    """Return the predicted light of all stars on the frame [e-]; NaN round zeroth orders of unknown brightness."""
    total = np.zeros(frame.height.shape, dtype=np.float32)
    counts = np.where(np.isfinite(light), light, 0.0)
    add_light(total, np.ascontiguousarray(traces.column[:, 0]), first_rows(traces), counts, shape.pixels)
    if spots is not None:
        _add_spots(total, profile, spots)
    return total


def _add_spots(total: Single, profile: CrossProfile, spots: Spots) -> None:
    """Add zeroth orders: round images with the widths of the profile."""
    ny, nx = total.shape
    reach = HALF_ROWS
    near = (spots.x > -reach) & (spots.x < nx + reach) & (spots.y > -reach) & (spots.y < ny + reach)
    parts = [
        (share, replace(profile, core=width, wing=width, share=0.5))
        for share, width in ((1 - profile.share, profile.core), (profile.share, profile.wing))
    ]
    for i in np.flatnonzero(near):
        left, bottom = round(float(spots.x[i])) - reach, round(float(spots.y[i])) - reach
        rows, columns = np.arange(bottom, bottom + 2 * reach + 1), np.arange(left, left + 2 * reach + 1)
        if np.isfinite(spots.counts[i]):
            image = spots.counts[i] * sum(
                share * np.outer(
                    one.pixels(spots.y[i] - bottom, spots.wavelength, len(rows)),
                    one.pixels(spots.x[i] - left, spots.wavelength, len(columns)),
                )
                for share, one in parts
            )  # fmt: skip
        else:
            far = np.hypot(rows[:, None] - spots.y[i], columns[None, :] - spots.x[i]) > _ZEROTH_RADIUS
            image = np.where(far, 0.0, np.nan)
        on_y, on_x = (rows >= 0) & (rows < ny), (columns >= 0) & (columns < nx)
        total[np.ix_(rows[on_y], columns[on_x])] += np.asarray(image, dtype=np.float32)[np.ix_(on_y, on_x)]


def foreign_light(others: Single, traces: Traces, windows: Windows, shape: Single, light: Float) -> tuple[Single, Bool]:
    """Return the light of other stars in windows [e-], and where it is too much."""
    foreign = np.empty_like(windows.data)
    cut(others, np.ascontiguousarray(traces.column[:, 0]), windows.first_row, 0.0, foreign)
    own = (np.maximum(light, 0.0)[..., None] * shape).astype(np.float32)
    unknown = ~np.isfinite(foreign)
    foreign = np.where(unknown, 0.0, np.maximum(foreign - own, 0.0)).astype(np.float32)
    foreign[foreign < 1e-5 * own] = 0.0  # rounding of the sum
    bad = (foreign > CONTAMINATION_LIMIT * own) & (foreign**2 > CONTAMINATION_SIGMA**2 * windows.squared)
    foreign[bad] = 0.0
    return foreign, bad | unknown


def bad_share(shape: Single, bad: Bool, usable: Bool) -> Float:
    """Return the share of the profiles that is bad."""
    total = (shape * usable).sum(axis=(1, 2), dtype=np.float64)
    return np.asarray((shape * bad).sum(axis=(1, 2), dtype=np.float64) / np.maximum(total, 1e-30))
