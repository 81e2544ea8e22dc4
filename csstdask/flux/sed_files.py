"""Predict SEDs of spectra in files, for ``csstdask sed``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from csstdask.core.errors import InputError
from csstdask.core.warnings import suppress_warnings
from csstdask.flux.sed import MIN_RESOLUTION, Stars, predict_sed
from csstdask.flux.sed_table import SedTable, write_seds
from csstdask.flux.spectral_grids import SED_WAVELENGTH
from csstdask.flux.spectrum_files import read_spectrum
from csstdask.nn.device import choose_device
from csstdask.nn.models import find_card


def predict_files(
    paths: Sequence[Path],
    to: Path,
    *,
    medium: str | None = None,
    model: str = "default",
    resolution: float | None = None,
    stars: Stars = "real",
    device: Any = None,
) -> dict[str, str]:
    """Predict SEDs of spectra in files, and write them as one table.

    Parameters
    ----------
    paths : sequence of Path
        Files in the formats of `csstdask.flux.spectrum_files.read_spectrum`.
    to : Path
        Output Parquet file. Ids are the OBSID or OBJECT of the headers, else the names of the files.
    medium, model, resolution, stars, device : optional
        As in `csstdask.flux.predict_sed`.

    Returns
    -------
    dict
        Files that failed, with the reason; all others are in the table.

    Raises
    ------
    InputError
        If no file can be used, or two stars have the same id.
    ValueError
        If medium or model are unknown.
    """
    if medium not in (None, "air", "vacuum"):
        raise InputError("--medium", repr(medium), "vacuum or air")
    try:
        find_card("sed", model)
    except ValueError as error:
        raise InputError("--model", repr(model), str(error).rpartition("wanted ")[2]) from None
    choose_device(device)
    if resolution is not None and not resolution >= MIN_RESOLUTION:
        raise InputError("--resolution", f"{resolution:g}", f"at least {MIN_RESOLUTION:g}")
    parts: list[SedTable] = []
    ids: list[str] = []
    failed: dict[str, str] = {}
    for path in paths:
        try:
            with suppress_warnings():  # problems of a file become its reason
                spectrum = read_spectrum(path, medium=medium)
            found = predict_sed(
                spectrum.wavelength, spectrum.flux, spectrum.error,
                model=model, resolution=resolution or spectrum.resolution, stars=stars, device=device,
            )  # fmt: skip
        except InputError as error:
            failed[str(path)] = f"found {error.found}; wanted {error.wanted}"
            continue
        except (OSError, ValueError, TypeError) as error:  # from truncated files and text columns
            failed[str(path)] = f"found no readable spectrum ({' '.join(str(error).split())}); wanted a whole file"
            continue
        parts.append(found.table([spectrum.name]))
        ids.append(spectrum.name)
    if not parts:
        first, reason = next(iter(failed.items()))
        raise InputError(first, reason.removeprefix("found "), "at least one usable spectrum")
    if repeated := {one for one in ids if ids.count(one) > 1}:
        raise InputError("spectra", f"several with the id {sorted(repeated)[0]}", "one for each star")
    write_seds(to, _join_tables(ids, parts))
    return failed


def _join_tables(ids: list[str], parts: list[SedTable]) -> SedTable:
    mean, sigma, modes, outside = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "sigma", "modes", "out_of_domain")
    )
    return SedTable(np.array(ids, dtype=object), SED_WAVELENGTH, mean, sigma, modes, outside)
