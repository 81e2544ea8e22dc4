"""Spectral templates: DESI (redrock, R > 10^4, from 3000 A), continued below 3000 A with ATLAS9.

The ATLAS9 models are those of Castelli & Kurucz (2004), at the fitted labels of the templates. All templates of a
spectral class are combinations of the same five basis vectors; this cannot be avoided with these data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.datasets.stellar_population import cells_of, fold_of_cells, scale_labels, split_of_cells
from csstdask.flux.resampling import degradation_matrix
from csstdask.flux.spectral_grids import (
    INPUT_RANGE,
    INPUT_RESOLUTION,
    N_INPUT,
    SED_RESOLUTION,
    SED_WAVELENGTH,
    normalise_sed,
)

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
#: Range of the templates [K]: wider than that of the stars, so that mixtures at its ends have neighbours.
_TEMPLATE_TEFF = (4800.0, 10200.0)
#: Where ATLAS9 ends and DESI begins [A], and where the two are matched.
_BLEND_RANGE = (3030.0, 3060.0)
_MATCH_RANGE = (3060.0, 3200.0)
#: Half-pixel samples beyond each end of the input grid, for shifts.
EDGE_SAMPLES = 6
#: Widths of the line-spread function in the bank: squared FWHM over that of R = 2000.
LSF_WIDTHS = (1.0, 1.6, 2.4)


@dataclass(frozen=True)
class TemplateBank:
    """Templates on the grids of the networks, and their labels.

    Attributes
    ----------
    fine : float32 array (3, n, 2 * 2238 + 12)
        Flux at half-pixel sampling of the input grid, for three widths of the line-spread function.
    sed : float32 array (n, 574)
        SED at R = 200, scaled by the mean flux in 5526-5586 A, as `fine` is.
    teff, logg, mh : array (n,)
        Labels, accurate to 100 K and 0.5 dex.
    split : array (n,) of str
        Split of the template's cell.
    cell : int array (n,)
        Cell of the labels.
    fold : int array (n,)
        Fold of the cell, one of five.
    """

    fine: Float32
    sed: Float32
    teff: Float
    logg: Float
    mh: Float
    split: npt.NDArray[np.str_]
    cell: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sed)

    @property
    def scaled_labels(self) -> Float:
        """(n, 3) Labels in units of the distance between templates that contribute to the same mixture."""
        return scale_labels(self.teff, self.logg, self.mh)


def load_npz(folder: Path, name: str) -> dict[str, npt.NDArray]:
    """Return the arrays of ``folder/name.npz``.

    Raises
    ------
    InputError
        If it is absent or is not such a file.
    """
    path = folder / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError) as error:
        raise InputError(path, f"no readable library ({error})", "a folder of spectra (--data)") from None


def load_templates(folder: Path, *, seed: int = 20261130) -> TemplateBank:
    """Read the DESI templates, continue them with ATLAS9, and bring them onto the grids.

    Parameters
    ----------
    folder : Path
        With ``desi_templates.npz`` and ``ck04.npz``.
    seed : int
        Seed of the split into cells.
    """
    desi, atlas = load_npz(folder, "desi_templates"), load_npz(folder, "ck04")
    wave = float(desi["wave0"]) + float(desi["dwave"]) * np.arange(int(desi["nwave"]))
    n_fine = 2 * N_INPUT + 2 * EDGE_SAMPLES
    fine_wave = INPUT_RANGE[0] * np.exp((np.arange(n_fine) - EDGE_SAMPLES + 1.0) / (4 * INPUT_RESOLUTION))
    matrices = [degradation_matrix(wave, fine_wave, INPUT_RESOLUTION / np.sqrt(width))[0] for width in LSF_WIDTHS]
    to_sed, coverage = degradation_matrix(wave, SED_WAVELENGTH, SED_RESOLUTION)
    labels: dict[str, list[Float]] = {"teff": [], "logg": [], "mh": []}
    fine, seds = [], []
    for name in desi["classes"]:
        keep = (desi[f"teff_{name}"] >= _TEMPLATE_TEFF[0]) & (desi[f"teff_{name}"] <= _TEMPLATE_TEFF[1])
        basis, coefficients = desi[f"basis_{name}"].astype(float), desi[f"coeff_{name}"][keep]
        fine.append(np.stack([coefficients @ (matrix @ basis.T).T for matrix in matrices]))
        seds.append(coefficients @ (to_sed @ basis.T).T)
        for key, values in labels.items():
            values.append(desi[f"{key}_{name}"][keep].astype(float))
    teff, logg, mh = (np.concatenate(values) for values in labels.values())
    sed = np.concatenate(seds)
    sed[:, coverage < 0.98] = np.nan
    sed = _continue_blueward(sed, AtlasGrid.of(atlas), teff, logg, mh)
    level = sed / normalise_sed(sed)
    scale = level[:, :1]
    cell = cells_of(teff, logg, mh)
    return TemplateBank(
        (np.concatenate(fine, axis=1) / scale).astype(np.float32),
        (sed / scale).astype(np.float32),
        teff, logg, mh, split_of_cells(cell, seed), cell, fold_of_cells(cell, seed),
    )  # fmt: skip


@dataclass(frozen=True)
class AtlasGrid:
    """ATLAS9 models on a full grid of (Teff, logg, [M/H]); missing models are replaced by those of the next log g."""

    teff: Float
    logg: Float
    mh: Float
    log_flux: Float
    """(teff, logg, mh, 574)"""

    @classmethod
    def of(cls, arrays: dict[str, npt.NDArray]) -> AtlasGrid:
        """Make the grid from the arrays of ``ck04.npz``, interpolated on the SED pixels (their R is about 200)."""
        axes = [np.unique(arrays[key]).astype(float) for key in ("teff", "logg", "mh")]
        cube = np.full((*map(len, axes), len(SED_WAVELENGTH)), np.nan)
        index = [np.searchsorted(axis, arrays[key]) for axis, key in zip(axes, ("teff", "logg", "mh"), strict=True)]
        log_flux = np.log(np.maximum(arrays["flux"].astype(float), 1e-30))
        cube[tuple(index)] = np.stack([np.interp(SED_WAVELENGTH, arrays["wave"], one) for one in log_flux])
        for j in range(len(axes[1]) - 2, -1, -1):
            cube[:, j] = np.where(np.isnan(cube[:, j]), cube[:, j + 1], cube[:, j])
        for j in range(1, len(axes[1])):
            cube[:, j] = np.where(np.isnan(cube[:, j]), cube[:, j - 1], cube[:, j])
        return cls(axes[0], axes[1], axes[2], cube)

    def sed(self, teff: npt.ArrayLike, logg: npt.ArrayLike, mh: npt.ArrayLike) -> Float:
        """Return SEDs (n, 574) at labels, linear in log flux between models; labels outside are clipped."""
        out: Float | float = 0.0
        axes = (self.teff, self.logg, self.mh)
        positions = []
        for axis, values in zip(axes, (teff, logg, mh), strict=True):
            at = np.clip(np.atleast_1d(np.asarray(values, dtype=float)), axis[0], axis[-1])
            low = np.clip(np.searchsorted(axis, at, "right") - 1, 0, len(axis) - 2)
            positions.append((low, (at - axis[low]) / (axis[low + 1] - axis[low])))
        for corner in np.ndindex(2, 2, 2):
            index = tuple(low + step for (low, _), step in zip(positions, corner, strict=True))
            weight = np.prod([s if step else 1 - s for (_, s), step in zip(positions, corner, strict=True)], axis=0)
            out = out + weight[:, None] * self.log_flux[index]
        return np.exp(np.asarray(out))


def _continue_blueward(sed: Float, atlas: AtlasGrid, teff: Float, logg: Float, mh: Float) -> Float:
    """Continue SEDs below 3030 A with ATLAS9, scaled to their level above and blended linearly."""
    model = atlas.sed(teff, logg, mh)
    match = (_MATCH_RANGE[0] <= SED_WAVELENGTH) & (_MATCH_RANGE[1] >= SED_WAVELENGTH)
    model *= sed[:, match].mean(axis=1, keepdims=True) / model[:, match].mean(axis=1, keepdims=True)
    share = np.clip((SED_WAVELENGTH - _BLEND_RANGE[0]) / (_BLEND_RANGE[1] - _BLEND_RANGE[0]), 0, 1)
    return np.where(share > 0, share * np.nan_to_num(sed), 0.0) + (1 - share) * model
