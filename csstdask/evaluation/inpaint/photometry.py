"""Evaluate photometry of sources of known brightness, each hit a hundred times (CSST rejection paper, figure 5).

Each cosmic ray falls on a separate copy of its source, with its own photon noise and position within the pixel. The
same copy without the cosmic ray, its clean twin, is measured in the same way, so the difference is due to the repair.
Fluxes are sums in an aperture at the true position. Sources with an ignored pixel in the aperture are excluded. Each
bin has

* the shift, the median of ``-2.5 log10(repaired / clean twin)``;
* the scatter, half the width of the central 68 % of (repaired / median flux of the copies), photon noise included, and
  that of the clean twins; for stars also

  * *oracle*: the PSF and the position are known exactly, only the flux is fitted to the unmasked pixels;
  * *oracle without position*: the PSF is known exactly, flux and position are fitted;
  * the Cramer-Rao bound on the flux for a known PSF, which no sum in an aperture reaches.

For sources with a masked pixel in the aperture, errors of the shape are measured as well: size and ellipticity by
adaptive moments, minus those of the clean twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import sep

from csstdask.arrays.moments import adaptive_moments
from csstdask.arrays.sources import shared_repair_error, sum_covariance
from csstdask.arrays.stamps import centre_pixels, cut_stamps
from csstdask.cosmicray.detect import detect
from csstdask.evaluation.cosmicray.truth_frame import TruthFrame, render_truth_frame
from csstdask.evaluation.inpaint.methods import MaskedImage, own_methods, repair_methods
from csstdask.instrument import load_instrument
from csstdask.metrics.detection import Bool, Float
from csstdask.mock import Recipe
from csstdask.mock.catalogue import Catalogue
from csstdask.mock.expected_image import expected_light
from csstdask.nn.models import find_card
from csstdask.psf.frame import supports_band

Mask = Literal["true", "detected"]
MASKS: tuple[Mask, ...] = get_args(Mask)
Column = npt.NDArray[np.float64]

#: Radius of the aperture, and half the side of the window of a source [pixel].
APERTURE, _HALF_WINDOW = 5.0, 16
#: Height above the sky from which a pixel belongs to a source [sigma].
_SOURCE_SIGMA = 3.0
CLEAN, ORACLE, ORACLE_POSITION, FLUX_BOUND = "clean twin", "known_star_scatter", "unplaced_star_scatter", "bound"
#: Columns of stars only.
STAR_COLUMNS = (ORACLE, ORACLE_POSITION, FLUX_BOUND)
#: Shift of the stars for derivatives with respect to their position [pixel].
_STEP = 0.1


@dataclass
class UnitMeasurements:
    """Measurements of the sources of one unit, by column or method."""

    columns: dict[str, Column] = field(default_factory=dict)
    """For each source ``magnitude``, ``is_star``, ``distance`` from the nearest charge [pixel], the fraction ``masked``
    of the charge within 16 pixels, whether it is ``usable``; for stars the scatters of `oracle_scatter`; by method
    the flux [e-]."""
    pulls: dict[str, dict[str, Column]] = field(default_factory=dict)
    """By method: (repaired - clean) / sigma of the pixels of ``star``, ``galaxy`` and ``background``."""
    flux_pulls: dict[str, Column] = field(default_factory=dict)
    """By method: the same for aperture fluxes, with the correlation of the model card; NaN without repaired pixels."""
    shapes: dict[str, Column] = field(default_factory=dict)
    """By method (n, 3): relative error of the size, errors of the two distortions. NaN where the moments do not
    converge, and for sources without masked pixels or whose clean twin has no moments."""
    shaped: Column = field(default_factory=lambda: np.empty(0))
    """(n,) 1 for sources with masked pixels whose clean twin has moments, else 0."""


def measure_unit(
    recipe: Recipe, index: int, detector: int, *, models: Sequence[str], mask: Mask, peers: bool = True
) -> UnitMeasurements:
    """Render a unit, repair it with all methods, and measure its sources.

    Parameters
    ----------
    recipe : Recipe
        Recipe with cosmic rays on sources.
    index, detector : int
        Index of the exposure and id of the detector.
    models : sequence of str
        Networks, by name or card.
    mask : str
        ``true``: all pixels with charge; ``detected``: the pixels that detection finds.
    peers : bool
        Whether other tools are evaluated as well.

    Raises
    ------
    ValueError
        If the mask is unknown.
    """
    if mask not in MASKS:
        raise ValueError(f"mask: found {mask!r}; wanted one of {', '.join(MASKS)}")
    known = render_truth_frame(recipe, index, detector)
    case = known.case
    charged = (case.charge > 0) & ~case.ignore
    hit = charged
    if mask != "true":
        hit = np.asarray(detect(case.data, case.error, case.ignore, precision="float32").mask)
    psf = supports_band(recipe.instrument, detector)
    frame = MaskedImage(case.data, case.error, case.ignore, detector if psf else None)
    x, y, is_star = known.catalogue.x, known.catalogue.y, known.catalogue.is_star
    light = _ExpectedLight.of(recipe, index, detector, known)
    columns = {"magnitude": known.catalogue.mag, "is_star": is_star.astype(float)}
    columns |= _hits(charged, hit, case.charge, x, y)
    columns["usable"] = (aperture_flux(case.ignore.astype(np.float32), x, y) == 0).astype(float)
    columns |= light.scatters(hit, x, y, is_star)
    columns[CLEAN] = aperture_flux(known.clean - np.float32(known.sky), x, y)
    measured = UnitMeasurements(columns)
    region = light.regions(x, y, is_star)
    touched = (aperture_flux(hit.astype(np.float32), x, y) > 0) & (columns["usable"] > 0)
    twin = measure_shapes(known.clean - np.float32(known.sky), x, y)
    measured.shaped = (touched & np.isfinite(twin).all(axis=1)).astype(float)
    correlations = {
        name: find_card("inpaint", model).calibration.get("correlation", 0.0)
        for name, (model, _) in own_methods(models, psf=psf).items()
    }
    for name, fill in repair_methods(models, psf=psf, peers=peers).items():
        fixed, variance = fill(frame, hit)
        flux = aperture_flux(fixed - np.float32(known.sky), x, y)
        columns[name] = flux
        change = measure_shapes(fixed - np.float32(known.sky), x, y) - twin
        change[:, 0] /= twin[:, 0]
        measured.shapes[name] = np.where(touched[:, None], change, np.nan)
        if variance is None:
            continue
        repaired = hit & np.isfinite(variance) & (variance > 0)
        pull = np.zeros_like(known.clean)
        pull[repaired] = (fixed - known.clean)[repaired] / np.sqrt(variance[repaired])
        measured.pulls[name] = {
            kind: pull[repaired & (region == number)].astype(float) for kind, number in KINDS.items()
        }
        sigma = np.sqrt(np.where(repaired, variance, 0)).astype(np.float32)
        together = shared_repair_error(fixed - np.float32(known.sky), sigma, np.float32(known.rms), repaired)
        whole = aperture_flux(sigma**2, x, y)
        whole += sum_covariance(together, correlations.get(name, 0.0), partial(aperture_flux, x=x, y=y))
        with np.errstate(divide="ignore", invalid="ignore"):
            measured.flux_pulls[name] = np.where(whole > 0, (flux - columns[CLEAN]) / np.sqrt(whole), np.nan)
    return measured


def aperture_flux(frame: Float, x: Column, y: Column) -> Column:
    """Return the sums of a frame in a circular aperture around positions, in the units of the frame."""
    return np.asarray(sep.sum_circle(np.ascontiguousarray(frame, dtype=np.float32), x, y, APERTURE, subpix=5)[0])


def measure_shapes(frame: Float, x: Column, y: Column) -> Column:
    """Return sizes [pixel] and both distortions of sources (n, 3), by adaptive moments; NaN if they do not converge."""
    stamps = cut_stamps(frame, centre_pixels(y), centre_pixels(x), 2 * _HALF_WINDOW)
    found = adaptive_moments(stamps)
    return np.column_stack([found.sigma, found.e1, found.e2])


KINDS = {"background": 0, "star": 1, "galaxy": 2}


@dataclass(frozen=True)
class _ExpectedLight:
    """Expected light of a unit, without noise [e-]."""

    sources: Float
    """(y, x) Light of all sources."""
    stars: Float
    """(y, x) Light of stars."""
    slopes: tuple[Float, Float]
    """Derivatives of the light of stars with respect to x and y [e-/pixel]."""
    variance: Float
    """(y, x) Variance of the measured pixels [e-^2]."""

    @classmethod
    def of(cls, recipe: Recipe, index: int, detector: int, known: TruthFrame) -> _ExpectedLight:
        instrument, catalogue = load_instrument(recipe.instrument), known.catalogue

        def render(sources: Catalogue) -> Float:
            return expected_light(recipe, instrument, index, detector, sources)[0] * np.float32(recipe.exptime)

        stars = catalogue.select(catalogue.is_star)
        moved = {
            axis: [render(replace(stars, **{axis: getattr(stars, axis) + step})) for step in (-_STEP, _STEP)]
            for axis in ("x", "y")
        }
        in_x, in_y = ((ahead - behind) / np.float32(2 * _STEP) for behind, ahead in moved.values())
        everything, sky = render(catalogue), render(catalogue.select(np.zeros(len(catalogue), dtype=bool)))
        read_noise = np.float32(instrument.values(detector).read_noise or 0.0)
        return cls(everything - sky, render(stars) - sky, (in_x, in_y), everything + read_noise**2)

    def regions(self, x: Column, y: Column, is_star: Bool) -> npt.NDArray[np.int8]:
        """Return the region of each pixel: background, or a star or galaxy that is 3 sigma above it."""
        bright = self.sources > _SOURCE_SIGMA * np.sqrt(self.variance - self.sources)
        region = np.zeros(bright.shape, dtype=np.int8)
        for column, row, kind in zip(x, y, is_star, strict=True):
            window = _window(column, row)
            region[window][bright[window]] = KINDS["star" if kind else "galaxy"]
        return region

    def scatters(self, lost: Bool, x: Column, y: Column, is_star: Bool) -> dict[str, Column]:
        """Return the relative scatters of stars by `oracle_scatter`; NaN for galaxies."""
        columns = np.full((3, len(x)), np.nan)
        for star in np.flatnonzero(is_star):
            window = _window(x[star], y[star])
            light, variance, there = self.stars[window], self.variance[window], lost[window]
            rows, across = np.indices(light.shape)
            inside = np.hypot(rows + window[0].start - y[star], across + window[1].start - x[star]) < APERTURE
            placed, bound = oracle_scatter(light[None], variance, there, inside)
            unknown = np.stack([light, *(slope[window] for slope in self.slopes)])
            columns[:, star] = placed, oracle_scatter(unknown, variance, there, inside)[0], bound
        return dict(zip(STAR_COLUMNS, columns, strict=True))


def _window(x: float, y: float) -> tuple[slice, slice]:
    return slice(max(0, int(y) - _HALF_WINDOW), int(y) + _HALF_WINDOW), slice(
        max(0, int(x) - _HALF_WINDOW), int(x) + _HALF_WINDOW
    )


def oracle_scatter(derivatives: Float, variance: Float, lost: Bool, inside: Bool) -> tuple[float, float]:
    """Return the relative scatter of the aperture flux of a star with a known PSF, and the bound on its flux.

    The Fisher information of the unmasked pixels bounds the errors of the unknown parameters. These are propagated to
    the sum in the aperture, whose masked pixels are predicted from the parameters.

    Parameters
    ----------
    derivatives : float array (k, y, x)
        Derivatives of the image with respect to the unknown parameters: first the relative flux, whose derivative is
        the expected light [e-]; optionally the position along x and y.
    variance : float array (y, x)
        Variance of the measured pixels [e-^2].
    lost, inside : bool arrays (y, x)
        Masked pixels, and pixels of the aperture.

    Returns
    -------
    aperture : float
        Relative scatter of the sum in the aperture.
    bound : float
        Cramer-Rao bound on the relative flux: ``1 / sqrt(sum(light^2 / variance))`` over unmasked pixels if only the
        flux is unknown.
    """
    kept = ~lost
    planes = derivatives.astype(float)
    information = (planes[:, kept] / variance[kept]) @ planes[:, kept].T
    covariance = np.linalg.pinv(information, hermitian=True)
    predicted, measured = planes[:, inside & lost].sum(axis=1), planes[:, inside & kept].sum(axis=1)
    # The second term is the covariance: the parameters are fitted to pixels that are also in the sum.
    total = float(variance[inside & kept].sum()) + float(predicted @ covariance @ (predicted + 2 * measured))
    if not information[0, 0] > 0:
        return np.inf, np.inf
    return float(np.sqrt(total)) / max(float(planes[0][inside].sum()), 1e-9), float(np.sqrt(covariance[0, 0]))


def _hits(charged: Bool, hit: Bool, charge: Float, x: Column, y: Column) -> dict[str, Column]:
    """Return the distance of each source from the nearest pixel with charge, and the masked fraction of the charge."""
    distance, masked = np.full(len(x), np.inf), np.ones(len(x))
    for number, (column, row) in enumerate(zip(x, y, strict=True)):
        window = _window(column, row)
        rows, across = np.nonzero(charged[window])
        if len(rows):
            distance[number] = np.hypot(rows + window[0].start - row, across + window[1].start - column).min()
            near = np.where(charged[window], charge[window], 0)
            masked[number] = near[hit[window]].sum() / near.sum()
    return {"distance": distance, "masked": masked}
