"""A spectrum as a drawing: shares of events in logarithmic bins, as steps. SVG, no plotting library."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

_WIDTH, _HEIGHT = 340, 170
_LEFT, _BOTTOM, _TOP = 20, 34, 16
#: Classes of the page's style: the run's own spectrum, and others.
_CURVES = ("curve0", "curve1", "curve2")
#: Bins drawn as one: narrow ones are for distances, not for eyes.
_TOGETHER = 5


def draw_spectrum(edges: npt.NDArray[np.float64], curves: Mapping[str, npt.NDArray[np.int64]], title: str) -> str:
    """Return an SVG of histograms, each in shares of its own sum.

    Parameters
    ----------
    edges : float64 array (n + 1,)
        log10 of the quantity.
    curves : mapping
        Name to counts (n,); at most three.
    title : str
        With the unit.
    """
    first = range(0, len(edges) - 1, _TOGETHER)
    shares = {name: np.add.reduceat(counts, list(first)) / max(1, int(counts.sum())) for name, counts in curves.items()}
    top = max([1e-9, *(float(share.max()) for share in shares.values())])
    places = edges[[*first, len(edges) - 1]]
    x = _LEFT + (places - places[0]) / (places[-1] - places[0]) * (_WIDTH - 2 * _LEFT)
    base = _HEIGHT - _BOTTOM
    parts = []
    for index, (name, share) in enumerate(shares.items()):
        y = base - share / top * (base - _TOP)
        steps = " ".join(
            f"{left:.1f},{level:.1f} {right:.1f},{level:.1f}" for left, right, level in zip(x, x[1:], y, strict=False)
        )
        curve = _CURVES[index % len(_CURVES)]
        parts.append(
            f'<polyline points="{steps}" fill="none" class="{curve}"><title>{html.escape(name)}</title></polyline>'
        )
        parts.append(f'<text x="{_WIDTH - _LEFT}" y="{_TOP + 14 * index}" class="{curve}">{html.escape(name)}</text>')
    parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _LEFT}" y1="{base}" y2="{base}" stroke="#888"/>')
    for power in range(int(np.ceil(places[0])), int(np.floor(places[-1])) + 1):
        at = float(np.interp(power, places, x))
        parts.append(f'<text x="{at:.1f}" y="{base + 16}">{10.0**power:g}</text>')
    label = html.escape(title)
    return (
        f'<figure><svg class="drawing" role="img" aria-label="{label}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}">'
        f"{''.join(parts)}</svg><figcaption>{label}</figcaption></figure>"
    )
