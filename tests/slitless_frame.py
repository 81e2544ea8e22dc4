"""Render a slitless frame: counts(X) = F S |dl/dx| exptime times the flat, spread across the trace."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from csstdask.flux.predicted_spectra import PredictedSpectra
from csstdask.instrument import load_instrument
from csstdask.instrument.dispersion import dispersion_of, nominal_sensitivity
from csstdask.numerics.spectral import interpolate_spectrum

INSTRUMENT = load_instrument("csst")
DETECTORS = {"GI": 1, "GV": 2, "GU": 3}
CORE, WING, SHARE, EXPONENT, REFERENCE = 0.95, 2.3, 0.15, 0.3, 5500.0


@dataclass
class Scene:
    height: np.ndarray
    error: np.ndarray
    dispersion: object
    zeroth: object
    predicted: PredictedSpectra
    x: np.ndarray
    y: np.ndarray

    def inputs(self):
        return self.height, self.error, None, self.dispersion, self.zeroth, self.x, self.y


def sed_grid():
    return np.exp(np.arange(np.log(2400.0), np.log(11000.0), 1 / 600))


def made_up_seds(n, rng, level=1e-16):
    """Return smooth continua with absorption lines and fluxes around `level`."""
    grid = sed_grid()
    seds = np.empty((n, len(grid)))
    for i in range(n):
        sed = (grid / 5500) ** rng.uniform(-2, 1)
        for line in (2800, 3100, 3934, 4102, 4341, 4861, 5890, 6563, 7600, 8542):
            width = line / 200 / 2.355 * rng.uniform(1, 1.5)
            sed *= 1 - rng.uniform(0.05, 0.4) * np.exp(-0.5 * ((grid - line) / width) ** 2)
        seds[i] = sed
    return grid, seds * np.broadcast_to(level, (n,))[:, None]


def render(x, y, seds, *, band="GV", shape=(400, 900), exptime=150.0, flat=None, dy=0.0, shift=0.0, sky=40.0,
           read_noise=5.0, rng=None, zeroth=True, mirrored=False):  # fmt: skip
    """Return a scene; without `rng` it has no noise."""
    detector = DETECTORS[band]
    grid, seds = seds
    first, zero = dispersion_of(INSTRUMENT, detector, shape), dispersion_of(INSTRUMENT, detector, shape, 0)
    if mirrored:  # wavelengths fall along x
        first = replace(first, dx=-first.dx)
    light = np.zeros(shape)
    counts = []
    for xi, yi, sed in zip(x, y, seds, strict=True):
        ends = first.position(xi, yi, np.array([first.limits[0] - 150, first.limits[1] + 150]))[0] + shift
        columns = np.arange(math.ceil(min(ends)), math.floor(max(ends)) + 1)
        wave = first.wavelength(xi, yi, columns - shift)
        rate = interpolate_spectrum(grid, sed, wave) * nominal_sensitivity(INSTRUMENT, detector, wave)
        rate *= np.abs(first.angstrom_per_pixel(xi, yi, wave)) * exptime
        trace = first.position(xi, yi, wave)[1] + dy
        if flat is not None:
            rate = rate * flat(columns, trace, wave)
        counts.append((columns, rate))
        for column, total, row, at in zip(columns, rate, trace, wave, strict=True):
            rows = np.arange(round(row) - 20, round(row) + 21)
            _put(light, rows, np.array([column]), total * _profile(rows - row, at)[:, None])
        if zeroth:
            at = np.arange(zero.limits[0], zero.limits[1], 5.0)
            total = (
                exptime
                * 5.0
                * np.nansum(interpolate_spectrum(grid, sed, at) * nominal_sensitivity(INSTRUMENT, detector, at, 0))
            )
            px, py = (float(one) for one in zero.position(xi, yi, np.mean(zero.limits)))
            rows, columns = np.arange(round(py) - 15, round(py) + 16), np.arange(round(px) - 15, round(px) + 16)
            middle = float(np.mean(zero.limits))
            _put(light, rows, columns, total * np.outer(_profile(rows - py, middle), _profile(columns - px, middle)))
    variance = light + sky + read_noise**2
    if rng is None:
        height, error = light, np.sqrt(variance)
    else:
        total = rng.poisson(light + sky) + rng.normal(0, read_noise, shape)
        height, error = total - sky, np.sqrt(np.maximum(total, 0) + read_noise**2)
    predicted = PredictedSpectra(
        grid, seds, lambda at: nominal_sensitivity(INSTRUMENT, detector, at), exptime,
        lambda at: nominal_sensitivity(INSTRUMENT, detector, at, 0),
    )  # fmt: skip
    return Scene(
        height.astype(np.float32), error.astype(np.float32), first, zero, predicted, np.asarray(x), np.asarray(y)
    ), counts


def _profile(distance, wavelength):
    scale = (wavelength / REFERENCE) ** EXPONENT * math.sqrt(2)
    edge = np.append(distance - 0.5, distance[-1] + 0.5)
    below = sum(share * 0.5 * np.array([math.erf(one / (width * scale)) for one in edge])
                for share, width in ((1 - SHARE, CORE), (SHARE, WING)))  # fmt: skip
    return np.diff(below)


def _put(frame, rows, columns, image):
    on_y, on_x = (rows >= 0) & (rows < frame.shape[0]), (columns >= 0) & (columns < frame.shape[1])
    frame[np.ix_(rows[on_y], columns[on_x])] += image[np.ix_(on_y, on_x)]
