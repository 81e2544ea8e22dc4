"""Training examples of repair: stamps of sources with cosmic rays from elsewhere.

Sources are those that the pipeline finds in the frame with its cosmic rays masked; the target is their light in the
frame without cosmic rays. Mask and charge of an event come from elsewhere, moved by up to ten pixels and turned or
reflected (CSST rejection paper, section 2.2). Charge outside the mask stays in the stamp, as in a pipeline.

Frames without truth serve as well (``truth = "detected"``): masks of detections are put on good pixels elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from csstdask.arrays.background import estimate_background
from csstdask.arrays.median import adaptive_median
from csstdask.arrays.sources import find_sources
from csstdask.arrays.stamps import centre_pixels, cut_stamps
from csstdask.cosmicray.inpaint_network import SIZE, Stamps
from csstdask.datasets.labelled_units import LabelledFrame, LabelledUnits

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Side of an event's stamp [pixel]: larger than that of a source, so that the event can be moved and turned.
EVENT_SIZE = 96
#: Largest distance between the centres of event and source along each axis [pixel].
MAX_OFFSET = 10
#: Charge below which a pixel is not in the mask, log-uniform between these limits [sigma of the sky].
MASK_LIMITS = (0.05, 2.0)
#: Smallest charge of a pixel in the mask of a simulated event [e-].
MIN_CHARGE = 1.0
#: Rows between stamps that are stacked into one frame [pixel]: more than the reach of the median.
STAMP_GAP = 6
#: Largest share of a stamp that may be unusable.
MAX_UNUSABLE_SHARE = 0.2


@dataclass(frozen=True)
class Material:
    """Stamps of sources and of cosmic-ray events."""

    light: Image
    """Light of sources above the sky, without cosmic rays [e-], (n, y, x)."""
    noise: Image
    """Noise of the sky [e-], (n,)."""
    unknown: Mask
    """Pixels whose light is unknown, (n, y, x)."""
    charge: Image
    """Charge of events [e-], (m, y, x)."""
    is_detected: bool = False
    """Whether events are detections: their mask then ends where their charge does."""

    def __len__(self) -> int:
        return len(self.light)


def collect_stamps(units: LabelledUnits, sources_per_unit: int, seed: int) -> Material:
    """Cut stamps of sources and events from labelled units.

    Parameters
    ----------
    units : LabelledUnits
        Units.
    sources_per_unit : int
        Largest number of sources per unit: half of them the brightest, the others random. As many events are cut.
    seed : int
        Seed of the choice.

    Returns
    -------
    Material
    """
    is_detected = units.truth == "detected"
    generators = (np.random.default_rng([seed, index]) for index in range(len(units)))
    parts = [
        _collect_from_frame(units.read(index), sources_per_unit, rng, is_detected=is_detected)
        for index, rng in enumerate(generators)
    ]
    return concatenate(parts)


def _collect_from_frame(
    frame: LabelledFrame, sources_per_unit: int, rng: np.random.Generator, *, is_detected: bool
) -> Material:
    hit = frame.charge > 0
    mesh = estimate_background(frame.data, frame.ignore | hit)
    sky, noise = mesh.background_at(), mesh.noise_at()
    sources = find_sources(np.where(frame.ignore, 0, frame.data - sky), noise, frame.ignore | hit)
    order = np.argsort(sources["flux"])[::-1]
    half = sources_per_unit // 2
    chosen = np.concatenate([order[:half], rng.permutation(order[half:])])[:sources_per_unit]
    y, x = centre_pixels(sources["y"][chosen]), centre_pixels(sources["x"][chosen])
    unknown = cut_stamps(frame.ignore | frame.unknown, y, x, SIZE, fill=True)
    light = cut_stamps((frame.clean - sky).astype(np.float32), y, x, SIZE)
    light[unknown] = 0
    usable = unknown.mean(axis=(1, 2)) < MAX_UNUSABLE_SHARE
    pixels = np.argwhere(hit)
    pixels = pixels[rng.integers(len(pixels), size=sources_per_unit)] if len(pixels) else pixels
    charge = cut_stamps(frame.charge, pixels[:, 0], pixels[:, 1], EVENT_SIZE)
    return Material(
        light[usable], noise[y, x].astype(np.float32)[usable], unknown[usable], charge, is_detected=is_detected
    )


def concatenate(parts: Sequence[Material]) -> Material:
    """Return the stamps of several units or campaigns as one, all with the same kind of truth."""
    names = ("light", "noise", "unknown", "charge")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Material(**arrays, is_detected=parts[0].is_detected)


@dataclass(frozen=True)
class Examples:
    """Contaminated stamps and their light."""

    stamps: Stamps
    """Input of the network."""
    light: torch.Tensor
    """Light that hit pixels would have measured, above the sky [e-], float32 (n, y, x)."""

    def to(self, device: torch.device) -> Examples:
        """Return a copy on a device."""
        return Examples(self.stamps.to(device), self.light.to(device))


def draw_batches(material: Material, count: int, batch: int, seed: tuple[int, ...]) -> Iterator[Examples]:
    """Yield batches of examples, a function of the seed.

    Parameters
    ----------
    material : Material
        Stamps of sources and events.
    count : int
        Number of batches.
    batch : int
        Stamps per batch.
    seed : tuple of int
        Seed of all batches.
    """
    for number in range(count):
        yield draw_examples(material, batch, np.random.default_rng([*seed, number]))


def draw_examples(material: Material, count: int, rng: np.random.Generator) -> Examples:
    """Draw contaminated stamps: any event on any source, both turned and reflected, the event moved."""
    chosen, events = rng.integers(len(material), size=count), rng.integers(len(material.charge), size=count)
    light, unknown = material.light[chosen].copy(), material.unknown[chosen].copy()
    charge = np.empty_like(light)
    margin = (EVENT_SIZE - SIZE) // 2
    for index, event in enumerate(events):
        dy, dx = margin + rng.integers(-MAX_OFFSET, MAX_OFFSET + 1, size=2)
        charge[index] = _orient(material.charge[event], int(rng.integers(8)))[dy : dy + SIZE, dx : dx + SIZE]
        orientation = int(rng.integers(8))
        light[index], unknown[index] = _orient(light[index], orientation), _orient(unknown[index], orientation)
    noise = material.noise[chosen]
    low, high = np.log(MASK_LIMITS)
    limit = np.exp(rng.uniform(low, high, size=count)).astype(np.float32) * noise
    min_charge = np.zeros_like(limit) if material.is_detected else np.maximum(limit, MIN_CHARGE)
    hit = (charge > min_charge[:, None, None]) & ~unknown
    return Examples(to_stamps(light + charge, noise, hit, unknown), torch.from_numpy(light))


def _orient(stamp: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Return a stamp in one of its eight orientations."""
    turned = np.rot90(stamp, orientation % 4)
    return turned[::-1] if orientation >= 4 else turned


