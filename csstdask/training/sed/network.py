"""Training of the network ``sed``: the mean, then its covariance, then the calibration.

1. The principal components of inputs and log SEDs come from training stars.
2. The mean learns from fresh noise and a pool of augmented stars. For the first fifth of the training the loss is the
   mean square relative error in units of a typical one at each wavelength. Afterwards each residual is weighted by
   ``sigma^-1``, as the beta-NLL with beta = 1/2 does (Seitzer et al. 2022), with a sigma that a head on detached
   features learns at the same time: noisy stars and wavelengths must not decide alone.
3. A second ensemble, the scout, learns likewise, but each of its members leaves out a fifth of the cells.
4. The covariance head learns the joint likelihood of the modes of the errors, and the beta-NLL of the diagonal. The
   errors are those of the member of the scout that does not know the cell of the star.
5. New stars of the population give a factor on sigma for each wavelength, signal-to-noise ratio and temperature.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor, nn

from csstdask.datasets.gaussian_process import clean_stars, fit_labels
from csstdask.datasets.spectra import RealStars, load_calspec, load_miles, split_by_star, star_key
from csstdask.datasets.synthetic_spectra import (
    SyntheticStars,
    TemplateBank,
    held_out_share,
    load_templates,
    synthetic_stars,
)
from csstdask.flux.normalised_spectra import moving_average
from csstdask.flux.sed_network import (
    CALIBRATION_SNR,
    CALIBRATION_TEFF,
    CALIBRATION_WAVELENGTH,
    N_KNOTS,
    Features,
    SedNetwork,
    mode_nll,
)
from csstdask.flux.spectral_grids import BANDS, REFERENCE_PIXELS, SED_WAVELENGTH
from csstdask.nn.card import ModelCard, write_card
from csstdask.nn.trainer import Learner, train
from csstdask.nn.weights import save_weights
from csstdask.training.sed.config import SedConfig
from csstdask.training.sed.examples import SedBatch, noisy, varied_batches, varied_noise
from csstdask.training.sed.fit_real_stars import (
    CorrectionFit,
    Predictions,
    fill_module,
    fit_correction,
    fit_logistic,
    known_seds,
    leave_one_out,
    scaled,
    scatter_of,
    scatter_ratio,
)
from csstdask.training.sed.uaranet import band_errors, last_tenth_gain

log = logging.getLogger("csstdask")

#: Share of the training of the mean before residuals are weighted by the sigma of the star.
_WARM_UP = 0.2
#: Exponent of the beta-NLL.
_BETA = 0.5
#: Share of the stars within this quantile of |residual| / sigma that the calibration aims at: one standard deviation.
_ONE_SIGMA = 0.6827
#: Stars a node's factor is shrunk by towards the mean factor of its signal-to-noise ratio and wavelength.
_SHRINK = 200.0
#: Signal-to-noise ratio of inputs that a Gaussian process made from labels (appendix C).
LABEL_SNR = 50.0
#: Signal-to-noise ratio assumed for MILES spectra, which come without errors.
MILES_SNR = 100.0
#: A member learns from stars with less weight of its fold of cells than this.
_LEARNS = 0.25
#: A member does not know stars with more weight of its fold than this.
_UNKNOWN = 0.6
#: Stars that the principal components come from.
_PRINCIPAL_STARS = 12_000


class MeanLearner(nn.Module):
    """The network with a temporary head for sigma, which only weights residuals."""

    def __init__(self, network: SedNetwork, typical: Tensor, *, leave_out: bool = False) -> None:
        super().__init__()
        self.network = network
        self.leave_out = leave_out
        n_in = network.ensemble.first.shape[1]
        self.sigma = nn.Sequential(nn.Linear(n_in, 96), nn.SiLU(), nn.Linear(96, N_KNOTS))
        self.register_buffer("log_typical", torch.log(typical), persistent=False)
        self.log_typical: Tensor

    def residuals(self, batch: SedBatch) -> tuple[Tensor, Tensor]:
        """Return residuals of log SEDs (member, n, 574) and log sigma (n, 574)."""
        with torch.no_grad():
            values = self.network.features(batch.flux, batch.error, batch.fwhm).values
        outputs, _ = self.network.ensemble(values)
        log_sigma = self.sigma(values) @ self.network.covariance.knots + self.log_typical
        return self.network.log_sed(outputs) - torch.log(batch.sed), log_sigma

    def loss(self, batch: SedBatch, share: float) -> Tensor:
        """Return the loss at a share of the training."""
        residual, log_sigma = self.residuals(batch)
        square = (residual * torch.exp(-self.log_typical)).square()
        if share >= _WARM_UP:
            square = square * torch.exp(self.log_typical - log_sigma.detach()).clamp(0.05, 50)
        if self.leave_out:
            learns = (batch.shares[:, : len(residual)].T < _LEARNS).float()
            mean_loss = (square.mean(dim=2) * learns).sum() / learns.sum()
        else:
            mean_loss = square.mean()
        fixed = residual.detach().mean(dim=0)
        nll = 0.5 * (fixed * torch.exp(-log_sigma)).square() + log_sigma - self.log_typical
        return mean_loss + 0.2 * nll.mean()


def prepare(network: SedNetwork, stars: SyntheticStars, extra: np.ndarray | None = None) -> Tensor:
    """Fill the fixed parts of the network from training stars; return typical errors at each wavelength (574,).

    Parameters
    ----------
    network : SedNetwork
    stars : SyntheticStars
        Augmented training stars.
    extra : array (n, 2238), optional
        Normalised spectra of real training stars: what of them synthetic stars do not span gives the last quarter of
        the components.
    """
    flux, sed, teff = stars.flux[:_PRINCIPAL_STARS], stars.sed[:_PRINCIPAL_STARS], stars.teff[:_PRINCIPAL_STARS]
    x = flux / moving_average(flux)
    mean = x.mean(axis=0)
    n_components = len(network.features.components)
    n_synthetic = n_components if extra is None else n_components - n_components // 4
    components = _principal(x - mean, n_synthetic)
    if extra is not None:
        rest = extra - mean
        rest = rest - rest @ components.T @ components
        components = np.concatenate([components, _principal(rest - 0.0, n_components - n_synthetic)])
    scatter = ((x - mean) @ components.T).std(axis=0)
    if extra is not None:
        scatter = np.maximum(scatter, 0.5 * ((extra - mean) @ components.T).std(axis=0))
    log_sed = np.log(sed)
    centre = log_sed.mean(axis=0)
    typical = _typical_errors((x - mean) @ components.T, log_sed - centre)
    basis = _principal((log_sed - centre) / typical, len(network.sed_basis))
    projected = (log_sed - centre) / typical @ basis.T
    size = projected.std(axis=0)
    with torch.no_grad():
        network.features.mean.copy_(_tensor(mean))
        network.features.components.copy_(_tensor(components))
        network.features.scatter.copy_(_tensor(np.maximum(scatter, 1e-6)))
        network.sed_mean.copy_(_tensor(centre))
        network.sed_basis.copy_(_tensor(size[:, None] * basis * typical))
        labels = np.c_[np.ones(len(projected)), projected / size]
        network.teff_weights.copy_(_tensor(np.linalg.lstsq(labels, np.log(teff), rcond=None)[0]))
    return _tensor(typical)


def _principal(rows: np.ndarray, n: int) -> np.ndarray:
    """Return the first n right singular vectors of rows (m, pixel)."""
    values, vectors = np.linalg.eigh(rows.T.astype(float) @ rows)
    return np.asarray(vectors[:, np.argsort(-values)[:n]].T)


def _typical_errors(coefficients: np.ndarray, log_sed: np.ndarray) -> np.ndarray:
    """Return the rms error (574,) of a ridge regression of log SEDs at SNR 30, not below 0.1 %."""
    noise2 = len(coefficients) / 30.0**2
    weights = np.linalg.solve(
        coefficients.T @ coefficients + noise2 * np.eye(coefficients.shape[1]), coefficients.T @ log_sed
    )
    seen = coefficients + np.random.default_rng(1).normal(0, 1 / 30.0, coefficients.shape)
    return np.asarray(np.maximum((seen @ weights - log_sed).std(axis=0), 1e-3))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def train_mean(
    network: SedNetwork,
    bank: TemplateBank,
    config: SedConfig,
    to: Path,
    extra: np.ndarray | None,
    on_progress: Callable[[str], None],
    *,
    leave_out: bool = False,
) -> list[dict[str, float]]:
    """Train the ensemble, or the scout, whose members leave out cells; return the log."""
    rng = np.random.default_rng(config.seed)
    stars = synthetic_stars(bank, "train", config.stars, rng, augment=True)
    typical = prepare(network, stars, extra)
    held_out = synthetic_stars(bank, "validation", config.validation, np.random.default_rng(config.seed + 1))
    checked = list(varied_batches(held_out, 512, config.seed))
    model = MeanLearner(network, typical, leave_out=leave_out)
    schedule = config.scout_schedule if leave_out else config.schedule
    state = {"epoch": 0}

    def batches(epoch: int) -> Iterable[SedBatch]:
        state["epoch"] = epoch
        return varied_batches(stars, config.batch, config.seed + 1000 * (epoch + 1))

    learner = Learner(
        model,
        batches=batches,
        steps=-(-len(stars) // config.batch),
        loss=lambda one, batch: one.loss(batch, state["epoch"] / schedule.epochs),  # type: ignore[operator]
        validate=lambda one: _validate_mean(one, checked),
        identity=config.identity,
    )
    return train(
        learner, schedule, to / ("scout" if leave_out else "mean"), device=torch.device("cpu"), on_progress=on_progress
    )


def _validate_mean(model: Any, batches: list[SedBatch]) -> dict[str, float]:
    """Return the validation loss: the mean square error in units of the typical one, and errors in the bands."""
    means, losses = [], []
    for one in batches:
        features = model.network.features(one.flux, one.error, one.fwhm)
        outputs, _ = model.network.ensemble(features.values)
        means.append(torch.exp(model.network.log_sed(outputs.mean(dim=0))))
        residual = torch.log(means[-1]) - torch.log(one.sed)
        losses.append((residual * torch.exp(-model.log_typical)).square().mean(dim=1))
    mean, truth = torch.cat(means), torch.cat([one.sed for one in batches])
    loss = float(torch.cat(losses).mean())
    return {"validation": loss, **band_errors(mean, truth), "score": -loss}


class CovarianceLearner(nn.Module):
    """The covariance head alone, on errors of members that do not know the cell; everything else is frozen."""

    def __init__(self, network: SedNetwork) -> None:
        super().__init__()
        self.head = network.covariance
        self._network = [network]  # not a part: it is not learnt

    def parts(self, batch: SedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return amounts of the modes (n, rank), the rest (n, 574), the Cholesky factors and the diagonal."""
        network = self._network[0]
        with torch.no_grad():
            residual, values, outputs = out_of_fold(network, batch)
            amounts = residual @ network.error_projection
            rest = residual - amounts @ self.head.basis
        lower, sigma = self.head(torch.cat([values, outputs], dim=1))
        return amounts, rest, lower, sigma

    def loss(self, batch: SedBatch) -> Tensor:
        """Return the joint NLL of the modes, per mode, plus the beta-NLL of the diagonal."""
        amounts, rest, lower, sigma = self.parts(batch)
        relative = sigma * torch.exp(-self.head.diagonal)
        nll = 0.5 * (rest / sigma).square() + torch.log(relative)
        weighted = relative.detach() ** (2 * _BETA) * nll
        return mode_nll(amounts, lower).mean() / self.head.rank + weighted.mean()


