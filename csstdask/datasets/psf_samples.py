"""What a band's PSFs are learnt from: telescopes that might be, each looked through at stars of all colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.mock.psf import OpticalState, PsfModel
from csstdask.mock.random_telescopes import draw_optics
from csstdask.psf.basis import BASIS_PIXELS, BASIS_SIZE, resample

#: Years after launch, and colours of stars [K].
_YEARS, _TEMPERATURES = 10.0, (3200.0, 12000.0)
#: How often a telescope's PSFs are larger than its parts explain, and by how much R grows at most.
_ENLARGED, _LARGEST = 0.4, 0.12


@dataclass(frozen=True)
class PsfSamples:
    """PSFs that one telescope shows on one detector."""

    images: npt.NDArray[np.float32]
    """(n, SIDE, SIDE), as those of `PrincipalPsfs`, a unit of light in all."""
    u: npt.NDArray[np.float64]
    """(n,) Place on the detector, -1 to 1."""
    v: npt.NDArray[np.float64]
    temperature: npt.NDArray[np.float64]
    """(n,) Of each star [K]."""


def draw_psf_samples(rng: np.random.Generator, instrument: Instrument, band: str, nodes: int) -> PsfSamples:
    """Draw a telescope, and look through it at stars of all colours, on a grid of nodes of one of the band's detectors.

    Parameters
    ----------
    rng : Generator
    instrument : Instrument
    band : str
    nodes : int
        Along each axis, Chebyshev's.
    """
    optics = draw_optics(rng)
    enlarge = float(rng.uniform(0, _LARGEST)) if rng.random() < _ENLARGED else 0.0
    state = OpticalState(epoch=float(rng.uniform(0, _YEARS)), enlarge=enlarge)
    model = PsfModel(optics, instrument)
    detectors = [one.id for one in instrument.detectors if one.band == band]
    detector = int(rng.choice(detectors))
    axis = np.cos(np.pi * (np.arange(nodes) + 0.5) / nodes)
    v, u = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
    ny, nx = instrument.shape or (0, 0)
    x, y = (u + 1) / 2 * nx - 0.5, (v + 1) / 2 * ny - 0.5
    coldest, hottest = np.log(_TEMPERATURES)
    heat = np.exp(rng.uniform(coldest, hottest, len(u)))
    fine = model.sampling(detector, state).fine
    found = model.effective(detector, x, y, temperature=heat, state=state, sampling=fine, size=BASIS_PIXELS * fine)
    return PsfSamples(resample(found.image * np.float32(fine**2), BASIS_SIZE), u, v, heat)
