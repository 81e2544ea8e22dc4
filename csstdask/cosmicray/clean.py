"""Detection and repair of one frame in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from csstdask.arrays.adapter import adapt
from csstdask.arrays.namespace import namespace_of
from csstdask.cosmicray.detect import detect_probability, select_threshold, without_straight_features
from csstdask.cosmicray.inpaint import repair_frame, select_psf_model
from csstdask.nn.models import find_card
from csstdask.nn.precision import PrecisionSetting


@dataclass(frozen=True)
class Cleaned:
    """Result of `clean`: a frame whose cosmic rays are detected and repaired.

    Attributes
    ----------
    mask : bool array (y, x)
        Pixels that cosmic rays have hit.
    data : array (y, x)
        [e-], sky included, with these pixels repaired. All others are bit-identical to the input.
    variance : float32 array (y, x)
        Variance [e-^2] of (repaired value - value without the cosmic ray); inf where a hit pixel had no donor and keeps
        its value; NaN where nothing was repaired.
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
    precision: PrecisionSetting = "auto",
) -> Cleaned:
    """Detect the cosmic rays of one frame and repair the pixels that they have hit.

    The result is that of `csstdask.cosmicray.detect` followed by `csstdask.cosmicray.inpaint` with the default model.
    Background and noise are estimated once for both, and sources once for the PSF and the repair.

    Parameters
    ----------
    data : array (y, x)
        [e-], sky included; NumPy, CuPy or torch, either byte order, integers or floats. Never modified. The mask, unit
        and uncertainty of a masked array, ``Quantity``, ``CCDData`` or ``DataArray`` are used
        (`csstdask.arrays.containers`).
    error : array (y, x), optional
        1 sigma including Poisson noise [e-]; by default background noise plus Poisson noise.
    mask : bool array (y, x), optional
        True = ignore: never flagged, never a donor, never changed. Non-finite pixels count as masked.
    model : str
        Detection model: ``default``, ``unet-fast`` (a seventeenth of the cost), ``lacosmic``, another name that
        ``csstdask models`` lists, or the path of a card that ``csstdask train cosmicray`` wrote.
    detector : int, optional
        Id of the CSST detector, which selects its PSF model. By default the PSF is fitted to stars of the frame.
    psf : str, optional
        Model of the PSF for the repair of stars, as `csstdask.cosmicray.inpaint` takes it; ``none`` is the fastest.
    device : optional
        Torch device of the network, by default that of the data.
    precision : str
        Arithmetic of the detection network, as `csstdask.cosmicray.detect` takes it.

    Returns
    -------
    Cleaned
        Arrays in the caller's library, on the caller's device. Floats keep their type; integers become float32.

    Raises
    ------
    ValueError
        If shapes differ, `data` is not 2-D, a model is unknown, or the device does not exist.
    TypeError
        If `data`, `error` or `mask` have a unit that cannot be converted to electrons, or carry something that would be
        lost.
    InputError
        If the card or the weights of a model cannot be used.

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
    inputs = adapt(data, error, mask)
    xp, to_caller = namespace_of(inputs.data), inputs.adapter.to_caller
    probability, prepared = detect_probability(inputs, card, device=device, precision=precision)
    hit = (probability >= cut) & ~inputs.ignore
    hit, _ = without_straight_features(hit, inputs, None if prepared is None else prepared.mesh)
    if prepared is None or not bool(hit.any()):
        variance = xp.full(inputs.data.shape, np.nan, dtype=np.float32)
        return Cleaned(to_caller(hit), to_caller(inputs.data.copy()), to_caller(variance))
    noise = prepared.error * prepared.error
    fixed, variance = repair_frame(
        inputs.data, hit, inputs.ignore, noise, prepared.mesh, card=repair_card, psf=psf_model, detector=detector
    )
    return Cleaned(to_caller(hit), to_caller(fixed), to_caller(variance))
