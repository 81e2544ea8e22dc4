"""Training of principal PSFs: ``csstdask train psf`` with ``kind = "principal"``.

Principal PSFs are learnt from telescopes that might be: their PSFs on a grid of places of a detector give, band by
band, a mean, principal images, and the covariances of their amounts over places and telescopes. Each telescope's PSFs
are a file of the training's folder: killed, it goes on where it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.linalg import eigh

from csstdask.core.atomic_io import sha256_file, write_atomic
from csstdask.core.errors import InputError
from csstdask.datasets.psf_samples import PsfSamples, draw_psf_samples
from csstdask.instrument import load_instrument
from csstdask.nn.card import WEIGHTS_SUFFIX, ModelCard, write_card
from csstdask.psf.basis import (
    BASIS_SIZE,
    COLOUR_TERMS,
    OVERSAMPLING,
    PsfBasis,
    append_colour_terms,
    polynomials,
    read_basis,
    write_basis,
)
from csstdask.psf.colour import colour_from_temperature

log = logging.getLogger("csstdask")

#: Of the covariances between amounts, what is believed of the diagonal alone: few telescopes tell them.
_SHRINKAGE = 0.2
#: Share of the images' spectrum below which frequencies are not kept: some 10^-6 of a PSF's peak.
_NOTHING = 1e-3
#: What is kept of a telescope.
_KEPT = ("images", "u", "v", "temperature")
#: Least variance of a star's own amount, beside that of all.
_LEAST_OWN = 1e-8


class PrincipalConfig(BaseModel):
    """All settings of a training of principal PSFs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["principal"] = "principal"
    name: str = "principal"
    version: str = "1"
    licence: str = "BSD-3-Clause"
    method: str = (
        "principal PSFs over a detector (csstdask.psf.fit_field), with what is expected of their amounts by telescopes"
        " in the mean and by the wavefront that the stars show (csstdask.psf.phase_retrieval)"
    )
    instrument: str = "csst"
    bands: tuple[str, ...] = Field((), description="none: all of the instrument's imaging bands")
    telescopes: int = Field(96, ge=4, description="drawn for each band")
    held_out: int = Field(12, ge=2, description="of them, those that the card's figures are of")
    nodes: int = Field(4, ge=2, description="places on a detector along each axis")
    degree: int = Field(3, ge=0, description="of the polynomials over a detector; at most nodes - 1")
    images: int = Field(48, ge=1, description="principal images")
    workers: int = Field(1, ge=1)
    seed: int = Field(20261125, ge=0)

    @model_validator(mode="after")
    def _enough_is_drawn(self) -> PrincipalConfig:
        known = self.telescopes - self.held_out
        if known < 2:
            raise ValueError(
                f"held_out = {self.held_out} of {self.telescopes} telescopes: wanted two and more to learn from"
            )
        terms = (self.degree + 1) * (self.degree + 2) // 2
        if self.nodes**2 <= terms + COLOUR_TERMS:
            found = f"nodes = {self.nodes} with degree = {self.degree}"
            raise ValueError(f"{found}: wanted more places than the {terms + COLOUR_TERMS} terms that are fitted")
        if self.images >= known * self.nodes**2:
            raise ValueError(
                f"images = {self.images}: wanted fewer than the {known * self.nodes**2} PSFs that are drawn"
            )
        return self


