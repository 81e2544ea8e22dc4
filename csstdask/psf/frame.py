"""The PSF of one frame: its sources found, its stars chosen, and a field fitted to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.correlation import noise_correlation
from csstdask.arrays.mesh import Mesh
from csstdask.arrays.sources import measure_sources
from csstdask.arrays.stamps import centre_pixels, cut_stamps
from csstdask.instrument import load_instrument
from csstdask.nn.models import EMPIRICAL, find_card
from csstdask.psf.field import PsfField
from csstdask.psf.fit_field import FieldFit
from csstdask.psf.fit_star import fit_stars
from csstdask.psf.pixels import subpixel_offset
from csstdask.psf.reconstruct import STAMP_SIZE, bands_of, check_detector, fit_with_fallback, model_kind
from csstdask.psf.selection import Selection, select_stars
from csstdask.psf.star_model import FIT_BOX

Float = npt.NDArray[np.float64]
Frame = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Stars that a field is fitted to, the brightest of a frame: more tell little that these do not.
MAX_STARS = 1200
#: Stars from which a PSF is learnt without being asked for: of fewer it is uncertain that their sizes are those of
#: stars (`csstdask.psf.selection`). In mock frames with 14 stars and more, repair by such a PSF always beat the median.
MIN_STARS_EMPIRICAL = 10
#: 1 sigma of the positions of stars that a field is fitted to [pixel].
_POSITION_SIGMA_FIELD = 0.05
#: 1 sigma of the position of a star whose residuals are measured [pixel].
_POSITION_SIGMA = 0.1
#: 1 sigma of the round Gaussian under which moments are measured [pixel].
_WEIGHT_SIGMA = 1.5


@dataclass(frozen=True)
class FramePsf:
    """The PSF of a frame, and the stars that it is known from.

    `n` sources, of which `m` are fitted.
    """

    field: PsfField
    """Answers at places of the frame."""
    fit: FieldFit
    """Of the fitted stars."""
    selection: Selection
    """Of all sources."""
    fitted: npt.NDArray[np.int64]
    """(m,) Which sources are fitted."""


@dataclass(frozen=True)
class MaskedFrame:
    """A sky-subtracted frame with hit pixels filled: input of source detection and of the PSF fit."""

    height: Frame
    """(y, x) float32, above the sky; any unit. Hit pixels hold their estimate, unusable ones 0."""
    error: Frame
    """(y, x) float32, 1 sigma; of hit pixels that of their estimate."""
    noise: Frame
    """(y, x) float32, 1 sigma of the sky."""
    hit: Mask
    """(y, x) Pixels that hold an estimate: no observation."""
    unusable: Mask
    """(y, x) Ignored pixels, and hit ones that could not be estimated."""
    noise_excess: float = 1.0
    """Factor on `noise` for the detection of sources, where noise is correlated."""

    @classmethod
    def of(
        cls, filled: npt.NDArray[Any], variance: npt.NDArray[Any], hit: Mask, ignore: Mask, mesh: Mesh
    ) -> MaskedFrame:
        """Return the masked frame of pixels with their sky; `variance` is inf where nothing is known."""
        unusable = ignore | (hit & ~np.isfinite(variance))
        height = np.subtract(filled, mesh.background_at(), dtype=np.float32)
        height[unusable] = 0
        error = np.sqrt(variance, dtype=np.float32)
        error[~np.isfinite(error)] = 0
        excess = noise_correlation(filled, hit | unusable, mesh).excess()
        return cls(height, error, mesh.noise_at(), hit & ~unusable, unusable, excess)

    @property
    def unobserved(self) -> Mask:
        """(y, x) Pixels that a fit must ignore."""
        return self.hit | self.unusable

    def measure_sources(self) -> dict[str, npt.NDArray[Any]]:
        """Find and measure the sources of the frame."""
        return measure_sources(self.height, self.error, self.noise, self.unusable, noise_excess=self.noise_excess)


def supports_band(instrument: str, detector: int, band: str | None = None, model: str = "default") -> bool:
    """Tell whether a model knows an instrument, by its name, and this band on a detector of it."""
    card = find_card("psf", model)
    if model_kind(card) == EMPIRICAL:
        return True
    known = bands_of(card).get(detector)
    of_it = instrument == load_instrument(card.architecture["instrument"]).name
    return of_it and known is not None and band in (None, known)


def choose_model(instrument: str, detector: int, band: str | None, model: str = "default") -> str | None:
    """Return which model a frame's PSF is fitted with: the asked one, if it knows the band.

    Where the default one does not, ``empirical``, which learns from the frame's own stars; otherwise None.
    """
    if supports_band(instrument, detector, band, model):
        return model
    return EMPIRICAL if model == "default" else None


def fit_frame(
    height: Frame,
    error: Frame,
    mask: Mask,
    sources: Mapping[str, Any],
    detector: int,
    *,
    model: str = "default",
    least_snr: float = 30.0,
    fewest: int = 1,
) -> FramePsf | None:
    """Fit the PSF of a frame to its stars.

    Parameters
    ----------
    height : float32 array (y, x)
        Above the sky; any unit.
    error : float32 array (y, x)
        1 sigma, in that unit.
    mask : bool array (y, x)
        True = ignore: bad and saturated pixels, cosmic rays.
    sources : mapping
        Their table, as `select_stars` takes it.
    detector : int
        Its id, as the model's instrument has it; of ``empirical`` any.
    model : str
        As `csstdask.psf.reconstruct` takes it.
    least_snr : float
        Of a star.
    fewest : int
        Least number of stars.

    Returns
    -------
    FramePsf or None
        None where fewer stars show it. The field was fitted with ``field.model``: the requested one, or ``empirical``
        in place of ``default`` where stars look more like that (`csstdask.psf.reconstruct`).

    Raises
    ------
    ValueError
        If the model knows nothing of the detector.
    InputError
        If a column is absent.
    """
    card = find_card("psf", model)
    check_detector(card, detector)
    selection = select_stars(sources, height.shape, least_snr=least_snr)
    x, y, flux = (np.asarray(sources[name], dtype=np.float64) for name in ("x", "y", "flux"))
    stars = np.flatnonzero(selection.fitted)
    if len(stars) < max(fewest, 1):
        return None
    fitted = np.sort(stars[np.argsort(-flux[stars], kind="stable")[:MAX_STARS]])
    given = *cut_star_stamps(height, error, mask, x[fitted], y[fitted]), x[fitted], y[fitted]
    shape = height.shape[0], height.shape[1]
    fit, field = fit_with_fallback(
        card, detector, *given, shape=shape, position_sigma=_POSITION_SIGMA_FIELD, fall_back=model == "default"
    )
    if not fit.used.any():
        return None
    return FramePsf(field, fit, selection, fitted)


def compare_stars(
    field: PsfField,
    fitted: npt.NDArray[np.int64],
    selection: Selection,
    height: Frame,
    error: Frame,
    mask: Mask,
    sources: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the shapes of selected stars, and of the PSF at their positions.

    Parameters
    ----------
    field : PsfField
        The PSF of the frame.
    fitted : int64 array (m,)
        Sources that it was fitted to.
    selection : Selection
        Of all sources.
    height, error, mask, sources
        As `fit_frame` takes them.

    Returns
    -------
    dict of arrays (n,)
        ``star``, the row of the source; ``reserve``, whether the star was held out of the fit; and the columns of
        `measure_residuals`.
    """
    which = np.sort(np.concatenate([fitted, np.flatnonzero(selection.reserve)]))
    x, y = (np.asarray(sources[name], dtype=np.float64)[which] for name in ("x", "y"))
    shapes = measure_residuals(field, *cut_star_stamps(height, error, mask, x, y), x, y)
    return {"star": which, "reserve": selection.reserve[which], **shapes}


