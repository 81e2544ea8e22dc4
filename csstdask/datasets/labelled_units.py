"""Units of a campaign whose cosmic rays are known, for trainings and evaluations.

In a mock campaign the truth is the simulator's; in a real one it comes from labels of repeated exposures
(`csstdask.training.labels`). For trainings of repair the detections in the frames are enough.

Where the campaign assigns its exposures to splits (``tables/truth_exposures.parquet``), the assignment is used: a field
is in one split only. The validation split is divided by detector, so that early stopping and calibration see different
skies.
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

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
#: Row and column of a unit in the arrays of its campaign.
UnitIndex = tuple[int, int]
#: Source of the truth of a campaign: its simulator, or `csstdask label repeats`.
Truth = Literal["truth", "labels"]
#: The same, or the detections in the frame itself: enough for repair, not for detection.
RepairTruth = Literal["truth", "labels", "detected"]

#: Without assigned splits, one of this many detectors validates.
VALIDATION_INTERVAL = 5
#: Smallest charge of a detected pixel, also if it is not above its neighbours [e-].
MIN_DETECTED_CHARGE = 1e-3


@dataclass(frozen=True)
class LabelledFrame:
    """One unit in electrons, with its cosmic rays. All arrays are (y, x)."""

    data: Image
    """Counts, sky included [e-]."""
    error: Image
    """1 sigma [e-]; inf where the weight is 0."""
    ignore: Mask
    """Unusable pixels."""
    charge: Image
    """Charge of cosmic rays [e-]; 0 where it is unknown."""
    unknown: Mask
    """Pixels whose charge is unknown."""
    clean: Image
    """The same photons and noise without cosmic rays [e-]; an estimate in a real frame."""
    read_noise: float
    """Read noise [e-]."""


@dataclass(frozen=True)
class LabelledUnits:
    """Units of a campaign with their truth."""

    path: Path
    """Path of the campaign."""
    indices: tuple[UnitIndex, ...]
    """Row and column of each unit in the arrays of the campaign."""
    truth: RepairTruth = "truth"
    """Source of the truth."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape (y, x) of the frames."""
        return _open(self.path).shape

    @property
    def instrument(self) -> Instrument:
        """Return the instrument of the campaign."""
        return _open(self.path).instrument

    @property
    def identity(self) -> str:
        """Return the SHA-256 of what the units and their labels were made from."""
        digests = [self.metadata(index).digest for index in range(len(self))]
        if self.truth == "labels":
            digests += [label_identity(self.path, row, column) for row, column in self.indices]
        if self.truth == "detected":
            digests.append(find_card("cosmicray", "default").identity)
        return sha256(" ".join(digests).encode()).hexdigest()

    def metadata(self, index: int) -> UnitMetadata:
        """Return the metadata of a unit."""
        campaign = _open(self.path)
        row, column = self.indices[index]
        return campaign.metadata(campaign.exposures[row], campaign.detectors[column])

    def read(self, index: int) -> LabelledFrame:
        """Read a unit and its truth."""
        campaign, metadata = _open(self.path), self.metadata(index)
        row, column = self.indices[index]
        unit = read_electrons(campaign, metadata)
        if self.truth == "detected":
            charge = _detected_charge(unit)
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


def _detected_charge(unit: ElectronFrame) -> Image:
    """Return the height of detected pixels above the median of their neighbours [e-]; 0 elsewhere."""
    hit = np.asarray(detect(unit.data, unit.error, unit.ignore, precision="float32").mask)
    median = np.asarray(inpaint(unit.data, hit, unit.error, unit.ignore, model="median", psf=NO_PSF).data)
    height = np.maximum(unit.data - median, np.float32(MIN_DETECTED_CHARGE))
    return np.where(hit, height, np.float32(0))


@lru_cache(maxsize=4)
def _open(path: Path) -> Campaign:
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
    path : Path
        Path of the campaign.
    split : str, optional
        ``training``, ``validation`` or ``test``; by default all units. If the campaign has no splits, every fifth
        detector validates (or, of a single detector, every fifth exposure): exposures of one field share its sky.
    part : (int, int)
        ``(i, n)``: of each n detectors in order, the i-th; of a single detector, its exposures.
    truth : str
        ``truth``; ``labels``, for the units that have labels; or ``detected``, for imaging units.
    detectors : sequence of int
        Detectors to select from; by default all.
    exposures : int, optional
        Number of training exposures, the first ones; by default all.

    Returns
    -------
    LabelledUnits

    Raises
    ------
    InputError
        If the path has no campaign, the campaign has no truth, or no unit belongs to the split.
    """
    if store_kind(path) != "campaign":
        raise InputError(path, "no campaign", "one with truth, as `csstdask mock` writes")
    if truth != "detected" and not all((path / truth / name / "zarr.json").is_file() for name in ("sci", "cr")):
        raise InputError(path, f"a campaign without {truth}", f"one with {truth}/sci and {truth}/cr")
    units = _usable_units(path, truth, detectors)
    if split is not None:
        units = _units_of_split(path, units, split)
    if exposures is not None and split == "training":
        first = sorted({row for row, _ in units})[:exposures]
        units = [unit for unit in units if unit[0] in first]
    remainder, interval = part
    if len(units) >= interval:
        units = [unit for unit, rank in zip(units, _ranks(units), strict=True) if rank % interval == remainder]
    if not units:
        kind = "imaging exposures" if truth == "detected" else "exposures"
        raise InputError(path, f"no unit for {split}", f"{kind} whose split is {split}")
    return LabelledUnits(path, tuple(units), truth)


def _usable_units(path: Path, truth: RepairTruth, detectors: Sequence[int]) -> list[UnitIndex]:
    """Return the units that are present and have the truth."""
    campaign = _open(path)
    columns = [column for column, one in enumerate(campaign.detectors) if not detectors or one in detectors]
    units = [
        (row, column)
        for row in range(len(campaign.exposures))
        for column in columns
        if campaign.present[row, column] and (truth != "labels" or label_identity(path, row, column))
    ]
    if truth != "detected":
        return units
    # Darks and spectra have no sources to repair.
    metadata = (campaign.metadata(campaign.exposures[row], campaign.detectors[column]) for row, column in units)
    return [unit for unit, one in zip(units, metadata, strict=True) if one.kind == "imaging"]


def _units_of_split(path: Path, units: list[UnitIndex], split: Split) -> list[UnitIndex]:
    """Return the units of a split, by the assignment of the campaign or else by detector."""
    assigned = _assigned_splits(path)
    if any(assigned.values()):
        exposures = _open(path).exposures
        return [unit for unit in units if assigned.get(exposures[unit[0]]) == split]
    ranks = _ranks(units)
    interval = min(VALIDATION_INTERVAL, max(ranks, default=0) + 1)
    validates = [rank % interval == interval - 1 for rank in ranks]
    return [unit for unit, held_out in zip(units, validates, strict=True) if held_out == (split != "training")]


def _ranks(units: Sequence[UnitIndex]) -> list[int]:
    """Return the rank of each unit's detector; of a single detector, the rank of the unit."""
    columns = sorted({column for _, column in units})
    return [columns.index(column) for _, column in units] if len(columns) > 1 else list(range(len(units)))


def _assigned_splits(path: Path) -> dict[str, str]:
    """Return the split of each exposure, as far as the campaign assigns one."""
    table = path / "tables" / "truth_exposures.parquet"
    if not table.is_file():
        return {}
    columns = pq.read_table(table, columns=["exposure", "split"]).to_pydict()
    return dict(zip(columns["exposure"], columns["split"], strict=True))
