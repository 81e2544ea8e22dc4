"""Baselines that predict SEDs from normalised spectra.

All are fitted to the same synthetic training stars as the networks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from csstdask.core.optional import install_hint
from csstdask.datasets.synthetic_spectra import SyntheticStars
from csstdask.flux.normalised_spectra import moving_average
from csstdask.training.sed.mean import principal_components

Float = npt.NDArray[np.float64]
#: Maps normalised spectra (n, 2238) with a signal-to-noise ratio to log SEDs (n, 574).
Predictor = Callable[[npt.NDArray, float], Float]

#: Number of principal components of inputs.
_COMPONENTS = 48
#: Number of neighbours of a star.
_NEIGHBOURS = 10
#: Number of training stars of the Gaussian process.
_PROCESS_STARS = 1200
#: Width of the kernel of the empirical correction, in ln Teff.
CORRECTION_WIDTH = 0.1


class InputBasis:
    """Principal components of the training stars' normalised spectra."""

    def __init__(self, stars: SyntheticStars) -> None:
        x = stars.flux / moving_average(stars.flux)
        self.mean = x.mean(axis=0)
        self.components = principal_components(x - self.mean, _COMPONENTS)
        self.coefficients = (x - self.mean) @ self.components.T
        self.log_sed = np.log(stars.sed.astype(float))
        self.log_teff = np.log(stars.teff)

    def project(self, flux: npt.NDArray) -> Float:
        """Return coefficients (n, component) of normalised spectra (n, 2238)."""
        return np.asarray((flux - self.mean) @ self.components.T)


def median_sed(basis: InputBasis) -> Predictor:
    """Return the method that predicts the median SED for every star."""
    middle = np.median(basis.log_sed, axis=0)
    return lambda flux, _: np.broadcast_to(middle, (len(flux), len(middle))).copy()


def nearest(basis: InputBasis) -> Predictor:
    """Return the method that averages the ten nearest training stars, in Wiener-filtered coefficients."""
    size = basis.coefficients.std(axis=0)

    def predict(flux: npt.NDArray, snr: float) -> Float:
        weight = size**2 / (size**2 + snr**-2)
        tree = cKDTree(basis.coefficients * np.sqrt(weight))
        _, index = tree.query(basis.project(flux) * np.sqrt(weight), k=_NEIGHBOURS)
        return np.asarray(basis.log_sed[index].mean(axis=1))

    return predict


def ridge(basis: InputBasis, like: SyntheticStars | None = None) -> Predictor:
    """Return the linear method with the smallest mean squared error: principal components and ridge regression.

    With `like`, it is fitted to the test stars themselves, which bounds all linear methods (the Wiener bound).
    """
    if like is None:
        coefficients, log_sed = basis.coefficients, basis.log_sed
    else:
        coefficients = basis.project(like.flux / moving_average(like.flux))
        log_sed = np.log(like.sed.astype(float))
    centre, middle = coefficients.mean(axis=0), log_sed.mean(axis=0)
    moment, cross = (coefficients - centre).T @ (coefficients - centre), (coefficients - centre).T @ (log_sed - middle)

    def predict(flux: npt.NDArray, snr: float) -> Float:
        weights = np.linalg.solve(moment + len(coefficients) / snr**2 * np.eye(len(moment)), cross)
        return np.asarray(middle + (basis.project(flux) - centre) @ weights)

    return predict


def gaussian_process(basis: InputBasis, seed: int = 1) -> Predictor:
    """Return a Gaussian process on Wiener-filtered coefficients, fitted to noisy spectra of each SNR."""
    try:
        from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
        from sklearn.gaussian_process import GaussianProcessRegressor  # noqa: PLC0415
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel  # noqa: PLC0415
    except ImportError:
        raise ImportError(f"the Gaussian process needs scikit-learn: {install_hint('peers')}") from None
    rng = np.random.default_rng(seed)
    subset = rng.permutation(len(basis.coefficients))[:_PROCESS_STARS]
    size, middle = basis.coefficients.std(axis=0), basis.log_sed.mean(axis=0)
    _, _, vectors = np.linalg.svd(basis.log_sed[subset] - middle, full_matrices=False)
    vectors = vectors[:12]
    target = (basis.log_sed[subset] - middle) @ vectors.T
    unit = target.std()

    def predict(flux: npt.NDArray, snr: float) -> Float:
        noise = 1 / snr
        shrink = size / (size**2 + noise**2)
        noisy = basis.coefficients[subset] + rng.normal(0, noise, basis.coefficients[subset].shape)
        kernel = ConstantKernel(1.0, (1e-3, 1e4)) * RBF(3.0, (0.1, 100.0)) + WhiteKernel(1e-2, (1e-6, 10.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            process = GaussianProcessRegressor(kernel, random_state=seed).fit(noisy[:500] * shrink, target[:500] / unit)
            full = GaussianProcessRegressor(process.kernel_, optimizer=None).fit(noisy * shrink, target / unit)
        return np.asarray(middle + full.predict(basis.project(flux) * shrink) * unit @ vectors)

    return predict


def empirical_correction(
    log_predicted: Float, log_teff: Float, log_truth: Float, *, at: Float, exclude_same: bool
) -> Float:
    """Return offsets (m, 574): means of log truth - log prediction of real stars with a Gaussian kernel in ln Teff.

    Parameters
    ----------
    log_predicted, log_truth : array (n, 574)
        Log SEDs of the real stars; the truth is NaN where not observed.
    log_teff : array (n,)
        ln Teff of the real stars.
    at : array (m,)
        ln Teff of the stars to correct.
    exclude_same : bool
        Whether `at` are the real stars themselves; each is then excluded from the fit of its correction.
    """
    offset = log_truth - log_predicted
    observed = np.isfinite(offset)
    weight = np.exp(-0.5 * ((at[:, None] - log_teff) / CORRECTION_WIDTH) ** 2)
    if exclude_same:
        np.fill_diagonal(weight, 0.0)
    total = weight @ observed
    return np.asarray(np.where(total > 1e-3, weight @ np.where(observed, offset, 0.0) / np.maximum(total, 1e-3), 0.0))