def _scaled_log(log_sed: Tensor) -> Tensor:
    return log_sed - torch.log(torch.exp(log_sed[:, REFERENCE_PIXELS]).mean(dim=1, keepdim=True))


def out_of_fold(network: SedNetwork, batch: SedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return residuals of log SEDs (m, 574), features and mean coefficients of stars that one member does not know.

    The residual is that of this member; stars of training cells without such a member are left out. For stars of
    held-out cells, which no member knows, it is that of a member, too: the one of the fold with the largest weight.
    """
    share, fold = batch.shares[:, : network.ensemble.members].max(dim=1)
    known = batch.take(share > _UNKNOWN)
    values = network.features(known.flux, known.error, known.fwhm).values
    outputs = network.ensemble(values)[0]
    own = outputs[fold[share > _UNKNOWN], torch.arange(len(values))]
    return _scaled_log(network.log_sed(own)) - torch.log(known.sed), values, outputs.mean(dim=0)


def prepare_covariance(network: SedNetwork, batches: Iterable[SedBatch]) -> None:
    """Fill the fixed basis of the errors from residuals of training stars."""
    with torch.no_grad():
        residuals = [out_of_fold(network, one)[0].numpy() for one in batches]
    residual = np.concatenate(residuals).astype(float)
    size = np.maximum(np.sqrt((residual**2).mean(axis=0)), 1e-4)
    unit = residual / size
    vectors = _principal(unit, network.covariance.rank)
    amount = np.sqrt(((unit @ vectors.T) ** 2).mean(axis=0))
    basis, projection = amount[:, None] * vectors * size, (vectors / amount[:, None]).T / size[:, None]
    rest = residual - residual @ projection @ basis
    with torch.no_grad():
        network.covariance.basis.copy_(_tensor(basis))
        network.error_projection.copy_(_tensor(projection))
        network.covariance.diagonal.copy_(_tensor(np.log(np.maximum(np.sqrt((rest**2).mean(axis=0)), 1e-5))))


def train_covariance(
    network: SedNetwork, bank: TemplateBank, config: SedConfig, to: Path, on_progress: Callable[[str], None]
) -> list[dict[str, float]]:
    """Train the covariance head on new training stars; return the log."""
    stars = synthetic_stars(bank, "train", config.stars // 2, np.random.default_rng(config.seed + 2), augment=True)
    prepare_covariance(network, varied_batches(stars.take(slice(0, 20_000)), 512, config.seed + 3))
    held_out = synthetic_stars(bank, "validation", config.validation, np.random.default_rng(config.seed + 1))
    checked = list(varied_batches(held_out, 512, config.seed))
    schedule = replace(
        config.scout_schedule, epochs=config.covariance_epochs, patience=config.covariance_epochs, learning_rate=2e-3
    )
    learner = Learner(
        CovarianceLearner(network),
        batches=lambda epoch: varied_batches(stars, config.batch, config.seed + 7000 * (epoch + 1)),
        steps=-(-len(stars) // config.batch),
        loss=lambda one, batch: one.loss(batch),  # type: ignore[operator]
        validate=lambda one: _validate_covariance(one, checked),
        identity=config.identity | {"rank": config.rank},
    )
    return train(learner, schedule, to / "covariance", device=torch.device("cpu"), on_progress=on_progress)


def _validate_covariance(model: Any, batches: list[SedBatch]) -> dict[str, float]:
    loss = float(torch.stack([model.loss(one) for one in batches]).mean())
    return {"validation": loss, "score": -loss}


def calibrate(network: SedNetwork, bank: TemplateBank, config: SedConfig) -> None:
    """Measure the factors on sigma with stars of the population.

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
                some = slice(start, start + 1024)
                flux, error = noisy(torch.from_numpy(stars.flux[some]), torch.full((1, 1), 1 / snr), generator)
                with torch.no_grad():
                    found = network(flux, error, torch.from_numpy(stars.fwhm[some]), 0.0)
                sigma = torch.sqrt(found.noise.square() + found.modes.square().sum(dim=1))
                z.append(((found.log_mean - torch.log(torch.from_numpy(stars.sed[some]))) / sigma).abs().numpy())
                teff.append(found.teff.numpy())
        pulls, temperature = np.concatenate(z), np.concatenate(teff)
        table[index] = _factors(pulls, temperature, near)
        factor = np.exp(table[index][_nearest_teff(temperature)])
        for k, pixels in enumerate(near):
            pulls[:, pixels] /= factor[:, k : k + 1]
        dof[index] = _log_dof(pulls[:, np.concatenate(near)], temperature)
    with torch.no_grad():
        network.log_factor.copy_(_tensor(table))
        network.log_dof.copy_(_tensor(dof))


def _nearest_teff(teff: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(np.log(teff)[:, None] - np.log(CALIBRATION_TEFF)).argmin(axis=1))


def _log_dof(z: np.ndarray, teff: np.ndarray) -> np.ndarray:
    """Return ln of the degrees of freedom (temperature,) whose 95 % interval holds 95 % of the pulls |z|."""
    known = np.geomspace(2.5, 60.0, 60)
    ratio = student_t.ppf(0.975, known) / student_t.ppf(0.841345, known)
    nearest = _nearest_teff(teff)
    everything = np.quantile(z, 0.95)
    out = np.zeros(len(CALIBRATION_TEFF))
    for k in range(len(out)):
        mine = z[nearest == k]
        share = len(mine) / (len(mine) + _SHRINK)
        own = np.quantile(mine, 0.95) if len(mine) else everything
        out[k] = np.interp(share * own + (1 - share) * everything, ratio[::-1], np.log(known)[::-1])
    return out


def _node_pixels() -> list[np.ndarray]:
    """Return pixels that are nearest each wavelength of the calibration; the reference range has no error."""
    nodes = np.log(CALIBRATION_WAVELENGTH)
    nearest = np.abs(np.log(SED_WAVELENGTH)[:, None] - nodes).argmin(axis=1)
    nearest[REFERENCE_PIXELS] = -1
    return [np.flatnonzero(nearest == k) for k in range(len(nodes))]


def _factors(z: np.ndarray, teff: np.ndarray, near: list[np.ndarray]) -> np.ndarray:
    """Return ln of the 68 % quantile of |z| for each (temperature, wavelength) node, shrunk to that of all stars."""
    node_of = _nearest_teff(teff)
    out = np.zeros((len(CALIBRATION_TEFF), len(near)))
    for k, pixels in enumerate(near):
        everything = np.log(np.quantile(z[:, pixels], _ONE_SIGMA))
        for t in range(len(out)):
            mine = z[node_of == t][:, pixels]
            own = np.log(np.quantile(mine, _ONE_SIGMA)) if len(mine) else everything
            share = len(mine) / (len(mine) + _SHRINK)
            out[t, k] = share * own + (1 - share) * everything
    return out


def predict_synthetic(
    network: SedNetwork, flux: np.ndarray, fwhm: np.ndarray, snr: float
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Return coefficients, scaled log SEDs without the correction, and features of normalised spectra (n, 2238)."""
    x = torch.from_numpy(np.ascontiguousarray(flux, dtype=np.float32))
    with torch.no_grad():
        features = network.features(x, torch.full_like(x, 1 / snr), torch.from_numpy(fwhm))
        coefficients = network.ensemble(features.values)[0].mean(dim=0)
        log_sed = network.log_sed(coefficients).double().numpy()
    return coefficients.double().numpy(), scaled(log_sed), features.values


@dataclass(frozen=True)
class RealTraining:
    """Real stars that may be learnt from, and inputs of the CALSPEC stars."""

    miles: RealStars
    calspec: RealStars
    calspec_flux: np.ndarray
    """(n, 2238) By a Gaussian process of the labels."""

    @classmethod
    def of(cls, folder: Path, test_share: float) -> RealTraining:
        """Read the libraries; the inputs of CALSPEC stars come from clean MILES training stars (appendix C)."""
        stars = load_miles(folder)
        miles, calspec = stars.take(~split_by_star(stars, test_share)), load_calspec(folder)
        return cls(miles, calspec, label_inputs(miles, calspec))


def label_inputs(miles: RealStars, calspec: RealStars) -> np.ndarray:
    """Return normalised spectra of CALSPEC stars from their labels (appendix C); MILES twins are not used."""
    apart = ~np.isin([star_key(str(one)) for one in miles.name], [star_key(str(one)) for one in calspec.name])
    miles = miles.take(apart)
    clean = miles.take(clean_stars(miles.labels, miles.sed))
    return fit_labels(clean.labels, clean.flux)(calspec.labels).astype(np.float32)


def real_predictions(network: SedNetwork, real: RealTraining) -> Predictions:
    """Return synthetic predictions for CALSPEC stars, then for MILES stars."""
    fwhm = np.tile(real.miles.fwhm[:1], (len(real.calspec), 1))
    hst = predict_synthetic(network, real.calspec_flux, fwhm, LABEL_SNR)
    ground = predict_synthetic(network, real.miles.flux, real.miles.fwhm, MILES_SNR)
    truth = np.concatenate([known_seds(real.calspec), known_seds(real.miles)])
    is_miles = np.arange(len(real.calspec) + len(real.miles)) >= len(real.calspec)
    coefficients, log_synthetic = (np.concatenate([hst[k], ground[k]]) for k in (0, 1))
    return Predictions(coefficients, log_synthetic, truth, is_miles)


def learn_from_real_stars(network: SedNetwork, bank: TemplateBank, real: RealTraining, seed: int) -> CorrectionFit:
    """Fit the correction for real stars, its scatter, the probability that a star is real, and limits of the domain."""
    stars = real_predictions(network, real)
    fit = fit_correction(stars)
    residual = leave_one_out(stars) - stars.log_truth[~stars.is_miles]
    ratio = scatter_ratio(stars, fit, residual)
    modes, noise = scatter_of(residual)
    fill_module(network.real_stars, fit, modes * ratio, noise * ratio)
    synthetic = synthetic_stars(bank, "train", 6000, np.random.default_rng(seed + 6), augment=True)
    batches = list(varied_batches(synthetic, 1000, seed + 6))
    with torch.no_grad():
        known = [network.features(one.flux, one.error, one.fwhm) for one in batches]
    values = torch.cat([one.values for one in known])
    observed = _noisy_features(network, real, seed)
    network.real_stars.logistic.copy_(fit_logistic(values, observed.values))
    sizes = torch.cat([values, observed.values]).square().mean(dim=1)
    excess = torch.sqrt((observed.chi2 - 1).clamp(min=0)) / observed.snr
    network.domain_limits.copy_(
        torch.stack([torch.quantile(excess, 0.99) * 2 + 2e-3, torch.quantile(sizes, 0.999) * 2])
    )
    return fit


def _noisy_features(network: SedNetwork, real: RealTraining, seed: int) -> Features:
    """Return features of the real training stars with noise like that of the synthetic ones, ten times each."""
    generator = torch.Generator().manual_seed(seed + 8)
    flux = torch.from_numpy(np.concatenate([np.tile(real.miles.flux, (10, 1)), np.tile(real.calspec_flux, (10, 1))]))
    fwhm = np.tile(real.miles.fwhm[:1], (len(flux), 1))
    x, error = noisy(flux, varied_noise(len(flux), flux.shape[1], generator), generator)
    with torch.no_grad():
        return network.features(x, error, torch.from_numpy(fwhm))


def build(config: SedConfig) -> SedNetwork:
    """Make the network of a training, its first weights by the seed."""
    torch.manual_seed(config.seed)
    return SedNetwork(**architecture(config))


def architecture(config: SedConfig) -> dict[str, Any]:
    """Return the arguments of the network."""
    names = ("kind", "components", "sed_components", "members", "width", "blocks", "rank")
    return {name: getattr(config, name) for name in names}


def train_sed_network(config: SedConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train ``sed`` in all its parts, or resume a training; return its card.

    Parameters
    ----------
    config : SedConfig
        With ``kind = "sed"``.
    to : Path
        Folder of the training.
    announce : callable
        Receives a line an epoch.
    """
    torch.set_num_threads(config.threads)
    folder = Path(config.data)
    bank = load_templates(folder, seed=config.split_seed)
    real = RealTraining.of(folder, config.real_test_share)
    network, scout = build(config), build(config)
    means = train_mean(network, bank, config, to, real.miles.flux, on_progress)
    train_mean(scout, bank, config, to, real.miles.flux, on_progress, leave_out=True)
    covariances = train_covariance(scout, bank, config, to, on_progress)
    network.covariance.load_state_dict(scout.covariance.state_dict())
    network.error_projection.copy_(scout.error_projection)
    network.eval().requires_grad_(requires_grad=False)
    on_progress("calibration on held-out cells")
    calibrate(network, bank, config)
    learn_from_real_stars(network, bank, real, config.seed)
    path = to / f"{config.name}.json"
    sha256 = save_weights(network, path.with_suffix(".safetensors"))
    metrics = {
        "data": f"{config.validation} stars of held-out cells, SNR 8-125",
        "epochs": len(means),
        **{name: means[-1][name] for name in ("validation", *BANDS)},
        "last_tenth_gain": last_tenth_gain(means),
        "covariance_last_tenth_gain": last_tenth_gain(covariances),
    }
    trained_on = (
        f"{config.stars} stars of DESI templates + ATLAS9; corrected with {len(real.calspec)} CALSPEC "
        f"and {len(real.miles)} MILES stars"
    )
    write_card(
        path,
        ModelCard(
            config.name, "sed", config.version, "ensemble on principal components with covariance (csstdask.flux.sed)",
            config.licence, trained_on, sha256, architecture=architecture(config), metrics=metrics,
        ),
    )  # fmt: skip
    return path