def train_principal(config: PrincipalConfig, to: Path, *, on_progress: Callable[[str], None] = log.info) -> Path:
    """Learn the principal PSFs of an instrument's bands, or go on with a training.

    Parameters
    ----------
    config : PrincipalConfig
    to : Path
        Folder of the training.
    announce : callable
        Told in a line what was learnt of each band.

    Returns
    -------
    Path
        The card; the weights lie beside it.

    Raises
    ------
    InputError
        If the folder holds telescopes that were drawn by other settings, or the instrument has not the bands.
    """
    instrument = load_instrument(config.instrument)
    bands = config.bands or tuple(sorted(instrument.bands))
    if unknown := set(bands) - set(instrument.bands):
        raise InputError("bands", ", ".join(sorted(unknown)), f"some of {', '.join(sorted(instrument.bands))}")
    _claim(config, to / "telescopes")
    learnt: dict[str, tuple[PsfBasis, int]] = {}
    held_out: dict[str, list[PsfSamples]] = {}
    with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool:
        for band in bands:
            look = partial(_sights_of, config, to, band)
            seen = list(pool.map(look, range(config.telescopes)))
            known, apart = seen[config.held_out :], seen[: config.held_out]
            psfs = learn_basis(known, config.images, config.degree, instrument.bands[band].wavelength)
            psfs = replace(psfs, truncation_variance=truncation_variance(psfs, apart))
            learnt[band], held_out[band] = (psfs, _samples_of(psfs)), apart
            on_progress(f"{band}: {len(psfs)} images of {len(known)} telescopes")
    weights = to / f"{config.name}{WEIGHTS_SUFFIX}"
    write_atomic(weights, write_basis(learnt))
    metrics: dict[str, float] = {}
    for band, apart in held_out.items():  # as they are kept, in few bits
        error = basis_psnr(read_basis(weights, band, config.degree), apart)
        metrics[f"psnr_{band}"] = round(float(error.mean()), 2)
        on_progress(f"{band}: PSFs of other telescopes, PSNR {error.mean():.1f} dB, least {error.min():.1f}")
    card = ModelCard(
        name=config.name,
        task="psf",
        version=config.version,
        method=config.method,
        licence=config.licence,
        trained_on=f"{config.telescopes - config.held_out} mock telescopes a band",
        sha256=sha256_file(weights),
        architecture={
            "kind": "principal",
            "instrument": config.instrument,
            "bands": list(bands),
            "degree": config.degree,
            "images": config.images,
        },
        metrics={"data": "PSFs of telescopes that were not learnt from, by principal images alone [dB]", **metrics},
    )
    path = to / f"{config.name}.json"
    write_card(path, card)
    return path


def _claim(config: PrincipalConfig, folder: Path) -> None:
    """Make the folder of drawn telescopes, or make sure that it is of these settings."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = config.model_dump(mode="json", include={"instrument", "nodes", "seed"}) | {"kept": list(_KEPT)}
    path = folder / "settings.json"
    if not path.is_file():
        write_atomic(path, json.dumps(wanted).encode())
    elif (found := json.loads(path.read_text(encoding="utf-8"))) != wanted:
        raise InputError(path, f"telescopes drawn by {found}", f"{wanted}, or another folder")


def _sights_of(config: PrincipalConfig, to: Path, band: str, number: int) -> PsfSamples:
    """Return a telescope's PSFs, drawn now or before."""
    path = to / "telescopes" / f"{band}-{number:04d}.npz"
    if path.is_file():
        with np.load(path) as kept:
            return PsfSamples(*(kept[name] for name in _KEPT))
    rng = np.random.default_rng([config.seed, number, *band.encode()])
    sights = draw_psf_samples(rng, load_instrument(config.instrument), band, config.nodes)
    draft = path.with_suffix(".part.npz")
    np.savez(draft, **{name: getattr(sights, name) for name in _KEPT})
    draft.rename(path)
    return sights


def learn_basis(seen: list[PsfSamples], count: int, degree: int, limits: tuple[float, float]) -> PsfBasis:
    """Return the principal PSFs of telescopes, and what is to be expected of their amounts.

    Parameters
    ----------
    seen : list of Sights
    count : int
        Of principal images; no more than there are PSFs.
    degree : int
        Of the polynomials over a detector.
    limits : (float, float)
        Of the band [nm].
    """
    flat = np.concatenate([one.images for one in seen]).reshape(-1, BASIS_SIZE * BASIS_SIZE)
    mean = flat.mean(axis=0)
    flat = flat - mean
    n, count = len(flat), min(count, len(flat) - 1)
    _, vectors = eigh((flat @ flat.T).astype(float), subset_by_index=(n - count, n - 1))
    amounts = vectors[:, ::-1] * np.sqrt(n)
    images = (amounts.T.astype(np.float32) @ flat) / np.float32(n)
    blind, seeing = _Fields(), _Fields()
    first = 0
    for one in seen:
        place = polynomials(one.u, one.v, degree)
        here = amounts[first : first + len(one.u)]
        first += len(one.u)
        blind.add(place, here)
        seeing.add(append_colour_terms(place, colour_from_temperature(one.temperature, limits)), here)
    return PsfBasis(
        mean=mean.reshape(BASIS_SIZE, BASIS_SIZE),
        images=images.reshape(-1, BASIS_SIZE, BASIS_SIZE),
        field_covariance=blind.covariances(),
        intrinsic_scatter=blind.left(),
        colour_covariance=seeing.covariances()[len(blind.of_telescopes[0]) :],
        intrinsic_scatter_given_colour=seeing.left(),
        degree=degree,
        truncation_variance=np.zeros((BASIS_SIZE, BASIS_SIZE), dtype=np.float32),
    )


