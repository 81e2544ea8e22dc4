"""Make the tables of README and docs from the committed results: their figures come from nowhere else.

``python benchmarks/readme_tables.py`` rewrites what stands between the markers; ``--check`` only compares.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flux_tables
import psf_tables
import repair_tables
import sed_tables
import zeropoint_tables
from committed import load, percent, table

ROOT = Path(__file__).parent.parent
PEER_COMMAND = ("commands", "astroscrappy")
"""The row of `clean.json` that is a whole script of the peer."""


def summary() -> str:
    """One row for each question that a newcomer asks, with the peer that was measured on the same data."""
    detection = {row["method"]: row for row in load("cosmicray")["rows"] if row["threads"] == 1}

    def detected(name: str) -> str:
        row = detection[name]
        return f"recall {row['recall']:.3f}, precision {row['precision']:.3f}, {row['mpix_per_s']} Mpix/s"

    psfs = {unit["band"]: unit["methods"] for unit in load("psf")["recipes"]["psf-dataset2"]}
    psnr = [
        sum(unit[method]["psnr"]["mean"] for unit in psfs.values()) / len(psfs)
        for method in (psf_tables.MODEL, psf_tables.PSFEX)
    ]
    repaired = load("repair_real")["rows"]
    errors = [
        [row["rms_over_error"] for row in repaired if row["method"] == method] for method in ("frame's PSF", "median")
    ]
    exposures = load("zeropoint_table")["campaigns"]

    def zero_point_errors(method: str) -> str:
        return " and ".join(f"{one['methods'][method]['all']['mae']:.4f}" for one in exposures.values()) + " mag"

    cubes = load("flux")["speed"]["flat"]
    bounds = [one["error"] / one["bound"] for one in load("flat_evaluation")["end_to_end"]["bands"].values()]
    kills = sum(row["kills"] for row in load("resume")["trials"])
    differences = sum(len(row["differences_from_uninterrupted"]) for row in load("resume")["trials"])
    rows = [
        [
            "cosmic rays, one thread, a mock frame of 2048 x 2048 ([page](docs/cosmicray.md))",
            f"`unet`: {detected('csstdask unet, float32')}; `unet-fast`: {detected('csstdask unet-fast, int8')}",
            (
                f"deepCR, published weights: {detected('deepCR ACS-WFC, 256-pixel patches')}; "
                f"astroscrappy: {detected('astroscrappy, 4 iterations')}"
            ),
        ],
        [
            "PSF at stars of an unseen telescope, mean of seven bands ([page](docs/psf.md))",
            f"{psnr[0]:.1f} dB",
            f"PSFEx: {psnr[1]:.1f} dB",
        ],
        [
            "hit pixels of stars in four real frames, rms error / noise ([page](docs/repair.md))",
            f"frame's PSF: {min(errors[0]):.1f} to {max(errors[0]):.1f}",
            f"median of the neighbours: {min(errors[1]):.1f} to {max(errors[1]):.1f}",
        ],
        [
            "flat-field cubes of 12 slitless detectors, 400 stars each ([page](docs/flux.md))",
            f"{cubes['batched_s']:.2f} s; errors {min(bounds):.2f} to {max(bounds):.2f} times the Cramer-Rao bound",
            f"`astropy.modeling`, a loop: {cubes['astropy_loop_s']:.1f} s",
        ],
        [
            "zero points of real exposures on unseen nights, two cameras, mean error ([page](docs/zeropoint.md))",
            zero_point_errors("ours"),
            f"previous exposure: {zero_point_errors('previous')}; boosted trees: {zero_point_errors('trees')}",
        ],
        [
            f"{kills} SIGKILLs at random moments ([page](docs/engine.md))",
            f"{differences or 'no'} differences from uninterrupted runs",
            "",
        ],
    ]
    return table(["question", "csstdask", "peer, same data"], rows)


def clean() -> str:
    """Time of cleaning one frame, as an array and as a file, compared with astroscrappy."""
    result = load("clean")
    place = result["environment"]
    rows: list[list[Any]] = []
    for kind, what in (("results", "methods"), ("commands", "commands")):
        runs = [one[what] for one in result[kind]]
        for name in runs[0]:
            cells = [f"{one[name]['seconds']:.2f} s, {one[name]['times_astroscrappy']:.2f}" for one in runs]
            rows.append(["file: a script with astroscrappy" if (kind, name) == PEER_COMMAND else name, *cells])
    ny, nx = result["results"][0]["shape"]
    head = ["", *(f"{one['threads']} thread{'s' * (one['threads'] > 1)}" for one in result["results"])]
    note = f"{ny} x {nx} pixels; {place['processor']}, {place['cores']} cores, {place['date']}."
    return table(head, rows) + f"\n\n{note} Seconds, and as a multiple of astroscrappy's."


def engine() -> str:
    result = load("engine")
    place = result["environment"]
    runs = [
        [f"run, {row['slots']} x {row['scheduler']}", f"{row['mpix_per_s']} Mpix/s", f"E_k = {row['E_k']}"]
        for row in result["efficiency"]
    ]
    ingests = [
        [f"ingest, {row['slots']} x {row['scheduler']}", f"{row['mpix_per_s']} Mpix/s", f"{row['mb_per_s']} MB/s"]
        for row in result["throughput"]
    ]
    idle = [
        [
            f"{row['units']:,} units of {row['unit_ms']:g} ms, {row['slots']} x {row['scheduler']}",
            f"{row['overhead_ms_per_unit']} ms overhead a unit",
            f"memory {row['growth_second_half_mib']:+} MiB over the second half",
        ]
        for row in result["overhead"]
    ]
    small = [
        [f"{row['units']:,} units of 32 x 32, background only: {row['what']}", f"{row['ms_per_unit']} ms a unit", ""]
        for row in result["small_units"]
    ]
    medians = [
        [
            f"masked median, {100 * row['masked_share']:g} % masked",
            f"{row['csstdask_mpix_per_s']} Mpix/s",
            f"{row['times_scipy_3x3']} x scipy 3 x 3, {row['times_scipy_5x5']} x scipy 5 x 5",
        ]
        for row in result["median"]
    ]
    full = [
        [
            f"one 9232 x 9216 unit: {row['stage']}",
            f"{row['wall_s']} s",
            f"peak {row['peak_gib']} GiB of {row['projected_gib']} GiB projected",
        ]
        for row in result["memory"]
    ]
    note = f"{place['processor']}, {place['cores']} cores, Python {place['python']}, {place['date']}; {place['cache']}."
    return table(["what", "how fast", "and"], [*runs, *ingests, *idle, *small, *medians, *full]) + f"\n\n{note}"


def projections() -> str:
    """Predicted and used memory and time of whole runs, and what each step of a full detector takes."""
    result = load("projections")
    place = result["environment"]
    rows = [
        [
            row["campaign"], row["units"], row["workers"], row["seconds_predicted"], row["seconds"],
            f"{row['seconds_predicted'] / row['seconds']:.2f}", row["gib_predicted"], row["gib"],
            f"{row['gib_predicted'] / row['gib']:.2f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    head = [
        "campaign", "units", "at a time", "s predicted", "s", "ratio", "GiB predicted", "GiB peak", "ratio",
    ]  # fmt: skip
    note = f"{place['processor']}, {place['cores']} cores, {place['date']}: the reference machine of predicted times."
    return table(head, rows) + f"\n\n{note}"


def steps_of_a_detector() -> str:
    """Return predicted and actual usage of each step of a full mock detector."""
    (row,) = (row for row in load("projections")["rows"] if row["campaign"] == "full detector")
    rows = [
        [
            step["step"], f"{step['predicted_seconds']:.1f}", f"{step['actual']['seconds']:.1f}",
            f"{step['actual']['cpu_seconds']:.1f}", f"{step['predicted_bytes'] / 2**30:.2f}",
            f"{step['actual']['peak_bytes'] / 2**30:.2f}", f"{step['actual']['bytes_read'] / 1e6:.0f}",
            f"{step['actual']['bytes_written'] / 1e6:.1f}",
        ]
        for step in row["steps"]
    ]  # fmt: skip
    head = ["step", "s predicted", "s", "CPU s", "GiB predicted", "GiB peak", "MB read", "MB written"]
    return table(head, rows)


def resume() -> str:
    rows = [
        [
            row["scheduler"],
            row["units"],
            row["kills"],
            row["recorded_units_done_again"],
            "none" if not row["differences_from_uninterrupted"] else ", ".join(row["differences_from_uninterrupted"]),
        ]
        for row in load("resume")["trials"]
    ]
    head = ["scheduler", "units", "SIGKILLs", "recorded units done again", "differences from an uninterrupted run"]
    return table(head, rows)


def of_version(make: Callable[[], str]) -> Callable[[], str]:
    """Return what makes a table and tells which version of the network it is of."""

    def with_version() -> str:
        model = load("cosmicray_evaluation")["model"]
        return f"{make()}\n\n*network*: `{model['name']}`, version {model['version']}."

    return with_version


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


def half(interval: list[float]) -> str:
    """Return half the width of a 68 % interval."""
    return f"{(interval[1] - interval[0]) / 2:.3f}"


def controls() -> str:
    rows = [
        [kind, f"{row['network']:.0f}", f"{row['lacosmic']:.0f}"]
        for kind, row in load("cosmicray_evaluation")["false_pixels_per_mpix"].items()
    ]
    return table(["frames without cosmic rays", "network", "L.A.Cosmic"], rows)


def part(name: str) -> list[tuple[str, Any]]:
    """Return what was found of each recipe of a part of the evaluation."""
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


def detectors() -> str:
    """Tell, detector by detector, whether the network is better than the retrained baseline in both."""
    rows = []
    for recipe, result in part("field"):
        for detector, methods in result["by_detector"].items():
            ours, theirs = methods["network"], methods["deepcr"]
            cells = []
            for rate in ("recall", "recall_visible", "precision"):
                cells += [percent(ours[rate][1], 2), percent(theirs[rate][1], 2)]
            both = all(ours[rate][1] > theirs[rate][1] for rate in ("recall", "precision"))
            rows.append([recipe, detector, *cells, "yes" if both else "no"])
    head = ["recipe", "detector", "recall", "deepcr", "of visible", "deepcr", "precision", "deepcr", "better in both"]
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
    """Tell how many pixels are flagged on light that is neither sky nor source, without cosmic rays."""
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


def star_fractions() -> str:
    rows = []
    for recipe, result in part("density"):
        for name, fit in result["fraction_of_stars_against_density"].items():
            if "slope" in fit:
                slope = f"{fit['slope']:.2f} ± {fit['slope_error']:.2f}"
                rows.append([recipe, name, slope, f"{fit['intercept']:.3f}", f"{fit['r']:.2f}"])
    head = ["recipe", "stars: anomalous after a method, or contaminated", "slope", "intercept", "Pearson r"]
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


def mock() -> str:
    result = load("mock")
    place = result["environment"]
    rows = []
    for row in result["full_detector"]:
        what = f"a full detector in {row['band']}, {row['objects']:,} objects, {100 * row['hit_share']:.1f} % hit"
        rows.append(
            [
                f"{what}: {row['at_once']} at once, one thread each",
                f"{row['seconds']} s, {row['seconds_each']:.0f} s a detector",
                f"{row['peak_gib']} GiB each; {row['system_seconds']} s of it the kernel's, for memory",
            ]
        )
    sources, optics = result["objects"], result["optics"]
    rows += [
        [
            f"{sources['objects']} stars and galaxies, one thread",
            f"{sources['csstdask_ms_each']} ms each",
            f"GalSim `drawImage`, one PSF: {sources['galsim_ms_each']} ms, {sources['galsim_over_csstdask']} x as long",
        ],
        [
            "an effective PSF at one wavelength, one thread",
            f"{optics['csstdask_ms_each']} ms",
            f"GalSim `OpticalPSF`: {optics['galsim_ms_each']} ms, {optics['galsim_over_csstdask']} x as long",
        ],
        [
            "bytes of " + ", ".join(result["same_bytes"]["digests"]) + " workers",
            "alike" if result["same_bytes"]["alike"] else "DIFFERENT",
            "",
        ],
    ]
    return table(["what", "how fast", "and"], rows) + f"\n\n{place['processor']}, {place['date']}."


def trainings() -> str:
    result = load("cosmicray_training")
    groups = [("all three detectors", result["training_threshold"])]
    groups += [(f"detector {detector}", rows) for detector, rows in result["per_detector"].items()]
    groups += [("another camera", result["repeats"])]
    rows = [
        [
            where, how,
            *(percent(row[key]) for key in ("precision", "precision_off_skirt", "recall", "recall_visible")),
            percent(row["fewer_missed_visible"]) if row["fewer_missed_visible"] else "",
        ]
        for where, found in groups
        for how, row in found.items()
    ]  # fmt: skip
    head = [
        "frames of", "trained on", "precision", "off the skirt", "recall > 5 e-", "of visible",
        "fewer missed visible pixels at the precision of unet-fast [%]",
    ]  # fmt: skip
    return table(head, rows)


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"summary": summary},
    "docs/engine.md": {
        "projections": projections,
        "steps": steps_of_a_detector,
        "resume": resume,
        "reduction": flux_tables.memory,
        "engine": engine,
    },
    "docs/cosmicray.md": {
        "field": of_version(field),
        "detectors": of_version(detectors),
        "regions": of_version(regions),
        "crowded": of_version(crowded),
        "stars": of_version(stars),
        "artefacts": of_version(artefacts),
        "densities": of_version(densities),
        "star-fractions": of_version(star_fractions),
        "epochs": of_version(epochs),
        "accuracy": of_version(accuracy),
        "controls": of_version(controls),
        "trainings": trainings,
        "cosmicray-speed": speed,
    },
    "docs/usage.md": {"clean": clean},
    "docs/repair.md": repair_tables.TABLES,
    "docs/psf.md": psf_tables.TABLES | {"psf-bands": psf_tables.bands},
    "docs/flux.md": flux_tables.TABLES,
    "docs/mock.md": {"mock": mock},
    "docs/sed.md": sed_tables.TABLES,
    "docs/zeropoint.md": zeropoint_tables.TABLES,
}


def rendered(text: str, tables: dict[str, Callable[[], str]]) -> str:
    for name, make in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(
            pattern, lambda match, make=make: f"{match[1]}\n{make()}\n\n{match[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"found {count} places marked {name}; wanted one")
    return text


def main() -> None:
    for name, tables in TABLES.items():
        path = ROOT / name
        before = path.read_text()
        after = rendered(before, tables)
        if "--check" in sys.argv and before != after:
            raise SystemExit(f"{name}: its tables are not those of benchmarks/results")
        if before != after:
            path.write_text(after)


if __name__ == "__main__":
    main()
