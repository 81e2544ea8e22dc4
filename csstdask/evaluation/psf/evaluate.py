"""Evaluate PSF reconstruction: ``csstdask evaluate psf``.

The stars are those of test recipes with known effective PSFs, at S/N 100 unless a recipe varies it:

* ``nodes``: all imaging detectors (DATASET 2 of the CSST-PSFNet paper), and the same blurred, ``blurred`` (DATASET 3);
* ``epochs``: other optical states of that telescope; ``newoptics``: another telescope; ``snr``: that one at other S/N.

The model is compared with further models, each also with masked stamps (``blank``), and with PSFEx and Piff where they
are installed, on the same stamps. In the parts `FEW_STAR_PARTS`, the model is also given the colours of the stars; no
star (``without stars``, its prior) or one (``one star``); and few stars. There is also a ``polynomial`` over the
detector, fitted to the true PSFs of half of the stars: a model that is not better than this one, or than its own result
for blank stamps, has memorised a telescope instead of measuring it. On a telescope outside the training set
(`BOUND_PARTS`), results are compared with the Cramer-Rao bound of the same stars, ``bound``.

In the parts `FEW_STAR_PARTS`, the quantities that can be measured without the truth, as in orbit, are measured as well:
how well a field fitted to four fifths of the stars predicts the others, in separate cells of the detector
(``reserve``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from csstdask.core.errors import InputError
from csstdask.core.optional import install_hint
from csstdask.evaluation.baselines import piff as piff_runner
from csstdask.evaluation.parallel import map_units
from csstdask.evaluation.psf.bound import sample_at_cramer_rao_bound
from csstdask.evaluation.psf.figures import ResidualView, draw_bands, draw_counts, draw_residuals
from csstdask.evaluation.psf.tables import table
from csstdask.evaluation.runner import (
    Measurement,
    Output,
    ProgressCallback,
    Results,
    Section,
    recipe_with_twin,
    run_evaluation,
    select_parts,
)
from csstdask.metrics.held_out_stars import held_out_stars
from csstdask.metrics.psf import Images, Stars, draw_stars, psf_errors, psf_pulls
from csstdask.mock import Recipe
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card
from csstdask.psf.basis import polynomials
from csstdask.psf.model_card import model_kind, supports_detector
from csstdask.psf.reconstruct import Reconstruction, reconstruct
from csstdask.training.psf.psfex import is_installed, psfex_at_stars, sky_of

log = logging.getLogger("csstdask")

#: Recipe of each part of the evaluation.
PARTS = {
    "nodes": "psf-dataset2", "blurred": "psf-dataset3", "epochs": "psf-epochs", "newoptics": "psf-newoptics",
    "snr": "psf-newoptics",
}  # fmt: skip
#: Parts in which the model is also given no star, one star, few stars, and their colours.
FEW_STAR_PARTS = ("nodes", "newoptics", "snr")
#: Parts in which results are compared with the Cramer-Rao bound.
BOUND_PARTS = ("newoptics", "snr")
#: S/N of stars in most parts.
SNR = 100.0
#: S/N of stars in the part ``snr``: from about 700 on they saturate in 150 s.
SNRS = (30.0, 100.0, 300.0, 600.0)
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
_FILE = "psf_evaluation"
ALL_STARS, COLOURS_KNOWN, ONE_STAR, NO_STARS = "all stars", "all stars, colours known", "one star", "without stars"
POLYNOMIAL, PSFEX, PIFF = "polynomial", "PSFEx", "Piff"
#: Prefix of the bound of a method.
BOUND = "bound, "
_BOUND_SEED = 20261128
#: Methods by increasing number of stars, and the name of the bound of each.
BOUND_OF = {name: BOUND + name for name in (ONE_STAR, *(f"{count} stars" for count in STAR_COUNTS), ALL_STARS)}


def evaluate_psf(
    model: str = "default",
    to: Path | None = None,
    *,
    recipes: Path,
    parts: Sequence[str] = tuple(PARTS),
    foreign: bool = True,
    psfex: bool = True,
    piff: bool = False,
    compare_with: Sequence[str] = (),
    detectors: Sequence[int] | None = None,
    workers: int = 2,
    on_progress: ProgressCallback = log.info,
) -> dict[str, Any]:
    """Evaluate PSF reconstruction, and compare it with other methods.

    Parameters
    ----------
    model : str
        Name that ``csstdask models`` lists, or path of a card.
    to : Path, optional
        Output folder for ``psf_evaluation.json``, its tables and figures.
    recipes : Path
        Folder of the test recipes.
    parts : sequence of str
        Keys of `PARTS`.
    foreign : bool
        Whether to include the variants of the recipes named ``-foreign``.
    psfex : bool
        Whether to run PSFEx, if it is installed: one or two minutes per detector.
    piff : bool
        Whether to run Piff, if it is installed: many minutes per detector.
    compare_with : sequence of str
        Further models, by name or card, on the detectors that they support.
    detectors : sequence of int, optional
        Ids of detectors; by default all that the model supports.
    workers : int
        Number of processes.
    on_progress : callable
        Called with one line per step of progress.

    Returns
    -------
    dict
        Content of ``psf_evaluation.json``.

    Raises
    ------
    InputError
        If a part or the model is unknown.
    """
    chosen = select_parts(parts, PARTS)
    card = _card_of("--model", model)
    others = [_card_of("--compare-with", one) for one in compare_with]
    if psfex and not is_installed():
        on_progress("PSFEx is not installed and will be skipped (Debian: apt-get install psfex)")
        psfex = False
    if piff and not piff_runner.is_installed():
        on_progress(f"Piff is not installed and will be skipped; to include it: {install_hint('bench')}")
        piff = False
    results: dict[str, Any] = {"model": card.name, "version": card.version, "identity": card.identity}
    results |= {"beside": {model_label(one): one.identity for one in others}, "recipes": {}}

    def sections() -> Iterator[Section]:
        for part in chosen:
            for original in recipe_with_twin(recipes, PARTS[part], foreign=foreign):
                wanted = detectors or original.detectors
                known = tuple(one for one in original.detectors if one in wanted and supports_detector(card, one))
                if not known:
                    supported = f"some of recipe {original.name} that {card.name} supports"
                    raise InputError("detectors", ", ".join(map(str, wanted)), supported)
                for title, recipe in vary_snr(original.model_copy(update={"detectors": known}), part):
                    function = partial(
                        measure_unit, model=model, psfex=psfex, piff=piff, compare_with=tuple(compare_with),
                        fewer=part in FEW_STAR_PARTS, bounded=part in BOUND_PARTS,
                    )  # fmt: skip
                    measure = partial(_measure, title, recipe, function, workers, on_progress)
                    yield Section(("recipes", title), measure, title=title)

    return run_evaluation(sections(), Output(to, _FILE, table, _draw), results, on_progress=on_progress)


def _measure(
    title: str,
    recipe: Recipe,
    function: Callable[[Recipe, int, int], dict[str, Any]],
    workers: int,
    on_progress: ProgressCallback,
) -> Measurement:
    """Measure all units of a recipe; residuals are drawn, and not stored."""
    units = list(map_units(recipe, function, on_progress=on_progress, workers=workers))
    residuals = {unit["band"]: unit.pop("looks") for unit in reversed(units)}

    def draw(folder: Path) -> None:
        stem = title.replace(", S/N ", "-")
        draw_residuals(dict(reversed(residuals.items())), folder / f"{stem}.png")
        draw_bands(units, folder / f"{stem}-bands.png")

    return Measurement(units, draw)


def _draw(results: Results, folder: Path) -> None:
    """Draw errors against the number of stars, for each telescope of the part ``snr``."""
    for name in (PARTS["snr"], f"{PARTS['snr']}-foreign"):
        if units := by_snr(results["recipes"], name):
            draw_counts(units, BOUND_OF, folder / f"{name}-snr.png")


def by_snr(recipes: dict[str, list[dict[str, Any]]], name: str = PARTS["snr"]) -> dict[str, dict[str, Any]]:
    """Return the first unit of each variant of a recipe in the part ``snr``, by increasing S/N."""
    titles = {title.partition(", ")[2]: units[0] for title, units in recipes.items() if title.startswith(f"{name}, ")}
    return dict(sorted(titles.items(), key=lambda one: float(one[0].split()[-1])))


def model_label(card: ModelCard) -> str:
    """Return the name of a model in tables."""
    return f"{card.name} {card.version}"


def _card_of(option: str, model: str) -> ModelCard:
    try:
        return find_card("psf", model)
    except ValueError as error:
        raise InputError(option, str(error), "the name of a model, or its card") from None


def vary_snr(recipe: Recipe, part: str) -> Iterator[tuple[str, Recipe]]:
    """Yield titles and recipes with the S/N of stars that a part requires."""
    if part == "epochs" or recipe.nodes is None:
        yield recipe.name, recipe
        return
    for snr in SNRS if part == "snr" else (SNR,):
        title = f"{recipe.name}, S/N {snr:.0f}" if part == "snr" else recipe.name
        yield title, recipe.model_copy(update={"nodes": recipe.nodes.model_copy(update={"snr": (snr, snr)})})


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
