"""STIS exposures of 1999-10-02: real frames with a truth from their stack, split by CR-SPLIT pair.

Eight exposures in four pairs; both exposures of a pair show the same scene. The references of a pair (rate of dark, hot
pixels and spectrum; map of hot pixels) are built from the other pairs only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import median_filter

from csstdask.core.errors import InputError
from csstdask.mock.event_libraries import STIS_PAIRS

#: Pairs that methods may be developed with: all but the test pair.
DEVELOPMENT_PAIRS = (*STIS_PAIRS["training"], *STIS_PAIRS["validation"])

#: Exposure time in which the charge of a hot pixel is defined [s].
HOT_EXPTIME = 1350.0
#: Charge of a hot pixel above the median of its neighbourhood in that time [e-].
HOT_CHARGE = 15.0
#: Side of that neighbourhood [pixel].
HOT_BOX = 15


@dataclass(frozen=True)
class StisFrame:
    """One exposure with its truth."""

    name: str
    """Exposure, `<pair>_<number>`."""
    image: npt.NDArray[np.float32]
    """Counts, overscan subtracted [e-], (1012, 506)."""
    hit: npt.NDArray[np.bool_]
    """Pixels hit by cosmic rays: above 6 sigma of the residual from the stack, grown twice to 3 sigma."""
    valid: npt.NDArray[np.bool_]
    """Pixels with a truth."""
    exptime: float
    """Exposure time [s]."""
    sigma: float
    """Noise used for the truth [e-]."""
    offset: float
    """Pedestal [e-]."""

    @property
    def pair(self) -> str:
        """Return the CR-SPLIT pair of the exposure."""
        return self.name.rpartition("_")[0]


def read_frame(folder: Path, exposure: str) -> StisFrame:
    """Read one exposure with its truth.

    Parameters
    ----------
    folder : Path
        Folder ``hst_stis``, with the exposures in ``truth``.
    exposure : str
        Name of the exposure.

    Returns
    -------
    StisFrame

    Raises
    ------
    InputError
        If there is no such exposure, or its file lacks an array.
    """
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
    """Rate and hot pixels measured in other exposures."""

    rate: npt.NDArray[np.float32]
    """Median rate of dark, hot pixels and spectrum [e-/s], (y, x)."""
    hot: npt.NDArray[np.bool_]
    """Hot pixels, (y, x)."""
    exposures: int
    """Number of exposures."""

    def expected(self, frame: StisFrame) -> npt.NDArray[np.float32]:
        """Return the expected counts of an exposure, pedestal included [e-]."""
        return self.rate * np.float32(frame.exptime) + np.float32(frame.offset)

    def variance(self, frame: StisFrame) -> npt.NDArray[np.float32]:
        """Return the variance of `expected`: that of a median of exposures like this one [e-^2]."""
        single = np.maximum(self.expected(frame), 0) + np.float32(frame.sigma**2)
        return single * np.float32(np.pi / 2 / self.exposures)


def build_reference(frames: Sequence[StisFrame]) -> StisReference:
    """Return the median rate of some exposures, and its hot pixels.

    Hit pixels are left out of the median, unless they are hit in all exposures.
    """
    stack = np.stack([(frame.image - frame.offset) / frame.exptime for frame in frames])
    hit = np.stack([frame.hit for frame in frames])
    usable = np.where(hit & ~hit.all(axis=0), np.nan, stack)
    rate = np.nanmedian(usable, axis=0)
    hot = (rate - median_filter(rate, HOT_BOX)) * HOT_EXPTIME > HOT_CHARGE
    return StisReference(rate.astype(np.float32), hot, len(frames))


def reference_without_pair(frame: StisFrame, frames: Sequence[StisFrame]) -> StisReference:
    """Return the reference of a frame, from the frames of the other pairs."""
    return build_reference([other for other in frames if other.pair != frame.pair])
