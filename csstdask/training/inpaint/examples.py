"""Examples of repair: stamps of sources without cosmic rays, and cosmic rays from elsewhere moved onto them.

Any exposure with known cosmic rays gives both. Sources are those that the pipeline itself finds in the contaminated
frame, its cosmic rays masked; their light is that of the frame without them, and so is what the network is to say. A
mask and its charge come from another place of some frame, moved by up to ten pixels, mirrored and turned (CSST
rejection paper, section 2.2). What a mask leaves out of an event's skirt stays in the stamp, as it does in a pipeline.
Frames of which nobody knows the truth teach as well: masks of what detection finds in one place are laid on good pixels
of another, and these are what is to be said (``truth = "detected"``).
"""

from __future__ import annotations

from collections.abc import Iterator
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

#: An event's stamp is larger than a source's, so that it can be moved and turned.
_EVENT_SIZE = 96
#: Farthest that an event's middle lies from a source's, along each axis [pixel].
_FARTHEST = 10
#: A mask ends where charge falls below this, log-uniform between [sigma of the sky].
_MASK_ENDS = (0.05, 2.0)
#: Rows between stamps that are stacked into one frame: farther than any donor.
_APART = 6
#: Share of a stamp that may be unusable.
_MOST_IGNORED = 0.2


@dataclass(frozen=True)
class Material:
    """Stamps of sources, and of events, of many units."""

    light: Image
    """(n, y, x) above the sky, as measured without cosmic rays [e-]."""
    noise: Image
    """(n,) Of the sky [e-]."""
    unknown: Mask
    """(n, y, x)"""
    charge: Image
    """(m, y, x) Of events from anywhere [e-]."""
    as_found: bool = False
    """Whether an event is what detection found: its mask then ends where its charge does."""

    def __len__(self) -> int:
        return len(self.light)


def gather(units: LabelledUnits, each: int, seed: int) -> Material:
    """Return the material of units.

    Parameters
    ----------
    units : KnownUnits
    each : int
        Sources of a unit, at most, half of them the brightest, the others drawn from the rest; and as many events.
    seed : int
    """
    parts = [_of_unit(units.read(index), each, np.random.default_rng([seed, index])) for index in range(len(units))]
    light, noise, unknown, charge = (np.concatenate(planes) for planes in zip(*parts, strict=True))
    return Material(light, noise, unknown, charge, as_found=units.truth == "detected")


def _of_unit(frame: LabelledFrame, each: int, rng: np.random.Generator) -> tuple[Image, Image, Mask, Image]:
    hit = frame.charge > 0
    mesh = estimate_background(frame.data, frame.ignore | hit)
    sky, noise = mesh.background_at(), mesh.noise_at()
    found = find_sources(np.where(frame.ignore, 0, frame.data - sky), noise, frame.ignore | hit)
    order = np.argsort(found["flux"])[::-1]
    chosen = np.concatenate([order[: each // 2], rng.permutation(order[each // 2 :])])[:each]
    y, x = centre_pixels(found["y"][chosen]), centre_pixels(found["x"][chosen])
    unknown = cut_stamps(frame.ignore | frame.unknown, y, x, SIZE, fill=True)
    light = cut_stamps((frame.clean - sky).astype(np.float32), y, x, SIZE)
    light[unknown] = 0
    usable = unknown.mean(axis=(1, 2)) < _MOST_IGNORED
    places = np.argwhere(hit)
    places = places[rng.integers(len(places), size=each)] if len(places) else places
    charge = cut_stamps(frame.charge, places[:, 0], places[:, 1], _EVENT_SIZE)
    return light[usable], noise[y, x].astype(np.float32)[usable], unknown[usable], charge


@dataclass(frozen=True)
class Examples:
    """Contaminated stamps and what is to be said of them."""

    stamps: Stamps
    light: torch.Tensor
    """float32 (n, y, x): what hit pixels would have measured, above the sky [e-]."""

    def to(self, device: torch.device) -> Examples:
        """Return them on a device."""
        return Examples(self.stamps.to(device), self.light.to(device))


def draw(material: Material, count: int, rng: np.random.Generator) -> Examples:
    """Draw contaminated stamps: any event on any source, mirrored, turned and moved."""
    chosen, events = rng.integers(len(material), size=count), rng.integers(len(material.charge), size=count)
    light, unknown = material.light[chosen].copy(), material.unknown[chosen].copy()
    charge = np.empty_like(light)
    middle = (_EVENT_SIZE - SIZE) // 2
    for index, event in enumerate(events):
        dy, dx = middle + rng.integers(-_FARTHEST, _FARTHEST + 1, size=2)
        charge[index] = _turned(material.charge[event], int(rng.integers(8)))[dy : dy + SIZE, dx : dx + SIZE]
        how = int(rng.integers(8))
        light[index], unknown[index] = _turned(light[index], how), _turned(unknown[index], how)
    noise = material.noise[chosen]
    low, high = np.log(_MASK_ENDS)
    ends = np.exp(rng.uniform(low, high, size=count)).astype(np.float32) * noise
    least = np.zeros_like(ends) if material.as_found else np.maximum(ends, 1.0)
    hit = (charge > least[:, None, None]) & ~unknown
    return Examples(to_stamps(light + charge, noise, hit, unknown), torch.from_numpy(light))


def _turned(stamp: npt.NDArray[Any], how: int) -> npt.NDArray[Any]:
    """Return a stamp in one of its eight orientations."""
    turned = np.rot90(stamp, how % 4)
    return turned[::-1] if how >= 4 else turned


def to_stamps(height: Image, noise: Image, hit: Mask, unknown: Mask) -> Stamps:
    """Return stamps whose hit and unknown pixels hold the median of their neighbours, as a frame's would.

    Parameters
    ----------
    height : float32 array (n, y, x)
        Above the sky, as measured [e-].
    noise : float32 array (n,)
        Of the sky [e-].
    hit, unknown : bool arrays (n, y, x)
    """
    n, ny, nx = height.shape
    gap = [(0, 0), (0, _APART), (0, 0)]
    frame, bad = (np.pad(plane, gap).reshape(-1, nx) for plane in (height, hit | unknown))
    donor = np.pad(~(hit | unknown), gap).reshape(-1, nx)
    median, _, _ = adaptive_median(frame, bad, donor)
    filled = frame.copy()
    filled[bad] = np.nan_to_num(median)
    filled = filled.reshape(n, ny + _APART, nx)[:, :ny]
    return Stamps(
        torch.from_numpy(np.ascontiguousarray(filled, dtype=np.float32)),
        torch.from_numpy(np.broadcast_to(noise[:, None, None], height.shape).astype(np.float32)),
        torch.from_numpy(hit),
        torch.from_numpy(unknown),
    )


def batches(material: Material, count: int, batch: int, seed: tuple[int, ...]) -> Iterator[Examples]:
    """Yield `count` batches: a function of the seed."""
    for number in range(count):
        yield draw(material, batch, np.random.default_rng([*seed, number]))
