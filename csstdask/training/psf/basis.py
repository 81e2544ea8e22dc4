"""Train a PSF basis: ``csstdask train psf`` with ``kind = "principal"``.

The basis of each band is computed from the PSFs of random telescopes on a grid of positions of a detector: a mean,
principal images, and the covariances of their coefficients over positions and telescopes. The PSFs of each telescope
are stored in a file of the output folder, so that an interrupted training resumes without losing finished work.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from csstdask.core.atomic_io import write_atomic
from csstdask.core.errors import ClusterError, InputError
from csstdask.datasets.psf_samples import PsfSamples, draw_psf_samples
from csstdask.engine.cluster import Slots, open_cluster
from csstdask.engine.events import Event, UnitDone, UnitFailed
from csstdask.engine.window import Task, run_window
from csstdask.engine.work_units import Unit
from csstdask.instrument import load_instrument
from csstdask.nn.card import WEIGHTS_SUFFIX
from csstdask.psf.basis import (
    BASIS_SIZE,
    OVERSAMPLING,
    PsfBasis,
    append_colour_terms,
    polynomials,
    read_basis,
    write_basis,
)
from csstdask.psf.colour import colour_from_temperature
from csstdask.training.base import start_training, write_model
from csstdask.training.psf.config import PrincipalConfig

log = logging.getLogger("csstdask")

#: Shrinkage of covariances towards their diagonal: few telescopes constrain the other elements.
_SHRINKAGE = 0.2
#: Share of the images' spectrum below which frequencies are not stored: about 10^-6 of a PSF's peak.
_MIN_SPECTRUM = 1e-3
#: Arrays in the file of a telescope.
_STORED = ("images", "u", "v", "temperature")
#: Smallest variance of the deviation of a star.
_MIN_SCATTER = 1e-8


def train_principal(config: PrincipalConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Train the PSF bases of an instrument's bands, or resume a training.

    Parameters
    ----------
    config : PrincipalConfig
    to : Path
        Output folder.
    on_progress : callable
        Called with one line for each band.

    Returns
    -------
    Path
        The card; the weights are in the same folder.

    Raises
    ------
    InputError
        If the folder contains telescopes of other settings, or the instrument does not have the bands.
    """
    instrument = load_instrument(config.instrument)
    bands = config.bands or tuple(sorted(instrument.bands))
    if unknown := set(bands) - set(instrument.bands):
        raise InputError("bands", ", ".join(sorted(unknown)), f"some of {', '.join(sorted(instrument.bands))}")
    start_training(config, to)
    folder = to / "telescopes"
    _check_folder(config, folder)
    bases: dict[str, tuple[PsfBasis, int]] = {}
    held_out: dict[str, list[PsfSamples]] = {}
    with open_cluster("processes", config.workers) as slots:
        for band in bands:
            _draw_telescopes(config, folder, band, slots)
            samples = [_read_telescope(_path(folder, band, number)) for number in range(config.telescopes)]
            training, test = samples[config.held_out :], samples[: config.held_out]
            basis = learn_basis(training, config.images, config.degree, instrument.bands[band].wavelength)
            basis = replace(basis, truncation_variance=truncation_variance(basis, test))
            bases[band], held_out[band] = (basis, _stored_sampling(basis)), test
            on_progress(f"{band}: {len(basis)} images from {len(training)} telescopes")
    content = write_basis(bases)
    weights = to / f"{config.name}{WEIGHTS_SUFFIX}"
    write_atomic(weights, content)
    metrics: dict[str, float] = {}
    for band, test in held_out.items():  # as stored, in reduced precision
        error = basis_psnr(read_basis(weights, band, config.degree), test)
        metrics[f"psnr_{band}"] = round(float(error.mean()), 2)
        on_progress(f"{band}: PSFs of held-out telescopes, PSNR {error.mean():.1f} dB, lowest {error.min():.1f}")
    return write_model(
        config,
        content,
        to,
        method=config.method,
        trained_on=f"{config.telescopes - config.held_out} mock telescopes a band",
        architecture={
            "kind": "principal",
            "instrument": config.instrument,
            "bands": list(bands),
            "degree": config.degree,
            "images": config.images,
        },
        metrics={"data": "PSFs of telescopes that were not learnt from, by principal images alone [dB]", **metrics},
    )


