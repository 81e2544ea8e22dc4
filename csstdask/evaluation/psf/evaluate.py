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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from csstdask.core.errors import InputError
from csstdask.core.optional import install_hint
from csstdask.evaluation.baselines import piff as piff_runner
from csstdask.evaluation.parallel import map_units
from csstdask.evaluation.psf.figures import draw_bands, draw_counts, draw_residuals
from csstdask.evaluation.psf.measure import BOUND_OF, measure_unit, model_label
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
from csstdask.mock import Recipe
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card
from csstdask.psf.model_card import supports_detector
from csstdask.training.psf.psfex import is_installed

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
_FILE = "psf_evaluation"


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
