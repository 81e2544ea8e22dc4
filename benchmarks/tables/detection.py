"""Tables of cosmic-ray detection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from committed import load, percent, table


def of_version(make: Callable[[], str]) -> Callable[[], str]:
    """Decorate a table with the version of the network that it describes."""

    def with_version() -> str:
        model = load("cosmicray_evaluation")["model"]
        return f"{make()}\n\n*network*: `{model['name']}`, version {model['version']}."

    return with_version


def half(interval: list[float]) -> str:
    """Return half the width of a 68 % interval."""
    return f"{(interval[1] - interval[0]) / 2:.3f}"


def accuracy() -> str:
    """Precision and recall of all methods, by kind of frame."""
    result = load("cosmicray_evaluation")
    rows = []
    for part, prefix in (("stis", "STIS: "), ("injected", "")):
        for kind, methods in result[part].items():
            for method, row in methods.items():
                visible = "" if part == "stis" else f"{row['recall_visible']:.3f}"
                spans = [f"{row[name]:.3f} ({half(row[f'{name}_interval'])})" for name in ("precision", "recall")]
                numbers = [f"{row[key]:.3f}" for key in ("precision_without_skirt", "events_found")]
                rows.append([prefix + kind, method, *spans, visible, *numbers])
    head = ["frames", "method", "precision", "recall", "of visible", "precision off the skirt", "events found"]
    return table(head, rows)


def controls() -> str:
    rows = [
        [kind, f"{row['network']:.0f}", f"{row['lacosmic']:.0f}"]
        for kind, row in load("cosmicray_evaluation")["false_pixels_per_mpix"].items()
    ]
    return table(["frames without cosmic rays", "network", "L.A.Cosmic"], rows)


def part(name: str) -> list[tuple[str, Any]]:
    """Return the results of each recipe of a part of the evaluation."""
    return list(load("cosmicray_evaluation")[name].items())


def field() -> str:
    """Return detection over all detectors and fields, every method, and the foreign twin."""
    rows = []
    for recipe, result in part("field"):
        for method, row in result["pooled"].items():
            images, against = result["per_image"][method], result["against_baseline"].get(method, {})
            rows.append(
                [
                    recipe,
                    method,
                    *(percent(row[key], 2) for key in ("precision", "precision_off_skirt", "recall", "recall_visible")),
                    f"{percent(images['recall']['mean'], 2)} ± {percent(images['recall']['sd'], 2)}",
                    f"{percent(images['precision']['mean'], 2)} ± {percent(images['precision']['sd'], 2)}",
                    percent(against.get("fewer_missed_visible")),
                    f"{result['false_pixels_per_mpix'][method]:.0f}",
                ]
            )
    head = [
        "recipe", "method", "precision", "off the skirt", "recall > 5 e-", "of visible",
        "recall, mean ± SD of detectors", "precision, the same",
        "fewer missed visible pixels of ours at its precision", "false pixels per Mpix, no CR",
    ]  # fmt: skip
    return table(head, rows)


def regions() -> str:
    """Return the assessment paper's table 1, on cosmic rays dropped on sources and in the field."""
    rows = []
    for recipe, result in [*part("field"), *part("sources")]:
        for method, levels in result["by_region"].items():
            cells = [f"{percent(row['recall_visible'])} / {percent(row['precision'])}" for row in levels.values()]
            rows.append([recipe, method, *cells])
        for method, levels in result.get("against", {}).items():
            fewer = [percent(row["fewer_missed_visible"]) for row in levels.values()]
            rows.append([recipe, f"fewer missed than {method}, at its precision", *fewer])
    levels = list(part("field")[0][1]["by_region"]["network"])
    return table(["recipe", "visible recall / precision", *levels], rows)


def crowded() -> str:
    rows = []
    for recipe, fields in part("crowded"):
        for name, result in fields.items():
            for method, row in result["pooled"].items():
                flags = result["stars"].get("flagged_without_cosmic_rays", {})
                bright = [flags[key] for key in flags if key in ("S/N 20 to 50", "S/N 50 to 100", "S/N above 100")]
                stars = sum(one["stars"] for one in bright)
                cores = sum(one["stars"] * (one[method]["core"] or 0) for one in bright) / max(1, stars)
                rows.append(
                    [
                        recipe, name, method, percent(row["precision"]), percent(row["recall_visible"]),
                        f"{result['false_pixels_per_mpix'][method]:.0f}", percent(cores, 2),
                    ]
                )  # fmt: skip
    head = [
        "recipe", "field", "method", "precision", "of visible", "false pixels per Mpix, no CR",
        "cores of stars flagged, S/N > 20 [%]",
    ]  # fmt: skip
    return table(head, rows)


