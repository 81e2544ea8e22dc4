"""Light of other stars in the windows of a star: their first and zeroth orders."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from csstdask.flux.predicted_spectra import PredictedSpectra
from csstdask.flux.profile import CrossProfile
from csstdask.flux.traces import Traces
from csstdask.flux.window_kernels import add_windows, copy_windows
from csstdask.flux.windows import HALF_ROWS, Frame, WindowProfile, Windows, first_rows
from csstdask.instrument.dispersion import Dispersion

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

CONTAMINATION_LIMIT = 0.05
"""Light of other stars, over the star's own light, above which a pixel is rejected ..."""
CONTAMINATION_SIGMA = 0.3
"""... if it also exceeds this multiple of the pixel's noise."""
_UNKNOWN_ZEROTH_RADIUS = 5.0
"""Distance from a zeroth order of unknown brightness within which pixels are rejected [pixel]."""
_ROUNDING = 1e-5
"""Light of others over a star's own below which it is a rounding error of the frame's float32 sum."""


@dataclass(frozen=True)
class ZerothOrders:
    """Zeroth orders of n stars."""

    x: Float
    """(n,) Column [pixel]."""
    y: Float
    """(n,) Row [pixel]."""
    counts: Float
    """(n,) [e-]; NaN = unknown."""
    wavelength: float
    """Mean wavelength of the order [Angstrom]."""


def find_zeroth_orders(
    zeroth: Dispersion | None, predicted: PredictedSpectra | None, x: Float, y: Float
) -> ZerothOrders | None:
    """Return positions and counts of the zeroth orders; None without their dispersion relation.

    Parameters
    ----------
    zeroth : Dispersion, optional
        Dispersion relation of the zeroth order.
    predicted : PredictedSpectra, optional
        Expected spectra of the stars; without them the counts are unknown.
    x, y : float64 arrays (n,)
        Positions of the stars without the grating [pixel].
    """
    if zeroth is None:
        return None
    middle = float(np.mean(zeroth.limits))
    at_x, at_y = zeroth.position(x, y, middle)
    counts = np.full(len(x), np.nan)
    if predicted is not None and predicted.zeroth_sensitivity is not None:
        counts = predicted.zeroth_counts((0.9 * zeroth.limits[0], 1.1 * zeroth.limits[1]))
    return ZerothOrders(at_x, at_y, counts, middle)


def render_stars(
    frame: Frame,
    traces: Traces,
    profile: CrossProfile,
    shape: WindowProfile,
    light: Float,
    zeroth_orders: ZerothOrders | None,
) -> Single:
    """Render the light of all stars on a frame.

    Parameters
    ----------
    frame : Frame
        Frame whose shape the result has.
    traces : Traces
        First orders of n stars.
    profile : CrossProfile
        Profile across the traces, also of the zeroth orders.
    shape : WindowProfile
        `profile` in the windows of the stars.
    light : float64 array (n, column)
        Counts of the first orders [e-]; NaN counts as 0.
    zeroth_orders : ZerothOrders, optional
        Zeroth orders of the stars.

    Returns
    -------
    float32 array (y, x)
        [e-]; NaN around zeroth orders of unknown brightness.
    """
    total = np.zeros(frame.data.shape, dtype=np.float32)
    counts = np.where(np.isfinite(light), light, 0.0)
    add_windows(total, np.ascontiguousarray(traces.column[:, 0]), first_rows(traces), counts, shape.pixels)
    if zeroth_orders is not None:
        _add_zeroth_orders(total, profile, zeroth_orders)
    return total


def _add_zeroth_orders(total: Single, profile: CrossProfile, orders: ZerothOrders) -> None:
    """Add round images whose core and wings have the widths of the profile."""
    ny, nx = total.shape
    radius = HALF_ROWS
    near = (orders.x > -radius) & (orders.x < nx + radius) & (orders.y > -radius) & (orders.y < ny + radius)
    parts = [
        (share, replace(profile, core=width, wing=width, share=0.5))
        for share, width in ((1 - profile.share, profile.core), (profile.share, profile.wing))
    ]
    for i in np.flatnonzero(near):
        left, bottom = round(float(orders.x[i])) - radius, round(float(orders.y[i])) - radius
        rows, columns = np.arange(bottom, bottom + 2 * radius + 1), np.arange(left, left + 2 * radius + 1)
        if np.isfinite(orders.counts[i]):
            image = orders.counts[i] * sum(
                share * np.outer(
                    one.pixels(orders.y[i] - bottom, orders.wavelength, len(rows)),
                    one.pixels(orders.x[i] - left, orders.wavelength, len(columns)),
                )
                for share, one in parts
            )  # fmt: skip
        else:
            distance = np.hypot(rows[:, None] - orders.y[i], columns[None, :] - orders.x[i])
            image = np.where(distance > _UNKNOWN_ZEROTH_RADIUS, 0.0, np.nan)
        on_y, on_x = (rows >= 0) & (rows < ny), (columns >= 0) & (columns < nx)
        total[np.ix_(rows[on_y], columns[on_x])] += np.asarray(image, dtype=np.float32)[np.ix_(on_y, on_x)]


def contaminating_light(
    all_light: Single, traces: Traces, windows: Windows, profile: Single, light: Float
) -> tuple[Single, Bool]:
    """Return the light of other stars in the windows of n stars, and the pixels where it is too much.

    Parameters
    ----------
    all_light : float32 array (y, x)
        Light of all stars (`render_stars`) [e-].
    traces : Traces
        First orders of the n stars.
    windows : Windows
        Their pixels.
    profile : float32 array (n, column, row)
        Profile in the windows.
    light : float64 array (n, column)
        Counts of each star in `all_light` [e-].

    Returns
    -------
    contamination : float32 array (n, column, row)
        Light of other stars [e-]; 0 where it is too much or unknown.
    bad : bool array (n, column, row)
        Pixels to reject.
    """
    foreign = np.empty_like(windows.data)
    copy_windows(all_light, np.ascontiguousarray(traces.column[:, 0]), windows.first_row, 0.0, foreign)
    own = (np.maximum(light, 0.0)[..., None] * profile).astype(np.float32)
    unknown = ~np.isfinite(foreign)
    foreign = np.where(unknown, 0.0, np.maximum(foreign - own, 0.0)).astype(np.float32)
    foreign[foreign < _ROUNDING * own] = 0.0
    bad = (foreign > CONTAMINATION_LIMIT * own) & (foreign**2 > CONTAMINATION_SIGMA**2 * windows.variance)
    foreign[bad] = 0.0
    return foreign, bad | unknown


def rejected_share(profile: Single, bad: Bool, usable: Bool) -> Float:
    """Return the share (n,) of each star's usable profile that lies on bad pixels (n, column, row)."""
    total = (profile * usable).sum(axis=(1, 2), dtype=np.float64)
    return np.asarray((profile * bad).sum(axis=(1, 2), dtype=np.float64) / np.maximum(total, 1e-30))
