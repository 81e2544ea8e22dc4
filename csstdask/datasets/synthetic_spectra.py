"""Synthetic stars of known SED: DESI templates, mixed between their nodes, with ATLAS9 below 3000 A.

The published training set (BOSZ) is not at hand. The star templates of DESI (redrock, R > 10^4, from 3000 A) take its
place; below 3000 A they are continued with the ATLAS9 models of Castelli & Kurucz (2004) at their fitted labels.
The templates lie on coarse nodes (500-1000 K), so that stars are weighted means of several neighbours.

Whole cells of (Teff, logg, [M/H]) are held out, never random stars: training mixtures use no template of a cell that
belongs to validation, calibration or test. The five basis vectors of each spectral class are common to all
templates; this cannot be avoided with these data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from csstdask.core.errors import InputError
from csstdask.flux.extinction import log_attenuation
from csstdask.flux.resampling import degradation_matrix
from csstdask.flux.spectral_grids import (
    INPUT_RANGE,
    INPUT_RESOLUTION,
    INPUT_WAVELENGTH,
    LIGHT_SPEED,
    N_INPUT,
    SED_RESOLUTION,
    SED_WAVELENGTH,
    normalise_sed,
)

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Split = Literal["train", "validation", "calibration", "test"]

#: Effective temperatures of the stars, as published [K].
TEFF_RANGE = (5000.0, 9750.0)
#: Nodes of the templates, by which cells are made: [K], [dex], [dex].
_TEFF_NODES = np.array([5000, 5500, 6000, 6500, 7000, 7500, 8000, 9000, 10000], dtype=float)
_LOGG_NODES = np.arange(6, dtype=float)
_MH_NODES = np.array([-2.5, -2, -1.5, -1, -0.5, 0, 0.5])
#: Share of the cells that each split has.
SHARES: dict[Split, float] = {"train": 0.55, "validation": 0.09, "calibration": 0.18, "test": 0.18}
#: Cells with a smaller share of the population always belong to training: at the edges nothing could replace them.
_LEAST_POPULATED = 8e-4
#: Folds of cells, of which each member of an ensemble leaves one out.
FOLDS = 5
#: Templates beyond the range of the stars that mixtures at its ends may use [K].
_TEMPLATE_TEFF = (4800.0, 10200.0)
#: Scales of the distance between templates [K at 6000 K], [dex], [dex].
_SCALES = (330.0, 0.7, 0.35)
#: Templates in a mixture, and the widest labels at which one still contributes.
_NEIGHBOURS = 8
#: Where ATLAS9 ends and DESI begins [A], and where the two are matched.
_SPLICE = (3030.0, 3060.0)
_MATCH = (3060.0, 3200.0)
#: Half-pixel samples beyond each end of the input grid, for shifts.
_MARGIN = 6
#: Widths of the line-spread function in the bank: squared FWHM over that of R = 2000.
_WIDTHS = (1.0, 1.6, 2.4)


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
        Labels, which are bookkeeping: +-100 K, +-0.5 dex.
    split : array (n,) of str
        Of the template's cell.
    cell : int array (n,)
    fold : int array (n,)
        One of five folds of cells: each member of an ensemble leaves out one.
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
        """Return labels in units of the distance between templates that contribute to a mixture (n, 3)."""
        return _scaled(self.teff, self.logg, self.mh)


@dataclass(frozen=True)
class SyntheticStars:
    """Noise-free spectra and their SEDs.

    Attributes
    ----------
    flux : float32 array (n, 2238)
        On the input grid, not normalised.
    sed : float32 array (n, 574)
        Scaled by the mean flux in 5526-5586 A.
    fwhm : float32 array (n, 2)
        Of the line-spread function at 4000 and 7000 A [A].
    teff, logg, mh : array (n,)
    cell : int array (n,)
        Of the template with the largest weight.
    shares : float32 array (n, 5)
        Weight of the templates of each fold of cells.
    """

    flux: Float32
    sed: Float32
    fwhm: Float32
    teff: Float
    logg: Float
    mh: Float
    cell: npt.NDArray[np.int64]
    shares: Float32

    def __len__(self) -> int:
        return len(self.flux)

    def take(self, which: npt.NDArray | slice) -> SyntheticStars:
        """Return some of the stars."""
        return SyntheticStars(**{name: getattr(self, name)[which] for name in self.__dataclass_fields__})


def _scaled(teff: Float, logg: Float, mh: Float) -> Float:
    return np.stack([6000 / _SCALES[0] * np.log(teff), logg / _SCALES[1], mh / _SCALES[2]], axis=1)


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


def cells_of(teff: Float, logg: Float, mh: Float) -> npt.NDArray[np.int64]:
    """Return the (Teff, logg, [M/H]) cell of labels: the nearest of the templates' nodes, as one number (n,)."""
    near = [
        np.abs(np.asarray(values)[:, None] - nodes).argmin(axis=1)
        for values, nodes in ((teff, _TEFF_NODES), (logg, _LOGG_NODES), (mh, _MH_NODES))
    ]
    return (near[0] * len(_LOGG_NODES) + near[1]) * len(_MH_NODES) + near[2]


