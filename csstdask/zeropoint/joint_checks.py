"""Checks of the arguments of the joint solve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError

if TYPE_CHECKING:
    from csstdask.zeropoint.joint import JointSettings, StarObservations


def check_joint_arguments(
    observations: StarObservations,
    reference: npt.ArrayLike,
    reference_variance: npt.ArrayLike,
    exposure: npt.ArrayLike,
    detector: npt.ArrayLike,
    epoch: npt.ArrayLike,
    settings: JointSettings,
) -> None:
    """Raise InputError if the arguments do not belong together."""
    n, units, stars = (len(np.asarray(one)) for one in (observations.star, exposure, reference))
    for name in ("unit", "magnitude", "variance"):
        size = len(getattr(observations, name))
        if size != n:
            raise InputError(f"observations.{name}", f"{size} values", f"{n}, one for each star label")
    for name, values, wanted in (
        ("reference_variance", reference_variance, stars),
        ("detector", detector, units),
        ("epoch", epoch, units),
    ):
        if len(np.asarray(values)) != wanted:
            raise InputError(name, f"{len(np.asarray(values))} values", f"{wanted}")
    for name, labels, size in (("unit", observations.unit, units), ("star", observations.star, stars)):
        if n and (np.min(labels) < 0 or np.max(labels) >= size):
            raise InputError(f"observations.{name}", f"{np.min(labels)} to {np.max(labels)}", f"0 to {size - 1}")
    if not 0 <= settings.detector_sigma < np.inf:
        raise InputError("detector_sigma", f"{settings.detector_sigma}", "0, or a positive number [mag]")
    for name in ("grey_sigma", "small_sigma", "scatter_floor", "reference_floor"):
        if not 0 < getattr(settings, name) < np.inf:
            raise InputError(name, f"{getattr(settings, name)}", "a positive number [mag]")
