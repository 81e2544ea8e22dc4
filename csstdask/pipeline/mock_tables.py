"""Write the tables and small arrays of a mock survey: inputs of reductions, and the truth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument
from csstdask.mock import Recipe
from csstdask.mock.cosmic_rays import generator_of, pixel_fraction
from csstdask.mock.reference_catalogue import reference_columns
from csstdask.mock.slitless_camera import flat_coefficients, flat_terms, require_slitless, true_sensitivity
from csstdask.mock.slitless_stars import catalogue_columns, field_stars, recipe_library, spectra_columns, truth_columns
from csstdask.mock.unit_catalogue import unit_catalogue
from csstdask.mock.unit_stamps import TRUTH_COLUMNS
from csstdask.mock.zeropoint_units import exposure_throughput, require_zeropoint, telemetry_columns, true_zero_points
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_truth import write_truth_arrays
from csstdask.store.schema import UNIT_DIMS, ArraySpec
from csstdask.store.tables import column_units, write_table_parts
from csstdask.store.zarr_arrays import array_names, get_array

SLITLESS_TABLES = ("catalogue", "spectra", "truth_spectra")
"""Written for recipes with a table ``[slitless]``."""
ZEROPOINT_TABLES = ("reference", "telemetry", "truth_zp")
"""Written for recipes with a table ``[zeropoint]``."""


def _recipe_units(recipe: Recipe) -> Iterator[tuple[int, int]]:
    """Yield exposure number and detector of each unit."""
    return ((index, detector) for index in range(recipe.exposures) for detector in recipe.detectors)


def _fields_of(recipe: Recipe) -> list[tuple[int, int]]:
    """Return the first unit of each field and detector, in the order of the last visits of fields."""
    first = {}
    for index, detector in reversed(list(_recipe_units(recipe))):
        first[recipe.field_index(index), detector] = index, detector
    return list(reversed(first.values()))


def exposure_truth(recipe: Recipe) -> dict[str, Any]:
    """Return the truth of each exposure: field, split (training or test), epoch, cosmic rays."""
    index = range(recipe.exposures)
    fields = [recipe.field_of(i) for i in index]
    return {
        "exposure": np.array(recipe.exposure_ids, dtype=object),
        "field": np.array([field.name or str(recipe.field_index(i)) for i, field in enumerate(fields)], dtype=object),
        "split": np.array([recipe.split_of(i) or "" for i in index], dtype=object),
        "epoch": np.array([recipe.epoch_of(i) for i in index]),
        "generator": np.array([generator_of(recipe, i) for i in index], dtype=object),
        "cr_pixel_fraction": np.array([pixel_fraction(recipe, i) for i in index]),
        **({} if recipe.zeropoint is None else _throughput_truth(recipe)),
    }


def _throughput_truth(recipe: Recipe) -> dict[str, Any]:
    """Return the components of the zero-point offset of each exposure [mag]."""
    parts = exposure_throughput(recipe, recipe.exposures)
    return {f"zp_{name}": getattr(parts, name) for name in ("explained", "walk", "jumps", "white")}


def source_truth(recipe: Recipe, instrument: Instrument) -> Iterator[dict[str, Any]]:
    """Yield the true sources of each unit, drawn again from its seeds, without those outside the frame."""
    ny, nx = recipe.frame_shape
    for index, detector in _recipe_units(recipe):
        drawn = unit_catalogue(recipe, instrument, index, detector)
        inside = (drawn.x >= -0.5) & (drawn.y >= -0.5) & (drawn.x < nx - 0.5) & (drawn.y < ny - 0.5)
        catalogue = drawn.select(inside)
        n = len(catalogue)
        yield {
            "exposure": np.full(n, recipe.exposure_ids[index], dtype=object),
            "detector": np.full(n, detector, dtype=np.int32),
            "id": np.arange(n, dtype=np.int32),
            **{name: getattr(catalogue, name) for name in TRUTH_COLUMNS},
        }


def write_slitless_tables(folder: Path, recipe: Recipe, instrument: Instrument, data: Path | None) -> None:
    """Write the catalogue and SEDs of the stars, and the true spectra of each unit."""
    settings, library = require_slitless(recipe), recipe_library(recipe, data)
    # The second key is that of tables written by `csstdask sed`.
    wavelength = dict.fromkeys(("wavelength", "csstdask.wavelength"), json.dumps(library.wavelength.tolist()))
    fields = [field_stars(recipe, instrument, index, detector, library) for index, detector in _fields_of(recipe)]
    parts = {
        "catalogue": ((catalogue_columns(settings, stars) for stars in fields), {"epoch": "J2016.0"}),
        "spectra": ((spectra_columns(settings, stars, library) for stars in fields), wavelength),
        "truth_spectra": (
            (truth_columns(recipe, instrument, index, detector, library) for index, detector in _recipe_units(recipe)),
            wavelength,
        ),
    }
    for name, (columns, metadata) in parts.items():
        write_table_parts(folder / f"{name}.parquet", columns, column_units(name), metadata=metadata)


def write_zeropoint_tables(folder: Path, recipe: Recipe, instrument: Instrument) -> None:
    """Write the reference stars and the telemetry, and the true zero point of each unit."""
    stars = (reference_columns(recipe, instrument, index, detector) for index, detector in _fields_of(recipe))
    zero_points = true_zero_points(recipe, instrument)
    truth = {
        "exposure": np.repeat(np.array(recipe.exposure_ids, dtype=object), len(recipe.detectors)),
        "detector": np.tile(np.array(recipe.detectors, dtype=np.int32), recipe.exposures),
        "zp": zero_points.ravel(),
    }
    parts: dict[str, tuple[Iterable[dict[str, Any]], dict[str, str] | None]] = {
        "reference": (stars, {"epoch": "J2016.0"}),
        "telemetry": ([telemetry_columns(recipe)], None),
        "truth_zp": ([truth], None),
    }
    for name, (columns, metadata) in parts.items():
        units = column_units(name) | {
            key: "mag" for band in _bands(recipe) for key in (f"mag_{band}", f"mag_{band}_err")
        }
        write_table_parts(folder / f"{name}.parquet", columns, units, metadata=metadata)


def _bands(recipe: Recipe) -> tuple[str, ...]:
    return require_zeropoint(recipe).stars.bands


def write_true_zero_points(target: Path, recipe: Recipe, instrument: Instrument) -> None:
    """Write ``truth/zp`` (exposure, detector); exposures that are not in this recipe keep their values."""
    campaign = Campaign(target)
    values = np.full((len(campaign.exposures), len(campaign.detectors)), np.nan)
    if "zp" in array_names(target / "truth"):
        known = np.asarray(get_array(campaign.group, "truth/zp")[...], dtype=np.float64)
        values[: len(known)] = known
    zero_points = true_zero_points(recipe, instrument)
    for index, exposure in enumerate(recipe.exposure_ids):
        for column, detector in enumerate(recipe.detectors):
            values[campaign.index(exposure, detector)] = zero_points[index, column]
    about: dict[str, object] = {"units": "mag", "long_name": "true zero point: AB magnitude of 1 electron s-1"}
    write_truth_arrays(target, {"zp": (ArraySpec("zp", UNIT_DIMS, "float64", np.nan, "table", about), values)})


def slitless_truth(
    recipe: Recipe, instrument: Instrument, data: Path | None
) -> dict[str, tuple[ArraySpec, npt.NDArray[Any]]]:
    """Return the coefficients of true flats, and true sensitivities, on the wavelengths of the SEDs."""
    settings, wavelength = require_slitless(recipe), recipe_library(recipe, data).wavelength
    terms = np.array(flat_terms(settings.flat_degree), dtype=np.int32)
    sensitivity = np.stack([true_sensitivity(recipe, instrument, one, wavelength) for one in recipe.detectors])
    flat = np.stack([flat_coefficients(recipe, instrument, one, wavelength) for one in recipe.detectors])
    flat[sensitivity == 0] = np.nan
    about_flat: dict[str, object] = {
        "long_name": "large-scale flat: sum over terms of flat * L_degree_u(u) * L_degree_v(v), L of Legendre",
        "u": "2 (x + 1/2) / nx - 1",
        "v": "2 (y + 1/2) / ny - 1",
        "shape": list(recipe.frame_shape),
    }
    found: dict[str, tuple[ArraySpec, npt.NDArray[Any]]] = {}

    def add(name: str, dims: tuple[str, ...], values: npt.NDArray[Any], **about: object) -> None:
        fill = np.nan if values.dtype.kind == "f" else -1
        found[name] = ArraySpec(name, dims, str(values.dtype), fill, "table", about), values

    add("detector", ("detector",), np.array(recipe.detectors, dtype=np.int32))
    add("wavelength", ("wavelength",), wavelength, units="Angstrom", medium="vacuum")
    add("degree_u", ("term",), terms[:, 0])
    add("degree_v", ("term",), terms[:, 1])
    add("flat", ("detector", "wavelength", "term"), flat, **about_flat)
    add("sensitivity", ("detector", "wavelength"), sensitivity, units="electron cm2 erg-1", order=1)
    return found
