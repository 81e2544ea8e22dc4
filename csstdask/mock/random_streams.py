"""Random streams: one for each purpose and unit, told from counters.

A stream's key is a few whole numbers: the recipe's seed, a purpose, and the indices of what is drawn. Nothing is
drawn in one place and used in another, so that results depend neither on order nor on the number of workers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for."""

    STARS = 1
    GALAXIES = 2
    CLUSTER = 3
    SENSOR = 4
    LIGHT = 5
    COSMIC_RAYS = 6
    READ_NOISE = 7
    CALIBRATION = 8
    ARTEFACTS = 9
    POINTING = 10
    STAMPS = 11
    OPTICS = 12
    DRIFT = 13
    RATE = 14
    GENERATOR = 15
    DENSITY = 16
    SHAKE = 17
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
        The recipe's, the telescope's or the camera's.
    purpose : Purpose
    *indices : int
        Of field, exposure, detector: whatever tells one draw from another. Not negative.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(purpose), *indices])))
