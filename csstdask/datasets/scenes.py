"""Scenes without cosmic rays: mock skies, real frames of an infrared camera, darks with real warm pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from scipy.signal import fftconvolve
from scipy.special import ndtr

from csstdask.core.errors import InputError
from csstdask.core.warnings import suppress_warnings
from csstdask.instrument import load_instrument
from csstdask.mock.artefacts import trail_profile
from csstdask.mock.optics import CORE, Blur, Sampling, effective_psf, sampling_for
from csstdask.mock.recipe_tables import Sky
from csstdask.mock.scene import draw_scene
from csstdask.mock.scene_psf import FixedPsf
from csstdask.mock.sky import draw_sky
from csstdask.numerics.robust import mad_scale
from csstdask.optics.pupil import Pupil, cutoff_frequency

#: Sky of the mock skies [e-/s/pixel].
SKY_RATE = 0.2
#: Share of mock skies with the density of a star cluster.
CROWDED_SHARE = 0.25
#: Share of mock skies with a Gaussian PSF, and the range of its standard deviation [pixel].
GAUSSIAN_SHARE = 0.25
GAUSSIAN_SIGMAS = (0.35, 1.6)
#: Share of mock skies whose telescope drifts, and the range of the length of the trailed stars [pixel].
DRIFT_SHARE = 0.1
DRIFT_LENGTHS = (3.0, 80.0)
#: Mean number of satellites that cross a mock sky, the range of their width (1 sigma) [pixel], and of the logarithm of
#: their peak in units of the noise.
SATELLITES = 0.5
SATELLITE_SIGMAS = (0.5, 3.0)
SATELLITE_LOG_PEAK = (0.0, 2.0)
#: Share of satellites that tumble.
TUMBLING_SHARE = 0.5
#: Pupil of the telescopes: diameter [m], obscuration, pixel scale [arcsec].
PUPIL = Pupil(2.0, 0.0, 0.074)


@dataclass(frozen=True)
class Scene:
    """A frame without cosmic rays."""

    data: npt.NDArray[np.float32]
    """Counts, sky included [e-], (y, x)."""
    expected: npt.NDArray[np.float32]
    """Expected counts [e-]; in a real frame the counts themselves."""
    sky: float
    """Sky [e-]."""
    read_noise: float
    """Read noise [e-]."""
    ignore: npt.NDArray[np.bool_]
    """Pixels that a pipeline would flag, (y, x)."""
    unreported_variance: npt.NDArray[np.float32] | float = 0.0
    """Variance of what was subtracted, with its noise [e-^2]: not contained in that of the counts."""


@lru_cache(maxsize=256)
def render_mock_sky(seed: int, index: int, size: int) -> npt.NDArray[np.float32]:
    """Return the expected light of a mock sky in units of its sky level, (size, size).

    Skies differ in the density of stars and galaxies (one in four is as dense as a cluster's core) and in the
    telescope: aberrations up to a fifth of a wave, jitter and charge diffusion from a quarter of a pixel to one and a
    half. One in four has a Gaussian PSF; one in ten drifts, so that its stars are trailed.

    Parameters
    ----------
    seed, index : int
        Seed of the skies, and number of the sky.
    size : int
        Side of the frame [pixel].
    """
    rng = np.random.default_rng([seed, index])
    crowded = rng.random() < CROWDED_SHARE
    stars = 10 ** (rng.uniform(3.5, 4.5) if crowded else rng.uniform(1.5, 3.5))
    sky = Sky(
        stars_per_mpix=stars,
        galaxies_per_mpix=10 ** rng.uniform(1.5, 3.2),
        large_galaxies_per_mpix=rng.choice([0.0, 1.0]),
        brightest=rng.uniform(13, 19),
        faintest=26,
        star_slope=rng.uniform(0.1, 0.3),
    )
    catalogue = draw_sky(rng, sky, (size, size))
    light = draw_scene(catalogue, np.ones((len(catalogue), 1)), (size, size), _draw_psf(rng))
    if rng.random() < DRIFT_SHARE:
        light = fftconvolve(light, _line(rng.uniform(*DRIFT_LENGTHS), rng.uniform(0, np.pi)), mode="same").clip(min=0)
    return np.asarray(1 + light / np.float32(SKY_RATE), dtype=np.float32)


def _draw_psf(rng: np.random.Generator) -> FixedPsf:
    """Draw the PSF of an optical camera in space."""
    if rng.random() < GAUSSIAN_SHARE:
        return FixedPsf(_gaussian_core(10 ** rng.uniform(*np.log10(GAUSSIAN_SIGMAS))), Sampling(4, 4))
    orders = tuple(range(4, 16))
    aberrations = rng.normal(0, rng.uniform(5, 130) / len(orders) ** 0.5, (1, len(orders)))
    blur = Blur(np.diag(10 ** rng.uniform(-0.6, 0.18, 2)) ** 2, line=False, diffusion=rng.uniform(0.1, 0.35))
    wavelength = rng.uniform(420, 950)
    sampling = sampling_for(cutoff_frequency(wavelength, PUPIL.diameter, PUPIL.pixel_scale), blur)
    core = effective_psf(aberrations, orders, wavelength, pupil=PUPIL, blur=blur, fine=sampling.fine)
    return FixedPsf(core[0], sampling)


def _gaussian_core(sigma: float, fine: int = 4) -> npt.NDArray[np.float32]:
    """Return the share of a Gaussian in native pixels centred on each sample."""
    at = (np.arange(CORE * fine) - CORE * fine // 2) / fine
    share = np.diff(ndtr((at[:, None] + np.array([-0.5, 0.5])) / sigma), axis=1)[:, 0]
    return np.outer(share, share).astype(np.float32)


def _line(length: float, angle: float) -> npt.NDArray[np.float64]:
    """Return a line through the centre of an image, which sums to 1 (y, x)."""
    half = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    along = np.linspace(-length / 2, length / 2, max(2, int(4 * length)))
    y, x = half + along * np.sin(angle), half + along * np.cos(angle)
    for step_y in (0, 1):
        for step_x in (0, 1):
            row, column = np.floor(y).astype(int) + step_y, np.floor(x).astype(int) + step_x
            np.add.at(kernel, (row, column), np.maximum(0, 1 - np.abs(y - row)) * np.maximum(0, 1 - np.abs(x - column)))
    return kernel / kernel.sum()


def draw_satellites(rng: np.random.Generator, noise: float, size: int) -> npt.NDArray[np.float32]:
    """Return the light of satellites that cross a frame [e-], (size, size).

    Their number is Poisson distributed with the mean `SATELLITES`. Half of them tumble: their brightness oscillates.
    """
    light = np.zeros((size, size), dtype=np.float32)
    y, x = np.ogrid[:size, :size]
    y, x = y.astype(np.float32), x.astype(np.float32)
    for _ in range(int(rng.poisson(SATELLITES))):
        angle, sigma = rng.uniform(0, np.pi), rng.uniform(*SATELLITE_SIGMAS)
        peak = noise * 10 ** rng.uniform(*SATELLITE_LOG_PEAK)
        x0, y0 = rng.uniform(0, size, 2)
        trail = np.float32(peak) * trail_profile(x, y, x0, y0, angle, sigma)
        if rng.random() < TUMBLING_SHARE:
            along = (x - np.float32(x0)) * np.float32(np.cos(angle)) + (y - np.float32(y0)) * np.float32(np.sin(angle))
            phase = along / np.float32(rng.uniform(5, 300)) + np.float32(rng.uniform(0, 2 * np.pi))
            trail *= np.float32(0.5) * (1 + np.sin(phase))
        light += trail
    return light


def rebin(scene: Scene, factor: int) -> Scene:
    """Return a scene as seen by a detector whose pixels are `factor` times as large: its stars are sharper."""
    ny, nx = (length // factor for length in scene.data.shape)

    def blocks(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return plane[: ny * factor, : nx * factor].reshape(ny, factor, nx, factor)

    def total(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return blocks(plane).sum(axis=(1, 3), dtype=np.float32)

    unreported = scene.unreported_variance
    return Scene(
        total(scene.data),
        total(scene.expected),
        scene.sky * factor**2,
        scene.read_noise * factor,
        np.asarray(blocks(scene.ignore).any(axis=(1, 3))),
        total(unreported) if isinstance(unreported, np.ndarray) else unreported * factor**2,
    )


def draw_mock_scene(rng: np.random.Generator, seed: int, index: int, size: int) -> Scene:
    """Draw an exposure of a mock sky, with satellites, warm pixels and defects."""
    light = render_mock_sky(seed, index, size)
    light = np.rot90(light, int(rng.integers(4)))[:: int(rng.choice([-1, 1]))]
    level, read_noise = 10 ** rng.uniform(0.5, 2.6), rng.uniform(2.5, 9.0)
    expected = light * level + rng.uniform(0, 10)
    expected = expected + draw_satellites(rng, np.sqrt(level + read_noise**2), size)
    warm = rng.random(light.shape) < 10 ** rng.uniform(-5, -2.5)
    expected = expected + np.where(warm, rng.lognormal(4.5, 1.3, light.shape), 0)
    counts = rng.poisson(expected) + rng.normal(0, read_noise, light.shape)
    ignore = warm & (rng.random(light.shape) < rng.uniform(0.3, 1.0))
    ignore[:, rng.integers(0, size, rng.poisson(1.0))] = True
    ignore |= rng.random(light.shape) < 10 ** rng.uniform(-6, -2.5)
    sky = float(np.median(expected))
    return Scene(counts.astype(np.float32), expected.astype(np.float32), sky, read_noise, ignore)


def read_wircam(path: Path) -> Scene:
    """Read a WIRCam chip: an infrared array with nearly no cosmic rays in ten seconds.

    Raises
    ------
    InputError
        If the file has no readable image.
    """
    try:
        with suppress_warnings(), fits.open(path) as hdus:
            raw = np.asarray(hdus[1].data, dtype=np.float32)
    except (OSError, IndexError, ValueError, TypeError) as error:
        raise InputError(path, f"no image ({error})", "a WIRCam chip in HDU 1") from None
    electronics = load_instrument("cfht_wircam").electronics
    ignore = raw == 0
    counts = (raw - np.float32(electronics.bias_level or 0)) * np.float32(electronics.gain or 1)
    counts[ignore] = 0
    sky = float(np.median(counts[~ignore]))
    # The sky was subtracted: the remaining noise counts as read noise.
    noise = float(mad_scale(counts[~ignore], center=sky))
    return Scene(counts, counts, sky, noise, ignore)


def random_crop(rng: np.random.Generator, scene: Scene, size: int) -> Scene:
    """Return a random square of a scene, randomly turned and reflected."""
    y, x = (int(rng.integers(0, length - size + 1)) for length in scene.data.shape)
    turns, step = int(rng.integers(4)), int(rng.choice([-1, 1]))

    def part(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.rot90(plane[y : y + size, x : x + size], turns)[::step]

    ignore = np.rot90(scene.ignore[y : y + size, x : x + size], turns)[::step]
    return Scene(part(scene.data), part(scene.expected), scene.sky, scene.read_noise, ignore)


def draw_dark_scene(rng: np.random.Generator, warm_rates: npt.NDArray[np.float32], size: int) -> Scene:
    """Draw a dark with the warm pixels of a real detector, at random positions.

    Parameters
    ----------
    rng : numpy.random.Generator
        Generator of all random numbers.
    warm_rates : float32 array (n,)
        Dark rates of real pixels above their neighbourhood [e-/s]. Their positions are not kept: a network must not
        learn the map of a detector.
    size : int
        Side of the frame [pixel].
    """
    exptime, read_noise = rng.uniform(300, 1500), rng.uniform(3.0, 6.5)
    level = rng.uniform(0, 15)
    expected = level + np.maximum(rng.choice(warm_rates, (size, size)), 0) * exptime
    counts = rng.poisson(expected) + rng.normal(0, read_noise, (size, size))
    flagged = np.zeros((size, size), dtype=bool)
    if rng.random() < 0.5:
        flagged = expected - level > rng.uniform(10, 60)
    unreported: npt.NDArray[np.float32] | float = 0.0
    if rng.random() < 0.5:  # a dark was subtracted: the median of a few, with its own noise
        dark_variance = (expected + read_noise**2) * np.pi / 2 / rng.integers(2, 10)
        counts = counts - expected - rng.normal(0, np.sqrt(dark_variance))
        unreported, expected = (expected + dark_variance).astype(np.float32), np.zeros_like(expected)
    sky = float(np.median(expected))
    return Scene(counts.astype(np.float32), expected.astype(np.float32), sky, read_noise, flagged, unreported)
