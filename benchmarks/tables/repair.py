"""Tables of the repair of hit pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from statistics import fmean
from typing import Any

from committed import load, percent, table

from csstdask.nn.models import find_card

_CLEAN, _MEDIAN, _KNOWN, _UNPLACED = "clean twin", "median", "known_star_scatter", "unplaced_star_scatter"
#: Sources no fainter than this are bright [mag], and what is near them [pixel].
_BRIGHT, _NEAR = 21.5, 3.0


def _parts(name: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield recipe, mask and results of a part of the evaluation."""
    for recipe, masks in load("inpaint_evaluation")[name].items():
        for mask, part in masks.items():
            yield recipe, mask, part


def _largest(bins: list[dict[str, Any]], method: str) -> str:
    """Return the largest shift of any bin."""
    shifts = [one["methods"][method]["shift"] for one in bins]
    return "" if None in shifts or not shifts else f"{max(map(abs, shifts)):.3f}"


def _earlier(name: str) -> str:
    """Return a line on sections of a part that were measured with other models than the current ones."""
    measured = load("inpaint_evaluation")["measured"]
    today = {"detector": find_card("cosmicray", "default").identity, "psf": find_card("psf", "default").identity}
    what = {"detector": "detection", "psf": "PSFs"}
    lines = []
    for key, identity in today.items():
        sections = [one for one in measured if one.startswith(name) and measured[one][key] != identity]
        if sections:
            found = ", ".join(section.removeprefix(f"{name}/").replace("/", " (") + " mask)" for section in sections)
            lines.append(f"Measured with an earlier model of {what[key]}: {found}.")
    return "".join(f"\n\n{line}" for line in lines)


def _scatter_over(bins: list[dict[str, Any]], method: str, other: Callable[[dict[str, Any]], float]) -> str:
    return f"{fmean(one['methods'][method]['scatter'] / other(one) for one in bins):.2f}" if bins else ""


def science() -> str:
    rows = []
    bounds = [_KNOWN, _UNPLACED] if any(_UNPLACED in part["bins"][0] for _, _, part in _parts("science")) else [_KNOWN]
    for recipe, mask, part in _parts("science"):
        for kind in ("star", "galaxy"):
            bins = [one for one in part["bins"] if one["kind"] == kind]
            bright = [one for one in bins if one["magnitude"] < _BRIGHT]
            faint = [one for one in bins if one["magnitude"] >= _BRIGHT]
            near = [one for one in bins if one["distance"][0] < _NEAR]
            far = [one for one in bins if one["distance"][0] >= _NEAR]
            for method in bins[0]["methods"] if bins else ():
                of_median = [
                    _scatter_over(some, method, lambda one: one["methods"][_MEDIAN]["scatter"]) for some in (near, far)
                ]
                of_known = [
                    _scatter_over([one for one in bins if one["distance"][0] == first], method, itemgetter(who))
                    if kind == "star" and who in bins[0]
                    else ""
                    for who in bounds
                    for first in (0, 1, 2)
                ]
                shifts = [_largest(bright, method), _largest(faint, method)]
                rows.append([recipe, mask, kind, method, *shifts, *of_median, *of_known])
    head = [
        "recipe", "mask", "kind", "method", "largest shift, 17 to 21 mag", "at 23 mag",
        "scatter over the median's, within 3 px", "beyond",
        "scatter over that of who knows image and place, 0 to 1 px", "1 to 2", "2 to 3",
        *(["of who knows the image, 0 to 1 px", "1 to 2", "2 to 3"] if _UNPLACED in bounds else []),
    ]  # fmt: skip
    return table(head, rows) + _earlier("science")


def pulls() -> str:
    kinds = ("star", "galaxy", "background", "star, flux", "galaxy, flux")
    rows = [
        [recipe, mask, method, *(_pair(found.get(kind), "mean", "sd") for kind in kinds)]
        for recipe, mask, part in _parts("science")
        for method, found in part["pulls"].items()
    ]
    return table(["recipe", "mask", "method", *kinds], rows)


def _pair(found: dict[str, float] | None, mean: str, deviation: str, digits: int = 2) -> str:
    return "" if found is None else f"{found[mean]:.{digits}f} ± {found[deviation]:.{digits}f}"


def shapes() -> str:
    rows = [
        [recipe, mask, method]
        + [
            cell
            for kind in ("star", "galaxy")
            for cell in (
                *(_pair(found.get(kind), f"{what}_mean", f"{what}_sd", 3) for what in ("size", "e1", "e2")),
                percent(found.get(kind, {}).get("lost")),
            )
        ]
        for recipe, mask, part in _parts("science")
        for method, found in part["shapes"].items()
    ]
    head = [f"{kind}, {what}" for kind in ("star", "galaxy") for what in ("dR/R", "de1", "de2", "no shape [%]")]
    return table(["recipe", "mask", "method", *head], rows)


