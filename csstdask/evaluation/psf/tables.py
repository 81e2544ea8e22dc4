"""Tables of an evaluation of PSF reconstruction, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from csstdask.evaluation.io import markdown_header, markdown_row

_COLUMNS = (
    "PSNR [dB]", "least band", "SSIM", "dR/R, mean", "SD, largest band", "de, SD, largest band", "pulls, SD", "seconds",
)  # fmt: skip
#: Columns of the table of held-out stars.
_HELD_OUT_COLUMNS = ("stars", "chi2", "dR/R, mean", "SD", "de1, SD", "de2, SD", "rho1, nearest", "rho2, nearest")


def finite_values(values: Sequence[float | None]) -> list[float]:
    """Return the values that are finite numbers."""
    return [value for value in values if value is not None and np.isfinite(value)]


def by_band(units: Sequence[Mapping[str, Any]], method: str, quantity: str, what: str) -> dict[str, float]:
    """Return the mean of a quantity over the units of each band."""
    bands: dict[str, list[float]] = {}
    for unit in units:
        if method in unit["methods"] and quantity in unit["methods"][method]:
            bands.setdefault(unit["band"], []).append(unit["methods"][method][quantity][what])
    return {band: float(np.mean(values)) for band, values in bands.items()}


def table(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the tables of an evaluation."""
    for recipe, units in results["recipes"].items():
        yield from markdown_header(recipe, _COLUMNS)
        for method in dict.fromkeys(method for unit in units for method in unit["methods"]):
            psnr, ssim = (by_band(units, method, name, "mean") for name in ("psnr", "ssim"))
            size, spread = by_band(units, method, "size", "mean"), by_band(units, method, "size", "sd")
            distortion = [max(by_band(units, method, name, "sd").values()) for name in ("e1", "e2")]
            pulls = by_band(units, method, "pull", "sd")
            seconds = [unit["methods"][method].get("seconds") for unit in units if method in unit["methods"]]
            cells = [
                f"{np.mean(list(psnr.values())):.1f}",
                f"{min(psnr.values()):.1f} ({min(psnr, key=lambda band: psnr[band])})",
                f"{np.mean(list(ssim.values())):.5f}",
                f"{np.mean(list(size.values())):+.5f}",
                f"{max(spread.values()):.5f}",
                f"{max(distortion):.5f}",
                f"{np.mean(list(pulls.values())):.2f}" if pulls else "",
                "" if None in seconds else f"{np.mean([one for one in seconds if one is not None]):.1f}",
            ]
            yield f"| {method} | {' | '.join(cells)} |"
        held_out = [unit for unit in units if unit.get("reserve")]
        if held_out:
            yield from markdown_header(f"{recipe}, held-out stars with their noise", _HELD_OUT_COLUMNS)
        for unit in held_out:
            found = unit["reserve"]
            shape = [found["size"]["mean"], *(found[name]["sd"] for name in ("size", "e1", "e2"))]
            rho = [next(iter(finite_values(found["rho"][name])), None) for name in ("rho1", "rho2")]
            yield markdown_row(
                f"{unit['band']}, detector {unit['detector']}", [found["n"], found["chi2"], *shape, *rho]
            )
