"""Training examples: a scene, cosmic rays on it, and what the network is to say about each pixel.

A frame is composed as a detector would gather it, looked at through the same function as in detection
(``view.view_frame``), and cut into patches, half of them on sources. Everything is drawn from a generator that
is handed in, so that an example is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from csstdask.arrays.frame import poisson_variance
from csstdask.arrays.morphology import dilate
from csstdask.core.errors import InputError
from csstdask.cosmicray.preprocess import prepare_frame
from csstdask.cosmicray.unet import network_channels
from csstdask.datasets import stis_1999
from csstdask.datasets.labelled_units import LabelledFrame, LabelledUnits
from csstdask.datasets.scenes import Scene, cut, draw_dark_scene, draw_mock_scene, read_wircam
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.event_libraries import (
    STIS_PAIRS,
    EventLibrary,
    load_event_library,
    pair_exposures,
    read_event_library,
)
from csstdask.mock.recipe_tables import CosmicRays, Split

#: How far above the sky a source's pixels begin [sigma].
_SOURCE_SIGMA = 3.0
#: Of patches on sources, every other one is centred on a pixel so bright, where there are any [sigma].
_BRIGHT_SIGMA = 30.0
#: Share of pixels that cosmic rays hit in drawn examples, uniform in its logarithm.
_DENSITY = (0.0025, 0.15)
#: Share of other campaigns' units that keep their own cosmic rays.
_AS_RENDERED = 0.5
#: Folders of real events and frames; those that are absent are done without.
SETS = ("hst_stis", "lsst_itl_darks", "cfht_wircam")
#: Of real frames with truth, how many have their hot pixels flagged.
_FLAGGED_SHARE = 0.5
#: Kinds of frames, and how often each is drawn where there is material for it: units of a campaign as they were
#: rendered, the same without their cosmic rays and with new ones, units of other campaigns (both kinds alike), mock
#: skies of any telescope, real frames without cosmic rays, darks with real warm pixels, real frames with truth.
Kind = Literal["rendered", "rehit", "others", "skies", "frames", "warm", "labelled"]
SHARES: dict[Kind, float] = {
    "rendered": 0.25, "rehit": 0.35, "others": 0.2, "skies": 0.1, "frames": 0.06, "warm": 0.12, "labelled": 0.12,
}  # fmt: skip


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
    labelled: tuple[tuple[stis_1999.StisFrame, stis_1999.StisReference], ...] = ()
    """Real frames with cosmic rays and their truth."""
    known: LabelledUnits | None = None
    """Units of a campaign with truth."""
    others: tuple[LabelledUnits, ...] = ()
    """Those of other campaigns, of which the network is not to be the model."""

    def has(self, kind: Kind) -> bool:
        """Tell whether frames of a kind can be drawn."""
        there = {
            "rendered": self.known is not None, "rehit": self.known is not None, "others": bool(self.others),
            "skies": self.skies > 0,
            "frames": bool(self.frames), "warm": self.warmth is not None, "labelled": bool(self.labelled),
        }  # fmt: skip
        return there[kind]

    @property
    def identity(self) -> str:
        """Return the SHA-256 of what decides examples besides the settings: units, events, and what else there is."""
        parts = [str(self.sources), "" if self.known is None else self.known.identity]
        parts += [units.identity for units in self.others]
        parts += [sha256(library.charge.tobytes() + library.weight.tobytes()).hexdigest() for library in self.libraries]
        return sha256(" ".join(parts).encode()).hexdigest()

    @property
    def sources(self) -> list[str]:
        """Return what it is made of, for a model card."""
        parts = ["generated tracks", *(f"{library.name} ({len(library)} events)" for library in self.libraries)]
        campaigns = [units for units in (self.known, *self.others) if units is not None]
        scenes = [f"{len(units)} units of {units.path.name}" for units in campaigns]
        scenes += [f"{self.skies} mock skies"] * (self.skies > 0)
        scenes += [f"{len(self.frames)} WIRCam frames"] * bool(self.frames)
        scenes += ["warm pixels of STIS"] * (self.warmth is not None)
        labelled = [f"STIS frames {', '.join(frame.name for frame, _ in self.labelled)}"] * bool(self.labelled)
        return [*parts, *scenes, *labelled]


def check_data_folder(data: Path) -> None:
    """Raise InputError unless a folder holds one of the sets of real events and frames."""
    if not any((data / name).is_dir() for name in SETS):
        found = "no such folder" if not data.is_dir() else f"none of {', '.join(SETS)} in it"
        raise InputError(data, found, "a folder of real events and frames")


def load_material(
    split: Split,
    seed: int,
    skies: int,
    data: Path | None,
    *,
    known: LabelledUnits | None = None,
    others: Sequence[LabelledUnits] = (),
    events: Sequence[Path] = (),
) -> Material:
    """Return the material of a split (``training``, ``validation`` or ``test``).

    Parameters
    ----------
    split : str
        No event, exposure pair or mock sky is in two of them.
    seed, skies : int
        Of the mock skies, and how many.
    data : Path, optional
        Folder with some of `SETS`.
    known : KnownUnits, optional
        Those of the split, of a campaign with truth.
    others : sequence of KnownUnits
        The same of other campaigns.
    events : sequence of Path
        Libraries of events, as ``csstdask label darks`` writes them.
    """
    sky_seed = seed * 10 + list(STIS_PAIRS).index(split)
    libraries = [read_event_library(path, split) for path in events]
    if data is None:
        return Material(sky_seed, skies, tuple(libraries), known=known, others=tuple(others))
    frames: tuple[Scene, ...] = ()
    warmth: npt.NDArray[np.float32] | None = None
    labelled: tuple[tuple[stis_1999.StisFrame, stis_1999.StisReference], ...] = ()
    if (data / "hst_stis").is_dir():
        folder = data / "hst_stis"
        libraries.append(load_event_library("stis", split, data))
        pairs = [stis_1999.read_frame(folder, name) for name in pair_exposures(stis_1999.DEVELOPMENT_PAIRS)]
        learnt = [frame for frame in pairs if frame.pair in STIS_PAIRS["training"]]
        reference = stis_1999.build_reference(learnt)
        level = np.median(reference.rate)
        warmth = (reference.rate - level)[np.logical_or.reduce([frame.valid for frame in learnt])]
        if split == "training":
            labelled = tuple((frame, stis_1999.reference_without_pair(frame, pairs)) for frame in learnt)
    if (data / "lsst_itl_darks").is_dir():
        libraries.append(load_event_library("itl", split, data))
    if split == "training":  # one field in four epochs: it cannot be split
        frames = tuple(read_wircam(path) for path in sorted((data / "cfht_wircam").glob("*.fits.fz")))
    return Material(sky_seed, skies, tuple(libraries), frames, warmth, labelled, known, tuple(others))


@dataclass(frozen=True)
class Examples:
    """Patches of one or several frames."""

    channels: npt.NDArray[np.float32]
    """(n, 3, y, x), as the network sees them."""
    hit: npt.NDArray[np.bool_]
    """(n, y, x)"""
    weight: npt.NDArray[np.uint8]
    """(n, y, x) in the loss; 0 where nothing is known."""
    uniform: npt.NDArray[np.bool_]
    """(n,) Whether a patch lies anywhere, and not round a source."""
    density: npt.NDArray[np.float32]
    """(n,) Share of pixels that are hit, in the frame that a patch is of."""


@dataclass(frozen=True)
class ContaminatedFrame:
    """A scene with cosmic rays on it, and its truth."""

    data: npt.NDArray[np.float32]
    """[e-]"""
    error: npt.NDArray[np.float32] | None
    """1 sigma [e-]."""
    ignore: npt.NDArray[np.bool_]
    charge: npt.NDArray[np.float32]
    """Of cosmic rays [e-]."""
    source: npt.NDArray[np.bool_]
    bright: npt.NDArray[np.bool_]
    unknown: npt.NDArray[np.bool_]
    """Where nobody knows whether there is charge."""


def draw_charge(
    rng: np.random.Generator, material: Material, shape: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the charge of generated tracks, of real events, of both or of neither [e-], and where it is unknown.

    Real events were cut off where they sank into their detector's noise: of the pixels round them nothing is known.
    """
    fraction = 10 ** rng.uniform(*np.log10(_DENSITY))
    charge = np.zeros(shape, dtype=np.float32)
    unknown = np.zeros(shape, dtype=bool)
    kind = rng.random()
    if kind < 0.05:
        return charge, unknown
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
        events = library.scatter(rng, shape, fraction / (2 if kind > 0.8 else 1), brightness=brightness)
        unknown = dilate(events > 0) & (charge + events == 0)
        charge += events
    return charge, unknown


