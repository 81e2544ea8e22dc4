"""Draw training frames: a scene, the cosmic rays on it, and the truth of each pixel.

Everything is drawn from a generator that the caller passes: a frame is a function of its seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import convolve1d, gaussian_filter

from csstdask.arrays.morphology import dilate
from csstdask.datasets.labelled_units import LabelledFrame
from csstdask.datasets.scenes import Scene, draw_dark_scene, draw_mock_scene, random_crop, rebin
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.recipe_tables import CosmicRays
from csstdask.training.cosmicray.material import Kind, Material

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Height above the sky from which a pixel belongs to a source [sigma of the sky].
SOURCE_SIGMA = 3.0
#: Height above the sky from which a pixel belongs to a bright source [sigma of the sky].
BRIGHT_SIGMA = 30.0
#: Lowest and highest share of pixels that cosmic rays hit. Frames are uniform in its logarithm.
HIT_FRACTIONS = (0.0025, 0.15)
#: Share of frames without cosmic rays.
EMPTY_SHARE = 0.05
#: Where real events are available: share of frames with generated tracks only (with the empty ones), and with both.
GENERATED_SHARE, MIXED_SHARE = 0.4, 0.2
#: Number of brightness factors drawn for the real events of a frame.
N_BRIGHTNESS = 64
#: Lowest and highest full well of a frame [e-].
FULL_WELLS = (5e4, 1.2e5)
#: Share of frames whose saturated pixels are flagged.
FLAGGED_SATURATION_SHARE = 0.8
#: Share of frames that come with an error array.
ERROR_SHARE = 0.65
#: Share of the units of other campaigns that keep their own cosmic rays.
UNCHANGED_SHARE = 0.5
#: Share of the other units of other campaigns whose pixels are binned 2 x 2, so that their stars are sharper.
REBINNED_SHARE = 0.4


@dataclass(frozen=True)
class ContaminatedFrame:
    """A scene with cosmic rays and its truth. All arrays are (y, x)."""

    data: Image
    """Counts [e-]."""
    error: Image | None
    """1 sigma [e-]; None if the frame comes without errors."""
    ignore: Mask
    """Pixels flagged as unusable."""
    charge: Image
    """Charge of cosmic rays [e-]."""
    source: Mask
    """Pixels of sources."""
    bright: Mask
    """Pixels of bright sources."""
    unknown: Mask
    """Pixels whose charge is unknown."""
    in_domain: bool = True
    """Whether a teacher can be expected to know such frames: not those that were resampled or binned."""


def draw_frame(rng: np.random.Generator, material: Material, kind: Kind, size: int) -> ContaminatedFrame:
    """Draw a scene of one kind and add cosmic rays to it."""
    unknown_of_unit: Mask | None = None
    in_domain = True
    if kind in ("rendered", "reinjected", "extra_campaigns"):
        frame = _draw_unit(rng, material, kind)
        if kind == "rendered" or (kind == "extra_campaigns" and rng.random() < UNCHANGED_SHARE):
            return from_labelled_frame(frame)
        scene, unknown_of_unit = remove_cosmic_rays(frame), frame.unknown
        if kind == "extra_campaigns" and rng.random() < REBINNED_SHARE:
            scene, unknown_of_unit, in_domain = rebin(scene, 2), None, False
    elif kind == "frames":
        scene = random_crop(rng, material.frames[rng.integers(len(material.frames))], size)
    elif kind == "warm" and material.warm_rates is not None:
        scene = draw_dark_scene(rng, material.warm_rates, size)
    else:
        scene = draw_mock_scene(rng, material.seed, int(rng.integers(material.skies)), size)
    charge, unknown = draw_charge(rng, material, scene.data.shape)
    if unknown_of_unit is not None:
        unknown |= unknown_of_unit
    drawn = add_cosmic_rays(
        scene,
        charge,
        full_well=rng.uniform(*FULL_WELLS),
        flag_saturated=bool(rng.random() < FLAGGED_SATURATION_SHARE),
        with_error=bool(rng.random() < ERROR_SHARE),
        unknown=unknown,
    )
    return replace(drawn, in_domain=in_domain)


def resample(rng: np.random.Generator, frame: ContaminatedFrame) -> ContaminatedFrame:
    """Return a frame as after resampling: its noise is correlated, and its cosmic rays are spread.

    The kernel is that of a shift by a fraction of a pixel (linear or cubic interpolation), of a drizzle with large
    drops, or of a smoothing.
    """
    kernels = [_draw_kernel(rng) for _ in range(2)]

    def spread(plane: npt.NDArray[Any], power: int = 1) -> Image:
        for axis, kernel in enumerate(kernels):
            plane = convolve1d(plane, kernel**power, axis=axis, mode="nearest")
        return plane.astype(np.float32)

    error = frame.error if frame.error is None else np.sqrt(spread(frame.error.astype(np.float64) ** 2, 2))
    return ContaminatedFrame(
        data=spread(frame.data),
        error=error,
        ignore=spread(frame.ignore.astype(np.float32)) != 0,
        charge=spread(frame.charge),
        source=spread(frame.source.astype(np.float32)) > 0.5,
        bright=spread(frame.bright.astype(np.float32)) > 0.5,
        unknown=spread(frame.unknown.astype(np.float32)) != 0,
        in_domain=False,
    )


def _draw_kernel(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a kernel of resampling along one axis, which sums to 1."""
    shift = rng.uniform(0, 1)
    kind = rng.integers(3)
    if kind == 0:  # linear interpolation
        return np.array([1 - shift, shift, 0])
    at = np.arange(-3, 4) - (shift - 0.5)
    if kind == 1:  # cubic interpolation (Keys 1981)
        far = np.abs(at)
        inner = 1.5 * far**3 - 2.5 * far**2 + 1
        outer = -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2
        kernel = np.where(far < 1, inner, np.where(far < 2, outer, 0.0))
    else:
        kernel = np.exp(-0.5 * (at / rng.uniform(0.3, 1.0)) ** 2)
    return kernel / kernel.sum()


