"""Epochs and conversion factors that several packages need: one definition of each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

J2000 = np.datetime64("2000-01-01T12:00:00", "us")
"""Epoch J2000.0, taken as UTC (the minute between TT and UTC is neglected)."""
J2000_MJD = 51544.5
"""Epoch J2000.0 as a Modified Julian Date [d]."""
J2016 = np.datetime64("2016-01-01T12:00:00", "us")
"""Epoch J2016.0 of Gaia DR3 and of csstdask's catalogues, taken as UTC."""
CATALOGUE_EPOCH = 2016.0
"""Epoch of positions in catalogues without a column ``ref_epoch``, that of Gaia DR3 [Julian year]."""
SECONDS_PER_DAY = 86400.0
DAYS_PER_YEAR = 365.25
"""Julian year [d]."""
DEG_PER_ARCSEC = 1 / 3600.0
DEG_PER_MAS = 1 / 3.6e6
RAD_PER_ARCSEC = np.pi / 180 / 3600


def days_since_j2000(time: np.datetime64 | npt.NDArray[np.datetime64]) -> npt.NDArray[np.float64]:
    """Return the days from J2000.0 to a time in UTC; leap seconds are ignored.

    Parameters
    ----------
    time : datetime64, or array of datetime64
        UTC.

    Examples
    --------
    >>> import numpy as np
    >>> float(days_since_j2000(np.datetime64("2000-01-03T00:00:00")))
    1.5
    """
    return np.asarray((time - J2000) / np.timedelta64(1, "D"), dtype=np.float64)