def catalogues() -> str:
    rows = []
    for recipe, _, part in _parts("fields"):
        for method, row in part["catalogue"].items():
            more = part["catalogue"]["masked"]["found"]
            rows.append(
                [
                    recipe, method, row["found"], f"{100 * (row['found'] / more - 1):+.1f}", row["found_hit"],
                    *(percent(row[key]) for key in (
                        "completeness", "completeness_star", "completeness_galaxy", "by_chance",
                        "purity", "purity_by_chance",
                    )),
                ]
            )  # fmt: skip
    head = [
        "recipe", "treatment", "sources found", "more than masked [%]", "of hit ones", "completeness [%]", "stars",
        "galaxies", "by chance", "purity [%]", "by chance",
    ]  # fmt: skip
    return table(head, rows) + _earlier("fields")


def bands() -> str:
    """Compare the 5 to 95 % band of magnitude errors with that of the frame without cosmic rays, by magnitude."""
    rows = []
    for recipe, _, part in _parts("fields"):
        for kind in ("star", "galaxy"):
            for method in part["photometry"]["magnitude"][kind]:
                cells = []
                for how in ("magnitude", "forced"):
                    methods = part["photometry"][how][kind]
                    clean = {row["from"]: row for row in methods[_CLEAN]}
                    both = [(row, clean[row["from"]]) for row in methods[method] if row["from"] in clean]
                    ratios = [(row["p95"] - row["p5"]) / (other["p95"] - other["p5"]) for row, other in both]
                    shifts = [row["p50"] - other["p50"] for row, other in both]
                    if both:
                        lost = percent(fmean(row["lost"] for row, _ in both))
                        cells += [f"{fmean(ratios):.2f}", f"{max(shifts, key=abs):+.3f}", lost]
                    else:
                        cells += ["", "", ""]
                rows.append([recipe, kind, method, *cells])
    head = [
        "recipe", "kind", "treatment", "re-detected: band over the clean twin's", "largest shift of the median",
        "lost [%]", "forced: band", "shift", "lost [%]",
    ]  # fmt: skip
    return table(head, rows)


def m51() -> str:
    columns = ("rms", "mean_absolute", "median_absolute", "bias", "seconds")
    rows = [
        [method, *(f"{facts[name]:.3g}" for name in columns)]
        for method, facts in load("inpaint_evaluation")["m51"].items()
    ]
    return table(["method", "rms [count]", "mean absolute", "median absolute", "bias", "seconds"], rows)


def speed() -> str:
    result = load("inpaint")
    place, repair = result["environment"], result["repair"]
    medians = [
        [f"{percent(row['masked_share'], 2)} %", row["ms"], row["ns_per_masked_pixel"], row["times_scipy_11x11"]]
        for row in result["medians"]
    ]
    whole = [
        [row["method"], row["seconds"], row["mpix_per_s"], row["times_as_long_as_our_median"]] for row in repair["rows"]
    ]
    ny, nx = result["shape"]
    frame = (
        f"The whole repair of such a frame with {repair['sources']} sources and {percent(repair['masked_share'])} % of "
        "its pixels masked, finding the sources included:"
    )
    parts = (
        f"The masked median, {ny} x {nx} pixels, one thread:",
        table(["masked", "ms", "ns a masked pixel", "times as fast as scipy's 11 x 11"], medians),
        frame,
        table(["method", "seconds", "Mpix/s", "times as long as our median"], whole),
        f"{place['processor']}, one thread, torch {place['packages']['torch']}, {place['date']}.",
    )
    return "\n\n".join(parts)


def real_stars() -> str:
    """Stars of real frames, repaired by their own PSF and by a median."""
    rows = [
        [
            row["frame"], row["method"], row["psf_stars"], row["pixels"], row["rms_over_error"],
            row["p95_over_error"], row["pull_sd"], row["pull_mean"],
        ]
        for row in load("repair_real")["rows"]
    ]  # fmt: skip
    head = ["frame", "repaired by", "PSF stars", "pixels", "rms / error", "95 % / error", "pulls, SD", "pulls, mean"]
    return table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "repair-real": real_stars,
    "repair-science": science,
    "repair-pulls": pulls,
    "repair-shapes": shapes,
    "repair-catalogues": catalogues,
    "repair-bands": bands,
    "repair-m51": m51,
    "repair-speed": speed,
}
