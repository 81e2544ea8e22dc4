"""A unit of FITS files: the HDUs of its planes and everything needed to read them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from csstdask.core.atomic_io import sha256_file
from csstdask.core.errors import InputError
from csstdask.store.unit_metadata import UnitMetadata

NUMERICS_VERSION = 1
"""Raised whenever the same files would give different planes."""


@dataclass(frozen=True)
class PlaneSource:
    """File and HDU of one plane."""

    path: str
    hdu: int


@dataclass(frozen=True)
class UnitSource:
    """One unit of a set of FITS files, with everything needed to read its pixels."""

    exposure: str
    detector: int
    kind: str
    band: str
    units: str
    shape: tuple[int, int]
    """Shape (y, x) after trimming."""
    exptime: float
    """Exposure time [s]."""
    time: int
    """Start of the exposure in microseconds since 1970, UTC."""
    gain: float
    """Gain [e-/adu]."""
    read_noise: float
    """Read noise [e-]."""
    sci: PlaneSource
    weight: PlaneSource | None
    weight_kind: str
    """Meaning of the weight plane: ``inverse_variance``, ``variance`` or ``error``."""
    flag: PlaneSource | None
    trim: str | None = None
    """FITS section that is kept."""
    overscan: str | None = None
    """FITS section of the overscan."""
    bias_level: float = 0.0
    """Pedestal of the pixels, if there is no overscan [units of the pixels]."""
    saturation: float | None = None
    """Full well [e-]."""
    adc_limit: float | None = None
    """Saturation of the converter [adu]."""
    flag_rules: str = ""
    """JSON: rules of the camera that convert flags to bits."""
    bad_pixel_map: str | None = None
    """FITS file with the bad pixels."""
    scale: float = 1.0
    """Factor from pixels of the file to pixels of the campaign."""
    file_units: str = ""
    """Units stated in the file."""
    exposure_id: str = ""
    """Exposure id as stated in the file; `exposure` is a valid folder name."""
    planes: str = ""
    """JSON: HDU of each plane, and what decided it."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how the headers were interpreted."""

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files on which the pixels depend, the file of the science plane first."""
        planes = [plane.path for plane in (self.sci, self.weight, self.flag) if plane is not None]
        return tuple(dict.fromkeys(planes + ([self.bad_pixel_map] if self.bad_pixel_map else [])))

    @property
    def name(self) -> str:
        """Return file and HDU of the science plane, for messages."""
        return f"{self.sci.path}[{self.sci.hdu}]"

    def stat(self) -> str:
        """Return names, sizes and modification times of the files (JSON), a quick test for changes."""
        states = [(Path(path).name, Path(path).stat()) for path in self.files]
        return json.dumps([[name, state.st_size, state.st_mtime_ns] for name, state in states])

    def digest(self) -> str:
        """Return the identity of the unit: SHA-256 of its files, HDUs and reading rules."""
        planes = [plane and plane.hdu for plane in (self.sci, self.weight, self.flag)]
        values = [self.detector, self.trim, self.overscan, self.weight_kind, self.gain, self.read_noise]
        values += [self.bias_level, self.saturation, self.adc_limit, self.units, self.flag_rules]
        values += [self.scale] if self.scale != 1 else []
        parts = [NUMERICS_VERSION, [sha256_file(Path(path)) for path in self.files], planes, values]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def metadata(self, digest: str, stat: str) -> UnitMetadata:
        """Return the metadata that a campaign records of this unit."""
        shared = ("exposure", "detector", "kind", "band", "exptime", "time", "gain", "read_noise")
        return UnitMetadata(
            **{name: getattr(self, name) for name in shared},
            digest=digest,
            source=" ".join(Path(path).name for path in self.files),
            source_stat=stat,
            source_folder=str(Path(self.sci.path).parent),
            exposure_id=self.exposure_id,
            planes=self.planes,
            file_units=self.file_units,
            unit_scale=self.scale,
        )


@dataclass
class FileScan:
    """Units of a file, and the chips that were refused or left out."""

    units: list[UnitSource] = field(default_factory=list)
    problems: list[InputError] = field(default_factory=list)
    """One error for each chip that cannot be used."""
    ignored: list[str] = field(default_factory=list)
    """Chips that the camera description leaves out (`ignored_chips`)."""
