"""Isotropic particles crossing a layer of silicon.

A minimum-ionising particle crosses the sensitive layer on a straight chord, with angles distributed as the flux through
a surface, cos(theta). The charge along the chord fluctuates after Landau (1944), with about 80 electrons per micrometre
(PDG, "Passage of particles through matter"). Charge released far from the gates diffuses most. Some electrons receive
enough energy to leave short curved tracks (delta rays). Slow electrons, which scatter until they stop, are the worms.
The generator is independent of the paper's and not fitted to any camera.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.mock.charge_deposition import Paths
from csstdask.mock.recipe_tables import CosmicRays

Float = npt.NDArray[np.float64]

_CHARGE_PER_PIXEL = 800.0
"""Most probable charge of a minimum-ionising particle per pixel (10 um) of chord [e-/pixel]."""
_LANDAU_WIDTH = 0.12
"""Landau width over most probable value in thin silicon."""
_SLOW_FRACTION = 0.2
"""Fraction of slow protons and helium nuclei, which deposit more charge."""
_SLOW_FACTOR = (1.5, 12.0)
"""Range of the charge of slow particles relative to minimum-ionising ones."""
_MAX_LENGTH = 250.0
"""Longest path, limited by the window of `csstdask.mock.charge_deposition.deposit` [pixel]."""
_MARGIN = 50
"""Margin around a frame in which particles enter, because their tracks reach the frame [pixel]."""
_SPACING = 0.25
"""Spacing of the points of a path [pixel]."""
_DELTA_RATE = 0.01
"""Delta rays per pixel of chord [pixel^-1]."""
_DELTA_RANGE = 3.0
"""Mean range of a delta ray [pixel]."""
_WORM_DEFLECTION = 0.35
"""Change of direction of a worm per pixel, 1 sigma [rad]."""
_WORM_LENGTH = 18.0
"""Mean length of a worm [pixel]."""
_MIN_SIGMA = 0.08
"""Charge diffusion at the gates, 1 sigma [pixel]."""


def landau(rng: np.random.Generator, n: int) -> Float:
    """Draw n values of the Landau distribution with location 0 and scale 1.

    It is the stable distribution with alpha = 1, beta = 1 (Chambers, Mallows & Stuck 1976, JASA 71, 340).

    Examples
    --------
    >>> landau(np.random.default_rng(1), 3).shape
    (3,)
    """
    angle, wait = rng.uniform(-np.pi / 2, np.pi / 2, n), rng.exponential(1.0, n)
    half = np.pi / 2
    shifted = half + angle
    return (2 / np.pi) * (shifted * np.tan(angle) - np.log(half * wait * np.cos(angle) / shifted))


def _path_points(
    events: int, points: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float]:
    """Return offsets of the events, the event of each point, and its relative position along the path."""
    offset = np.concatenate([[0], np.cumsum(points)])
    event = np.repeat(np.arange(events), points)
    return offset, event, (np.arange(offset[-1]) - offset[event] + 0.5) / points[event]


def slab_events(rng: np.random.Generator, settings: CosmicRays, shape: tuple[int, int], events: int) -> Paths:
    """Draw straight chords with delta rays, and worms.

    Parameters
    ----------
    rng : numpy.random.Generator
        Random stream.
    settings : CosmicRays
        Table of the recipe, with thickness, diffusion and fraction of worms.
    shape : (int, int)
        Shape (y, x) of the frame; particles enter up to `_MARGIN` pixels outside.
    events : int
        Number of events.

    Returns
    -------
    Paths
        The events, followed by their delta rays.
    """
    worm = rng.random(events) < settings.worm_share * 0.5
    cosine = np.sqrt(rng.random(events))  # flux through a surface
    length = np.minimum(settings.thickness * np.sqrt(1 - cosine**2) / np.maximum(cosine, 1e-3), _MAX_LENGTH)
    length = np.where(worm, np.minimum(rng.exponential(_WORM_LENGTH, events), _MAX_LENGTH), length)
    chord = np.where(worm, length, np.hypot(length, settings.thickness))
    slow = np.where(rng.random(events) < _SLOW_FRACTION, rng.uniform(*_SLOW_FACTOR, events), 1.0)
    # The most probable value grows slightly faster than the chord, by its logarithm (Landau).
    most_probable = _CHARGE_PER_PIXEL * chord * slow * (1 + _LANDAU_WIDTH * np.log(np.maximum(chord, 0.2)))
    charge = most_probable + np.minimum(landau(rng, events), 60) * _LANDAU_WIDTH * _CHARGE_PER_PIXEL * chord * slow
    charge = np.where(worm, _CHARGE_PER_PIXEL * length * rng.uniform(0.8, 3.0, events), charge)
    electrons = np.rint(np.maximum(charge, 20)).astype(np.int64)
    offset, event, along = _path_points(events, np.maximum(1, np.ceil(length / _SPACING)).astype(np.int64))
    angle = rng.uniform(0, 2 * np.pi, events)
    y0, x0 = (rng.uniform(-0.5 - _MARGIN, side + _MARGIN - 0.5, events) for side in shape)
    heading = angle[event] + _deflections(rng, offset, event, worm)
    step = (length / np.diff(offset))[event]
    x = x0[event] + _cumulative(step * np.cos(heading), offset, event)
    y = y0[event] + _cumulative(step * np.sin(heading), offset, event)
    depth = np.where(worm[event], rng.random(events)[event], along)  # 0 at the gates, 1 at the far side
    sigma = np.maximum(settings.diffusion * np.sqrt(depth), _MIN_SIGMA)
    # The energy loss of a worm grows as it slows down.
    share = np.where(worm[event], 1 + 2 * along**4, rng.gamma(4.0, 0.25, len(event)))
    straight = Paths(offset, x, y, share, sigma, electrons)
    return _concatenate(straight, _delta_rays(rng, straight, chord))


def _deflections(
    rng: np.random.Generator,
    offset: npt.NDArray[np.int64],
    event: npt.NDArray[np.int64],
    worm: npt.NDArray[np.bool_],
) -> Float:
    """Return the deflection at each point of the worms (point,) [rad]; 0 for other events."""
    turn = rng.normal(0, _WORM_DEFLECTION * np.sqrt(_SPACING), len(event)) * worm[event]
    return _cumulative(turn, offset, event)


def _cumulative(values: Float, offset: npt.NDArray[np.int64], event: npt.NDArray[np.int64]) -> Float:
    """Return cumulative sums that restart with each event."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(total[1:] - total[offset[event]])


