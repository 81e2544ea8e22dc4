"""Frames whose cosmic rays are known: units of a campaign that has truth.

A mock campaign has it from its simulator; of a real one it comes from repeated exposures (`repeats`). Who wants to
learn repair alone needs neither: what detection finds is hit, and everything else is as it was. Where the campaign
knows what each unit may be used for (``tables/truth_exposures.parquet``), that is kept to: a field is in one split
alone. The validation split is parted by detector, so that stopping and calibrating see different skies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from csstdask.arrays.frame import ElectronFrame
from csstdask.core.errors import InputError
from csstdask.cosmicray.detect import detect
from csstdask.cosmicray.inpaint import inpaint
from csstdask.instrument import Instrument
from csstdask.mock.recipe_tables import Split
from csstdask.nn.models import NO_PSF, find_card
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_truth import label_identity
from csstdask.store.electrons import electrons_per_data_unit, read_electrons
from csstdask.store.shards import read_shard
from csstdask.store.store_metadata import store_kind
from csstdask.store.unit_metadata import UnitMetadata

#: Of so many detectors of a campaign that says nothing of splits, one validates.
_VALIDATES = 5
#: Charge of a pixel that detection finds hit, and that stands no higher than its neighbours [e-].
_TRACE = 1e-3
#: Where truth lies in a campaign: what its simulator knows, or what `csstdask label repeats` believes.
Truth = Literal["truth", "labels"]
#: The same, or what detection finds in the frame itself: enough for repair, not for detection.
RepairTruth = Literal["truth", "labels", "detected"]


@dataclass(frozen=True)
class LabelledFrame:
    """One unit in electrons, as its pipeline handed it over, and its cosmic rays."""

    data: npt.NDArray[np.float32]
    """[e-], sky included."""
    error: npt.NDArray[np.float32]
    """1 sigma [e-]; inf where the weight is 0."""
    ignore: npt.NDArray[np.bool_]
    charge: npt.NDArray[np.float32]
    """Of cosmic rays [e-]; 0 where it is unknown."""
    unknown: npt.NDArray[np.bool_]
    """Where nobody knows whether there is charge."""
    clean: npt.NDArray[np.float32]
    """The same photons and noise without cosmic rays [e-]; of a real frame what is believed of them."""
    read_noise: float
    """[e-]"""


@dataclass(frozen=True)
class LabelledUnits:
    """Units of a campaign with truth."""

    path: Path
    places: tuple[tuple[int, int], ...]
    """(row, column) of each in the campaign's arrays."""
    truth: RepairTruth = "truth"
    """Where it is from."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, int]:
        """Return that of a frame (y, x)."""
        return _campaign(self.path).shape

    @property
    def identity(self) -> str:
        """Return the SHA-256 of what the units were made from, and their labels."""
        digests = [self.metadata(index).digest for index in range(len(self))]
        if self.truth == "labels":
            digests += [label_identity(self.path, row, column) for row, column in self.places]
        if self.truth == "detected":
            digests.append(find_card("cosmicray", "default").identity)
        return sha256(" ".join(digests).encode()).hexdigest()

    @property
    def instrument(self) -> Instrument:
        """Return the one that they are of."""
        return _campaign(self.path).instrument

    def metadata(self, index: int) -> UnitMetadata:
        """Return what the campaign knows of one of them."""
        campaign = _campaign(self.path)
        row, column = self.places[index]
        return campaign.metadata(campaign.exposures[row], campaign.detectors[column])

    def read(self, index: int) -> LabelledFrame:
        """Read one of them."""
        campaign, metadata = _campaign(self.path), self.metadata(index)
        row, column = self.places[index]
        unit = read_electrons(campaign, metadata)
        if self.truth == "detected":
            charge = _detected(unit)
            return LabelledFrame(unit.data, unit.error, unit.ignore, charge, charge > 0, unit.data, metadata.read_noise)
        clean, charge = (read_shard(self.path, f"{self.truth}/{name}", row, column) for name in ("sci", "cr"))
        unknown = np.isnan(charge)
        return LabelledFrame(
            unit.data,
            unit.error,
            unit.ignore,
            np.where(unknown, np.float32(0), charge),
            unknown,
            clean * electrons_per_data_unit(campaign, metadata),
            metadata.read_noise,
        )


def _detected(unit: ElectronFrame) -> npt.NDArray[np.float32]:
    """Return what hit pixels hold above their neighbours' median [e-], at least a trace; 0 of all others."""
    hit = np.asarray(detect(unit.data, unit.error, unit.ignore).mask)
    below = np.asarray(inpaint(unit.data, hit, unit.error, unit.ignore, model="median", psf=NO_PSF).data)
    above = np.maximum(unit.data - below, np.float32(_TRACE))
    return np.where(hit, above, np.float32(0))