def split_of_cells(cell: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.str_]:
    """Return the split of each template by its cell (n,): a fixed random order of populated cells, cut by `SHARES`.

    Each temperature is cut on its own, so that all splits reach from the coolest to the hottest stars.
    """
    found = np.full(len(cell), "train", dtype="U11")
    per_teff = len(_LOGG_NODES) * len(_MH_NODES)
    rng = np.random.default_rng(seed)
    number = np.bincount(cells_of(*population(100_000, rng)), minlength=per_teff * len(_TEFF_NODES)) / 100_000
    for node in range(len(_TEFF_NODES)):
        present = np.unique(cell[(cell // per_teff == node) & (number[cell] >= _LEAST_POPULATED)])
        order = rng.permutation(present)
        edges = np.rint(np.cumsum(list(SHARES.values())) * len(order)).astype(int)
        start = 0
        for name, end in zip(get_args(Split), edges, strict=True):
            found[np.isin(cell, order[start:end])] = name
            start = end
    return found


def load_templates(folder: Path, *, seed: int = 20261130) -> TemplateBank:
    """Read the DESI templates, continue them with ATLAS9, and bring them onto the grids.

    Parameters
    ----------
    folder : Path
        With ``desi_templates.npz`` and ``ck04.npz``.
    seed : int
        Of the split into cells.
    """
    desi, atlas = load_npz(folder, "desi_templates"), load_npz(folder, "ck04")
    wave = float(desi["wave0"]) + float(desi["dwave"]) * np.arange(int(desi["nwave"]))
    n_fine = 2 * N_INPUT + 2 * _MARGIN
    fine_wave = INPUT_RANGE[0] * np.exp((np.arange(n_fine) - _MARGIN + 1.0) / (4 * INPUT_RESOLUTION))
    matrices = [degradation_matrix(wave, fine_wave, INPUT_RESOLUTION / np.sqrt(width))[0] for width in _WIDTHS]
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
    sed = _continued(sed, AtlasGrid.of(atlas), teff, logg, mh)
    level = sed / normalise_sed(sed)
    scale = level[:, :1]
    cell = cells_of(teff, logg, mh)
    return TemplateBank(
        (np.concatenate(fine, axis=1) / scale).astype(np.float32),
        (sed / scale).astype(np.float32),
        teff, logg, mh, split_of_cells(cell, seed), cell, _folds(cell, seed),
    )  # fmt: skip


def _folds(cell: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of each template, the same for all templates of a cell (n,)."""
    order = np.random.default_rng(seed + 1).permutation(len(_TEFF_NODES) * len(_LOGG_NODES) * len(_MH_NODES))
    return np.asarray(order[cell] % FOLDS)


@dataclass(frozen=True)
class AtlasGrid:
    """ATLAS9 models on a full grid of (Teff, logg, [M/H]); models that do not exist are those of the next log g."""

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
        """Return SEDs (n, 574) at labels, linear in log flux between models; labels outside are moved to the edge."""
        out: Float | float = 0.0
        axes = (self.teff, self.logg, self.mh)
        place = []
        for axis, values in zip(axes, (teff, logg, mh), strict=True):
            at = np.clip(np.atleast_1d(np.asarray(values, dtype=float)), axis[0], axis[-1])
            low = np.clip(np.searchsorted(axis, at, "right") - 1, 0, len(axis) - 2)
            place.append((low, (at - axis[low]) / (axis[low + 1] - axis[low])))
        for corner in np.ndindex(2, 2, 2):
            index = tuple(low + step for (low, _), step in zip(place, corner, strict=True))
            weight = np.prod([s if step else 1 - s for (_, s), step in zip(place, corner, strict=True)], axis=0)
            out = out + weight[:, None] * self.log_flux[index]
        return np.exp(np.asarray(out))


def _continued(sed: Float, atlas: AtlasGrid, teff: Float, logg: Float, mh: Float) -> Float:
    """Continue SEDs to the blue with ATLAS9, matched in level above the splice, blended linearly across it."""
    model = atlas.sed(teff, logg, mh)
    match = (_MATCH[0] <= SED_WAVELENGTH) & (_MATCH[1] >= SED_WAVELENGTH)
    model *= sed[:, match].mean(axis=1, keepdims=True) / model[:, match].mean(axis=1, keepdims=True)
    share = np.clip((SED_WAVELENGTH - _SPLICE[0]) / (_SPLICE[1] - _SPLICE[0]), 0, 1)
    return np.where(share > 0, share * np.nan_to_num(sed), 0.0) + (1 - share) * model


def population(n: int, rng: np.random.Generator) -> tuple[Float, Float, Float]:
    """Draw labels of a realistic population: (teff [K], logg, [M/H]), each (n,).

    Teff is uniform over 5000-9750 K. Nine of ten stars have the gravity of their kind: dwarfs, below 5800 K also
    giants, above 7000 K also evolved stars. One of ten has any, so that rare stars are known as well. Half of the
    stars have the metallicity of the thin disc, a quarter that of the thick disc, a quarter that of the halo.
    """
    teff = rng.uniform(TEFF_RANGE[0] - 100, TEFF_RANGE[1] + 100, n)
    dwarf = np.interp(teff, [5000, 5800, 6500, 8000, 10000], [4.5, 4.4, 4.15, 4.0, 3.95]) + rng.normal(0, 0.25, n)
    giant = np.interp(teff, [4900, 5300, 5800], [2.7, 3.1, 3.7]) + rng.normal(0, 0.4, n)
    evolved = rng.uniform(2.8, 3.8, n)
    odds = rng.random(n)
    share_giant = np.interp(teff, [5000, 5800, 6000], [0.45, 0.25, 0.0])
    share_evolved = np.interp(teff, [6500, 7500], [0.05, 0.25])
    logg = np.where(odds < share_giant, giant, np.where(odds > 1 - share_evolved, evolved, dwarf))
    logg = np.where(rng.random(n) < 0.1, rng.uniform(0.5, 5.0, n), logg)
    component = rng.choice(3, n, p=[0.5, 0.25, 0.25])
    mean, scatter = np.array([-0.15, -0.6, -1.5])[component], np.array([0.25, 0.3, 0.5])[component]
    mh = np.clip(rng.normal(mean, scatter), -2.5, 0.5)
    return teff, np.clip(logg, 0.0, 5.0), mh


def mixtures(bank: TemplateBank, split: Split, n: int, rng: np.random.Generator) -> csr_array:
    """Return weights of templates in n stars, a sparse array (n, templates) whose rows sum to one.

    ``train``: a star of the population is a mean of its eight nearest training templates, weighted by distance and a
    random factor. Other splits: a template of a held-out cell has 60-100 % of the weight; templates
    near it, but of no other held-out split, have the rest.
    """
    labels = bank.scaled_labels
    if split == "train":
        centre = _scaled(*population(n, rng))
        allowed = np.flatnonzero(bank.split == "train")
        lead = None
    else:
        own = np.flatnonzero(
            (bank.split == split) & (bank.teff >= TEFF_RANGE[0] - 50) & (bank.teff <= TEFF_RANGE[1] + 300)
        )
        lead = rng.choice(own, n, p=_density(bank, own, rng))
        centre = labels[lead]
        allowed = np.flatnonzero((bank.split == "train") | (bank.split == split))
    k = min(_NEIGHBOURS, len(allowed))
    distance, index = cKDTree(labels[allowed]).query(centre, k=k)
    closest = distance[:, :1]
    weight = np.exp(-0.5 * (distance**2 - closest**2)) * rng.gamma(1.0, 1.0, distance.shape) + 1e-12
    weight /= weight.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(n), k)
    matrix = csr_array((weight.ravel(), (rows, allowed[index].ravel())), shape=(n, len(bank)))
    if lead is None:
        return matrix
    share = rng.uniform(0.6, 1.0, n)
    leading = csr_array((share, (np.arange(n), lead)), shape=(n, len(bank)))
    rest = csr_array((1 - share, (np.arange(n), np.arange(n))), shape=(n, n))
    return csr_array(leading + rest @ matrix)


def _density(bank: TemplateBank, own: npt.NDArray[np.int64], rng: np.random.Generator) -> Float:
    """Return how often templates lead a held-out star: as often as stars of the population are near, but all."""
    stars = _scaled(*population(20_000, rng))
    near = cKDTree(bank.scaled_labels[own]).query(stars)[1]
    count = np.bincount(near, minlength=len(own)).astype(float)
    count = count / count.sum() + 0.02 / len(own)
    return np.asarray(count / count.sum())


def synthetic_stars(
    bank: TemplateBank, split: Split, n: int, rng: np.random.Generator, *, augment: bool = False
) -> SyntheticStars:
    """Draw stars of a split.

    Parameters
    ----------
    bank : TemplateBank
    split : str
        ``train``, ``validation``, ``calibration`` or ``test``.
    n : int
    rng : numpy.random.Generator
    augment : bool
        Whether inputs have residual radial velocities, other line-spread functions, reddening and errors of the flux
        calibration. The SEDs are always those of the unreddened star at rest.

    Returns
    -------
    SyntheticStars
    """
    weights = mixtures(bank, split, n, rng)
    fwhm = np.broadcast_to(np.array(INPUT_RANGE) / INPUT_RESOLUTION, (n, 2)).copy()
    if augment:
        fwhm = _widths(n, rng)
        flux = _at_width(bank, weights, fwhm)
        flux = _shifted(flux, _velocities(n, rng)) * _smooth_errors(n, rng)
    else:
        flux = (weights @ bank.fine[0])[:, _MARGIN : _MARGIN + 2 * N_INPUT : 2]
    lead = np.asarray(weights.toarray().argmax(axis=1)) if n <= 4096 else _argmax(weights)
    return SyntheticStars(
        np.asarray(flux, dtype=np.float32),
        np.asarray(weights @ bank.sed, dtype=np.float32),
        fwhm.astype(np.float32),
        np.asarray(weights @ bank.teff), np.asarray(weights @ bank.logg), np.asarray(weights @ bank.mh),
        bank.cell[lead], np.asarray(weights @ np.eye(FOLDS)[bank.fold], dtype=np.float32),
    )  # fmt: skip


def _argmax(weights: csr_array) -> npt.NDArray[np.int64]:
    starts = weights.indptr
    return np.array([weights.indices[a:b][weights.data[a:b].argmax()] for a, b in pairwise(starts)])


def _widths(n: int, rng: np.random.Generator) -> Float:
    """Draw FWHMs at 4000 and 7000 A: a constant R of 1600-2000, or a constant width where R = 2000 is finer."""
    resolution = rng.uniform(1600, 2000, n)
    by_resolution = np.array(INPUT_RANGE) / resolution[:, None]
    floor = rng.uniform(2.0, 2.9, n)[:, None]
    by_width = np.maximum(np.array(INPUT_RANGE) / INPUT_RESOLUTION, floor)
    kind = rng.choice(3, n, p=[0.3, 0.35, 0.35])[:, None]
    nominal = np.array(INPUT_RANGE) / INPUT_RESOLUTION
    return np.where(kind == 0, nominal, np.where(kind == 1, by_resolution, by_width))


def _at_width(bank: TemplateBank, weights: csr_array, fwhm: Float) -> Float32:
    """Return flux at half-pixel sampling: quadratic in the variance of the line-spread function between the widths."""
    n_fine = bank.fine.shape[2]
    wave = INPUT_RANGE[0] * np.exp((np.arange(n_fine) - _MARGIN + 1.0) / (4 * INPUT_RESOLUTION))
    nominal = wave / INPUT_RESOLUTION
    share = (wave - INPUT_RANGE[0]) / (INPUT_RANGE[1] - INPUT_RANGE[0])
    width = np.maximum(fwhm[:, :1] + (fwhm[:, 1:] - fwhm[:, :1]) * share, nominal)
    floor = np.isclose(fwhm[:, 1], INPUT_RANGE[1] / INPUT_RESOLUTION)  # a constant width at the blue end alone
    width[floor] = np.maximum(fwhm[floor, :1], nominal)
    x = ((width / nominal) ** 2).astype(np.float32)
    a, b, c = _WIDTHS
    out = (x - b) * (x - c) / ((a - b) * (a - c)) * (weights @ bank.fine[0])
    out += (x - a) * (x - c) / ((b - a) * (b - c)) * (weights @ bank.fine[1])
    out += (x - a) * (x - b) / ((c - a) * (c - b)) * (weights @ bank.fine[2])
    return np.asarray(out, dtype=np.float32)


def _velocities(n: int, rng: np.random.Generator) -> Float:
    """Draw residual radial velocities [km/s]: 7 km/s, of one star in five 15 km/s."""
    scatter = np.where(rng.random(n) < 0.2, 15.0, 7.0)
    return np.clip(rng.normal(0, scatter), -37, 37)


def _shifted(fine: Float32, velocity: Float) -> Float32:
    """Shift spectra by Lagrange's polynomial through seven half-pixel samples, and take every second one."""
    shift = -velocity / LIGHT_SPEED * (4 * INPUT_RESOLUTION)
    nodes = np.arange(-3, 4)
    out = np.zeros((len(fine), N_INPUT), dtype=np.float32)
    for j in nodes:
        others = nodes[nodes != j]
        weight = np.prod((shift[:, None] - others) / (j - others), axis=1).astype(np.float32)
        out += weight[:, None] * fine[:, _MARGIN + j : _MARGIN + j + 2 * N_INPUT : 2]
    return out


def _smooth_errors(n: int, rng: np.random.Generator) -> Float32:
    """Draw what multiplies inputs smoothly: reddening, E(B-V) up to about 0.5, and errors of the flux calibration."""
    curve = log_attenuation(INPUT_WAVELENGTH)
    reddening = rng.exponential(0.12, n)
    t = np.linspace(-1, 1, N_INPUT)
    terms = np.polynomial.legendre.legvander(t, 5)[:, 1:].T
    tilt = rng.normal(0, 0.06, (n, 5)) @ terms
    return np.exp(tilt - reddening[:, None] * curve).astype(np.float32)


def held_out_share(bank: TemplateBank, split: Split, seed: int = 1) -> float:
    """Return the share of the population nearest to templates of a split, among those of it and of training."""
    near = cKDTree(bank.scaled_labels).query(_scaled(*population(20_000, np.random.default_rng(seed))))[1]
    number = {name: float((bank.split[near] == name).sum()) for name in ("train", split)}
    return number[split] / sum(number.values())


def joined(parts: Sequence[SyntheticStars]) -> SyntheticStars:
    """Return several sets of stars as one."""
    names = SyntheticStars.__dataclass_fields__
    return SyntheticStars(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
