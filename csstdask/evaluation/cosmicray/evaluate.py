"""Evaluate cosmic-ray detection: ``csstdask evaluate cosmicray``.

All methods are evaluated on the same pixels with the same mask of ignored pixels. The parts:

* ``real``: the held-out pair of STIS frames, real cosmic rays injected into other scenes, and scenes without any;
* ``field``: the test of the CSST rejection paper, all detectors and fields of different density;
* ``sources``: cosmic rays on sources, where deepCR fails; ``crowded``: the core of a globular cluster, large galaxies;
* ``density`` and ``epochs``: dependence on the density of cosmic rays, and on ten years of ageing.

All parts but the first render frames from the test recipes (``stores/``) and their ``-foreign`` twins, which lie
outside the range of the training. The methods: the network; ``deepcr``, the architecture of deepCR retrained on the
same campaign; the published weights of deepCR where that package is installed; and L.A.Cosmic, tuned on the validation
fields of the training recipe.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from csstdask.core.errors import InputError
from csstdask.core.optional import install_hint
from csstdask.evaluation.cosmicray.figures import draw_field, draw_gallery
from csstdask.evaluation.cosmicray.methods import (
    Method,
    card_threshold,
    network_method,
    published_deepcr_method,
    tune_lacosmic,
)
from csstdask.evaluation.cosmicray.real import REAL, evaluate_real
from csstdask.evaluation.cosmicray.survey import (
    Survey,
    crowded_part,
    density_part,
    epochs_part,
    field_part,
    sources_part,
)
from csstdask.evaluation.cosmicray.truth_frame import render_truth_frame
from csstdask.evaluation.io import markdown_header, markdown_row, round_floats
from csstdask.evaluation.runner import (
    Measurement,
    Output,
    ProgressCallback,
    Results,
    Section,
    recipe_digest,
    recipe_with_twin,
    run_evaluation,
    select_parts,
)
from csstdask.metrics import detection_histograms as histograms
from csstdask.mock.recipe import Recipe, load_recipe
from csstdask.nn.models import find_card
from csstdask.nn.precision import Precision
from csstdask.training.cosmicray.material import check_data_folder

log = logging.getLogger("csstdask")

#: Recipe and linear scale of each part: many small frames give smaller errors than a few large ones.
RECIPES = {
    "field": ("cr-detection-test", 0.0625),
    "sources": ("cr-science", 1.0),
    "crowded": ("cr-crowded", 1.0),
    "density": ("cr-density", 0.125),
    "epochs": ("cr-epochs", 0.0625),
}
PARTS = ("real", *RECIPES)
#: Name of the retrained baseline.
BASELINE = "deepcr"
#: Exposures of the foreign twin of ``field``: one of each of its fields.
_TWIN_EXPOSURES = 5
#: Exposures of ``epochs``: one per year, from the launch to the tenth year.
_EPOCHS = 11
#: ``sources`` uses every third detector: each has hundreds of cosmic rays on sources.
_SOURCES_STEP = 3
#: Fraction of pixels with charge in an ordinary field, to which the precision of ``sources`` is scaled.
_FIELD_DENSITY = 0.0275
#: Frames that L.A.Cosmic is tuned on, and their linear scale.
_TUNING_UNITS, _TUNING_SCALE = 8, 0.0417
_NAME = "cosmicray_evaluation"


def evaluate_cosmicray(
    model: str = "default",
    data: Path | None = None,
    to: Path | None = None,
    *,
    recipes: Path | None = None,
    parts: Sequence[str] = PARTS,
    compare_with: Sequence[str] = (),
    scale: float | None = None,
    precision: Precision = "bfloat16",
    on_progress: ProgressCallback = log.info,
) -> Results:
    """Evaluate a network and compare it with other methods.

    Parameters
    ----------
    model : str
        Name of a network, or path of its card.
    data : Path, optional
        Folder of real cosmic rays and frames. Without it, the part ``real`` consists of simulated skies and tracks.
    to : Path, optional
        Folder for ``cosmicray_evaluation.json``, its tables and figures. Stored sections that were measured with the
        same model and settings are kept.
    recipes : Path, optional
        Folder of the test recipes. Without it, only ``real`` is evaluated.
    parts : sequence of str
        Some of `PARTS`.
    compare_with : sequence of str
        Further networks to compare with on mock surveys, by name or card.
    scale : float, optional
        Linear scale of the frames of all recipes, in place of the scale of each part.
    precision : str
        Numerical precision of all networks on mock surveys.
    on_progress : callable
        Receives a line per section. All parts take about 45 minutes on two CPU cores.

    Returns
    -------
    dict
        The content of the JSON file.

    Raises
    ------
    InputError
        If a model is not a network, a part is unknown, or a folder has none of the required files.
    """
    for name in (model, *compare_with):
        card_threshold(name)
    chosen = select_parts(parts, PARTS)
    if data is not None:
        check_data_folder(data)
    if recipes is None and "real" not in chosen:
        raise InputError("--recipes", "none", f"the folder of the recipes of {', '.join(chosen)}")
    output = Output(to, _NAME, summary_lines, records="settings")
    results = resumable_results(output.load(), describe_models(model, compare_with))
    plan = _Plan(model, tuple(compare_with), data, recipes, scale, precision, on_progress)
    with tempfile.TemporaryDirectory() as converted:
        sections = plan.sections(chosen, results.setdefault("tuned_lacosmic", {}), Path(converted))
        return run_evaluation(sections, output, results, on_progress=on_progress)


@dataclass(frozen=True)
class _Plan:
    """The arguments of an evaluation; the fields are those of `evaluate_cosmicray`."""

    model: str
    compare_with: tuple[str, ...]
    data: Path | None
    recipes: Path | None
    scale: float | None
    precision: Precision
    on_progress: ProgressCallback

    def sections(self, parts: Sequence[str], tuned: dict[str, Any], folder: Path) -> Iterator[Section]:
        """Yield the sections of some parts; methods are prepared when the first recipe is reached.

        Parameters
        ----------
        parts : sequence of str
        tuned : dict
            Stored parameters of L.A.Cosmic; new ones are added.
        folder : Path
            Folder for converted weights.
        """
        if "real" in parts:
            yield Section((), lambda: Measurement(evaluate_real(self.data, self.model, tuned, self.on_progress)))
        on_recipes = [part for part in parts if part in RECIPES]
        if self.recipes is None or not on_recipes:
            return
        methods = gather_methods(self.model, self.compare_with, folder, self.precision)
        methods += (_tuned_lacosmic(self.recipes, tuned, self.on_progress),)
        for part in on_recipes:
            name, usual_scale = RECIPES[part]
            for original in recipe_with_twin(self.recipes, name, scale=self.scale or usual_scale):
                recipe = _select_units(part, original, is_twin=original.name != name)
                settings = {"scale": recipe.scale, "precision": self.precision, "recipe": recipe_digest(recipe)}
                measure = partial(_measure, part, Survey(recipe, methods), self.on_progress)
                title = f"{part}: {recipe.name}, {recipe.exposures * len(recipe.detectors)} frames"
                yield Section((part, recipe.name), measure, settings, record=recipe.name, title=title)


def _select_units(part: str, recipe: Recipe, *, is_twin: bool) -> Recipe:
    """Return a recipe with the exposures and detectors that a part uses."""
    changes: dict[str, Any] = {}
    if part == "sources":
        changes["detectors"] = recipe.detectors[::_SOURCES_STEP]
    if part == "field" and is_twin:
        changes["exposures"] = _TWIN_EXPOSURES
    if part == "epochs":
        changes["exposures"] = _EPOCHS
    return recipe.model_copy(update=changes)


def _measure(part: str, survey: Survey, on_progress: ProgressCallback) -> Measurement:
    """Measure one part on one recipe."""
    if part == "field":
        result, gallery = field_part(survey, on_progress)

        def draw(folder: Path) -> None:
            draw_field(result, folder / f"{survey.recipe.name}.png")
            draw_gallery(gallery, folder / f"{survey.recipe.name}-gallery.png")

        return Measurement(result, draw)
    if part == "sources":
        return Measurement(sources_part(survey, _FIELD_DENSITY, on_progress))
    if part == "epochs":
        compared = (*survey.methods[:1], *(one for one in survey.methods[1:] if one.name == BASELINE))
        return Measurement(epochs_part(replace(survey, methods=compared), on_progress))
    return Measurement((crowded_part if part == "crowded" else density_part)(survey, on_progress))


def gather_methods(model: str, compare_with: Sequence[str], folder: Path, precision: Precision) -> tuple[Method, ...]:
    """Return the networks to compare: first the one that is evaluated, second the retrained baseline.

    Parameters
    ----------
    model : str
        Name or card of the network that is evaluated.
    compare_with : sequence of str
        Names or cards of further networks.
    folder : Path
        Folder for converted weights.
    precision : str
        Numerical precision.

    Raises
    ------
    InputError
        If two networks have the same name.
    """
    baseline = [] if find_card("cosmicray", model).name == BASELINE else [BASELINE]
    methods = [network_method(model, "network", precision)]
    methods += [network_method(other, precision=precision) for other in (*baseline, *compare_with)]
    names = [method.name for method in methods]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise InputError(
            "--compare-with", f"two networks called {', '.join(sorted(duplicates))}", "cards of different names"
        )
    # The published card has no activation ranges, which int8 needs.
    published = published_deepcr_method(folder, "bfloat16" if precision == "int8" else precision)
    if published is None:
        log.warning("deepCR is not installed, its published weights are not evaluated: %s", install_hint("bench"))
    else:
        methods.append(published)
    return tuple(replace(method, threshold=histograms.quantise_threshold(method.threshold)) for method in methods)


def _tuned_lacosmic(recipes: Path, tuned: dict[str, Any], on_progress: ProgressCallback) -> Method:
    """Return L.A.Cosmic, tuned on the validation fields of ``cr-detection.toml``."""
    on_progress("tuning L.A.Cosmic")
    cases = [render_truth_frame(recipe, index, detector).case for recipe, index, detector in _tuning_units(recipes)]
    return Method("L.A.Cosmic, tuned", parameters=tune_lacosmic(cases, tuned))


def _tuning_units(recipes: Path) -> Iterator[tuple[Recipe, int, int]]:
    recipe = load_recipe(recipes / "cr-detection.toml", scale=_TUNING_SCALE)
    exposures = [index for index in range(recipe.exposures) if recipe.split_of(index) == "validation"]
    for number in range(_TUNING_UNITS):
        yield recipe, exposures[number % len(exposures)], recipe.detectors[(number * 7) % len(recipe.detectors)]


def describe_models(model: str, compare_with: Sequence[str]) -> dict[str, Any]:
    """Return the settings that the results depend on: network, threshold, and compared networks."""
    card = find_card("cosmicray", model)
    facts = {"name": card.name, "version": card.version, "sha256": card.sha256, "threshold": card.threshold}
    others = {name: find_card("cosmicray", name).identity for name in (BASELINE, *compare_with)}
    return facts | {"identity": card.identity, "beside": others}


def resumable_results(stored: Mapping[str, Any], models: dict[str, Any]) -> Results:
    """Return the stored results that are valid for the given models.

    Real frames are evaluated with one network only: they are kept when only the compared networks differ. The tuned
    parameters of L.A.Cosmic are stored by the frames that they were tuned on, and always kept.

    Parameters
    ----------
    stored : mapping
        Results of an earlier evaluation.
    models : dict
        As `describe_models` returns it.
    """
    before, now = stored.get("model", {}), round_floats(models)
    if before == now:
        return dict(stored)
    same_network = {**before, "beside": None} == {**now, "beside": None}
    keys = ("tuned_lacosmic", *REAL) if same_network else ("tuned_lacosmic",)
    return {"model": models} | {key: stored[key] for key in keys if key in stored}


def summary_lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the Markdown tables of an evaluation."""
    columns = ("precision", "recall", "recall_visible", "precision_without_skirt", "events_found")
    names = ("precision", "recall", "of visible", "precision off the skirt", "events found")
    for part in ("stis", "injected"):
        if part in results:
            yield from markdown_header(part, names)
        for kind, methods in results.get(part, {}).items():
            for method, row in methods.items():
                yield markdown_row(f"{kind}: {method}", [row[key] for key in columns])
    for part in ("field", "crowded"):
        for recipe, result in results.get(part, {}).items():
            for name, facts in {recipe: result}.items() if part == "field" else result.items():
                yield from markdown_header(
                    name if name == recipe else f"{recipe}: {name}", (*names[:4], "false pixels per Mpix")
                )
                for method, row in facts["pooled"].items():
                    rates = [row[key] for key in ("precision", "recall", "recall_visible", "precision_off_skirt")]
                    yield markdown_row(method, [*rates, facts["false_pixels_per_mpix"][method]])
    for recipe, result in results.get("sources", {}).items():
        regions = list(next(iter(result["by_region"].values())))
        yield from markdown_header(f"{recipe}: visible pixels found", regions)
        for method, rows in result["by_region"].items():
            yield markdown_row(method, [row["recall_visible"] for row in rows.values()])
    for kind, row in results.get("false_pixels_per_mpix", {}).items():
        yield f"nothing there: {kind}: {row['network']:.0f} false pixels per Mpix, L.A.Cosmic {row['lacosmic']:.0f}"