def add_cosmic_rays(
    scene: Scene,
    charge: npt.NDArray[np.float32],
    *,
    full_well: float = np.inf,
    flag_saturated: bool = True,
    with_error: bool = True,
    unknown: npt.NDArray[np.bool_] | None = None,
) -> ContaminatedFrame:
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
    unknown : bool array (y, x), optional
        Where nobody knows whether there is charge.
    """
    full = np.float32(full_well)
    data = np.minimum(scene.data + charge, full)
    kept = np.where(charge > 0, data - np.minimum(scene.data, full), 0)
    ignore = scene.ignore | (data >= full) if flag_saturated else scene.ignore.copy()
    error = None
    if with_error:
        variance = poisson_variance(data + scene.unreported_variance, float(scene.read_noise))
        error = np.sqrt(variance).astype(np.float32)
    if unknown is None:
        unknown = np.zeros(data.shape, dtype=bool)
    return ContaminatedFrame(data, error, ignore, kept.astype(np.float32), *_sources_of(scene), unknown)


def remove_cosmic_rays(frame: LabelledFrame) -> Scene:
    """Return a known frame without its cosmic rays."""
    sky = float(np.median(frame.clean[~frame.ignore]))
    return Scene(frame.clean, gaussian_filter(frame.clean, 1.0), sky, frame.read_noise, frame.ignore)


def from_labelled_frame(frame: LabelledFrame) -> ContaminatedFrame:
    """Return a known frame with its own cosmic rays: what they did to the detector included."""
    sources = _sources_of(remove_cosmic_rays(frame))
    return ContaminatedFrame(frame.data, frame.error, frame.ignore, frame.charge, *sources, frame.unknown)


def _sources_of(scene: Scene) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which pixels are a source's, and which a bright source's."""
    noise = np.sqrt(max(scene.sky, 0) + scene.read_noise**2)
    above = scene.expected - scene.sky
    return above > _SOURCE_SIGMA * noise, above > _BRIGHT_SIGMA * noise


