"""Tables of docs/flux.md, from the committed results."""

from __future__ import annotations

from committed import load, percent, table

BANDS = ("GU", "GV", "GI")


def flat() -> str:
    """Precision of the cubes of 400 stars: errors of SEDs alone, and end to end."""
    result = load("flat_evaluation")
    whole = result["end_to_end"]
    rows = []
    for band in BANDS:
        alone, found = result["sed_errors_alone"][band], whole["bands"][band]
        rows.append(
            [
                band,
                f"{alone['published']:.4f}",
                f"{alone['scatter']:.5f} ({alone['formal']:.5f})",
                f"{found['error']:.4f}",
                f"{found['formal']:.4f}",
                f"{found['bound']:.4f}",
                f"{found['centre']:.4f}, {found['corner']:.4f}",
                f"{found['pull']:.2f}",
                f"{found['exposures_for_published']:.0f}",
                f"{whole['bad_stars'][band]:.2f}",
            ]
        )
    head = [
        "band", "paper", "SED errors alone: scatter (formal)", "end to end: error", "quoted", "Cramer-Rao bound",
        "centre, corner", "error / quoted, rms", "exposures for the paper's figure", "error with 5 % bad stars, times",
    ]  # fmt: skip
    traces = ", ".join(
        f"{band} {percent(whole['traces'][band]['first'], 3)} and {percent(whole['traces'][band]['zeroth'], 3)} %"
        for band in BANDS
    )
    note = (
        "Relative errors of the flat, root mean square over detectors and wavelengths; 400 stars a detector, one "
        "exposure. The paper's figures hold for errors of SEDs alone; end to end there are photon noise, cosmic rays, "
        "fluxes of the catalogue known to 1 %, SEDs to 2 % at 3400 A and the wavelength solution to 0.05 pixel. Share "
        f"of the pixels of first and zeroth orders that `detect` flags without a cosmic ray: {traces}."
    )
    return f"{table(head, rows)}\n\n{note}"


def memory() -> str:
    """Memory of the reduction for growing numbers of partials."""
    result = load("reduction")
    rows = [
        [f"{row['partials']:,}", f"{row['growth_MiB']:.0f} MiB", f"{row['seconds_per_pass']:.1f} s"]
        for row in result["rows"]
    ]
    place = result["environment"]
    return (
        f"{table(['partials', 'memory on top of the process', 'time of a pass'], rows)}\n\n"
        f"{result['stars_a_partial']} stars a partial; {place['processor']}, {place['cores']} cores, {place['date']}."
    )


TABLES = {"flat": flat}
