"""Repair of hit pixels: estimates of their values without the cosmic ray, with variances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from csstdask.arrays.adapter import adapt, convert_column, convert_mask
from csstdask.arrays.background import estimate_background
from csstdask.arrays.containers import read_container
from csstdask.arrays.frame import frame_variance
from csstdask.arrays.median import adaptive_median
from csstdask.arrays.mesh import Mesh
from csstdask.arrays.namespace import namespace_of, to_host
from csstdask.arrays.sources import find_sources
from csstdask.cosmicray.detect import Detection
from csstdask.nn.card import ModelCard
from csstdask.nn.models import EMPIRICAL, NO_PSF, find_card

if TYPE_CHECKING:
    from csstdask.psf.inpaint import StarRepair

#: Weight of the noise model against the sample variance of the donors [degrees of freedom].
_PRIOR_WEIGHT = 4.0
#: Detector id for a PSF that is fitted to the frame without a known detector.
_ANY_DETECTOR = 0


@dataclass(frozen=True)
class Inpainting:
    """Result of `inpaint`.

    Attributes
    ----------
    data : array (y, x)
        Repaired frame; all other pixels are bit-identical to the input.
    variance : float32 array (y, x)
        Variance of repaired pixels [e-^2]; inf where a hit pixel had no donor, NaN where nothing was repaired.
    model : ModelCard
        Card of the model that was used.
    """

    data: Any
    variance: Any
    model: ModelCard


@dataclass(frozen=True)
class NeighbourFill:
    """Estimates of hit pixels from their unmasked neighbours, in row-major order."""

    value: Any
    """(k,) Median of the donors [e-]; the value of the pixel itself if it has none."""
    variance: Any
    """(k,) float32, variance of (estimate - value without the cosmic ray) [e-^2]; inf without a donor."""

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
    psf: str | None = None,
) -> Inpainting:
    r"""Repair the pixels of one frame that cosmic rays have hit.

    Parameters
    ----------
    data : array (y, x)
        [e-], sky included; NumPy, CuPy or torch. Never modified. Masks, units and uncertainties are used as in
        `csstdask.cosmicray.detect`.
    cr_mask : bool array (y, x), or Detection
        Pixels to repair: a mask, or a result of `csstdask.cosmicray.detect`.
    error : array (y, x), optional
        1 sigma including Poisson noise [e-]; by default background noise plus Poisson noise.
    mask : bool array (y, x), optional
        True = ignore: never a donor, never changed. Non-finite pixels count as masked.
    sources : array (n, 2) or table, optional
        Zero-based x and y of stars and galaxies [pixel], or a table with such columns, for a network that repairs a
        stamp of 64 x 64 pixels around each; by default detected in the frame with its cosmic rays masked.
    device : optional
        Torch device of a network, by default that of the data.
    model : str
        ``default``, a name that ``csstdask models`` lists, or the path of a card that ``csstdask train inpaint`` wrote.
        ``median`` treats all pixels alike; networks repair the pixels of sources and leave the rest to the median.
    detector : int, optional
        Id of the detector in the instrument of `psf` (CSST; any integer with ``empirical``).
    psf : str, optional
        PSF model, as for `csstdask.psf.reconstruct`. Hit stars are repaired by the PSF that is fitted to the stars of
        the frame (`csstdask.psf.inpaint`), on the host, with sources that are detected in the frame.
        By default ``default`` if a detector is given, else ``empirical`` if the frame has enough stars
        (`csstdask.psf.frame.MIN_STARS_EMPIRICAL`). ``none``: stars are repaired like all other pixels.

    Returns
    -------
    Inpainting
        Arrays in the caller's library, on the caller's device.

    Raises
    ------
    ValueError
        If shapes differ, `data` is not 2-D, a model is unknown or does not support the detector, or the device does not
        exist.
    TypeError
        If `data`, `error` or a mask have a unit that cannot be converted to electrons, or carry something that would be
        hit_pixels.
    InputError
        If the card or the weights of the model cannot be used.

    Notes
    -----
    The variance is that of (repaired value - value without the cosmic ray): for `n` donors with the standard deviation
    `s` it is :math:`s^2 (1 + \pi / 2n)`, the noise of the pixel itself and that of a median. :math:`s^2` is the mean of
    the sample variance of the donors, which includes structure, with weight `n - 1`, and of their typical noise
    variance, which is more precise than a few donors, with weight 4.

    Where stamps overlap, a pixel belongs to the nearest source. A pixel without a donor within 5 pixels keeps its
    value with every model.

    Examples
    --------
    >>> frame = np.random.default_rng(1).normal(100, 5, (64, 64)).astype("float32")
    >>> hit = np.zeros((64, 64), bool)
    >>> hit[20, 20:26] = True
    >>> fixed = inpaint(np.where(hit, frame + 500, frame), hit, psf="none")
    >>> bool(fixed.data.max() < 130), bool(np.isfinite(fixed.variance[hit]).all())
    (True, True)
    """
    card = find_card("inpaint", model)
    inputs = adapt(data, error, mask)
    frame, ignore, adapter = inputs.data, inputs.ignore, inputs.adapter
    hits = read_container(cr_mask.mask if isinstance(cr_mask, Detection) else cr_mask, "cr_mask")
    hit = convert_mask(adapter, hits.values, frame.shape, "cr_mask")
    if hits.mask is not None:  # unknown whether hit: neither repaired nor donors
        ignore |= convert_mask(adapter, hits.mask, frame.shape, "cr_mask.mask")
    psf_model = select_psf_model(psf, detector)
    if not bool((hit & ~ignore).any()):
        variance = namespace_of(frame).full(frame.shape, np.nan, dtype=np.float32)
        return Inpainting(adapter.to_caller(frame.copy()), adapter.to_caller(variance), card)
    mesh = estimate_background(frame, hit | ignore)
    noise = frame_variance(frame, hit | ignore, mesh) if inputs.error is None else inputs.error * inputs.error
    fixed, variance = repair_frame(
        frame, hit, ignore, noise, mesh, card=card, psf=psf_model, detector=detector, sources=sources, device=device
    )
    return Inpainting(adapter.to_caller(fixed), adapter.to_caller(variance), card)


def select_psf_model(psf: str | None, detector: int | None) -> str:
    """Return the name of the PSF model that repairs stars, possibly ``none``.

    Raises
    ------
    ValueError
        If the model is unknown or does not support the detector.
    """
    chosen = psf if psf is not None else EMPIRICAL if detector is None else "default"
    if chosen != NO_PSF:
        from csstdask.psf.model_card import check_detector  # noqa: PLC0415

        if detector is None and chosen != EMPIRICAL:
            raise ValueError(f"detector: found none; wanted the id of one that the PSF model {chosen!r} knows")
        check_detector(find_card("psf", chosen), _ANY_DETECTOR if detector is None else detector)
    return chosen


def repair_frame(
    frame: Any,
    hit: Any,
    ignore: Any,
    noise: Any,
    mesh: Mesh,
    *,
    card: ModelCard,
    psf: str,
    detector: int | None,
    sources: Any = None,
    device: Any = None,
) -> tuple[Any, Any]:
    """Repair a frame with all methods, using one background and one list of sources.

    Parameters
    ----------
    frame : float array (y, x)
        [e-], sky included; NumPy or CuPy.
    hit, ignore : bool arrays (y, x)
        Pixels hit by cosmic rays, and unusable pixels.
    noise : float array (y, x)
        Noise variance of each pixel [e-^2].
    mesh : Mesh
        Background of the frame [e-].
    card : ModelCard
        Card of the repair model.
    psf : str
        Name of the PSF model, or ``none``.
    detector, sources, device : optional
        As in `inpaint`.

    Returns
    -------
    fixed : float array (y, x)
        Repaired frame [e-].
    variance : float32 array (y, x)
        Variance [e-^2], as in `Inpainting`.
    """
    target = hit & ~ignore
    fill = fill_from_neighbours(frame, target, ~(hit | ignore), noise, card)
    stars = None
    if psf != NO_PSF:
        stars, found = _repair_stars(frame, fill, target, ignore, noise, mesh, detector, psf)
        sources = found if sources is None else sources
    return combine_repairs(frame, hit, ignore, fill, card=card, stars=stars, sources=sources, mesh=mesh, device=device)


def fill_from_neighbours(frame: Any, target: Any, donor: Any, noise: Any, card: ModelCard) -> NeighbourFill:
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
        Card of the repair model; without parameters those of ``median`` apply.
    """
    xp = namespace_of(frame)
    settings = card.parameters or find_card("inpaint", "median").parameters
    work = frame if frame.dtype.itemsize >= 4 else frame.astype(np.float32)
    median, scatter, count = adaptive_median(work, target, donor, **settings)
    expected = _donor_noise(noise, target, donor, settings["largest_radius"])
    prior = xp.where(xp.isfinite(expected), expected, 0.0)
    samples = xp.where(count > 1, count - 1, 0)
    pooled = (xp.where(count > 1, scatter, 0.0) * samples + _PRIOR_WEIGHT * prior) / (samples + _PRIOR_WEIGHT)
    reachable = count > 0
    predicted = pooled * (1 + np.pi / (2 * xp.maximum(count, 1)))
    variance = xp.where(reachable, predicted, np.inf).astype(np.float32)
    return NeighbourFill(xp.where(reachable, median, frame[target]).astype(frame.dtype), variance)


