"""Score a run on a mock campaign against the truth, which its steps never read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csstdask.arrays.frame import ignored_pixels, poisson_variance, variance_from_weight
from csstdask.engine.ledger import Ledger
from csstdask.metrics.detection import RECALL_CHARGE, VISIBLE_SIGMA
from csstdask.pipeline.status import load_plan
from csstdask.store.run import campaign_path
from csstdask.store.shards import read_shard


@dataclass(frozen=True)
class Score:
    """Quality of detection and repair, over the pixels of all units.

    Pixels that the steps ignore (saturated, bad, hot) are excluded.
    """

    precision: float
    """Fraction of flagged pixels that contain any charge of a cosmic ray."""
    recall: float
    """Fraction of pixels with more than 5 e- of a cosmic ray that are flagged."""
    recall_visible: float
    """Fraction of pixels with a cosmic ray above 3 sigma of their noise that are flagged."""
    repair_bias: float
    """Median of (repaired - truth) / sigma over repaired pixels."""
    repair_pull: float
    """Half the interval between the 16th and 84th percentile of the same; 1 if the variances are correct."""

    def lines(self) -> list[str]:
        """Return the score as lines of text."""
        detection = (
            f"detection: precision {self.precision:.3f}, recall {self.recall:.3f} above {RECALL_CHARGE:.0f} e-, "
            f"{self.recall_visible:.3f} above {VISIBLE_SIGMA:.0f} sigma"
        )
        return [detection, f"repair: pull {self.repair_bias:+.2f} +- {self.repair_pull:.2f}"]


def has_truth(run: str | Path, campaign: str | Path | None = None) -> bool:
    """Return whether a run can be scored: a mock campaign, with detection and repair."""
    root = Path(run)
    wanted = [campaign_path(root, campaign) / "truth" / "cr", root / "cr_mask", root / "repair_variance"]
    return all((folder / "zarr.json").is_file() for folder in wanted)


def score_run(run: str | Path, campaign: str | Path | None = None) -> Score:
    """Score a run on a mock campaign, unit by unit.

    Parameters
    ----------
    run : path
        With ``cr_mask``, ``repair`` and ``repair_variance``.
    campaign : path, optional
        Campaign with the child group ``truth``, if it has moved.
    """
    root = Path(run)
    plan = load_plan(root, campaign)
    source, ledger = plan.campaign.path, Ledger(root)
    flagged = right = strong = strong_found = visible = visible_found = 0
    pulls = []
    ignore_bits = plan.campaign.instrument.flags.ignore_mask
    for unit, row, column in plan.units():
        fingerprints = plan.fingerprints(plan.campaign.metadata(unit.exposure, unit.detector))
        if len(ledger.read(unit).up_to_date(root, fingerprints)) < len(fingerprints):
            continue
        flag, weight = (read_shard(source, name, row, column) for name in ("flag", "wht"))
        use = ~ignored_pixels(flag, ignore_bits, variance=variance_from_weight(weight))
        charge = read_shard(source, "truth/cr", row, column)[use]
        truth = read_shard(source, "truth/sci", row, column)[use]
        hit, repair, variance = (
            read_shard(root, name, row, column)[use] for name in ("cr_mask", "repair", "repair_variance")
        )
        metadata = plan.campaign.metadata(unit.exposure, unit.detector)
        sigma = np.sqrt(poisson_variance(truth * metadata.exptime, metadata.read_noise))
        for_recall, for_visible = charge > RECALL_CHARGE, charge > VISIBLE_SIGMA * sigma
        flagged += int(hit.sum())
        right += int((hit & (charge > 0)).sum())
        strong += int(for_recall.sum())
        strong_found += int((for_recall & hit).sum())
        visible += int(for_visible.sum())
        visible_found += int((for_visible & hit).sum())
        done = hit & np.isfinite(variance) & (variance > 0)
        pulls.append((repair[done] - truth[done]) / np.sqrt(variance[done]))
    pull = np.concatenate(pulls) if pulls else np.empty(0)
    low, middle, high = np.percentile(pull, [16, 50, 84]) if pull.size else (np.nan, np.nan, np.nan)
    return Score(
        precision=right / flagged if flagged else float("nan"),
        recall=strong_found / strong if strong else float("nan"),
        recall_visible=visible_found / visible if visible else float("nan"),
        repair_bias=float(middle),
        repair_pull=float((high - low) / 2),
    )
