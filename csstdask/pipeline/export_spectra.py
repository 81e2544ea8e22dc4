"""Export calibrated slitless spectra as FITS, with the sensitivity and flat-field cube of each detector."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from csstdask.core.errors import CsstdaskError, InputError, StoreError
from csstdask.engine.cluster import limit_threads
from csstdask.engine.ledger import Ledger
from csstdask.engine.window import describe_failure
from csstdask.engine.work_units import Unit
from csstdask.flux.flat import Flat
from csstdask.pipeline.plan import Plan
from csstdask.pipeline.reduction_status import current_fingerprints
from csstdask.pipeline.reductions.flat import FLAT, read_cube
from csstdask.pipeline.steps.extract import EXTRACT
from csstdask.store.tables import read_table, table_path

FLUX_UNITS = "erg s-1 cm-2 Angstrom-1"
RATE_UNITS = "electron s-1 Angstrom-1"
_TEXT = 40
"""Length of an id [byte]."""


@dataclass(frozen=True)
class SpectraJob:
    """Everything a worker needs to export the spectra of one unit."""

    unit: Unit
    store: str
    path: str
    overwrite: bool
    fingerprint: str
    """Fingerprint of the step that extracted them."""
    flat: str | None
    """Fingerprint of the cube of the detector; None without one of the present units."""


def spectra_jobs(root: Path, plan: Plan, target: Path, units: list[Unit], *, overwrite: bool) -> list[SpectraJob]:
    """Return a job for each unit whose spectra are finished."""
    if EXTRACT.name not in {step.name for step in plan.active_steps}:
        return []
    ledger, jobs = Ledger(root), []
    flats = current_fingerprints(plan, ledger, FLAT, {unit.detector for unit in units})
    for unit in units:
        wanted = plan.fingerprints(plan.campaign.metadata(unit.exposure, unit.detector)).get(EXTRACT.name)
        record = ledger.read(unit)
        if wanted is not None and record.recorded({EXTRACT.name: wanted}):
            path = target / f"{unit.exposure}_{unit.detector}_spectra.fits"
            jobs.append(SpectraJob(unit, str(root), str(path), overwrite, wanted, flats.get(unit.detector)))
    return jobs


def export_unit_spectra(job: SpectraJob) -> dict[str, Any]:
    """Write the spectra of one unit: the task of a worker."""
    limit_threads(1)
    try:
        path, root = Path(job.path), Path(job.store)
        if path.exists() and not job.overwrite:
            _check_same(path, job)
            return {"unchanged": {"spectra": True}}
        table = _verified_table(root, job.unit)
        flat = read_cube(root, job.unit.detector, job.flat)
        write_spectra(path, table, flat, job)
    except Exception as error:  # noqa: BLE001  the failure is reported, and the other units are written
        return describe_failure("export", error)
    return {"spectra": True}


def _verified_table(root: Path, unit: Unit) -> dict[str, npt.NDArray[Any]]:
    path = table_path(root, "spectra", unit.exposure, unit.detector)
    step = Ledger(root).read(unit).steps[EXTRACT.name]
    item = next((one for one in step.objects if root / one.path == path), None)
    if item is None or not item.is_intact(root, checksum=True):
        raise StoreError(f"{path}: found content that differs from its record; wanted that of the run (run --verify)")
    return read_table(path)


def write_spectra(path: Path, table: dict[str, npt.NDArray[Any]], flat: Flat | None, job: SpectraJob) -> None:
    """Write the spectra of one unit: rates, and fluxes if the run has the cube of the detector.

    Fluxes are rate / (sensitivity * flat). Their errors include those of rate, flat and fitted sensitivity; the
    relative error common to all SEDs is the keyword ``COMMON``.
    """
    n = len(table["id"])
    lists = {name: _matrix(table[name]) for name in ("wavelength", "column", "row", "rate", "rate_err", "flag")}
    width = lists["wavelength"].shape[1]
    flux, flux_err = (np.full((n, width), np.nan) for _ in range(2))
    flat_flag, common = np.zeros((n, width), dtype=np.int32), np.nan
    if flat is not None and n:
        flux, flux_err = calibrate(lists, flat)
        flat_flag = flat.flag(lists["column"], lists["row"], lists["wavelength"]).astype(np.int32)
        common = float(np.sqrt(np.median(flat.common_variance)))
    vector = f"{width}E"
    columns = [
        fits.Column("ID", f"{_TEXT}A", array=np.array([str(one) for one in table["id"]], dtype=f"U{_TEXT}")),
        *(fits.Column(name.upper(), "D", unit="deg", array=table[name]) for name in ("ra", "dec")),
        *(fits.Column(name.upper(), "D", unit="pixel", array=table[name]) for name in ("x", "y")),
        *(fits.Column(name.upper(), "E", array=table[name]) for name in ("snr", "chi2", "contaminated")),
        *(fits.Column(name.upper(), "E", unit="pixel", array=table[name]) for name in ("shift", "shift_err")),
        fits.Column("WAVELENGTH", vector, unit="Angstrom", array=lists["wavelength"]),
        fits.Column("FLUX", vector, unit=FLUX_UNITS, array=flux),
        fits.Column("FLUX_ERR", vector, unit=FLUX_UNITS, array=flux_err),
        fits.Column("RATE", vector, unit=RATE_UNITS, array=lists["rate"]),
        fits.Column("RATE_ERR", vector, unit=RATE_UNITS, array=lists["rate_err"]),
        fits.Column("FLAG", f"{width}J", array=np.nan_to_num(lists["flag"]).astype(np.int32)),
        fits.Column("FLAT_FLAG", f"{width}J", array=flat_flag),
    ]
    hdu = fits.BinTableHDU.from_columns(columns, name="SPECTRA")
    primary = fits.PrimaryHDU()
    primary.header["OBSID"] = job.unit.exposure
    primary.header["DETECTOR"] = job.unit.detector
    primary.header["CSDFPRNT"] = job.fingerprint
    primary.header["CSDFLAT"] = "" if flat is None else _flat_identity(flat)
    hdu.header["COMMON"] = (None if np.isnan(common) else common, "relative error of all fluxes together")
    hdu.header["WAVEMED"] = ("vacuum", "medium of the wavelengths")
    _write(path, [primary, hdu])


def calibrate(
    lists: dict[str, npt.NDArray[Any]], flat: Flat
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return fluxes and their errors (n, column) [erg s-1 cm-2 Angstrom-1] from rates.

    Parameters
    ----------
    lists : dict
        ``wavelength, column, row, rate, rate_err`` (n, column).
    flat : Flat
        Flat-field cube and sensitivity of the detector.
    """
    wavelength = np.asarray(lists["wavelength"], dtype=np.float64)
    where = lists["column"], lists["row"], wavelength
    divided = flat.apply(lists["rate"], *where, np.square(lists["rate_err"]))
    sensitivity = np.interp(wavelength, flat.wavelength, flat.sensitivity, left=np.nan, right=np.nan)
    relative = np.interp(
        wavelength, flat.wavelength, flat.covariance[:, 0, 0] / flat.sensitivity**2, left=np.nan, right=np.nan
    )
    flux = divided.counts / sensitivity
    variance = divided.variance / sensitivity**2 + flux**2 * relative
    return flux, np.sqrt(np.where(np.isfinite(variance), variance, np.nan))


