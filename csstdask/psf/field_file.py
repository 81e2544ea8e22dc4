"""Store fitted PSF fields: all that a later step needs to predict the PSF of any star of a frame.

A file refers to the weights of its model by the model's identity, and stores only what the frame's stars have added:
coefficients, their covariance, and the change of the mean PSF. Fields of ``empirical``, which has no weights, store
their eigenimages as well. Images and the factor of the covariance are stored in half precision, so callers must use the
field that `read_field` returns: then an interrupted run gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import replace
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
from csstdask.psf.model_card import band_of, model_kind
from csstdask.psf.wavefront import Wavefront

Float = npt.NDArray[np.float64]
Tensors = dict[str, npt.NDArray[Any]]

#: Uncertainty below which a combination of coefficients is not stored, as a share of the PSF.
_MIN_SIGMA = 3e-5


def write_field(field: PsfField, card: ModelCard) -> bytes:
    """Return a fitted field as safetensors.

    Parameters
    ----------
    field : PsfField
        Field with `n` unknowns: polynomials times images.
    card : ModelCard
        Card of its model.

    Returns
    -------
    bytes
        About 0.25 MB for ``principal``, 2.5 MB for ``empirical``.
    """
    basis = field.basis
    empirical = model_kind(card) == EMPIRICAL
    mean = np.zeros_like(basis.mean) if empirical else _model_basis(card, field.detector).mean
    tensors: Tensors = {"amounts": field.coefficients}
    tensors |= _to_half("mean_change", basis.mean - mean) | _to_half("beyond_sigma", np.sqrt(basis.truncation_variance))
    tensors |= _to_half("covariance_factor", _factor(field))
    metadata: dict[str, Any] = {
        "format": FIELD_FORMAT,
        "model": card.identity,
        "detector": field.detector,
        "shape": list(field.shape),
        "degree": basis.degree,
    }
    if field.n_stars is not None:
        metadata["n_stars"] = field.n_stars
    if np.isfinite(field.misfit):
        metadata["misfit"] = field.misfit
    if field.wavefront is not None:
        metadata["orders"] = list(field.wavefront.orders)
        for name in ("coefficients", "sigma", "blur"):
            tensors[f"wavefront.{name}"] = getattr(field.wavefront, name)
    if empirical:
        own: Tensors = {"mean": basis.mean, "field": basis.field_covariance, "own": basis.intrinsic_scatter}
        tensors |= own | _to_half("images", basis.images)
    contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    return save(contiguous, metadata={"csstdask": json.dumps(metadata, sort_keys=True)})


def read_field(data: bytes, card: ModelCard) -> PsfField:
    """Return the field that `write_field` has written.

    Parameters
    ----------
    data : bytes
        Content of the file.
    card : ModelCard
        Card of the model of the field.

    Raises
    ------
    InputError
        If the file is damaged, of another version, or was fitted with another model.
    """
    try:
        metadata, tensors = _metadata(data), load(data)
        if metadata["format"] != FIELD_FORMAT or metadata["model"] != card.identity:
            found = f"format {metadata['format']}, model {metadata['model'][:12]}"
            raise InputError(
                "PSF field", found, f"format {FIELD_FORMAT}, model {card.identity[:12]}: run the step psf again"
            )
        basis = _read_basis(metadata, tensors, card)
        factor = _from_half("covariance_factor", tensors).astype(np.float64)
        wavefront = None
        if "orders" in metadata:
            parts = (tensors[f"wavefront.{name}"] for name in ("coefficients", "sigma", "blur"))
            wavefront = Wavefront(tuple(metadata["orders"]), *parts)
        rows, columns = metadata["shape"]
        return PsfField(
            detector=metadata["detector"],
            shape=(rows, columns),
            basis=basis,
            coefficients=tensors["amounts"],
            covariance=factor @ factor.T,
            wavefront=wavefront,
            n_stars=metadata.get("n_stars"),
            misfit=metadata.get("misfit", float("nan")),
            model=card.name,
        )
    except (KeyError, ValueError, TypeError, struct.error, SafetensorError) as error:
        raise InputError("PSF field", f"a damaged file ({error})", "what the step psf wrote: run it again") from None


def card_of(data: bytes, cards: Iterable[ModelCard]) -> ModelCard:
    """Return the card of the model of a stored field; InputError if it is none of these."""
    try:
        identity = _metadata(data)["model"]
    except (KeyError, ValueError, TypeError, struct.error) as error:
        raise InputError("PSF field", f"a damaged file ({error})", "what the step psf wrote: run it again") from None
    for card in cards:
        if card.identity == identity:
            return card
    raise InputError("PSF field", f"model {identity[:12]}", "one that this run uses: run the step psf again")


def _model_basis(card: ModelCard, detector: int) -> PsfBasis:
    return load_basis(card, band_of(card, detector))


def _factor(field: PsfField) -> Float:
    """Return L (n, r) with ``L L' = covariance``, without combinations that are known better than `_MIN_SIGMA`.

    Coefficients are scaled by the norms of their images first. The factor is a Cholesky factor with pivoting, which
    ends where no remaining variance exceeds the limit.
    """
    basis = field.basis
    size = np.tile(np.linalg.norm(basis.images.reshape(len(basis), -1).astype(float), axis=1), len(field.coefficients))
    least = (_MIN_SIGMA * np.linalg.norm(basis.mean)) ** 2
    triangle, pivot, rank, _ = dpstrf(field.covariance * size * size[:, None], lower=1, tol=least)
    factor = np.zeros((len(size), rank))
    factor[pivot - 1] = np.tril(triangle)[:, :rank]
    return np.asarray(factor / size[:, None])


def _to_half(name: str, values: npt.NDArray[Any]) -> Tensors:
    """Return an array in half precision, with the scale that brings its largest value to one."""
    scale = np.float32(max(np.abs(values).max(initial=0), np.finfo(np.float32).tiny))
    return {name: (values / scale).astype(np.float16), f"{name}.scale": np.array([scale])}


def _from_half(name: str, tensors: Tensors) -> npt.NDArray[np.float32]:
    """Return the array that `_to_half` has stored."""
    return np.asarray(tensors[name].astype(np.float32) * tensors[f"{name}.scale"])


def _metadata(data: bytes) -> dict[str, Any]:
    """Return the metadata of safetensors: a JSON header behind its length in eight bytes."""
    (length,) = struct.unpack_from("<Q", data)
    metadata: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["csstdask"])
    return metadata


def _read_basis(metadata: dict[str, Any], tensors: Tensors, card: ModelCard) -> PsfBasis:
    """Return the basis of a field: that of the model's weights, or its own."""
    truncation_variance = _from_half("beyond_sigma", tensors) ** 2
    if model_kind(card) == EMPIRICAL:
        scatter = tensors["own"]
        return PsfBasis(
            mean=tensors["mean"],
            images=_from_half("images", tensors),
            field_covariance=tensors["field"],
            intrinsic_scatter=scatter,
            colour_covariance=np.zeros((0, len(scatter), len(scatter))),
            intrinsic_scatter_given_colour=scatter,
            degree=metadata["degree"],
            truncation_variance=truncation_variance,
        )
    basis = _model_basis(card, metadata["detector"])
    factor = max(1.0, metadata.get("misfit", 1.0))  # as in `PsfField.widened`
    return replace(
        basis,
        mean=basis.mean + _from_half("mean_change", tensors),
        intrinsic_scatter=basis.intrinsic_scatter * factor,
        truncation_variance=truncation_variance,
    )
