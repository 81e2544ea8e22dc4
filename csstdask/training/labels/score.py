"""Labels from repeats beside a mock's truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csstdask.arrays.background import estimate_background
from csstdask.arrays.frame import poisson_variance
from csstdask.core.errors import InputError
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_truth import label_identity
from csstdask.store.electrons import electrons_per_data_unit, read_electrons
from csstdask.store.shards import read_shard

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Charge that recall asks for [e-], visible charge [sigma of its pixel], and how far above the
#: sky the inside of a source begins [sigma of the sky].
_RECALL_ABOVE, _VISIBLE_SIGMA, _SOURCE_SIGMA = 5.0, 3.0, 20.0


@dataclass(frozen=True)
class LabelScore:
    """Labels beside a mock's truth, pixels pooled over all labelled units; pixels that are ignored are left out."""

    precision: float
    """Of pixels that labels call hit: share with any charge."""
    recall: float
    """Of known pixels with more than 5 e-: share that labels call hit."""
    recall_visible: float
    """The same for more than three sigma of their own noise."""
    unknown: float
    """Share of pixels that labels are silent about."""
    unknown_visible: float
    """Share of the visibly hit pixels that labels are silent about."""
    pixels: int

    def line(self) -> str:
        """Return the score for people."""
        return (
            f"precision {self.precision:.4f}, recall {self.recall:.4f} above {_RECALL_ABOVE:.0f} e-, "
            f"{self.recall_visible:.4f} above {_VISIBLE_SIGMA:.0f} sigma; unknown {self.unknown:.2%} of the pixels, "
            f"{self.unknown_visible:.1%} of those visibly hit"
        )


def score_labels(path: Path) -> dict[str, LabelScore]:
    """Return how the labels of a mock campaign agree with its truth: of all pixels, and of those inside sources.

    Raises
    ------
    InputError
        If the campaign has no truth.
    """
    if not (path / "truth" / "cr" / "zarr.json").is_file():
        raise InputError(path, "a campaign without truth", "a mock campaign")
    campaign = Campaign(path)
    tallies = {"all": np.zeros(9, dtype=np.int64), "inside sources": np.zeros(9, dtype=np.int64)}
    for row, exposure in enumerate(campaign.exposures):
        for column, detector in enumerate(campaign.detectors):
            if not label_identity(path, row, column):
                continue
            metadata = campaign.metadata(exposure, detector)
            use = ~read_electrons(campaign, metadata).ignore
            clean = read_shard(path, "truth/sci", row, column) * electrons_per_data_unit(campaign, metadata)
            truth, labels = (read_shard(path, f"{name}/cr", row, column) for name in ("truth", "labels"))
            visible = truth > _VISIBLE_SIGMA * np.sqrt(poisson_variance(clean, float(metadata.read_noise)))
            mesh = estimate_background(clean)
            source = clean - mesh.background_at() > _SOURCE_SIGMA * mesh.noise_at()
            for name, among in (("all", use), ("inside sources", use & source)):
                tallies[name] += _tally(labels[among], truth[among], visible[among])
    return {name: _score(tally) for name, tally in tallies.items()}


def _tally(labels: Image, truth: Image, visible: Mask) -> npt.NDArray[np.int64]:
    hit, known, strong = labels > 0, np.isfinite(labels), truth > _RECALL_ABOVE
    sets = (
        hit, hit & (truth > 0), strong & known, strong & hit, visible & known, visible & hit, ~known, visible & ~known,
        np.ones(len(labels), dtype=bool),
    )  # fmt: skip
    return np.array([np.count_nonzero(one) for one in sets])


def _score(tally: npt.NDArray[np.int64]) -> LabelScore:
    hit, right, strong, strong_hit, visible, visible_hit, unknown, visible_unknown, pixels = (int(n) for n in tally)

    def share(part: int, whole: int) -> float:
        return part / whole if whole else float("nan")

    return LabelScore(
        share(right, hit),
        share(strong_hit, strong),
        share(visible_hit, visible),
        share(unknown, pixels),
        share(visible_unknown, visible + visible_unknown),
        pixels,
    )
