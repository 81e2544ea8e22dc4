"""Tables of flat fields, extraction and reductions."""

from __future__ import annotations

from committed import load, percent, table

BANDS = ("GU", "GV", "GI")


def flat() -> str:
    """Precision of the cubes of 400 stars: errors of SEDs alone, and end to end."""
    result, crowded = load("flat_evaluation"), load("flat_evaluation_crowded")
    rows = []
    for band in BANDS:
        alone = result["sed_errors_alone"][band]
        cells = [band, f"{alone['published']:.4f}", f"{alone['scatter']:.5f} ({alone['formal']:.5f})"]
        for whole in (result["end_to_end"], crowded["end_to_end"]):
            found = whole["bands"][band]
            cells += [
                f"{found['error']:.4f}, {found['formal']:.4f}, {found['bound']:.4f}",
                f"{found['centre']:.4f}, {found['corner']:.4f}",
                f"{found['pull']:.2f}",
            ]
        exposures = result["end_to_end"]["bands"][band]["exposures_for_published"]
        rows.append([*cells, f"{exposures:.0f}", f"{result['end_to_end']['bad_stars'][band]:.2f}"])
    head = [
        "band", "paper", "SED errors alone: scatter (formal)", "400 stars: error, quoted, bound", "centre, corner",
        "error / quoted", "crowded: error, quoted, bound", "centre, corner", "error / quoted",
        "exposures for the paper's figure", "error with 5 % bad stars, times",
    ]  # fmt: skip
    traces = [
        ", ".join(
            f"{band} {percent(one['end_to_end']['traces'][band]['first'], 3)} and "
            f"{percent(one['end_to_end']['traces'][band]['zeroth'], 3)} %"
            for band in BANDS
        )
        for one in (result, crowded)
    ]
    note = (
        "Relative errors of the flat, root mean square over detectors and wavelengths. *400 "
        "stars*: `slitless-400`, one "
        "exposure of isolated stars. *Crowded*: `slitless-100`, eight exposures of 100 stars that "
        "overlap, of which 5 % "
        "are variable or misidentified. The paper's figures hold for errors of SEDs alone; end to end there are photon "
        "noise, cosmic rays, fluxes of the catalogue known to 1 %, SEDs to 2 % at 3400 A and the "
        "wavelength solution to "
        "0.05 or 0.1 pixel. The bound is that of Cramer and Rao for the same stars. Exposures are of other stars each. "
        "Share of the pixels of first and zeroth orders that `detect` flags without a cosmic ray: "
        f"{traces[0]}; crowded {traces[1]}."
    )
    return f"{table(head, rows)}\n\n{note}"


def closure() -> str:
    """Spectra of the flux standard GD153 compared with aXe and with CALSPEC."""
    result = load("flux")["closure"]
    rows = []
    for name, found in [*result["stamps"].items(), ("aXe", result["axe"])]:
        low, high = found.get("counts_over_axe", (1.0, 1.0))
        rows.append(
            [
                name,
                f"{low:.3f} to {high:.3f}",
                f"{found['flux_over_model']:.3f}",
                percent(found["sd_over_wavelength"], 2),
                percent(found["robust_sd_per_bin"], 2),
                percent(found["grey_sd"], 2),
                f"{found['sd_over_quoted_error_after_plane']:.1f}",
            ]
        )
    head = [
        "extraction", "counts / aXe", "flux / CALSPEC", "scatter over wavelength [%]", "over exposures, per bin [%]",
        "grey [%]", "left-out scatter / quoted error",
    ]  # fmt: skip
    table_of_pixels, energy = result["pixel_table"], result["enclosed_energy"]
    curve = ", ".join(f"{radius}: {share:.3f}" for radius, share in energy.items())
    note = (
        f"Eight exposures of HST WFC3/IR G141, rows within 4.5 pixels. Of the exposure with a table of its pixels the "
        f"counts are {table_of_pixels['counts_over_axe']:.4f} of aXe's, with a robust scatter of "
        f"{percent(table_of_pixels['robust_sd_per_bin'], 3)} % a bin. Within this width 9 % "
        "of the light is missing (grey), as of aXe's spectra, for which this is a known problem. Light within some "
        f"half widths [pixel], relative to 4.5: {curve}. With the background fitted, light in the wings of the star "
        "counts as background. Three measures were settled after first figures, with which the scatter over wavelength "
        "was 1.02 %: medians over exposures, bins wholly within 1.12-1.66 micron, and a scatter pooled over bins."
    )
    return f"{table(head, rows)}\n\n{note}"


def speed() -> str:
    """Speed of the fit and of the extraction, in one run."""
    found = load("flux")["speed"]
    flat, extraction = found["flat"], found["extraction"]
    ny, nx = extraction["frame_shape"]
    rows = [
        ["cubes of 12 detectors, 195 wavelengths, 400 stars, one call", f"{flat['batched_s']:.2f} s", "1"],
        [
            "the same, a loop over wavelengths in NumPy",
            f"{flat['numpy_loop_s']:.2f} s",
            f"{flat['numpy_over_batched']:.1f}",
        ],
        [
            "the same, a loop with `astropy.modeling`", f"{flat['astropy_loop_s']:.1f} s",
            f"{flat['astropy_over_batched']:.0f}",
        ],
        [
            f"spectra of {extraction['stars']} stars on {ny} x {nx} pixels",
            f"{extraction['frame_s']:.2f} s, {extraction['spectra_per_s']:.0f} a second",
            "",
        ],
        ["lazy read of 256 x 256 pixels at 50 wavelengths", f"{1e3 * flat['lazy_256_256_50_s']:.0f} ms", ""],
    ]  # fmt: skip
    note = (
        f"{found['processor']}, {found['cores']} cores, one thread. One pass of the fit reads "
        f"{flat['bytes_of_one_pass'] / 1e6:.0f} MB and makes {flat['flop_of_one_pass'] / 1e6:.0f} Mflop: "
        f"{flat['gflop_per_s']:.1f} Gflop/s and {flat['gb_per_s']:.1f} GB/s, where a copy reaches "
        f"{flat['copy_gb_per_s']:.0f} GB/s, so arithmetic limits it."
    )
    return f"{table(['what', 'time', 'times the first'], rows)}\n\n{note}"


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


TABLES = {"flat": flat, "flux-closure": closure, "flux-speed": speed}
