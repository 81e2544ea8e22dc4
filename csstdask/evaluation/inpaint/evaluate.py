"""Evaluation of repair: ``csstdask evaluate inpaint``.

* ``science``: sources of 17, 19, 21 and 23 mag, each hit a hundred times, with the true mask and with the detected one;
* ``fields``: whole frames, their photometry and catalogues, with the detected mask; of networks the first alone;
* ``m51``: a real frame with cosmic rays added.

Every method is given the same pixels and the same mask: our median, networks, and what people use instead, where it is
installed (the extra ``bench``).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from csstdask.core.errors import InputError
from csstdask.core.optional import install_hint
from csstdask.core.plotting import check_figures
from csstdask.evaluation.inpaint.figures import draw_fields, draw_science
from csstdask.evaluation.inpaint.frames import fields_part
from csstdask.evaluation.inpaint.m51 import m51_part, m51_paths
from csstdask.evaluation.inpaint.methods import PEERS, absent_peers, method_name, repair_methods
from csstdask.evaluation.inpaint.photometry import CLEAN, FLUX_BOUND, MASKS, ORACLE, ORACLE_POSITION, Mask, science_part
from csstdask.evaluation.io import markdown_header, markdown_row, write_results
from csstdask.mock import Recipe
from csstdask.mock.recipe import load_recipe
from csstdask.nn.models import find_card

log = logging.getLogger("csstdask")

PARTS = ("science", "fields", "m51")
#: Parts that are made of recipes; of the fields so many exposures, one of each field.
RECIPES = {"science": "cr-science", "fields": "cr-detection-test"}
_EXPOSURES = 5
#: Of whole frames; the true mask is for the science test.
FIELD_MASKS: tuple[Mask, ...] = ("detected",)
#: Raised when results of the same models would have other contents.
_FORMAT = 4
_FILE = "inpaint_evaluation"


def evaluate_inpaint(
    models: Sequence[str] = (),
    data: Path | None = None,
    to: Path | None = None,
    *,
    recipes: Path | None = None,
    parts: Sequence[str] = PARTS,
    scale: float | None = None,
    workers: int | None = None,
    on_progress: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Evaluate repair beside other methods.

    Parameters
    ----------
    models : sequence of str
        Networks, by name or card; the median is always there.
    data : Path, optional
        Folder of real images, for ``m51``; without it that part is left out.
    to : Path, optional
        Folder for ``inpaint_evaluation.json``, its tables and figures. It says what each section was measured
        with; mocks that were measured with the same are not measured again, others are kept until they are.
    recipes : Path, optional
        Folder of the test recipes, for ``science`` and ``fields``; without it they are left out.
    parts : sequence of str
        Some of `PARTS`.
    scale : float, optional
        Of the recipe's frames, in place of its own.
    workers : int, optional
        Processes; 0 for none but this one.
    announce : callable
        Told in a line what is done now.

    Returns
    -------
    dict
        What is written there.

    Raises
    ------
    InputError
        If a model or a part is unknown, or a folder holds nothing that is wanted.
    """
    if not parts or not set(parts) <= set(PARTS):
        raise InputError("--part", ", ".join(parts) or "none", f"some of {', '.join(PARTS)}")
    folders = {"m51": data, **dict.fromkeys(RECIPES, recipes)}
    wanted = [part for part in parts if folders[part] is not None]
    if not wanted:
        raise InputError(
            "evaluate inpaint", f"nothing to make {', '.join(parts)} of", "--recipes or --data, as they want"
        )
    identity = _identity(models)  # now, and not when all else is done
    if data is not None and "m51" in wanted:
        m51_paths(data)
    if absent := absent_peers():
        on_progress(f"not installed, left out: {', '.join(absent)} ({install_hint('bench')})")
    results = _kept(to)
    if to is not None and set(RECIPES) & {*wanted, *results}:
        check_figures()
    for part, name in RECIPES.items():
        if recipes is None or part not in wanted:
            continue
        for twin in (name, f"{name}-foreign"):
            path = recipes / f"{twin}.toml"
            if twin != name and not path.is_file():
                continue
            recipe = load_recipe(path, scale=scale)
            digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:16]
            given = identity if part == "science" else _identity(models[:1], peers=False)
            for mask in MASKS if part == "science" else FIELD_MASKS:
                section, measured_with = f"{part}/{twin}/{mask}", given | {"recipe": digest}
                if results["measured"].get(section) == measured_with:
                    on_progress(f"{section} is there already")
                    continue
                found = _science if part == "science" else _fields
                result = found(recipe, mask, models, workers, on_progress)
                results.setdefault(part, {}).setdefault(twin, {})[mask] = result
                results["measured"][section] = measured_with
                _write(to, results)
    if data is not None and "m51" in wanted:
        on_progress("m51")
        results["m51"] = m51_part(data, models)
        results["measured"]["m51"] = identity
        _write(to, results)
    return results


