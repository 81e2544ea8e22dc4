"""Training examples: frames cut into patches, with network channels, truth and loss weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from csstdask.arrays.morphology import dilate
from csstdask.cosmicray.preprocess import NOISE_CORRELATION, PreparedFrame, prepare_frame
from csstdask.cosmicray.unet import network_channels
from csstdask.datasets.stis_1999 import StisFrame, StisReference
from csstdask.training.cosmicray.frames import ContaminatedFrame, draw_frame, resample
from csstdask.training.cosmicray.material import Kind, Material

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Share of frames whose conditions are withheld, so that the network also works without them.
UNKNOWN_CONDITIONS_SHARE = 0.1
#: Share of STIS frames whose dark is subtracted, whose hot pixels are flagged, and that come with errors.
STIS_OPTION_SHARE = 0.5


@dataclass(frozen=True)
class PatchSettings:
    """Settings by which frames are cut into patches, and the weights of pixels."""

    patch: int = 256
    """Side of a patch [pixel]."""
    count: int = 12
    """Patches per frame."""
    source_patch_fraction: float = 0.5
    """Fraction of the patches that are placed on sources, if the frame has any."""
    source_weight: int = 5
    """Weight of the pixels of sources in the loss."""
    box: int = 128
    """Box of the background mesh [pixel]."""
    hit_threshold: float = 1.0
    """Charge above which a pixel counts as hit [e-]."""
    resampled_fraction: float = 0.0
    """Fraction of the frames that are resampled."""
    conditions: tuple[str, ...] = ()
    """Conditions of the frame that the network is given."""


@dataclass(frozen=True)
class Examples:
    """Patches of one or several frames."""

    channels: Image
    """Input of the network (n, channel, y, x)."""
    hit: Mask
    """Pixels with more charge of cosmic rays than the threshold of a hit (n, y, x)."""
    charged: Mask
    """Pixels with any charge of cosmic rays (n, y, x)."""
    weight: npt.NDArray[np.uint8]
    """Weight in the loss (n, y, x); 0 where the truth is unknown."""
    uniform: Mask
    """Whether the position of a patch is random, and not chosen on a source (n,)."""
    density: Image
    """Fraction of hit pixels in the frame of a patch (n,)."""
    conditions: Image
    """Conditions of the frame of a patch (n, condition)."""
    in_domain: Mask
    """Whether a teacher can be expected to know such frames (n,)."""


def draw_examples(
    seed: Sequence[int], material: Material, shares: Mapping[Kind, float], size: int, settings: PatchSettings
) -> Examples:
    """Draw one frame and cut it into patches.

    Parameters
    ----------
    seed : sequence of int
        Seed of the frame. Examples are a function of the seed and the material.
    material : Material
        Source data of the frames.
    shares : mapping
        Relative frequency of each kind of frame. Kinds without material are left out.
    size : int
        Side of drawn frames [pixel]; units of campaigns and STIS frames keep their own shape.
    settings : PatchSettings
        How the frame is cut.

    Returns
    -------
    patches : Examples
        ``settings.count`` patches.
    """
    rng = np.random.default_rng(list(seed))
    kinds = [kind for kind, share in shares.items() if share > 0 and material.has(kind)]
    share = np.array([shares[kind] for kind in kinds])
    kind = kinds[rng.choice(len(kinds), p=share / share.sum())]
    if kind == "labelled":
        frame, reference = material.labelled[rng.integers(len(material.labelled))]
        return cut_stis_patches(rng, frame, reference, settings)
    drawn = draw_frame(rng, material, kind, size)
    if rng.random() < settings.resampled_fraction:
        drawn = resample(rng, drawn)
    return cut_patches(rng, drawn, settings)


def cut_patches(rng: np.random.Generator, frame: ContaminatedFrame, settings: PatchSettings) -> Examples:
    """Cut a frame into patches, some of them on sources if it has any."""
    prepared = prepare_frame(frame.data, frame.error, frame.ignore, box=settings.box)
    hit = frame.charge > settings.hit_threshold
    weight = np.where(frame.source, settings.source_weight, 1).astype(np.uint8)
    weight[frame.ignore | frame.unknown] = 0
    targets = (frame.source, frame.bright)
    return _cut(rng, prepared, (hit, frame.charge > 0), weight, targets, settings, in_domain=frame.in_domain)


def cut_stis_patches(
    rng: np.random.Generator, frame: StisFrame, reference: StisReference, settings: PatchSettings
) -> Examples:
    """Cut a STIS frame into patches, with random preprocessing and a random reflection in x."""
    data, ignore = frame.image, np.zeros(frame.image.shape, dtype=bool)
    variance = np.maximum(frame.image, 0) + np.float32(frame.sigma**2)
    if rng.random() < STIS_OPTION_SHARE:
        data, variance = frame.image - reference.expected(frame), variance + reference.variance(frame)
    if rng.random() < STIS_OPTION_SHARE:
        ignore = reference.hot.copy()
    error = np.sqrt(variance) if rng.random() < STIS_OPTION_SHARE else None
    prepared = prepare_frame(data, error, ignore, box=settings.box)
    # The truth ends at 3 sigma: the neighbours of hit pixels may hold charge, too.
    border = dilate(frame.hit) & ~frame.hit
    weight = (frame.valid & ~ignore & ~border).astype(np.uint8)
    step = int(rng.choice([-1, 1]))
    return _cut(rng, prepared, (frame.hit, frame.hit), weight, (frame.valid,), settings, step=step)


def _cut(
    rng: np.random.Generator,
    prepared: PreparedFrame,
    truth: tuple[Mask, Mask],
    weight: npt.NDArray[np.uint8],
    targets: tuple[Mask, ...],
    settings: PatchSettings,
    *,
    step: int = 1,
    in_domain: bool = True,
) -> Examples:
    """Cut patches: the first ones at random positions, the others on pixels of the target masks in turn.

    The truth consists of `Examples.hit` and `Examples.charged`. With ``step = -1`` the frame is reflected in x.
    """
    knows_correlation = NOISE_CORRELATION in settings.conditions
    channels = network_channels(prepared, lower_significance=not knows_correlation)[..., ::step]
    (hit, charged), weight = (plane[:, ::step] for plane in truth), weight[:, ::step]
    targets = tuple(mask[:, ::step] for mask in targets)
    conditions = np.array(prepared.conditions(settings.conditions), dtype=np.float32)
    if rng.random() < UNKNOWN_CONDITIONS_SHARE:
        conditions[:] = 0
    (ny, nx), patch, count = hit.shape, settings.patch, settings.count
    n_random = count - round(count * settings.source_patch_fraction)
    target_pixels = [pixels for pixels in (np.argwhere(mask) for mask in targets) if len(pixels)]
    windows = []
    for index in range(count):
        if index >= n_random and target_pixels:
            pixels = target_pixels[index % len(target_pixels)]
            y, x = pixels[rng.integers(len(pixels))] - rng.integers(0, patch, 2)
        else:
            y, x = rng.integers(0, ny - patch + 1), rng.integers(0, nx - patch + 1)
        y, x = int(np.clip(y, 0, ny - patch)), int(np.clip(x, 0, nx - patch))
        windows.append((slice(y, y + patch), slice(x, x + patch)))
    return Examples(
        np.stack([channels[:, rows, columns] for rows, columns in windows]).astype(np.float32, copy=False),
        np.stack([hit[window] for window in windows]),
        np.stack([charged[window] for window in windows]),
        np.stack([weight[window] for window in windows]),
        np.arange(count) < n_random,
        np.full(count, hit.mean(), dtype=np.float32),
        np.tile(conditions, (count, 1)),
        np.full(count, in_domain),
    )


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Return several sets of patches as one."""
    names = [one.name for one in fields(Examples)]
    return Examples(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
