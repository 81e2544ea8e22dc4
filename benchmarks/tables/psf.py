"""Tables of PSF reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
from committed import load, table

from csstdask.evaluation.psf.evaluate import by_snr
from csstdask.evaluation.psf.measure import ALL_STARS, BOUND_OF, COLOURS_KNOWN, PSFEX
from csstdask.evaluation.psf.tables import finite_values


def psf() -> str:
    """Return errors of PSFs by recipe and method, over a detector of each band."""
    result = load("psf")
    rows = []
    for recipe, units in result["recipes"].items():
        if ", S/N" in recipe:
            continue
        for method in dict.fromkeys(method for unit in units for method in unit["methods"]):
            found = [(unit["band"], unit["methods"][method]) for unit in units if method in unit["methods"]]
            psnr = {band: fmean(row["psnr"]["mean"] for other, row in found if other == band) for band in dict(found)}
            worst = min(psnr, key=lambda band: psnr[band])
            size = [row["size"] for _, row in found]
            bent = [max(row["e1"]["sd"], row["e2"]["sd"]) for _, row in found]
            pulls = [row["pull"]["sd"] for _, row in found if "pull" in row]
            took = [row["seconds"] for _, row in found if "seconds" in row]
            rows.append(
                [
                    recipe, method, f"{fmean(psnr.values()):.1f}", f"{psnr[worst]:.1f} ({worst})",
                    f"{fmean(row['ssim']['mean'] for _, row in found):.5f}",
                    f"{max((one['mean'] for one in size), key=abs):+.4f}", f"{max(one['sd'] for one in size):.4f}",
                    f"{max(bent):.4f}", f"{fmean(pulls):.2f}" if pulls else "", f"{fmean(took):.1f}" if took else "",
                ]
            )  # fmt: skip
    head = [
        "recipe", "method", "PSNR, mean over bands [dB]", "least band", "SSIM", "mean dR/R, largest of a band",
        "SD of dR/R, largest", "SD of de, largest", "pulls, SD", "seconds a detector",
    ]  # fmt: skip
    place = result["environment"]
    note = f"*all stars*: `{result['model']}`. {place['processor']}, one thread, {place['date']}."
    return table(head, rows) + f"\n\n{note}"


#: PSNR of CSST-PSFNet on DATASET 2, as its paper's table has it [dB].
PUBLISHED = {"NUV": 68.0, "u": 69.6, "g": 72.4, "r": 72.0, "i": 71.0, "z": 73.9, "y": 73.6}


def bands() -> str:
    """Return errors of PSFs of an unseen telescope by band, with those of PSFEx and published ones."""
    result = load("psf")
    units = {unit["band"]: unit["methods"] for unit in result["recipes"]["psf-dataset2"]}
    rows = []
    for band, published in PUBLISHED.items():
        ours, peer = units[band][ALL_STARS], units[band][PSFEX]
        rows.append(
            [
                band, *(f"{row['psnr']['mean']:.1f}" for row in (ours, peer)), f"{published:.1f}",
                *(f"{row['size']['mean']:+.4f} ± {row['size']['sd']:.4f}" for row in (ours, peer)),
                *(f"{max(row['e1']['sd'], row['e2']['sd']):.4f}" for row in (ours, peer)),
            ]
        )  # fmt: skip
    head = [
        "band", f"PSNR [dB], `{result['model']}`", "PSFEx", "CSST-PSFNet, published", "dR/R", "PSFEx", "SD of de",
        "PSFEx",
    ]  # fmt: skip
    return table(head, rows)


def centres() -> str:
    """Return by band the offsets of PSF centres, and the dependence of sizes on the colour of stars."""
    rows = []
    for unit in load("psf")["recipes"]["psf-dataset2"]:
        ours, coloured = (unit["methods"][method] for method in (ALL_STARS, COLOURS_KNOWN))
        off = [f"{1e3 * ours[axis]['mean']:+.1f} ± {1e3 * ours[axis]['sd']:.1f}" for axis in "xy"]
        rows.append([unit["band"], *off, *(f"{1e3 * row['size']['per_dex']:+.1f}" for row in (ours, coloured))])
    head = [
        "band", "centre off in x, mean ± SD [0.001 pixel]", "in y", "dR/R a dex of temperature [0.001]",
        "its colour finite_values",
    ]  # fmt: skip
    return table(head, rows)


def counts() -> str:
    """Return errors of PSFs by S/N and number of stars, with their lower bound."""
    rows = []
    for told, unit in by_snr(load("psf")["recipes"]).items():
        for method, at_best in BOUND_OF.items():
            found, bound = unit["methods"][method], unit["methods"][at_best]
            psnr, size = (
                [one[name][what] for one in (found, bound)] for name, what in (("psnr", "mean"), ("size", "sd"))
            )
            rows.append([told, method, *(f"{one:.1f}" for one in psnr), *(f"{one:.4f}" for one in size)])
    return table(["stars", "fitted", "PSNR [dB]", "at best", "SD of dR/R", "at best"], rows)


def reserve() -> str:
    """Return the agreement of fields with held-out stars, which needs no truth."""
    rows = []
    for recipe, units in load("psf")["recipes"].items():
        for unit in units:
            if ", S/N" in recipe or not (found := unit.get("reserve")):
                continue
            bent = max(found["e1"]["sd"], found["e2"]["sd"])
            rho = max(abs(one) for name in ("rho1", "rho2") for one in finite_values(found["rho"][name]))
            rows.append(
                [
                    recipe, unit["band"], str(found["n"]), f"{found['chi2']:.3f}", f"{found['size']['mean']:+.4f}",
                    f"{found['size']['sd']:.4f}", f"{bent:.4f}", f"{rho:.1e}",
                ]
            )  # fmt: skip
    head = ["recipe", "band", "in reserve", "chi²", "dR/R, mean", "SD", "SD of de", "largest of rho1, rho2"]
    return table(head, rows)


def adaptation() -> str:
    """Return the errors of a network before and after its adaptation to another telescope."""
    result = load("psf_adaptation")
    rows = [
        [
            f"`{result['model']}`" if method == ALL_STARS else method, f"{row['psnr']['mean']:.1f}",
            *(f"{row[name]['median']:+.4f} ± {row[name]['sd']:.4f}" for name in ("size", "e1", "e2")),
        ]
        for method, row in result["methods"].items()
    ]  # fmt: skip
    return table(["method", "PSNR [dB]", *(f"{name}, median ± SD" for name in ("dR/R", "de1", "de2"))], rows)


def speed() -> str:
    """Return the time of a detector for each process."""
    result = load("psf_speed")
    rows = [
        [row["method"], row["stars"], f"{row['seconds']:.1f}", f"{row['times_ours']:.1f}"]
        for row in result["processes"]
    ]
    found, place = result["moments"], result["environment"]
    off = {row["method"]: row for row in result["processes"] if "psnr" in row}
    told = "".join(
        f"{name}: PSNR {row['psnr']['mean']:.1f} dB, centroids {np.hypot(row['x']['mean'], row['y']['mean']):.2f} "
        f"pixel off in the mean, dR/R {row['size']['mean']:+.4f} ± {row['size']['sd']:.4f}, SD of de "
        f"{max(row['e1']['sd'], row['e2']['sd']):.4f}. "
        for name, row in off.items()
    )
    note = (
        f"{told}Adaptive moments: {found['stamps_per_s']:.0f} stamps a second, {found['ratio']:.1f} times "
        f"`galsim.hsm`'s, sigma equal to {found['most_apart_in_sigma']:.0e}. {place['processor']}, one thread, "
        f"{place['date']}."
    )
    return table(["process", "stars", "seconds", "of ours"], rows) + f"\n\n{note}"


def real() -> str:
    """Compare PSFs of other cameras with stars, and with the truth of simulated ones."""
    result = load("psf_real")
    rows = [
        [
            f"{frame['frame'].removesuffix('.fits.fz')}, {frame['fitted']} + {frame['reserve']}",
            _with_settings(row), f"{row['chi2']:.2f}", f"{row['chi2_bright']:.2f}",
            f"{row['size_mean']:+.4f} ± {row['size_sd']:.4f}", f"{max(row['e1_sd'], row['e2_sd']):.4f}",
            f"{row['seconds']:.1f}",
        ]
        for frame in result["wircam"]
        for row in frame["methods"]
    ]  # fmt: skip
    head = ["frame, stars fitted + reserve", "method", "chi², median", "of bright", "dR/R", "SD of de", "seconds"]
    drawn = [
        [
            _with_settings(row), f"{row['psnr']:.1f}", f"{row['ssim']:.5f}",
            f"{row['size_mean']:+.4f} ± {row['size_sd']:.4f}", f"{max(row['e1_sd'], row['e2_sd']):.4f}",
            f"{row['pull_sd']:.2f}" if "pull_sd" in row else "", f"{row['seconds']:.1f}",
        ]
        for row in result["stdpsf"]["methods"]
    ]  # fmt: skip
    of_grid = ["stars of STScI's WFC3/UVIS grid", "PSNR [dB]", "SSIM", "dR/R", "SD of de", "pulls, SD", "seconds"]
    return table(head, rows) + "\n\n" + table(of_grid, drawn)


def _with_settings(row: dict[str, Any]) -> str:
    told = [f"{row[key]}" for key in ("basis_number", "degree") if key in row]
    return f"{row['method']} ({', '.join(told)})" if told else f"`{row['method']}`"


TABLES: dict[str, Callable[[], str]] = {
    "psf-bands": bands,
    "psf-real": real,
    "psf": psf,
    "psf-centres": centres,
    "psf-snr": counts,
    "psf-reserve": reserve,
    "psf-adaptation": adaptation,
    "psf-speed": speed,
}
