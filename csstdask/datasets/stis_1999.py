"""The STIS night of 1999-10-02: real frames with a truth from a stack, split by CR-SPLIT pair.

Eight exposures in four pairs; the two halves of a pair share a scene. What a method may know of a held-out pair
is rebuilt from the other pairs alone: the reference rate (dark, hot pixels, spectrum) and the map of hot pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import median_filter

from csstdask.arrays.frame import poisson_variance
from csstdask.core.errors import InputError
from csstdask.mock.event_libraries import STIS_PAIRS

#: What a method may know when it meets the test pair.
DEVELOPMENT_PAIRS = (*STIS_PAIRS["training"], *STIS_PAIRS["validation"])

#: A pixel is hot if in this time [s] it gathers so many electrons more than the median of its neighbourhood.
_HOT_TIME, _HOT_CHARGE, _HOT_BOX = 1350.0, 15.0, 15


@dataclass(frozen=True)
class StisFrame:
    """One exposure with its truth."""

    name: str
    image: npt.NDArray[np.float32]
    """(1012, 506), overscan subtracted [e-]."""
    hit: npt.NDArray[np.bool_]
    """Where a cosmic ray stands above 6 sigma of the stack's residual, grown twice to 3 sigma."""
    valid: npt.NDArray[np.bool_]
    """Where `hit` means something."""
    exptime: float
    sigma: float
    """Noise that the truth was made with [e-]."""
    offset: float
    """Pedestal [e-]."""

    @property
    def pair(self) -> str:
        """Return the CR-SPLIT pair it belongs to."""
        return self.name.rpartition("_")[0]


def read_frame(folder: Path, exposure: str) -> StisFrame:
    """Read one exposure with its truth from ``truth/`` of the set's folder."""
    path = folder / "truth" / f"{exposure}.npz"
    try:
        with np.load(path) as stored:
            return StisFrame(
                exposure,
                stored["image"].astype(np.float32),
                stored["crmask"].astype(bool),
                stored["valid"].astype(bool),
                float(stored["exptime"]),
                float(stored["sigma"]),
                float(stored["offset"]),
            )
    except (OSError, KeyError, ValueError) as error:
        raise InputError(path, f"no frame with truth ({error})", "image, crmask, valid, exptime, sigma") from None


@dataclass(frozen=True)
class StisReference:
    """What other exposures tell about the detector and the scene."""

    rate: npt.NDArray[np.float32]
    """[e-/s]"""
    hot: npt.NDArray[np.bool_]
    exposures: int
    """How many it was made from."""

    def expected(self, frame: StisFrame) -> npt.NDArray[np.float32]:
        """Return what it foretells of an exposure, pedestal included [e-]."""
        return self.rate * np.float32(frame.exptime) + np.float32(frame.offset)

    def variance(self, frame: StisFrame) -> npt.NDArray[np.float32]:
        """Return how far it may be off, as the variance of a median of exposures like this one [e-^2]."""
        one = poisson_variance(self.expected(frame), float(frame.sigma))
        return one * np.float32(np.pi / 2 / self.exposures)


def build_reference(frames: Sequence[StisFrame]) -> StisReference:
    """Return the median rate of some exposures and the hot pixels in it.

    The median leaves out the pixels that the truth calls hit, where at least one exposure remains.
    """
    stack = np.stack([(frame.image - frame.offset) / frame.exptime for frame in frames])
    hit = np.stack([frame.hit for frame in frames])
    usable = np.where(hit & ~hit.all(axis=0), np.nan, stack)
    rate = np.nanmedian(usable, axis=0)
    hot = (rate - median_filter(rate, _HOT_BOX)) * _HOT_TIME > _HOT_CHARGE
    return StisReference(rate.astype(np.float32), hot, len(frames))


def reference_without_pair(frame: StisFrame, frames: Sequence[StisFrame]) -> StisReference:
    """Return the reference of all frames but those of the frame's own pair: a frame must not foretell itself."""
    return build_reference([other for other in frames if other.pair != frame.pair])
