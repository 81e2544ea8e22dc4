"""Settings of an evaluation of SED networks."""

from __future__ import annotations

from dataclasses import dataclass

SNRS = (10, 20, 40, 80)
"""Signal-to-noise ratios of the synthetic tests."""
SEED = 77_000_001
"""Seed of the test's stars and noise; differs from all seeds of trainings."""
CHECKED = (3600.0, 4500.0, 5000.0, 6000.0, 7000.0)
"""Wavelengths at which the UaRA-net paper compares with MILES [A]."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Size of an evaluation."""

    stars: int = 4096
    """Stars of the test cells, for errors at each signal-to-noise ratio."""
    calibration: int = 8192
    """Stars for the calibration, independent of those above."""
    draws: int = 2000
    """Draws of a bootstrap of stars."""
    fine_tuning: int = 200
    """Epochs of the published network's fine-tuning on real stars; 0: none."""
    folds: int = 5
    """Folds of CALSPEC stars for that fine-tuning."""