def combine_repairs(
    frame: Any,
    hit: Any,
    ignore: Any,
    fill: NeighbourFill,
    *,
    card: ModelCard,
    stars: StarRepair | None = None,
    sources: Any = None,
    mesh: Mesh | None = None,
    device: Any = None,
) -> tuple[Any, Any]:
    """Combine the repairs from neighbours, from the PSF of stars, and by a network.

    Parameters
    ----------
    frame : float array (y, x)
        [e-], sky included; NumPy or CuPy.
    hit, ignore : bool arrays (y, x)
        Pixels hit by cosmic rays, and unusable pixels.
    fill : Fill
        Estimates of all hit, usable pixels from their neighbours.
    card : ModelCard
        Card of the repair model; a network repairs the pixels of sources.
    stars : StarRepair, optional
        Estimates of pixels of stars, which replace those from neighbours.
    sources, device : optional
        As in `inpaint`, for a network.
    mesh : Mesh, optional
        Background of the frame [e-], for a network; estimated by default.

    Returns
    -------
    fixed : float array (y, x)
        Repaired frame [e-].
    variance : float32 array (y, x)
        Variance [e-^2], as in `Inpainting`.
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
    """Repair the hit pixels of sources with a network, in place."""
    from csstdask.cosmicray.inpaint_network import repair_sources  # noqa: PLC0415  torch takes seconds to import

    xp = namespace_of(fixed)
    mesh = estimate_background(fixed, hit | ignore) if mesh is None else mesh
    if not bool(xp.isfinite(mesh.background).all()):
        return
    sky, noise = mesh.background_at(), mesh.noise_at()
    unknown = ignore | (target & ~xp.isfinite(variance))
    # Ignored pixels are filled like hit ones, as in the training of the network.
    median, _, _ = adaptive_median(fixed, unknown, ~(hit | unknown))
    filled = fixed.copy()
    filled[unknown] = xp.where(xp.isfinite(median), median, sky[unknown])
    filled = filled.astype(np.float32, copy=False)
    positions = (
        _detected_positions(filled - sky, noise, unknown | hit) if sources is None else _given_positions(sources)
    )
    which, value, estimated = repair_sources(filled, sky, noise, target & ~unknown, unknown, positions, card, device)
    fixed[which], variance[which] = value.astype(fixed.dtype), estimated


def _repair_stars(
    frame: Any, fill: NeighbourFill, target: Any, ignore: Any, noise: Any, mesh: Mesh, detector: int | None, psf: str
) -> tuple[StarRepair | None, Any]:
    """Return the repair of stars by the fitted PSF of the frame, and the sources that were measured for it.

    Both are None if the sky is unknown; the repair is None if there are too few stars to fit the PSF.
    """
    from csstdask.psf.frame import MIN_STARS_EMPIRICAL, MaskedFrame, fit_frame  # noqa: PLC0415
    from csstdask.psf.inpaint import repair_stars  # noqa: PLC0415

    fixed, variance = (to_host(plane) for plane in fill.applied(frame, target))
    hit_pixels, unusable = to_host(target), to_host(ignore)
    mesh = Mesh(to_host(mesh.background), to_host(mesh.noise), mesh.shape)
    if not np.isfinite(mesh.background).all() or not (mesh.noise > 0).any():
        return None, None
    masked = MaskedFrame.of(fixed, np.where(hit_pixels, variance, to_host(noise)), hit_pixels, unusable, mesh)
    sources = masked.measure_sources()
    number, fewest = (_ANY_DETECTOR, MIN_STARS_EMPIRICAL) if detector is None else (detector, 1)
    found = fit_frame(masked.height, masked.error, masked.unobserved, sources, number, model=psf, min_stars=fewest)
    return None if found is None else repair_stars(masked, sources, found.field, mesh), sources


def _detected_positions(height: Any, noise: Any, mask: Any) -> tuple[Any, Any]:
    found = find_sources(to_host(height), to_host(noise), to_host(mask))
    return found["y"].astype(np.float64), found["x"].astype(np.float64)


def _given_positions(sources: Any) -> tuple[Any, Any]:
    """Return y and x of a caller's sources, without those that are not finite.

    Raises
    ------
    ValueError
        If the sources are neither a table with x and y nor an array (n, 2).
    """
    try:
        columns = [sources[name] for name in ("x", "y")]
    except (TypeError, KeyError, IndexError, ValueError):
        pairs = convert_column(sources, "sources", "pix")
        if pairs.size and (pairs.ndim != 2 or pairs.shape[1] != 2):
            raise ValueError(f"sources: found shape {pairs.shape}; wanted (n, 2), or a table with x and y") from None
        columns = list(pairs.reshape(-1, 2).T)
    x, y = (convert_column(column, f"sources[{name!r}]", "pix") for name, column in zip("xy", columns, strict=True))
    known = np.isfinite(y) & np.isfinite(x)
    return y[known], x[known]


def _donor_noise(noise: Any, target: Any, donor: Any, largest_radius: int) -> Any:
    """Return the median noise variance of the donors around each target."""
    usable = donor & namespace_of(noise).isfinite(noise)
    median, _, _ = adaptive_median(noise, target, usable, largest_radius=largest_radius)
    return median.astype(np.float64)
