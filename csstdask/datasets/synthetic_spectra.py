"""Synthetic stars with known SEDs: mixtures of DESI templates, continued with ATLAS9 below 3000 A.

They take the place of the published training set (BOSZ), which is not available here. The templates lie on coarse
nodes (500-1000 K), so that a star is the weighted mean of several neighbours. Training mixtures use no template of a
cell of (Teff, log g, [M/H]) that belongs to validation, calibration or test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from csstdask.datasets.stellar_population import FOLDS, TEFF_RANGE, Split, population, scale_labels
from csstdask.datasets.template_bank import EDGE_SAMPLES, LSF_WIDTHS, TemplateBank
from csstdask.flux.extinction import log_attenuation
from csstdask.flux.spectral_grids import (
    INPUT_RANGE,
    INPUT_RESOLUTION,
    INPUT_WAVELENGTH,
    LIGHT_SPEED,
    N_INPUT,
)

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
#: Number of templates in a mixture.
_NEIGHBOURS = 8


@dataclass(frozen=True)
class SyntheticStars:
    """Noise-free spectra and their SEDs.

    Attributes
    ----------
    flux : float32 array (n, 2238)
        Spectra on the input grid, not normalised.
    sed : float32 array (n, 574)
        SEDs relative to the mean flux in 5526-5586 A.
    fwhm : float32 array (n, 2)
        FWHM of the line-spread function at 4000 and 7000 A [A].
    teff, logg, mh : array (n,)
        Weighted means of the templates' labels.
    cell : int array (n,)
        Cell of the template with the largest weight.
    shares : float32 array (n, 5)
        Total weight of the templates of each fold of cells.
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
        """Select stars by index, mask or slice."""
        return SyntheticStars(**{name: getattr(self, name)[which] for name in self.__dataclass_fields__})


def mixtures(bank: TemplateBank, split: Split, n: int, rng: np.random.Generator) -> csr_array:
    """Draw the weights of templates in n stars: a sparse array (n, template) whose rows sum to one.

    ``train``: a star of the population is a mean of its eight nearest training templates, weighted by distance and a
    random factor. Other splits: a template of a held-out cell has 60-100 % of the weight; templates
    near it, but of no other held-out split, have the rest.
    """
    labels = bank.scaled_labels
    if split == "train":
        centre = scale_labels(*population(n, rng))
        allowed = np.flatnonzero(bank.split == "train")
        lead = None
    else:
        leaders = np.flatnonzero(
            (bank.split == split) & (bank.teff >= TEFF_RANGE[0] - 50) & (bank.teff <= TEFF_RANGE[1] + 300)
        )
        lead = rng.choice(leaders, n, p=_template_probability(bank, leaders, rng))
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


