"""Reference stars of an exposure as a table, and a cut-out of its pixels: both follow the exposure's conditions.

They replace a rendered frame where thousands of exposures are needed. Fluxes are total; the noise of a star is that of
an aperture of 49 pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.mock.random_streams import Purpose, stream
from csstdask.mock.zeropoint_settings import ReferenceStars, ZeroPoints
from csstdask.numerics.polynomials import legendre_products, n_terms, term_degrees

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

FRAME = (9232, 9216)
"""(y, x) of a detector."""
PATCH = 256
"""Length of a patch's side [pixel]."""
FLAT_DEGREE = 2
COLUMNS = ("inst_mag", "inst_mag_err", "ref_mag", "ref_mag_err", "color", "x", "y")

SENTINELS = (np.nan, -9999.0, 99.0, 130.0)
"""Stand for a missing magnitude: of Parquet files, FGCM, SExtractor and FGCM's flags."""

_APERTURE = 49
"""Pixels whose sky and read noise a star's flux has."""
_READ_NOISE = 5.0
"""As that of the camera [electron]."""
_DARK = 0.02
"""As `sensor.dark` [electron s-1 pixel-1]."""
_FLUX_FLOOR = 0.001
"""Error that no flux is better than: pixel response and aperture [mag]."""
_PIXEL_SCALE = 0.074
"""[arcsec]"""

_CORE = 0.8
"""PSF of diffraction, diffusion and pixel, one sigma [pixel]."""
_DEFOCUS = 0.04
"""Blur for each um from best focus, one sigma [pixel/um]: 0.4 pixel at 10 um."""
_WINGS, _WINGS_WIDTH = 0.15, 2.5
"""Share of the light in a wider Gaussian, and its width in units of the core's."""
_HALF_STAMP = 12
"""Half-width of a star's stamp [pixel]: 5 sigma of the wings."""
_PATCH_STARS = 12.0
"""Mean number of stars on a patch of an ordinary field."""
_PATCH_MAGNITUDES = (17.0, 25.0)
"""Of stars on patches [mag]."""
_PATCH_SLOPE = 0.15
"""d log10 N / d mag of stars on patches, as `sky.star_slope`."""


