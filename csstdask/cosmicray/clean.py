"""Detection and repair of one frame in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from csstdask.arrays.adapter import adapt
from csstdask.arrays.namespace import namespace_of
from csstdask.cosmicray.detect import detect_probability, select_threshold
from csstdask.cosmicray.inpaint import repair_frame, select_psf_model
from csstdask.nn.models import find_card


@dataclass(frozen=True)
class Cleaned:
    """A frame whose cosmic rays have been found and repaired.

    Attributes
    ----------
    mask : bool array (y, x)
        Pixels that a cosmic ray has hit.
    data : array (y, x)
        [e-], sky included, with these pixels repaired. All others are bit-identical to the input's.
    variance : float32 array (y, x)
        [e-^2] of (repaired value - what the pixel would have measured); inf where a hit pixel had no donor, so that it
        kept its value; NaN where nothing was repaired.
    """

    mask: Any
    data: Any
    variance: Any


def clean(
    data: Any,
    error: Any = None,
    mask: Any = None,
    *,
    model: str = "default",
    detector: int | None = None,
    psf: str | None = None,
    device: Any = None,
) -> Cleaned:
    """Find the cosmic rays of one frame, and repair the pixels that they have hit.

    The result is that of `csstdask.cosmicray.detect` followed by `csstdask.cosmicray.inpaint`, with the default model
    of repair. Background and noise are measured once for both, and sources once for the PSF and the repair.

    Parameters
    ----------
    data : array (y, x)
        [e-], sky included; NumPy, CuPy or torch, either byte order, integers or floats. Never modified. The mask, unit
        and uncertainty of a masked array, ``Quantity``, ``CCDData`` or ``DataArray`` are used
        (`csstdask.arrays.containers`).
    error : array (y, x), optional
        1 sigma including Poisson noise [e-]; by default background noise plus Poisson.
    mask : bool array (y, x), optional
        True = ignore: never hit, never a donor, never changed. Non-finite pixels count as masked.
    model : str
        Of detection: ``default``, ``unet-fast`` (seventeen times as cheap), ``lacosmic``, another name that
        ``csstdask models`` lists, or the path of a card that ``csstdask train cosmicray`` wrote.
    detector : int, optional
        Id of the CSST detector, whose PSF is then known beforehand. Without it the PSF is learnt from the frame.
    psf : str, optional
        Model of the PSF that repairs hit stars, as `csstdask.cosmicray.inpaint` takes it; ``none`` is the fastest.
    device : optional
        Where the network runs, by default where the data is.

    Returns
    -------
    Cleaned
        Arrays of the caller's kind, on the caller's device. Floats keep their type; integers become float32.

    Raises
    ------
    ValueError
        If shapes differ, `data` is not 2-D, a model is unknown, or this machine does not have the device.
    TypeError
        If `data`, `error` or `mask` have a unit that does not convert to electrons, or carry something that would be
        lost.
    InputError
        If a model's card or weights cannot be used.

    Examples
    --------
    >>> import csstdask, numpy as np
    >>> frame = np.random.default_rng(1).normal(100, 5, (64, 64)).astype("float32")
    >>> frame[20, 20:26] += 500  # a cosmic ray
    >>> cleaned = csstdask.clean(frame, model="unet-fast")
    >>> int(cleaned.mask[20, 20:26].sum()), bool(cleaned.data.max() < 130)
    (6, True)
    """
    card, repair_card = find_card("cosmicray", model), find_card("inpaint", "default")
    cut = select_threshold(card)
    psf_model = select_psf_model(psf, detector)
    given = adapt(data, error, mask)
    xp, to_caller = namespace_of(given.data), given.adapter.to_caller
    probability, view = detect_probability(given, card, device=device)
    hit = (probability >= cut) & ~given.ignore
    if view is None or not bool(hit.any()):
        variance = xp.full(given.data.shape, np.nan, dtype=np.float32)
        return Cleaned(to_caller(hit), to_caller(given.data.copy()), to_caller(variance))
    noise = view.error * view.error
    fixed, variance = repair_frame(
        given.data, hit, given.ignore, noise, view.mesh, card=repair_card, psf=psf_model, detector=detector
    )
    return Cleaned(to_caller(hit), to_caller(fixed), to_caller(variance))
