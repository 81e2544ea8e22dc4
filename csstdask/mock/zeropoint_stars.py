"""Tables of reference stars and image patches of an exposure, which follow its conditions.

They replace rendered frames where thousands of exposures are needed. Fluxes are total; the noise is that of an aperture
of 49 pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.mock.catalogue import APERTURE_PIXELS
from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.zeropoint_settings import ReferenceStars, ZeroPoints
from csstdask.numerics.polynomials import legendre_products, n_terms, term_degrees

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

FRAME = (9232, 9216)
"""Shape (y, x) of a detector [pixel]."""
PATCH = 256
"""Side length of a patch [pixel]."""
FLAT_DEGREE = 2
"""Degree of the flat residual F(x, y)."""
COLUMNS = ("inst_mag", "inst_mag_err", "ref_mag", "ref_mag_err", "color", "x", "y")
"""Columns of a star table."""
SENTINELS = (np.nan, -9999.0, 99.0, 130.0)
"""Values of missing magnitudes: NaN (Parquet), FGCM, SExtractor, and flags of FGCM."""

_READ_NOISE = 5.0
"""Read noise, as that of the camera [e-]."""
_DARK = 0.02
"""Dark current, as `sensor.dark` [e-/s/pixel]."""
_FLUX_FLOOR = 0.001
"""Smallest error of a flux (pixel response, aperture) [mag]."""
_PIXEL_SCALE = 0.074
"""Pixel scale [arcsec/pixel]."""
_CORE_SIGMA = 0.8
"""Width of the PSF (diffraction, diffusion, pixel), 1 sigma [pixel]."""
_DEFOCUS_BLUR = 0.04
"""Blur per distance from best focus, 1 sigma [pixel/um]."""
_WING_FRACTION = 0.15
"""Fraction of the light in a wider Gaussian."""
_WING_WIDTH = 2.5
"""Width of the wider Gaussian relative to the core."""
_HALF_STAMP = 12
"""Half-width of the stamp of a star, 5 sigma of the wings [pixel]."""
_PATCH_STARS = 12.0
"""Mean number of stars of a patch."""
_PATCH_MAGNITUDES = (17.0, 25.0)
"""Magnitude range of stars on patches [mag]."""
_PATCH_SLOPE = 0.15
"""Slope of the star counts on patches, d log10 N(<m) / dm, as `sky.star_slope`."""
_MIN_RELATIVE_FLUX = 0.05
"""Smallest measured flux relative to the true one, which keeps magnitudes finite."""


def star_counts(settings: ZeroPoints, name: str, seed: int, n: int) -> npt.NDArray[np.int64]:
    """Return the number of reference stars of the first n exposures of a survey (n,).

    The expected number of a field is uniform in log from 1 to `n_stars`; a fraction of the fields has none, like sparse
    fields in the near ultraviolet. The exposures of a visit show one field and differ by Poisson noise.
    """
    survey, number = settings.survey(name), settings.number(name)
    visit = np.arange(n) // survey.visit
    n_visits = -(-n // survey.visit)
    uniform = stream(seed, Purpose.ZEROPOINT_FIELD, number, 1).random((n_visits, 2))[visit].T
    expected = np.where(uniform[0] < survey.empty_share, 0.0, survey.n_stars ** uniform[1])
    # One normal number per exposure, so that exposures do not depend on each other.
    normal = stream(seed, Purpose.ZEROPOINT_FIELD, number, 2).normal(size=n)
    # Anscombe (1948): the square root of a Poisson number is nearly normal with sigma 1/2.
    counts = np.rint((np.sqrt(expected) + normal / 2) ** 2)
    return np.where(expected > 0, np.minimum(counts, 2 * survey.n_stars), 0).astype(np.int64)


def true_flat(settings: ZeroPoints, name: str, seed: int) -> Float:
    """Return the coefficients of F(x, y) without the constant, in the order of `legendre_products` (term,) [mag]."""
    degrees = term_degrees(FLAT_DEGREE)[1:].sum(axis=1)
    sigma = settings.survey(name).flat_sigma * np.where(degrees == 1, 1.0, 0.25)
    normal = stream(seed, Purpose.ZEROPOINT_FLAT, settings.number(name)).normal(size=n_terms(FLAT_DEGREE) - 1)
    return np.asarray(normal * sigma)


def catalogue_errors(stars: ReferenceStars, rng: np.random.Generator, magnitude: Float) -> tuple[Float, Float]:
    """Return catalogue magnitudes and their errors for true magnitudes [mag].

    The log of the error is linear in magnitude. Some magnitudes and their errors are missing or sentinels; some errors
    are 0 although the magnitude is not exact.

    Parameters
    ----------
    stars : ReferenceStars
        Table of the recipe.
    rng : numpy.random.Generator
        Random stream.
    magnitude : float64 array (n,)
        True magnitudes [mag].
    """
    n = len(magnitude)
    bright, faint = stars.magnitudes
    share = np.clip((magnitude - bright) / (faint - bright), 0, 1)
    error = stars.errors[0] * (stars.errors[1] / stars.errors[0]) ** share
    normal, uniform, which = rng.normal(size=n), rng.random(n), rng.integers(0, len(SENTINELS), n)
    measured = magnitude + error * normal
    missing = uniform < stars.missing_share
    sentinel = np.array(SENTINELS)[which]
    zero = ~missing & (uniform < stars.missing_share + stars.zero_error_share)
    return np.where(missing, sentinel, measured), np.where(missing, sentinel, np.where(zero, 0.0, error))


def draw_magnitudes(rng: np.random.Generator, n: int, limits: tuple[float, float], slope: float) -> Float:
    """Draw n magnitudes with N(<m) ~ 10^(slope m) between two limits [mag]."""
    low, high = (10 ** (slope * limit) for limit in limits)
    return np.asarray(np.log10(rng.uniform(low, high, n)) / slope)


def exposure_stars(
    settings: ZeroPoints,
    name: str,
    seed: int,
    index: int,
    n_stars: int,
    zero_point: float,
    background: float,
    flat: Float,
) -> dict[str, Float]:
    """Return the matched stars of an exposure, columns `COLUMNS`.

    Parameters
    ----------
    settings : ZeroPoints
        Table of the recipe.
    name : str
        Name of the survey.
    seed : int
        Seed of the recipe.
    index : int
        Index of the exposure in the survey.
    n_stars : int
        Number of stars, from `star_counts`.
    zero_point : float
        True zero point [mag].
    background : float
        True sky [e-/s/pixel].
    flat : float64 array (term,)
        Coefficients of F(x, y), from `true_flat` [mag].

    Returns
    -------
    dict
        Float64 columns (n_stars,): magnitudes and errors [mag], colour [mag], zero-based position [pixel].
    """
    survey, stars = settings.survey(name), settings.stars
    rng = stream(seed, Purpose.REFERENCE_STARS, settings.number(name), index)
    magnitude = draw_magnitudes(rng, n_stars, stars.magnitudes, stars.slope)
    color = rng.normal(*stars.color, n_stars)
    x, y = rng.uniform(-0.5, FRAME[1] - 0.5, n_stars), rng.uniform(-0.5, FRAME[0] - 0.5, n_stars)
    reference, reference_err = catalogue_errors(stars, rng, magnitude)
    # Half of the outliers are variable, half are blended with a neighbour and too bright.
    outlier, blended = rng.random((2, n_stars))
    change = stars.outlier_size * rng.normal(size=n_stars)
    change = np.where(blended < 0.5, -np.abs(change), change) * (outlier < stars.outlier_share)
    smooth = legendre_products(x, y, FLAT_DEGREE, FRAME)[:, 1:] @ flat
    color_term = survey.color_term + survey.color_term_scatter * rng.normal()
    true = magnitude + change - zero_point - smooth - color_term * color
    counts = 10 ** (-0.4 * true) * survey.exptime
    noise = counts + APERTURE_PIXELS * ((background + _DARK) * survey.exptime + _READ_NOISE**2)
    relative = np.sqrt(noise) / counts
    # Fluxes are normal and positive, because the faintest stars have S/N above 10.
    measured = counts * np.maximum(1 + relative * rng.normal(size=n_stars), _MIN_RELATIVE_FLUX)
    # Scatter outside the quoted errors: low variability, higher-order colour terms.
    scatter = np.hypot(_FLUX_FLOOR, stars.scatter) * rng.normal(size=n_stars)
    return {
        "inst_mag": -2.5 * np.log10(measured / survey.exptime) + scatter,
        "inst_mag_err": np.hypot(2.5 / np.log(10) * relative, _FLUX_FLOOR),
        "ref_mag": reference,
        "ref_mag_err": reference_err,
        "color": color,
        "x": x,
        "y": y,
    }


def psf_sigma(focus: float, jitter: float) -> float:
    """Return the width of the core of the PSF, 1 sigma [pixel].

    Parameters
    ----------
    focus : float
        Distance from best focus [um].
    jitter : float
        Jitter, 1 sigma per axis [arcsec].

    Examples
    --------
    >>> round(psf_sigma(0.0, 0.033), 3)
    0.916
    """
    return float(np.sqrt(_CORE_SIGMA**2 + (_DEFOCUS_BLUR * focus) ** 2 + (jitter / _PIXEL_SCALE) ** 2))


def exposure_patch(
    settings: ZeroPoints,
    name: str,
    seed: int,
    index: int,
    zero_point: float,
    background: float,
    focus: float,
    jitter: float,
) -> Float32:
    """Return an image patch of an exposure with sky and stars, float32 (256, 256) [e-/s].

    The stars are not those of the table. Their PSF is wider out of focus and with jitter; stars and sky follow the
    throughput. Photon noise is Gaussian with the variance of the light, which the sky of about 30 electrons permits.

    Parameters
    ----------
    settings, name, seed, index, zero_point, background
        As for `exposure_stars`.
    focus : float
        True distance from best focus [um].
    jitter : float
        True jitter, 1 sigma per axis [arcsec].
    """
    survey = settings.survey(name)
    rng = stream(seed, Purpose.ZEROPOINT_PATCH, settings.number(name), index)
    n = int(rng.poisson(_PATCH_STARS * np.exp(rng.normal(0, 0.5))))
    magnitude = draw_magnitudes(rng, n, _PATCH_MAGNITUDES, _PATCH_SLOPE)
    x, y = rng.uniform(-0.5, PATCH - 0.5, (2, n))
    flux = 10 ** (-0.4 * (magnitude - zero_point))
    loss = 10 ** (0.4 * (zero_point - survey.nominal))
    half = _HALF_STAMP
    light = np.full((PATCH + 2 * half, PATCH + 2 * half), background * loss + _DARK, dtype=np.float32)
    sigma = psf_sigma(focus, jitter)
    offsets = np.arange(-half, half + 1)
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    stamps = np.zeros((n, 2 * half + 1, 2 * half + 1))
    for share, width in ((1 - _WING_FRACTION, sigma), (_WING_FRACTION, sigma * _WING_WIDTH)):
        along_x, along_y = (
            np.exp(-0.5 * ((offsets - (position - nearest)[:, None]) / width) ** 2) / (np.sqrt(2 * np.pi) * width)
            for position, nearest in ((x, ix), (y, iy))
        )
        stamps += share * along_y[:, :, None] * along_x[:, None, :]
    for k in range(n):
        light[iy[k] : iy[k] + 2 * half + 1, ix[k] : ix[k] + 2 * half + 1] += flux[k] * stamps[k]
    light = light[half:-half, half:-half]
    noise = np.sqrt(light * np.float32(survey.exptime) + np.float32(_READ_NOISE**2))
    noise *= rng.standard_normal((PATCH, PATCH), dtype=np.float32) / np.float32(survey.exptime)
    return np.asarray(light + noise - np.float32(_DARK))
