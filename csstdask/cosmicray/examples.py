"""Training examples: a scene, cosmic rays on it, and what the network is to say about each pixel.

A frame is composed as a detector would gather it, looked at through the same function as in detection
(``view.view_frame``), and cut into patches, half of them on sources. Everything is drawn from a generator that
is handed in, so that an example is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csstdask.cosmicray import stis
from csstdask.cosmicray.scenes import Scene, cut, draw_mock_scene, draw_warm_scene, read_wircam
from csstdask.cosmicray.unet import channels_of
from csstdask.cosmicray.view import view_frame
from csstdask.errors import InputError
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.events import STIS_PAIRS, EventLibrary, exposures_of, library_for
from csstdask.mock.recipe import CosmicRays, Split

#: Charge from which a pixel counts as hit: this many electrons, and this share of its own noise.
LEAST_CHARGE, LEAST_SIGNIFICANCE = 1.0, 0.7
#: Weight of a source's pixels in the loss, and how far above the sky they begin [sigma].
_SOURCE_WEIGHT, _SOURCE_SIGMA = 5, 3.0
#: Folders of real events and frames; those that are absent are done without.
SETS = ("hst_stis", "lsst_itl_darks", "cfht_wircam")
#: Share of frames that are real ones with truth; of these, how many have their hot pixels flagged.
_LABELLED_SHARE, _FLAGGED_SHARE = 0.1, 0.5


@dataclass(frozen=True)
class Material:
    """What examples are made of: mock skies and generated tracks, and whatever real data there is."""

    seed: int
    """Of the mock skies."""
    skies: int
    """How many of them."""
    libraries: tuple[EventLibrary, ...] = ()
    """Real events."""
    frames: tuple[Scene, ...] = ()
    """Real frames without cosmic rays."""
    warmth: npt.NDArray[np.float32] | None = None
    """Rates of real warm pixels [e-/s]."""
    labelled: tuple[tuple[stis.StisFrame, stis.Reference], ...] = ()
    """Real frames with cosmic rays and their truth."""

    @property
    def sources(self) -> list[str]:
        """Return what it is made of, for a model card."""
        parts = ["generated tracks", *(f"{library.name} ({len(library)} events)" for library in self.libraries)]
        scenes = [f"{self.skies} mock skies"]
        scenes += [f"{len(self.frames)} WIRCam frames"] * bool(self.frames)
        scenes += ["warm pixels of STIS"] * (self.warmth is not None)
        labelled = [f"STIS frames {', '.join(frame.name for frame, _ in self.labelled)}"] * bool(self.labelled)
        return [*parts, *scenes, *labelled]


def check_data(data: Path) -> None:
    """Raise InputError unless a folder holds one of the sets of real events and frames."""
    if not any((data / name).is_dir() for name in SETS):
        found = "no such folder" if not data.is_dir() else f"none of {', '.join(SETS)} in it"
        raise InputError(data, found, "a folder of real events and frames")


def gather_material(split: Split, seed: int, skies: int, data: Path | None) -> Material:
    """Return the material of a split (``training``, ``validation`` or ``test``).

    Parameters
    ----------
    split : str
        No event, exposure pair or mock sky is in two of them.
    seed, skies : int
        Of the mock skies, and how many.
    data : Path, optional
        Folder with some of `SETS`.
    """
    sky_seed = seed * 10 + list(STIS_PAIRS).index(split)
    if data is None:
        return Material(sky_seed, skies)
    libraries: list[EventLibrary] = []
    frames: tuple[Scene, ...] = ()
    warmth: npt.NDArray[np.float32] | None = None
    labelled: tuple[tuple[stis.StisFrame, stis.Reference], ...] = ()
    if (data / "hst_stis").is_dir():
        folder = data / "hst_stis"
        libraries.append(library_for("stis", split, data))
        known = [stis.read_frame(folder, name) for name in exposures_of(stis.KNOWN_PAIRS)]
        learnt = [frame for frame in known if frame.pair in STIS_PAIRS["training"]]
        reference = stis.build_reference(learnt)
        level = np.median(reference.rate)
        warmth = (reference.rate - level)[np.logical_or.reduce([frame.valid for frame in learnt])]
        if split == "training":
            labelled = tuple((frame, stis.reference_for(frame, known)) for frame in learnt)
    if (data / "lsst_itl_darks").is_dir():
        libraries.append(library_for("itl", split, data))
    if split == "training":  # one field in four epochs: it cannot be split
        frames = tuple(read_wircam(path) for path in sorted((data / "cfht_wircam").glob("*.fits.fz")))
    return Material(sky_seed, skies, tuple(libraries), frames, warmth, labelled)


@dataclass(frozen=True)
class Examples:
    """Patches of one or several frames."""

    channels: npt.NDArray[np.float16]
    """(n, 3, y, x), as the network sees them."""
    hit: npt.NDArray[np.bool_]
    """(n, y, x)"""
    weight: npt.NDArray[np.uint8]
    """(n, y, x) in the loss; 0 where nothing is known."""
    uniform: npt.NDArray[np.bool_]
    """(n,) Whether a patch lies anywhere, and not round a source."""


@dataclass(frozen=True)
class Contaminated:
    """A scene with cosmic rays on it, and its truth."""

    data: npt.NDArray[np.float32]
    """[e-]"""
    error: npt.NDArray[np.float32] | None
    """1 sigma [e-]."""
    ignore: npt.NDArray[np.bool_]
    charge: npt.NDArray[np.float32]
    """Of cosmic rays [e-]."""
    source: npt.NDArray[np.bool_]


def draw_charge(rng: np.random.Generator, material: Material, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return the charge of generated tracks, of real events, of both or of neither [e-]."""
    fraction = 10 ** rng.uniform(-2.6, -1.1)
    charge = np.zeros(shape, dtype=np.float32)
    kind = rng.random()
    if kind < 0.05:
        return charge
    real = bool(material.libraries) and kind > 0.4
    if not real or kind > 0.8:
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
        brightness = 10 ** np.where(rng.random(64) < 0.5, 0.0, rng.uniform(-1.0, 0.2, 64))
        charge += library.scatter(rng, shape, fraction / (2 if kind > 0.8 else 1), brightness=brightness)
    return charge


