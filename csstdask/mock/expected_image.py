"""The expected light of an imaging unit: sources, sky, fringes and artefacts."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.mock.artefacts import draw_ghosts, draw_trails
from csstdask.mock.catalogue import Catalogue
from csstdask.mock.psf import OpticalState, PsfModel, sub_band_weights
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.random_telescopes import draw_optics
from csstdask.mock.recipe import Recipe
from csstdask.mock.recipe_tables import Optics
from csstdask.mock.scene import draw_scene
from csstdask.mock.scene_psf import ExactPsf, InterpolatedPsf, Window
from csstdask.mock.sensor import Frame, fringes
from csstdask.mock.zeropoint_units import unit_conditions

_MIN_EXACT_ELECTRONS = 300.0
"""Stars with fewer electrons have interpolated PSFs even if exact ones are requested, because noise dominates [e-]."""


@lru_cache(maxsize=2)
def psf_model(settings: Optics, instrument_json: str) -> PsfModel:
    """Return the PSF model of a telescope, cached per process."""
    return PsfModel(settings, Instrument.model_validate_json(instrument_json))


@lru_cache(maxsize=32)
def frame_psf(
    settings: Optics, instrument_json: str, detector: int, shape: tuple[int, int], state: OpticalState
) -> InterpolatedPsf:
    """Return the PSF of a frame, cached because exposures of one epoch share it."""
    model = psf_model(settings, instrument_json)
    window = Window.of(shape, model.instrument)
    return InterpolatedPsf(model, detector, window, state)


def exposure_optics(recipe: Recipe, index: int) -> Optics:
    """Return the telescope of an exposure."""
    if not recipe.optics.drawn:
        return recipe.optics
    drawn = draw_optics(stream(recipe.optics.seed, Purpose.TELESCOPE, index))
    return drawn.model_copy(update={"exact": recipe.optics.exact})


def optical_state(recipe: Recipe, index: int) -> OpticalState:
    """Return the state of the telescope during an exposure."""
    settings = recipe.optics
    scatter = stream(recipe.seed, Purpose.JITTER, index).normal() * settings.jitter_scatter
    jitter = unit_conditions(recipe, index, recipe.detectors[0]).jitter  # the same for all detectors
    return OpticalState(
        epoch=recipe.epoch_of(index),
        enlarge=settings.enlarge[index % len(settings.enlarge)],
        jitter=float(np.exp(scatter)) * jitter,
    )


def expected_light(
    recipe: Recipe, instrument: Instrument, index: int, detector: int, catalogue: Catalogue
) -> tuple[Frame, dict[str, npt.NDArray[np.bool_]]]:
    """Return the expected light of a unit, and where artefacts would be flagged.

    Parameters
    ----------
    recipe : Recipe
        The mock survey.
    instrument : Instrument
        Camera of the recipe.
    index : int
        Index of the exposure.
    detector : int
        Detector id.
    catalogue : Catalogue
        True sources of the unit.

    Returns
    -------
    light : float32 array (y, x)
        Expected rate with sky and artefacts [e-/s/pixel].
    flagged : dict of bool arrays (y, x)
        ``satellite_trail`` and ``ghost``.
    """
    shape, band = recipe.frame_shape, instrument.bands[str(instrument.detector(detector).band)]
    weights = sub_band_weights(band.wavelength, catalogue.temperature)
    optics, state = exposure_optics(recipe, index), optical_state(recipe, index)
    psf = frame_psf(optics, instrument.model_dump_json(), detector, shape, state)
    exact = catalogue.is_star & (catalogue.flux * recipe.exptime > _MIN_EXACT_ELECTRONS) & optics.exact
    light = draw_scene(catalogue.select(~exact), weights[~exact], shape, psf)
    if exact.any():
        model = psf_model(optics, instrument.model_dump_json())
        window = Window.of(shape, instrument)
        exact_psf = ExactPsf(model, detector, window, state)
        light += draw_scene(catalogue.select(exact), weights[exact], shape, exact_psf)
    rng = stream(recipe.seed, Purpose.ARTEFACTS, index, detector)
    sky = sky_gradient(rng, recipe.sky.gradient, shape)
    sky *= fringes(recipe.sensor, detector, shape, sum(band.wavelength) / 2)
    conditions = unit_conditions(recipe, index, detector)
    level = band.sky * recipe.sky.level * conditions.sky * 10 ** (0.4 * conditions.offset)
    light += np.float32(level) * sky
    trails, on_trail = draw_trails(rng, recipe.artefacts, shape, recipe.exptime)
    ghost_stream = stream(optics.seed, Purpose.ARTEFACTS, detector)  # ghosts have the same size in all exposures
    ghosts, on_ghost = draw_ghosts(ghost_stream, recipe.artefacts, catalogue, shape, recipe.exptime)
    light += trails
    light += ghosts
    # Ringing of the Fourier transforms (a part in a million) must not make the light negative.
    return np.maximum(light, 0, out=light), {"satellite_trail": on_trail, "ghost": on_ghost}


def sky_gradient(rng: np.random.Generator, gradient: float, shape: tuple[int, int]) -> Frame:
    """Return a linear sky gradient of mean 1 (y, x), with random slopes of at most `gradient` peak to peak."""
    slope_x, slope_y = rng.uniform(-0.5, 0.5, 2) * gradient
    along_y, along_x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    return np.asarray(1 + np.float32(slope_x) * along_x[None, :] + np.float32(slope_y) * along_y[:, None])
