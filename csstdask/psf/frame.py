"""Fit the PSF of one frame: select stars among its sources, and fit a field to them."""

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
from csstdask.psf.fit_detector import fit_with_fallback
from csstdask.psf.fit_field import FieldFit
from csstdask.psf.fit_star import fit_stars
from csstdask.psf.model_card import bands_of, check_detector, model_kind
from csstdask.psf.pixels import subpixel_offset
from csstdask.psf.reconstruct import STAMP_SIZE
from csstdask.psf.selection import Selection, select_stars
from csstdask.psf.star_model import FIT_BOX, central_box

Float = npt.NDArray[np.float64]
Frame = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Largest number of stars that a field is fitted to, the brightest of a frame: more add little.
MAX_STARS = 1200
#: Smallest number of stars for ``empirical`` where no model was requested: of fewer it is uncertain that their sizes
#: are those of stars (`csstdask.psf.selection`). In mock frames with 14 stars and more, repair by such a PSF always
#: beat the median.
MIN_STARS_EMPIRICAL = 10
#: 1 sigma of the positions of stars that a field is fitted to [pixel].
_FIELD_POSITION_SIGMA = 0.05
#: 1 sigma of the position of a star whose residuals are measured [pixel].
_POSITION_SIGMA = 0.1
#: 1 sigma of the round Gaussian under which moments are measured [pixel].
_WEIGHT_SIGMA = 1.5


@dataclass(frozen=True, eq=False)
class FramePsf:
    """The PSF of a frame with n sources, fitted to m stars."""

    field: PsfField
    """PSF at any position of the frame."""
    fit: FieldFit
    """Fit of the m stars."""
    selection: Selection
    """Selection among the n sources."""
    fitted: npt.NDArray[np.int64]
    """(m,) Rows of the fitted stars in the source table."""


@dataclass(frozen=True, eq=False)
class MaskedFrame:
    """A sky-subtracted frame with cosmic rays filled: input of source detection and of the PSF fit."""

    height: Frame
    """(y, x) float32, above the sky, in any unit. Pixels with cosmic rays hold an estimate, unusable ones 0."""
    error: Frame
    """(y, x) float32, 1 sigma; that of the estimate in pixels with cosmic rays."""
    noise: Frame
    """(y, x) float32, 1 sigma of the sky."""
    hit: Mask
    """(y, x) Pixels that hold an estimate instead of a measurement."""
    unusable: Mask
    """(y, x) Ignored pixels, and pixels with cosmic rays that could not be estimated."""
    noise_excess: float = 1.0
    """Factor on `noise` in the detection of sources, where noise is correlated."""

    @classmethod
    def of(
        cls, filled: npt.NDArray[Any], variance: npt.NDArray[Any], hit: Mask, ignore: Mask, mesh: Mesh
    ) -> MaskedFrame:
        """Return the masked frame of filled pixels, sky included.

        Parameters
        ----------
        filled : array (y, x)
            Pixels, with estimates where `hit`.
        variance : array (y, x)
            Pixel variance, inf where unknown.
        hit, ignore : bool arrays (y, x)
            Pixels with cosmic rays, and ignored ones.
        mesh : Mesh
            Sky and noise of the frame.
        """
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
    """Return whether a model supports a detector of an instrument, and this band on it.

    Parameters
    ----------
    instrument : str
        Name of the instrument.
    detector : int
        Id of the detector.
    band : str, optional
        Band of the detector; by default any.
    model : str
        As `csstdask.psf.reconstruct` takes it.
    """
    card = find_card("psf", model)
    if model_kind(card) == EMPIRICAL:
        return True
    known = bands_of(card).get(detector)
    same_instrument = instrument == load_instrument(card.architecture["instrument"]).name
    return same_instrument and known is not None and band in (None, known)


