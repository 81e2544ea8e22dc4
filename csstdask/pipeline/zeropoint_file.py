"""Solve for the zero point of one table of sources (``csstdask zeropoint``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from astropy.table import Table

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import CsstdaskError, InputError
from csstdask.engine.ledger import Ledger
from csstdask.engine.work_units import Unit
from csstdask.numerics.robust import mad_scale
from csstdask.pipeline.steps.zeropoint import MAX_REPAIRED_FRACTION, ZEROPOINT
from csstdask.store.campaign import Campaign
from csstdask.store.run import campaign_path
from csstdask.store.schema import NO_TIME
from csstdask.zeropoint.matching import MATCH_RADIUS, Match, match_sources
from csstdask.zeropoint.photometry import instrumental_magnitude
from csstdask.zeropoint.reference import ReferenceCatalogue, read_reference
from csstdask.zeropoint.result import ZeroPoint
from csstdask.zeropoint.solve import days_of, solve

Float = npt.NDArray[np.float64]

FLUX_COLUMNS = (
    ("flux_aperture", "flux_aperture_err"),
    ("flux", "flux_err"),
    ("flux", "fluxerr"),
)
"""Names of flux and error columns, in order of preference."""
MIN_STARS_PER_BAND = 5
"""Minimum number of stars for a band to be chosen by their scatter."""
MIN_SNR = 20.0
"""Minimum signal-to-noise ratio of a source."""
_WANTED = "a table of sources (Parquet, FITS, ECSV or CSV) with ra, dec [deg] and flux, flux_err [electron s-1]"
_APERTURE_FLUX = "flux_aperture"
"""Column that the aperture corrections of a run apply to."""
_UNIT_TABLE = ("tables", "sources")
"""Folders of source tables in a run."""
_UNIX_EPOCH = np.datetime64("1970-01-01T00:00:00", "us")


@dataclass(frozen=True)
class Sources:
    """Usable sources of a table."""

    ra: Float
    dec: Float
    x: Float | None
    y: Float | None
    inst_mag: Float
    inst_mag_err: Float
    flux_column: str
    n_sources: int
    """Number of rows of the table, including unusable ones."""


@dataclass(frozen=True)
class TableMetadata:
    """Metadata of the unit of a table, from its run."""

    band: str | None = None
    days: float = np.nan
    shape: tuple[int, int] | None = None
    aperture_correction: float = 0.0
    """Aperture correction to the total light of a star [mag]; 0 if unknown."""


def solve_table(
    table: Path,
    reference: Path,
    to: Path,
    *,
    band: str | None = None,
    flux: str | None = None,
    time: str | None = None,
    radius: float = MATCH_RADIUS,
    aperture_correction: float | None = None,
    on_progress: Callable[[str], None] = print,
) -> ZeroPoint:
    """Match the sources of a table to a reference catalogue, solve for their zero point, and write it as JSON.

    Parameters
    ----------
    table : Path
        Sources, one per row: table of a unit of a run, or Parquet, FITS, ECSV or CSV with ``ra``, ``dec`` [deg], a flux
        and its error [electron s-1] and, where known, ``x``, ``y`` [pixel] and ``flag`` (0: good).
    reference : Path
        Reference stars; Parquet, see `csstdask.zeropoint.reference.read_reference`.
    to : Path
        Output file (JSON).
    band : str, optional
        Band of the reference magnitudes. Default: that of the unit, for a table of a run; else the band in which stars
        scatter least without a colour term, which the output names.
    flux : str, optional
        Flux column; its error is ``<flux>_err`` or ``<flux>err``.
    time : str, optional
        Start of the exposure, for proper motions; default: that of the unit, for a table of a run.
    radius : float
        Maximum distance of a match [arcsec].
    aperture_correction : float, optional
        Correction added to the instrumental magnitudes [mag]; default: that of the unit, for the aperture flux of a
        table of a run, else 0.
    announce : callable
        Receives lines of text for the user.

    Returns
    -------
    ZeroPoint

    Raises
    ------
    InputError
        If a file cannot be read or lacks a column, or the reference lacks the band.
    """
    if to.is_dir():
        raise InputError(to, "a folder", "a JSON file for the zero point")
    sources, metadata = load_sources(table, flux), unit_metadata(table)
    if aperture_correction is None:
        aperture_correction = metadata.aperture_correction if sources.flux_column == _APERTURE_FLUX else 0.0
    catalogue = read_reference(reference)
    days = days_of(time) if time is not None else metadata.days
    match = match_sources(sources.ra, sources.dec, *catalogue.at(days), radius=radius)
    bands = [band or metadata.band] if band or metadata.band else catalogue.bands
    found = {
        str(name): solve_band(sources, match, catalogue, str(name), metadata.shape, aperture_correction)
        for name in bands
    }
    chosen = _best_band(found)
    zero_point = found[chosen]
    about = {
        "table": table.name,
        "reference": reference.name,
        "band": chosen,
        "band_from": _band_origin(band, metadata, found),
        "flux": sources.flux_column,
        "aperture_correction": aperture_correction,
        "n_sources": sources.n_sources,
        "wcs_shift_arcsec": list(match.shift),
    }
    others = {
        name: {"value": one.value, "n_used": one.n_used, "spread": _scatter(one), "color_term": one.color_term}
        for name, one in found.items()
    }
    write_atomic(to, _json({**zero_point.to_dict(), **about, "bands": others}))
    on_progress(f"{to}: {chosen}: {zero_point}")
    if len(found) > 1:
        on_progress(
            f"band {chosen} chosen: its stars scatter least without a colour term, of {', '.join(found)}; "
            "--band chooses another"
        )
    if not zero_point.solved.solved:
        on_progress(
            f"{table}: no zero point, {match.n_matched} of {len(sources.ra)} usable sources match one of "
            f"{len(catalogue)} reference stars"
        )
    return zero_point


def _band_origin(band: str | None, metadata: TableMetadata, found: Mapping[str, ZeroPoint]) -> str:
    """Describe how the band was chosen, for the output file."""
    if band:
        return "--band"
    if metadata.band:
        return "run"
    return "least spread" if len(found) > 1 else "reference"


def solve_band(
    sources: Sources,
    match: Match,
    catalogue: ReferenceCatalogue,
    band: str,
    shape: tuple[int, int] | None,
    aperture_correction: float = 0.0,
) -> ZeroPoint:
    """Return the zero point of matched sources against the magnitudes of one band."""
    rows = match.reference >= 0
    star = match.reference[rows]
    magnitude, error = catalogue.magnitude(band)
    columns: dict[str, Any] = {
        "inst_mag": sources.inst_mag[rows] + aperture_correction,
        "inst_mag_err": sources.inst_mag_err[rows],
        "ref_mag": magnitude[star],
        "ref_mag_err": error[star],
    }
    color = catalogue.color()
    if color is not None:
        columns["color"] = color[star]
    if sources.x is not None and sources.y is not None:
        columns |= {"x": sources.x[rows], "y": sources.y[rows]}
    return solve(columns, shape=shape)


def load_sources(path: Path, flux: str | None = None) -> Sources:
    """Read the usable sources of a table: unflagged, with a position and a significant flux.

    Raises
    ------
    InputError
        If the table cannot be read or lacks a column.
    """
    if not path.is_file():
        raise InputError(path, "no such file", _WANTED)
    table = _read(path)
    names = list(table)
    pairs = FLUX_COLUMNS if flux is None else ((flux, f"{flux}_err"), (flux, f"{flux}err"))
    pair = next((pair for pair in pairs if set(pair) <= set(names)), None)
    absent = [name for name in ("ra", "dec") if name not in names]
    if absent or pair is None:
        missing = ", ".join([*absent, *([] if pair else [f"{pairs[0][0]} with {pairs[0][1]}"])])
        raise InputError(path, f"no column {missing}", _WANTED if flux is None else "an existing column for --flux")

    def column(name: str) -> Float:
        try:
            return np.ma.filled(np.ma.asarray(table[name], dtype=np.float64), np.nan)
        except (TypeError, ValueError):
            raise InputError(path, f"column {name} without numbers", _WANTED) from None

    ra, dec, rate, rate_err = (column(name) for name in ("ra", "dec", *pair))
    with np.errstate(invalid="ignore", divide="ignore"):
        good = (rate > 0) & (rate > MIN_SNR * rate_err) & np.isfinite(ra) & (np.abs(dec) <= 90)
    if "flag" in names:
        good &= column("flag") == 0
    if "repaired_fraction" in names:
        good &= column("repaired_fraction") <= MAX_REPAIRED_FRACTION
    magnitude, magnitude_err = instrumental_magnitude(rate[good], rate_err[good])
    x, y = (column(name)[good] if {"x", "y"} <= set(names) else None for name in ("x", "y"))
    return Sources(ra[good], dec[good], x, y, magnitude, magnitude_err, pair[0], len(ra))


def _read(path: Path) -> dict[str, Any]:
    """Return the columns of a Parquet table, or of one in a format that astropy reads."""
    try:
        if path.suffix == ".parquet":
            columns = pq.read_table(path)
            return {name: columns[name].to_numpy(zero_copy_only=False) for name in columns.column_names}
        table = Table.read(path)
    except Exception as error:  # noqa: BLE001  each reader raises different errors
        raise InputError(path, f"no readable table ({type(error).__name__}: {error})", _WANTED) from None
    return {name: table[name] for name in table.colnames}


def unit_metadata(table: Path) -> TableMetadata:
    """Return band, time and shape of the unit of a table; empty metadata for a table outside of a run."""
    path = table.resolve()
    run = path.parents[3] if len(path.parents) > 3 else path
    if path.parts[-4:-2] != _UNIT_TABLE or not (run / "zarr.json").is_file() or not path.stem.isdigit():
        return TableMetadata()
    try:
        campaign = Campaign(campaign_path(run))
        metadata = campaign.metadata(path.parent.name, int(path.stem))
    except (CsstdaskError, KeyError, ValueError, OSError):
        return TableMetadata()
    begin = np.nan if metadata.time == NO_TIME else days_of(_UNIX_EPOCH + np.timedelta64(metadata.time, "us"))
    return TableMetadata(
        metadata.band or None, begin, campaign.shape, _correction_of(run, metadata.exposure, metadata.detector)
    )


def _correction_of(run: Path, exposure: str, detector: int) -> float:
    """Return the aperture correction recorded by the step zeropoint for a unit [mag]; 0 if there is none."""
    step = Ledger(run).read(Unit(exposure, detector)).steps.get(ZEROPOINT.name)
    found = None if step is None else step.metrics.get("zp_aperture_correction")
    return float(found) if found is not None else 0.0


def _best_band(found: dict[str, ZeroPoint]) -> str:
    """Return the band with enough stars in which they scatter least without a colour term."""
    most = max(one.n_used for one in found.values())
    enough = [name for name, one in found.items() if one.n_used >= max(most / 2, min(most, MIN_STARS_PER_BAND))]
    return min(enough, key=lambda name: _scatter(found[name]))


def _scatter(zero_point: ZeroPoint) -> float:
    """Return the scatter of stars in a band without a colour term; large for a filter unlike that of the reference."""
    used = zero_point.fit.weights > 0
    if not used.any():
        return np.inf
    residual, color = zero_point.fit.residuals[used], zero_point.stars.color
    if color is not None:
        residual = residual + zero_point.color_term * np.nan_to_num(color[used], nan=float(np.nanmedian(color)))
    return float(mad_scale(residual))


def _json(values: dict[str, Any]) -> bytes:
    def to_json(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: to_json(one) for key, one in value.items()}
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return f"{json.dumps(to_json(values), indent=1, allow_nan=False)}\n".encode()
