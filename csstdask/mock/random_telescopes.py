"""Random telescopes for training networks that must work on an unknown telescope.

They differ in wavefront, Zernike orders, polishing errors, drift, jitter and diffusion. None of them is the telescope
of a recipe, because the seeds of recipes are smaller.
"""

from __future__ import annotations

import numpy as np

from csstdask.mock.recipe_tables import Optics

_FIRST_SEED = 10_000_000
"""Smallest seed of a random telescope; seeds of recipes are smaller."""


def draw_optics(rng: np.random.Generator) -> Optics:
    """Draw a random telescope.

    Examples
    --------
    >>> 45 <= draw_optics(np.random.default_rng(1)).wavefront <= 95
    True
    """
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
