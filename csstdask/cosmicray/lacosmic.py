"""Detection by L.A.Cosmic (van Dokkum 2001, PASP 113, 1420), as implemented by astroscrappy, for comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.namespace import to_host
from csstdask.cosmicray.preprocess import PreparedFrame

#: Smallest variance [e-^2]: a frame without noise, constant or synthetic, would divide by zero.
_MIN_VARIANCE = np.float32(1e-12)


def lacosmic(prepared: PreparedFrame, parameters: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """Return the pixels that L.A.Cosmic flags; it runs on the host.

    Parameters
    ----------
    prepared : View
        Frame, prepared for detection.
    parameters : dict
        Keyword arguments of ``astroscrappy.detect_cosmics``.
    """
    import astroscrappy  # noqa: PLC0415

    variance = np.maximum((to_host(prepared.error) * np.float32(prepared.excess)) ** 2, _MIN_VARIANCE, dtype=np.float32)
    hit, _ = astroscrappy.detect_cosmics(
        to_host(prepared.data), invar=variance, gain=1.0, satlevel=np.inf, **parameters
    )
    return np.asarray(hit)