def _delta_rays(rng: np.random.Generator, primary: Paths, chord: Float) -> Paths:
    """Draw the delta rays of events with given chords [pixel]."""
    owner = np.repeat(np.arange(len(chord)), rng.poisson(_DELTA_RATE * chord))
    n = len(owner)
    counts = np.diff(primary.offset)
    start = primary.offset[owner] + (rng.random(n) * counts[owner]).astype(np.int64)
    length = np.clip(rng.exponential(_DELTA_RANGE, n), 0.3, 40)
    offset, ray, along = _path_points(n, np.ceil(length / _SPACING).astype(np.int64))
    heading = rng.uniform(0, 2 * np.pi, n)[ray]
    turn = rng.normal(0, 2 * _WORM_DEFLECTION * np.sqrt(_SPACING), len(ray))
    heading = heading + _cumulative(turn, offset, ray)
    step = (length / np.maximum(np.diff(offset), 1))[ray]
    return Paths(
        offset,
        primary.x[start][ray] + _cumulative(step * np.cos(heading), offset, ray),
        primary.y[start][ray] + _cumulative(step * np.sin(heading), offset, ray),
        1 + 2 * along**4,
        np.repeat(primary.sigma[start], np.diff(offset)),
        np.rint(_CHARGE_PER_PIXEL * length * rng.uniform(0.8, 2.5, n)).astype(np.int64),
    )


def _concatenate(first: Paths, second: Paths) -> Paths:
    """Return the events of both."""
    return Paths(
        np.concatenate([first.offset, first.offset[-1] + second.offset[1:]]),
        *(
            np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("x", "y", "share", "sigma", "electrons")
        ),
    )
