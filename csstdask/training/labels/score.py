"""Compare labels from repeated exposures with the truth of a mock campaign."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csstdask.arrays.background import estimate_background
from csstdask.core.errors import InputError
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_truth import label_identity
from csstdask.store.electrons import electrons_per_data_unit, read_electrons
from csstdask.store.shards import read_shard

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Charge above which a pixel counts in the recall [e-].
RECALL_CHARGE = 5.0
#: Charge above which a pixel is visibly hit [sigma of its noise].
VISIBLE_SIGMA = 3.0
#: Height above the sky from which a pixel is inside a source [sigma of the sky].
SOURCE_SIGMA = 20.0


@dataclass(frozen=True)
class LabelScore:
    """Labels compared with the truth. Pixels of all labelled units are pooled; ignored ones are left out."""

    precision: float
    """Fraction of the pixels labelled as hit that have any charge."""
    recall: float
    """Fraction of the decided pixels with more than 5 e- that are labelled as hit."""
    recall_visible: float
    """The same for charges above three sigma of the pixel's noise."""
    unknown: float
    """Fraction of pixels without a decision."""
    unknown_visible: float
    """Fraction of the visibly hit pixels without a decision."""
    pixels: int
    """Number of pixels."""

    def line(self) -> str:
        """Return the score in one line."""
        return (
            f"precision {self.precision:.4f}, recall {self.recall:.4f} above {RECALL_CHARGE:.0f} e-, "
            f"{self.recall_visible:.4f} above {VISIBLE_SIGMA:.0f} sigma; unknown {self.unknown:.2%} of the pixels, "
            f"{self.unknown_visible:.1%} of those visibly hit"
        )


@dataclass
class _Counts:
    """Numbers of pixels."""

    hit: int = 0
    """Labelled as hit."""
    right: int = 0
    """Labelled as hit, with charge."""
    strong: int = 0
    """Decided, charge above `RECALL_CHARGE`."""
    strong_hit: int = 0
    """The same, labelled as hit."""
    visible: int = 0
    """Decided, visibly hit."""
    visible_hit: int = 0
    """The same, labelled as hit."""
    unknown: int = 0
    """Undecided."""
    visible_unknown: int = 0
    """Undecided, visibly hit."""
    pixels: int = 0
    """All."""

    def add(self, labels: Image, truth: Image, visible: Mask) -> None:
        """Count some pixels: label and true charge [e-], and whether the charge is visible, all (pixel,)."""
        hit, known, strong = labels > 0, np.isfinite(labels), truth > RECALL_CHARGE
        sets = {
            "hit": hit,
            "right": hit & (truth > 0),
            "strong": strong & known,
            "strong_hit": strong & hit,
            "visible": visible & known,
            "visible_hit": visible & hit,
            "unknown": ~known,
            "visible_unknown": visible & ~known,
            "pixels": np.ones(len(labels), dtype=bool),
        }
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + int(np.count_nonzero(sets[one.name])))

    def score(self) -> LabelScore:
        """Return the score."""
        return LabelScore(
            _ratio(self.right, self.hit),
            _ratio(self.strong_hit, self.strong),
            _ratio(self.visible_hit, self.visible),
            _ratio(self.unknown, self.pixels),
            _ratio(self.visible_unknown, self.visible + self.visible_unknown),
            self.pixels,
        )


def _ratio(part: int, total: int) -> float:
    return part / total if total else float("nan")


def score_labels(path: Path) -> dict[str, LabelScore]:
    """Compare the labels of a mock campaign with its truth.

    Parameters
    ----------
    path : Path
        Path of the campaign.

    Returns
    -------
    dict
        Scores of ``all`` pixels, and of those ``inside sources``.

    Raises
    ------
    InputError
        If the campaign has no truth.
    """
    if not (path / "truth" / "cr" / "zarr.json").is_file():
        raise InputError(path, "a campaign without truth", "a mock campaign")
    campaign = Campaign(path)
    counts = {"all": _Counts(), "inside sources": _Counts()}
    for row, exposure in enumerate(campaign.exposures):
        for column, detector in enumerate(campaign.detectors):
            if not label_identity(path, row, column):
                continue
            metadata = campaign.metadata(exposure, detector)
            usable = ~read_electrons(campaign, metadata).ignore
            clean = read_shard(path, "truth/sci", row, column) * electrons_per_data_unit(campaign, metadata)
            truth, labels = (read_shard(path, f"{name}/cr", row, column) for name in ("truth", "labels"))
            noise = np.sqrt(np.maximum(clean, 0) + np.float32(metadata.read_noise**2))
            visible = truth > VISIBLE_SIGMA * noise
            mesh = estimate_background(clean)
            source = clean - mesh.background_at() > SOURCE_SIGMA * mesh.noise_at()
            for name, pixels in (("all", usable), ("inside sources", usable & source)):
                counts[name].add(labels[pixels], truth[pixels], visible[pixels])
    return {name: one.score() for name, one in counts.items()}
