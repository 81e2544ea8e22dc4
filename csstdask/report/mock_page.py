"""Write one page about a mock store: what an instrument scientist checks before using it.

It shows the fields of the recipe, the PSF over the focal plane and over one detector, a detector with cut-outs of each
of its defects and artefacts, cosmic rays compared with real ones, and for stamp sets the stamps with their truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import xarray as xr
from markupsafe import Markup
from scipy.ndimage import find_objects, label

from csstdask.arrays.moments import adaptive_moments
from csstdask.arrays.morphology import EIGHT_NEIGHBOURS
from csstdask.core.errors import InputError
from csstdask.evaluation.io import format_number
from csstdask.instrument import Instrument, validate_instrument
from csstdask.mock.event_libraries import load_event_library
from csstdask.mock.expected_image import exposure_optics
from csstdask.mock.psf import SUB_BANDS, OpticalState, PsfModel, energy_radius
from csstdask.mock.recipe import Recipe
from csstdask.report.document import join, paragraphs, render, table, write_document
from csstdask.report.focal_plane import draw_focal_plane
from csstdask.report.images import (
    GreyLevels,
    difference_grey_levels,
    focal_plane_mosaic,
    grey_levels,
    log_grey_levels,
    mosaic,
    picture,
)
from csstdask.store.campaign_dataset import open_campaign
from csstdask.store.stamps import open_stamps
from csstdask.store.store_metadata import store_kind

Image = npt.NDArray[Any]

#: Side of the part of a PSF that is shown [detector pixel].
_PSF_SIZE = 14
#: Side of a cut-out of a frame [pixel].
_CUTOUT = 128
#: PSFs along each side of a detector.
_PSFS_PER_SIDE = 5
#: Side of a detector in a picture of the focal plane [picture element].
_THUMBNAIL = 110
#: Cosmic rays in a gallery, and side of the box of each [pixel].
_EVENTS, _EVENT_BOX = 40, 24
#: Stamps that are shown of a unit.
_STAMPS = 8


def write_mock_report(store: str | Path, to: str | Path, data: str | Path | None = None) -> Path:
    """Write the page about a mock store.

    Parameters
    ----------
    store : path
        A mock campaign or a stamp set.
    to : path
        File of the page.
    data : path, optional
        Folder of real cosmic-ray events, which are compared with those of the mock.

    Raises
    ------
    InputError
        If the store is not a mock.
    """
    path = Path(store)
    dataset = open_stamps(path) if store_kind(path) == "stamps" else open_campaign(path)
    if "recipe" not in dataset.attrs:
        raise InputError(path, "a store without a recipe", "a run, a mock campaign or a stamp set")
    recipe = Recipe.model_validate(dataset.attrs["recipe"])
    instrument = validate_instrument(dataset.attrs["instrument"], str(path))
    sections = [("", _title(path, dataset, recipe)), ("Exposures", _exposures(path))]
    if recipe.slitless is None:
        model = PsfModel(exposure_optics(recipe, 0), instrument)
        sections.append(("The telescope", _telescope(model, instrument, recipe)))
        sections.append(("The PSF across one detector", _across(model, instrument, recipe)))
    if "stamp" in dataset.dims:
        sections.append(("Stamps", _stamps(dataset)))
    else:
        sections.append(("A detector, and its artefacts", _frame(path, dataset, instrument)))
        sections.append(("Cosmic rays", _cosmic_rays(path, dataset, None if data is None else Path(data))))
    return write_document(Path(to), path.name, sections)


def _title(path: Path, dataset: xr.Dataset, recipe: Recipe) -> Markup:
    sizes = ", ".join(f"{size} {name}" for name, size in dataset.sizes.items() if name not in ("u", "v"))
    settings = recipe.model_dump_json(indent=1, exclude_defaults=True)
    return render("mock_title.html.jinja", name=path.name, recipe=recipe, sizes=sizes, settings=settings)


def _exposures(path: Path) -> Markup:
    source = path / "tables" / "truth_exposures.parquet"
    if not source.is_file():
        return Markup()
    rows = pq.read_table(source).to_pylist()
    names = ("exposure", "field", "split", "epoch", "generator", "cr_pixel_fraction")
    shown = (
        [format_number(row[name]) if isinstance(row[name], float) else row[name] for name in names] for row in rows
    )
    return table(("exposure", "field", "split", "years", "cosmic rays", "share of pixels"), shown, len(rows))


def _core(core: Image, fine: int) -> Image:
    """Return the middle of a PSF at half-pixel sampling, each sample as four points of a picture."""
    step = fine // 2
    first = len(core) // 2 - _PSF_SIZE * step
    half_pixels = core[first : first + 2 * _PSF_SIZE * step : step, first : first + 2 * _PSF_SIZE * step : step]
    return np.repeat(np.repeat(half_pixels, 2, axis=0), 2, axis=1)[::-1]


def _psf_tile(core: Image, fine: int) -> Image:
    """Return the middle of a PSF as grey levels over four decades."""
    return log_grey_levels(_core(core, fine))


def _telescope(model: PsfModel, instrument: Instrument, recipe: Recipe) -> Markup:
    """Draw the PSF at the middle of each detector, at its place in the focal plane, and its numbers."""
    ny, nx = instrument.shape or recipe.frame_shape
    cores, radius, size, e = {}, {}, {}, {}
    scale = instrument.geometry.pixel_scale if instrument.geometry else 1.0
    for one in instrument.detectors:
        if one.band not in instrument.bands:
            continue
        core = model.cores(one.id, [nx / 2], [ny / 2], SUB_BANDS // 2, OpticalState(recipe.epoch))[0]
        fine = model.sampling(one.id).fine
        moments = adaptive_moments(core[None], start=0.8 * fine)
        cores[one.id] = _psf_tile(core, fine)
        radius[one.id] = energy_radius(core, fine) * scale
        size[one.id] = float(moments.sigma[0]) / fine
        e[one.id] = float(np.hypot(moments.e1[0], moments.e2[0]))
    caption = f"effective PSF at each detector's middle, {_PSF_SIZE} pixels, four decades (CSST-PSFNet, figure 1)"
    maps = (
        draw_focal_plane(instrument, radius, "radius of 80 % of the light [arcsec]")
        + draw_focal_plane(instrument, size, "R of adaptive moments [pixel]")
        + draw_focal_plane(instrument, e, "ellipticity |e|")
    )
    return picture(focal_plane_mosaic(instrument, cores), caption) + maps


def _across(model: PsfModel, instrument: Instrument, recipe: Recipe) -> Markup:
    """Draw PSFs over one detector, and what differs from their mean."""
    detector = recipe.detectors[len(recipe.detectors) // 2]
    ny, nx = instrument.shape or recipe.frame_shape
    axis = np.linspace(0.02, 0.98, _PSFS_PER_SIDE)
    grid_y, grid_x = (part.ravel() for part in np.meshgrid(axis[::-1] * ny, axis * nx, indexing="ij"))
    cores = model.cores(detector, grid_x, grid_y, SUB_BANDS // 2, OpticalState(recipe.epoch))
    fine = model.sampling(detector).fine
    shown = [_psf_tile(core, fine) for core in cores]
    part = np.stack([_core(core, fine) for core in cores - cores.mean(axis=0)])
    limit = np.percentile(abs(part), 99.9)
    differences = difference_grey_levels(part, limit)
    rows = [slice(i * _PSFS_PER_SIDE, (i + 1) * _PSFS_PER_SIDE) for i in range(_PSFS_PER_SIDE)]
    return picture(mosaic([shown[row] for row in rows]), f"detector {detector}: PSF, four decades") + picture(
        mosaic([list(differences[row]) for row in rows]), "minus their mean"
    )


def _frame(path: Path, dataset: xr.Dataset, instrument: Instrument) -> Markup:
    """Draw one unit whole, and the places of any unit where most pixels have a flag."""
    places = np.argwhere(dataset["present"].values)
    if not len(places):
        return paragraphs("No unit has been rendered yet.")
    figures = [_first_exposure(dataset, instrument, int(places[0][0]))]
    row, column = (int(index) for index in places[0])
    sci = dataset["sci"].isel(exposure=row, detector=column).values
    step = max(1, max(sci.shape) // 600)
    low, high = _levels(sci)
    name = f"{dataset['exposure'].values[row]} / {dataset['detector'].values[column]}"
    figures.append(picture(grey_levels(sci[::step, ::step], low, high), f"{name}: whole"))
    best: dict[str, tuple[int, int, int, slice, slice]] = {}
    for row, column in places[:: max(1, len(places) // 12)].tolist():
        flag = dataset["flag"].isel(exposure=row, detector=column).values
        for what, bit in instrument.flags.bits.items():
            count, rows, columns = _fullest((flag & bit) != 0)
            if count > best.get(what, (0,))[0]:
                best[what] = (count, row, column, rows, columns)
    for what, (count, row, column, rows, columns) in best.items():
        look = dataset["sci"].isel(exposure=row, detector=column, y=rows, x=columns).values
        name = f"{dataset['exposure'].values[row]} / {dataset['detector'].values[column]}"
        figures.append(picture(grey_levels(look, *_levels(look)), f"{name}: {what.replace('_', ' ')}, {count} pixels"))
    if (path / "tables" / "truth_sources.parquet").is_file():  # slitless mocks have none
        figures.append(_sources(path, dataset))
    return join(figures)


def _first_exposure(dataset: xr.Dataset, instrument: Instrument, row: int) -> Markup:
    """Draw every detector of an exposure at its place in the focal plane, each with separate grey levels."""
    step = max(1, max(dataset.sizes["y"], dataset.sizes["x"]) // _THUMBNAIL)
    tiles = {}
    for column in np.flatnonzero(dataset["present"].values[row]).tolist():
        look = dataset["sci"].isel(exposure=row, detector=column).values[::step, ::step]
        tiles[int(dataset["detector"].values[column])] = grey_levels(look, *_levels(look))
    name = f"{dataset['exposure'].values[row]}: the focal plane"
    return picture(focal_plane_mosaic(instrument, tiles), name)


def _levels(image: Image) -> tuple[float, float]:
    low, high = np.nanpercentile(image, [5, 99.7])
    return float(low), float(max(high, low + 1e-6))


def _fullest(mask: npt.NDArray[np.bool_]) -> tuple[int, slice, slice]:
    """Return the look with most pixels of a mask, on a coarse grid."""
    side = min(_CUTOUT, *mask.shape)
    rows, columns = mask.shape[0] // side, mask.shape[1] // side
    blocks = mask[: rows * side, : columns * side].reshape(rows, side, columns, side).sum(axis=(1, 3))
    i, j = np.unravel_index(int(np.argmax(blocks)), blocks.shape)
    return (
        int(blocks[i, j]),
        slice(int(i) * side, (int(i) + 1) * side),
        slice(int(j) * side, (int(j) + 1) * side),
    )


def _sources(path: Path, dataset: xr.Dataset) -> Markup:
    """Draw the largest galaxy and the brightest star, if they are whole."""
    sources = pq.read_table(path / "tables" / "truth_sources.parquet").to_pandas()
    ny, nx = dataset.sizes["y"], dataset.sizes["x"]
    half = min(_CUTOUT, ny, nx) // 2
    inside = sources[sources.x.between(half, nx - half - 1) & sources.y.between(half, ny - half - 1)]
    figures = []
    for what, part, key in (
        ("largest galaxy", inside[~inside.is_star], "half_light_radius"),
        ("brightest star", inside[inside.is_star], "flux"),
    ):
        if not len(part):
            continue
        one = part.sort_values(key).iloc[-1]
        x, y = round(one.x), round(one.y)
        window = {"y": slice(y - half, y + half), "x": slice(x - half, x + half)}
        look = dataset["sci"].sel(exposure=one.exposure, detector=one.detector).isel(window).values
        figures.append(picture(grey_levels(look, *_levels(look)), f"{what}: {one.mag:.1f} mag in its band"))
    return join(figures)


def events_of(charge: Image, most: int) -> list[Image]:
    """Return cut-outs of isolated events that fit into a box, spread over their sizes."""
    regions, _ = label(charge > 0, EIGHT_NEIGHBOURS)
    found = []
    for number_, place in enumerate(find_objects(regions), start=1):
        one = charge[place] * (regions[place] == number_)
        if max(one.shape) <= _EVENT_BOX and one.sum() > 100:
            found.append(one)
    found.sort(key=np.count_nonzero)
    return [found[i] for i in np.linspace(0, len(found) - 1, min(most, len(found))).astype(int)]


def _gallery(events: Sequence[Image], caption: str) -> Markup:
    tiles: list[GreyLevels | None] = []
    for event in events:
        canvas = np.zeros((_EVENT_BOX, _EVENT_BOX))
        y, x = ((_EVENT_BOX - length) // 2 for length in event.shape)
        canvas[y : y + event.shape[0], x : x + event.shape[1]] = event
        tiles.append(grey_levels(canvas, 0, float(np.percentile(event[event > 0], 95))))
    if not tiles:
        return Markup()
    tiles += [None] * (-len(tiles) % 8)
    return picture(mosaic([tiles[i : i + 8] for i in range(0, len(tiles), 8)]), caption)


def _cosmic_rays(path: Path, dataset: xr.Dataset, data: Path | None) -> Markup:
    """Draw isolated events of one unit for each generator, next to real ones."""
    truth = xr.open_zarr(path, group="truth", chunks={})
    exposures = pq.read_table(path / "tables" / "truth_exposures.parquet").to_pylist()
    generator = {row["exposure"]: row["generator"] for row in exposures}
    figures, rows, seen = [], [], set()
    for row, column in np.argwhere(dataset["present"].values).tolist():
        name = generator.get(str(dataset["exposure"].values[row]), "")
        if name in seen:
            continue
        seen.add(name)
        charge = truth["cr"].isel(exposure=row, detector=column).values
        regions, n = label(charge > 0, EIGHT_NEIGHBOURS)
        if n == 0:
            continue
        each = np.bincount(regions.ravel(), charge.ravel())[1:]
        size = np.bincount(regions.ravel())[1:]
        rows.append([f"mock: {name}", n, *_spread(np.log10(each)), *_spread(size), format_number(np.mean(charge > 0))])
        figures.append(_gallery(events_of(charge, _EVENTS), f"mock: {name}"))
    for name in ("stis", "itl") if data is not None else ():
        library = load_event_library(name, "training", data)
        counts = np.diff(library.offset)
        each = np.add.reduceat(library.charge, library.offset[:-1])
        rows.append([f"real: {library.name}", len(library), *_spread(np.log10(each)), *_spread(counts), "–"])
        charge = library.scatter(np.random.default_rng(1), (1500, 1500), 0.003)
        figures.append(_gallery(events_of(charge, _EVENTS), f"real: {library.name}"))
    head = ("", "events", "log charge [e-]: 16 %", "50 %", "84 %", "pixels: 16 %", "50 %", "84 %", "share of pixels")
    note = "An event of a mock is a set of connected pixels: two events that touch count as one."
    return join([*figures, table(head, rows), paragraphs(note)])


def _spread(values: npt.NDArray[Any]) -> list[str]:
    return [format_number(round(float(value), 2)) for value in np.percentile(values, [16, 50, 84])]


def _stamps(dataset: xr.Dataset) -> Markup:
    """Draw some stamps of some units, beside their truth."""
    figures = []
    counts = dataset["n_stamps"].values
    units = np.argwhere(counts > 0)
    for row, column in units[:: max(1, len(units) // 6)].tolist():
        n = int(counts[row, column])
        some = np.linspace(0, n - 1, min(_STAMPS, n)).astype(int)
        one = dataset.isel(exposure=row, detector=column, stamp=some)
        names = ["sci", "truth_sci", *(["truth_psf"] if "truth_psf" in one else ["truth_cr"])]
        planes = {name: one[name].values for name in names}
        for name in names:
            tiles: list[GreyLevels | None] = [grey_levels(tile, *_stamp_levels(tile, name)) for tile in planes[name]]
            what = f"{dataset['exposure'].values[row]} / {dataset['detector'].values[column]}"
            tiles += [None] * (-len(tiles) % 4)
            rows = [tiles[i : i + 4] for i in range(0, len(tiles), 4)]
            figures.append(picture(mosaic(rows), f"{what}: {name.replace('_', ' ')}"))
    return join(figures)


def _stamp_levels(tile: Image, name: str) -> tuple[float, float]:
    if name == "truth_psf":
        return 0.0, float(tile.max()) / 3
    return float(np.nanpercentile(tile, 5)), float(max(np.nanpercentile(tile, 99.5), 1e-6))
