"""Cosmic rays on one exposure of one detector: which generator, at which rate, and the rejection paper's own.

Three generators make paths. `tracks` follows the CSST rejection paper (section 2): an event's charge is log-normal,
its length up to 100 pixels, its electrons diffuse by 0.2 pixel; points, straight tracks, and worms. `slab` follows
particles through silicon (`csstdask.mock.silicon_tracks`). `stis` and `itl` add real events
(`csstdask.mock.event_libraries`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csstdask.mock.charge_deposition import Paths, deposit
from csstdask.mock.event_libraries import load_event_library
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import CosmicRays, Generator
from csstdask.mock.silicon_tracks import slab_events

Float = npt.NDArray[np.float64]

_LONGEST = 100.0
#: Events come in from so far beyond a frame's edges [pixel].
_MARGIN = 50
#: Of the points of a path [pixel].
_SPACING = 0.25
#: Events drawn at once.
_BATCH = 20_000
_SOLAR_PERIOD = 11.0


def track_events(rng: np.random.Generator, settings: CosmicRays, shape: tuple[int, int], events: int) -> Paths:
    """Draw events after the rejection paper: points, tracks and worms anywhere on a frame.

    Parameters
    ----------
    rng : numpy.random.Generator
    settings : CosmicRays
    shape : (int, int)
        (y, x); the middles of events lie on it or up to `_MARGIN` beyond its edges.
    events : int
        How many.
    """
    sigma = settings.log_charge_fwhm / 2.3548
    electrons = np.rint(10 ** rng.normal(settings.log_charge, sigma, events)).astype(np.int64)
    length = track_lengths(rng, settings, events)
    angle = rng.uniform(0, 2 * np.pi, events)
    bend = np.where(rng.random(events) < settings.worm_share, rng.normal(0, 0.3, events), 0.0) * length
    y0, x0 = (rng.uniform(-0.5 - _MARGIN, side + _MARGIN - 0.5, events) for side in shape)
    points = np.maximum(1, np.ceil(length / _SPACING)).astype(np.int64)
    offset = np.concatenate([[0], np.cumsum(points)])
    event = np.repeat(np.arange(events), points)
    along = (np.arange(offset[-1]) - offset[event] + 0.5) / points[event] - 0.5
    forward, aside = along * length[event], (along**2 - 1 / 12) * 4 * bend[event]
    cos, sin = np.cos(angle)[event], np.sin(angle)[event]
    return Paths(
        offset,
        x0[event] + forward * cos - aside * sin,
        y0[event] + forward * sin + aside * cos,
        np.ones(offset[-1]),
        np.full(offset[-1], settings.diffusion),
        electrons,
    )


def track_lengths(rng: np.random.Generator, settings: CosmicRays, events: int) -> Float:
    """Draw lengths of events: 0 for points, else exponential, none above 100 [pixel]."""
    length = np.where(rng.random(events) < settings.point_share, 0.0, rng.exponential(settings.mean_length, events))
    # An exponential is cut by drawing again, not by piling up at the end.
    while (long := length > _LONGEST).any():
        length[long] = rng.exponential(settings.mean_length, int(long.sum()))
    return np.asarray(length)


def scatter_until(
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator, int], Paths],
    shape: tuple[int, int],
    pixel_fraction: float,
) -> npt.NDArray[np.int32]:
    """Return the charge of events, added until a share of the pixels holds some [e-]."""
    charge = np.zeros(shape, dtype=np.int32)
    wanted = round(pixel_fraction * charge.size)
    before, per_event = 0, 30.0
    while before < wanted:
        # Not all that seem to be missing at once: the last events are added few by few.
        events = int(np.clip(0.6 * (wanted - before) / per_event, 1, _BATCH))
        deposit(rng, draw(rng, events), charge)
        now = int(np.count_nonzero(charge))
        per_event, before = max(5.0, (now - before) / events), now
    return charge


def draw_cosmic_rays(rng: np.random.Generator, settings: CosmicRays, shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Return the charge that the paper's tracks leave in each pixel [e-], at the first of the pixel fractions."""
    draw = partial(_tracks, settings, shape)
    return scatter_until(rng, draw, shape, settings.pixel_fraction[0])


