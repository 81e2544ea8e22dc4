"""A run's point spread functions: on the focal plane, across a detector, and beside stars that no fit has seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from csstdask.core.warnings import suppress_warnings
from csstdask.instrument import Instrument
from csstdask.metrics.rho_statistics import RHO, rho_statistics
from csstdask.report.cutouts import four_decades, picture
from csstdask.report.document import format_number, table
from csstdask.report.focal_plane import draw_focal_plane, mosaic, on_focal_plane
from csstdask.report.plots import plot_rho
from csstdask.store.tables import read_table, table_path

#: Half pixels that are shown of a PSF, round its middle, and points of a picture that each is.
_SHOWN, _POINTS = 40, 2
#: Units whose stars are read.
_MOST_UNITS = 500
_MAPS = {
    "psf_size": "size of the PSF, sigma of adaptive moments [pixel]",
    "psf_e": "ellipticity of the PSF, |e|",
    "psf_size_residual": "held-out stars: (size - that of the PSF) / that of the PSF",
    "psf_wavefront_rms": "wavefront in a detector's middle, from its stars, rms [nm]",
    "psf_chi2": "held-out stars: χ² per degree of freedom",
}


def draw_psfs(dataset: xr.Dataset, instrument: Instrument, run: str | Path) -> str:
    """Return pictures, maps and numbers of a run's PSFs; an empty text where there are none."""
    if "psf" not in dataset or not (dataset["n_psf_stars"] > 0).any():
        return ""
    dataset = dataset.assign(psf_e=np.hypot(dataset["psf_e1"], dataset["psf_e2"]))
    detectors = [int(detector) for detector in dataset["detector"].values]
    maps = []
    for name, title in _MAPS.items():
        with suppress_warnings():  # a detector may have no star
            middle = dataset[name].median("exposure", skipna=True).values
        if np.isnan(middle).all():  # of cameras whose optics nobody has told
            continue
        maps.append(
            draw_focal_plane(
                instrument, dict(zip(detectors, middle.tolist(), strict=True)), f"{title}, median", "#Units"
            )
        )
    return _pictures(dataset, instrument) + "".join(maps) + _rho(dataset, instrument, Path(run))


def _pictures(dataset: xr.Dataset, instrument: Instrument) -> str:
    """Draw the PSF at each detector's middle, of the exposure with most of them, and across one detector."""
    known = dataset["n_psf_stars"].values > 0
    row = int(np.argmax(known.sum(axis=1)))
    exposure = dataset.isel(exposure=row)
    name = str(dataset["exposure"].values[row])
    nodes = dataset.sizes["y_psf"]
    tiles = {
        int(dataset["detector"].values[column]): four_decades(
            _middle(exposure["psf"].isel(detector=column, y_psf=nodes // 2, x_psf=nodes // 2).values)
        )
        for column in np.flatnonzero(known[row]).tolist()
    }
    whole = picture(on_focal_plane(instrument, tiles), f"{name}: PSF at each detector's middle, four decades")
    column = int(np.flatnonzero(known[row])[known[row].sum() // 2])
    images = np.stack([[_middle(one) for one in line] for line in exposure["psf"].isel(detector=column).values])
    changes = images - images.mean(axis=(0, 1))
    reach = max(float(np.percentile(abs(changes), 99.9)), 1e-30)
    levels = np.asarray(255 * np.clip(changes / reach / 2 + 0.5, 0, 1), dtype=np.uint8)
    across = picture(
        mosaic([list(line) for line in levels[::-1]]),
        f"{name} / {dataset['detector'].values[column]}: PSFs across the detector, minus their mean",
    )
    return whole + across


def _middle(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    first = (image.shape[0] - _SHOWN) // 2
    part = image[first : first + _SHOWN, first : first + _SHOWN]
    return np.repeat(np.repeat(part, _POINTS, axis=0), _POINTS, axis=1)[::-1]


def _rho(dataset: xr.Dataset, instrument: Instrument, root: Path) -> str:
    """Plot and list the rho statistics of held-out stars."""
    frames = [{name: values[stars["reserve"]] for name, values in stars.items()} for stars in _stars(dataset, root)]
    if sum(len(one["x"]) for one in frames) < 2:
        return ""
    found = rho_statistics(frames)
    scale = instrument.geometry.pixel_scale if instrument.geometry is not None else None
    separation = found["separation"] * (scale or 1)
    rows = [
        [
            format_number(separation[place]),
            format_number(found["pairs"][place]),
            *(f"{found[name][place]:.1e}" for name in RHO),
        ]
        for place in range(len(separation))
        if found["pairs"][place] > 0
    ]
    unit = "arcsec" if scale else "pixel"
    head = (f"separation [{unit}]", "pairs", *RHO)
    note = (
        "<p>Rho statistics (Rowe 2010; Jarvis et al. 2016) of held-out stars, which are in no fit: how errors of the "
        "PSF are correlated over the field. Noise of single stars averages to zero.</p>"
    )
    curves = plot_rho(found, RHO, separation, unit)
    return note + curves + f"<details><summary>Rho statistics as numbers</summary>{table(head, rows)}</details>"


def _stars(dataset: xr.Dataset, root: Path) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the tables of stars of a run's units, of a larger run those of every n-th exposure."""
    known = dataset["n_psf_stars"].values > 0
    every = max(1, -(-int(known.sum()) // _MOST_UNITS))
    for row, column in np.argwhere(known):
        if row % every == 0:
            unit = str(dataset["exposure"].values[row]), int(dataset["detector"].values[column])
            path = table_path(root, "psf_stars", *unit)
            if path.is_file():
                yield read_table(path)
