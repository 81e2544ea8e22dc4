"""Write labels from repeated exposures into a campaign: ``csstdask label repeats``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header
from astropy.wcs import WCS

from csstdask.arrays.background import estimate_background
from csstdask.arrays.median import fill_masked
from csstdask.core.errors import InputError
from csstdask.instrument import celestial_wcs, pixel_of
from csstdask.store.campaign import Campaign
from csstdask.store.campaign_pixels import write_unit_pixels
from csstdask.store.campaign_truth import add_truth, label_identity, record_label
from csstdask.store.electrons import electrons_per_data_unit, read_electrons
from csstdask.store.unit_metadata import read_header
from csstdask.training.labels.dithered_exposures import MIN_EXPOSURES, Exposure, Label, label_exposures

#: Raised whenever the same exposures would get other labels.
LABELS_VERSION = 1
#: Flags of light that is neither sky nor cosmic ray.
PASSING_FLAGS = ("satellite_trail", "ghost", "scattered_light")


@dataclass(frozen=True)
class Field:
    """Exposures of one field on one detector."""

    detector: int
    """Detector id."""
    column: int
    """Column of the detector in the arrays of the campaign."""
    exposures: tuple[str, ...]
    """Names of the exposures."""
    rows: tuple[int, ...]
    """Rows of the exposures in the arrays of the campaign."""
    coordinates: tuple[WCS, ...]
    """Celestial coordinates in the headers of the exposures."""


def label_repeats(
    path: Path, *, sigma: float = 5.0, grow: float = 3.0, on_progress: Callable[[str], None] | None = None
) -> int:
    """Write labels into a campaign: ``labels/sci`` and ``labels/cr``.

    Labels made from the same exposures with the same thresholds are kept.

    Parameters
    ----------
    path : Path
        Path of the campaign.
    sigma, grow : float
        See `csstdask.training.labels.dithered_exposures.label_exposures`.
    on_progress : callable, optional
        Receives one line per field and detector.

    Returns
    -------
    int
        Number of labelled units.

    Raises
    ------
    InputError
        If the campaign has no field with three exposures.
    """
    if not sigma >= grow > 0:
        raise InputError("sigma, grow", f"{sigma:g}, {grow:g}", "sigma at least grow, both above 0")
    campaign = Campaign(path)
    fields = find_fields(campaign)
    add_truth(path, campaign.units, "labels")
    for number, field in enumerate(fields):
        identity = _identity(campaign, field, sigma, grow)
        line = f"{number + 1} of {len(fields)}: detector {field.detector}, {len(field.exposures)} exposures"
        if all(label_identity(path, row, field.column) == identity for row in field.rows):
            line += ", already labelled"
        else:
            line += f", {_label_field(campaign, field, sigma, grow, identity):.2%} of the pixels hit"
        if on_progress is not None:
            on_progress(line)
    return sum(len(field.rows) for field in fields)


def find_fields(campaign: Campaign) -> list[Field]:
    """Return the fields of a campaign that have enough exposures.

    Exposures of one kind and band belong to a field if their centres are within half a frame of that of its first one.

    Raises
    ------
    InputError
        If no field has `MIN_EXPOSURES` exposures.
    """
    fields = []
    for column, detector in enumerate(campaign.detectors):
        for group in _groups(campaign, column):
            if len(group) >= MIN_EXPOSURES:
                rows, coordinates = zip(*group, strict=True)
                names = tuple(campaign.exposures[row] for row in rows)
                fields.append(Field(detector, column, names, rows, coordinates))
    if not fields:
        wanted = f"{MIN_EXPOSURES} exposures of one field on one detector, with positions in their headers"
        raise InputError(campaign.path, "no repeats", wanted)
    return fields


def _groups(campaign: Campaign, column: int) -> list[list[tuple[int, WCS]]]:
    """Return the exposures (row, coordinates) of a detector by kind, band and field."""
    groups: dict[tuple[str, str], list[list[tuple[int, WCS]]]] = {}
    for row in np.flatnonzero(campaign.present[:, column]):
        metadata = campaign.metadata(campaign.exposures[row], campaign.detectors[column])
        coordinates = _read_coordinates(campaign.path, int(row), column)
        if metadata.kind not in ("imaging", "slitless") or coordinates is None:
            continue
        fields = groups.setdefault((metadata.kind, metadata.band), [])
        for field in fields:
            if is_same_field(field[0][1], coordinates, campaign.shape):
                field.append((int(row), coordinates))
                break
        else:
            fields.append([(int(row), coordinates)])
    return [field for fields in groups.values() for field in fields]


def _read_coordinates(path: Path, row: int, column: int) -> WCS | None:
    text = read_header(path, row, column)
    return celestial_wcs(Header.fromstring(text, sep="\n")) if text else None


def is_same_field(first: WCS, other: WCS, shape: tuple[int, int]) -> bool:
    """Return whether the centres of two frames of a shape (y, x) are less than half a frame apart."""
    x_centre, y_centre = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    found = pixel_of(first, other.pixel_to_world(x_centre, y_centre), shape)
    return found is not None and abs(found[0] - x_centre) < shape[1] / 2 and abs(found[1] - y_centre) < shape[0] / 2


def read_exposure(campaign: Campaign, exposure: str, detector: int, coordinates: WCS) -> Exposure:
    """Read one exposure, and measure its sky.

    Raises
    ------
    InputError
        If it has no exposure time or no usable pixel.
    """
    metadata = campaign.metadata(exposure, detector)
    if not metadata.exptime > 0:
        raise InputError(f"{campaign.path}: {exposure}/{detector}", f"exptime {metadata.exptime}", "seconds")
    unit, flags = read_electrons(campaign, metadata), campaign.instrument.flags
    data, ignore = unit.data / np.float32(metadata.exptime), unit.ignore
    passing = (unit.flag & flags.mask(*(name for name in PASSING_FLAGS if name in flags.bits))) != 0
    mesh = estimate_background(data, ignore)
    sky, noise = mesh.background_at(), mesh.noise_at()
    if not np.isfinite(noise).all():
        raise InputError(f"{campaign.path}: {exposure}/{detector}", "no usable pixel", "a frame")
    light = fill_masked((data - sky).astype(np.float32), ignore, lambda: np.zeros_like(sky))
    return Exposure(light, sky, noise, ignore, passing, coordinates, metadata.exptime)


def _identity(campaign: Campaign, field: Field, sigma: float, grow: float) -> str:
    """Return the SHA-256 of what decides the labels of a field."""
    metadata = [campaign.metadata(name, field.detector) for name in field.exposures]
    settings = [LABELS_VERSION, sigma, grow, *[[one.exposure, one.digest] for one in metadata]]
    return sha256(json.dumps(settings).encode()).hexdigest()


def _label_field(campaign: Campaign, field: Field, sigma: float, grow: float, identity: str) -> float:
    """Label the exposures of a field; return the fraction of hit pixels."""
    exposures = [
        read_exposure(campaign, name, field.detector, coordinates)
        for name, coordinates in zip(field.exposures, field.coordinates, strict=True)
    ]
    labels = label_exposures(exposures, sigma=sigma, grow=grow)
    fractions = []
    for name, row, made in zip(field.exposures, field.rows, labels, strict=True):
        metadata = campaign.metadata(name, field.detector)
        unit = np.float32(metadata.exptime) / electrons_per_data_unit(campaign, metadata)
        clean = _with_noise(made, name, field.detector) * unit
        record_label(campaign.path, row, field.column, "")  # an incomplete label has no identity
        write_unit_pixels(campaign.path, row, field.column, "labels/sci", clean)
        write_unit_pixels(campaign.path, row, field.column, "labels/cr", made.charge)
        record_label(campaign.path, row, field.column, identity)
        fractions.append(float((made.charge > 0).mean()))
    return float(np.mean(fractions))


def _with_noise(made: Label, exposure: str, detector: int) -> npt.NDArray[np.float32]:
    """Return the frame without cosmic rays, with noise in repaired pixels: else their smoothness would reveal them.

    The noise is a function of exposure and detector.
    """
    seed = sha256(f"{LABELS_VERSION} {exposure} {detector}".encode()).digest()
    noise = np.random.default_rng(list(seed)).standard_normal(made.clean.shape, dtype=np.float32)
    return made.clean + np.where(made.repaired, noise * made.error, 0)
