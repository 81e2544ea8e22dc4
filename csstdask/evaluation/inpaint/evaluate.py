"""Evaluate the repair of pixels hit by cosmic rays: ``csstdask evaluate inpaint``.

* ``science``: sources of 17, 19, 21 and 23 mag, each hit a hundred times, with the true and with the detected mask;
* ``fields``: photometry and catalogues of whole frames, with the detected mask and the first network only;
* ``m51``: a real frame with cosmic rays added.

All methods are given the same pixels and the same mask: the median, networks, and the tools that are commonly used
instead, where they are installed (the extra ``bench``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from csstdask.core.errors import InputError
from csstdask.core.optional import install_hint
from csstdask.evaluation.inpaint.figures import draw_fields, draw_science
from csstdask.evaluation.inpaint.frames import fields_part
from csstdask.evaluation.inpaint.m51 import m51_part, m51_paths
from csstdask.evaluation.inpaint.methods import PEERS, absent_peers, method_name, repair_methods
from csstdask.evaluation.inpaint.photometry import (
    CLEAN,
    FLUX_BOUND,
    MASKS,
    ORACLE,
    ORACLE_POSITION,
    Mask,
)
from csstdask.evaluation.inpaint.photometry_statistics import science_part
from csstdask.evaluation.io import markdown_header, markdown_row
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
from csstdask.mock import Recipe
from csstdask.nn.models import find_card

log = logging.getLogger("csstdask")

PARTS = ("science", "fields", "m51")
#: Test recipes of the parts that are rendered.
RECIPES = {"science": "cr-science", "fields": "cr-detection-test"}
#: Exposures of ``fields``: one of each of its fields.
_FIELD_EXPOSURES = 5
#: Masks of ``fields``; the true mask is evaluated in ``science``.
FIELD_MASKS: tuple[Mask, ...] = ("detected",)
#: Version of the content of a section, part of its settings: raised when results of the same models would differ.
_FORMAT = 4
_NAME = "inpaint_evaluation"


def evaluate_inpaint(
    models: Sequence[str] = (),
    data: Path | None = None,
    to: Path | None = None,
    *,
    recipes: Path | None = None,
    parts: Sequence[str] = PARTS,
    scale: float | None = None,
    workers: int | None = None,
    on_progress: ProgressCallback = log.info,
) -> Results:
    """Evaluate the repair of hit pixels and compare it with other methods.

    Parameters
    ----------
    models : sequence of str
        Networks, by name or card. The median is always evaluated.
    data : Path, optional
        Folder of real images, for ``m51``. Without it, that part is skipped.
    to : Path, optional
        Folder for ``inpaint_evaluation.json``, its tables and figures. Stored sections that were measured with the
        same models and recipes are kept.
    recipes : Path, optional
        Folder of the test recipes, for ``science`` and ``fields``. Without it, these parts are skipped.
    parts : sequence of str
        Some of `PARTS`.
    scale : float, optional
        Linear scale of the frames, which replaces that of the recipes.
    workers : int, optional
        Number of worker processes, by default one per CPU core; 0: no workers.
    on_progress : callable
        Receives a line per section.

    Returns
    -------
    dict
        The content of the JSON file.

    Raises
    ------
    InputError
        If a model or a part is unknown, or a folder has none of the required files.
    """
    folders = {"m51": data, **dict.fromkeys(RECIPES, recipes)}
    asked = select_parts(parts, PARTS)
    chosen = [part for part in asked if folders[part] is not None]
    if not chosen:
        wanted = "--recipes (science, fields) or --data (m51)"
        raise InputError("evaluate inpaint", f"no input for {', '.join(asked)}", wanted)
    describe_methods(models)  # an unknown model is reported before anything is measured
    if data is not None and "m51" in chosen:
        m51_paths(data)
    if absent := absent_peers():
        on_progress(f"not installed, not evaluated: {', '.join(absent)} ({install_hint('bench')})")
    output = Output(to, _NAME, summary_lines, _draw)
    stored = output.load()
    results = stored if "measured" in stored else {"measured": {}}
    sections = _sections(chosen, tuple(models), data, recipes, scale, workers, on_progress)
    return run_evaluation(sections, output, results, on_progress=on_progress)


def _sections(
    parts: Sequence[str],
    models: tuple[str, ...],
    data: Path | None,
    recipes: Path | None,
    scale: float | None,
    workers: int | None,
    on_progress: ProgressCallback,
) -> Iterator[Section]:
    """Yield the sections of some parts; the parameters are those of `evaluate_inpaint`."""
    for part, name in RECIPES.items():
        if recipes is None or part not in parts:
            continue
        for original in recipe_with_twin(recipes, name, scale=scale):
            recipe, methods, masks = original, describe_methods(models), MASKS
            if part == "fields":
                recipe = original.model_copy(update={"exposures": min(_FIELD_EXPOSURES, original.exposures)})
                methods, masks = describe_methods(models[:1], peers=False), FIELD_MASKS
            settings = methods | {"recipe": recipe_digest(original)}
            for mask in masks:
                title = f"{part}: {recipe.name}, {mask} mask, {recipe.exposures * len(recipe.detectors)} frames"
                measure = partial(_measure, part, recipe, mask, models, workers, on_progress)
                yield Section((part, original.name, mask), measure, settings, title=title)
    if data is not None and "m51" in parts:
        # Its settings do not identify the images, and its seconds are of this machine: it is measured every time.
        yield Section(("m51",), lambda: Measurement(m51_part(data, models)), describe_methods(models), resume=False)


def _measure(
    part: str,
    recipe: Recipe,
    mask: Mask,
    models: tuple[str, ...],
    workers: int | None,
    on_progress: ProgressCallback,
) -> Measurement:
    """Measure one part on one recipe with one mask."""
    if part == "science":
        result = science_part(recipe, models, on_progress, mask=mask, workers=workers)
    else:
        result = fields_part(recipe, models[:1], on_progress, workers=workers)
    return Measurement(result | {"seed": recipe.seed, "shape": list(recipe.frame_shape)})


def describe_methods(models: Sequence[str], *, peers: bool = True) -> dict[str, Any]:
    """Return the settings that a section depends on: models, packages and the version of the content.

    Parameters
    ----------
    models : sequence of str
        Networks, by name or card.
    peers : bool
        Whether other tools are evaluated as well.

    Raises
    ------
    InputError
        If a model is unknown.
    """
    try:
        repair_methods(models)
        cards = {method_name(model): find_card("inpaint", model).identity for model in ("median", *models)}
    except ValueError as error:
        raise InputError("--model", str(error), "the name of a model for repair, or its card") from None
    packages = {package for name, (package, _) in PEERS.items() if name not in absent_peers()} if peers else set()
    distributions = packages_distributions()
    versions = {name: version(distributions[name][0]) for name in sorted(packages)}
    return {
        "models": cards,
        "detector": find_card("cosmicray", "default").identity,
        "psf": find_card("psf", "default").identity,
        "packages": versions,
        "format": _FORMAT,
    }


def _draw(results: Results, folder: Path) -> None:
    """Draw the figures of all recipes."""
    for recipe, masks in results.get("science", {}).items():
        if masks:
            draw_science(masks, folder / f"inpaint-{recipe}.png")
    for recipe, masks in results.get("fields", {}).items():
        draw_fields(masks["detected"], folder / f"inpaint-{recipe}.png")


def summary_lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the Markdown tables of an evaluation."""
    for recipe, masks in results.get("science", {}).items():
        for mask, part in masks.items():
            for kind in ("star", "galaxy"):
                bins = [one for one in part["bins"] if one["kind"] == kind]
                yield from _source_tables(f"{recipe}, {mask} mask: {kind}", bins)
            yield from _pair_table(f"{recipe}, {mask} mask: pulls, mean and standard deviation", _pull_pairs(part))
            yield from _pair_table(
                f"{recipe}, {mask} mask: shape errors, mean and standard deviation", _shape_pairs(part)
            )
    for recipe, masks in results.get("fields", {}).items():
        yield from _field_tables(recipe, masks["detected"])
    if "m51" in results:
        columns = ("rms", "mean_absolute", "median_absolute", "bias", "seconds")
        yield from markdown_header("M51: error of masked pixels [count]", [name.replace("_", " ") for name in columns])
        for method, facts in results["m51"].items():
            yield markdown_row(method, [facts[name] for name in columns])


