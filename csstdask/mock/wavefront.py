"""The wavefront of a mock telescope: Zernike coefficients over the focal plane, in each band and at each epoch.

As built, each coefficient is a smooth polynomial over the focal plane, plus a constant for each detector and filter.
The tilt of a detector adds a gradient of the defocus. With time, defocus and astigmatism drift and the jitter changes,
equally for all detectors. Everything follows from the seed of the optics: recipes with the same seed have the same
telescope.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.recipe_tables import Optics
from csstdask.optics.zernike import noll_to_zernike

Float = npt.NDArray[np.float64]

_DRIFTING = (4, 5, 6)
"""Noll indices that drift: defocus and both astigmatisms."""
_PERIODS = (1.0, 0.19, 3.7)
"""Periods of the drift: seasons, precession of the orbit, and a long one [yr]."""
_JITTER_DRIFT = 0.12
"""Change of the jitter with time, 1 sigma of its natural log."""
_N_RIPPLES = 48
"""Number of waves of the polishing errors."""
_RIPPLE_FREQUENCIES = (5.0, 16.0)
"""Range of the spatial frequency of polishing errors [cycles per pupil diameter]."""


@dataclass(frozen=True)
class Ripples:
    """Mid-frequency wavefront errors: a sum of waves over the pupil."""

    frequency: Float
    """Frequencies in x and y (n, 2) [cycles per pupil diameter]."""
    phase: Float
    """Phases (n,) [rad]."""
    amplitude: float
    """Amplitude of each wave [nm]."""

    def path_difference(self, x: Float, y: Float) -> Float:
        """Return the optical path difference at points (x, y) of the pupil, in units of its radius [nm]."""
        angle = np.pi * (np.multiply.outer(self.frequency[:, 0], x) + np.multiply.outer(self.frequency[:, 1], y))
        return self.amplitude * np.cos(angle + self.phase[:, None]).sum(axis=0)


class Wavefront:
    """Wavefront and jitter of a telescope.

    Parameters
    ----------
    settings : Optics
        Table of the recipe.
    instrument : Instrument
        Camera with geometry.

    Examples
    --------
    >>> from csstdask.instrument import load_instrument
    >>> Wavefront(Optics(), load_instrument("csst")).coefficients(8, [0.0, 9215.0], [0.0, 9231.0]).shape
    (2, 8)
    """

    def __init__(self, settings: Optics, instrument: Instrument) -> None:
        if instrument.geometry is None or instrument.shape is None:
            raise ValueError(f"instrument {instrument.name} has no geometry or shape")
        self.settings = settings
        self.orders = np.arange(settings.orders[0], settings.orders[1] + 1)
        self._instrument = instrument
        self._centres = instrument.geometry.centres
        self._ny, self._nx = instrument.shape
        self._radius = max(np.hypot(*centre) for centre in self._centres.values()) + np.hypot(self._ny, self._nx) / 2
        degree = settings.field_degree
        self._powers = [(p, q) for p in range(degree + 1) for q in range(degree + 1 - p)]
        # Low orders dominate, as after an alignment; the sum of squares is that of the wavefront.
        radial = np.array([noll_to_zernike(int(order))[0] for order in self.orders])
        share = 1.0 / radial
        self._sigma = settings.wavefront * share / np.sqrt((share**2).sum())
        rng = stream(settings.seed, Purpose.OPTICS)
        self._smooth = rng.normal(size=(len(self.orders), len(self._powers))) * self._scale_of_powers()

    def _scale_of_powers(self) -> Float:
        """Return the factors that normalise the mean square of the polynomials over the focal plane to 1."""
        u = np.linspace(-0.7, 0.7, 15)
        mean_square = np.array([[np.mean(u ** (2 * p)) * np.mean(u ** (2 * q))] for p, q in self._powers])[:, 0]
        return 1 / np.sqrt(mean_square * len(self._powers))

    def coefficients(self, detector: int, x: npt.ArrayLike, y: npt.ArrayLike, epoch: float = 0.0) -> Float:
        """Return Zernike coefficients.

        Parameters
        ----------
        detector : int
            Detector id.
        x, y : array-like (n,)
            Zero-based positions on the complete detector [pixel].
        epoch : float
            Time after launch [yr].

        Returns
        -------
        float64 array (n, order)
            Coefficients of the orders `orders`, rms [nm].
        """
        along_x = (np.asarray(x, dtype=np.float64) - (self._nx - 1) / 2) / (self._nx / 2)
        along_y = (np.asarray(y, dtype=np.float64) - (self._ny - 1) / 2) / (self._ny / 2)
        x_centre, y_centre = self._centres[detector]
        u = (x_centre + along_x * self._nx / 2) / self._radius
        v = (y_centre + along_y * self._ny / 2) / self._radius
        smooth = sum(np.multiply.outer(u**p * v**q, self._smooth[:, k]) for k, (p, q) in enumerate(self._powers))
        own = stream(self.settings.seed, Purpose.OPTICS, 1, detector)
        step = own.normal(size=len(self.orders)) * self.settings.detector_step
        tip = own.normal(size=2) * self.settings.detector_step * (self.orders == 4)[:, None]
        names = sorted({str(one.band) for one in self._instrument.detectors})
        band = names.index(str(self._instrument.detector(detector).band))
        filters = stream(self.settings.seed, Purpose.OPTICS, 2, band)
        shift = filters.normal(size=len(self.orders)) * self.settings.band_step
        local = np.multiply.outer(along_x, tip[:, 0]) + np.multiply.outer(along_y, tip[:, 1])
        total: Float = (smooth + step + shift + local) * self._sigma
        return total + self._drift(epoch)

    def _drift(self, epoch: float) -> Float:
        """Return the change of the coefficients since launch (order,) [nm]."""
        rng = stream(self.settings.seed, Purpose.DRIFT)
        size, phase = rng.normal(size=(2, len(self.orders), len(_PERIODS)))
        waves = np.sin(2 * np.pi * (epoch / np.array(_PERIODS) + phase)) - np.sin(2 * np.pi * phase)
        drifting = np.isin(self.orders, _DRIFTING)
        wander: Float = (size * waves).sum(axis=1) / np.sqrt(len(_PERIODS))
        return self.settings.drift * drifting * wander

    def jitter_covariance(self, epoch: float = 0.0) -> Float:
        """Return the covariance of the jitter of the line of sight in x and y (2, 2) [arcsec^2]."""
        rng = stream(self.settings.seed, Purpose.DRIFT, 1)
        size, phase = rng.normal(size=(2, 3, len(_PERIODS)))
        waves = (size * np.sin(2 * np.pi * (epoch / np.array(_PERIODS) + phase))).sum(axis=1)
        growth, stretch, turn = waves / np.sqrt(len(_PERIODS) / 2)
        sigma = self.settings.jitter * np.exp(_JITTER_DRIFT * growth)
        axes = sigma * np.exp(_JITTER_DRIFT * np.array([stretch, -stretch]))
        cos, sin = np.cos(turn), np.sin(turn)
        rotation = np.array([[cos, -sin], [sin, cos]])
        return rotation @ np.diag(axes**2) @ rotation.T

    def ripples(self) -> Ripples | None:
        """Return the mid-frequency errors, constant over the field, or None."""
        if self.settings.mid_frequency == 0:
            return None
        rng = stream(self.settings.seed, Purpose.OPTICS, 3)
        length, angle = rng.uniform(*_RIPPLE_FREQUENCIES, _N_RIPPLES), rng.uniform(0, 2 * np.pi, _N_RIPPLES)
        frequency = np.stack([length * np.cos(angle), length * np.sin(angle)], axis=1)
        amplitude = self.settings.mid_frequency * np.sqrt(2 / _N_RIPPLES)
        return Ripples(frequency, rng.uniform(0, 2 * np.pi, _N_RIPPLES), float(amplitude))
