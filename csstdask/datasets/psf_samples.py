"""PSFs of random telescopes, for stars of all colours: the training set of a PSF basis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.mock.psf import OpticalState, PsfModel
from csstdask.mock.random_telescopes import draw_optics
from csstdask.psf.basis import BASIS_PIXELS, BASIS_SIZE, resample

#: Largest time after launch [years].
_MAX_EPOCH = 10.0
#: Range of the effective temperatures of stars [K].
_TEMPERATURES = (3200.0, 12000.0)
#: Share of telescopes whose PSFs are larger than their optics explain.
_ENLARGED_SHARE = 0.4
#: Largest relative growth of R of these.
_MAX_ENLARGEMENT = 0.12


@dataclass(frozen=True, eq=False)
class PsfSamples:
    """PSFs of one telescope on one detector."""

    images: npt.NDArray[np.float32]
    """(n, BASIS_SIZE, BASIS_SIZE) Sampled as those of `csstdask.psf.basis.PsfBasis`, of unit light."""
    u: npt.NDArray[np.float64]
    """(n,) Position on the detector, -1 to 1."""
    v: npt.NDArray[np.float64]
    temperature: npt.NDArray[np.float64]
    """(n,) Effective temperature of each star [K]."""


def draw_psf_samples(rng: np.random.Generator, instrument: Instrument, band: str, nodes: int) -> PsfSamples:
    """Draw a telescope, and sample its PSFs over one detector of a band.

    Parameters
    ----------
    rng : Generator
    instrument : Instrument
    band : str
    nodes : int
        Number of Chebyshev nodes along each axis. Each has one star, of a random temperature.
    """
    optics = draw_optics(rng)
    enlarge = float(rng.uniform(0, _MAX_ENLARGEMENT)) if rng.random() < _ENLARGED_SHARE else 0.0
    state = OpticalState(epoch=float(rng.uniform(0, _MAX_EPOCH)), enlarge=enlarge)
    model = PsfModel(optics, instrument)
    detectors = [one.id for one in instrument.detectors if one.band == band]
    detector = int(rng.choice(detectors))
    axis = np.cos(np.pi * (np.arange(nodes) + 0.5) / nodes)
    v, u = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
    ny, nx = instrument.shape or (0, 0)
    x, y = (u + 1) / 2 * nx - 0.5, (v + 1) / 2 * ny - 0.5
    coolest, hottest = np.log(_TEMPERATURES)
    temperature = np.exp(rng.uniform(coolest, hottest, len(u)))
    fine = model.sampling(detector, state).fine
    psfs = model.effective(
        detector, x, y, temperature=temperature, state=state, sampling=fine, size=BASIS_PIXELS * fine
    )
    return PsfSamples(resample(psfs.image * np.float32(fine**2), BASIS_SIZE), u, v, temperature)
