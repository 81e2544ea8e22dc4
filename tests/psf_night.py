"""Stars of telescopes whose PSFs are known: a small basis, a night of stars, a tiny trained model."""

from __future__ import annotations

from copy import copy
from pathlib import Path

import numpy as np
import pytest
from dense_interpolation import interpolation_matrix

from csstdask.datasets.psf_samples import PsfSamples
from csstdask.metrics.psf import draw_stars
from csstdask.mock import Recipe
from csstdask.mock.recipe_tables import Nodes, Optics, Sensor, SkyField, Stamps
from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING, polynomials
from csstdask.psf.fit_field import fit_field
from csstdask.training.psf.basis import basis_psnr, learn_basis
from csstdask.training.psf.train import load_psf_config, train_psf

AXIS = (np.arange(BASIS_SIZE) - BASIS_SIZE // 2) / OVERSAMPLING


NODES = np.cos(np.pi * (np.arange(4) + 0.5) / 4)


def blob(width, e1, e2):
    """Return Gaussians of a width and two distortions, each a number or an array (n,); sum over native pixels 1."""
    width, e1, e2 = (np.atleast_1d(one)[:, None, None] for one in (width, e1, e2))
    xx, yy, xy = width**2 * (1 + e1), width**2 * (1 - e1), width**2 * e2
    det = xx * yy - xy**2
    x, y = AXIS[None, None, :], AXIS[None, :, None]
    image = np.exp(-0.5 * (yy * x**2 - 2 * xy * x * y + xx * y**2) / det) / (2 * np.pi * np.sqrt(det))
    return image.astype(np.float32)


def telescope(rng):
    """Return how width and distortions of a telescope change over its detector."""
    width, tilt, e1, e2 = (
        rng.uniform(0.75, 0.95),
        rng.normal(0, 0.03, 2),
        rng.normal(0, 0.05, 2),
        rng.normal(0, 0.05, 2),
    )
    return lambda u, v: blob(width + tilt[0] * u + tilt[1] * v, e1[0] + e1[1] * u, e2[0] + e2[1] * v * u)


@pytest.fixture(scope="module")
def psfs():
    rng = np.random.default_rng(1)
    v, u = (part.ravel() for part in np.meshgrid(NODES, NODES, indexing="ij"))
    seen = [PsfSamples(telescope(rng)(u, v), u, v, np.full(len(u), 6000.0)) for _ in range(40)]
    found = learn_basis(seen, 12, 3, (690.0, 820.0))
    assert basis_psnr(found, [PsfSamples(telescope(rng)(u, v), u, v, np.full(len(u), 6000.0))]).min() > 75
    return found


class Night:
    """Stars on one detector of a telescope that no model was trained on."""

    def __init__(self, n, snr, seed=2, noise=5.0):
        rng = np.random.default_rng(seed)
        self.truth = telescope(rng)
        self.u, self.v = rng.uniform(-1, 1, (2, n))
        self.x, self.y = rng.uniform(-0.5, 0.5, (2, n))
        self.places = polynomials(self.u, self.v, 3)
        self.image = self.truth(self.u, self.v)
        along_y, along_x = interpolation_matrix(self.y, 32), interpolation_matrix(self.x, 32)
        snr = np.asarray(snr, dtype=float)
        flux = snr**2 / 2 * (1 + np.sqrt(1 + 4 * 49 * noise**2 / snr**2))  # in 49 pixels
        flux = np.broadcast_to(flux, n)
        light = flux[:, None, None] * (along_y @ self.image @ along_x.transpose(0, 2, 1)) + 20
        self.variance = (noise**2 + light).astype(np.float32)
        self.pixels = (light + rng.normal(size=light.shape) * np.sqrt(self.variance)).astype(np.float32)
        self.flux = flux

    def with_variances_of_counts(self, noise=5.0):
        """Return the same stars with variances that follow the photons which came, as frames have them."""
        night = copy(self)
        night.variance = np.maximum(noise**2 + self.pixels, 1).astype(np.float32)
        return night

    def fit(self, psfs, some=slice(None), **asked):
        arrays = (self.pixels, self.variance, self.x, self.y, self.places)
        return fit_field(psfs, *(array[some] for array in arrays), **asked)

    def half(self, psfs):
        window = slice(BASIS_SIZE // 2 - 64, BASIS_SIZE // 2 + 64, 2)
        image = self.image[:, window, window]
        return image / image.sum(axis=(1, 2), keepdims=True)


def decibels_of(found, true):
    peak = true.max(axis=(1, 2), keepdims=True)
    return -20 * np.log10(np.sqrt((((found - true) / peak) ** 2).mean(axis=(1, 2))))


TINY = {"bands": ("i",), "telescopes": 12, "held_out": 2, "nodes": 4, "degree": 2, "images": 24}
#: Of band i.
DETECTOR = 7


@pytest.fixture(scope="session")
def psf_model(tmp_path_factory) -> Path:
    return train_psf(load_psf_config(None, **TINY), tmp_path_factory.mktemp("psf"), on_progress=lambda _: None)


@pytest.fixture(scope="session")
def psf_recipe() -> Recipe:
    return Recipe(
        name="psf-small",
        seed=5,
        exposures=1,
        detectors=(DETECTOR,),
        shape=(1200, 1200),
        fields=(SkyField(name="nodes", pointing=(10.0, -20.0)),),
        nodes=Nodes(per_axis=7, snr=(150.0, 150.0)),
        optics=Optics(seed=31, exact=True),
        sensor=Sensor(brighter_fatter=0.0, cti=0.0, non_linearity=0.0),
        cosmic_rays={"pixel_fraction": (0.0,)},
        artefacts={"satellites": 0.0, "ghosts_above": 0.0},
        stamps=Stamps(kind="isolated", size=64, per_unit=60),
    )


@pytest.fixture(scope="session")
def psf_stars(psf_recipe):
    return draw_stars(psf_recipe, 0, DETECTOR)
