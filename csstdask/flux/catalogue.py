"""Read the catalogue of stars of slitless frames: positions, proper motions and fluxes in a Parquet table."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csstdask.core.constants import CATALOGUE_EPOCH, DAYS_PER_YEAR, J2000, SECONDS_PER_DAY
from csstdask.core.errors import InputError

Float = npt.NDArray[np.float64]

J2000_MICROSECONDS = int(J2000.astype(np.int64))
"""Epoch J2000.0 in microseconds since 1970."""
JULIAN_YEAR_MICROSECONDS = DAYS_PER_YEAR * SECONDS_PER_DAY * 1e6
_POSITION = ("id", "ra", "dec")
_FLUX = ("flux_5556", "flux_5556_err")
_MAGNITUDE = ("mag", "mag_err", "mag_band")
_EXPECTED_COLUMNS = "columns id, ra, dec [deg] and flux_5556, flux_5556_err [erg/s/cm2/A], or mag, mag_err, mag_band"


@dataclass(frozen=True)
class StarCatalogue:
    """Catalogue stars, as columns of n values."""

    id: npt.NDArray[np.object_]
    """Names."""
    ra: Float
    """Right ascension at `epoch`, ICRS [deg]."""
    dec: Float
    """Declination [deg]."""
    pmra: Float
    """Proper motion in right ascension times cos(dec) [mas/yr]; 0 where unknown."""
    pmdec: Float
    """Proper motion in declination [mas/yr]; 0 where unknown."""
    epoch: Float
    """Epoch of the positions [Julian year]."""
    flux_5556: Float
    """Mean flux density in 5526-5586 A [erg/s/cm2/A]; NaN where the catalogue has only a magnitude."""
    flux_5556_err: Float
    """1-sigma error of `flux_5556` [erg/s/cm2/A]."""
    mag: Float
    """AB magnitude; NaN where not given."""
    mag_err: Float
    """1-sigma error of `mag`."""
    mag_band: npt.NDArray[np.object_]
    """Band of the magnitude, one of the instrument's bands."""
    ebv: Float
    """Interstellar reddening E(B - V) [mag], 0 where the catalogue has no such column; NaN where unknown."""
    ebv_err: Float
    """1-sigma error of `ebv` [mag]."""

    def __len__(self) -> int:
        return len(self.id)

    def select(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> StarCatalogue:
        """Select stars by mask or index."""
        return StarCatalogue(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def positions_at(self, time: int | None) -> tuple[Float, Float]:
        """Return right ascension and declination [deg] at a time, with proper motion.

        Parameters
        ----------
        time : int, optional
            Time in microseconds since 1970; None: positions at the epoch of the catalogue.
        """
        if time is None:
            return self.ra, self.dec
        years = (time - J2000_MICROSECONDS) / JULIAN_YEAR_MICROSECONDS + 2000.0 - self.epoch
        dec = self.dec + self.pmdec * years / 3.6e6
        cosine = np.maximum(np.cos(np.radians(self.dec)), 1e-6)
        return (self.ra + self.pmra * years / (3.6e6 * cosine)) % 360, dec


def check_catalogue(path: Path, bands: Container[str] = ()) -> None:
    """Raise InputError unless a file is a star catalogue; only its schema and the names of its bands are read.

    Parameters
    ----------
    path : Path
        Parquet file.
    bands : container of str
        Bands whose magnitudes can be used; empty: any.
    """
    try:
        names = set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise InputError(path, f"no readable Parquet table ({type(error).__name__})", _EXPECTED_COLUMNS) from None
    absent = [name for name in _POSITION if name not in names]
    if not names.issuperset(_FLUX) and not names.issuperset(_MAGNITUDE):
        absent.append("flux_5556 with flux_5556_err, or mag with mag_err and mag_band")
    if absent:
        raise InputError(path, f"no column {', '.join(absent)}", _EXPECTED_COLUMNS)
    if bands and not names.issuperset(_FLUX):
        found = pc.unique(pq.read_table(path, columns=["mag_band"])["mag_band"]).to_pylist()
        unknown = sorted(str(band) for band in found if band not in bands)
        if unknown:
            raise InputError(path, f"mag_band {', '.join(unknown)}", "filters of the camera, or flux_5556")


def read_catalogue(path: Path) -> StarCatalogue:
    """Read a star catalogue.

    Parameters
    ----------
    path : Path
        Parquet file with ``id, ra, dec`` and ``flux_5556, flux_5556_err`` or ``mag, mag_err, mag_band``;
        ``pmra, pmdec`` [mas/yr], ``ref_epoch`` [Julian year] and ``ebv, ebv_err`` [mag] are optional.

    Raises
    ------
    InputError
        If a column is missing, an id occurs twice, or a star has no position.
    """
    check_catalogue(path)
    table = pq.read_table(path)
    n = table.num_rows

    def column(name: str, default: float) -> Float:
        if name not in table.column_names:
            return np.full(n, default)
        values = table[name].cast(pa.float64()).to_numpy(zero_copy_only=False).copy()
        if not np.isnan(default):
            values[~np.isfinite(values)] = default
        return np.asarray(values)

    def text(name: str) -> npt.NDArray[np.object_]:
        if name not in table.column_names:
            return np.full(n, "", dtype=object)
        return np.array([str(value) for value in table[name].to_pylist()], dtype=object)

    stars = StarCatalogue(
        id=text("id"),
        ra=column("ra", np.nan),
        dec=column("dec", np.nan),
        pmra=column("pmra", 0.0),
        pmdec=column("pmdec", 0.0),
        epoch=column("ref_epoch", CATALOGUE_EPOCH),
        flux_5556=column("flux_5556", np.nan),
        flux_5556_err=column("flux_5556_err", np.nan),
        mag=column("mag", np.nan),
        mag_err=column("mag_err", np.nan),
        mag_band=text("mag_band"),
        ebv=column("ebv", np.nan if "ebv" in table.column_names else 0.0),
        ebv_err=column("ebv_err", 0.0),
    )
    names, counts = np.unique(stars.id.astype(str), return_counts=True)
    if (counts > 1).any():
        twice = ", ".join(names[counts > 1][:3])
        raise InputError(path, f"duplicate ids ({twice})", "each star once")
    wrong = ~(np.isfinite(stars.ra) & np.isfinite(stars.dec) & (np.abs(stars.dec) <= 90))
    if wrong.any():
        first = stars.id[wrong][0]
        raise InputError(path, f"{int(wrong.sum())} stars without a position (first: {first})", "ra, dec [deg]")
    return stars
