"""Ratios of observed to predicted counts of stars: the partial of a flat-field cube."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.core.packed_arrays import get_array, pack, unpack

Array = npt.NDArray[Any]

KIND = "star ratios"


@dataclass(frozen=True)
class StarRatios:
    """Ratios of observed to predicted counts of n star images on one detector and one wavelength grid.

    The same star may occur several times, in different exposures. Errors of a prediction are relative: a part that is
    independent between wavelengths (`variance_sed`), a part common to all wavelengths of a star (`grey_error`), and
    modes that vary with wavelength (`modes`). The variance of a ratio is variance_observed + ratio^2 (variance_sed +
    grey_error^2 + sum of modes^2).
    """

    wavelength: Array
    """(wave,) Ascending wavelengths, float64 [Angstrom]."""
    star: Array
    """(n,) Ids of the catalogue, int64 or str."""
    x: Array
    """(n, wave) Column of each wavelength on the detector, zero-based [pixel]."""
    y: Array
    """(n, wave) Row of each wavelength [pixel]."""
    ratio: Array
    """(n, wave) Observed over predicted counts; NaN = not measured."""
    variance_observed: Array
    """(n, wave) Variance of the ratio from the observation alone."""
    variance_sed: Array
    """(n, wave) Relative variance of the prediction, independent between wavelengths."""
    grey_error: Array
    """(n,) Relative 1-sigma error of a star's normalisation."""
    modes: Array
    """(n, rank, wave) Relative 1-sigma errors of the prediction, each fully correlated over wavelength."""
    shape: tuple[int, int]
    """(y, x) of the detector."""
    detector: int | None = None
    """Detector id."""

    def __post_init__(self) -> None:
        n, wave = len(self.star), len(self.wavelength)
        names = ("x", "y", "ratio", "variance_observed", "variance_sed")
        wanted: dict[str, tuple[int, ...]] = dict.fromkeys(names, (n, wave))
        wanted |= {"grey_error": (n,), "modes": (n, self.modes.shape[1] if self.modes.ndim == 3 else 0, wave)}
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise InputError(f"star ratios, {name}", f"shape {getattr(self, name).shape}", f"{shape}")
        if np.any(np.diff(self.wavelength) <= 0):
            raise InputError("star ratios, wavelength", "wavelengths that do not ascend", "ascending ones [Angstrom]")

    def __len__(self) -> int:
        return len(self.star)

    def to_bytes(self) -> bytes:
        """Serialise as safetensors, arrays over wavelength in float32; equal content gives equal bytes."""
        single = ("x", "y", "ratio", "variance_observed", "variance_sed", "modes", "grey_error")
        arrays = {name: np.asarray(getattr(self, name), dtype=np.float32) for name in single}
        arrays["wavelength"] = np.asarray(self.wavelength, dtype=np.float64)
        metadata: dict[str, Any] = {"detector": self.detector, "shape": list(self.shape)}
        if self.star.dtype.kind in "iu":
            arrays["star"] = self.star.astype(np.int64)
        else:
            metadata["star"] = [str(one) for one in self.star]
        return pack(KIND, arrays, metadata)

    @classmethod
    def from_bytes(cls, data: bytes, source: object = "star ratios") -> StarRatios:
        """Read the bytes of `to_bytes`.

        Parameters
        ----------
        data : bytes
            Content of the file.
        source : object
            Name of the file in error messages.

        Raises
        ------
        InputError
            If the content is damaged or of another kind.
        """
        arrays, metadata = unpack(KIND, data, source)
        star = np.array(metadata["star"], dtype=str) if "star" in metadata else get_array(arrays, "star", source)
        names = [one.name for one in fields(cls) if one.name not in ("star", "shape", "detector")]
        rows, columns = metadata["shape"]
        parts = {name: get_array(arrays, name, source) for name in names}
        return cls(**parts, star=star, shape=(rows, columns), detector=metadata["detector"])

    @classmethod
    def concatenate(cls, parts: Sequence[StarRatios]) -> StarRatios:
        """Join the ratios of several exposures of a detector.

        Raises
        ------
        InputError
            If there is no part, or parts differ in wavelength grid, detector or shape.
        """
        if not parts:
            raise InputError("star ratios", "no part", "at least one")
        first = parts[0]
        for index, one in enumerate(parts):
            if not np.array_equal(one.wavelength, first.wavelength):
                raise InputError(
                    f"star ratios, part {index}", "another wavelength grid than part 0", "one grid per band"
                )
            if (one.detector, one.shape) != (first.detector, first.shape):
                found = f"detector {one.detector} of shape {one.shape}"
                raise InputError(f"star ratios, part {index}", found, f"detector {first.detector}, {first.shape}")
        rank = max(one.modes.shape[1] for one in parts)
        joined = {
            name: np.concatenate([getattr(one, name) for one in parts])
            for name in ("star", "x", "y", "ratio", "variance_observed", "variance_sed", "grey_error")
        }
        padded = [np.pad(one.modes, ((0, 0), (0, rank - one.modes.shape[1]), (0, 0))) for one in parts]
        return cls(first.wavelength, **joined, modes=np.concatenate(padded), shape=first.shape, detector=first.detector)


def uncorrelated_ratios(
    wavelength: npt.ArrayLike,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    ratio: npt.ArrayLike,
    variance: npt.ArrayLike,
    shape: tuple[int, int],
) -> StarRatios:
    """Return ratios whose errors are all independent between stars and wavelengths.

    Parameters
    ----------
    wavelength : array-like (wave,)
        Ascending wavelengths [Angstrom].
    x, y : array-like (star,) or (star, wave)
        Zero-based positions [pixel].
    ratio, variance : array-like (star, wave)
        Observed over predicted counts, and their variances. Samples that are not finite, or whose variance is not
        positive, are ignored by the fit.
    shape : (int, int)
        (y, x) of the detector.

    Raises
    ------
    InputError
        If shapes do not agree.
    """
    wave = np.atleast_1d(np.asarray(wavelength, dtype=np.float64))
    ratio = np.asarray(ratio, dtype=np.float64)
    if ratio.ndim != 2 or ratio.shape[1] != len(wave):
        raise InputError("ratio", f"shape {ratio.shape}", f"(star, wave), with {len(wave)} wavelengths")

    def broadcast(values: npt.ArrayLike, name: str) -> Array:
        values = np.asarray(values, dtype=np.float64)
        if values.ndim == 1 and name != "weight":
            values = values[:, None]
        try:
            return np.ascontiguousarray(np.broadcast_to(values, ratio.shape))
        except ValueError:
            raise InputError(name, f"shape {values.shape}", f"(star,) or (star, wave) = {ratio.shape}") from None

    n = len(ratio)
    return StarRatios(
        wave, np.arange(n), broadcast(x, "x"), broadcast(y, "y"), ratio, broadcast(variance, "weight"),
        np.zeros(ratio.shape), np.zeros(n), np.zeros((n, 0, len(wave))), shape,
    )  # fmt: skip
