"""Tables of SEDs: what ``csstdask sed`` writes and ``csstdask run --spectra`` reads.

A Parquet file with one row per star: ``id`` (string), ``mean`` and ``sigma`` (574 float32, in units of the mean flux in
5526-5586 A), ``modes`` (rank x 574 float32, flattened) and ``out_of_domain`` (bool). The covariance between
wavelengths is ``modes.T @ modes + diag(sigma^2 - sum(modes^2))``. The wavelengths [A, vacuum] are in the metadata of
the schema.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from csstdask.durable import write_atomic
from csstdask.errors import InputError

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

_WAVELENGTH = b"csstdask.wavelength"
_COLUMNS = ("id", "mean", "sigma", "modes", "out_of_domain")


@dataclass(frozen=True)
class SedTable:
    """SEDs of n stars.

    Attributes
    ----------
    id : array (n,) of str
    wavelength : float64 array (wave,)
        Vacuum [A].
    mean, sigma : float32 array (n, wave)
        In units of the mean flux in 5526-5586 A.
    modes : float32 array (n, rank, wave)
        Correlated part of the errors.
    out_of_domain : bool array (n,)
    """

    id: npt.NDArray[np.str_]
    wavelength: Float
    mean: Float32
    sigma: Float32
    modes: Float32
    out_of_domain: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.id)

    def covariance(self, i: int) -> Float:
        """Return the covariance of the i-th SED (wave, wave)."""
        return covariance(self.sigma[i], self.modes[i])


def covariance(sigma: npt.NDArray, modes: npt.NDArray) -> Float:
    """Return ``modes.T @ modes`` with ``sigma^2`` on the diagonal (wave, wave)."""
    factors = np.asarray(modes, dtype=float)
    out = factors.T @ factors
    np.fill_diagonal(out, np.asarray(sigma, dtype=float) ** 2)
    return np.asarray(out)


def write_seds(path: Path, table: SedTable) -> None:
    """Write a table of SEDs; the file appears whole or not at all."""
    n = len(table)
    columns = [
        pa.array([str(one) for one in table.id], pa.string()),
        *(
            pa.array(list(np.asarray(values, dtype=np.float32).reshape(n, -1)), pa.list_(pa.float32()))
            for values in (table.mean, table.sigma, table.modes)
        ),
        pa.array(table.out_of_domain.tolist(), pa.bool_()),
    ]
    out = pa.table(dict(zip(_COLUMNS, columns, strict=True)))
    out = out.replace_schema_metadata({_WAVELENGTH: json.dumps([float(one) for one in table.wavelength]).encode()})
    stream = io.BytesIO()
    pq.write_table(out, stream)
    write_atomic(path, stream.getvalue())


def read_seds(path: Path) -> SedTable:
    """Read a table of SEDs.

    Raises
    ------
    InputError
        If the file is no such table.
    """
    wanted = "a table that `csstdask sed` wrote"
    try:
        found = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(path, f"no readable Parquet ({error})", wanted) from None
    if absent := set(_COLUMNS) - set(found.column_names):
        raise InputError(path, f"a table without {', '.join(sorted(absent))}", wanted)
    metadata = found.schema.metadata or {}
    if _WAVELENGTH not in metadata:
        raise InputError(path, "a table without wavelengths in its schema", wanted)
    wavelength = np.array(json.loads(metadata[_WAVELENGTH]), dtype=float)
    n, n_wave = len(found), len(wavelength)
    mean, sigma = (_rows(path, found[name], n, n_wave, wanted) for name in ("mean", "sigma"))
    modes = _rows(path, found["modes"], n, None, wanted)
    if modes.shape[1] % n_wave:
        raise InputError(path, f"modes of length {modes.shape[1]}", f"a multiple of {n_wave}")
    return SedTable(
        np.array(found["id"].to_pylist(), dtype=str), wavelength, mean, sigma, modes.reshape(n, -1, n_wave),
        np.array(found["out_of_domain"].to_pylist(), dtype=bool),
    )  # fmt: skip


def _rows(path: Path, column: pa.ChunkedArray, n: int, width: int | None, wanted: str) -> Float32:
    values = column.combine_chunks()
    flat = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    expected = flat.size // max(n, 1) if width is None else width
    if values.null_count or flat.size != n * expected or not (np.diff(values.offsets.to_numpy()) == expected).all():
        raise InputError(path, "rows of different lengths", wanted)
    return np.asarray(flat.reshape(n, expected))


def join(ids: Sequence[str], wavelength: Float, parts: Sequence[SedTable]) -> SedTable:
    """Return several tables as one, with other ids."""
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("mean", "sigma", "modes", "out_of_domain")
    }
    return SedTable(np.array(list(ids), dtype=str), wavelength, **arrays)