def stars() -> str:
    """Star cores flagged where there is no cosmic ray, by S/N."""
    rows = []
    for recipe, result in part("field"):
        flags = result["stars"]["flagged_without_cosmic_rays"]
        for method in result["pooled"]:
            own = [row[method] for row in flags.values()]
            cells = [f"{percent(row['core'], 2)} ({percent(row['whole'], 2)})" for row in own]
            rows.append([recipe, method, *cells])
    return table(["recipe", "cores (whole stars) flagged [%]", *flags], rows)


def artefacts() -> str:
    """Return the number of pixels flagged on light that is neither sky nor source, without cosmic rays."""
    rows, names = [], []
    for recipe, result in part("field"):
        for place, row in result["false_pixels_on"].items():
            names = list(row["per_mpix"])
            rates = ["" if rate is None else f"{rate:.0f}" for rate in row["per_mpix"].values()]
            rows.append([recipe, place, f"{row['pixels'] / 1e6:.2f}", *rates])
    return table(["recipe", "false pixels per Mpix on", "Mpix", *names], rows)


def densities() -> str:
    rows = []
    for recipe, result in part("density"):
        for density, facts in result["densities"].items():
            ours = facts["pooled"]["network"]
            fewer = facts["against_baseline"]["deepcr"]["fewer_missed_visible"]
            reliable = facts["reliability"]["network"]["rescaled to the frame"]
            calibrated = [
                f"{row['ece']:.3f} / {row['slope']:.2f}" if row["ece"] is not None else "" for row in reliable.values()
            ]
            rows.append(
                [
                    recipe, density, *(percent(ours[key], 2) for key in ("precision", "recall", "recall_visible")),
                    percent(fewer), *calibrated,
                ]
            )  # fmt: skip
    head = [
        "recipe", "pixels hit", "precision", "recall > 5 e-", "of visible", "fewer missed visible than deepcr [%]",
        "ECE / slope", "within sources",
    ]  # fmt: skip
    return table(head, rows)


def epochs() -> str:
    rows = []
    for recipe, terms in part("epochs"):
        for term, methods in terms.items():
            for method, trend in methods.items():
                cells = [
                    f"{trend[key]['slope']:+.5f} ± {trend[key]['slope_error']:.5f}"
                    for key in ("f_score", "f_score_on_sources", "flux_ratio")
                ]
                rows.append([recipe, term, method, *cells])
    head = ["recipe", "what ages", "method", "slope of F [1/yr]", "of F on sources", "of the flux ratio"]
    return table(head, rows)


def speed() -> str:
    result = load("cosmicray")
    place = result["environment"]
    rows = [
        [
            row["method"],
            row["threads"],
            row["mpix_per_s"],
            *row["times_as_fast"].values(),
            row["precision"],
            row["recall"],
        ]
        for row in result["rows"]
    ]
    ours = [f"{name} is times as fast" for name in result["rows"][0]["times_as_fast"]]
    head = ["method", "threads", "Mpix/s", *ours, "precision", "recall above 5 e-"]
    full = "; ".join(
        f"{name} {facts['seconds']} s on two threads, peak memory of the process {facts['peak_gb']} GB, "
        f"{facts['gb_before']} GB of it before the call"
        for name, facts in result["full_detector"].items()
    )
    note = f"{place['processor']}, torch {place['packages']['torch']}, {place['date']}."
    return table(head, rows) + f"\n\nA full detector of 9232 x 9216 pixels: {full}. {note}"


TABLES: dict[str, Callable[[], str]] = {
    "field": of_version(field),
    "regions": of_version(regions),
    "crowded": of_version(crowded),
    "stars": of_version(stars),
    "artefacts": of_version(artefacts),
    "densities": of_version(densities),
    "epochs": of_version(epochs),
    "accuracy": of_version(accuracy),
    "controls": of_version(controls),
    "cosmicray-speed": speed,
}