def write_calibrations(
    root: Path, plan: Plan, target: Path, detectors: Collection[int], *, overwrite: bool, cubes: bool
) -> tuple[int, list[dict[str, Any]]]:
    """Write ``sensitivity_<detector>.fits`` and, with `cubes`, ``flat_<detector>.fits`` in the format of aXe.

    Detectors without a cube of their present units are skipped.

    Returns
    -------
    written, failures
        Number of detectors, and failures of others. An existing file is kept unless `overwrite` is set.
    """
    written, failures = 0, []
    flats = current_fingerprints(plan, Ledger(root), FLAT, detectors)
    for detector in detectors:
        try:
            flat = read_cube(root, detector, flats.get(detector))
            if flat is None:
                continue
            for name, write in (("sensitivity", _write_sensitivity), ("flat", _write_cube)):
                path = target / f"{name}_{detector}.fits"
                if name == "flat" and not cubes:
                    continue
                if path.exists() and not overwrite:
                    _check_cube(path, flat)
                else:
                    write(path, flat)
            written += 1
        except (CsstdaskError, OSError) as error:
            failures.append({"exposure": "", "detector": detector, "step": "export", "reason": str(error)})
    return written, failures


def _write_sensitivity(path: Path, flat: Flat) -> None:
    units = "(electron/s/Angstrom)/(erg/s/cm2/Angstrom)"
    error = np.sqrt(flat.sensitivity_variance)
    columns = [
        fits.Column("WAVELENGTH", "D", unit="Angstrom", array=flat.wavelength),
        fits.Column("SENSITIVITY", "D", unit=units, array=flat.sensitivity),
        fits.Column("ERROR", "D", unit=units, array=error),
    ]
    primary, hdu = fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="SENSITIVITY")
    primary.header["DETECTOR"] = flat.detector
    primary.header["CSDFLAT"] = _flat_identity(flat)
    hdu.header["WAVEMED"] = ("vacuum", "medium of the wavelengths")
    _write(path, [primary, hdu])


def _write_cube(path: Path, flat: Flat) -> None:
    flat.to_axe(path)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["CSDFLAT"] = _flat_identity(flat)


def _check_cube(path: Path, flat: Flat) -> None:
    """Raise InputError unless a file is an export of the same cube."""
    try:
        found = fits.getheader(path).get("CSDFLAT")
    except (OSError, ValueError) as error:
        raise InputError(path, f"a file that is no FITS ({error})", "no file, or --overwrite to replace it") from None
    if found != _flat_identity(flat):
        raise InputError(path, "an export of another cube, or another file", "no file, or --overwrite to replace it")


def _matrix(lists: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return rows of equal length as a matrix."""
    if not len(lists):
        return np.zeros((0, 1))
    return np.stack([np.asarray(one, dtype=np.float64) for one in lists])


def _flat_identity(flat: Flat) -> str:
    return hashlib.sha256(flat.to_bytes()).hexdigest()


def _check_same(path: Path, job: SpectraJob) -> None:
    """Raise InputError unless a file is an export of the same spectra and cube."""
    flat = read_cube(Path(job.store), job.unit.detector, job.flat)
    wanted = (job.fingerprint, "" if flat is None else _flat_identity(flat))
    try:
        header = fits.getheader(path)
        found = (header.get("CSDFPRNT"), header.get("CSDFLAT"))
    except (OSError, ValueError) as error:
        raise InputError(path, f"a file that is no FITS ({error})", "no file, or --overwrite to replace it") from None
    if found != wanted:
        raise InputError(path, "an export of other spectra, or of another cube", "no file, or --overwrite")


def _write(path: Path, hdus: list[Any]) -> None:
    draft = path.with_name(f".{path.name}.partial")
    fits.HDUList(hdus).writeto(draft, overwrite=True)
    draft.replace(path)