def draw_frame(rng: np.random.Generator, material: Material, kind: Kind, size: int) -> ContaminatedFrame:
    """Draw a scene of a kind and put cosmic rays on it."""
    uncertain: npt.NDArray[np.bool_] | None = None
    if kind in ("rendered", "rehit", "others"):
        units = material.others[rng.integers(len(material.others))] if kind == "others" else material.known
        if units is None:
            raise ValueError(f"{kind}: no campaign")
        frame = units.read(int(rng.integers(len(units))))
        if kind == "rendered" or (kind == "others" and rng.random() < _AS_RENDERED):
            return from_labelled_frame(frame)
        scene, uncertain = remove_cosmic_rays(frame), frame.unknown
    elif kind == "frames":
        scene = cut(rng, material.frames[rng.integers(len(material.frames))], size)
    elif kind == "warm" and material.warmth is not None:
        scene = draw_dark_scene(rng, material.warmth, size)
    else:
        scene = draw_mock_scene(rng, material.seed, int(rng.integers(material.skies)), size)
    charge, unknown = draw_charge(rng, material, scene.data.shape)
    if uncertain is not None:
        unknown |= uncertain
    return add_cosmic_rays(
        scene,
        charge,
        full_well=rng.uniform(5e4, 1.2e5),
        flag_saturated=bool(rng.random() < 0.8),
        with_error=bool(rng.random() < 0.65),
        unknown=unknown,
    )


@dataclass(frozen=True)
class PatchSettings:
    """How frames are cut into patches, and what a pixel of them weighs."""

    patch: int = 256
    """Side [pixel]."""
    count: int = 12
    """Patches of a frame."""
    on_sources: float = 0.5
    """Share of them on sources, where there are any."""
    source_weight: int = 5
    """Of a source's pixels in the loss."""
    box: int = 128
    """Of the background mesh [pixel]."""
    hit_above: float = 1.0
    """Charge above which a pixel counts as hit [e-]."""


