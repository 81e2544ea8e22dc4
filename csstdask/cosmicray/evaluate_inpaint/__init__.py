"""Evaluation of repair: ``csstdask evaluate inpaint``.

* ``science``: sources of 17, 19, 21 and 23 mag, each hit a hundred times, with the true mask and with the detected one;
* ``m51``: a real frame with cosmic rays added.

Every method is given the same pixels and the same mask: our median, networks, and what people use instead, where it is
installed (``pip install 'csstdask[bench]'``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from csstdask.cosmicray.card import find_card
from csstdask.cosmicray.evaluate.tables import table_head, table_row, write_results
from csstdask.cosmicray.evaluate_inpaint.fillers import PEERS, absent_peers, fillers, name_of
from csstdask.cosmicray.evaluate_inpaint.m51 import files_of_m51, m51_part
from csstdask.cosmicray.evaluate_inpaint.science import BOUND, KNOWN, MASKS, science_part
from csstdask.errors import InputError
from csstdask.mock.recipe import load_recipe

log = logging.getLogger("csstdask")

PARTS = ("science", "m51")
_RECIPE = "cr-science"
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
    announce: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Evaluate repair beside other methods.

    Parameters
    ----------
    models : sequence of str
        Networks, by name or card; the median is always there.
    data : Path, optional
        Folder of real images, for ``m51``; without it that part is left out.
    to : Path, optional
        Folder for ``inpaint_evaluation.json`` and its tables. Parts that it holds of the same models are kept.
    recipes : Path, optional
        Folder of the test recipes, for ``science``; without it that part is left out.
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
    wanted = [part for part, folder in (("science", recipes), ("m51", data)) if part in parts and folder is not None]
    if not wanted:
        raise InputError(
            "evaluate inpaint", f"nothing to make {', '.join(parts)} of", "--recipes or --data, as they want"
        )
    identity = _identity(models)
    if data is not None and "m51" in wanted:
        files_of_m51(data)  # now, and not when all else is done
    if absent := absent_peers():
        announce(f"not installed (pip install 'csstdask[bench]'), left out: {', '.join(absent)}")
    results = _kept(to, identity)
    if recipes is not None and "science" in wanted:
        for twin in (_RECIPE, f"{_RECIPE}-foreign"):
            path = recipes / f"{twin}.toml"
            if twin != _RECIPE and not path.is_file():
                continue
            recipe = load_recipe(path, scale=scale)
            for mask in MASKS:
                announce(f"science: {twin}, the {mask} mask, {recipe.exposures * len(recipe.detectors)} units")
                part = science_part(recipe, models, announce, mask=mask, workers=workers)
                part |= {"seed": recipe.seed, "shape": list(recipe.frame_shape)}
                results.setdefault("science", {}).setdefault(twin, {})[mask] = part
                _write(to, results)
    if data is not None and "m51" in wanted:
        announce("m51")
        results["m51"] = m51_part(data, models)
        _write(to, results)
    return results


def _identity(models: Sequence[str]) -> dict[str, Any]:
    """Return what decides an evaluation besides the data: repairers, what finds the detected mask, and the peers."""
    try:
        fillers(models)
        cards = {name_of(model): find_card("inpaint", model).identity for model in ("median", *models)}
    except ValueError as error:
        raise InputError("--model", str(error), "the name of a repairer, or its card") from None
    packages = {package for name, (package, _) in PEERS.items() if name not in absent_peers()}
    distributions = packages_distributions()
    versions = {name: version(distributions[name][0]) for name in sorted(packages)}
    return {"models": cards, "detector": find_card("cosmicray", "default").identity, "packages": versions}


def _kept(to: Path | None, identity: dict[str, Any]) -> dict[str, Any]:
    """Return what a folder holds of an evaluation of the same models, else the beginning of one."""
    path = None if to is None else to / f"{_FILE}.json"
    if path is not None and path.is_file():
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if before.get("identity") == identity:
            return before
    return {"identity": identity}


def _write(to: Path | None, results: dict[str, Any]) -> None:
    if to is not None:
        write_results(to / _FILE, results, table(results))


def table(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of an evaluation's tables, for people."""
    for recipe, masks in results.get("science", {}).items():
        for mask, part in masks.items():
            for kind in ("star", "galaxy"):
                bins = [one for one in part["bins"] if one["kind"] == kind]
                yield from _science(f"{recipe}, {mask} mask: {kind}", bins)
            if part["pulls"]:
                kinds = list(next(iter(part["pulls"].values())))
                yield from table_head(f"{recipe}, {mask} mask: pulls, mean and deviation", kinds)
            for method, pulls in part["pulls"].items():
                cells = [
                    f"{pulls[kind]['mean']:.2f} ± {pulls[kind]['sd']:.2f}" if kind in pulls else "" for kind in kinds
                ]
                yield f"| {' | '.join((method, *cells))} |"
    if "m51" in results:
        columns = ("rms", "mean_absolute", "median_absolute", "bias", "seconds")
        yield from table_head("M51: error of masked pixels [count]", [name.replace("_", " ") for name in columns])
        for method, facts in results["m51"].items():
            yield table_row(method, [facts[name] for name in columns])


def _science(title: str, bins: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table a quantity: methods down, magnitude and distance across."""
    if not bins:
        return
    names = [f"{one['magnitude']:.0f} mag, from {one['distance'][0]:g} px" for one in bins]
    for quantity in ("shift", "scatter"):
        yield from table_head(f"{title}, {quantity}", names)
        for method in bins[0]["methods"]:
            yield table_row(method, [one["methods"][method][quantity] for one in bins])
        if quantity == "scatter" and KNOWN in bins[0]:
            yield table_row("who knows the image, not the brightness", [one[KNOWN] for one in bins])
            yield table_row("bound on the brightness", [one[BOUND] for one in bins])
