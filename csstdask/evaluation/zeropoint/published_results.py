"""Results of the AZP-RC article; it is not refereed, and its data are not public."""

from __future__ import annotations

ARTICLE = {
    "lut": {"rmse": 0.041, "mae": 0.030, "pearson": 0.92, "failures": 0.038, "ms": 1.0},
    "forest": {"rmse": 0.038, "mae": 0.028, "pearson": 0.94, "failures": 0.034, "ms": 18.5},
    "image CNN": {"rmse": 0.035, "mae": 0.025, "pearson": 0.96, "failures": 0.027, "ms": 12.3},
    "azprc": {"rmse": 0.027, "mae": 0.018, "pearson": 0.98, "failures": 0.013, "ms": 8.7},
}
"""Table of section 5: RMSE and MAE [mag], Pearson correlation, fraction of failures, and ms per exposure on an A100."""
