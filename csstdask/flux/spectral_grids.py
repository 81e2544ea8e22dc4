"""Wavelength grids of the SED networks, and wavelengths in air and vacuum.

All wavelengths are in Angstrom, vacuum, in the rest frame of the star; all fluxes are per unit wavelength. NaN marks
missing data. Nothing is ever extrapolated.

Two logarithmic grids follow from the published numbers of pixels (UaRA-net, section 3):

* input: R = 2000, 4000-7000 A, floor(2 R ln(7000/4000)) = 2238 pixels, centre k at 4000 exp((k + 1/2) / 4000);
* output: R = 200, 2500-10500 A, floor(2 R ln(10500/2500)) = 574 pixels, centre k at 2500 exp((k + 1/2) / 400).

Pixels are point samples: the Gaussian line-spread function (FWHM = wavelength / R) already contains the pixel.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Medium = Literal["vacuum", "air"]

LIGHT_SPEED = 299792.458
"""Speed of light [km/s]."""
INPUT_RESOLUTION = 2000.0
"""Resolving power of the networks' input."""
INPUT_RANGE = (4000.0, 7000.0)
"""Wavelength range of the networks' input [A]."""
SED_RESOLUTION = 200.0
"""Resolving power of the SEDs."""
SED_RANGE = (2500.0, 10500.0)
"""Wavelength range of the SEDs [A]."""
REFERENCE_RANGE = (5526.0, 5586.0)
"""Range of the mean flux that normalises an SED [A]."""
REFERENCE_PIXELS = slice(317, 322)
"""SED pixels whose centres lie in `REFERENCE_RANGE`."""
BANDS = {"GU": (2550.0, 4200.0), "GV": (4000.0, 6500.0), "GI": (6200.0, 10000.0)}
"""Slitless bands of the CSST as in the UaRA-net paper [A]."""


def log_grid(start: float, resolution: float, n: int) -> Float:
    """Return the centres of a grid with two pixels per resolution element [A].

    Centre k lies at start * exp((k + 1/2) / (2 R)).

    Parameters
    ----------
    start : float
        First edge of the grid [A].
    resolution : float
        Resolving power R.
    n : int
        Number of pixels.
    """
    return start * np.exp((np.arange(n) + 0.5) / (2 * resolution))


def _n_pixels(limits: tuple[float, float], resolution: float) -> int:
    return int(np.floor(2 * resolution * np.log(limits[1] / limits[0])))


INPUT_WAVELENGTH = log_grid(INPUT_RANGE[0], INPUT_RESOLUTION, _n_pixels(INPUT_RANGE, INPUT_RESOLUTION))
"""Centres of the input pixels, (2238,) [A]."""
SED_WAVELENGTH = log_grid(SED_RANGE[0], SED_RESOLUTION, _n_pixels(SED_RANGE, SED_RESOLUTION))
"""Centres of the SED pixels, (574,) [A]."""
N_INPUT = len(INPUT_WAVELENGTH)
N_SED = len(SED_WAVELENGTH)


def in_band(band: str) -> npt.NDArray[np.bool_]:
    """Return which SED pixels lie in a band.

    Parameters
    ----------
    band : str
        ``GU``, ``GV`` or ``GI``.

    Returns
    -------
    bool array (574,)
    """
    low, high = BANDS[band]
    return (low <= SED_WAVELENGTH) & (high >= SED_WAVELENGTH)


def normalise_sed(sed: npt.NDArray) -> npt.NDArray:
    """Divide SEDs (..., 574) by their mean flux in 5526-5586 A; NaN where that range is not observed."""
    mean = sed[..., REFERENCE_PIXELS].mean(axis=-1, keepdims=True)
    return sed / np.where(mean > 0, mean, np.nan)


def air_to_vacuum(wavelength: npt.ArrayLike) -> Float:
    """Convert wavelengths in standard air to vacuum [A].

    The refractive index of Ciddor (1996, Applied Optics 35, 1566) is evaluated at the vacuum wavelength by iteration.

    Examples
    --------
    >>> round(float(air_to_vacuum(4861.323)), 2)
    4862.68
    """
    air = np.asarray(wavelength, dtype=float)
    vacuum = air.copy()
    for _ in range(3):
        vacuum = air * _refractive_index(vacuum)
    return vacuum


def vacuum_to_air(wavelength: npt.ArrayLike) -> Float:
    """Convert vacuum wavelengths to standard air [A]; the inverse of `air_to_vacuum`."""
    vacuum = np.asarray(wavelength, dtype=float)
    return vacuum / _refractive_index(vacuum)


def _refractive_index(vacuum: Float) -> Float:
    """Return the refractive index of standard air at vacuum wavelengths [A] (Ciddor 1996, equation 1)."""
    s2 = (1e4 / vacuum) ** 2
    return 1 + 0.05792105 / (238.0185 - s2) + 0.00167917 / (57.362 - s2)


def to_vacuum(wavelength: npt.ArrayLike, medium: str) -> Float:
    """Return vacuum wavelengths [A] of wavelengths in a medium.

    Parameters
    ----------
    wavelength : array-like
        [A]
    medium : str
        ``vacuum`` or ``air``.

    Raises
    ------
    ValueError
        If the medium is neither.
    """
    if medium not in get_args(Medium):
        raise ValueError(f"medium: found {medium!r}; wanted 'vacuum' or 'air'")
    given = np.asarray(wavelength, dtype=float)
    return air_to_vacuum(given) if medium == "air" else given