def choose_model(instrument: str, detector: int, band: str | None, model: str = "default") -> str | None:
    """Return the model for the PSF of a frame.

    It is the requested one if it supports the band. Otherwise it is ``empirical``, which learns from the frame's own
    stars, in place of ``default``, and None in place of others. Parameters are those of `supports_band`.
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
    min_snr: float = 30.0,
    min_stars: int = 1,
) -> FramePsf | None:
    """Fit the PSF of a frame to its stars.

    Parameters
    ----------
    height : float32 array (y, x)
        Sky-subtracted frame, in any unit.
    error : float32 array (y, x)
        1 sigma, in that unit.
    mask : bool array (y, x)
        True = ignore: bad and saturated pixels, cosmic rays.
    sources : mapping
        Source table, as `select_stars` takes it.
    detector : int
        Id of the detector in the model's instrument; any for ``empirical``.
    model : str
        As `csstdask.psf.reconstruct` takes it.
    min_snr : float
        Smallest S/N of a star.
    min_stars : int
        Smallest number of stars.

    Returns
    -------
    FramePsf or None
        None where there are fewer stars. ``field.model`` is the name of the model of the fit: the requested one, or
        ``empirical`` in place of ``default`` where it fits the stars better (`csstdask.psf.reconstruct`).

    Raises
    ------
    ValueError
        If the model does not support the detector.
    InputError
        If a column is absent.
    """
    card = find_card("psf", model)
    check_detector(card, detector)
    selection = select_stars(sources, height.shape, min_snr=min_snr)
    x, y, flux = (np.asarray(sources[name], dtype=np.float64) for name in ("x", "y", "flux"))
    stars = np.flatnonzero(selection.fitted)
    if len(stars) < max(min_stars, 1):
        return None
    fitted = np.sort(stars[np.argsort(-flux[stars], kind="stable")[:MAX_STARS]])
    pixels, variance = cut_star_stamps(height, error, mask, x[fitted], y[fitted])
    fit, field = fit_with_fallback(
        card,
        detector,
        pixels,
        variance,
        x[fitted],
        y[fitted],
        shape=(height.shape[0], height.shape[1]),
        position_sigma=_FIELD_POSITION_SIGMA,
        fall_back=model == "default",
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
    """Measure the shapes of selected stars, and of the PSF at their positions.

    Parameters
    ----------
    field : PsfField
        PSF of the frame.
    fitted : int64 array (m,)
        Rows of the stars that it was fitted to.
    selection : Selection
        Selection among all sources.
    height, error, mask, sources
        As `fit_frame` takes them.

    Returns
    -------
    dict of arrays (n,)
        ``star``, row of the source; ``held_out``, whether the star was held out of the fit; and the columns of
        `measure_residuals`.
    """
    which = np.sort(np.concatenate([fitted, np.flatnonzero(selection.held_out)]))
    x, y = (np.asarray(sources[name], dtype=np.float64)[which] for name in ("x", "y"))
    shapes = measure_residuals(field, *cut_star_stamps(height, error, mask, x, y), x, y)
    return {"star": which, "held_out": selection.held_out[which], **shapes}


def measure_residuals(field: PsfField, pixels: Frame, variance: Frame, x: Float, y: Float) -> dict[str, Float]:
    """Measure the shapes of stars, and of the PSF of a field at their positions.

    Parameters
    ----------
    field : PsfField
    pixels, variance : float32 arrays (n, 32, 32)
        Stamps of stars; variance is inf where unknown.
    x, y : float64 arrays (n,)
        Positions [pixel].

    Returns
    -------
    dict of arrays (n,)
        ``flux``; ``chi2`` per degree of freedom, of the field's PSF with a free flux, sky and position; the moments
        ``size`` [pixel], ``e1`` and ``e2`` of the star, with unknown pixels filled from the PSF; and ``model_size``,
        ``model_e1`` and ``model_e2`` of the PSF on the same pixels. Moments are measured under a fixed round Gaussian
        (`weighted_moments`): adaptive moments do not converge for every undersampled star.
    """
    fit = fit_stars(field, pixels, variance, x, y, position_sigma=_POSITION_SIGMA, rigid=True)
    box = central_box(STAMP_SIZE, FIT_BOX)
    sky = fit.sky[:, None, None]
    observed = np.where(np.isfinite(variance[box]), pixels[box], fit.light) - sky
    offsets = subpixel_offset(x) + fit.x_offset, subpixel_offset(y) + fit.y_offset
    columns = {"flux": fit.flux, "chi2": fit.chi2}
    for prefix, images in (("", observed), ("model_", fit.light - sky)):
        moments = weighted_moments(images, *offsets)
        columns |= {f"{prefix}{name}": values for name, values in zip(("size", "e1", "e2"), moments, strict=True)}
    return columns


def weighted_moments(images: npt.NDArray[np.floating[Any]], x: Float, y: Float) -> tuple[Float, Float, Float]:
    """Return the size [pixel] and the two distortions of stars, under a round Gaussian of 1.5 pixels.

    Parameters
    ----------
    images : array (n, y, x)
        Sky-subtracted stamps.
    x, y : float64 arrays (n,)
        Offsets of the stars from the centre of pixel ``[size // 2, size // 2]`` [pixel].

    Returns
    -------
    size, e1, e2 : float64 arrays (n,)
        NaN without light.
    """
    steps = np.arange(images.shape[-1]) - images.shape[-1] // 2
    dx, dy = steps[None, None, :] - x[:, None, None], steps[None, :, None] - y[:, None, None]
    light = images * np.exp(-0.5 * (dx**2 + dy**2) / _WEIGHT_SIGMA**2)
    total = light.sum(axis=(1, 2))
    xx, yy, xy = ((light * product).sum(axis=(1, 2)) for product in (dx**2, dy**2, dx * dy))
    good = (total > 0) & (xx + yy > 0)
    trace, total = np.where(good, xx + yy, np.nan), np.where(good, total, np.nan)
    return np.sqrt(trace / total / 2), (xx - yy) / trace, 2 * xy / trace


def cut_star_stamps(height: Frame, error: Frame, mask: Mask, x: Float, y: Float) -> tuple[Frame, Frame]:
    """Return stamps (n, 32, 32) of positions (n,) in a frame, and their variance, inf where unknown."""
    centres = centre_pixels(y), centre_pixels(x)
    pixels, sigma = (np.asarray(cut_stamps(plane, *centres, STAMP_SIZE), dtype=np.float32) for plane in (height, error))
    bad = cut_stamps(mask, *centres, STAMP_SIZE, fill=True) | ~np.isfinite(pixels) | ~np.isfinite(sigma) | (sigma <= 0)
    with np.errstate(over="ignore"):
        variance = np.where(bad, np.inf, sigma**2).astype(np.float32)
    return np.where(bad, np.float32(0), pixels), variance
