"""Compare PSFs with stars that no fit has used, whose true PSF is unknown.

A PSF field is compared as the survey step does it (`held_out_stars`). PSFs without a field, such as those of other
programs, are compared image by image (`compare_with_stars`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.metrics.psf import Stars
from csstdask.metrics.rho_statistics import rho_statistics
from csstdask.nn.models import find_card
from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING, resample
from csstdask.psf.fit_star import fit_model
from csstdask.psf.frame import measure_residuals, weighted_moments
from csstdask.psf.pixels import Renderer, subpixel_offset, to_render_layout
from csstdask.psf.reconstruct import reconstruct
from csstdask.psf.selection import in_held_out_cell
from csstdask.psf.star_model import STAR_TERMS, StarModel, StarParameters, StarStamps

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]

#: Width of the central box of a stamp that is compared [pixel].
_SIZE = 20
#: Rounds of linearisation, without rejection of outliers: all pixels count.
_ROUNDS = (None,) * 5
#: 1 sigma of given positions [pixel].
_POSITION_SIGMA = 0.1
#: Samples of a reconstructed PSF per native pixel.
_SAMPLES = 2


def held_out_stars(stars: Stars, model: str) -> dict[str, Any]:
    """Fit a field to four fifths of the stars of a detector, and compare it with the others.

    Parameters
    ----------
    stars : Stars
    model : str
        Name of a model, or path of a card.

    Returns
    -------
    dict
        ``n``, number of held-out stars with measurable shapes; ``chi2``, their median per degree of freedom; ``size``,
        ``e1`` and ``e2``, mean and standard deviation of PSF - star (relative for sizes), noise of the stars included;
        and the rho statistics (`csstdask.metrics.rho_statistics`) by separation [pixel]. Empty where a model has no
        fields, or no star is held out.
    """
    kept = in_held_out_cell(stars.x, stars.y, stars.shape)
    given, asked = stars.take(~kept), stars.take(kept)
    if not len(given) or not len(asked):
        return {}
    detectors = np.full(len(given), stars.detector)
    name = find_card("psf", model).name if model == "default" else model  # by name: no fallback to another model
    found = reconstruct(
        given.stamps, detectors, given.x, given.y, error=given.error, mask=given.mask, model=name, shape=stars.shape
    )
    if stars.detector not in found.fields:
        return {}
    variance = np.where(asked.mask, np.inf, asked.error.astype(float) ** 2).astype(np.float32)
    shapes = measure_residuals(found.fields[stars.detector], asked.stamps, variance, asked.x, asked.y)
    errors = {"size": shapes["model_size"] / shapes["size"] - 1}
    errors |= {name: shapes[f"model_{name}"] - shapes[name] for name in ("e1", "e2")}
    measured = np.isfinite(np.stack([*errors.values(), shapes["chi2"]])).all(axis=0)
    if not measured.any():
        return {}
    rho = rho_statistics([shapes | {"x": asked.x, "y": asked.y}])
    return {
        "n": int(measured.sum()),
        "chi2": float(np.median(shapes["chi2"][measured])),
        **{
            name: {"mean": float(error[measured].mean()), "sd": float(error[measured].std())}
            for name, error in errors.items()
        },
        "rho": {name: values.tolist() for name, values in rho.items()},
    }


def compare_with_stars(image: Images, pixels: Images, variance: Images, x: Float, y: Float) -> dict[str, Float]:
    """Compare PSFs with stars, each with the flux, sky and position that fit it best.

    Parameters
    ----------
    image : float32 array (n, 64, 64)
        PSFs at the positions of the stars, as `csstdask.psf.reconstruct` returns them.
    pixels, variance : float32 arrays (n, 32, 32)
        Stamps of the stars; variance is inf where unknown.
    x, y : float64 arrays (n,)
        Positions [pixel].

    Returns
    -------
    dict of arrays (n,)
        ``chi2`` per degree of freedom of the inner 20 x 20 pixels, NaN for a star with too few of them; ``snr``, flux
        over its error; ``size``, (R - R_star) / R_star, ``e1`` and ``e2``, PSF - star, as in
        `csstdask.metrics.psf.psf_errors` (the metrics of a run are star - PSF). Moments are measured under a round
        Gaussian (`csstdask.psf.frame.measure_residuals`) on the same pixels; unknown pixels of the star are filled from
        the PSF.
    """
    n = len(pixels)
    offsets = subpixel_offset(x), subpixel_offset(y)
    stamps = StarStamps.crop(pixels, variance, *offsets, position_sigma=_POSITION_SIGMA, size=_SIZE)
    none = np.zeros(n)
    start = StarParameters(np.zeros((n, 0)), none, none, *offsets)
    precision = np.diag([0.0, 0.0, _POSITION_SIGMA**-2, _POSITION_SIGMA**-2])
    fit = fit_model(
        _rigid_model(image),
        stamps,
        start,
        np.broadcast_to(precision, (n, STAR_TERMS, STAR_TERMS)),
        model_errors=_ROUNDS,
    )
    found, unit = fit.parameters, fit.lines.image.astype(float)
    light, known = found.flux[:, None, None] * unit, stamps.usable
    observed = stamps.pixels - found.sky[:, None, None]
    degrees = known.sum(axis=(1, 2)) - float(STAR_TERMS)
    chi2 = (fit.weight * (observed - light) ** 2).sum(axis=(1, 2)) / np.where(degrees > 0, degrees, np.nan)
    columns = {"chi2": chi2, "snr": found.flux * np.sqrt((fit.weight * unit**2).sum(axis=(1, 2)))}
    psf = weighted_moments(light, found.x, found.y)
    star = weighted_moments(np.where(known, observed, light), found.x, found.y)
    return columns | {"size": psf[0] / star[0] - 1, "e1": psf[1] - star[1], "e2": psf[2] - star[2]}


def _rigid_model(image: Images) -> StarModel:
    """Return the model of stars (n,) of half-pixel PSFs (n, 64, 64)."""
    fine = resample(image, image.shape[-1] // _SAMPLES * OVERSAMPLING) * np.float32(_SAMPLES**2)
    border = (BASIS_SIZE - fine.shape[-1]) // 2
    fine = np.pad(fine, ((0, 0), (border, border), (border, border)))
    none = np.empty((0, BASIS_SIZE, BASIS_SIZE), np.float32)
    return StarModel(to_render_layout(fine, _SIZE), to_render_layout(none, _SIZE), Renderer(none, _SIZE), _SIZE)
