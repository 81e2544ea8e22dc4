"""Counter-based random streams, one for each purpose and unit.

The key of a stream is a seed, a purpose and the indices of what is drawn. Results therefore depend neither on the order
of the units nor on the number of workers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Purpose of a stream. The values are part of the keys and must not change."""

    STARS = 1
    GALAXIES = 2
    CLUSTER = 3
    SENSOR = 4
    PHOTONS = 5
    COSMIC_RAYS = 6
    READ_NOISE = 7
    CALIBRATION = 8
    ARTEFACTS = 9
    POINTING = 10
    STAMPS = 11
    OPTICS = 12
    DRIFT = 13
    COSMIC_RAY_RATE = 14
    GENERATOR = 15
    COSMIC_RAY_FRACTION = 16
    JITTER = 17
    TELESCOPE = 18
    SLITLESS_STARS = 19
    SLITLESS_INPUTS = 20
    SLITLESS_FLAT = 21
    SLITLESS_SENSITIVITY = 22
    DISPERSION = 23
    ZEROPOINT_SCHEDULE = 24
    ZEROPOINT_FIELD = 25
    CONDITIONS = 26
    DECONTAMINATION = 27
    THROUGHPUT = 28
    TELEMETRY = 29
    OUTAGE = 30
    REFERENCE_STARS = 31
    ZEROPOINT_PATCH = 32
    ZEROPOINT_FLAT = 33
    ZEROPOINT_UNIT = 34
    REFERENCE_CATALOGUE = 35


def stream(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """Return the random stream of a purpose.

    Parameters
    ----------
    seed : int
        Seed of the recipe, the telescope or the camera.
    purpose : Purpose
        Purpose of the stream.
    *indices : int
        Non-negative indices that distinguish draws, such as field, exposure and detector.

    Examples
    --------
    >>> int(stream(1, Purpose.STARS, 0, 7).integers(1000)) == int(stream(1, Purpose.STARS, 0, 7).integers(1000))
    True
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(purpose), *indices])))
