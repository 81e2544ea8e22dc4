"""Inputs of the prior: telemetry, memory, star lists and image statistics, as padded arrays.

The prior is combined with the fit of the stars by precision, so their errors must be independent. The prior therefore
reads no pixels and no star fluxes directly: only statistics of the image, and properties of the stars without the
level ``ref_mag - inst_mag``, which the fit measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.zeropoint.memory import Memory
from csstdask.zeropoint.prior.image_statistics import IMAGE_STATISTICS, image_statistics
from csstdask.zeropoint.prior.star_lists import STAR_COLUMNS, StarLists

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

TELEMETRY_NAMES = (
    "detector_temperature", "focus", "jitter", "earth_limb_angle", "sun_angle", "background", "days_since_launch",
    "contamination",
)  # fmt: skip
"""Telemetry of an exposure [K, um, arcsec, deg, deg, electron s-1 pixel-1, d, nm]."""


@dataclass(frozen=True)
class PriorInputs:
    """Everything known about n exposures before their own stars are fitted. All of it is causal.

    Attributes
    ----------
    nominal : float64 array (n,)
        Zero point in the description of the camera [AB mag of 1 e-/s]; NaN where unknown.
    days : float64 array (n,)
        Time since J2000 [d].
    telemetry : mapping of str to array (n,)
        Values as reported, NaN in gaps. An absent name is a gap for all exposures.
    memory : Memory, optional
        The last solved zero points, most recent first.
    memory_telemetry : mapping of str to array (n, K), optional
        Telemetry of the exposures in the memory.
    stars : StarLists, optional
        Padded star lists.
    image : array (n, 256, 256) or (n, statistic), optional
        A patch of the image of each exposure [electron s-1 pixel-1], all NaN where there is none; or the values of
        `image_statistics`.
    """

    nominal: Float
    days: Float
    telemetry: Mapping[str, npt.NDArray[Any]]
    memory: Memory | None = None
    memory_telemetry: Mapping[str, npt.NDArray[Any]] | None = None
    stars: StarLists | None = None
    image: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.nominal)

    def take(self, index: Any) -> PriorInputs:
        """Return a subset of the exposures, by mask, slice or index array."""
        memory, history = self.memory, self.memory_telemetry
        return PriorInputs(
            self.nominal[index],
            self.days[index],
            {name: np.asarray(column)[index] for name, column in self.telemetry.items()},
            memory=None if memory is None else Memory(**{name: value[index] for name, value in vars(memory).items()}),
            memory_telemetry=None if history is None else {name: value[index] for name, value in history.items()},
            stars=None if self.stars is None else self.stars.take(index),
            image=None if self.image is None else self.image[index],
        )


@dataclass(frozen=True)
class PriorArrays:
    """Inputs of n exposures in the layout of a network, before normalisation. NaN where unknown.

    Attributes
    ----------
    telemetry : float32 array (n, t)
        Values in the order of the network's telemetry names.
    memory : float64 array (n, K, 3)
        Zero point minus nominal [mag], sigma [mag], age [d].
    memory_telemetry : float32 array (n, K, t)
        Telemetry of the exposures in the memory.
    stars : float32 array (n, m, 7)
        `STAR_COLUMNS`, the nominal zero point added to ``inst_mag``.
    n_stars : float32 array (n,)
        Usable stars of each exposure.
    image : float32 array (n, s)
        `IMAGE_STATISTICS`.
    nominal : float32 array (n,)
        Nominal zero point [mag].
    """

    telemetry: Float32
    memory: Float
    memory_telemetry: Float32
    stars: Float32
    n_stars: Float32
    image: Float32
    nominal: Float32

    def __len__(self) -> int:
        return len(self.telemetry)

    def take(self, index: Any) -> PriorArrays:
        """Return a subset of the exposures, by mask, slice or index array."""
        return PriorArrays(**{name: value[index] for name, value in vars(self).items()})


def concatenate_arrays(parts: Sequence[PriorArrays]) -> PriorArrays:
    """Concatenate the arrays of several sets of exposures; star lists are padded to the longest."""
    longest = max(part.stars.shape[1] for part in parts)
    fields = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("telemetry", "memory", "memory_telemetry", "n_stars", "image", "nominal")
    }
    stars = [
        np.pad(part.stars, ((0, 0), (0, longest - part.stars.shape[1]), (0, 0)), constant_values=np.nan)
        for part in parts
    ]
    return PriorArrays(stars=np.concatenate(stars), **fields)


def prior_arrays(inputs: PriorInputs, telemetry: Sequence[str], *, memory: int) -> PriorArrays:
    """Arrange inputs in the layout of a network.

    Parameters
    ----------
    inputs : PriorInputs
        Inputs of n exposures.
    telemetry : sequence of str
        Names of the network's telemetry, in its order.
    memory : int
        Number K of zero points that the network reads. Older ones are dropped, missing ones padded with NaN.

    Returns
    -------
    PriorArrays
        Arrays of the n exposures.
    """
    n = len(inputs)
    values, history = np.full((n, memory, 3), np.nan), np.full((n, memory, len(telemetry)), np.nan)
    if inputs.memory is not None and memory:
        length = min(memory, inputs.memory.value.shape[1])
        parts = (inputs.memory.value - inputs.nominal[:, None], inputs.memory.sigma, inputs.memory.age)
        values[:, :length] = np.stack(parts, axis=-1)[:, :length]
        usable = np.isfinite(values).all(axis=-1) & (values[..., 1] > 0) & (values[..., 2] >= 0)
        values[~usable] = np.nan
        known = inputs.memory_telemetry or {}
        for k, name in enumerate(telemetry):
            if name in known:
                history[:, :length, k] = np.asarray(known[name], dtype=float)[:, :length]
        history[~usable] = np.nan
    current = np.full((n, len(telemetry)), np.nan)
    for k, name in enumerate(telemetry):
        if name in inputs.telemetry:
            current[:, k] = np.asarray(inputs.telemetry[name], dtype=float)
    lists = inputs.stars or StarLists(np.full((n, 1, len(STAR_COLUMNS)), np.nan, np.float32), np.zeros(n, np.int64))
    stars = lists.values.copy()
    stars[..., 0] += np.nan_to_num(inputs.nominal)[:, None].astype(np.float32)
    return PriorArrays(
        _finite(current), values, _finite(history), stars, lists.count.astype(np.float32),
        stack_image_statistics(inputs), _finite(np.asarray(inputs.nominal)),
    )  # fmt: skip


def _finite(values: npt.NDArray[Any]) -> Float32:
    """Return float32 values, NaN where they are not finite."""
    return np.where(np.isfinite(values), values, np.nan).astype(np.float32)


def stack_image_statistics(inputs: PriorInputs) -> Float32:
    """Return the image statistics of exposures, float32 array (n, statistic); NaN without a usable image."""
    if inputs.image is None:
        return np.full((len(inputs), len(IMAGE_STATISTICS)), np.nan, np.float32)
    if np.ndim(inputs.image) == 2:
        return np.asarray(inputs.image, dtype=np.float32)
    return np.stack([image_statistics(patch) for patch in inputs.image])
