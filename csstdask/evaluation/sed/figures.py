"""Draw the figures of an evaluation of SED networks, after figures 2 to 11 of the UaRA-net paper."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.plotting import pyplot
from csstdask.flux.spectral_grids import SED_WAVELENGTH

#: Edges of the temperature bins [K].
_TEFF = (5000, 5500, 6000, 6500, 7500, 8500, 10_000)
#: Wavelengths of the comparison of predicted and actual errors [A], as in the paper.
_WAVELENGTHS = (3205, 3429, 4252, 7206, 9207)


def draw(figures: dict[str, Any], to: Path) -> list[Path]:
    """Draw the figures of an evaluation; return their files.

    Parameters
    ----------
    figures : dict
        Data by part, as `csstdask.evaluation.sed.evaluate.evaluate_sed` collects them.
    to : Path
        Output folder.
    """
    paths: list[Path] = []
    parts: tuple[tuple[str, Callable[[Any, Path], list[Path]]], ...] = (
        ("calibration", _pulls), ("held_out", _held_out), ("calspec", _calspec), ("miles", _miles),
    )  # fmt: skip
    for part, function in parts:
        if figures.get(part):
            paths += function(figures[part], to)
    return paths


def _saved(figure: Any, to: Path, name: str) -> list[Path]:
    path = to / name
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot().close(figure)
    return [path]


def _residuals_by_teff(axes: Any, teff: npt.NDArray, residual: npt.NDArray) -> None:
    """Draw median and standard deviation of residuals for each temperature bin on two axes."""
    for low, high in pairwise(_TEFF):
        mine = residual[(teff >= low) & (teff < high)]
        if len(mine) < 20:
            continue
        axes[0].plot(SED_WAVELENGTH, np.median(mine, axis=0), label=f"{low}-{high} K", lw=0.9)
        axes[1].plot(SED_WAVELENGTH, mine.std(axis=0), lw=0.9)
    axes[1].set_yscale("log")


def _pulls(found: dict[Any, npt.NDArray], to: Path) -> list[Path]:
    """Figure 2: pulls on new stars of the training cells and of the test cells, by wavelength."""
    names = list(dict.fromkeys(name for _, name in found))
    figure, axes = pyplot().subplots(len(names), 2, figsize=(10, 2.6 * len(names)), squeeze=False, sharex=True)
    for row, name in zip(axes, names, strict=True):
        for axis, cells in zip(row, ("population", "test_cells"), strict=True):
            z = found[cells, name]
            for quantile in (0.025, 0.1587, 0.5, 0.8413, 0.975):
                axis.plot(SED_WAVELENGTH, np.quantile(z, quantile, axis=0), color="tab:blue", lw=0.9)
            for level in (-1.96, -1, 0, 1, 1.96):
                axis.axhline(level, color="0.6", lw=0.6, ls="--")
            axis.set_ylim(-4, 4)
            axis.set_title(f"{name}, {cells.replace('_', ' ')}", fontsize=9)
            axis.set_ylabel("residual / sigma")
    for axis in axes[-1]:
        axis.set_xlabel("wavelength [A]")
    return _saved(figure, to, "sed-02-pulls.png")


def _held_out(found: dict[str, Any], to: Path) -> list[Path]:
    """Figures 3, 5 and 6: residuals, predicted and actual errors, and examples, on the test cells."""
    names = list(dict.fromkeys(name for name, _ in found["residual"]))
    snrs = [snr for name, snr in found["residual"] if name == names[0]]
    done = []
    for name in names:
        figure, axes = pyplot().subplots(len(snrs), 2, figsize=(10, 2.3 * len(snrs)), sharex=True)
        for row, snr in zip(axes, snrs, strict=True):
            _residuals_by_teff(row, found["teff"], found["residual"][name, snr])
            row[0].set_ylabel(f"SNR {snr}: median")
            row[1].set_ylabel("SD")
        axes[0, 0].legend(fontsize=6, ncol=2)
        done += _saved(figure, to, f"sed-03-residuals-{name}.png")
    figure, axes = pyplot().subplots(1, len(names), figsize=(5 * len(names), 4.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for wavelength in _WAVELENGTHS:
            pixel = int(np.abs(SED_WAVELENGTH - wavelength).argmin())
            x, y = _errors_at(found, name, snrs, pixel)
            axis.loglog(x, y, "o", ms=4, label=f"{wavelength} A")
        limits = [3e-4, 0.5]
        axis.plot(limits, limits, color="0.5", lw=0.8)
        axis.set_xlabel("SD of residuals")
        axis.set_ylabel("median predicted error")
        axis.set_title(name)
    axes[0, 0].legend(fontsize=7)
    done += _saved(figure, to, "sed-05-errors.png")
    return done + _examples(found, names, snrs, to)


def _errors_at(found: dict[str, Any], name: str, snrs: list[int], pixel: int) -> tuple[list[float], list[float]]:
    x, y = [], []
    for snr in snrs:
        for low, high in pairwise(_TEFF):
            mine = (found["teff"] >= low) & (found["teff"] < high)
            if mine.sum() >= 20:
                x.append(float(found["residual"][name, snr][mine, pixel].std()))
                y.append(float(np.median(found["sigma"][name, snr][mine, pixel])))
    return x, y


def _examples(found: dict[str, Any], names: list[str], snrs: list[int], to: Path) -> list[Path]:
    step = max(1, len(found["teff"]) // 6)
    truth = found["truth"][::step][:6]
    figure, axes = pyplot().subplots(len(truth), 2, figsize=(10, 1.9 * len(truth)), sharex=True, squeeze=False)
    for row, sed, index in zip(axes, truth, range(len(truth)), strict=True):
        row[0].plot(SED_WAVELENGTH, sed, color="k", lw=1)
        row[0].set_ylabel(f"{found['teff'][::step][index]:.0f} K")
        for snr in (snrs[0], snrs[-1]):
            mean = found["mean"][names[0], snr][index]
            row[0].plot(SED_WAVELENGTH, mean, lw=0.7)
            row[1].plot(SED_WAVELENGTH, mean / sed - 1, lw=0.7, label=f"SNR {snr}")
        row[1].set_ylim(-0.15, 0.15)
    axes[0, 1].legend(fontsize=7)
    return _saved(figure, to, "sed-06-examples.png")


def _image(axis: Any, teff: npt.NDArray, residual: npt.NDArray, title: str) -> Any:
    order = np.argsort(teff)
    shown = axis.imshow(
        residual[order], aspect="auto", vmin=-0.2, vmax=0.2, cmap="RdBu", interpolation="nearest",
        extent=(0, residual.shape[1], len(order), 0),
    )  # fmt: skip
    ticks = [int(np.abs(SED_WAVELENGTH - one).argmin()) for one in (3000, 4000, 5000, 7000, 10_000)]
    axis.set_xticks(ticks, ["3000", "4000", "5000", "7000", "10000"])
    axis.set_ylabel("stars, cool to hot")
    axis.set_title(title, fontsize=9)
    return shown


def _calspec(found: dict[str, Any], to: Path) -> list[Path]:
    """Figures 7 to 10: residuals of CALSPEC stars, before and after the correction for real stars."""
    residual, teff = found["residual"], found["teff"]
    names = list(residual)
    figure, axes = pyplot().subplots(len(names), 1, figsize=(7, 2.2 * len(names)), squeeze=False)
    for axis, name in zip(axes[:, 0], names, strict=True):
        shown = _image(axis, teff, residual[name], f"CALSPEC, {name}")
        figure.colorbar(shown, ax=axis)
    done = _saved(figure, to, "sed-07-calspec-images.png")
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 3.6))
    for name in names:
        axes[0].plot(teff, np.sqrt(np.nanmean(residual[name] ** 2, axis=1)), "o", ms=3, label=name)
        axes[1].plot(SED_WAVELENGTH, _robust(residual[name]), lw=1, label=name)
    axes[0].set(xlabel="Teff [K]", ylabel="rms relative error", yscale="log")
    axes[1].set(xlabel="wavelength [A]", ylabel="robust SD of residuals", yscale="log")
    axes[0].legend(fontsize=6)
    return done + _saved(figure, to, "sed-09-calspec-errors.png")


def _miles(found: dict[str, Any], to: Path) -> list[Path]:
    """Figure 11: medians and scatter of residuals of MILES test stars that passed the cleaning."""
    from csstdask.evaluation.sed.real import MILES_AGAINST_HST  # noqa: PLC0415  mutual
    from csstdask.evaluation.sed.settings import CHECKED  # noqa: PLC0415  mutual

    names = list(found["residual"])
    figure, axes = pyplot().subplots(len(names), 1, figsize=(8, 2.2 * len(names)), sharex=True, squeeze=False)
    for axis, name in zip(axes[:, 0], names, strict=True):
        residual = found["residual"][name][found["clean"]]
        observed = np.isfinite(residual).all(axis=0)
        middle, spread = np.median(residual[:, observed], axis=0), _robust(residual[:, observed])
        wave = SED_WAVELENGTH[observed]
        axis.plot(wave, residual[:, observed].T, color="0.85", lw=0.3, zorder=0)
        axis.plot(wave, middle, color="tab:blue", lw=1)
        axis.fill_between(wave, middle - spread, middle + spread, color="tab:blue", alpha=0.3)
        axis.errorbar(CHECKED, np.zeros(len(CHECKED)), MILES_AGAINST_HST, fmt="none", color="tab:red", capsize=3)
        axis.set_ylim(-0.15, 0.15)
        axis.set_title(f"MILES, cleaned, {name}; red: MILES against HST", fontsize=9)
    axes[-1, 0].set_xlabel("wavelength [A]")
    return _saved(figure, to, "sed-11-miles.png")


def _robust(residual: npt.NDArray) -> npt.NDArray:
    out = np.full(residual.shape[1], np.nan)
    known = np.isfinite(residual).any(axis=0)
    low, high = np.nanquantile(residual[:, known], [0.1587, 0.8413], axis=0)
    out[known] = (high - low) / 2
    return out