def _check_folder(config: PrincipalConfig, folder: Path) -> None:
    """Create the folder of telescopes, or check that it has these settings."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = config.model_dump(mode="json", include={"instrument", "nodes", "seed"}) | {"kept": list(_STORED)}
    path = folder / "settings.json"
    if not path.is_file():
        write_atomic(path, json.dumps(wanted).encode())
    elif (found := json.loads(path.read_text(encoding="utf-8"))) != wanted:
        raise InputError(path, f"telescopes drawn by {found}", f"{wanted}, or another folder")


def _path(folder: Path, band: str, number: int) -> Path:
    """Return the file of a telescope."""
    return folder / f"{band}-{number:04d}.npz"


def _draw_telescopes(config: PrincipalConfig, folder: Path, band: str, slots: Slots) -> None:
    """Write the files of the telescopes of a band that do not exist yet, on the workers of a cluster.

    Raises
    ------
    ClusterError
        If a worker process dies, or the PSFs of a telescope cannot be computed.
    """
    missing = [number for number in range(config.telescopes) if not _path(folder, band, number).is_file()]

    def check(event: Event) -> None:
        if isinstance(event, UnitFailed):
            raise ClusterError(f"band {band}, telescope {event.unit.detector}: {event.reason}")
        if isinstance(event, UnitDone) and "error" in event.result:
            raise event.result["error"]

    tasks = [Task(Unit(band, number), number) for number in missing]
    outcome = run_window(slots, tasks, partial(_draw_telescope, config, folder, band), check, key="telescope")
    if outcome.stopped is not None:
        raise ClusterError(f"band {band}: {outcome.stopped}")


def _draw_telescope(config: PrincipalConfig, folder: Path, band: str, number: int) -> dict[str, Any]:
    """Write the PSFs of a telescope to its file; an exception is returned, for the driver to raise."""
    path = _path(folder, band, number)
    draft = path.with_suffix(".part.npz")
    try:
        rng = np.random.default_rng([config.seed, number, *band.encode()])
        samples = draw_psf_samples(rng, load_instrument(config.instrument), band, config.nodes)
        np.savez(draft, **{name: getattr(samples, name) for name in _STORED})
        draft.rename(path)
    except Exception as error:  # noqa: BLE001  the driver raises it
        error.add_note(traceback.format_exc())
        return {"error": error}
    return {}


def _read_telescope(path: Path) -> PsfSamples:
    """Return the PSFs of a telescope from its file."""
    with np.load(path) as stored:
        return PsfSamples(*(stored[name] for name in _STORED))


def learn_basis(telescopes: list[PsfSamples], count: int, degree: int, limits: tuple[float, float]) -> PsfBasis:
    """Compute the basis of the PSFs of telescopes, and the prior of its coefficients.

    Parameters
    ----------
    telescopes : list of PsfSamples
    count : int
        Number of principal images; no more than there are PSFs.
    degree : int
        Degree of the polynomials over a detector.
    limits : (float, float)
        Shortest and longest wavelength of the band [nm].
    """
    flat = np.concatenate([one.images for one in telescopes]).reshape(-1, BASIS_SIZE * BASIS_SIZE)
    mean = flat.mean(axis=0)
    flat = flat - mean
    n, count = len(flat), min(count, len(flat) - 1)
    _, vectors = eigh((flat @ flat.T).astype(float), subset_by_index=(n - count, n - 1))
    coefficients = vectors[:, ::-1] * np.sqrt(n)
    images = (coefficients.T.astype(np.float32) @ flat) / np.float32(n)
    of_position, of_colour = _FieldStatistics(), _FieldStatistics()
    first = 0
    for one in telescopes:
        terms = polynomials(one.u, one.v, degree)
        stars = coefficients[first : first + len(one.u)]
        first += len(one.u)
        of_position.add(terms, stars)
        of_colour.add(append_colour_terms(terms, colour_from_temperature(one.temperature, limits)), stars)
    return PsfBasis(
        mean=mean.reshape(BASIS_SIZE, BASIS_SIZE),
        images=images.reshape(-1, BASIS_SIZE, BASIS_SIZE),
        field_covariance=of_position.covariances(),
        intrinsic_scatter=of_position.scatter(),
        colour_covariance=of_colour.covariances()[len(of_position.fields[0]) :],
        intrinsic_scatter_given_colour=of_colour.scatter(),
        degree=degree,
        truncation_variance=np.zeros((BASIS_SIZE, BASIS_SIZE), dtype=np.float32),
    )


@dataclass
class _FieldStatistics:
    """Fields of telescopes fitted to the coefficients of their stars, and the residual variances."""

    fields: list[npt.NDArray[np.float64]] = field(default_factory=list)
    """(p, k) of each telescope."""
    variances: list[npt.NDArray[np.float64]] = field(default_factory=list)
    """(k,) of each telescope."""

    def add(self, terms: npt.NDArray[np.float64], coefficients: npt.NDArray[np.float64]) -> None:
        """Add a telescope with terms (n, p) and coefficients (n, k) of its stars."""
        fitted = np.asarray(np.linalg.lstsq(terms, coefficients, rcond=None)[0], dtype=np.float64)
        degrees = len(terms) - terms.shape[1]
        self.fields.append(fitted)
        self.variances.append(((coefficients - terms @ fitted) ** 2).sum(axis=0) / max(degrees, 1))

    def covariances(self) -> npt.NDArray[np.float64]:
        """Return the second moments of the coefficients by polynomial (p, k, k), shrunk towards the diagonal."""
        fields = np.stack(self.fields)
        moments = np.einsum("tpa,tpb->pab", fields, fields) / len(fields)
        diagonal = np.einsum("paa->pa", moments)[..., None] * np.eye(fields.shape[-1])
        return np.asarray((1 - _SHRINKAGE) * moments + _SHRINKAGE * diagonal)

    def scatter(self) -> npt.NDArray[np.float64]:
        """Return the mean residual variance of the coefficients (k,)."""
        return np.asarray(np.mean(self.variances, axis=0) + _MIN_SCATTER)


def basis_psnr(basis: PsfBasis, telescopes: list[PsfSamples]) -> npt.NDArray[np.float64]:
    """Return the PSNR of each PSF as the basis represents it, relative to its peak [dB]."""
    parts = []
    for one, residual in zip(telescopes, _residuals(basis, telescopes), strict=True):
        peak = one.images.max(axis=(1, 2))
        parts.append(-20 * np.log10(np.sqrt((residual**2).mean(axis=1)) / peak))
    return np.concatenate(parts)


def truncation_variance(basis: PsfBasis, telescopes: list[PsfSamples]) -> npt.NDArray[np.float32]:
    """Return the mean square (BASIS_SIZE, BASIS_SIZE) of what the basis does not represent of telescopes' PSFs."""
    residual = np.concatenate(list(_residuals(basis, telescopes)))
    return (residual**2).mean(axis=0).reshape(BASIS_SIZE, BASIS_SIZE).astype(np.float32)


def _residuals(basis: PsfBasis, telescopes: list[PsfSamples]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the residuals (n, BASIS_SIZE^2) of each telescope's PSFs after a fit of the basis."""
    images = basis.images.reshape(len(basis), -1).astype(np.float64)
    for one in telescopes:
        deviation = one.images.astype(np.float64) - basis.mean
        yield deviation.reshape(len(deviation), -1) - basis.project(deviation) @ images


def _stored_sampling(basis: PsfBasis) -> int:
    """Return the smallest number of samples per pixel that represent all of the mean and the images."""
    frequency = np.abs(np.fft.fftfreq(BASIS_SIZE, 1 / OVERSAMPLING))
    spectra = [
        np.abs(np.fft.fft2(images, axes=(-2, -1))).reshape(-1, BASIS_SIZE, BASIS_SIZE)
        for images in (basis.mean, basis.images)
    ]
    for samples in (2, 3):
        lost = (frequency[:, None] >= samples / 2) | (frequency[None, :] >= samples / 2)
        if all(spectrum.max(axis=0)[lost].max() < _MIN_SPECTRUM * spectrum.max() for spectrum in spectra):
            return samples
    return OVERSAMPLING
