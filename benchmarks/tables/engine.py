"""Tables of the engine: cost, resume, throughput, one-file use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from committed import load, table

PEER_COMMAND = ("commands", "astroscrappy")
"""The row of `clean.json` that is a whole script of the peer."""


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


TABLES: dict[str, Callable[[], str]] = {
    "projections": projections,
    "steps": steps_of_a_detector,
    "resume": resume,
    "engine": engine,
}
