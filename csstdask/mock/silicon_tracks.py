"""Particles from all directions through a slab of silicon.

A minimum-ionising particle crosses the sensitive layer on a straight chord; the flux through a surface makes its
angle follow cos(theta). The charge fluctuates along the chord after Landau (1944), about 80 electrons a micrometre
(PDG, "Passage of particles through matter"). Charge set free far from the gates diffuses most. Now and then an
electron is knocked on (a delta ray) and leaves a short curl; slow electrons, which scatter until they stop, are the
worms. Nothing here is fitted to a camera: it is a second opinion beside the paper's generator.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.mock.charge_deposition import Paths
from csstdask.mock.recipe_tables import CosmicRays

Float = npt.NDArray[np.float64]

#: Most probable charge of a minimum-ionising particle, a pixel (10 um) of chord [e-].
_CHARGE = 800.0
#: Landau width over most probable value, in thin silicon.
_WIDTH = 0.12
#: Share of events by protons and helium slower than minimum-ionising, that leave more charge.
_SLOW_SHARE, _SLOW_FACTOR = 0.2, (1.5, 12.0)
_LONGEST = 250.0  # a path must fit into `deposit`'s window
#: Particles come in from so far beyond a frame's edges [pixel].
_MARGIN = 50
_SPACING = 0.25
#: Delta rays a pixel of chord, and the mean range of one [pixel].
_DELTA_RATE, _DELTA_RANGE = 0.01, 3.0
#: A worm's direction changes by this much in a pixel [rad], and it is this long on average [pixel].
_WORM_TURN, _WORM_LENGTH = 0.35, 18.0
#: Diffusion does not vanish at the gates [pixel].
_LEAST_SIGMA = 0.08


def landau(rng: np.random.Generator, n: int) -> Float:
    """Draw from Landau's distribution, location 0 and scale 1.

    It is the stable law with alpha = 1, beta = 1 (Chambers, Mallows & Stuck 1976, JASA 71, 340, with their
    exponential and uniform variables).
    """
    angle, wait = rng.uniform(-np.pi / 2, np.pi / 2, n), rng.exponential(1.0, n)
    half = np.pi / 2
    shifted = half + angle
    return (2 / np.pi) * (shifted * np.tan(angle) - np.log(half * wait * np.cos(angle) / shifted))


def _lengths(events: int, points: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float]:
    offset = np.concatenate([[0], np.cumsum(points)])
    event = np.repeat(np.arange(events), points)
    return offset, event, (np.arange(offset[-1]) - offset[event] + 0.5) / points[event]


def slab_events(rng: np.random.Generator, settings: CosmicRays, shape: tuple[int, int], events: int) -> Paths:
    """Draw events: straight chords with delta rays, and worms.

    Parameters
    ----------
    rng : numpy.random.Generator
    settings : CosmicRays
        Its thickness, diffusion and share of worms.
    shape : (int, int)
        (y, x); particles enter on it or up to `_MARGIN` beyond its edges.
    events : int
        How many.
    """
    worm = rng.random(events) < settings.worm_share * 0.5
    cosine = np.sqrt(rng.random(events))  # flux through a surface
    run = np.minimum(settings.thickness * np.sqrt(1 - cosine**2) / np.maximum(cosine, 1e-3), _LONGEST)
    run = np.where(worm, np.minimum(rng.exponential(_WORM_LENGTH, events), _LONGEST), run)
    chord = np.where(worm, run, np.hypot(run, settings.thickness))
    slow = np.where(rng.random(events) < _SLOW_SHARE, rng.uniform(*_SLOW_FACTOR, events), 1.0)
    # The most probable value grows a little faster than the chord (Landau: with its logarithm).
    likely = _CHARGE * chord * slow * (1 + _WIDTH * np.log(np.maximum(chord, 0.2)))
    charge = likely + np.minimum(landau(rng, events), 60) * _WIDTH * _CHARGE * chord * slow
    charge = np.where(worm, _CHARGE * run * rng.uniform(0.8, 3.0, events), charge)
    electrons = np.rint(np.maximum(charge, 20)).astype(np.int64)
    offset, event, along = _lengths(events, np.maximum(1, np.ceil(run / _SPACING)).astype(np.int64))
    angle = rng.uniform(0, 2 * np.pi, events)
    y0, x0 = (rng.uniform(-0.5 - _MARGIN, side + _MARGIN - 0.5, events) for side in shape)
    heading = angle[event] + _wander(rng, offset, event, worm)
    step = (run / np.diff(offset))[event]
    x = x0[event] + _from_start(step * np.cos(heading), offset, event)
    y = y0[event] + _from_start(step * np.sin(heading), offset, event)
    depth = np.where(worm[event], rng.random(events)[event], along)  # 0 at the gates, 1 at the far side
    sigma = np.maximum(settings.diffusion * np.sqrt(depth), _LEAST_SIGMA)
    # A worm loses more the slower it gets.
    share = np.where(worm[event], 1 + 2 * along**4, rng.gamma(4.0, 0.25, len(event)))
    straight = Paths(offset, x, y, share, sigma, electrons)
    return _joined(straight, _delta_rays(rng, straight, chord))


def _wander(
    rng: np.random.Generator,
    offset: npt.NDArray[np.int64],
    event: npt.NDArray[np.int64],
    worm: npt.NDArray[np.bool_],
) -> Float:
    turn = rng.normal(0, _WORM_TURN * np.sqrt(_SPACING), len(event)) * worm[event]
    return _from_start(turn, offset, event)


def _from_start(values: Float, offset: npt.NDArray[np.int64], event: npt.NDArray[np.int64]) -> Float:
    """Return running sums that begin anew with each event."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(total[1:] - total[offset[event]])


def _delta_rays(rng: np.random.Generator, primary: Paths, chord: Float) -> Paths:
    owner = np.repeat(np.arange(len(chord)), rng.poisson(_DELTA_RATE * chord))
    n = len(owner)
    counts = np.diff(primary.offset)
    start = primary.offset[owner] + (rng.random(n) * counts[owner]).astype(np.int64)
    length = np.clip(rng.exponential(_DELTA_RANGE, n), 0.3, 40)
    offset, ray, along = _lengths(n, np.ceil(length / _SPACING).astype(np.int64))
    heading = rng.uniform(0, 2 * np.pi, n)[ray]
    turn = rng.normal(0, 2 * _WORM_TURN * np.sqrt(_SPACING), len(ray))
    heading = heading + _from_start(turn, offset, ray)
    step = (length / np.maximum(np.diff(offset), 1))[ray]
    return Paths(
        offset,
        primary.x[start][ray] + _from_start(step * np.cos(heading), offset, ray),
        primary.y[start][ray] + _from_start(step * np.sin(heading), offset, ray),
        1 + 2 * along**4,
        np.repeat(primary.sigma[start], np.diff(offset)),
        np.rint(_CHARGE * length * rng.uniform(0.8, 2.5, n)).astype(np.int64),
    )


def _joined(first: Paths, second: Paths) -> Paths:
    return Paths(
        np.concatenate([first.offset, first.offset[-1] + second.offset[1:]]),
        *(
            np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("x", "y", "share", "sigma", "electrons")
        ),
    )
