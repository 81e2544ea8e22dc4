"""Photons of black bodies against astropy, and their mean wavelength in a narrow and a wide filter."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.modeling.models import BlackBody

from csstdask.optics.blackbody import mean_wavelength, photon_rate, sample_band


def test_photon_rates_are_those_of_astropy():
    wavelength = np.linspace(250.0, 1000.0, 40)
    for temperature in (3200.0, 12000.0):
        energy = BlackBody(temperature * u.K, scale=1 * u.Unit("erg / (s cm2 AA sr)"))(wavelength * u.nm).value
        ratio = photon_rate(wavelength, temperature) / (energy * wavelength)
        assert ratio == pytest.approx(np.full(len(wavelength), ratio[0]), rel=1e-6)


def test_mean_wavelengths_move_with_the_temperature():
    assert mean_wavelength((600.0, 600.2), 5000.0) == pytest.approx(600.1, abs=1e-3)
    cool, hot = mean_wavelength((400.0, 700.0), [3000.0, 15000.0])
    assert 400 < hot < 550 < cool < 700


def test_parts_of_a_band_fill_it():
    centres = sample_band((400.0, 500.0), 5)
    assert centres.tolist() == [410.0, 430.0, 450.0, 470.0, 490.0]
