"""Evaluation of cosmic-ray detection: ``csstdask evaluate cosmicray``.

Parts, each asked of every method on the same pixels with the same mask of ignored ones:

* ``real``: the held-out STIS pair, real events in other scenes, scenes with nothing to find;
* ``field``: the CSST rejection paper's test, all detectors and fields of different density;
* ``sources``: cosmic rays dropped on sources, where deepCR fails; ``crowded``: a globular cluster's core, big galaxies;
* ``density`` and ``epochs``: against the density of cosmic rays, and over ten years of ageing.

All but the first need the folder of recipes (``stores/``), render their frames and forget them. ``-foreign`` twins are
recipes of the same kind outside of what training saw; they are evaluated beside. The methods: the network, ``deepcr``
(deepCR's architecture retrained on the same campaign), deepCR's own published weights where the package is installed,
and L.A.Cosmic tuned on the validation fields of the training recipe.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from csstdask.core.errors import InputError
from csstdask.core.optional import install_hint
from csstdask.core.plotting import check_figures
from csstdask.evaluation.cosmicray.figures import draw_field, draw_gallery
from csstdask.evaluation.cosmicray.frames import ProgressCallback, render_truth_frame
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
from csstdask.evaluation.io import markdown_header, markdown_row, round_floats, write_results
from csstdask.metrics import detection_histograms as histograms
from csstdask.mock.recipe import Recipe, load_recipe
from csstdask.nn.device import Precision
from csstdask.nn.models import find_card
from csstdask.training.cosmicray.examples import check_data_folder

log = logging.getLogger("csstdask")

#: Parts, their recipes and the scale that each is drawn at: many small frames tell more than few large ones.
RECIPES = {
    "field": ("cr-detection-test", 0.0625),
    "sources": ("cr-science", 1.0),
    "crowded": ("cr-crowded", 1.0),
    "density": ("cr-density", 0.125),
    "epochs": ("cr-epochs", 0.0625),
}
PARTS = ("real", *RECIPES)
#: Of the foreign twin of the field, so many exposures: one of each field.
_TWIN_EXPOSURES = 5
#: Of ten years, an exposure a year: they are drawn seven times, with other terms of ageing each.
_EPOCHS = 11
#: Of each three detectors one is looked at where each has hundreds of aimed cosmic rays.
_SOURCES_STEP = 3
#: Frames that L.A.Cosmic is tuned on, and their scale.
_TUNING_UNITS, _TUNING_SCALE = 8, 0.0417
BASELINE = "deepcr"


def evaluate_cosmicray(
    model: str = "default",
    data: Path | None = None,
    to: Path | None = None,
    *,
    recipes: Path | None = None,
    parts: Sequence[str] = PARTS,
    beside: Sequence[str] = (),
    scale: float | None = None,
    precision: Precision = "bfloat16",
    on_progress: ProgressCallback = log.info,
) -> dict[str, Any]:
    """Evaluate a network beside the other methods.

    Parameters
    ----------
    model : str
        A network's name, or the path of its card.
    data : Path, optional
        Folder of real events and frames; without it part ``real`` is of mock skies with generated tracks alone.
    to : Path, optional
        Folder for ``cosmicray_evaluation.json``, tables and figures. Parts that it holds of the same model are kept.
    recipes : Path, optional
        Folder of the test recipes; without it only ``real`` is done.
    parts : sequence of str
        Some of `PARTS`.
    beside : sequence of str
        Further networks on mock surveys, by name or card.
    scale : float, optional
        In place of each part's own.
    precision : str
        Of all networks on mock surveys.
    announce : callable
        Told in a line what is done now: all parts take some three quarters of an hour on two cores.

    Returns
    -------
    dict
        What is written there.

    Raises
    ------
    InputError
        If a model is no network, a part is unknown, or a folder holds nothing that is wanted.
    """
    for name in (model, *beside):
        card_threshold(name)
    if not parts or not set(parts) <= set(PARTS):
        raise InputError("--part", ", ".join(parts) or "none", f"some of {', '.join(PARTS)}")
    if data is not None:
        check_data_folder(data)
    if recipes is None and "real" not in parts:
        raise InputError("--recipes", "none", f"the folder of recipes that {', '.join(parts)} are drawn from")
    if to is not None and recipes is not None and "field" in parts:
        check_figures()  # now, and not when all is counted
    results = _kept(to, _identity(model, beside))
    if "real" in parts:
        results |= evaluate_real(data, model, results.setdefault("tuned_lacosmic", {}), on_progress)
        _write(to, results)
    wanted = [part for part in RECIPES if part in parts]
    if recipes is None or not wanted:
        return results
    with tempfile.TemporaryDirectory() as folder:
        methods = gather_methods(model, beside, Path(folder), precision)
        methods += (_lacosmic(recipes, results.setdefault("tuned_lacosmic", {}), on_progress),)
        for part in wanted:
            name, usual = RECIPES[part]
            for twin in (name, f"{name}-foreign"):
                path = recipes / f"{twin}.toml"
                if twin != name and not path.is_file():
                    continue
                recipe = load_recipe(path, scale=scale or usual)
                if part == "sources":
                    recipe = recipe.model_copy(update={"detectors": recipe.detectors[::_SOURCES_STEP]})
                if part == "field" and twin != name:
                    recipe = recipe.model_copy(update={"exposures": _TWIN_EXPOSURES})
                if part == "epochs":
                    recipe = recipe.model_copy(update={"exposures": _EPOCHS})
                digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
                settings = {"scale": recipe.scale, "precision": precision, "recipe": digest[:16]}
                if recipe.name in results.get(part, {}) and results["settings"].get(recipe.name) == settings:
                    on_progress(f"{part}: {recipe.name} is kept as it was")
                    continue
                on_progress(f"{part}: {recipe.name}, {recipe.exposures * len(recipe.detectors)} frames")
                result = _evaluate(part, Survey(recipe, methods), to, on_progress)
                results.setdefault(part, {})[recipe.name] = result
                results.setdefault("settings", {})[recipe.name] = settings
                _write(to, results)
    return results


def _evaluate(part: str, survey: Survey, to: Path | None, on_progress: ProgressCallback) -> dict[str, Any]:
    if part == "field":
        result, gallery = field_part(survey, on_progress)
        if to is not None:
            draw_field(result, to / f"{survey.recipe.name}.png")
            draw_gallery(gallery, to / f"{survey.recipe.name}-gallery.png")
        return result
    if part == "sources":
        return sources_part(survey, 0.0275, on_progress)
    if part == "epochs":
        few = (*survey.methods[:1], *(one for one in survey.methods[1:] if one.name == BASELINE))
        return epochs_part(replace(survey, methods=few), on_progress)
    return (crowded_part if part == "crowded" else density_part)(survey, on_progress)


def gather_methods(model: str, beside: Sequence[str], folder: Path, precision: Precision) -> tuple[Method, ...]:
    """Return the networks: the one that is evaluated first, the retrained baseline second.

    Parameters
    ----------
    model : str
    beside : sequence of str
        Further ones.
    folder : Path
        For what is converted.
    precision : str

    Raises
    ------
    InputError
        If two of them have the same name.
    """
    baseline = [] if find_card("cosmicray", model).name == BASELINE else [BASELINE]
    methods = [network_method(model, "network", precision)]
    methods += [network_method(other, precision=precision) for other in (*baseline, *beside)]
    names = [method.name for method in methods]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError("--beside", f"two networks called {', '.join(sorted(twice))}", "cards of different names")
    # Its card says nothing of ranges, which int8 needs.
    published = published_deepcr_method(folder, "bfloat16" if precision == "int8" else precision)
    if published is None:
        log.warning("deepCR is not installed, its published weights are left out: %s", install_hint("bench"))
    else:
        methods.append(published)
    return tuple(replace(method, threshold=histograms.snapped(method.threshold)) for method in methods)


def _lacosmic(recipes: Path, tuned: dict[str, Any], on_progress: ProgressCallback) -> Method:
    """Return L.A.Cosmic tuned on the validation fields of ``cr-detection.toml``."""
    on_progress("tuning L.A.Cosmic")
    cases = [render_truth_frame(recipe, index, detector).case for recipe, index, detector in _tuning_units(recipes)]
    return Method("L.A.Cosmic, tuned", parameters=tune_lacosmic(cases, tuned))


def _tuning_units(recipes: Path) -> Iterator[tuple[Recipe, int, int]]:
    path = recipes / "cr-detection.toml"
    recipe = load_recipe(path, scale=_TUNING_SCALE)
    exposures = [index for index in range(recipe.exposures) if recipe.split_of(index) == "validation"]
    for number in range(_TUNING_UNITS):
        yield recipe, exposures[number % len(exposures)], recipe.detectors[(number * 7) % len(recipe.detectors)]


def _identity(model: str, beside: Sequence[str]) -> dict[str, Any]:
    """Return what decides an evaluation besides the data: the network and its threshold, and those beside it."""
    card = find_card("cosmicray", model)
    facts = {"name": card.name, "version": card.version, "sha256": card.sha256, "threshold": card.threshold}
    others = {name: find_card("cosmicray", name).identity for name in (BASELINE, *beside)}
    return facts | {"identity": card.identity, "beside": others}


def _kept(to: Path | None, model: dict[str, Any]) -> dict[str, Any]:
    """Return what a folder holds of an evaluation of the same model, else the beginning of one.

    Real frames are looked at by the model alone: with other networks beside it they stay. How L.A.Cosmic was tuned
    is told by the frames it was tuned on, and stays in any case.
    """
    path = None if to is None else to / "cosmicray_evaluation.json"
    if path is None or not path.is_file():
        return {"model": model}
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found, wanted = before.get("model", {}), round_floats(model)
    if found == wanted:
        return before
    same = {**found, "beside": None} == {**wanted, "beside": None}
    kept = ("tuned_lacosmic", *REAL) if same else ("tuned_lacosmic",)
    return {"model": model} | {key: before[key] for key in kept if key in before}


def _write(to: Path | None, results: dict[str, Any]) -> None:
    if to is not None:
        write_results(to / "cosmicray_evaluation", results, summary_lines(results))


def summary_lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of an evaluation's tables, for people."""
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