def contaminate(
    scene: Scene,
    charge: npt.NDArray[np.float32],
    *,
    full_well: float = np.inf,
    flag_saturated: bool = True,
    with_error: bool = True,
) -> Contaminated:
    """Put cosmic rays on a scene: full well, saturation flags, errors from the contaminated counts.

    Parameters
    ----------
    scene : Scene
    charge : float32 array (y, x)
        Of cosmic rays [e-].
    full_well : float
        Charge beyond it is lost, and no longer part of the truth [e-].
    flag_saturated, with_error : bool
        Whether a pipeline has flagged the full pixels, and told the noise of each pixel.
    """
    full = np.float32(full_well)
    data = np.minimum(scene.data + charge, full)
    kept = np.where(charge > 0, data - np.minimum(scene.data, full), 0)
    ignore = scene.ignore | (data >= full) if flag_saturated else scene.ignore.copy()
    noise = np.sqrt(max(scene.sky, 0) + scene.read_noise**2)
    error = None
    if with_error:
        counts = np.maximum(data + scene.hidden_variance, 0)
        error = np.sqrt(counts + np.float32(scene.read_noise**2)).astype(np.float32)
    source = scene.expected - scene.sky > _SOURCE_SIGMA * noise
    return Contaminated(data, error, ignore, kept.astype(np.float32), source)


def draw_frame(rng: np.random.Generator, material: Material, size: int) -> Contaminated:
    """Draw a scene of any kind and put cosmic rays on it."""
    kinds = {"mock": 0.62, "frames": 0.14, "warm": 0.24}
    if not material.frames:
        kinds.pop("frames")
    if material.warmth is None:
        kinds.pop("warm")
    shares = np.array(list(kinds.values()))
    kind = rng.choice(list(kinds), p=shares / shares.sum())
    if kind == "frames":
        scene = cut(rng, material.frames[rng.integers(len(material.frames))], size)
    elif kind == "warm" and material.warmth is not None:
        scene = draw_warm_scene(rng, material.warmth, size)
    else:
        scene = draw_mock_scene(rng, material.seed, int(rng.integers(material.skies)), size)
    return contaminate(
        scene,
        draw_charge(rng, material, scene.data.shape),
        full_well=rng.uniform(5e4, 1.2e5),
        flag_saturated=bool(rng.random() < 0.8),
        with_error=bool(rng.random() < 0.65),
    )


