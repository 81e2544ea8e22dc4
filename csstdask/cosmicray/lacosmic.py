"""L.A.Cosmic (van Dokkum 2001, PASP 113, 1420) as astroscrappy has it: the classical method to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.namespace import to_host
from csstdask.cosmicray.preprocess import PreparedFrame

#: A noiseless frame (constant, or made by hand) would divide by zero [e-^2].
_LEAST_VARIANCE = np.float32(1e-12)


def lacosmic(view: PreparedFrame, parameters: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """Return the pixels that L.A.Cosmic calls hit; it runs on the host.

    Parameters
    ----------
    view : View
        Of the frame.
    parameters : dict
        Of ``astroscrappy.detect_cosmics``.
    """
    import astroscrappy  # noqa: PLC0415

    variance = np.maximum((to_host(view.error) * np.float32(view.excess)) ** 2, _LEAST_VARIANCE, dtype=np.float32)
    hit, _ = astroscrappy.detect_cosmics(to_host(view.data), invar=variance, gain=1.0, satlevel=np.inf, **parameters)
    return np.asarray(hit)
