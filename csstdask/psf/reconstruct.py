"""The PSF at stars: from undersampled stamps to half-pixel sampling, each pixel with its sigma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.namespace import kind_of, to_host
from csstdask.errors import InputError
from csstdask.instrument import Instrument, load_instrument
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card
from csstdask.psf.field import PsfField, half_pixels, on_unit
from csstdask.psf.fit import FieldFit, fit_field
from csstdask.psf.principal import polynomials, principal_psfs

Float = npt.NDArray[np.float64]

#: Edge of a stamp [pixel].
SIZE = 32
#: Rows and columns along a stamp's edge whose scatter is taken for the noise where none is told.
_RIM = 3


@dataclass(frozen=True)
class Reconstruction:
    """PSFs at n stars.

    Attributes
    ----------
    image : float32 array (n, 64, 64)
        Effective PSF (native pixel included) at half-pixel sampling, centred on ``[32, 32]``; sums to 1.
    sigma : float32 array (n, 64, 64)
        One sigma of each of its pixels.
    chi2 : float64 array (n,)
        Of each star's pixels beside what was fitted, a degree of freedom.
    used : bool array (n,)
        Whether the star took part in what its detector's stars say together: blends and galaxies do not.
    fields : dict
        `PsfField` of each detector, which answers at any place.
    model : ModelCard
    """

    image: Any
    sigma: Any
    chi2: Float
    used: npt.NDArray[np.bool_]
    fields: dict[int, PsfField]
    model: ModelCard


def reconstruct(
    stamps: Any,
    detector: Any,
    x: Any,
    y: Any,
    *,
    error: Any = None,
    mask: Any = None,
    model: str = "default",
    device: Any = None,  # noqa: ARG001  the fit runs on the host: a second for a thousand stars
) -> Reconstruction:
    """Reconstruct the PSF at each of some stars; those of one detector lean on each other.

    Parameters
    ----------
    stamps : array (n, 32, 32)
        Of stars, of any flux and unit, on a sky that is constant or gone. Pixel ``[16, 16]`` is the detector's pixel
        ``[floor(y + 0.5), floor(x + 0.5)]``.
    detector : int array (n,)
        Ids, as the model's instrument has them.
    x, y : float array (n,)
        Of each star on its whole detector, zero-based [pixel].
    error : array (n, 32, 32), optional
        1 sigma, in units of the stamps; by default the scatter along a stamp's edge, everywhere.
    mask : bool array (n, 32, 32), optional
        True = ignore. Pixels that are not finite, or whose error is not, are ignored as well.
    model : str
        ``default``, a name that ``csstdask models`` lists, or the path of a card that ``csstdask train psf`` wrote.
    device : optional
        Taken for the sake of the other models.

    Returns
    -------
    Reconstruction
        Images of the caller's kind of array, on the host.

    Raises
    ------
    ValueError
        If shapes differ, a place is not finite, the model or a detector is unknown.
    InputError
        If the model's card or weights cannot be used.
    """
    card = find_card("psf", model)
    pixels = np.asarray(_on_host(stamps), dtype=np.float32)
    if pixels.ndim != 3 or pixels.shape[1:] != (SIZE, SIZE):
        raise ValueError(f"stamps: found shape {pixels.shape}; wanted (n, {SIZE}, {SIZE})")
    n = len(pixels)
    ids = np.asarray(_on_host(detector)).astype(np.int64)
    across, down = (np.asarray(_on_host(place), dtype=np.float64) for place in (x, y))
    for name, values in (("detector", ids), ("x", across), ("y", down)):
        if values.shape != (n,):
            raise ValueError(f"{name}: found shape {values.shape}; wanted ({n},)")
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: found a value that is not finite")
    variance = _variance(pixels, error, mask)
    instrument = load_instrument(card.architecture["instrument"])
    image, sigma = np.empty((n, 64, 64), np.float32), np.empty((n, 64, 64), np.float32)
    chi2, used = np.full(n, np.nan), np.zeros(n, dtype=bool)
    fields: dict[int, PsfField] = {}
    for one in np.unique(ids):
        some = np.flatnonzero(ids == one)
        fit, field = fit_detector(card, instrument, int(one), pixels[some], variance[some], across[some], down[some])
        image[some], sigma[some] = half_pixels(fit.psfs, fit.amounts, fit.spread)
        chi2[some], used[some] = fit.chi2, fit.used
        fields[int(one)] = field
    given = _like(stamps)
    return Reconstruction(given(image), given(sigma), chi2, used, fields, card)


def fit_detector(
    card: ModelCard,
    instrument: Instrument,
    detector: int,
    pixels: npt.NDArray[np.float32],
    variance: npt.NDArray[np.float32],
    x: Float,
    y: Float,
) -> tuple[FieldFit, PsfField]:
    """Fit the stars of one detector.

    Parameters
    ----------
    card : ModelCard
        Of principal PSFs.
    instrument : Instrument
        The card's.
    detector : int
        Its id.
    pixels, variance : float32 arrays (n, y, x)
        As `csstdask.psf.fit.fit_field` takes them.
    x, y : float64 arrays (n,)
        Of each star on the whole detector, zero-based [pixel].

    Raises
    ------
    ValueError
        If the instrument has no such detector, or the card knows nothing of its band.
    """
    known = {one.id: one.band for one in instrument.detectors if one.band in card.architecture["bands"]}
    if detector not in known:
        raise ValueError(f"detector: found {detector}; wanted one of {', '.join(map(str, sorted(known)))}")
    try:
        psfs = principal_psfs(card, str(known[detector]))
    except KeyError as error:
        raise InputError(card.name, f"no tensor {error}", "weights as its card has them") from None
    shape = instrument.shape or (1, 1)
    fit = fit_field(
        psfs,
        pixels,
        variance,
        x - np.floor(x + 0.5),
        y - np.floor(y + 0.5),
        polynomials(*on_unit(x, y, shape), psfs.degree),
    )
    return fit, PsfField(detector, shape, psfs, fit.field, fit.covariance)


def _variance(pixels: npt.NDArray[np.float32], error: Any, mask: Any) -> npt.NDArray[np.float32]:
    """Return the variance of each pixel, inf where it is ignored."""
    if error is None:
        rim = np.ones((SIZE, SIZE), dtype=bool)
        rim[_RIM:-_RIM, _RIM:-_RIM] = False
        edge = pixels[:, rim]
        middle = np.nanmedian(edge, axis=1, keepdims=True)
        scatter = 1.4826 * np.nanmedian(np.abs(edge - middle), axis=1)
        variance = np.broadcast_to((scatter**2)[:, None, None], pixels.shape).astype(np.float32)
    else:
        sigma = np.asarray(_on_host(error), dtype=np.float32)
        if sigma.shape != pixels.shape:
            raise ValueError(f"error: found shape {sigma.shape}; wanted that of stamps, {pixels.shape}")
        variance = sigma**2
    ignored = ~np.isfinite(pixels) | ~np.isfinite(variance) | (variance <= 0)
    if mask is not None:
        given = np.asarray(_on_host(mask), dtype=bool)
        if given.shape != pixels.shape:
            raise ValueError(f"mask: found shape {given.shape}; wanted that of stamps, {pixels.shape}")
        ignored |= given
    return np.where(ignored, np.float32(np.inf), variance)


def _on_host(array: Any) -> Any:
    return array.detach().cpu().numpy() if kind_of(array) == "torch" else to_host(array)


def _like(stamps: Any) -> Any:
    """Return what makes a host array one of the caller's kind."""
    if kind_of(stamps) != "torch":
        return lambda array: array
    import torch  # noqa: PLC0415  it takes seconds to import

    return torch.from_numpy
