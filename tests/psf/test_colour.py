"""A star's colour: where in a filter its light lies, and what a fit makes of knowing it."""

from __future__ import annotations

import numpy as np
import pytest

import csstdask
from csstdask.metrics.psf import psf_errors
from csstdask.optics.blackbody import photon_rate
from csstdask.psf.colour import REFERENCE_TEMPERATURE, colour_from_temperature


def test_colour_is_the_mean_photon_wavelength():
    limits = (400.0, 550.0)
    wavelength = np.linspace(*limits, 20_001)
    found = []
    for heat in (3500.0, REFERENCE_TEMPERATURE, 20_000.0):
        photons = photon_rate(wavelength, [heat])[0]
        mean = (photons * wavelength).sum() / photons.sum()
        found.append(mean)
    cold, usual, hot = colour_from_temperature([3500, REFERENCE_TEMPERATURE, 20_000], limits)
    assert usual == 0
    assert 0.4 > cold > usual > hot > -0.4
    assert np.allclose(75 * np.array([cold, usual, hot]), np.array(found) - found[1], atol=0.1)


def test_known_colours_can_be_passed(psf_stars, psf_model):
    """Known colours do not make the fit worse; by default, the field is that of a star of typical colour."""
    stars = psf_stars
    ids = np.full(len(stars), stars.detector)
    blind, told = (
        csstdask.psf.reconstruct(
            stars.stamps, ids, stars.x, stars.y, error=stars.error, mask=stars.mask, temperature=heat,
            model=str(psf_model),
        )
        for heat in (None, stars.temperature)
    )  # fmt: skip
    rmse = [psf_errors(one.image, stars.truth)["rmse"].mean() for one in (blind, told)]
    assert rmse[1] < 1.1 * rmse[0]
    assert not np.array_equal(blind.image, told.image)
    fields = [one.fields[stars.detector]([600.0], [600.0])[0] for one in (blind, told)]
    assert np.abs(fields[0] - fields[1]).max() < 0.05 * fields[0].max()
    with pytest.raises(ValueError, match="temperature: found 0; wanted kelvins above 0"):
        csstdask.psf.reconstruct(
            stars.stamps, ids, stars.x, stars.y, temperature=np.zeros(len(stars)), model=str(psf_model)
        )
    with pytest.raises(ValueError, match="temperature: found shape"):
        csstdask.psf.reconstruct(
            stars.stamps, ids, stars.x, stars.y, temperature=stars.temperature[:2], model=str(psf_model)
        )
