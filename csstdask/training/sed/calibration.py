"""Calibrate the errors of the SED network on new stars of the population.

A factor on sigma is measured for each wavelength, signal-to-noise ratio and temperature, and the degrees of freedom of
a Student distribution for each signal-to-noise ratio and temperature.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from scipy.stats import t as student_t

from csstdask.datasets.synthetic_spectra import held_out_share, synthetic_stars
from csstdask.datasets.template_bank import TemplateBank
from csstdask.flux.sed_network import (
    CALIBRATION_SNR,
    CALIBRATION_TEFF,
    CALIBRATION_WAVELENGTH,
    SedNetwork,
)
from csstdask.flux.spectral_grids import REFERENCE_PIXELS, SED_WAVELENGTH
from csstdask.numerics.probability import WITHIN_ONE_SIGMA
from csstdask.training.sed.config import SedConfig
from csstdask.training.sed.examples import noisy
from csstdask.training.sed.mean import to_tensor

log = logging.getLogger("csstdask")
#: Stars a node's factor is shrunk by towards the mean factor of its signal-to-noise ratio and wavelength.
_SHRINKAGE_STARS = 200.0


def calibrate(network: SedNetwork, bank: TemplateBank, config: SedConfig) -> None:
    """Measure factors on sigma and degrees of freedom with new stars of the population.

    New stars of the training cells, and stars of the calibration and validation cells, have the shares that training
    and test cells have in the population.
    """
    rng = np.random.default_rng(config.seed + 4)
    unseen = held_out_share(bank, "test")
    numbers = {"train": 1 - unseen, "calibration": 0.6 * unseen, "validation": 0.4 * unseen}
    parts = [
        synthetic_stars(bank, split, max(8, round(share * config.calibration / 2)), rng, augment=augment)  # type: ignore[arg-type]
        for split, share in numbers.items()
        for augment in (False, True)
    ]
    generator = torch.Generator().manual_seed(config.seed + 5)
    table, dof = np.zeros(network.log_factor.shape), np.zeros(network.log_dof.shape)
    near = _node_pixels()
    for index, snr in enumerate(CALIBRATION_SNR):
        z, teff = [], []
        for stars in parts:
            for start in range(0, len(stars), 1024):
                batch = slice(start, start + 1024)
                flux, error = noisy(torch.from_numpy(stars.flux[batch]), torch.full((1, 1), 1 / snr), generator)
                with torch.no_grad():
                    found = network(flux, error, torch.from_numpy(stars.fwhm[batch]), 0.0)
                sigma = torch.sqrt(found.noise.square() + found.modes.square().sum(dim=1))
                z.append(((found.log_mean - torch.log(torch.from_numpy(stars.sed[batch]))) / sigma).abs().numpy())
                teff.append(found.teff.numpy())
        pulls, temperature = np.concatenate(z), np.concatenate(teff)
        table[index] = sigma_factors(pulls, temperature, near)
        factor = np.exp(table[index][_nearest_teff_node(temperature)])
        for k, pixels in enumerate(near):
            pulls[:, pixels] /= factor[:, k : k + 1]
        dof[index] = _log_dof(pulls[:, np.concatenate(near)], temperature)
    with torch.no_grad():
        network.log_factor.copy_(to_tensor(table))
        network.log_dof.copy_(to_tensor(dof))


def _nearest_teff_node(teff: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(np.log(teff)[:, None] - np.log(CALIBRATION_TEFF)).argmin(axis=1))


def _log_dof(z: np.ndarray, teff: np.ndarray) -> np.ndarray:
    """Return ln of the degrees of freedom (temperature,) whose 95 % interval holds 95 % of the pulls |z|."""
    dof = np.geomspace(2.5, 60.0, 60)
    ratio = student_t.ppf(0.975, dof) / student_t.ppf(0.841345, dof)
    nearest = _nearest_teff_node(teff)
    overall = np.quantile(z, 0.95)
    out = np.zeros(len(CALIBRATION_TEFF))
    for k in range(len(out)):
        members = z[nearest == k]
        share = len(members) / (len(members) + _SHRINKAGE_STARS)
        node_value = np.quantile(members, 0.95) if len(members) else overall
        out[k] = np.interp(share * node_value + (1 - share) * overall, ratio[::-1], np.log(dof)[::-1])
    return out


def _node_pixels() -> list[np.ndarray]:
    """Return pixels that are nearest each wavelength of the calibration; the reference range has no error."""
    nodes = np.log(CALIBRATION_WAVELENGTH)
    nearest = np.abs(np.log(SED_WAVELENGTH)[:, None] - nodes).argmin(axis=1)
    nearest[REFERENCE_PIXELS] = -1
    return [np.flatnonzero(nearest == k) for k in range(len(nodes))]


def sigma_factors(z: np.ndarray, teff: np.ndarray, near: list[np.ndarray]) -> np.ndarray:
    """Return ln of the 68 % quantile of |z| for each (temperature, wavelength) node, shrunk to that of all stars."""
    node_of = _nearest_teff_node(teff)
    out = np.zeros((len(CALIBRATION_TEFF), len(near)))
    for k, pixels in enumerate(near):
        overall = np.log(np.quantile(z[:, pixels], WITHIN_ONE_SIGMA))
        for t in range(len(out)):
            members = z[node_of == t][:, pixels]
            node_value = np.log(np.quantile(members, WITHIN_ONE_SIGMA)) if len(members) else overall
            share = len(members) / (len(members) + _SHRINKAGE_STARS)
            out[t, k] = share * node_value + (1 - share) * overall
    return out
