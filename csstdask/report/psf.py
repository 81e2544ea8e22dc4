"""Show the PSFs of a run: on the focal plane, across a detector, and compared with held-out stars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup

from csstdask.core.warnings import suppress_warnings
from csstdask.evaluation.io import format_number
from csstdask.instrument import Instrument
from csstdask.metrics.rho_statistics import RHO, rho_statistics
from csstdask.report.document import join, paragraphs, render, table
from csstdask.report.focal_plane import draw_focal_plane
from csstdask.report.images import (
    difference_grey_levels,
    focal_plane_mosaic,
    log_grey_levels,
    mosaic,
    picture,
)
from csstdask.report.plots import plot_rho
from csstdask.store.tables import read_table, table_path

#: Side of the part of a PSF that is shown [half pixel], and points of the picture per half pixel.
_CORE_SIZE, _ENLARGEMENT = 40, 2
#: Units whose star tables are read; of a larger run, those of every n-th exposure.
_MAX_UNITS = 500
_MAPS = {
    "psf_size": "size of the PSF, sigma of adaptive moments [pixel]",
    "psf_e": "ellipticity of the PSF, |e|",
    "psf_size_residual": "held-out stars: (size - that of the PSF) / that of the PSF",
    "psf_wavefront_rms": "wavefront in a detector's middle, from its stars, rms [nm]",
    "psf_chi2": "held-out stars: χ² per degree of freedom",
}


def draw_psfs(dataset: xr.Dataset, instrument: Instrument, run: str | Path) -> Markup:
    """Return pictures, maps and rho statistics of the PSFs of a run; empty without PSFs.

    Parameters
    ----------
    dataset : xarray.Dataset
        The run, as `csstdask.open_run` returns it.
    instrument : Instrument
    run : path
        Store of the run.
    """
    if "psf" not in dataset or not (dataset["n_psf_stars"] > 0).any():
        return Markup()
    dataset = dataset.assign(psf_e=np.hypot(dataset["psf_e1"], dataset["psf_e2"]))
    detectors = [int(detector) for detector in dataset["detector"].values]
    maps = []
    for name, title in _MAPS.items():
        with suppress_warnings():  # the median of a detector without stars is NaN
            median = dataset[name].median("exposure", skipna=True).values
        if np.isnan(median).all():  # cameras whose optics are not described have no wavefront
            continue
        by_detector = dict(zip(detectors, median.tolist(), strict=True))
        maps.append(draw_focal_plane(instrument, by_detector, f"{title}, median", "Units"))
    return join([*_pictures(dataset, instrument), *maps, _rho(dataset, instrument, Path(run))])


def _pictures(dataset: xr.Dataset, instrument: Instrument) -> Iterator[Markup]:
    """Yield the PSFs of the exposure with most PSFs: at the centre of each detector, and across one detector."""
    has_psf = dataset["n_psf_stars"].values > 0
    row = int(np.argmax(has_psf.sum(axis=1)))
    exposure = dataset.isel(exposure=row)
    name = str(dataset["exposure"].values[row])
    nodes = dataset.sizes["y_psf"]
    tiles = {
        int(dataset["detector"].values[column]): log_grey_levels(
            _core(exposure["psf"].isel(detector=column, y_psf=nodes // 2, x_psf=nodes // 2).values)
        )
        for column in np.flatnonzero(has_psf[row]).tolist()
    }
    yield picture(focal_plane_mosaic(instrument, tiles), f"{name}: PSF at each detector's centre, four decades")
    column = int(np.flatnonzero(has_psf[row])[has_psf[row].sum() // 2])
    images = np.stack([[_core(one) for one in line] for line in exposure["psf"].isel(detector=column).values])
    differences = images - images.mean(axis=(0, 1))
    levels = difference_grey_levels(differences, max(float(np.percentile(abs(differences), 99.9)), 1e-30))
    yield picture(
        mosaic([list(line) for line in levels[::-1]]),
        f"{name} / {dataset['detector'].values[column]}: PSFs across the detector, minus their mean",
    )


def _core(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the central samples of a PSF, enlarged, with the last row on top."""
    first = (image.shape[0] - _CORE_SIZE) // 2
    part = image[first : first + _CORE_SIZE, first : first + _CORE_SIZE]
    return np.repeat(np.repeat(part, _ENLARGEMENT, axis=0), _ENLARGEMENT, axis=1)[::-1]


def _rho(dataset: xr.Dataset, instrument: Instrument, root: Path) -> Markup:
    """Plot and list the rho statistics of held-out stars."""
    frames = [{name: values[stars["held_out"]] for name, values in stars.items()} for stars in _stars(dataset, root)]
    if sum(len(one["x"]) for one in frames) < 2:
        return Markup()
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
        "Rho statistics (Rowe 2010; Jarvis et al. 2016) of held-out stars, which are in no fit: how errors of the PSF "
        "are correlated over the field. Noise of single stars averages to zero."
    )
    numbers = render("details.html.jinja", summary="Rho statistics as numbers", content=table(head, rows))
    return join([paragraphs(note), plot_rho(found, RHO, separation, unit), numbers])


def _stars(dataset: xr.Dataset, root: Path) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the tables of stars of a run's units, of a larger run those of every n-th exposure."""
    known = dataset["n_psf_stars"].values > 0
    every = max(1, -(-int(known.sum()) // _MAX_UNITS))
    for row, column in np.argwhere(known):
        if row % every == 0:
            unit = str(dataset["exposure"].values[row]), int(dataset["detector"].values[column])
            path = table_path(root, "psf_stars", *unit)
            if path.is_file():
                yield read_table(path)
