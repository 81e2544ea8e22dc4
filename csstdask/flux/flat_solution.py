"""Coefficients of a flat after some passes of its robust fit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntFlag

import numpy as np
import numpy.typing as npt

from csstdask.core.packed_arrays import get_array, pack, unpack
from csstdask.flux.flat_kernels import HUBER, NOMINAL, TUKEY

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

PASSES = (NOMINAL, HUBER, HUBER, TUKEY, TUKEY, TUKEY)
"""Kind of robust weights of each pass."""
MAX_NODES = 24
"""Largest number of wavelengths between which covariances are kept."""


class FlatFlag(IntFlag):
    """Problems of a flat at a wavelength or a position."""

    LOWER_DEGREE = 1
    """Too few stars for the requested degree: a lower one was fitted."""
    NO_STARS = 2
    """No usable star: sensitivity NaN, flat 1, variance inf."""
    FEW_KEPT = 4
    """Robust weights would have left too few stars: the previous iteration was kept."""
    OUTSIDE_WAVELENGTH = 8
    """Wavelength out of range: flat 1, variance inf."""
    OUTSIDE_FRAME = 16
    """Position off the detector: flat 1, variance inf."""
    NO_VARIANCE = 32
    """Read from a file without errors: variance 0."""


@dataclass(frozen=True)
class FlatSolution:
    """Coefficients after some passes; they decide the weights of the next pass."""

    coefficients: Float
    """(wave, p) c_k; NaN in term 0 without usable stars."""
    covariance: Float
    """(wave, p, p) Covariance of c."""
    nodes: Int
    """(node,) Indices of the wavelengths between which covariances are kept."""
    node_covariance: Float
    """(node, node, p, p) Covariance of c between them; (0, 0, p, p) before the last pass."""
    degree: Int
    """(wave,) Fitted degree; -1 without usable stars."""
    flag: Int
    """(wave,) `FlatFlag`."""
    scale: Float
    """(wave,) Scatter of the residuals in quoted errors."""
    cutoff: Float
    """(wave,) Residual over scale at which the Tukey weights of the next pass are 0."""
    count: Int
    """(wave,) Number of usable samples."""
    kept: Int
    """(wave,) Number of samples with a positive weight."""
    n_passes: int
    """Number of finished passes."""

    @property
    def finished(self) -> bool:
        """Whether all passes are done."""
        return self.n_passes >= len(PASSES)

    def to_bytes(self) -> bytes:
        """Serialise the solution as safetensors."""
        arrays = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "n_passes"}
        return pack("flat solution", arrays, {"n_passes": self.n_passes})

    @classmethod
    def from_bytes(cls, data: bytes, source: object = "flat solution") -> FlatSolution:
        """Read the bytes of `to_bytes`.

        Raises
        ------
        InputError
            If they are damaged or of another kind.
        """
        arrays, metadata = unpack("flat solution", data, source)
        names = [one.name for one in fields(cls) if one.name != "n_passes"]
        return cls(**{name: get_array(arrays, name, source) for name in names}, n_passes=metadata["n_passes"])


def covariance_nodes(n_wave: int) -> Int:
    """Return the indices of the wavelengths between which covariances are kept: evenly spread, at most `MAX_NODES`.

    Examples
    --------
    >>> covariance_nodes(3).tolist(), len(covariance_nodes(200))
    ([0, 1, 2], 24)
    """
    return np.unique(np.linspace(0, n_wave - 1, min(MAX_NODES, n_wave)).round().astype(np.int64))
