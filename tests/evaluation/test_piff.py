"""Comparison with Piff on the same stamps: its PSFs have our centre and sampling."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from psf_night import Night, decibels_of

from csstdask.core.errors import InputError
from csstdask.evaluation.baselines import piff
from csstdask.evaluation.baselines.piff import run_piff


def test_missing_piff_is_named(monkeypatch):
    monkeypatch.setattr(piff, "is_installed", lambda: False)
    with pytest.raises(InputError, match="Piff"):
        run_piff(*4 * (np.empty(0),))


@pytest.mark.skipif(importlib.util.find_spec("piff") is None, reason="Piff is not installed")
def test_stars_of_one_night():
    night = Night(60, 150)
    x, y = (np.rint((place + 1) * 1000) + offset for place, offset in ((night.u, night.x), (night.v, night.y)))
    variance = night.variance.copy()
    variance[:, 3, 3] = np.inf
    fitted = run_piff(night.pixels - 20, variance, x, y, side=15, degree=1)
    found, true = fitted(x[:5], y[:5]), night.half(None)[:5]
    assert found.shape == (5, 64, 64)
    assert np.unravel_index(found[0].argmax(), (64, 64)) == (32, 32)
    assert decibels_of(found, true).mean() > 45
