"""Cosmic rays: points, tracks and worms of whole electrons.

After the generator the CSST papers describe: an event's charge is log-normal, its length up to 100 pixels,
its electrons diffuse by 0.2 pixel. Each electron is placed for itself, so that deposits are whole and
"more than 0 e-" means something.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.mock.recipe import CosmicRays

_LONGEST = 100.0
#: Events drawn at once: about ten million electrons.
_BATCH = 4096


def draw_cosmic_rays(rng: np.random.Generator, settings: CosmicRays, shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Return the charge that cosmic rays leave in each pixel [e-]; events are added until enough pixels are hit."""
    charge = np.zeros(shape[0] * shape[1], dtype=np.int64)
    wanted = settings.pixel_fraction * charge.size
    while np.count_nonzero(charge) < wanted:
        missing = wanted - np.count_nonzero(charge)
        events = int(np.clip(missing / 20, 1, _BATCH))
        charge += _deposit(rng, settings, shape, events)
    return charge.reshape(shape)


def _deposit(
    rng: np.random.Generator, settings: CosmicRays, shape: tuple[int, int], events: int
) -> npt.NDArray[np.int64]:
    electrons = np.rint(10 ** rng.normal(settings.log_charge, settings.log_charge_fwhm / 2.3548, events)).astype(
        np.int64
    )
    is_point = rng.random(events) < settings.point_share
    length = np.where(is_point, 0.0, np.minimum(rng.exponential(settings.mean_length, events), _LONGEST))
    angle = rng.uniform(0, 2 * np.pi, events)
    bend = np.where(rng.random(events) < settings.worm_share, rng.normal(0, 0.3, events), 0.0) * length
    x0, y0 = rng.uniform(-0.5, shape[1] - 0.5, events), rng.uniform(-0.5, shape[0] - 0.5, events)
    event = np.repeat(np.arange(events), electrons)
    along = rng.uniform(-0.5, 0.5, event.size)
    forward, aside = along * length[event], (along**2 - 1 / 12) * 4 * bend[event]
    x = x0[event] + forward * np.cos(angle[event]) - aside * np.sin(angle[event])
    y = y0[event] + forward * np.sin(angle[event]) + aside * np.cos(angle[event])
    x = np.rint(x + rng.normal(0, settings.diffusion, event.size)).astype(np.int64)
    y = np.rint(y + rng.normal(0, settings.diffusion, event.size)).astype(np.int64)
    inside = (x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])
    return np.bincount(y[inside] * shape[1] + x[inside], minlength=shape[0] * shape[1])