def _source_tables(title: str, bins: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table per quantity, with a row per method and a column per magnitude and distance."""
    if not bins:
        return
    names = [f"{one['magnitude']:.0f} mag, from {one['distance'][0]:g} px" for one in bins]
    for quantity in ("shift", "scatter"):
        yield from markdown_header(f"{title}, {quantity}", names)
        for method in bins[0]["methods"]:
            yield markdown_row(method, [one["methods"][method][quantity] for one in bins])
        if quantity == "scatter" and ORACLE in bins[0]:
            yield markdown_row("oracle: PSF and position known", [one[ORACLE] for one in bins])
            yield markdown_row("oracle without position: PSF known", [one.get(ORACLE_POSITION) for one in bins])
            yield markdown_row("Cramer-Rao bound on the flux", [one[FLUX_BOUND] for one in bins])


#: Mean and standard deviation by method and kind.
Pairs = dict[str, dict[str, tuple[float, float]]]


def _pull_pairs(part: dict[str, Any]) -> Pairs:
    return {
        method: {kind: (one["mean"], one["sd"]) for kind, one in kinds.items()}
        for method, kinds in part["pulls"].items()
    }


def _shape_pairs(part: dict[str, Any]) -> Pairs:
    return {
        method: {
            f"{kind}, {what}": (one[f"{what}_mean"], one[f"{what}_sd"])
            for kind, one in kinds.items()
            for what in ("size", "e1", "e2")
        }
        for method, kinds in part["shapes"].items()
    }


def _pair_table(title: str, pairs: Pairs) -> Iterator[str]:
    """Yield a table of means and standard deviations, with a row per method and a column per kind."""
    if not pairs:
        return
    kinds = list(next(iter(pairs.values())))
    yield from markdown_header(title, kinds)
    for method, found in pairs.items():
        cells = [f"{found[kind][0]:.3f} ± {found[kind][1]:.3f}" if kind in found else "" for kind in kinds]
        yield f"| {' | '.join((method, *cells))} |"


def _field_tables(recipe: str, part: dict[str, Any]) -> Iterator[str]:
    columns = ("found", "found_hit", "completeness", "by_chance", "purity", "purity_by_chance")
    yield from markdown_header(f"{recipe}, detected mask: catalogues", [name.replace("_", " ") for name in columns])
    for method, row in part["catalogue"].items():
        yield markdown_row(method, [row[name] for name in columns])
    for kind, counts in part["number_counts"].items():
        yield from markdown_header(f"{recipe}: number counts, {kind}", ["structural similarity", "chi^2"])
        for method, row in counts.items():
            yield markdown_row(method, [row.get("ssim"), row.get("chi2")])
    for how, kinds in part["photometry"].items():
        for kind, methods in kinds.items():
            edges = [row["from"] for row in methods[CLEAN]]
            title = (
                f"{recipe}: {kind}, {'forced' if how == 'forced' else 're-detected'}, width of the 5-95 % band [mag]"
            )
            yield from markdown_header(title, [f"from {edge:g} mag" for edge in edges])
            for method, rows in methods.items():
                width = {row["from"]: row["p95"] - row["p5"] for row in rows}
                yield markdown_row(method, [width.get(edge) for edge in edges])
