"""Material of training examples: labelled campaigns, event libraries, mock skies and real frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.datasets import stis_1999
from csstdask.datasets.labelled_units import LabelledUnits
from csstdask.datasets.scenes import Scene, read_wircam
from csstdask.mock.event_libraries import (
    STIS_PAIRS,
    EventLibrary,
    load_event_library,
    pair_exposures,
    read_event_library,
)
from csstdask.mock.recipe_tables import Split

#: Folders of real events and frames. Those that are absent are not used.
DATA_FOLDERS = ("hst_stis", "lsst_itl_darks", "cfht_wircam")
#: Kinds of training frames: units of the campaign as they are, the same with their cosmic rays replaced by new ones,
#: units of other campaigns (half of them with new cosmic rays), mock skies of random telescopes, real frames without
#: cosmic rays, darks with real warm pixels, real frames with truth.
Kind = Literal["rendered", "reinjected", "extra_campaigns", "skies", "frames", "warm", "labelled"]
#: Default share of each kind. Kinds without material are left out, and the others share their part.
SHARES: dict[Kind, float] = {
    "rendered": 0.25,
    "reinjected": 0.35,
    "extra_campaigns": 0.2,
    "skies": 0.1,
    "frames": 0.06,
    "warm": 0.12,
    "labelled": 0.12,
}

StisExposure = tuple[stis_1999.StisFrame, stis_1999.StisReference]


@dataclass(frozen=True)
class Material:
    """Source data of the examples of one split."""

    seed: int
    """Seed of the mock skies."""
    skies: int
    """Number of mock skies."""
    libraries: tuple[EventLibrary, ...] = ()
    """Libraries of real cosmic-ray events."""
    frames: tuple[Scene, ...] = ()
    """Real frames without cosmic rays."""
    warm_rates: npt.NDArray[np.float32] | None = None
    """Dark rates of real pixels above their median [e-/s]."""
    labelled: tuple[StisExposure, ...] = ()
    """Real frames with their truth and their reference."""
    campaign: LabelledUnits | None = None
    """Labelled units of the campaign that the model is for."""
    extra_campaigns: tuple[LabelledUnits, ...] = ()
    """Labelled units of other campaigns."""

    def has(self, kind: Kind) -> bool:
        """Return whether frames of a kind can be drawn."""
        available: dict[Kind, bool] = {
            "rendered": self.campaign is not None,
            "reinjected": self.campaign is not None,
            "extra_campaigns": bool(self.extra_campaigns),
            "skies": self.skies > 0,
            "frames": bool(self.frames),
            "warm": self.warm_rates is not None,
            "labelled": bool(self.labelled),
        }
        return available[kind]

    @property
    def identity(self) -> str:
        """Return the SHA-256 of the units, events and other sources that decide the examples."""
        parts = [str(self.sources), "" if self.campaign is None else self.campaign.identity]
        parts += [units.identity for units in self.extra_campaigns]
        parts += [sha256(library.charge.tobytes() + library.weight.tobytes()).hexdigest() for library in self.libraries]
        return sha256(" ".join(parts).encode()).hexdigest()

    @property
    def sources(self) -> list[str]:
        """Return descriptions of the sources, for a model card."""
        parts = ["generated tracks", *(f"{library.name} ({len(library)} events)" for library in self.libraries)]
        campaigns = [units for units in (self.campaign, *self.extra_campaigns) if units is not None]
        parts += [f"{len(units)} units of {units.path.name}" for units in campaigns]
        if self.skies > 0:
            parts.append(f"{self.skies} mock skies")
        if self.frames:
            parts.append(f"{len(self.frames)} WIRCam frames")
        if self.warm_rates is not None:
            parts.append("warm pixels of STIS")
        if self.labelled:
            parts.append(f"STIS frames {', '.join(frame.name for frame, _ in self.labelled)}")
        return parts


def check_data_folder(data: Path) -> None:
    """Raise InputError unless a folder holds at least one of `DATA_FOLDERS`."""
    if not any((data / name).is_dir() for name in DATA_FOLDERS):
        found = "no such folder" if not data.is_dir() else f"none of {', '.join(DATA_FOLDERS)} in it"
        raise InputError(data, found, "a folder of real events and frames")


def load_material(
    split: Split,
    seed: int,
    skies: int,
    data: Path | None,
    *,
    campaign: LabelledUnits | None = None,
    extra_campaigns: Sequence[LabelledUnits] = (),
    events: Sequence[Path] = (),
) -> Material:
    """Load the material of one split. No event, exposure pair or mock sky belongs to two splits.

    Parameters
    ----------
    split : str
        ``training``, ``validation`` or ``test``.
    seed : int
        Seed of the mock skies.
    skies : int
        Number of mock skies.
    data : Path or None
        Folder with some of `DATA_FOLDERS`.
    campaign : LabelledUnits, optional
        Units of the split of the campaign that the model is for.
    extra_campaigns : sequence of LabelledUnits
        Units of the split of other campaigns.
    events : sequence of Path
        Event libraries, as ``csstdask label darks`` writes them.

    Returns
    -------
    Material
    """
    libraries = [read_event_library(path, split) for path in events]
    frames: tuple[Scene, ...] = ()
    warm_rates: npt.NDArray[np.float32] | None = None
    labelled: tuple[StisExposure, ...] = ()
    if data is not None and (data / "hst_stis").is_dir():
        libraries.append(load_event_library("stis", split, data))
        warm_rates, labelled = _load_stis(data / "hst_stis", split)
    if data is not None and (data / "lsst_itl_darks").is_dir():
        libraries.append(load_event_library("itl", split, data))
    if data is not None and split == "training":  # one field in four epochs cannot be split
        frames = tuple(read_wircam(path) for path in sorted((data / "cfht_wircam").glob("*.fits.fz")))
    sky_seed = seed * 10 + list(STIS_PAIRS).index(split)
    return Material(sky_seed, skies, tuple(libraries), frames, warm_rates, labelled, campaign, tuple(extra_campaigns))


def _load_stis(folder: Path, split: Split) -> tuple[npt.NDArray[np.float32], tuple[StisExposure, ...]]:
    """Return the dark rates of warm pixels [e-/s], and the labelled exposures of the split."""
    exposures = [stis_1999.read_frame(folder, name) for name in pair_exposures(stis_1999.DEVELOPMENT_PAIRS)]
    training = [frame for frame in exposures if frame.pair in STIS_PAIRS["training"]]
    reference = stis_1999.build_reference(training)
    valid = np.logical_or.reduce([frame.valid for frame in training])
    rates = (reference.rate - np.median(reference.rate))[valid]
    if split != "training":
        return rates, ()
    return rates, tuple((frame, stis_1999.reference_without_pair(frame, exposures)) for frame in training)