def measure_residuals(field: PsfField, pixels: Frame, variance: Frame, x: Float, y: Float) -> dict[str, Float]:
    """Return how stars look, and how a field's PSF looks where they are.

    Parameters
    ----------
    field : PsfField
    pixels, variance : float32 arrays (n, 32, 32)
        Stamps; variance is inf where nothing is known.
    x, y : float64 arrays (n,)
        Places [pixel].

    Returns
    -------
    dict of arrays (n,)
        ``flux``; ``chi2``, a degree of freedom, of the field's PSF at the star with a flux, a sky and a place of its
        own; and the moments ``size`` [pixel], ``e1``, ``e2`` of the star, its unknown pixels filled from the PSF, and
        ``model_size``, ``model_e1``, ``model_e2`` of the PSF on the same pixels. Moments are second ones under a round
        Gaussian of 1.5 pixels: those that adapt to the image do not converge on all pixels of a star that is
        undersampled.
    """
    fit = fit_stars(field, pixels, variance, x, y, position_sigma=_POSITION_SIGMA, rigid=True)
    half, middle = FIT_BOX // 2, STAMP_SIZE // 2
    window = (slice(None), *2 * (slice(middle - half, middle + half),))
    sky = fit.sky[:, None, None]
    seen = np.where(np.isfinite(variance[window]), pixels[window], fit.light) - sky
    places = tuple(subpixel_offset(said) + found for said, found in ((x, fit.x_offset), (y, fit.y_offset)))
    columns = {"flux": fit.flux, "chi2": fit.chi2}
    for prefix, images in (("", seen), ("model_", fit.light - sky)):
        moments = weighted_moments(images, *places)
        columns |= {f"{prefix}{name}": values for name, values in zip(("size", "e1", "e2"), moments, strict=True)}
    return columns


def weighted_moments(images: npt.NDArray[np.floating[Any]], x: Float, y: Float) -> tuple[Float, Float, Float]:
    """Return size [pixel] and the two distortions of stars at places in their stamps; NaN where there is no light.

    Second moments under a round Gaussian of 1.5 pixels, places from the middle of pixel ``[size // 2, size // 2]``.
    """
    steps = np.arange(images.shape[-1]) - images.shape[-1] // 2
    dx, dy = steps[None, None, :] - x[:, None, None], steps[None, :, None] - y[:, None, None]
    light = images * np.exp(-0.5 * (dx**2 + dy**2) / _WEIGHT_SIGMA**2)
    total = light.sum(axis=(1, 2))
    xx, yy, xy = ((light * product).sum(axis=(1, 2)) for product in (dx**2, dy**2, dx * dy))
    good = (total > 0) & (xx + yy > 0)
    both, whole = np.where(good, xx + yy, np.nan), np.where(good, total, np.nan)
    return np.sqrt(both / whole / 2), (xx - yy) / both, 2 * xy / both


def cut_star_stamps(height: Frame, error: Frame, mask: Mask, x: Float, y: Float) -> tuple[Frame, Frame]:
    """Return stamps (n, 32, 32) round places of a frame, and the variance of each pixel, inf where nothing is known."""
    places = centre_pixels(y), centre_pixels(x)
    pixels, sigma = (np.asarray(cut_stamps(plane, *places, STAMP_SIZE), dtype=np.float32) for plane in (height, error))
    bad = cut_stamps(mask, *places, STAMP_SIZE, fill=True) | ~np.isfinite(pixels) | ~np.isfinite(sigma) | (sigma <= 0)
    with np.errstate(over="ignore"):
        variance = np.where(bad, np.inf, sigma**2).astype(np.float32)
    return np.where(bad, np.float32(0), pixels), variance
