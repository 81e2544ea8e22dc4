"""Repair: what hit pixels would have held, and how well that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from csstdask.arrays.background import measure
from csstdask.arrays.median import adaptive_median
from csstdask.arrays.mesh import Mesh
from csstdask.arrays.namespace import Door, kind_of, namespace_of, open_door, to_host
from csstdask.arrays.sources import find_sources
from csstdask.cosmicray.detect import Detection, ignored_pixels, take_error
from csstdask.cosmicray.noise import frame_variance
from csstdask.nn.card import ModelCard
from csstdask.nn.models import find_card

if TYPE_CHECKING:
    from csstdask.cosmicray.star_repair import StarRepair

#: How many donors' worth of trust the noise model has against the donors' own scatter.
_PRIOR_WEIGHT = 4.0


@dataclass(frozen=True)
class Inpainting:
    """A repaired frame.

    Attributes
    ----------
    data : array (y, x)
        Untouched pixels are bit-identical to the input's.
    variance : float32 array (y, x)
        [e-^2] of repaired pixels, inf where a hit pixel had no donor, NaN where nothing was repaired.
    model : ModelCard
    """

    data: Any
    variance: Any
    model: ModelCard


@dataclass(frozen=True)
class Fill:
    """Estimates of hit pixels from their unmasked neighbours, in row-major order."""

    value: Any
    """(k,) [e-] The median of the donors; the pixel's own value where it has none."""
    variance: Any
    """(k,) float32 [e-^2] Of (estimate - what the pixel would have measured); inf where it has no donor."""

    def applied(self, frame: Any, target: Any) -> tuple[Any, Any]:
        """Return a copy of a frame with its target pixels filled, and their variance (y, x), NaN elsewhere."""
        xp = namespace_of(frame)
        fixed, variance = frame.copy(), xp.full(frame.shape, np.nan, dtype=np.float32)
        fixed[target], variance[target] = self.value.astype(frame.dtype), self.variance
        return fixed, variance


def inpaint(
    data: Any,
    cr_mask: Any,
    error: Any = None,
    mask: Any = None,
    *,
    sources: Any = None,
    model: str = "default",
    device: Any = None,
    detector: int | None = None,
    psf: str = "default",
) -> Inpainting:
    r"""Repair the pixels of one frame that cosmic rays have hit.

    Parameters
    ----------
    data : array (y, x)
        [e-], sky included; NumPy, CuPy or torch. Never modified.
    cr_mask : bool array (y, x), or Detection
        Pixels to repair; the result of `csstdask.cosmicray.detect` stands for its mask.
    error : array (y, x), optional
        1 sigma including Poisson noise [e-]; by default background noise plus Poisson.
    mask : bool array (y, x), optional
        True = ignore: never a donor, never changed. Non-finite pixels count as masked.
    sources : array (n, 2) or table, optional
        x and y of stars and galaxies [pixel], zero-based, or a table with such columns, for a network, which repairs a
        stamp of 64 x 64 pixels round each; by default found in the frame, its cosmic rays masked.
    device : optional
        Where a network runs, by default where the data is.
    model : str
        ``default``, a name that ``csstdask models`` lists, or the path of a card that ``csstdask train inpaint`` wrote.
        ``median`` treats all pixels alike; networks repair what belongs to sources, and leave the rest to the median.
    detector : int, optional
        Its id, as the instrument of `psf` has it (CSST; any integer with ``empirical``). Stars are then repaired by the
        PSF that is fitted to the frame's own stars (`csstdask.cosmicray.star_repair`), on the host, with sources that
        are found in the frame.
    psf : str
        Model of the PSF, as `csstdask.psf.reconstruct` takes it. Ignored without `detector`.

    Returns
    -------
    Inpainting
        Arrays of the caller's kind, on the caller's device.

    Raises
    ------
    ValueError
        If shapes differ, `data` is not 2-D, a model is unknown or does not know the detector, or this machine does not
        have the device.
    InputError
        If the model's card or weights cannot be used.

    Notes
    -----
    The variance is that of (repaired value - what the pixel would have measured): for `n` donors of scatter
    `s`, :math:`s^2 (1 + \pi / 2n)`, the pixel's own noise and that of a median. `s`
    combines the donors' sample variance, which sees structure, with their mean noise variance, which is
    known better than a handful of donors can tell: weights `n - 1` and 4.

    Where stamps overlap a pixel belongs to the nearest source; a pixel without a donor within 5 pixels keeps its value
    whatever the model.
    """
    card = find_card("inpaint", model)
    door = open_door(data)
    frame = door.take(data)
    if frame.dtype != door.dtype:
        frame = frame.astype(door.dtype)
    ignore = ignored_pixels(door, frame, mask)
    hit = _take_mask(door, cr_mask)
    if hit.shape != frame.shape:
        raise ValueError(f"cr_mask: found shape {hit.shape}; wanted that of data, {frame.shape}")
    if detector is not None:
        from csstdask.psf.reconstruct import check_detector  # noqa: PLC0415

        check_detector(find_card("psf", psf), detector)  # now, and not only where there is a star
    target = hit & ~ignore
    if not bool(target.any()):
        variance = namespace_of(frame).full(frame.shape, np.nan, dtype=np.float32)
        return Inpainting(door.give(frame.copy()), door.give(variance), card)
    noise = _noise_variance(door, error, frame, hit | ignore)
    fill = fill_from_neighbours(frame, target, ~(hit | ignore), noise, card)
    stars = None
    if detector is not None:
        stars = _stars_of(frame, fill, target, ignore, noise, detector, psf)
    fixed, variance = repair(frame, hit, ignore, fill, card=card, stars=stars, sources=sources, device=device)
    return Inpainting(door.give(fixed), door.give(variance), card)