def _draw_unit(rng: np.random.Generator, material: Material, kind: Kind) -> LabelledFrame:
    """Read a random unit of the campaign, or of a random other campaign."""
    units = material.campaign
    if kind == "extra_campaigns":
        units = material.extra_campaigns[rng.integers(len(material.extra_campaigns))]
    if units is None:
        raise ValueError(f"{kind}: no campaign")
    return units.read(int(rng.integers(len(units))))


def draw_charge(rng: np.random.Generator, material: Material, shape: tuple[int, int]) -> tuple[Image, Mask]:
    """Draw the charge of generated tracks, of real events, of both, or none.

    Real events end where they fall below the noise of their detector: the charge of their neighbours is unknown.

    Returns
    -------
    charge : float32 array (y, x)
        Charge of cosmic rays [e-].
    unknown : bool array (y, x)
        Pixels whose charge is unknown.
    """
    fraction = 10 ** rng.uniform(*np.log10(HIT_FRACTIONS))
    charge = np.zeros(shape, dtype=np.float32)
    unknown = np.zeros(shape, dtype=bool)
    kind = rng.random()
    if kind < EMPTY_SHARE:
        return charge, unknown
    real = bool(material.libraries) and kind > GENERATED_SHARE
    both = real and kind > 1 - MIXED_SHARE
    if both or not real:
        settings = CosmicRays(
            pixel_fraction=(fraction / 2 if real else fraction,),
            point_share=rng.uniform(0.1, 0.6),
            mean_length=10 ** rng.uniform(0.5, 1.5),
            log_charge=rng.normal(3.2, 0.2),
            log_charge_fwhm=rng.uniform(0.4, 1.2),
            diffusion=rng.uniform(0.1, 0.4),
        )
        charge += draw_cosmic_rays(rng, settings, shape)
    if real:
        library = material.libraries[rng.integers(len(material.libraries))]
        faded = rng.random(N_BRIGHTNESS) >= 0.5
        brightness = 10 ** np.where(faded, rng.uniform(-1.0, 0.2, N_BRIGHTNESS), 0.0)
        events = library.scatter(rng, shape, fraction / 2 if both else fraction, brightness=brightness)
        unknown = dilate(events > 0) & (charge + events == 0)
        charge += events
    return charge, unknown


def add_cosmic_rays(
    scene: Scene,
    charge: Image,
    *,
    full_well: float = np.inf,
    flag_saturated: bool = True,
    with_error: bool = True,
    unknown: Mask | None = None,
) -> ContaminatedFrame:
    """Add the charge of cosmic rays to a scene, with full well, saturation flags and errors.

    Parameters
    ----------
    scene : Scene
        Frame without cosmic rays.
    charge : float32 array (y, x)
        Charge of cosmic rays [e-].
    full_well : float
        Counts above it are lost, also in the truth [e-].
    flag_saturated : bool
        Whether saturated pixels are flagged.
    with_error : bool
        Whether the frame has an error array, computed from its counts with cosmic rays.
    unknown : bool array (y, x), optional
        Pixels whose charge is unknown.

    Returns
    -------
    ContaminatedFrame
    """
    full = np.float32(full_well)
    data = np.minimum(scene.data + charge, full)
    recorded = np.where(charge > 0, data - np.minimum(scene.data, full), 0)
    ignore = scene.ignore | (data >= full) if flag_saturated else scene.ignore.copy()
    error = None
    if with_error:
        counts = np.maximum(data + scene.unreported_variance, 0)
        error = np.sqrt(counts + np.float32(scene.read_noise**2)).astype(np.float32)
    if unknown is None:
        unknown = np.zeros(data.shape, dtype=bool)
    return ContaminatedFrame(data, error, ignore, recorded.astype(np.float32), *_source_masks(scene), unknown)


def from_labelled_frame(frame: LabelledFrame) -> ContaminatedFrame:
    """Return a labelled frame with its own cosmic rays and their effects on the detector."""
    sources = _source_masks(remove_cosmic_rays(frame))
    return ContaminatedFrame(frame.data, frame.error, frame.ignore, frame.charge, *sources, frame.unknown)


def remove_cosmic_rays(frame: LabelledFrame) -> Scene:
    """Return the scene of a labelled frame, without its cosmic rays."""
    sky = float(np.median(frame.clean[~frame.ignore]))
    return Scene(frame.clean, gaussian_filter(frame.clean, 1.0), sky, frame.read_noise, frame.ignore)


def _source_masks(scene: Scene) -> tuple[Mask, Mask]:
    """Return the pixels of sources, and those of bright sources."""
    noise = np.sqrt(max(scene.sky, 0) + scene.read_noise**2)
    height = scene.expected - scene.sky
    return height > SOURCE_SIGMA * noise, height > BRIGHT_SIGMA * noise
