"""Traces and wavelength solutions of slitless spectra.

As in grism configuration files, positions are polynomials of t = (wavelength - first) / (last - first) whose
coefficients are polynomials of the position of the source: x_pixel = x + dx(t; u, v) and y_pixel = y + dy(t; u, v),
where (x, y) is the position without the grating, and u and v run from -1 to 1 across the detector. Spectra run along x.
Wavelengths are in vacuum [Angstrom].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.instrument.model import Instrument
from csstdask.instrument.optics import SlitlessOrder

Float = npt.NDArray[np.float64]

PLANCK_TIMES_LIGHT_SPEED = 1.986445857e-8
"""Planck constant times speed of light, h c [erg Angstrom]."""
_NEWTON_STEPS = 8
"""Iterations of the inversion of the dispersion relation."""


@dataclass(frozen=True)
class Dispersion:
    """The trace and wavelength solution of one order on one frame.

    Examples
    --------
    >>> from csstdask.instrument import load_instrument
    >>> first = dispersion_of(load_instrument("csst"), detector=2, shape=(9232, 9216))
    >>> x, y = first.position(4608.0, 4616.0, 5000.0)
    >>> float(first.wavelength(4608.0, 4616.0, x).round(6))
    5000.0
    """

    order: int
    """Diffraction order."""
    limits: tuple[float, float]
    """First and last wavelength [Angstrom]."""
    dx: Float
    """Coefficients of 1, u, v, u^2, u v, v^2 for each power of t (power, 6) [pixel]."""
    dy: Float
    """The same across the spectrum (power, 6) [pixel]."""
    detector_shape: tuple[int, int]
    """Shape (y, x) of the complete detector."""
    origin: tuple[float, float] = (0.0, 0.0)
    """Position (x, y) of the first pixel of the frame on the detector [pixel]."""

    def position(self, x: npt.ArrayLike, y: npt.ArrayLike, wavelength: npt.ArrayLike) -> tuple[Float, Float]:
        """Return the positions at which light of given wavelengths falls.

        Parameters
        ----------
        x, y : array-like
            Zero-based positions of sources on the frame, without the grating [pixel].
        wavelength : array-like
            Wavelength [Angstrom]; broadcast with `x` and `y`.

        Returns
        -------
        x_pixel, y_pixel : float64 arrays
            Zero-based positions on the frame [pixel].
        """
        x, y, wavelength = np.broadcast_arrays(*(np.asarray(part, dtype=np.float64) for part in (x, y, wavelength)))
        field = self._field_terms(x, y)
        t = (wavelength - self.limits[0]) / (self.limits[1] - self.limits[0])
        return x + _evaluate(field @ self.dx.T, t), y + _evaluate(field @ self.dy.T, t)

    def wavelength(self, x: npt.ArrayLike, y: npt.ArrayLike, column: npt.ArrayLike) -> Float:
        """Return the wavelength that falls on a column, the inverse of `position` along x [Angstrom].

        Columns beyond the spectrum have wavelengths outside `limits`. The result is NaN without dispersion.
        """
        x, y, column = np.broadcast_arrays(*(np.asarray(part, dtype=np.float64) for part in (x, y, column)))
        coefficients = self._field_terms(x, y) @ self.dx.T
        slope = coefficients[..., 1:] * np.arange(1, coefficients.shape[-1])
        if not slope.shape[-1] or not np.any(slope):
            return np.full(x.shape, np.nan)
        target = column - x
        t = (target - coefficients[..., 0]) / slope[..., 0]
        for _ in range(_NEWTON_STEPS):
            t = t - (_evaluate(coefficients, t) - target) / _evaluate(slope, t)
        return np.asarray(self.limits[0] + t * (self.limits[1] - self.limits[0]))

    def angstrom_per_pixel(self, x: npt.ArrayLike, y: npt.ArrayLike, wavelength: npt.ArrayLike) -> Float:
        """Return the local dispersion d(wavelength)/dx [Angstrom/pixel]; inf for an order without dispersion."""
        x, y, wavelength = np.broadcast_arrays(*(np.asarray(part, dtype=np.float64) for part in (x, y, wavelength)))
        width = self.limits[1] - self.limits[0]
        coefficients = self._field_terms(x, y) @ self.dx.T
        slope = coefficients[..., 1:] * np.arange(1, coefficients.shape[-1])
        if not slope.shape[-1]:
            return np.full(x.shape, np.inf)
        with np.errstate(divide="ignore"):
            return np.asarray(width / _evaluate(slope, (wavelength - self.limits[0]) / width))

    def _field_terms(self, x: Float, y: Float) -> Float:
        """Return the terms 1, u, v, u^2, u v, v^2 at positions (..., 6)."""
        ny, nx = self.detector_shape
        u = 2 * (x + self.origin[0] + 0.5) / nx - 1
        v = 2 * (y + self.origin[1] + 0.5) / ny - 1
        return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1)


def _evaluate(coefficients: Float, t: Float) -> Float:
    """Return sum_k coefficients[..., k] t^k."""
    total = np.zeros(np.broadcast_shapes(coefficients.shape[:-1], t.shape))
    for k in range(coefficients.shape[-1] - 1, -1, -1):
        total = total * t + coefficients[..., k]
    return total


def slitless_orders(instrument: Instrument, detector: int) -> dict[int, SlitlessOrder]:
    """Return the diffraction orders of the grating of a detector.

    Raises
    ------
    InputError
        If the detector has no grating.
    """
    band = instrument.detector(detector).band
    if band not in instrument.slitless:
        known = ", ".join(sorted(instrument.slitless)) or "none"
        raise InputError(
            f"instrument {instrument.name}", f"no dispersion for band {band}", f"a slitless band ({known})"
        )
    return {one.order: one for one in instrument.slitless[band].orders}


def slitless_order(instrument: Instrument, detector: int, order: int = 1) -> SlitlessOrder:
    """Return the description of an order on a detector.

    Raises
    ------
    InputError
        If the detector has no grating, or its grating no such order.
    """
    orders = slitless_orders(instrument, detector)
    if order not in orders:
        band = instrument.detector(detector).band
        raise InputError(f"instrument {instrument.name}, band {band}", f"no order {order}", "an order in its TOML")
    return orders[order]


def dispersion_of(instrument: Instrument, detector: int, shape: tuple[int, int], order: int = 1) -> Dispersion:
    """Return the trace and wavelength solution of an order on a frame of a detector.

    Parameters
    ----------
    instrument : Instrument
        Camera with a table ``[slitless.BAND]`` for the band of the detector.
    detector : int
        Detector id.
    shape : (int, int)
        Shape (y, x) of the frame; a smaller frame is the centre of the detector.
    order : int
        Diffraction order.

    Raises
    ------
    InputError
        If the detector has no grating, or its grating no such order.
    """
    found = slitless_order(instrument, detector, order)
    full = instrument.shape or shape
    origin = (full[1] - shape[1]) / 2, (full[0] - shape[0]) / 2
    dx, dy = (np.array(rows, dtype=np.float64) for rows in (found.dx, found.dy))
    return Dispersion(order, found.wavelength, dx, dy, full, origin)


N_WAVELENGTHS = 195
"""Number of wavelengths of a flat-field cube, about one per column of a spectrum."""


def wavelength_grid(limits: tuple[float, float]) -> Float:
    """Return the wavelengths of a flat-field cube: centres of `N_WAVELENGTHS` equal intervals [Angstrom].

    Parameters
    ----------
    limits : (float, float)
        First and last wavelength of the order [Angstrom].
    """
    first, last = limits
    return np.asarray(first + (np.arange(N_WAVELENGTHS) + 0.5) * (last - first) / N_WAVELENGTHS)


def nominal_throughput(order: SlitlessOrder, wavelength: npt.ArrayLike) -> Float:
    """Return the throughput of telescope, grating and detector in an order; 0 outside its range."""
    from scipy.interpolate import PchipInterpolator  # noqa: PLC0415  slow to import

    points = np.array(order.throughput, dtype=np.float64)
    values = np.asarray(PchipInterpolator(points[:, 0], points[:, 1], extrapolate=False)(wavelength))
    return np.where(np.isfinite(values), np.maximum(values, 0.0), 0.0)


def nominal_sensitivity(instrument: Instrument, detector: int, wavelength: npt.ArrayLike, order: int = 1) -> Float:
    """Return the nominal sensitivity of an order [(e-/s/Angstrom) / (erg/s/cm2/Angstrom)].

    It is A T(wavelength) wavelength / (h c), with the area A of the pupil and the throughput T.

    Parameters
    ----------
    instrument : Instrument
        Camera with gratings and telescope.
    detector : int
        Detector id.
    wavelength : array-like
        Wavelength [Angstrom].
    order : int
        Diffraction order.

    Raises
    ------
    InputError
        If the detector has no grating, its grating no such order, or the instrument no ``[telescope]``.
    """
    found = slitless_order(instrument, detector, order)
    if instrument.telescope is None:
        raise InputError(f"instrument {instrument.name}", "no [telescope]", "the diameter of the telescope")
    mirror = instrument.telescope
    area = np.pi / 4 * (100 * mirror.diameter) ** 2 * (1 - mirror.obscuration**2)
    wavelength = np.asarray(wavelength, dtype=np.float64)
    return np.asarray(area * nominal_throughput(found, wavelength) * wavelength / PLANCK_TIMES_LIGHT_SPEED)
