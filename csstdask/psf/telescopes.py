"""Telescopes that might be: what a band's PSFs are learnt from.

Each is built, aged and shaken otherwise: wavefront, its reach in Zernike orders and over the field, polishing errors,
jitter and its shape, diffusion, an isotropic blur. None is a telescope of the test recipes: their seeds are small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.mock.psf import OpticalState, PsfModel
from csstdask.mock.recipe import Optics
from csstdask.psf.principal import FIELD, SIDE, resampled

#: Seeds of telescopes begin here; those of recipes are below.
_FIRST_SEED = 10_000_000
#: Years after launch, and colours of stars [K].
_YEARS, _TEMPERATURES = 10.0, (3200.0, 12000.0)


@dataclass(frozen=True)
class Sights:
    """PSFs that one telescope shows on one detector."""

    images: npt.NDArray[np.float32]
    """(n, SIDE, SIDE), as those of `PrincipalPsfs`, a unit of light in all."""
    u: npt.NDArray[np.float64]
    """(n,) Place on the detector, -1 to 1."""
    v: npt.NDArray[np.float64]


def draw_optics(rng: np.random.Generator) -> tuple[Optics, OpticalState]:
    """Draw a telescope and its state."""
    high = bool(rng.random() < 0.4)
    optics = Optics(
        seed=_FIRST_SEED + int(rng.integers(2**31)),
        wavefront=float(rng.uniform(45, 95)),
        orders=(4, 22 if high else 11),
        mid_frequency=float(rng.uniform(2, 10)) if rng.random() < 0.3 else 0.0,
        drift=float(rng.uniform(0, 25)),
        jitter=float(0.033 * np.exp(rng.normal(0, 0.2))),
        jitter_shape="line" if rng.random() < 0.25 else "gaussian",
        diffusion=float(rng.uniform(0.18, 0.34)),
    )
    enlarge = float(rng.uniform(0, 0.12)) if rng.random() < 0.4 else 0.0
    return optics, OpticalState(epoch=float(rng.uniform(0, _YEARS)), enlarge=enlarge)


def draw_sights(rng: np.random.Generator, instrument: Instrument, band: str, nodes: int) -> Sights:
    """Draw a telescope, and look through it at stars of all colours, on a grid of nodes of one of the band's detectors.

    Parameters
    ----------
    rng : Generator
    instrument : Instrument
    band : str
    nodes : int
        Along each axis, Chebyshev's.
    """
    optics, state = draw_optics(rng)
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
    found = model.effective(detector, x, y, temperature=heat, state=state, sampling=fine, size=FIELD * fine)
    return Sights(resampled(found.image * np.float32(fine**2), SIDE), u, v)
