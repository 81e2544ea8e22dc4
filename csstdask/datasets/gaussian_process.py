"""Gaussian processes of spectra on stellar labels (UaRA-net, appendices A-C).

They select normal stars of a library, and predict spectra of stars from their labels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.optional import install_hint

Float = npt.NDArray[np.float64]

#: Number of principal components of the spectra.
_COMPONENTS = 24


@dataclass(frozen=True)
class LabelProcess:
    """Spectra as a Gaussian process of labels, with one kernel for all their principal components.

    The kernel is sigma_f^2 exp(-|x - x'|^2 / 2 l^2) + sigma_n^2 on labels scaled to unit variance (equation A5).
    """

    process: Any
    label_mean: Float
    label_scatter: Float
    mean: Float
    components: Float
    scale: Float

    def __call__(self, labels: npt.ArrayLike) -> Float:
        """Return spectra (n, pixel) at labels (n, 3): Teff [K], log g, [M/H]."""
        scaled = (np.atleast_2d(np.asarray(labels, dtype=float)) - self.label_mean) / self.label_scatter
        found = np.asarray(self.process.predict(scaled)).reshape(len(scaled), -1)
        return self.mean + (found * self.scale) @ self.components


def fit_labels(labels: npt.ArrayLike, spectra: npt.ArrayLike, *, kernel: Any = None, seed: int = 1) -> LabelProcess:
    """Fit a Gaussian process that maps labels to spectra.

    Parameters
    ----------
    labels : array (n, 3)
        Teff [K], log g, [M/H].
    spectra : array (n, pixel)
        Spectra without NaN.
    kernel : optional
        Kernel of another fit (``process.kernel_``), used with its parameters; by default they are fitted.
    seed : int
        Seed of the fit of the kernel.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
        from sklearn.gaussian_process import GaussianProcessRegressor  # noqa: PLC0415
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel  # noqa: PLC0415
    except ImportError:
        raise ImportError(f"Gaussian processes need scikit-learn: {install_hint('peers')}") from None
    given, rows = np.asarray(labels, dtype=float), np.asarray(spectra, dtype=float)
    label_mean, label_scatter = given.mean(axis=0), np.maximum(given.std(axis=0), 1e-6)
    mean = rows.mean(axis=0)
    _, _, vectors = np.linalg.svd(rows - mean, full_matrices=False)
    components = vectors[: min(_COMPONENTS, len(rows) - 1)]
    coefficients = (rows - mean) @ components.T
    scale = np.sqrt((coefficients**2).mean()) * np.ones(len(components))
    free = ConstantKernel(1.0, (1e-3, 1e4)) * RBF(2.0, (0.1, 50.0)) + WhiteKernel(1e-2, (1e-6, 10.0))
    process = GaussianProcessRegressor(
        free if kernel is None else kernel, optimizer="fmin_l_bfgs_b" if kernel is None else None, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit((given - label_mean) / label_scatter, coefficients / scale)
    return LabelProcess(process, label_mean, label_scatter, mean, components, scale)


def relative_rms(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> Float:
    """Return the rms relative residual of each spectrum (n,), over pixels that are finite (RMSAE, equation 3)."""
    residual = np.asarray(predicted, dtype=float) / np.asarray(truth, dtype=float) - 1
    return np.asarray(np.sqrt(np.nanmean(residual**2, axis=1)))


def clean_stars(
    labels: npt.ArrayLike, seds: npt.ArrayLike, *, limit: float = 0.05, folds: int = 5, seed: int = 1
) -> npt.NDArray[np.bool_]:
    """Return which stars are normal (n,): those whose SED a process fitted to other stars predicts (appendix B).

    Parameters
    ----------
    labels : array (n, 3)
        Teff [K], log g, [M/H].
    seds : array (n, 574)
        SEDs; NaN where not observed. Only pixels that all stars have are used.
    limit : float
        Largest rms relative residual of a normal star; 0.05 in the paper.
    folds : int
        Number of folds; each star is predicted from the other folds.
    seed : int
        Seed of the folds and of the fit of the kernel.
    """
    given, rows = np.asarray(labels, dtype=float), np.asarray(seds, dtype=float)
    common = np.isfinite(rows).mean(axis=0) == 1
    rows = rows[:, common]
    kernel = fit_labels(given, np.log(rows), seed=seed).process.kernel_
    fold = np.random.default_rng(seed).permutation(len(rows)) % folds
    predicted = np.empty_like(rows)
    for k in range(folds):
        process = fit_labels(given[fold != k], np.log(rows[fold != k]), kernel=kernel)
        predicted[fold == k] = np.exp(process(given[fold == k]))
    return relative_rms(predicted, rows) < limit