def star_counts(settings: ZeroPoints, name: str, seed: int, n: int) -> npt.NDArray[np.int64]:
    """Return the number of reference stars of a survey's first exposures (n,).

    The expected number of a field is uniform in log from 1 to `n_stars`; a share of the fields has none, as sparse
    fields in the near ultraviolet do. The exposures of a visit see one field and differ by Poisson noise: their edges
    differ.
    """
    survey, number = settings.survey(name), settings.number(name)
    visit = np.arange(n) // survey.visit
    n_visits = -(-n // survey.visit)
    uniform = stream(seed, Purpose.ZEROPOINT_FIELD, number, 1).random((n_visits, 2))[visit].T
    expected = np.where(uniform[0] < survey.empty_share, 0.0, survey.n_stars ** uniform[1])
    # Poisson noise of a fixed number of draws an exposure, so that no exposure depends on another one.
    normal = stream(seed, Purpose.ZEROPOINT_FIELD, number, 2).normal(size=n)
    # Anscombe: sqrt of a Poisson number is nearly normal, sigma 1/2.
    counts = np.rint((np.sqrt(expected) + normal / 2) ** 2)
    return np.where(expected > 0, np.minimum(counts, 2 * survey.n_stars), 0).astype(np.int64)


def true_flat(settings: ZeroPoints, name: str, seed: int) -> Float:
    """Return the coefficients of F(x, y) without its constant, in the order of `legendre_products` (term,) [mag]."""
    degrees = term_degrees(FLAT_DEGREE)[1:].sum(axis=1)
    sigma = settings.survey(name).flat_sigma * np.where(degrees == 1, 1.0, 0.25)
    normal = stream(seed, Purpose.ZEROPOINT_FLAT, settings.number(name)).normal(size=n_terms(FLAT_DEGREE) - 1)
    return np.asarray(normal * sigma)


def catalogue_errors(stars: ReferenceStars, rng: np.random.Generator, magnitude: Float) -> tuple[Float, Float]:
    """Return magnitudes as a reference catalogue has them, and their errors [mag].

    Errors grow from the brightest to the faintest magnitude as a power of ten. Some magnitudes are missing or
    sentinels (their errors then are too), some errors are 0 although the magnitude is not exact.
    """
    n = len(magnitude)
    bright, faint = stars.magnitudes
    share = np.clip((magnitude - bright) / (faint - bright), 0, 1)
    error = stars.errors[0] * (stars.errors[1] / stars.errors[0]) ** share
    normal, uniform, which = rng.normal(size=n), rng.random(n), rng.integers(0, len(SENTINELS), n)
    measured = magnitude + error * normal
    lost = uniform < stars.missing_share
    sentinel = np.array(SENTINELS)[which]
    zero = ~lost & (uniform < stars.missing_share + stars.zero_error_share)
    return np.where(lost, sentinel, measured), np.where(lost, sentinel, np.where(zero, 0.0, error))


def draw_magnitudes(rng: np.random.Generator, n: int, limits: tuple[float, float], slope: float) -> Float:
    """Draw magnitudes with N(<m) ~ 10^(slope m) between two limits."""
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
    name : str
        Of the survey.
    seed, index : int
        `index` is the exposure's number in the survey.
    n_stars : int
        As `star_counts` has it.
    zero_point : float
        True zero point [mag].
    background : float
        True sky [electron s-1 pixel-1].
    flat : array (term,)
        Of `true_flat`.
    """
    survey, about = settings.survey(name), settings.stars
    rng = stream(seed, Purpose.REFERENCE_STARS, settings.number(name), index)
    magnitude = draw_magnitudes(rng, n_stars, about.magnitudes, about.slope)
    color = rng.normal(*about.color, n_stars)
    x, y = rng.uniform(-0.5, FRAME[1] - 0.5, n_stars), rng.uniform(-0.5, FRAME[0] - 0.5, n_stars)
    reference, reference_err = catalogue_errors(about, rng, magnitude)
    # Outliers: half vary either way, half are blended with a neighbour and too bright.
    outlier, blended = rng.random((2, n_stars))
    change = about.outlier_size * rng.normal(size=n_stars)
    change = np.where(blended < 0.5, -np.abs(change), change) * (outlier < about.outlier_share)
    smooth = legendre_products(x, y, FLAT_DEGREE, FRAME)[:, 1:] @ flat
    color_term = survey.color_term + survey.color_term_scatter * rng.normal()
    true = magnitude + change - zero_point - smooth - color_term * color
    counts = 10 ** (-0.4 * true) * survey.exptime
    noise = counts + _APERTURE * ((background + _DARK) * survey.exptime + _READ_NOISE**2)
    relative = np.sqrt(noise) / counts
    # A flux is normal and positive here: the faintest star has a signal to noise ratio above 10.
    measured = counts * np.maximum(1 + relative * rng.normal(size=n_stars), 0.05)
    # What no error quotes: variability below the outliers', colour terms of higher order.
    scatter = np.hypot(_FLUX_FLOOR, about.scatter) * rng.normal(size=n_stars)
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
    """Return the width of the PSF's core, one sigma [pixel], at a focus [um] and a jitter [arcsec]."""
    return float(np.sqrt(_CORE**2 + (_DEFOCUS * focus) ** 2 + (jitter / _PIXEL_SCALE) ** 2))


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
    """Return a cut-out of an exposure: sky and stars, float32 (256, 256) [electron s-1].

    Its stars are not those of the table: the patch is chosen where there are some. Their PSF is wider out of focus
    and with jitter; stars and sky follow the throughput. Photon noise is Gaussian with the variance of the light, as
    the sky of some 30 electrons allows.

    Parameters
    ----------
    settings, name, seed, index, zero_point, background
        As for `exposure_stars`.
    focus : float
        True distance from best focus [um].
    jitter : float
        True jitter [arcsec].
    """
    survey = settings.survey(name)
    rng = stream(seed, Purpose.ZEROPOINT_PATCH, settings.number(name), index)
    n = int(rng.poisson(_PATCH_STARS * np.exp(rng.normal(0, 0.5))))
    magnitude = draw_magnitudes(rng, n, _PATCH_MAGNITUDES, _PATCH_SLOPE)
    x, y = rng.uniform(-0.5, PATCH - 0.5, (2, n))
    flux = 10 ** (-0.4 * (magnitude - zero_point))
    loss = 10 ** (0.4 * (zero_point - survey.nominal))
    reach = _HALF_STAMP
    light = np.full((PATCH + 2 * reach, PATCH + 2 * reach), background * loss + _DARK, dtype=np.float32)
    sigma = psf_sigma(focus, jitter)
    offsets = np.arange(-reach, reach + 1)
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    stamps = np.zeros((n, 2 * reach + 1, 2 * reach + 1))
    for share, width in ((1 - _WINGS, sigma), (_WINGS, sigma * _WINGS_WIDTH)):
        along_x, along_y = (
            np.exp(-0.5 * ((offsets - (at - nearest)[:, None]) / width) ** 2) / (np.sqrt(2 * np.pi) * width)
            for at, nearest in ((x, ix), (y, iy))
        )
        stamps += share * along_y[:, :, None] * along_x[:, None, :]
    for k in range(n):
        light[iy[k] : iy[k] + 2 * reach + 1, ix[k] : ix[k] + 2 * reach + 1] += flux[k] * stamps[k]
    light = light[reach:-reach, reach:-reach]
    noise = np.sqrt(light * np.float32(survey.exptime) + np.float32(_READ_NOISE**2))
    noise *= rng.standard_normal((PATCH, PATCH), dtype=np.float32) / np.float32(survey.exptime)
    return np.asarray(light + noise - np.float32(_DARK))