def _template_probability(bank: TemplateBank, own: npt.NDArray[np.int64], rng: np.random.Generator) -> Float:
    """Return the probability that a template leads a held-out star: that of the nearby population, and never 0."""
    stars = scale_labels(*population(20_000, rng))
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
        Templates.
    split : str
        ``train``, ``validation``, ``calibration`` or ``test``.
    n : int
        Number of stars.
    rng : numpy.random.Generator
        Random generator.
    augment : bool
        Whether to add residual radial velocities, other line-spread functions, reddening and errors of the flux
        calibration to the inputs. The SEDs are always those of the unreddened star at rest.

    Returns
    -------
    SyntheticStars
    """
    weights = mixtures(bank, split, n, rng)
    fwhm = np.broadcast_to(np.array(INPUT_RANGE) / INPUT_RESOLUTION, (n, 2)).copy()
    if augment:
        fwhm = _draw_line_widths(n, rng)
        flux = _spectra_at_width(bank, weights, fwhm)
        flux = _shift_spectra(flux, _draw_velocities(n, rng)) * _draw_smooth_errors(n, rng)
    else:
        flux = (weights @ bank.fine[0])[:, EDGE_SAMPLES : EDGE_SAMPLES + 2 * N_INPUT : 2]
    lead = np.asarray(weights.toarray().argmax(axis=1)) if n <= 4096 else _heaviest_template(weights)
    return SyntheticStars(
        np.asarray(flux, dtype=np.float32),
        np.asarray(weights @ bank.sed, dtype=np.float32),
        fwhm.astype(np.float32),
        np.asarray(weights @ bank.teff), np.asarray(weights @ bank.logg), np.asarray(weights @ bank.mh),
        bank.cell[lead], np.asarray(weights @ np.eye(FOLDS)[bank.fold], dtype=np.float32),
    )  # fmt: skip


def _heaviest_template(weights: csr_array) -> npt.NDArray[np.int64]:
    """Return the template with the largest weight in each star (n,)."""
    starts = weights.indptr
    return np.array([weights.indices[a:b][weights.data[a:b].argmax()] for a, b in pairwise(starts)])


def _draw_line_widths(n: int, rng: np.random.Generator) -> Float:
    """Draw FWHMs at 4000 and 7000 A: a constant R of 1600-2000, or a constant width where R = 2000 is narrower."""
    resolution = rng.uniform(1600, 2000, n)
    by_resolution = np.array(INPUT_RANGE) / resolution[:, None]
    floor = rng.uniform(2.0, 2.9, n)[:, None]
    by_width = np.maximum(np.array(INPUT_RANGE) / INPUT_RESOLUTION, floor)
    kind = rng.choice(3, n, p=[0.3, 0.35, 0.35])[:, None]
    nominal = np.array(INPUT_RANGE) / INPUT_RESOLUTION
    return np.where(kind == 0, nominal, np.where(kind == 1, by_resolution, by_width))


def _spectra_at_width(bank: TemplateBank, weights: csr_array, fwhm: Float) -> Float32:
    """Return flux at half-pixel sampling: quadratic in the variance of the line-spread function between the widths."""
    n_fine = bank.fine.shape[2]
    wave = INPUT_RANGE[0] * np.exp((np.arange(n_fine) - EDGE_SAMPLES + 1.0) / (4 * INPUT_RESOLUTION))
    nominal = wave / INPUT_RESOLUTION
    share = (wave - INPUT_RANGE[0]) / (INPUT_RANGE[1] - INPUT_RANGE[0])
    width = np.maximum(fwhm[:, :1] + (fwhm[:, 1:] - fwhm[:, :1]) * share, nominal)
    floor = np.isclose(fwhm[:, 1], INPUT_RANGE[1] / INPUT_RESOLUTION)  # a constant width at the blue end alone
    width[floor] = np.maximum(fwhm[floor, :1], nominal)
    x = ((width / nominal) ** 2).astype(np.float32)
    a, b, c = LSF_WIDTHS
    out = (x - b) * (x - c) / ((a - b) * (a - c)) * (weights @ bank.fine[0])
    out += (x - a) * (x - c) / ((b - a) * (b - c)) * (weights @ bank.fine[1])
    out += (x - a) * (x - b) / ((c - a) * (c - b)) * (weights @ bank.fine[2])
    return np.asarray(out, dtype=np.float32)


def _draw_velocities(n: int, rng: np.random.Generator) -> Float:
    """Draw residual radial velocities [km/s]: a scatter of 7 km/s, and of 15 km/s for one star in five."""
    scatter = np.where(rng.random(n) < 0.2, 15.0, 7.0)
    return np.clip(rng.normal(0, scatter), -37, 37)


def _shift_spectra(fine: Float32, velocity: Float) -> Float32:
    """Shift spectra by Lagrange's polynomial through seven half-pixel samples, and take every second one."""
    shift = -velocity / LIGHT_SPEED * (4 * INPUT_RESOLUTION)
    nodes = np.arange(-3, 4)
    out = np.zeros((len(fine), N_INPUT), dtype=np.float32)
    for j in nodes:
        others = nodes[nodes != j]
        weight = np.prod((shift[:, None] - others) / (j - others), axis=1).astype(np.float32)
        out += weight[:, None] * fine[:, EDGE_SAMPLES + j : EDGE_SAMPLES + j + 2 * N_INPUT : 2]
    return out


def _draw_smooth_errors(n: int, rng: np.random.Generator) -> Float32:
    """Draw smooth factors on inputs: reddening, E(B-V) up to about 0.5, and errors of the flux calibration."""
    curve = log_attenuation(INPUT_WAVELENGTH)
    reddening = rng.exponential(0.12, n)
    t = np.linspace(-1, 1, N_INPUT)
    terms = np.polynomial.legendre.legvander(t, 5)[:, 1:].T
    tilt = rng.normal(0, 0.06, (n, 5)) @ terms
    return np.exp(tilt - reddening[:, None] * curve).astype(np.float32)


def held_out_share(bank: TemplateBank, split: Split, seed: int = 1) -> float:
    """Return the share of the population that is nearest to templates of a split rather than of training."""
    near = cKDTree(bank.scaled_labels).query(scale_labels(*population(20_000, np.random.default_rng(seed))))[1]
    number = {name: float((bank.split[near] == name).sum()) for name in ("train", split)}
    return number[split] / sum(number.values())


def concatenate_stars(parts: Sequence[SyntheticStars]) -> SyntheticStars:
    """Concatenate sets of stars."""
    names = SyntheticStars.__dataclass_fields__
    return SyntheticStars(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
