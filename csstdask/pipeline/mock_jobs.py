"""Render one unit of a mock survey and write it, on a worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from astropy.io import fits
from astropy.table import Table

from csstdask.engine.cluster import limit_threads
from csstdask.engine.window import describe_failure
from csstdask.engine.work_units import Unit
from csstdask.instrument import Instrument
from csstdask.mock import MockUnit, Recipe, render_unit
from csstdask.mock.stamps import StampSet
from csstdask.mock.unit_digest import unit_digest
from csstdask.mock.unit_headers import file_stem
from csstdask.mock.unit_stamps import unit_stamps
from csstdask.store.campaign_pixels import write_unit_pixels
from csstdask.store.stamps import write_unit_stamps
from csstdask.store.unit_metadata import UnitMetadata

Target = Literal["campaign", "stamps", "fits"]
"""What a mock survey is written to."""


@dataclass(frozen=True)
class MockJob:
    """Everything a worker needs to render one unit."""

    recipe: Recipe
    instrument: Instrument
    index: int
    """Number of the exposure in the recipe."""
    detector: int
    target: str
    into: Target
    data: str | None = None
    """Folder of real data, for recipes that use it."""
    row: int = 0
    column: int = 0

    @property
    def unit(self) -> Unit:
        """Return the unit."""
        return Unit(self.recipe.exposure_ids[self.index], self.detector)

    @property
    def folder(self) -> Path | None:
        """Return the folder of real data."""
        return None if self.data is None else Path(self.data)


def render_job(job: MockJob) -> dict[str, Any]:
    """Render and write one unit: the task of a worker."""
    limit_threads(1)
    try:
        unit = render_unit(job.recipe, job.instrument, job.index, job.detector, job.folder)
        if job.recipe.stamps is not None:
            return _store_stamps(job, unit_stamps(job.recipe, job.instrument, job.index, job.detector, unit), unit)
        if job.into == "fits":
            _write_frame_files(job, unit)
            return {}
        root = Path(job.target)
        planes = {"sci": unit.sci, "wht": unit.wht, "flag": unit.flag}
        planes |= {"truth/sci": unit.truth_sci, "truth/cr": unit.truth_cr}
        for name, plane in planes.items():
            write_unit_pixels(root, job.row, job.column, name, plane)
        return {"metadata": _metadata(job, unit).to_dict()}
    except Exception as error:  # noqa: BLE001  a unit that cannot be rendered is named; the others are rendered
        return describe_failure("mock", error)


def _store_stamps(job: MockJob, stamps: StampSet, unit: MockUnit) -> dict[str, Any]:
    if job.into == "fits":
        _write_stamp_file(job, stamps, unit)
    else:
        write_unit_stamps(Path(job.target), job.row, job.column, {**stamps.planes, **stamps.columns})
    return {"stamps": len(stamps)}


def job_digest(job: MockJob) -> str:
    """Return the SHA-256 of everything that decides the pixels of a unit."""
    return unit_digest(job.recipe, job.instrument, job.index, job.detector, job.folder)


def _metadata(job: MockJob, unit: MockUnit) -> UnitMetadata:
    values = job.instrument.values(job.detector)
    return UnitMetadata(
        exposure=job.recipe.exposure_ids[job.index],
        detector=job.detector,
        kind="imaging" if job.recipe.slitless is None else "slitless",
        band=job.instrument.detector(job.detector).band or "",
        exptime=job.recipe.exptime,
        time=unit.time,
        gain=values.gain or 1.0,
        read_noise=values.read_noise or 0.0,
        digest=job_digest(job),
        source=f"mock {job.recipe.name}",
        header=unit.header.tostring(sep="\n", endcard=False, padding=False),
        primary_header=unit.primary_header.tostring(sep="\n", endcard=False, padding=False),
    )


def _write_frame_files(job: MockJob, unit: MockUnit) -> None:
    level_1 = [
        fits.PrimaryHDU(header=unit.primary_header),
        fits.ImageHDU(unit.sci, header=unit.header, name="SCI"),
        fits.ImageHDU(unit.wht, name="WHT"),
        fits.ImageHDU(unit.flag, name="FLG"),
    ]
    truth_header = unit.header.copy()
    truth_header["BUNIT"] = "electron"
    truth = [
        fits.PrimaryHDU(header=unit.primary_header),
        fits.ImageHDU(unit.truth_cr, header=truth_header, name="SCI"),
    ]
    _write_fits(job, "SCIE", "L1", level_1)
    _write_fits(job, "CRS", "L0", truth)


def _write_stamp_file(job: MockJob, stamps: StampSet, unit: MockUnit) -> None:
    names = {"sci": "SCI", "wht": "WHT", "flag": "FLG"}
    names |= {"truth/sci": "TRUTHSCI", "truth/cr": "TRUTHCR", "truth/psf": "TRUTHPSF"}
    cubes = [fits.ImageHDU(values, name=names[name]) for name, values in stamps.planes.items()]
    cubes[0].header["BUNIT"] = "e/s"
    table = fits.table_to_hdu(Table(dict(stamps.columns)))
    table.name = "STAMPS"
    _write_fits(job, "STAMPS", "L1", [fits.PrimaryHDU(header=unit.primary_header), *cubes, table])


def _write_fits(job: MockJob, kind: str, level: str, hdus: list[Any]) -> None:
    path = Path(job.target) / f"{file_stem(job.recipe, job.index, job.detector, kind)}_{level}_V01.fits"
    draft = path.with_name(f".{path.name}.partial")
    fits.HDUList(hdus).writeto(draft, overwrite=True)
    draft.replace(path)
