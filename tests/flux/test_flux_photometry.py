from __future__ import annotations

import numpy as np
import pytest

from csstdask.flux.photometry import AB_FLUX, LIGHT_SPEED, flux_from_magnitude


def test_constant_f_nu_has_same_magnitude_in_every_band():
    wavelength = np.geomspace(2500, 10500, 574)
    shape = (5556.0 / wavelength[None, :]) ** 2
    expected = AB_FLUX * 10 ** (-0.4 * 18) * LIGHT_SPEED / 5556.0**2
    for limits in ((4000, 5500), (6900, 8200)):
        flux, error = flux_from_magnitude([18.0], [0.02], limits, wavelength, shape)
        assert flux[0] == pytest.approx(expected, rel=1e-5)
        assert error[0] == pytest.approx(0.02 * np.log(10) / 2.5 * expected, rel=1e-4)


def test_spectrum_not_covering_the_band_gives_nan():
    wavelength = np.linspace(4000, 5000, 50)
    assert np.isnan(flux_from_magnitude([18.0], [0.02], (4500, 5500), wavelength, np.ones((1, 50)))[0]).all()
