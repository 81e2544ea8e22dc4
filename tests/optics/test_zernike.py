"""Zernike polynomials against GalSim's."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.optics.zernike import noll_to_zernike, zernike

galsim = pytest.importorskip("galsim")


def test_zernike_polynomials_are_nolls(rng):
    x, y = rng.uniform(-0.7, 0.7, (2, 50))
    for j in range(1, 29):
        unit = np.zeros(j + 1)
        unit[j] = 1
        assert np.allclose(galsim.zernike.Zernike(unit).evalCartesian(x, y), zernike(j, x, y), atol=1e-12)
    assert [noll_to_zernike(j) for j in (1, 4, 5, 8, 11)] == [(0, 0), (2, 0), (2, -2), (3, 1), (4, 0)]