def to_stamps(height: Image, noise: Image, hit: Mask, unknown: Mask) -> Stamps:
    """Return stamps as a pipeline has them: hit and unknown pixels hold the median of their neighbours.

    Parameters
    ----------
    height : float32 array (n, y, x)
        Measured height above the sky [e-].
    noise : float32 array (n,)
        Noise of the sky [e-].
    hit, unknown : bool arrays (n, y, x)
        Pixels hit by cosmic rays, and pixels whose light is unknown.

    Returns
    -------
    Stamps
    """
    n, ny, nx = height.shape
    gap = [(0, 0), (0, STAMP_GAP), (0, 0)]
    frame, bad = (np.pad(plane, gap).reshape(-1, nx) for plane in (height, hit | unknown))
    donor = np.pad(~(hit | unknown), gap).reshape(-1, nx)
    median, _, _ = adaptive_median(frame, bad, donor)
    filled = frame.copy()
    filled[bad] = np.nan_to_num(median)
    filled = filled.reshape(n, ny + STAMP_GAP, nx)[:, :ny]
    return Stamps(
        torch.from_numpy(np.ascontiguousarray(filled, dtype=np.float32)),
        torch.from_numpy(np.broadcast_to(noise[:, None, None], height.shape).astype(np.float32)),
        torch.from_numpy(hit),
        torch.from_numpy(unknown),
    )