def fill_from_neighbours(frame: Any, target: Any, donor: Any, noise: Any, card: ModelCard) -> Fill:
    """Estimate hit pixels by the median of their unmasked neighbours.

    Parameters
    ----------
    frame : float array (y, x)
        [e-]
    target, donor : bool arrays (y, x)
        Pixels to estimate, and pixels to estimate them from.
    noise : float array (y, x)
        Noise variance of each pixel [e-^2].
    card : ModelCard
        Of the model of repair; one without parameters takes those of ``median``.
    """
    xp = namespace_of(frame)
    settings = card.parameters or find_card("inpaint", "median").parameters
    work = frame if frame.dtype.itemsize >= 4 else frame.astype(np.float32)
    median, scatter, count = adaptive_median(work, target, donor, **settings)
    expected = _donor_noise(noise, target, donor, settings["largest_radius"])
    prior = xp.where(xp.isfinite(expected), expected, 0.0)
    samples = xp.where(count > 1, count - 1, 0)
    spread = (xp.where(count > 1, scatter, 0.0) * samples + _PRIOR_WEIGHT * prior) / (samples + _PRIOR_WEIGHT)
    reachable = count > 0
    predicted = spread * (1 + np.pi / (2 * xp.maximum(count, 1)))
    variance = xp.where(reachable, predicted, np.inf).astype(np.float32)
    return Fill(xp.where(reachable, median, frame[target]).astype(frame.dtype), variance)


def repair(
    frame: Any,
    hit: Any,
    ignore: Any,
    fill: Fill,
    *,
    card: ModelCard,
    stars: StarRepair | None = None,
    sources: Any = None,
    mesh: Mesh | None = None,
    device: Any = None,
) -> tuple[Any, Any]:
    """Repair a frame in up to three tiers: neighbours, stars by their PSF, sources by a network.

    Parameters
    ----------
    frame : float array (y, x)
        [e-], sky included; NumPy or CuPy.
    hit, ignore : bool arrays (y, x)
        Pixels hit by cosmic rays, and unusable pixels.
    fill : Fill
        The first tier, of the pixels that are hit and usable.
    card : ModelCard
        Of the model; a network makes the third tier.
    stars : StarRepair, optional
        The second tier.
    sources, device : optional
        As `inpaint` takes them, for a network.
    mesh : Mesh, optional
        Background of the frame [e-], for a network; by default measured.

    Returns
    -------
    fixed : float array (y, x)
        [e-]
    variance : float32 array (y, x)
        [e-^2] As that of `Inpainting`.
    """
    xp = namespace_of(frame)
    target = hit & ~ignore
    fixed, variance = fill.applied(frame, target)
    if stars is not None:
        which = xp.asarray(stars.pixels)
        fixed[which] = xp.asarray(stars.value).astype(fixed.dtype)
        variance[which] = xp.asarray(stars.variance)
        target = target & ~which
        hit = hit & (target | ignore)
    if card.architecture and bool(target.any()):
        _repair_sources(fixed, variance, target, hit, ignore, sources, card, device, mesh)
    return fixed, variance


