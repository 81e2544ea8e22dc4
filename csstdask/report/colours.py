"""Colours of values: one colour map for focal planes and tables, and readable text on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

COLOUR_MAP = "viridis"
_NO_DATA = "#e6e6e6"
#: Percentiles of the values that get the darkest and the lightest colour.
_PERCENTILES = (2, 98)


def colour(value: float, low: float, high: float) -> str:
    """Return the colour ``#rrggbb`` of a value between two limits; grey for values that are not finite.

    Examples
    --------
    >>> colour(0.0, 0, 1), colour(1.0, 0, 1), colour(float("nan"), 0, 1)
    ('#440154', '#fde725', '#e6e6e6')
    """
    import matplotlib as mpl  # noqa: PLC0415  only a report needs it
    from matplotlib.colors import to_hex  # noqa: PLC0415

    if not np.isfinite(value):
        return _NO_DATA
    return str(to_hex(mpl.colormaps[COLOUR_MAP](float(np.clip((value - low) / max(high - low, 1e-30), 0, 1)))))


def text_colour(background: str) -> str:
    """Return black or white, whichever has more contrast with a colour ``#rrggbb``.

    Contrast is that of WCAG 2, ``(L1 + 0.05) / (L2 + 0.05)`` with relative luminances L. The better of the two is
    always above 4.5.

    Examples
    --------
    >>> text_colour("#fde725"), text_colour("#440154")
    ('#000', '#fff')
    """
    channels = np.array([int(background[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "#000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#fff"


def colour_limits(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the limits of the colour map: the central 96 % of the finite values."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, _PERCENTILES)
    return float(low), float(high)