@dataclass
class _Fields:
    """Amounts that belong to each polynomial, telescope by telescope, and the variance that they leave."""

    of_telescopes: list[npt.NDArray[np.float64]] = field(default_factory=list)
    variances: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def add(self, places: npt.NDArray[np.float64], amounts: npt.NDArray[np.float64]) -> None:
        fitted = np.asarray(np.linalg.lstsq(places, amounts, rcond=None)[0], dtype=np.float64)
        freedom = len(places) - places.shape[1]
        self.of_telescopes.append(fitted)
        self.variances.append(((amounts - places @ fitted) ** 2).sum(axis=0) / max(freedom, 1))

    def covariances(self) -> npt.NDArray[np.float64]:
        """Return the second moments of the amounts by polynomial (p, k, k), shrunk towards the diagonal."""
        fields = np.stack(self.of_telescopes)
        moments = np.einsum("tpa,tpb->pab", fields, fields) / len(fields)
        diagonal = np.einsum("paa->pa", moments)[..., None] * np.eye(fields.shape[-1])
        return np.asarray((1 - _SHRINKAGE) * moments + _SHRINKAGE * diagonal)

    def left(self) -> npt.NDArray[np.float64]:
        return np.asarray(np.mean(self.variances, axis=0) + _LEAST_OWN)


def basis_psnr(psfs: PsfBasis, seen: list[PsfSamples]) -> npt.NDArray[np.float64]:
    """Return the PSNR of each PSF as principal images alone can tell it, peak 1 [dB]."""
    parts = []
    for one, left in zip(seen, _left(psfs, seen), strict=True):
        peak = one.images.max(axis=(1, 2))
        parts.append(-20 * np.log10(np.sqrt((left**2).mean(axis=1)) / peak))
    return np.concatenate(parts)


def truncation_variance(psfs: PsfBasis, seen: list[PsfSamples]) -> npt.NDArray[np.float32]:
    """Return the mean square of what principal images cannot tell of telescopes' PSFs, (SIDE, SIDE)."""
    left = np.concatenate(list(_left(psfs, seen)))
    return (left**2).mean(axis=0).reshape(BASIS_SIZE, BASIS_SIZE).astype(np.float32)


def _left(psfs: PsfBasis, seen: list[PsfSamples]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield what principal images leave of each telescope's PSFs, (n, SIDE * SIDE)."""
    images = psfs.images.reshape(len(psfs), -1).astype(np.float64)
    for one in seen:
        away = one.images.astype(np.float64) - psfs.mean
        yield away.reshape(len(away), -1) - psfs.project(away) @ images


def _samples_of(psfs: PsfBasis) -> int:
    """Return the least samples a pixel that hold all of the mean and of the images."""
    frequency = np.abs(np.fft.fftfreq(BASIS_SIZE, 1 / OVERSAMPLING))
    spectra = [
        np.abs(np.fft.fft2(images, axes=(-2, -1))).reshape(-1, BASIS_SIZE, BASIS_SIZE)
        for images in (psfs.mean, psfs.images)
    ]
    for samples in (2, 3):
        left_out = (frequency[:, None] >= samples / 2) | (frequency[None, :] >= samples / 2)
        if all(found.max(axis=0)[left_out].max() < _NOTHING * found.max() for found in spectra):
            return samples
    return OVERSAMPLING
