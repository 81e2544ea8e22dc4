"""Show slitless frames: flat-field cubes, sensitivities, wavelength shifts and examples of spectra."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup

from csstdask.core.errors import StoreError
from csstdask.evaluation.io import format_number
from csstdask.flux.flat import Flat
from csstdask.pipeline.calibrations import current_flat
from csstdask.pipeline.export_spectra import calibrate
from csstdask.pipeline.status import Summary, load_plan
from csstdask.report.document import join, table
from csstdask.report.figures import plot
from csstdask.report.images import difference_grey_levels, mosaic, picture
from csstdask.store.tables import read_table, table_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Float = npt.NDArray[np.float64]

_SLICES = 5
"""Number of wavelengths at which a cube is shown."""
_SLICE_PIXELS = 96
_EXAMPLES = 4
"""Number of detectors of which a calibrated spectrum is shown."""
_MAX_UNITS = 200
"""Units whose tables are read; of a larger run, those of every n-th exposure."""


def draw_slitless(dataset: xr.Dataset, run: str | Path, summary: Summary) -> Markup:
    """Return the state of the reductions, the cubes and the spectra; empty without slitless frames."""
    if "n_spectra" not in dataset or not (dataset["n_spectra"] > 0).any():
        return Markup()
    flats = list(_flats(dataset, Path(run)))
    parts = [_states(summary, flats), *_cubes(flats)]
    units = list(_tables(dataset, Path(run)))
    if units:
        parts += [_shifts(units), _examples(units, dict(flats))]
    return join(parts)


def _flats(dataset: xr.Dataset, root: Path) -> Iterator[tuple[int, Flat]]:
    """Yield the cubes of the present units of a run; damaged ones appear in the state of the reduction."""
    plan = load_plan(root, dataset.attrs["campaign_path"])
    for detector in dataset["detector"].values.tolist():
        with contextlib.suppress(StoreError):
            flat = current_flat(root, int(detector), plan)
            if flat is not None:
                yield int(detector), flat


def _states(summary: Summary, flats: Sequence[tuple[int, Flat]]) -> Markup:
    """Return tables of the states of the reductions and of the precision of each cube."""
    states = table(
        ("reduction", "state", "inputs", "left out (other settings)", "failed detectors"),
        [
            [
                one.name,
                one.state,
                one.n_inputs,
                one.n_outdated,
                "; ".join(why if d is None else f"{d}: {why}" for d, why in one.failures.items()),
            ]
            for one in summary.reductions
        ],
    )
    rows = []
    for detector, flat in flats:
        ny, nx = flat.shape
        corner = np.sqrt(np.median(flat.variance(nx - 1.0, ny - 1.0, flat.wavelength)))
        lowered = int(np.count_nonzero(flat.flags))
        rows.append(
            [
                detector,
                f"{flat.wavelength[0]:.0f}-{flat.wavelength[-1]:.0f}",
                int(np.median(flat.n_stars)),
                format_number(float(np.median(flat.n_kept / np.maximum(flat.n_stars, 1)))),
                format_number(float(np.sqrt(np.median(flat.mean_variance)))),
                format_number(float(corner)),
                format_number(float(np.median(flat.scale))),
                f"{lowered} of {len(flat.wavelength)}",
            ]
        )
    head = (
        "detector", "wavelength [Å]", "stars", "share kept", "1 σ, detector mean", "1 σ, corner",
        "scatter / quoted error", "flagged wavelengths",
    )  # fmt: skip
    return states + (table(head, rows) if rows else "")


def _cubes(flats: Sequence[tuple[int, Flat]]) -> Iterator[Markup]:
    """Yield slices of the cubes, the sensitivities, and the errors of the flats."""
    if not flats:
        return
    lines = []
    for _, flat in flats:
        ny, nx = flat.shape
        chosen = flat.wavelength[np.linspace(0, len(flat.wavelength) - 1, _SLICES + 2).round().astype(int)[1:-1]]
        rows = max(8, round(_SLICE_PIXELS * min(1.0, ny / nx)))
        planes = flat.planes(np.linspace(0, nx - 1, _SLICE_PIXELS), np.linspace(0, ny - 1, rows), chosen)
        limit = max(float(np.abs(planes - 1).max()), 1e-6)
        lines.append([levels[::-1] for levels in difference_grey_levels(planes - 1, limit)])
    names = ", ".join(str(detector) for detector, _ in flats)
    yield picture(
        mosaic(lines),
        f"flat-field cubes of detectors {names} (one per row) at {_SLICES} wavelengths; grey is 1, scaled row by row",
    )

    def sensitivities(axes: Axes) -> None:
        for detector, flat in flats:
            (line,) = axes.plot(flat.wavelength, flat.sensitivity, label=str(detector))
            sigma = np.sqrt(flat.sensitivity_variance)
            axes.fill_between(
                flat.wavelength, flat.sensitivity - sigma, flat.sensitivity + sigma, color=line.get_color(), alpha=0.25
            )
        axes.set(xlabel="wavelength [Å]", ylabel="(e⁻ s⁻¹ Å⁻¹) / (erg s⁻¹ cm⁻² Å⁻¹)")
        axes.legend(title="detector", fontsize=7, ncols=2)

    yield plot(sensitivities, "sensitivity with 1 σ, the error that all SEDs share included", "sensitivity")

    def errors(axes: Axes) -> None:
        for detector, flat in flats:
            ny, nx = flat.shape
            centre, corner = (
                np.sqrt(flat.variance(x, y, flat.wavelength))
                for x, y in (((nx - 1) / 2, (ny - 1) / 2), (nx - 1.0, ny - 1.0))
            )
            (line,) = axes.semilogy(flat.wavelength, centre, label=str(detector))
            axes.semilogy(flat.wavelength, corner, ":", color=line.get_color())
        axes.set(xlabel="wavelength [Å]", ylabel="1 σ of the flat")
        axes.legend(title="detector", fontsize=7, ncols=2)

    yield plot(errors, "error of the flat at the centre (solid) and in a corner (dotted)", "flat-error")


def _tables(dataset: xr.Dataset, root: Path) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
    """Yield detector and table of the spectra of each unit."""
    known = np.asarray(dataset["n_spectra"].values > 0)
    every = max(1, -(-int(known.sum()) // _MAX_UNITS))
    for row, column in np.argwhere(known):
        if row % every == 0:
            detector = int(dataset["detector"].values[column])
            path = table_path(root, "spectra", str(dataset["exposure"].values[row]), detector)
            if path.is_file():
                yield detector, read_table(path)


def _shifts(units: Sequence[tuple[int, dict[str, npt.NDArray[Any]]]]) -> Markup:
    """Plot the measured shifts along the dispersion over the field of each detector."""
    detectors = sorted({detector for detector, _ in units})

    def draw(axes: Axes) -> None:
        for detector in detectors:
            tables = [one for number_, one in units if number_ == detector]
            x, shift, sigma = (
                np.concatenate([one[name] for one in tables]) for name in ("x", "shift_measured", "shift_measured_err")
            )
            good = np.isfinite(shift) & (sigma < 0.2)
            if good.any():
                axes.errorbar(x[good], shift[good], sigma[good], fmt=".", ms=3, lw=0.5, label=str(detector))
        axes.axhline(0, color="0.5", lw=0.5)
        axes.set(xlabel="x of the star without grating [pixel]", ylabel="shift along the dispersion [pixel]")
        axes.legend(title="detector", fontsize=7, ncols=2)

    return plot(draw, "wavelength shift of each star against the nominal solution", "wavelength-shift")


def _examples(units: Sequence[tuple[int, dict[str, npt.NDArray[Any]]]], flats: dict[int, Flat]) -> Markup:
    """Plot calibrated spectra of the stars with the highest signal-to-noise ratio of some detectors."""
    chosen: list[tuple[int, str, Float, Float, Float]] = []
    for detector in sorted(flats)[:_EXAMPLES]:
        best: tuple[float, dict[str, npt.NDArray[Any]], int] | None = None
        for number_, one in units:
            if number_ == detector and len(one["snr"]):
                index = int(np.nanargmax(np.where(one["coverage"] > 0.95, one["snr"], 0.0)))
                if best is None or one["snr"][index] > best[0]:
                    best = float(one["snr"][index]), one, index
        if best is not None:
            _, one, index = best
            names = ("wavelength", "column", "row", "rate", "rate_err")
            lists = {name: np.asarray(one[name][index], dtype=np.float64)[None] for name in names}
            flux, error = calibrate(lists, flats[detector])
            chosen.append((detector, str(one["id"][index]), lists["wavelength"][0], flux[0], error[0]))
    if not chosen:
        return Markup()

    def draw(axes: Axes) -> None:
        for detector, name, wavelength, flux, error in chosen:
            (line,) = axes.plot(wavelength, flux, lw=0.8, label=f"{name} ({detector})")
            axes.fill_between(wavelength, flux - error, flux + error, color=line.get_color(), alpha=0.3)
        axes.set(xlabel="wavelength [Å]", ylabel="flux [erg s⁻¹ cm⁻² Å⁻¹]")
        axes.legend(fontsize=7)

    return plot(draw, "calibrated spectra with 1 σ: the brightest complete star of some detectors", "spectra")
