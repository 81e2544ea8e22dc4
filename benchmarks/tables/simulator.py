"""Tables of the mock."""

from __future__ import annotations

from committed import load, table


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
