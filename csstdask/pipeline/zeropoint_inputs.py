"""Check reference stars, telemetry and network before a run, so that it does not fail after hours of work."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csstdask.core.atomic_io import sha256_file
from csstdask.core.errors import InputError
from csstdask.nn.models import NO_MODEL, find_card
from csstdask.zeropoint.reference import check_reference
from csstdask.zeropoint.telemetry import read_telemetry

if TYPE_CHECKING:
    from csstdask.pipeline.config import RunConfig
    from csstdask.pipeline.plan import Plan

log = logging.getLogger("csstdask")

_POSITIONS = ("ra", "dec", "pmra", "pmdec", "ref_epoch")
_IMAGING = "imaging"
"""Kind of frames that have zero points."""


def check_zeropoint_inputs(plan: Plan) -> None:
    """Check the tables and the network for the zero points of a plan; warn of suspicious ones.

    Raises
    ------
    InputError
        If there is no reference, a table cannot be used, or the network cannot be loaded.
    """
    settings = plan.config.zeropoint
    if settings.reference is None:
        raise InputError("--steps zeropoint", "no reference stars", "--reference STARS.parquet")
    _check_reference(Path(settings.reference), plan)
    if settings.telemetry is not None:
        _check_telemetry(Path(settings.telemetry), plan)
    if uses_network(plan.config) and "zeropoints" in {one.name for one in plan.active_reductions}:
        _check_network(plan.config)


def uses_network(config: RunConfig) -> bool:
    """Return whether zero points use a network, which needs telemetry."""
    return config.zeropoint.model != NO_MODEL and config.zeropoint.telemetry is not None


def check_unchanged(path: Path, checksum: str | None) -> None:
    """Raise InputError unless a table has the same content as at the start of the run.

    Parameters
    ----------
    path : Path
    checksum : str or None
        SHA-256 of that content; None: not checked.
    """
    if checksum is not None and sha256_file(path) != checksum:
        raise InputError(path, "a file that was replaced during the run", "that of its beginning: run again")


def _check_reference(path: Path, plan: Plan) -> None:
    """Check columns and bands of a reference catalogue, without reading its rows."""
    settings, known = plan.config.zeropoint, check_reference(path)
    magnitudes = [f"mag_{band}{suffix}" for band in known for suffix in ("", "_err")]
    _check_numbers(path, [*_POSITIONS, *magnitudes])
    absent = [band for band in settings.color or () if band not in known]
    if absent:
        raise InputError("[zeropoint] color", ", ".join(absent), f"bands of {path} ({', '.join(known)})")
    bands = _bands(plan)
    missing = [band for band in bands if band not in known]
    if bands and len(missing) == len(bands):
        wanted = f"mag_BAND of the campaign's images ({', '.join(bands)})"
        raise InputError(path, f"magnitudes in {', '.join(known)} alone", wanted)
    if missing:
        log.warning(
            "%s has no magnitudes in %s: zero points of these images come without stars", path, ", ".join(missing)
        )
    if not pq.read_metadata(path).num_rows:
        log.warning("%s has no stars: zero points come without them", path)


def _check_telemetry(path: Path, plan: Plan) -> None:
    """Check a table of telemetry, which has one row per exposure."""
    table = read_telemetry(path)
    known = {str(name) for name in table.exposure}
    if not known.intersection(plan.campaign.exposures):
        example = f", such as {next(iter(sorted(known)))}" if known else ""
        log.warning(
            "%s has no row of an exposure of the campaign%s: wanted ids such as %s; zero points come without telemetry",
            path,
            example,
            plan.campaign.exposures[0] if plan.campaign.exposures else "those of its exposures",
        )


def _check_network(config: RunConfig) -> None:
    """Load the network as the reduction will."""
    from csstdask.nn.device import choose_device
    from csstdask.nn.weights import load_network
    from csstdask.zeropoint.prior.build import build_network

    model = config.zeropoint.model
    wanted = f'a model that can be loaded, or model = "{NO_MODEL}"'
    try:
        load_network(find_card("zeropoint", model), build_network, choose_device(config.engine.device))
    except Exception as error:  # noqa: BLE001  the reduction would fail of the same error, after all units
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError("[zeropoint] model", f"{model} ({reason})", wanted) from None


def _check_numbers(path: Path, names: Iterable[str]) -> None:
    """Raise InputError if a column of a table has no numbers; only its schema is read."""
    schema = pq.read_schema(path)
    for name in names:
        if name in schema.names and not _is_number(kind := schema.field(name).type):
            raise InputError(path, f"column {name} of type {kind}", "numbers: convert the column or remove it")


def _is_number(kind: pa.DataType) -> bool:
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    return any(check(kind) for check in checks)


def _bands(plan: Plan) -> list[str]:
    """Return the bands of the images of a campaign that are present, sorted."""
    campaign = plan.campaign
    shown = np.asarray(campaign.present, dtype=bool)
    kinds, bands = (np.asarray(campaign.read(name), dtype=object)[: len(shown)] for name in ("kind", "band"))
    return sorted({str(band) for band in bands[shown & (kinds == _IMAGING)] if str(band)})
