"""Files of fitted PSF fields: what a later step needs to predict the PSF of any star of a frame.

A file refers to the weights of its model by the model's identity, and holds only what the frame's stars have added: the
amounts, their covariance, and the changes of the mean PSF. Fields of ``empirical``, which has no weights, hold their
eigenimages as well. Images and the factor of the covariance are kept in half precision, so callers must use the
field that `read_field` returns: then an interrupted run gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.linalg.lapack import dpstrf

from csstdask.arrays.psf_grid import FIELD_FORMAT
from csstdask.core.errors import InputError
from csstdask.nn.card import ModelCard
from csstdask.nn.models import EMPIRICAL
from csstdask.psf.basis import PsfBasis, load_basis
from csstdask.psf.field import PsfField
from csstdask.psf.reconstruct import band_of, model_kind
from csstdask.psf.wavefront import Wavefront

Float = npt.NDArray[np.float64]
Tensors = dict[str, npt.NDArray[Any]]

#: Uncertainty below which a combination of amounts is not stored, as a share of the PSF.
_LEAST_SIGMA = 3e-5


def write_field(field: PsfField, card: ModelCard) -> bytes:
    """Return a fitted field as safetensors.

    Parameters
    ----------
    field : PsfField
        With `n` unknowns: polynomials times images.
    card : ModelCard
        Of the model that it was fitted with.

    Returns
    -------
    bytes
        Some 0.25 MB with ``principal``, 2.5 MB with ``empirical``.
    """
    psfs = field.basis
    empirical = model_kind(card) == EMPIRICAL
    mean = np.zeros_like(psfs.mean) if empirical else _known(card, field.detector).mean
    tensors: Tensors = {"amounts": field.coefficients}
    tensors |= _halved("mean_change", psfs.mean - mean) | _halved("beyond_sigma", np.sqrt(psfs.truncation_variance))
    tensors |= _halved("covariance_factor", _factor(field))
    about: dict[str, Any] = {
        "format": FIELD_FORMAT,
        "model": card.identity,
        "detector": field.detector,
        "shape": list(field.shape),
        "degree": psfs.degree,
    }
    if field.n_stars is not None:
        about["n_stars"] = field.n_stars
    if np.isfinite(field.misfit):
        about["misfit"] = field.misfit
    if field.wavefront is not None:
        about["orders"] = list(field.wavefront.orders)
        for name in ("coefficients", "sigma", "blur"):
            tensors[f"wavefront.{name}"] = getattr(field.wavefront, name)
    if empirical:
        own: Tensors = {"mean": psfs.mean, "field": psfs.field_covariance, "own": psfs.intrinsic_scatter}
        tensors |= own | _halved("images", psfs.images)
    contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    return save(contiguous, metadata={"csstdask": json.dumps(about, sort_keys=True)})


def read_field(data: bytes, card: ModelCard) -> PsfField:
    """Return the field that `write_field` has written.

    Parameters
    ----------
    data : bytes
        Content of the file.
    card : ModelCard
        Of the model that the field was fitted with.

    Raises
    ------
    InputError
        If the file is damaged, of another version, or was fitted with another model.
    """
    try:
        about, tensors = _metadata(data), load(data)
        if about["format"] != FIELD_FORMAT or about["model"] != card.identity:
            found = f"format {about['format']}, model {about['model'][:12]}"
            raise InputError(
                "PSF field", found, f"format {FIELD_FORMAT}, model {card.identity[:12]}: run the step psf again"
            )
        psfs = _psfs(about, tensors, card)
        factor = _doubled("covariance_factor", tensors).astype(np.float64)
        wavefront = None
        if "orders" in about:
            parts = (tensors[f"wavefront.{name}"] for name in ("coefficients", "sigma", "blur"))
            wavefront = Wavefront(tuple(about["orders"]), *parts)
        rows, columns = about["shape"]
        return PsfField(
            about["detector"],
            (rows, columns),
            psfs,
            tensors["amounts"],
            factor @ factor.T,
            wavefront,
            about.get("n_stars"),
            about.get("misfit", float("nan")),
            card.name,
        )
    except (KeyError, ValueError, TypeError, struct.error, SafetensorError) as error:
        raise InputError("PSF field", f"a damaged file ({error})", "what the step psf wrote: run it again") from None


def card_of(data: bytes, cards: Iterable[ModelCard]) -> ModelCard:
    """Return the card that a stored field was fitted with; InputError if it is none of these."""
    try:
        identity = _metadata(data)["model"]
    except (KeyError, ValueError, TypeError, struct.error) as error:
        raise InputError("PSF field", f"a damaged file ({error})", "what the step psf wrote: run it again") from None
    for card in cards:
        if card.identity == identity:
            return card
    raise InputError("PSF field", f"model {identity[:12]}", "one that this run uses: run the step psf again")


def _known(card: ModelCard, detector: int) -> PsfBasis:
    return load_basis(card, band_of(card, detector))


def _factor(field: PsfField) -> Float:
    """Return L (n, r) with ``L L' = covariance``, but for combinations that are known better than `_LEAST_SIGMA`.

    Amounts are scaled by the norms of their images first. The factor is a Cholesky factor with pivoting, which ends
    where no remaining variance exceeds the limit.
    """
    psfs = field.basis
    size = np.tile(np.linalg.norm(psfs.images.reshape(len(psfs), -1).astype(float), axis=1), len(field.coefficients))
    least = (_LEAST_SIGMA * np.linalg.norm(psfs.mean)) ** 2
    triangle, pivot, rank, _ = dpstrf(field.covariance * size * size[:, None], lower=1, tol=least)
    factor = np.zeros((len(size), rank))
    factor[pivot - 1] = np.tril(triangle)[:, :rank]
    return np.asarray(factor / size[:, None])


def _halved(name: str, values: npt.NDArray[Any]) -> Tensors:
    """Return an array in half precision, with the scale that brings its largest value to one."""
    scale = np.float32(max(np.abs(values).max(initial=0), np.finfo(np.float32).tiny))
    return {name: (values / scale).astype(np.float16), f"{name}.scale": np.array([scale])}


def _doubled(name: str, tensors: Tensors) -> npt.NDArray[np.float32]:
    """Return what `_halved` was given."""
    return np.asarray(tensors[name].astype(np.float32) * tensors[f"{name}.scale"])


def _metadata(data: bytes) -> dict[str, Any]:
    """Return the metadata of safetensors: a JSON header behind its length in eight bytes."""
    (length,) = struct.unpack_from("<Q", data)
    about: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["csstdask"])
    return about


def _psfs(about: dict[str, Any], tensors: Tensors, card: ModelCard) -> PsfBasis:
    """Return the principal PSFs of a field: those of the model's weights, or its own."""
    beyond = _doubled("beyond_sigma", tensors) ** 2
    if model_kind(card) == EMPIRICAL:
        own = tensors["own"]
        no_colour = np.zeros((0, len(own), len(own)))
        images = _doubled("images", tensors)
        return PsfBasis(tensors["mean"], images, tensors["field"], own, no_colour, own, about["degree"], beyond)
    known = _known(card, about["detector"])
    own = known.intrinsic_scatter * max(1.0, about.get("misfit", 1.0))  # as `PsfField.widened` has it
    mean = known.mean + _doubled("mean_change", tensors)
    return PsfBasis(
        mean,
        known.images,
        known.field_covariance,
        own,
        known.colour_covariance,
        known.intrinsic_scatter_given_colour,
        known.degree,
        beyond,
    )
