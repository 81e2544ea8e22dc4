"""Predict zero points without the exposure's own stars: from telemetry, recent zero points, images and star lists."""

from csstdask.zeropoint.prior.fallback import NOMINAL_SIGMA, Prior, fallback_prior, predict_from_memory
from csstdask.zeropoint.prior.image_statistics import IMAGE_STATISTICS, image_statistics
from csstdask.zeropoint.prior.inputs import (
    TELEMETRY_NAMES,
    PriorArrays,
    PriorInputs,
    concatenate_arrays,
    prior_arrays,
    stack_image_statistics,
)
from csstdask.zeropoint.prior.predict import find_prior_card, predict_prior, predict_with_network, telemetry_names
from csstdask.zeropoint.prior.star_lists import MAX_STARS, STAR_COLUMNS, StarLists, build_star_lists

__all__ = [
    "IMAGE_STATISTICS", "MAX_STARS", "NOMINAL_SIGMA", "STAR_COLUMNS", "TELEMETRY_NAMES", "Prior", "PriorArrays",
    "PriorInputs", "StarLists", "build_star_lists", "concatenate_arrays", "fallback_prior", "find_prior_card",
    "image_statistics", "predict_from_memory", "predict_prior", "predict_with_network", "prior_arrays",
    "stack_image_statistics", "telemetry_names",
]  # fmt: skip
