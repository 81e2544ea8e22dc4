"""Telescopes that might be: what a network learns from that is to work on one that nobody has seen yet.

Each is built and shaken otherwise: wavefront, its reach in Zernike orders and over the field, polishing errors, jitter
and its shape, diffusion. None is a telescope of a recipe: their seeds are small.
"""

from __future__ import annotations

import numpy as np

from csstdask.mock.recipe_tables import Optics

#: Seeds of telescopes begin here; those of recipes are below.
_FIRST_SEED = 10_000_000


def draw_optics(rng: np.random.Generator) -> Optics:
    """Draw a telescope."""
    high = bool(rng.random() < 0.4)
    return Optics(
        seed=_FIRST_SEED + int(rng.integers(2**31)),
        wavefront=float(rng.uniform(45, 95)),
        orders=(4, 22 if high else 11),
        mid_frequency=float(rng.uniform(2, 10)) if rng.random() < 0.3 else 0.0,
        drift=float(rng.uniform(0, 25)),
        jitter=float(0.033 * np.exp(rng.normal(0, 0.2))),
        jitter_shape="line" if rng.random() < 0.25 else "gaussian",
        diffusion=float(rng.uniform(0.18, 0.34)),
    )
