"""Measure the errors of PSFs that a model, PSFEx and Piff reconstruct from the same stars of one detector."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from csstdask.evaluation.baselines import piff as piff_runner
from csstdask.evaluation.psf.bound import sample_at_cramer_rao_bound
from csstdask.evaluation.psf.figures import ResidualView
from csstdask.metrics.held_out_stars import held_out_stars
from csstdask.metrics.psf import Images, Stars, draw_stars, psf_errors, psf_pulls
from csstdask.mock import Recipe
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card
from csstdask.psf.basis import polynomials
from csstdask.psf.model_card import model_kind, supports_detector
from csstdask.psf.reconstruct import Reconstruction, reconstruct
from csstdask.training.psf.psfex import psfex_at_stars, sky_of

#: Settings of PSFEx in the paper. The best of a grid (``benchmarks/psfex_settings.py``) are 0.2 dB better, in more than
#: three times the time.
PSFEX_SETTINGS: dict[str, Any] = {"basis_number": 20, "accuracy": 0.01, "degree": 3}
#: The best of that grid.
PSFEX_BEST: dict[str, Any] = {"basis_number": 30, "accuracy": 0.001, "degree": 3}
#: Degree of the polynomial over the detector that predicts PSFs from true ones.
_DEGREE = 3
#: Number of stars that are reconstructed one by one.
SINGLE_STARS = 40
#: Numbers of stars in fits to few stars.
STAR_COUNTS = (10, 100)
#: Smallest number of stars for the slope of size errors with colour.
_MIN_STARS_COLOUR = 20
ALL_STARS, COLOURS_KNOWN, ONE_STAR, NO_STARS = "all stars", "all stars, colours known", "one star", "without stars"
POLYNOMIAL, PSFEX, PIFF = "polynomial", "PSFEx", "Piff"
#: Prefix of the bound of a method.
BOUND = "bound, "
_BOUND_SEED = 20261128
#: Methods by increasing number of stars, and the name of the bound of each.
BOUND_OF = {name: BOUND + name for name in (ONE_STAR, *(f"{count} stars" for count in STAR_COUNTS), ALL_STARS)}


def model_label(card: ModelCard) -> str:
    """Return the name of a model in tables."""
    return f"{card.name} {card.version}"


def measure_unit(recipe: Recipe, index: int, detector: int, **asked: Any) -> dict[str, Any]:
    """Render the stars of a unit, and measure the errors of all methods; options are those of `measure_stars`."""
    with threadpool_limits(1):
        found = measure_stars(draw_stars(recipe, index, detector), **asked)
    return found | {"exposure": index, "epoch": recipe.epoch_of(index)}


def measure_stars(
    stars: Stars,
    *,
    model: str,
    psfex: bool,
    piff: bool = False,
    compare_with: Sequence[str] = (),
    fewer: bool = True,
    bounded: bool = False,
) -> dict[str, Any]:
    """Measure the errors of all methods on the stars of one detector.

    Parameters
    ----------
    stars : Stars
    model : str
        Name or card of the model.
    psfex, piff : bool
        Whether to run these programs.
    compare_with : sequence of str
        Further models.
    fewer : bool
        Whether to fit few stars, held-out stars and colours as well.
    bounded : bool
        Whether to compute the Cramer-Rao bound.

    Returns
    -------
    dict
        ``methods`` with the statistics of errors by method, and ``looks`` with residual images.
    """
    looks: dict[str, ResidualView] = {}
    start = time.perf_counter()
    found = _reconstructed(stars, model)
    seconds = time.perf_counter() - start
    rows: dict[str, Any] = {ALL_STARS: _row(stars, found.image, found.sigma, seconds)}
    looks[ALL_STARS] = ResidualView.of(stars, found.image)
    if fewer:
        rows |= _with_less_information(stars, model)
    if bounded:
        rows |= _at_bound(stars, model)
    for other in compare_with:
        card = find_card("psf", other)
        if supports_detector(card, stars.detector):
            image, of_other = _of_other(stars, card, other)
            rows |= of_other
            looks[model_label(card)] = ResidualView.of(stars, image)
    if psfex:
        start = time.perf_counter()
        image = psfex_at_stars(stars.stamps, stars.mask, stars.x, stars.y, **PSFEX_SETTINGS)
        rows[PSFEX] = _row(stars, image, None, time.perf_counter() - start)
        looks[PSFEX] = ResidualView.of(stars, image)
    if piff:
        start = time.perf_counter()
        rows[PIFF] = _row(stars, _by_piff(stars), None, time.perf_counter() - start)
    unit = {"detector": stars.detector, "band": stars.band, "n": len(stars), "methods": rows, "looks": looks}
    return unit | ({"reserve": held_out_stars(stars, model)} if fewer else {})


@dataclass(frozen=True)
class _FewerStars:
    """Subsets of stars: some that are reconstructed one by one, and few that are fitted together."""

    single: Stars
    few: dict[str, Stars]
    """Stars by the name of the method."""

    @classmethod
    def of(cls, stars: Stars) -> _FewerStars:
        rng = np.random.default_rng(len(stars))
        single = stars.take(np.sort(rng.permutation(len(stars))[:SINGLE_STARS]))
        counts = [count for count in STAR_COUNTS if count < len(stars)]
        few = {f"{count} stars": stars.take(np.sort(rng.permutation(len(stars))[:count])) for count in counts}
        return cls(single, few)

    def singles(self) -> list[Stars]:
        return [self.single.take([one]) for one in range(len(self.single))]


def _with_less_information(stars: Stars, model: str) -> dict[str, Any]:
    """Measure the errors of a model given colours, one star, few stars or none; and of a polynomial."""
    rows: dict[str, Any] = {}
    if model_kind(find_card("psf", model)) == "principal":
        coloured = _reconstructed(stars, model, temperature=stars.temperature)
        rows[COLOURS_KNOWN] = _row(stars, coloured.image, coloured.sigma)
    subsets = _FewerStars.of(stars)
    found = [_reconstructed(one, model) for one in subsets.singles()]
    images, sigmas = (np.concatenate([getattr(one, name) for one in found]) for name in ("image", "sigma"))
    rows[ONE_STAR] = _row(subsets.single, images, sigmas)
    for name, few in subsets.few.items():
        part = _reconstructed(few, model)
        rows[name] = _row(few, part.image, part.sigma)
    unseen = _reconstructed(stars, model, blank=True)
    rows[NO_STARS] = _row(stars, unseen.image, unseen.sigma)
    half = np.arange(len(stars)) % 2 == 0
    rows[POLYNOMIAL] = _row(stars.take(~half), _by_polynomial(stars.take(half), stars.take(~half)), None)
    return rows


def _at_bound(stars: Stars, model: str) -> dict[str, Any]:
    """Measure the errors of the Cramer-Rao bound for all stars, few and one; only for models of kind principal."""
    card = find_card("psf", model)
    if model_kind(card) != "principal":
        return {}
    subsets, rng = _FewerStars.of(stars), np.random.default_rng(_BOUND_SEED)
    rows = {
        name: _row(*sample_at_cramer_rao_bound(some, card, rng), None)
        for name, some in ({ALL_STARS: stars} | subsets.few).items()
    }
    drawn = [sample_at_cramer_rao_bound(one, card, rng) for one in subsets.singles()]
    shown, images = (np.concatenate(part) for part in zip(*((one.truth, image) for one, image in drawn), strict=True))
    rows[ONE_STAR] = _row(replace(subsets.single, truth=shown), images, None)
    return {BOUND + name: row for name, row in rows.items()}


def _reconstructed(stars: Stars, model: str, *, blank: bool = False, temperature: Any = None) -> Reconstruction:
    mask = np.ones_like(stars.mask) if blank else stars.mask
    detectors = np.full(len(stars), stars.detector)
    given = {"error": stars.error, "mask": mask, "temperature": temperature, "shape": stars.shape}
    name = find_card("psf", model).name if model == "default" else model  # by name: no fallback to another model
    return reconstruct(stars.stamps, detectors, stars.x, stars.y, **given, model=name, empty="expected")


def _of_other(stars: Stars, card: ModelCard, model: str) -> tuple[Images, dict[str, Any]]:
    """Return the PSFs of a further model, and their errors with stamps and with blank stamps."""
    start = time.perf_counter()
    found = _reconstructed(stars, model)
    seconds = time.perf_counter() - start
    blank = _reconstructed(stars, model, blank=True)
    return found.image, {
        model_label(card): _row(stars, found.image, found.sigma, seconds),
        f"{model_label(card)}, blank": _row(stars, blank.image, blank.sigma),
    }


def _by_polynomial(known: Stars, asked: Stars) -> Images:
    """Predict PSFs by a polynomial over the detector fitted to true PSFs: what a memorised telescope gives."""
    middle = [(one.max() + one.min()) / 2 for one in (known.x, known.y)]
    reach = [max(float(np.ptp(one)) / 2, 1.0) for one in (known.x, known.y)]
    terms = [
        polynomials((one.x - middle[0]) / reach[0], (one.y - middle[1]) / reach[1], _DEGREE) for one in (known, asked)
    ]
    flat = np.linalg.lstsq(terms[0], known.truth.reshape(len(known), -1).astype(float), rcond=None)[0]
    return (terms[1] @ flat).reshape(-1, *known.truth.shape[1:]).astype(np.float32)


def _by_piff(stars: Stars) -> Images:
    sky, _ = sky_of(stars.stamps, stars.mask)
    variance = np.where(stars.mask, np.inf, stars.error.astype(float) ** 2).astype(np.float32)
    return piff_runner.run_piff(stars.stamps - np.float32(sky), variance, stars.x, stars.y)(stars.x, stars.y)


def _row(stars: Stars, image: Images, sigma: Images | None, seconds: float | None = None) -> dict[str, Any]:
    errors = psf_errors(image, stars.truth)
    row: dict[str, Any] = {"n": len(stars)}
    for name, values in errors.items():
        row[name] = {
            "mean": float(np.nanmean(values)),
            "median": float(np.nanmedian(values)),
            "sd": float(np.nanstd(values)),
        }
    row["psnr"]["least"] = float(errors["psnr"].min())
    heat = np.log10(stars.temperature)
    sized = np.isfinite(errors["size"])
    if sized.sum() > _MIN_STARS_COLOUR and np.ptp(heat) > 0:
        row["size"]["per_dex"] = float(np.polyfit(heat[sized], errors["size"][sized], 1)[0])
    if sigma is not None:
        pull = np.clip(psf_pulls(image, sigma, stars.truth), -20, 20)
        row["pull"] = {"mean": float(pull.mean()), "sd": float(pull.std())}
    if seconds is not None:
        row["seconds"] = seconds
    return row
