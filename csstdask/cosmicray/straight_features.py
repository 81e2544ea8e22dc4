"""Straight features that are no cosmic rays, satellites and trailed stars, released from a mask of cosmic rays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.mesh import Mesh
from csstdask.cosmicray.trailed_stars import TrailedStars, find_drift, release_trailed_stars
from csstdask.cosmicray.trails import Trail, find_trails, release_trails, trail_pixels

Bool = npt.NDArray[np.bool_]
Columns = dict[str, npt.NDArray[Any]]

#: Values of the column ``origin`` of the table of events.
COSMIC_RAY, SATELLITE, TRAILED_STAR = ORIGINS = ("cosmic_ray", "satellite", "trailed_star")


@dataclass(frozen=True)
class StraightFeatures:
    """Straight features of a frame."""

    shape: tuple[int, int]
    """Shape of the frame (y, x)."""
    trails: Sequence[Trail] = ()
    """Trails of satellites."""
    stars: TrailedStars | None = None
    """Trailed stars from which hits were released; None if stars are not trailed."""

    def satellite_mask(self) -> Bool:
        """Return the pixels (y, x) in which there is light of a satellite."""
        return trail_pixels(self.trails, self.shape)

    def table(self) -> Columns:
        """Return one row per feature: satellites, then stars.

        Returns
        -------
        dict of arrays (n,)
            ``origin`` : str, ``satellite`` or ``trailed_star``.
            ``x``, ``y`` : centre [pixel].
            ``n_pixels`` : int32.
            ``length``, ``width`` : of a satellite from end to end, and full width at half maximum; of a star those of a
            uniform line with the same second moments [pixel].
            ``angle`` : position angle, from +x towards +y, in [0, 180) [deg].
            ``touches_edge`` : bool, whether a satellite reaches the edge of the frame.
        """
        n = 0 if self.stars is None else len(self.stars.x)
        edge = [one.touches_edge(self.shape) for one in self.trails]
        sizes = [int(trail_pixels([one], self.shape).sum()) for one in self.trails]

        def joined(satellites: Sequence[float], name: str) -> npt.NDArray[Any]:
            stars = np.empty(0) if self.stars is None else getattr(self.stars, name)
            return np.concatenate([np.asarray(satellites, dtype=np.float64), stars])

        return {
            "origin": np.array([SATELLITE] * len(self.trails) + [TRAILED_STAR] * n, dtype=object),
            "x": joined([sum(one.x) / 2 for one in self.trails], "x"),
            "y": joined([sum(one.y) / 2 for one in self.trails], "y"),
            "n_pixels": joined(sizes, "n_pixels").astype(np.int32),
            "length": joined([one.length for one in self.trails], "length"),
            "width": joined([one.width for one in self.trails], "width"),
            "angle": joined([one.angle for one in self.trails], "angle"),
            "touches_edge": np.array([*edge, *[False] * n], dtype=bool),
        }


def release_straight_features(
    hit: Bool, data: npt.NDArray[Any], ignore: Bool, mesh: Mesh
) -> tuple[Bool, StraightFeatures]:
    """Release the light of satellites and trailed stars from a mask of cosmic rays.

    Hits that stand out from the feature remain: they are cosmic rays that cross it.

    Parameters
    ----------
    hit : bool array (y, x)
        Detected pixels.
    data : float array (y, x)
        [e-], sky included.
    ignore : bool array (y, x)
        Pixels to leave out.
    mesh : Mesh
        Background and noise [e-].

    Returns
    -------
    hit : bool array (y, x)
        The remaining hits; `hit` itself if there is no feature.
    features : StraightFeatures
    """
    trails = find_trails(data, ignore, mesh)
    remaining = release_trails(hit, trails, data, mesh)
    drift = find_drift(data, ignore, mesh)
    stars = None
    if drift is not None:
        remaining, stars = release_trailed_stars(remaining, drift, data, ignore, mesh)
    return remaining, StraightFeatures((int(data.shape[0]), int(data.shape[1])), tuple(trails), stars)


def append_features(events: Columns, features: Columns) -> Columns:
    """Return a table of events (`csstdask.cosmicray.events.measure_events`) with straight features after them.

    Their charge and peak are unknown (NaN), and their kind is ``track``.
    """
    n, total = len(features["x"]), len(events["id"]) + len(features["x"])
    added = features | {
        "kind": np.full(n, "track", dtype=object),
        "touches_source": np.zeros(n, dtype=bool),
        **{name: np.full(n, np.nan) for name in ("charge", "charge_err", "peak")},
    }
    cosmic = events | {"origin": np.full(len(events["id"]), COSMIC_RAY, dtype=object)}
    joined = {name: np.concatenate([values, added[name]]) for name, values in cosmic.items() if name != "id"}
    return {"id": np.arange(total, dtype=np.int32)} | joined
