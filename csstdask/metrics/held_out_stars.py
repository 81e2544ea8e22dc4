"""How PSFs stand beside stars that no fit has seen, whose truth nobody knows.

A field is laid on stars as a run's step does it (`held_out_stars`); what has no field, such as a peer's PSFs, is laid
on them image by image (`compare_with_stars`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.metrics.psf import Stars
from csstdask.metrics.rho_statistics import rho_statistics
from csstdask.nn.models import find_card
from csstdask.psf.basis import BASIS_SIZE, OVERSAMPLING, resample
from csstdask.psf.frame import measure_residuals, weighted_moments
from csstdask.psf.noise import expected_variance
from csstdask.psf.pixels import interpolation_matrix, subpixel_offset
from csstdask.psf.reconstruct import reconstruct
from csstdask.psf.selection import in_held_out_cell

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]

#: Edge of what is compared [pixel].
_SIZE = 20
#: Rounds of linearisation, and how far a star moves in one at most [pixel].
_ROUNDS, _STEP = 5, 0.3
#: How well places are known, one sigma [pixel].
_PLACE = 0.1
#: Samples of a reconstructed PSF a native pixel.
_SAMPLES = 2


def held_out_stars(stars: Stars, model: str) -> dict[str, Any]:
    """Fit a field to four fifths of the stars of a detector, and return how it suits the others.

    Parameters
    ----------
    stars : Stars
    model : str
        A name or a card's path.

    Returns
    -------
    dict
        ``n`` stars in reserve that show a shape; ``chi2``, a degree of freedom, their median; ``size``, ``e1`` and
        ``e2``, mean and scatter of PSF - star (of sizes relative), noise of stars and all; and the rho statistics
        (`csstdask.metrics.rho_statistics`) by separation [pixel]. Empty where a model has no fields, or no star is
        in reserve.
    """
    kept = in_held_out_cell(stars.x, stars.y, stars.shape)
    given, asked = stars.take(~kept), stars.take(kept)
    if not len(given) or not len(asked):
        return {}
    detectors = np.full(len(given), stars.detector)
    name = find_card("psf", model).name if model == "default" else model  # itself, whatever the stars look like
    found = reconstruct(
        given.stamps, detectors, given.x, given.y, error=given.error, mask=given.mask, model=name, shape=stars.shape
    )
    if stars.detector not in found.fields:
        return {}
    variance = np.where(asked.mask, np.inf, asked.error.astype(float) ** 2).astype(np.float32)
    seen = measure_residuals(found.fields[stars.detector], asked.stamps, variance, asked.x, asked.y)
    errors = {"size": seen["model_size"] / seen["size"] - 1}
    errors |= {name: seen[f"model_{name}"] - seen[name] for name in ("e1", "e2")}
    shown = np.isfinite(np.stack([*errors.values(), seen["chi2"]])).all(axis=0)
    if not shown.any():
        return {}
    rho = rho_statistics([seen | {"x": asked.x, "y": asked.y}])
    return {
        "n": int(shown.sum()), "chi2": float(np.median(seen["chi2"][shown])),
        **{name: {"mean": float(one[shown].mean()), "sd": float(one[shown].std())} for name, one in errors.items()},
        "rho": {name: values.tolist() for name, values in rho.items()},
    }  # fmt: skip


def compare_with_stars(image: Images, pixels: Images, variance: Images, x: Float, y: Float) -> dict[str, Float]:
    """Lay PSFs on stars, each with the flux, sky and place that suit it best.

    Parameters
    ----------
    image : float32 array (n, 64, 64)
        PSFs at the stars' places, as `csstdask.psf.reconstruct` has them.
    pixels, variance : float32 arrays (n, 32, 32)
        Of the stars; variance is inf where nothing is known.
    x, y : float64 arrays (n,)
        Places [pixel].

    Returns
    -------
    dict of arrays (n,)
        ``chi2``, a degree of freedom, of the inner 20 x 20 pixels, NaN of a star that shows too few of them; ``snr``,
        flux over its error; ``size``, (R - R_star) / R_star, ``e1`` and ``e2``, PSF - star, as `errors_of` has them (a
        run's metrics are star - PSF): moments under a round Gaussian (`csstdask.psf.frame.judge`) on the same pixels,
        those of the star that are unknown filled from the PSF.
    """
    middle, half = pixels.shape[-1] // 2, _SIZE // 2
    window = (slice(None), *2 * (slice(middle - half, middle + half),))
    known = (np.isfinite(variance) & (variance > 0))[window]
    given = np.where(known, variance[window], np.inf).astype(np.float32)
    seen = np.where(known, pixels[window], 0).astype(float)
    fine = _fine(image)
    told = subpixel_offset(x), subpixel_offset(y)
    places, flux, sky = np.stack(told), np.zeros(len(seen)), np.zeros((len(seen), 1, 1))
    for _ in range(_ROUNDS):
        plain, moved = _rendered(fine, *places)
        fitted = flux[:, None, None] * plain + sky
        weight = 1 / expected_variance(given, seen - fitted, fitted).astype(float)
        slopes = flux[:, None, None, None] * moved
        design = np.concatenate([plain[..., None], np.ones_like(plain[..., None]), slopes], axis=-1)
        prior = np.diag([0.0, 0.0, _PLACE**-2, _PLACE**-2])
        normal = np.einsum("nyxa,nyx,nyxb->nab", design, weight, design) + prior
        right = np.einsum("nyxa,nyx,nyx->na", design, weight, seen)
        right[:, 2:] -= (places - told).T * _PLACE**-2
        solved = np.einsum("nab,nb->na", np.linalg.pinv(normal), right)
        flux, sky = solved[:, 0], solved[:, 1, None, None]
        places += np.clip(solved[:, 2:].T, -_STEP, _STEP)
    plain, _ = _rendered(fine, *places)
    light = flux[:, None, None] * plain
    freedom = known.sum(axis=(1, 2)) - np.float64(design.shape[-1])
    chi2 = (weight * (seen - sky - light) ** 2).sum(axis=(1, 2)) / np.where(freedom > 0, freedom, np.nan)
    star = np.where(known, seen - sky, light)
    columns = {"chi2": chi2, "snr": flux * np.sqrt((weight * plain**2).sum(axis=(1, 2)))}
    shape, wanted = weighted_moments(light, *places), weighted_moments(star, *places)
    return columns | {"size": shape[0] / wanted[0] - 1, "e1": shape[1] - wanted[1], "e2": shape[2] - wanted[2]}


def _fine(image: Images) -> Images:
    """Return half-pixel images as those of `csstdask.psf.basis`."""
    fine = resample(image, image.shape[-1] // _SAMPLES * OVERSAMPLING) * np.float32(_SAMPLES**2)
    rim = (BASIS_SIZE - fine.shape[-1]) // 2
    return np.pad(fine, ((0, 0), (rim, rim), (rim, rim)))


def _rendered(fine: Images, x: Float, y: Float) -> tuple[Any, Any]:
    """Return what a unit of light is on the pixels of each star, and how that changes with x and y (n, y, x, 2)."""
    along_x, along_y = (interpolation_matrix(place, _SIZE).astype(float) for place in (x, y))
    by_x, by_y = (interpolation_matrix(place, _SIZE, slope=True).astype(float) for place in (x, y))
    across = fine @ along_x.transpose(0, 2, 1)
    moved = [along_y @ (fine @ by_x.transpose(0, 2, 1)), by_y @ across]
    return along_y @ across, np.stack(moved, axis=-1)