def _repair_sources(
    fixed: Any,
    variance: Any,
    target: Any,
    hit: Any,
    ignore: Any,
    sources: Any,
    card: ModelCard,
    device: Any,
    mesh: Mesh | None,
) -> None:
    """Let a network repair the hit pixels of sources, in place."""
    from csstdask.cosmicray.source_repair import repair_sources  # noqa: PLC0415  torch takes seconds to import

    xp = namespace_of(fixed)
    mesh = measure(fixed, hit | ignore) if mesh is None else mesh
    if not bool(xp.isfinite(mesh.background).all()):
        return
    sky, noise = mesh.background_at(), mesh.noise_at()
    unknown = ignore | (target & ~xp.isfinite(variance))
    # Ignored pixels are filled as hit ones are: the network has been trained on such stamps.
    median, _, _ = adaptive_median(fixed, unknown, ~(hit | unknown))
    filled = fixed.copy()
    filled[unknown] = xp.where(xp.isfinite(median), median, sky[unknown])
    filled = filled.astype(np.float32, copy=False)
    places = _found(filled - sky, noise, unknown | hit) if sources is None else _given(sources)
    which, value, spread = repair_sources(filled, sky, noise, target & ~unknown, unknown, places, card, device)
    fixed[which], variance[which] = value.astype(fixed.dtype), spread


def _stars_of(
    frame: Any, fill: Fill, target: Any, ignore: Any, noise: Any, detector: int, psf: str
) -> StarRepair | None:
    """Fit the PSF of a frame, and repair its stars by it; None where the sky is unknown or no star shows the PSF."""
    from csstdask.cosmicray.star_repair import repair_stars  # noqa: PLC0415
    from csstdask.psf.frame import MaskedFrame, fit_frame  # noqa: PLC0415

    fixed, variance = (to_host(plane) for plane in fill.applied(frame, target))
    lost, unusable = to_host(target), to_host(ignore)
    mesh = measure(fixed, lost | unusable)
    if not np.isfinite(mesh.background).all():
        return None
    masked = MaskedFrame.of(fixed, np.where(lost, variance, to_host(noise)), lost, unusable, mesh)
    sources = masked.measure_sources()
    found = fit_frame(masked.height, masked.error, masked.unobserved, sources, detector, model=psf)
    return None if found is None else repair_stars(masked, sources, found.field, mesh)


def _take_mask(door: Door, cr_mask: Any) -> Any:
    """Return a mask of hit pixels as bool: booleans, integers 0 and 1, or the result of `detect`.

    Raises
    ------
    ValueError
        If it holds anything else, such as probabilities.
    """
    given = cr_mask.mask if isinstance(cr_mask, Detection) else cr_mask
    taken = door.take(given)
    if taken.dtype.kind != "b" and (taken.dtype.kind not in "iu" or bool(((taken != 0) & (taken != 1)).any())):
        raise ValueError(
            f"cr_mask: found {taken.dtype} values; wanted booleans (of probabilities: probability >= threshold)"
        )
    return taken.astype(bool)


def _found(height: Any, noise: Any, mask: Any) -> tuple[Any, Any]:
    found = find_sources(to_host(height), to_host(noise), to_host(mask))
    return found["y"].astype(np.float64), found["x"].astype(np.float64)


def _given(sources: Any) -> tuple[Any, Any]:
    """Return y and x of a caller's sources.

    Raises
    ------
    ValueError
        If they are neither a table with x and y, nor an array (n, 2). Places that are not finite are left out.
    """
    try:
        x, y = sources["x"], sources["y"]
    except (TypeError, KeyError, IndexError, ValueError):
        pairs = np.asarray(_on_host(sources), dtype=np.float64)
        if pairs.size and (pairs.ndim != 2 or pairs.shape[1] != 2):
            raise ValueError(f"sources: found shape {pairs.shape}; wanted (n, 2), or a table with x and y") from None
        x, y = pairs.reshape(-1, 2).T
    y, x = (np.asarray(_on_host(place), dtype=np.float64) for place in (y, x))
    known = np.isfinite(y) & np.isfinite(x)
    return y[known], x[known]


def _on_host(array: Any) -> Any:
    return array.detach().cpu().numpy() if kind_of(array) == "torch" else to_host(array)


def _noise_variance(door: Any, error: Any, frame: Any, excluded: Any) -> Any:
    if error is None:
        return frame_variance(frame, excluded)
    sigma = take_error(door, error, frame)
    return sigma * sigma


def _donor_noise(noise: Any, target: Any, donor: Any, largest_radius: int) -> Any:
    """Return a typical noise variance of the donors round each target: their median."""
    usable = donor & namespace_of(noise).isfinite(noise)
    median, _, _ = adaptive_median(noise, target, usable, largest_radius=largest_radius)
    return median.astype(np.float64)