@lru_cache(maxsize=4)
def _campaign(path: Path) -> Campaign:
    return Campaign(path)


def select_units(
    path: Path,
    split: Split | None = None,
    *,
    part: tuple[int, int] = (0, 1),
    truth: RepairTruth = "truth",
    detectors: Sequence[int] = (),
    exposures: int | None = None,
) -> LabelledUnits:
    """Return the units of a campaign that belong to a split, with their truth.

    Parameters
    ----------
    path : path
        The campaign.
    split : str, optional
        By default all units. Where the campaign does not say what its exposures are for, each fifth detector
        validates, or of a single one each fifth exposure: exposures of one field share its sky.
    part : (int, int)
        ``(i, n)``: of each n detectors in order, those in place i; of a single one of its exposures.
    truth : str
        ``truth``, ``labels`` for the units that have some, or ``detected`` for what detection finds in imaging units.
    detectors : sequence of int
        Only these; by default all.
    exposures : int, optional
        Only the first so many that learn.

    Raises
    ------
    InputError
        If it is no campaign, has no truth, or nothing of that split.
    """
    if store_kind(path) != "campaign":
        raise InputError(path, "no campaign", "one with truth, as `csstdask mock` writes")
    if truth != "detected" and not all((path / truth / name / "zarr.json").is_file() for name in ("sci", "cr")):
        raise InputError(path, f"a campaign without {truth}", f"one with {truth}/sci and {truth}/cr")
    campaign = _campaign(path)
    columns = [column for column, one in enumerate(campaign.detectors) if not detectors or one in detectors]
    units = [
        (row, column)
        for row in range(len(campaign.exposures))
        for column in columns
        if campaign.present[row, column] and (truth != "labels" or label_identity(path, row, column))
    ]
    if truth == "detected":  # of darks and spectra nothing can be learnt about sources
        metadata = (campaign.metadata(campaign.exposures[row], campaign.detectors[column]) for row, column in units)
        units = [unit for unit, one in zip(units, metadata, strict=True) if one.kind == "imaging"]
    use = _uses(path)
    if split is not None and any(use.values()):
        units = [unit for unit in units if use.get(campaign.exposures[unit[0]]) == split]
    elif split is not None:
        places = _places(units)
        each = min(_VALIDATES, max(places, default=0) + 1)
        held = [place % each == each - 1 for place in places]
        units = [unit for unit, out in zip(units, held, strict=True) if out == (split != "training")]
    if exposures is not None and split == "training":
        first = sorted({row for row, _ in units})[:exposures]
        units = [unit for unit in units if unit[0] in first]
    first_of, each = part
    if len(units) >= each:
        units = [unit for unit, place in zip(units, _places(units), strict=True) if place % each == first_of]
    if not units:
        kind = "imaging exposures" if truth == "detected" else "exposures"
        raise InputError(path, f"no unit for {split}", f"{kind} whose split is {split}")
    return LabelledUnits(path, tuple(units), truth)


def _places(units: Sequence[tuple[int, int]]) -> list[int]:
    """Return which detector in order each unit is of; of a single detector, which exposure."""
    columns = sorted({column for _, column in units})
    return [columns.index(column) for _, column in units] if len(columns) > 1 else list(range(len(units)))


def _uses(path: Path) -> dict[str, str]:
    """Return what a campaign says that its exposures may be used for."""
    table = path / "tables" / "truth_exposures.parquet"
    if not table.is_file():
        return {}
    known = pq.read_table(table, columns=["exposure", "split"]).to_pydict()
    return dict(zip(known["exposure"], known["split"], strict=True))
