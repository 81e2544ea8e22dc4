"""Cosmic rays of one unit: choice of the generator, rate, and the generator ``tracks``.

``tracks`` follows the CSST rejection paper (section 2): points, straight tracks and curved worms with log-normal
charge, lengths up to 100 pixels and a diffusion of 0.2 pixel. ``slab`` propagates particles through silicon
(`csstdask.mock.silicon_tracks`). ``stis`` and ``itl`` inject real events (`csstdask.mock.event_libraries`).
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

_MAX_LENGTH = 100.0
"""Longest track [pixel]."""
_MARGIN = 50
"""Margin around a frame in which events are drawn, because their tracks reach the frame [pixel]."""
_SPACING = 0.25
"""Spacing of the points of a path [pixel]."""
_BATCH_SIZE = 20_000
"""Largest number of events drawn at a time."""
_SOLAR_PERIOD = 11.0
"""Period of the solar cycle [yr]."""
_FWHM_PER_SIGMA = 2.3548
"""FWHM of a Gaussian of sigma 1."""


def track_events(rng: np.random.Generator, settings: CosmicRays, shape: tuple[int, int], events: int) -> Paths:
    """Draw points, tracks and worms anywhere on a frame, as in the CSST rejection paper.

    Parameters
    ----------
    rng : numpy.random.Generator
        Random stream.
    settings : CosmicRays
        Table of the recipe.
    shape : (int, int)
        Shape (y, x) of the frame; the centres of events are up to `_MARGIN` pixels outside.
    events : int
        Number of events.

    Returns
    -------
    Paths
    """
    sigma = settings.log_charge_fwhm / _FWHM_PER_SIGMA
    electrons = np.rint(10 ** rng.normal(settings.log_charge, sigma, events)).astype(np.int64)
    length = track_lengths(rng, settings, events)
    angle = rng.uniform(0, 2 * np.pi, events)
    bend = np.where(rng.random(events) < settings.worm_share, rng.normal(0, 0.3, events), 0.0) * length
    y0, x0 = (rng.uniform(-0.5 - _MARGIN, side + _MARGIN - 0.5, events) for side in shape)
    points = np.maximum(1, np.ceil(length / _SPACING)).astype(np.int64)
    offset = np.concatenate([[0], np.cumsum(points)])
    event = np.repeat(np.arange(events), points)
    along = (np.arange(offset[-1]) - offset[event] + 0.5) / points[event] - 0.5
    longitudinal, transverse = along * length[event], (along**2 - 1 / 12) * 4 * bend[event]
    cos, sin = np.cos(angle)[event], np.sin(angle)[event]
    return Paths(
        offset,
        x0[event] + longitudinal * cos - transverse * sin,
        y0[event] + longitudinal * sin + transverse * cos,
        np.ones(offset[-1]),
        np.full(offset[-1], settings.diffusion),
        electrons,
    )


def track_lengths(rng: np.random.Generator, settings: CosmicRays, events: int) -> Float:
    """Draw lengths of events: 0 for points, else exponential up to 100 pixels [pixel]."""
    length = np.where(rng.random(events) < settings.point_share, 0.0, rng.exponential(settings.mean_length, events))
    # Longer events are drawn again, so that lengths do not accumulate at the limit.
    while (too_long := length > _MAX_LENGTH).any():
        length[too_long] = rng.exponential(settings.mean_length, int(too_long.sum()))
    return np.asarray(length)


def scatter_until(
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator, int], Paths],
    shape: tuple[int, int],
    pixel_fraction: float,
) -> npt.NDArray[np.int32]:
    """Return the charge of events, drawn until a fraction of the pixels has charge [e-].

    Parameters
    ----------
    rng : numpy.random.Generator
        Random stream.
    draw : callable
        Returns the paths of a number of events.
    shape : (int, int)
        Shape (y, x) of the frame.
    pixel_fraction : float
        Wanted fraction of pixels with charge.

    Returns
    -------
    int32 array (y, x)
    """
    charge = np.zeros(shape, dtype=np.int32)
    wanted = round(pixel_fraction * charge.size)
    before, per_event = 0, 30.0
    while before < wanted:
        # Fewer events than estimated, so that the wanted fraction is approached in small steps.
        events = int(np.clip(0.6 * (wanted - before) / per_event, 1, _BATCH_SIZE))
        deposit(rng, draw(rng, events), charge)
        now = int(np.count_nonzero(charge))
        per_event, before = max(5.0, (now - before) / events), now
    return charge


def draw_cosmic_rays(rng: np.random.Generator, settings: CosmicRays, shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Return the charge of ``tracks`` events in each pixel [e-], at the first of the pixel fractions.

    Examples
    --------
    >>> charge = draw_cosmic_rays(np.random.default_rng(1), CosmicRays(), (200, 200))
    >>> bool((charge > 0).mean() >= 0.025)
    True
    """
    draw = partial(_tracks, settings, shape)
    return scatter_until(rng, draw, shape, settings.pixel_fraction[0])