def _tracks(settings: CosmicRays, shape: tuple[int, int], rng: np.random.Generator, events: int) -> Paths:
    return track_events(rng, settings, shape, events)


def _slab(settings: CosmicRays, shape: tuple[int, int], rng: np.random.Generator, events: int) -> Paths:
    return slab_events(rng, settings, shape, events)


def pixel_fraction(recipe: Recipe, index: int) -> float:
    """Return the share of pixels that hold charge in an exposure: its turn, its orbit, the solar cycle.

    Galactic cosmic rays are fewest when the Sun is most active; launch is taken to be at that time.
    """
    settings = recipe.cosmic_rays
    rng = stream(recipe.seed, Purpose.RATE, index)
    factor = np.exp(settings.rate_scatter * rng.normal())
    if rng.random() < settings.anomaly_share:
        factor *= settings.anomaly_factor
    factor *= 1 - settings.solar_cycle * np.cos(2 * np.pi * recipe.epoch_of(index) / _SOLAR_PERIOD)
    wanted = settings.pixel_fraction[recipe.assigned(Purpose.DENSITY, index, len(settings.pixel_fraction))]
    return float(min(0.5, wanted * factor))


def unit_cosmic_rays(recipe: Recipe, index: int, detector: int, data: Path | None) -> npt.NDArray[np.int32]:
    """Return the charge that cosmic rays leave in each pixel of a unit [e-].

    Parameters
    ----------
    recipe : Recipe
    index : int
        Of the exposure.
    detector : int
        Its id.
    data : Path, optional
        Folder of the real event libraries.

    Raises
    ------
    InputError
        If a library is asked for and not there.
    """
    settings, shape = recipe.cosmic_rays, recipe.frame_shape
    rng = stream(recipe.seed, Purpose.COSMIC_RAYS, index, detector)
    fraction = pixel_fraction(recipe, index)
    generator = generator_of(recipe, index)
    if generator in ("stis", "itl"):
        split = settings.events_from or recipe.split_of(index)
        return np.rint(load_event_library(generator, split, data).scatter(rng, shape, fraction)).astype(np.int32)
    return scatter_until(rng, partial(_slab if generator == "slab" else _tracks, settings, shape), shape, fraction)


def generator_of(recipe: Recipe, index: int) -> Generator:
    """Return which generator an exposure has."""
    generators = recipe.cosmic_rays.generators
    return generators[recipe.assigned(Purpose.GENERATOR, index, len(generators))]


def aimed_cosmic_rays(
    recipe: Recipe, index: int, detector: int, x: Float, y: Float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the charge of one event at each of some places, and of no others, and what each event set free [e-].

    Parameters
    ----------
    recipe : Recipe
    index, detector : int
        Of the unit.
    x, y : float64 arrays (n,)
        Where the middles of the events' paths shall lie [pixel].
    """
    rng = stream(recipe.seed, Purpose.COSMIC_RAYS, index, detector)
    draw = _slab if generator_of(recipe, index) == "slab" else _tracks
    paths = draw(recipe.cosmic_rays, (1, 1), rng, len(x))
    n = len(paths.offset) - 1  # with delta rays there are more paths than events: they belong to none, and go
    event = np.repeat(np.arange(n), np.diff(paths.offset))
    points = np.diff(paths.offset)
    dx, dy = (
        np.where(np.arange(n) < len(x), np.resize(target, n), -1e4) - np.bincount(event, at, n) / points
        for target, at in ((x, paths.x), (y, paths.y))
    )
    charge = np.zeros(recipe.frame_shape, dtype=np.int32)
    deposit(rng, replace(paths, x=paths.x + dx[event], y=paths.y + dy[event]), charge)
    return charge, paths.electrons[: len(x)]
