"""Render a frame of a test recipe with everything that is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.frame import poisson_variance, to_electrons
from csstdask.arrays.morphology import dilate
from csstdask.instrument import Instrument, load_instrument
from csstdask.metrics.detection import RECALL_CHARGE, Bool, DetectionCase, Float, visible_pixels
from csstdask.mock import Recipe, render_unit
from csstdask.mock.catalogue import Catalogue
from csstdask.numerics.robust import mad_scale

#: Flags of light that comes from neither the sky nor a source.
_ARTEFACT_FLAGS = ("satellite_trail", "ghost")
#: Pixels within this distance of a saturated one are next to it [pixel].
_SATURATION_RADIUS = 3
#: Pixels in which the signal-to-noise ratio of a source is measured.
SNR_PIXELS = 49
#: Smallest signal-to-noise ratio of a source that detection can find.
MIN_SNR = 5.0


@dataclass(frozen=True)
class TruthFrame:
    """A frame of a test recipe and its truth."""

    case: DetectionCase
    clean: Float
    """Frame without cosmic rays, with the same photons and noise [e-]."""
    clean_error: Float
    """1 sigma of the clean frame [e-]."""
    sky: float
    """Median of the clean frame [e-]."""
    rms: float
    """Root mean square of the sky [e-]."""
    catalogue: Catalogue
    """Sources of the frame."""
    exptime: float
    """Exposure time [s]."""
    artefacts: dict[str, Bool]
    """Pixels of artefacts by name; ignored pixels are excluded."""


@lru_cache(maxsize=2)
def _load_instrument(name: str) -> Instrument:
    return load_instrument(name)


def render_truth_frame(
    recipe: Recipe, index: int, detector: int, data: Path | None = None, *, instrument: Instrument | None = None
) -> TruthFrame:
    """Render a unit of a recipe with its truth.

    Parameters
    ----------
    recipe : Recipe
    index : int
        Index of the exposure.
    detector : int
        Id of the detector.
    data : Path, optional
        Folder of real cosmic-ray events.
    instrument : Instrument, optional
        By default that of the recipe.
    """
    instrument = instrument or _load_instrument(recipe.instrument)
    unit = render_unit(recipe, instrument, index, detector, data)
    exptime = np.float32(recipe.exptime)
    read_noise = np.float32(instrument.values(detector).read_noise or 0)
    frame = to_electrons(unit.sci, unit.wht, unit.flag, scale=recipe.exptime, ignore_bits=instrument.flags.ignore_mask)
    ignore = frame.ignore
    clean = unit.truth_sci * exptime
    clean_error = np.sqrt(poisson_variance(clean, read_noise))
    good = clean[~ignore]
    sky = float(np.median(good))
    rms = float(mad_scale(good, center=sky))
    hit = unit.truth_cr > RECALL_CHARGE
    case = DetectionCase(
        data=frame.data,
        error=frame.error,
        ignore=ignore,
        hit=hit,
        faint=(unit.truth_cr > 0) & ~hit,
        use=~ignore,
        visible=visible_pixels(unit.truth_cr, clean_error),
        charge=unit.truth_cr,
    )
    bits = instrument.flags.bits
    artefacts = {name.replace("_", " "): ((unit.flag & bits.get(name, 0)) != 0) & ~ignore for name in _ARTEFACT_FLAGS}
    saturated = ((unit.flag & bits.get("saturated", 0)) != 0) & (unit.truth_cr == 0)  # by light, not by a cosmic ray
    artefacts["beside saturated pixels"] = dilate(saturated, _SATURATION_RADIUS) & ~ignore
    return TruthFrame(case, clean, clean_error, sky, rms, unit.catalogue, recipe.exptime, artefacts)


def source_snr(counts: npt.NDArray[Any], rms: float) -> npt.NDArray[np.float64]:
    """Return the signal-to-noise ratio of sources in 49 pixels: Poisson noise of the source, and noise of the sky.

    Parameters
    ----------
    counts : float array (n,)
        Electrons of each source [e-].
    rms : float
        Root mean square of the sky [e-].

    Examples
    --------
    >>> source_snr(np.array([100.0]), 0.0).tolist()
    [10.0]
    """
    return np.asarray(counts / np.sqrt(counts + SNR_PIXELS * rms**2))
