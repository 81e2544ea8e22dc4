"""Write the frame of one unit as FITS, on a worker."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import xarray as xr
from astropy.io import fits

from csstdask.core.errors import InputError, StoreError
from csstdask.engine.cluster import limit_threads
from csstdask.engine.ledger import OwnedObject
from csstdask.engine.window import describe_failure
from csstdask.engine.work_units import Unit
from csstdask.pipeline.export_zero_points import differing_cards
from csstdask.pipeline.provenance import Provenance
from csstdask.pipeline.views import open_run
from csstdask.store.campaign_dataset import open_campaign
from csstdask.store.campaign_pixels import check_unit_pixels, read_unit_pixels
from csstdask.store.fits_output import write_unit
from csstdask.store.unit_metadata import read_header


@dataclass(frozen=True)
class FrameJob:
    """Everything a worker needs to export the frame of one unit."""

    unit: Unit
    row: int
    column: int
    store: str
    campaign: str
    is_run: bool
    target: str
    provenance: Provenance
    """Header cards of versions, models and identities."""
    session: str
    """Identity of the export: workers may outlive it, and keep a store open for one export only."""
    objects: tuple[OwnedObject, ...] = ()
    """Files of the run that are read, and compared with their checksums."""
    mend: str = ""
    """Command that writes these files again."""
    overwrite: bool = False
    """Whether an existing file is replaced."""
    history: tuple[str, ...] = ()
    """HISTORY cards of the primary header."""
    zero_point: Provenance = ()
    """Header cards of SCI with the unit's zero point."""


def export_frame(job: FrameJob) -> dict[str, Any]:
    """Write the frame of one unit: the task of a worker."""
    limit_threads(1)
    try:
        path = Path(job.target) / f"{job.unit.exposure}_{job.unit.detector}.fits"
        if path.exists() and not job.overwrite:
            _check_same(path, job)
            return {"unchanged": {}}
        _verify(job)
        dataset = _open(job.store, job.campaign, job.session, is_run=job.is_run)
        names = ("clean", "clean_wht", "flag_out") if job.is_run else ("sci", "wht", "flag")
        one = dataset.isel(exposure=job.row, detector=job.column)
        write_unit(
            path,
            *_planes(job, one, names),
            exptime=float(one["exptime"]),
            header=read_header(Path(job.campaign), job.row, job.column),
            primary_header=read_header(Path(job.campaign), job.row, job.column, "primary_header"),
            units=str(one[names[0]].attrs["units"]),
            cards=job.provenance,
            history=job.history,
            science_cards=job.zero_point,
            planes=_text(one, "planes"),
            unit_scale=float(one["unit_scale"]) if "unit_scale" in one else 1.0,
            file_units=_text(one, "file_units"),
        )
    except Exception as error:  # noqa: BLE001  a unit that cannot be written is named; the others are written
        return describe_failure("export", error)
    return {}


def _check_same(path: Path, job: FrameJob) -> None:
    """Raise InputError unless the headers of a file show that it is an export of the same pixels and zero point."""
    provenance = job.provenance
    try:
        header = fits.getheader(path)
        found = {keyword: header.get(keyword) for keyword, _, _ in provenance}
        science = fits.getheader(path, "SCI") if job.is_run else fits.Header()
    except (OSError, ValueError, KeyError, fits.VerifyError) as error:
        raise InputError(path, f"a file that is no FITS ({error})", "no file, or --overwrite to replace it") from None
    different = [keyword for keyword, value, _ in provenance if found[keyword] != value]
    different += [keyword for keyword in header if keyword.startswith("CSD") and keyword not in found]
    original = functools.partial(read_header, Path(job.campaign), job.row, job.column)
    if not different and (other := differing_cards(science, job.zero_point, original)):
        wanted = "no file, or --overwrite to replace it"
        raise InputError(path, f"an export with another zero point ({', '.join(other)} differ)", wanted)
    if different:
        what = "an export of other pixels" if found["CSDVERS"] else "a file that csstdask has not written"
        raise InputError(path, f"{what} ({', '.join(different)} differ)", "no file, or --overwrite to replace it")


def _verify(job: FrameJob) -> None:
    """Raise StoreError if a file that the export reads is lost or damaged."""
    for item in job.objects:
        if not item.is_intact(Path(job.store), checksum=True):
            path = Path(job.store) / item.path
            what = "content that differs from its record" if path.exists() else "no file, which its record lists"
            raise StoreError(f"{path}: found {what}; wanted that of the run ({job.mend})")
    check_unit_pixels(Path(job.campaign), job.row, job.column)


def _planes(job: FrameJob, one: xr.Dataset, names: Sequence[str]) -> list[npt.NDArray[Any]]:
    """Return the planes of a unit; StoreError names the file if pixels of the campaign are damaged."""
    try:
        return [_compute(one[name]) for name in names]
    except Exception:
        for name in ("sci", "wht", "flag"):
            read_unit_pixels(Path(job.campaign), job.row, job.column, name)
        raise


@functools.lru_cache(maxsize=2)
def _open(store: str, campaign: str, session: str, *, is_run: bool) -> xr.Dataset:  # noqa: ARG001
    """Open a store once per process and export: opening it takes longer than exporting a small unit."""
    return open_run(store, campaign, check=False) if is_run else open_campaign(store)


def _text(unit: xr.Dataset, name: str) -> str:
    """Return a record of a unit; empty in campaigns of an earlier version, which lack it."""
    return str(unit[name].values) if name in unit else ""


def _compute(plane: xr.DataArray) -> Any:
    return plane.compute(scheduler="synchronous").values