def cut_patches(rng: np.random.Generator, frame: ContaminatedFrame, cutting: PatchSettings) -> Examples:
    """Cut a frame into patches, some of them on sources where there are any."""
    view = prepare_frame(frame.data, frame.error, frame.ignore, box=cutting.box)
    hit = frame.charge > cutting.hit_above
    weight = np.where(frame.source, cutting.source_weight, 1).astype(np.uint8)
    weight[frame.ignore | frame.unknown] = 0
    return _cut_patches(rng, network_channels(view), hit, weight, (frame.source, frame.bright), cutting)


def cut_stis_patches(
    rng: np.random.Generator, frame: stis_1999.StisFrame, reference: stis_1999.StisReference, cutting: PatchSettings
) -> Examples:
    """Cut a real frame with truth into patches: with or without its dark, hot pixels flagged or not."""
    data, ignore = frame.image, np.zeros(frame.image.shape, dtype=bool)
    noise = poisson_variance(frame.image, float(frame.sigma))
    if rng.random() < 0.5:
        data, noise = frame.image - reference.expected(frame), noise + reference.variance(frame)
    if rng.random() < _FLAGGED_SHARE:
        ignore = reference.hot.copy()
    error = np.sqrt(noise) if rng.random() < 0.5 else None
    view = prepare_frame(data, error, ignore, box=cutting.box)
    skirt = dilate(frame.hit) & ~frame.hit  # cut off at 3 sigma: beyond, nobody knows
    weight = (frame.valid & ~ignore & ~skirt).astype(np.uint8)
    seen = network_channels(view)
    mirror = slice(None, None, int(rng.choice([-1, 1])))
    return _cut_patches(
        rng, seen[:, :, mirror], frame.hit[:, mirror], weight[:, mirror], (frame.valid[:, mirror],), cutting
    )


def _cut_patches(
    rng: np.random.Generator,
    channels: npt.NDArray[np.float32],
    hit: npt.NDArray[np.bool_],
    weight: npt.NDArray[np.uint8],
    wanted: tuple[npt.NDArray[np.bool_], ...],
    cutting: PatchSettings,
) -> Examples:
    """Cut patches: the first ones anywhere, the others round one of the wanted places, kinds in turn."""
    (ny, nx), patch, count = hit.shape, cutting.patch, cutting.count
    anywhere = count - round(count * cutting.on_sources)
    places = [found for found in (np.argwhere(kind) for kind in wanted) if len(found)]
    windows = []
    for index in range(count):
        if index >= anywhere and places:
            among = places[index % len(places)]
            y, x = among[rng.integers(len(among))] - rng.integers(0, patch, 2)
        else:
            y, x = rng.integers(0, ny - patch + 1), rng.integers(0, nx - patch + 1)
        y, x = int(np.clip(y, 0, ny - patch)), int(np.clip(x, 0, nx - patch))
        windows.append((slice(y, y + patch), slice(x, x + patch)))
    return Examples(
        np.stack([channels[:, rows, columns] for rows, columns in windows]).astype(np.float32, copy=False),
        np.stack([hit[window] for window in windows]),
        np.stack([weight[window] for window in windows]),
        np.arange(count) < anywhere,
        np.full(count, hit.mean(), dtype=np.float32),
    )


def draw_examples(
    seed: Sequence[int], material: Material, shares: Mapping[Kind, float], size: int, cutting: PatchSettings
) -> Examples:
    """Draw patches of one frame: a function of the seed and the material.

    Parameters
    ----------
    seed : sequence of int
    material : Material
    shares : mapping
        How often each kind of frame is drawn; kinds without material are left out.
    size : int
        Of the frame, where it has not a size of its own [pixel].
    cutting : Cutting
    """
    rng = np.random.default_rng(list(seed))
    kinds = [kind for kind, share in shares.items() if share > 0 and material.has(kind)]
    share = np.array([shares[kind] for kind in kinds])
    kind = kinds[rng.choice(len(kinds), p=share / share.sum())]
    if kind == "labelled":
        frame, reference = material.labelled[rng.integers(len(material.labelled))]
        return cut_stis_patches(rng, frame, reference, cutting)
    return cut_patches(rng, draw_frame(rng, material, kind, size), cutting)


def joined(parts: Sequence[Examples]) -> Examples:
    """Return several sets of patches as one."""
    names = [one.name for one in fields(Examples)]
    return Examples(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