def _science(
    recipe: Recipe, mask: Mask, models: Sequence[str], workers: int | None, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    on_progress(f"science: {recipe.name}, the {mask} mask, {recipe.exposures * len(recipe.detectors)} units")
    part = science_part(recipe, models, on_progress, mask=mask, workers=workers)
    return part | {"seed": recipe.seed, "shape": list(recipe.frame_shape)}


def _fields(
    recipe: Recipe, mask: Mask, models: Sequence[str], workers: int | None, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    recipe = recipe.model_copy(update={"exposures": min(_EXPOSURES, recipe.exposures)})
    on_progress(f"fields: {recipe.name}, the {mask} mask, {recipe.exposures * len(recipe.detectors)} frames")
    part = fields_part(recipe, models[:1], on_progress, workers=workers)
    return part | {"seed": recipe.seed, "shape": list(recipe.frame_shape)}


def _identity(models: Sequence[str], *, peers: bool = True) -> dict[str, Any]:
    """Return what decides a section besides its data: repairers, what finds the detected mask, and the peers."""
    try:
        repair_methods(models)
        cards = {method_name(model): find_card("inpaint", model).identity for model in ("median", *models)}
    except ValueError as error:
        raise InputError("--model", str(error), "the name of a repairer, or its card") from None
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


def _kept(to: Path | None) -> dict[str, Any]:
    """Return what a folder holds of an evaluation, else the beginning of one."""
    path = None if to is None else to / f"{_FILE}.json"
    if path is not None and path.is_file():
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "measured" in before:
            return before
    return {"measured": {}}


def _write(to: Path | None, results: dict[str, Any]) -> None:
    if to is None:
        return
    write_results(to / _FILE, results, summary_lines(results))
    for recipe, masks in results.get("science", {}).items():
        if masks:
            draw_science(masks, to / f"inpaint-{recipe}.png")
    for recipe, masks in results.get("fields", {}).items():
        draw_fields(masks["detected"], to / f"inpaint-{recipe}.png")


def summary_lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of an evaluation's tables, for people."""
    for recipe, masks in results.get("science", {}).items():
        for mask, part in masks.items():
            for kind in ("star", "galaxy"):
                bins = [one for one in part["bins"] if one["kind"] == kind]
                yield from _of_sources(f"{recipe}, {mask} mask: {kind}", bins)
            yield from _of_pairs(f"{recipe}, {mask} mask: pulls, mean and deviation", _pulls_of(part))
            yield from _of_pairs(f"{recipe}, {mask} mask: errors of shape, mean and deviation", _shapes_of(part))
    for recipe, masks in results.get("fields", {}).items():
        yield from _of_fields(recipe, masks["detected"])
    if "m51" in results:
        columns = ("rms", "mean_absolute", "median_absolute", "bias", "seconds")
        yield from markdown_header("M51: error of masked pixels [count]", [name.replace("_", " ") for name in columns])
        for method, facts in results["m51"].items():
            yield markdown_row(method, [facts[name] for name in columns])


def _of_sources(title: str, bins: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table a quantity: methods down, magnitude and distance across."""
    if not bins:
        return
    names = [f"{one['magnitude']:.0f} mag, from {one['distance'][0]:g} px" for one in bins]
    for quantity in ("shift", "scatter"):
        yield from markdown_header(f"{title}, {quantity}", names)
        for method in bins[0]["methods"]:
            yield markdown_row(method, [one["methods"][method][quantity] for one in bins])
        if quantity == "scatter" and ORACLE in bins[0]:
            yield markdown_row("who knows the image, not the brightness", [one[ORACLE] for one in bins])
            yield markdown_row(
                "who knows the image, not brightness and place", [one.get(ORACLE_POSITION) for one in bins]
            )
            yield markdown_row("bound on the brightness", [one[FLUX_BOUND] for one in bins])


Pairs = dict[str, dict[str, tuple[float, float]]]


def _pulls_of(part: dict[str, Any]) -> Pairs:
    return {
        method: {kind: (one["mean"], one["sd"]) for kind, one in kinds.items()}
        for method, kinds in part["pulls"].items()
    }


def _shapes_of(part: dict[str, Any]) -> Pairs:
    return {
        method: {
            f"{kind}, {what}": (one[f"{what}_mean"], one[f"{what}_sd"])
            for kind, one in kinds.items()
            for what in ("size", "e1", "e2")
        }
        for method, kinds in part["shapes"].items()
    }


def _of_pairs(title: str, pairs: Pairs) -> Iterator[str]:
    """Yield a table of means and deviations: methods down, kinds across."""
    if not pairs:
        return
    kinds = list(next(iter(pairs.values())))
    yield from markdown_header(title, kinds)
    for method, found in pairs.items():
        cells = [f"{found[kind][0]:.3f} ± {found[kind][1]:.3f}" if kind in found else "" for kind in kinds]
        yield f"| {' | '.join((method, *cells))} |"


def _of_fields(recipe: str, part: dict[str, Any]) -> Iterator[str]:
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