def _tracks(settings: CosmicRays, shape: tuple[int, int], rng: np.random.Generator, events: int) -> Paths:
    return track_events(rng, settings, shape, events)


def _slab(settings: CosmicRays, shape: tuple[int, int], rng: np.random.Generator, events: int) -> Paths:
    return slab_events(rng, settings, shape, events)


def pixel_fraction(recipe: Recipe, index: int) -> float:
    """Return the fraction of pixels with charge in an exposure: pixel fraction, orbit and solar cycle.

    The rate of galactic cosmic rays is lowest at solar maximum, which is assumed to be at launch.
    """
    settings = recipe.cosmic_rays
    rng = stream(recipe.seed, Purpose.COSMIC_RAY_RATE, index)
    factor = np.exp(settings.rate_scatter * rng.normal())
    if rng.random() < settings.anomaly_share:
        factor *= settings.anomaly_factor
    factor *= 1 - settings.solar_cycle * np.cos(2 * np.pi * recipe.epoch_of(index) / _SOLAR_PERIOD)
    wanted = settings.pixel_fraction[recipe.assigned(Purpose.COSMIC_RAY_FRACTION, index, len(settings.pixel_fraction))]
    return float(min(0.5, wanted * factor))


def unit_cosmic_rays(recipe: Recipe, index: int, detector: int, data: Path | None) -> npt.NDArray[np.int32]:
    """Return the charge of cosmic rays in each pixel of a unit [e-].

    Parameters
    ----------
    recipe : Recipe
        The mock survey.
    index : int
        Index of the exposure.
    detector : int
        Detector id.
    data : Path, optional
        Folder of the real event libraries.

    Returns
    -------
    int32 array (y, x)

    Raises
    ------
    InputError
        If a requested library is missing.
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
    """Return the generator of an exposure."""
    generators = recipe.cosmic_rays.generators
    return generators[recipe.assigned(Purpose.GENERATOR, index, len(generators))]


def aimed_cosmic_rays(
    recipe: Recipe, index: int, detector: int, x: Float, y: Float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the charge of one event at each of n positions, and the charge of each event.

    Parameters
    ----------
    recipe : Recipe
        The mock survey.
    index : int
        Index of the exposure.
    detector : int
        Detector id.
    x, y : float64 arrays (n,)
        Positions of the centres of the events [pixel].

    Returns
    -------
    charge : int32 array (y, x)
        Charge in each pixel [e-].
    electrons : int64 array (n,)
        Charge of each event [e-].
    """
    rng = stream(recipe.seed, Purpose.COSMIC_RAYS, index, detector)
    draw = _slab if generator_of(recipe, index) == "slab" else _tracks
    paths = draw(recipe.cosmic_rays, (1, 1), rng, len(x))
    n = len(paths.offset) - 1  # includes delta rays, which follow the events and are moved off the frame
    event = np.repeat(np.arange(n), np.diff(paths.offset))
    points = np.diff(paths.offset)
    dx, dy = (
        np.where(np.arange(n) < len(x), np.resize(target, n), -1e4) - np.bincount(event, positions, n) / points
        for target, positions in ((x, paths.x), (y, paths.y))
    )
    charge = np.zeros(recipe.frame_shape, dtype=np.int32)
    deposit(rng, replace(paths, x=paths.x + dx[event], y=paths.y + dy[event]), charge)
    return charge, paths.electrons[: len(x)]