def patches_of_frame(rng: np.random.Generator, frame: Contaminated, patch: int, count: int, box: int) -> Examples:
    """Cut a frame into patches, half of them round a source's pixel where there are any."""
    variance = None if frame.error is None else frame.error**2
    view = view_frame(frame.data, variance, frame.ignore, box=box)
    own = np.maximum(LEAST_CHARGE, LEAST_SIGNIFICANCE * _noise_without(view.variance, frame.charge))
    hit = frame.charge > own
    weight = np.where(frame.source, _SOURCE_WEIGHT, 1).astype(np.uint8)
    weight[frame.ignore] = 0
    return _cut_patches(rng, channels_of(view), hit, weight, frame.source, patch, count)


def _noise_without(variance: npt.NDArray[np.float32], charge: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the noise of pixels as it would be without the Poisson noise of the cosmic rays' charge."""
    return np.sqrt(np.maximum(variance - charge, 1.0)).astype(np.float32)


def patches_of_labelled(
    rng: np.random.Generator, frame: stis.StisFrame, reference: stis.Reference, patch: int, count: int, box: int
) -> Examples:
    """Cut a real frame with truth into patches: with or without its dark, hot pixels flagged or not."""
    data, ignore = frame.image, np.zeros(frame.image.shape, dtype=bool)
    noise = np.maximum(frame.image, 0) + np.float32(frame.sigma**2)
    if rng.random() < 0.5:
        data, noise = frame.image - reference.expected(frame), noise + reference.variance(frame)
    if rng.random() < _FLAGGED_SHARE:
        ignore = reference.hot.copy()
    variance = noise if rng.random() < 0.5 else None
    view = view_frame(data, variance, ignore, box=box)
    weight = (frame.valid & ~ignore).astype(np.uint8)
    seen = channels_of(view)
    mirror = slice(None, None, int(rng.choice([-1, 1])))
    return _cut_patches(
        rng, seen[:, :, mirror], frame.hit[:, mirror], weight[:, mirror], frame.valid[:, mirror], patch, count
    )


def _cut_patches(
    rng: np.random.Generator,
    channels: npt.NDArray[np.float32],
    hit: npt.NDArray[np.bool_],
    weight: npt.NDArray[np.uint8],
    wanted: npt.NDArray[np.bool_],
    patch: int,
    count: int,
) -> Examples:
    ny, nx = hit.shape
    places = np.argwhere(wanted)
    windows = []
    for index in range(count):
        if index % 2 and len(places):
            y, x = places[rng.integers(len(places))] - rng.integers(0, patch, 2)
        else:
            y, x = rng.integers(0, ny - patch + 1), rng.integers(0, nx - patch + 1)
        y, x = int(np.clip(y, 0, ny - patch)), int(np.clip(x, 0, nx - patch))
        windows.append((slice(y, y + patch), slice(x, x + patch)))
    return Examples(
        np.stack([channels[:, rows, columns] for rows, columns in windows]).astype(np.float16),
        np.stack([hit[window] for window in windows]),
        np.stack([weight[window] for window in windows]),
        np.arange(count) % 2 == 0,
    )


def draw_examples(seed: Sequence[int], material: Material, *, size: int, patch: int, count: int, box: int) -> Examples:
    """Draw patches of one frame: a function of the seed and the material.

    Parameters
    ----------
    seed : sequence of int
    material : Material
    size : int
        Of the frame [pixel].
    patch, count : int
        Size and number of patches.
    box : int
        Of the background mesh [pixel].
    """
    rng = np.random.default_rng(list(seed))
    if material.labelled and rng.random() < _LABELLED_SHARE:
        frame, reference = material.labelled[rng.integers(len(material.labelled))]
        return patches_of_labelled(rng, frame, reference, patch, count, box)
    return patches_of_frame(rng, draw_frame(rng, material, size), patch, count, box)


def joined(parts: Sequence[Examples]) -> Examples:
    """Return several sets of patches as one."""
    return Examples(
        np.concatenate([part.channels for part in parts]),
        np.concatenate([part.hit for part in parts]),
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.uniform for part in parts]),
    )
