"""Zero points of all units of a campaign: joint solution, memory, prior and posterior, on arrays.

1. Each unit's own stars have given a zero point and its error (`csstdask.zeropoint.fit`).
2. The joint solution ties units together by common stars, exposures and epochs (`csstdask.zeropoint.joint`).
3. What is known without a unit's stars is its prior: a network that reads telemetry and earlier zero points, a local
   level of the earlier zero points alone, or the nominal value. Its error is scaled by how well it did before.
4. Stars and network are joined by precision. Where they disagree, one is wrong: the more precise one counts alone.

Zero points are offsets against a reference level on the way, so that bands and detectors can be compared: the nominal
zero point, or the median of the solved ones of a detector and band where the camera's description has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from csstdask.nn.models import NO_MODEL
from csstdask.zeropoint.features import PriorInputs, StarLists, star_lists
from csstdask.zeropoint.fit import COLOR_TERM
from csstdask.zeropoint.matched import MatchedStars
from csstdask.zeropoint.photometry import known_error
from csstdask.zeropoint.prior import NOMINAL_SIGMA, Prior, join, predict_prior, simple_prior
from csstdask.zeropoint.result import ALARM_SIGMA
from csstdask.zeropoint.state import LocalLevel, fit_local_level, online_scale, recent

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Text = npt.NDArray[np.object_]

MEMORY = 16
"""Earlier zero points of a detector that a prior may look back at."""
GAP_DAYS = 30.0
"""Time without exposures after which a zero point may have jumped [day]."""
LEAST_STARS = 3
"""Used stars without which a unit's zero point is no memory: a false match of one or two is not noticed."""
LEAST_OWN = 5
"""Used stars from which a unit's own zero point counts where the joint solution or earlier ones contradict it."""
DEGREES_OF_FREEDOM = 4.0
"""Of Student's t for the local level: single zero points that are wrong do not move it."""


@dataclass(frozen=True)
class CampaignStars:
    """Units of a campaign with the zero points of their own stars, and these stars for the joint solution."""

    exposure: Text
    """(u,) Ids."""
    detector: Int32
    """(u,)"""
    band: Text
    """(u,)"""
    days: Float
    """(u,) Begin of the exposure, since J2000; NaN where unknown."""
    nominal: Float
    """(u,) [mag]; NaN where unknown."""
    value: Float
    """(u,) Zero point of the unit's own stars [mag]; NaN without a usable star."""
    sigma: Float
    """(u,) inf without a usable star."""
    n_used: Int
    """(u,) Stars that it was fitted to."""
    color_term: Float
    """(u,) Of its own stars, joined with what was expected of it; NaN without colours."""
    color_term_err: Float
    """(u,)"""
    correction_err: Float
    """(u,) Error of the aperture correction, which all stars of a unit share [mag]; part of `sigma`."""
    lists: StarLists
    """(u, m, 7) What a network may know of the stars."""
    unit: Int32
    """(n,) Row of the unit of each star."""
    ra: Float
    """(n,) [deg]"""
    dec: Float
    reference: Int
    """(n,) Row in the reference catalogue; -1: not in it."""
    magnitude: Float32
    """(n,) Instrumental, with F(x, y) [mag]."""
    variance: Float32
    """(n,) [mag^2]"""
    color: Float32
    """(n,) Of the reference [mag]; NaN where unknown."""
    ref_mag: Float32
    """(n,) NaN where unknown [mag]."""
    ref_variance: Float32
    """(n,) inf where the magnitude is unknown [mag^2]."""

    @property
    def n_units(self) -> int:
        """Return the number of units."""
        return len(self.value)

    @classmethod
    def of(cls, stars: MatchedStars, most: int) -> CampaignStars:
        """Return one unit.

        Parameters
        ----------
        stars : MatchedStars
        most : int
            Stars with a reference that take part in the joint solution: those with the smallest errors.
        """
        magnitude, error = replace(stars, color_term=np.nan).corrected  # the colour term is that of the detector
        known = np.isfinite(stars.ref_mag)
        usable = np.isfinite(magnitude) & np.isfinite(error)
        # A star that the fit of its own unit has rejected is variable, or another one.
        tied = np.flatnonzero(usable & known & (stars.weight > 0))
        best = np.sort(tied[np.argsort(error[tied], kind="stable")][:most])
        chosen = np.concatenate([best, np.flatnonzero(usable & ~known)])
        ref_error = known_error(stars.ref_mag_err)
        names = ("inst_mag", "inst_mag_err", "ref_mag", "ref_mag_err", "color", "x", "y")
        return cls(
            exposure=np.array([stars.exposure], dtype=object),
            detector=np.array([stars.detector], dtype=np.int32),
            band=np.array([stars.band], dtype=object),
            days=np.array([stars.days]),
            nominal=np.array([stars.nominal]),
            value=np.array([stars.value]),
            sigma=np.array([stars.sigma if np.isfinite(stars.value) else np.inf]),
            n_used=np.array([stars.n_used], dtype=np.int64),
            color_term=np.array([stars.color_term]),
            color_term_err=np.array([stars.color_term_err]),
            correction_err=np.array([stars.correction_err]),
            lists=star_lists([{name: getattr(stars, name) for name in names}], shape=stars.shape),
            unit=np.zeros(len(chosen), dtype=np.int32),
            ra=stars.ra[chosen],
            dec=stars.dec[chosen],
            reference=stars.reference[chosen],
            magnitude=magnitude[chosen].astype(np.float32),
            variance=(error[chosen] ** 2).astype(np.float32),
            color=stars.color[chosen].astype(np.float32),
            ref_mag=stars.ref_mag[chosen].astype(np.float32),
            ref_variance=np.where(known, ref_error**2, np.inf)[chosen].astype(np.float32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[CampaignStars]) -> CampaignStars:
        """Return the units of several parts, in their order."""
        first = np.cumsum([0, *(part.n_units for part in parts)])
        longest = max(part.lists.values.shape[1] for part in parts)
        padded = [
            np.pad(one, ((0, 0), (0, longest - one.shape[1]), (0, 0)), constant_values=np.nan)
            for one in (part.lists.values for part in parts)
        ]
        lists = StarLists(np.concatenate(padded), np.concatenate([part.lists.count for part in parts]))
        unit = np.concatenate([part.unit + start for part, start in zip(parts, first[:-1], strict=True)])
        others = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in cls.__dataclass_fields__
            if name not in ("lists", "unit")
        }
        return cls(**others, lists=lists, unit=unit.astype(np.int32))


@dataclass(frozen=True)
class CampaignSettings:
    """What decides the zero points of a campaign, beyond their inputs."""

    match_radius: float = 1.0
    """Largest distance of two images of one star that is not in the reference [arcsec]."""
    epoch_days: float = 30.0
    """Time over which the grey term of a detector is constant [day]."""
    detector_sigma: float = NOMINAL_SIGMA
    """1 sigma of the constant of a detector against its nominal zero point [mag]."""
    grey_sigma: float = 0.02
    """1 sigma of the term of a detector in an epoch [mag]."""
    small_sigma: float = 0.002
    """1 sigma of the term of a unit, beyond those of its exposure and of its detector [mag]."""
    color_term: tuple[float, float] = COLOR_TERM
    """Expected colour term and its 1 sigma, as the units were fitted with [mag / mag]."""
    model: str = "default"
    """Network of the prior; ``none``: no network."""
    device: str | None = None


@dataclass(frozen=True)
class CampaignZeroPoints:
    """Zero points of the units of a campaign, all (u,) [mag]."""

    value: Float
    """NaN where nothing is known."""
    sigma: Float
    """inf where nothing is known."""
    method: npt.NDArray[np.str_]
    """solve: stars, of the unit or of others that are tied to it; joined: stars and network; prior: network; borrowed:
    earlier zero points; nominal: the camera's description."""
    prior: Float
    """What was expected without the unit's stars: of the network or of earlier zero points; NaN where neither is."""
    prior_sigma: Float
    joint: Float
    """Of the joint solution; NaN where it gives none."""
    joint_sigma: Float
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    """Numbers about the solution."""


@dataclass(frozen=True)
class _Tied:
    """Zero points of the joint solution as offsets."""

    offset: Float
    """NaN where there is none."""
    sigma: Float
    strained: npt.NDArray[np.bool_]
    """Whether the small term of a unit is beyond what is expected of it: the zero point is biased towards others."""
    metrics: dict[str, float | int | None]


def calibrate_campaign(
    stars: CampaignStars, telemetry: Mapping[str, npt.ArrayLike] | None = None, settings: CampaignSettings | None = None
) -> CampaignZeroPoints:
    """Return the zero points of all units of a campaign.

    Parameters
    ----------
    stars : CampaignStars
        Units with their stars, in any fixed order.
    telemetry : mapping of str to array-like (u,), optional
        Conditions of the exposure of each unit; NaN in gaps.
    settings : CampaignSettings, optional

    Examples
    --------
    >>> none, numbers = np.zeros(0), np.zeros(0, dtype=np.int64)
    >>> unit = MatchedStars(
    ...     id=numbers, reference=numbers, x=none, y=none, ra=none, dec=none, inst_mag=none, inst_mag_err=none,
    ...     ref_mag=none, ref_mag_err=none, color=none, weight=none, residual=none, coefficients=none, exposure="1",
    ...     detector=7, band="i", days=9000.0, shape=(512, 512), nominal=25.85, value=np.nan, sigma=np.inf,
    ...     correction_err=0.0, color_term=np.nan, color_term_err=np.nan, scatter=np.nan, n_matched=0, n_used=0,
    ... )
    >>> found = calibrate_campaign(CampaignStars.of(unit, 500))
    >>> found.value.tolist(), found.method.tolist()
    ([25.85], ['nominal'])
    """
    chosen = settings or CampaignSettings()
    series = np.unique([f"{d} {b}" for d, b in zip(stars.detector, stars.band, strict=True)], return_inverse=True)[1]
    level = reference_level(stars.nominal, stars.value, series.ravel())
    solved = stars.value - level
    tied = _joint(stars, level, series.ravel(), chosen)
    prior = campaign_prior(stars, level, series.ravel(), telemetry or {}, chosen)
    own, own_sigma = _stars_alone(stars, solved, tied)
    value, sigma, method = _posterior(stars, own, own_sigma, prior)
    informed = np.isin(prior.method, ("prior", "borrowed"))
    counts = {f"n_{name}": int((method == name).sum()) for name in ("solve", "joined", "prior", "borrowed", "nominal")}
    return CampaignZeroPoints(
        value=level + value,
        sigma=sigma,
        method=method,
        prior=np.where(informed, level + prior.value, np.nan),
        prior_sigma=np.where(informed, prior.sigma, np.inf),
        joint=level + tied.offset,
        joint_sigma=tied.sigma,
        metrics={
            "n_units": stars.n_units,
            **counts,
            "n_disagreeing": int(disagree(solved, stars.sigma, prior.value, prior.sigma)[informed].sum()),
            **tied.metrics,
        },
    )


def reference_level(nominal: Float, value: Float, series: npt.NDArray[np.intp]) -> Float:
    """Return the level of each unit that offsets are against: nominal, or the median of its series' solved values.

    Parameters
    ----------
    nominal, value : float64 array (u,)
        NaN where unknown.
    series : int array (u,)
        Labels of detector and band.

    Examples
    --------
    >>> unknown, solved = np.full(3, np.nan), np.array([25.0, 25.2, np.nan])
    >>> reference_level(unknown, solved, np.array([0, 0, 0])).tolist()
    [25.1, 25.1, 25.1]
    """
    level = np.array(nominal, dtype=np.float64)
    for one in np.unique(series[np.isnan(level)]):
        members = series == one
        known = value[members & np.isfinite(value)]
        if len(known):
            level[members & np.isnan(level)] = np.median(known)
    return level


def disagree(value: Float, sigma: Float, other: Float, other_sigma: Float) -> npt.NDArray[np.bool_]:
    """Return where two estimates differ by more than `ALARM_SIGMA` of the error of their difference."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(value - other) > ALARM_SIGMA * np.hypot(sigma, other_sigma))


def _joint(stars: CampaignStars, level: Float, series: npt.NDArray[np.intp], settings: CampaignSettings) -> _Tied:
    """Return the joint solution of all units, as offsets against their levels."""
    from csstdask.zeropoint.joint import JointSettings, StarObservations, solve_joint  # noqa: PLC0415  Numba is slow

    usable = np.flatnonzero(np.isfinite(level[stars.unit]))
    unit, n = stars.unit[usable], stars.n_units
    nothing = _Tied(
        np.full(n, np.nan), np.full(n, np.inf), np.zeros(n, bool), {"n_unanchored": 0, "n_unanchored_components": 0}
    )
    if not len(usable):
        return nothing
    label = _labels(stars, usable, settings.match_radius)
    magnitude, star_variance, color_error = corrected_magnitudes(stars, series, settings.color_term)
    reference, variance = np.full(label.max() + 1, np.nan), np.full(label.max() + 1, np.inf)
    known = np.isfinite(stars.ref_mag[usable]) & np.isfinite(stars.ref_variance[usable])
    reference[label[known]] = stars.ref_mag[usable][known]
    variance[label[known]] = stars.ref_variance[usable][known]
    epoch = np.floor(np.where(np.isfinite(stars.days), stars.days, 0.0) / settings.epoch_days).astype(np.int64)
    found = solve_joint(
        StarObservations(
            unit=unit,
            star=label,
            # The zero point that is solved for is the offset: its level belongs to the observation.
            magnitude=magnitude[usable] + level[unit],
            variance=star_variance[usable],
        ),
        reference,
        variance,
        np.unique(stars.exposure.astype(str), return_inverse=True)[1].ravel(),
        series,
        epoch,
        JointSettings(
            detector_sigma=settings.detector_sigma, grey_sigma=settings.grey_sigma, small_sigma=settings.small_sigma
        ),
        unit_sigma=stars.correction_err,
    )
    seen = np.bincount(unit, minlength=n) > 0
    lost = seen & ~found.anchored
    metrics: dict[str, float | int | None] = {
        "n_unanchored": int(lost.sum()),
        "n_unanchored_components": len(np.unique(found.component[lost])),
        "joint_scatter": float(found.scatter),
        "joint_chi2": float(found.chi2),
        "joint_dof": float(found.dof),
        "joint_iterations": int(found.n_iterations),
    }
    strained = np.abs(found.small) > ALARM_SIGMA * np.hypot(settings.small_sigma, stars.correction_err)
    known = found.anchored & np.isfinite(found.value) & np.isfinite(found.sigma) & np.isfinite(level)
    metrics["n_strained"] = int((known & strained).sum())
    # Errors that stars of a unit share: of the aperture, and of the colour term of its detector.
    sigma = np.sqrt(found.sigma**2 + color_error**2 + stars.correction_err**2)
    return _Tied(np.where(known, found.value, np.nan), np.where(known, sigma, np.inf), strained, metrics)


def _labels(stars: CampaignStars, rows: npt.NDArray[np.intp], radius: float) -> Int32:
    """Return a label for each star; images of a star in another band are another star."""
    from csstdask.zeropoint.joint import identify_stars  # noqa: PLC0415

    label, first = np.zeros(len(rows), dtype=np.int32), 0
    band = stars.band[stars.unit[rows]].astype(str)
    for name in np.unique(band):
        chosen = np.flatnonzero(band == name)
        some = rows[chosen]
        found = identify_stars(stars.ra[some], stars.dec[some], stars.reference[some], stars.unit[some], radius=radius)
        label[chosen] = first + found
        first += int(found.max()) + 1
    return label


def color_terms(
    value: Float, error: Float, series: npt.NDArray[np.intp], expected: tuple[float, float]
) -> tuple[Float, Float]:
    """Return the colour term of each detector and band from those of its units, and its error, for every unit.

    A filter has one colour term, and few stars do not tell it: units are averaged by precision. What was expected,
    which each of them was joined with, counts once.

    Parameters
    ----------
    value, error : float64 array (u,)
        NaN where unknown.
    series : int array (u,)
        Labels of detector and band.
    expected : (float, float)
        Mean and 1 sigma.

    Examples
    --------
    >>> unit = 0.1 * 0.02**2 / (0.02**2 + 0.1**2) + 0.05 * 0.1**2 / (0.02**2 + 0.1**2)  # 0.05 +- 0.02, joined with 0.1
    >>> error = (0.02**-2 + 0.1**-2) ** -0.5
    >>> found = color_terms(np.full(4, unit), np.full(4, error), np.zeros(4, dtype=int), (0.1, 0.1))
    >>> found[0].round(4).tolist(), found[1].round(4).tolist()
    ([0.0505, 0.0505, 0.0505, 0.0505], [0.01, 0.01, 0.01, 0.01])
    """
    mean, precision = expected[0], expected[1] ** -2.0
    known = np.isfinite(value) & np.isfinite(error) & (error > 0)
    own = np.where(known, np.where(known, error, 1.0) ** -2.0 - precision, 0.0)
    own = np.maximum(own, 0.0)
    moment = np.where(known, np.where(known, error, 1.0) ** -2.0 * np.nan_to_num(value) - precision * mean, 0.0)
    n = int(series.max()) + 1
    total = np.bincount(series, own, n) + precision
    found = (np.bincount(series, np.where(own > 0, moment, 0.0), n) + precision * mean) / total
    return found[series], total[series] ** -0.5


def corrected_magnitudes(
    stars: CampaignStars, series: npt.NDArray[np.intp], expected: tuple[float, float]
) -> tuple[Float, Float, Float]:
    """Return magnitudes (n,) with the colour term of their detector, their variances, and its error in each unit (u,).

    A star of unknown colour is given the mean colour of its unit, or of its detector.
    """
    term, error = color_terms(stars.color_term, stars.color_term_err, series, expected)
    color = stars.color.astype(np.float64)
    known = np.isfinite(color)
    unit, of_series = stars.unit[known], series[stars.unit[known]]
    n, m = stars.n_units, int(series.max()) + 1
    in_unit, in_series = np.bincount(unit, minlength=n), np.bincount(of_series, minlength=m)
    of_detector = np.bincount(of_series, color[known], m) / np.maximum(in_series, 1)
    mean = np.where(in_unit > 0, np.bincount(unit, color[known], n) / np.maximum(in_unit, 1), of_detector[series])
    spread = np.bincount(of_series, (color[known] - of_detector[of_series]) ** 2, m) / np.maximum(in_series, 1)
    used = np.where(known, color, mean[stars.unit])
    guessed = np.where(known, 0.0, spread[series[stars.unit]] * (term**2 + error**2)[stars.unit])
    colored = (in_series > 0)[series]
    magnitude = stars.magnitude + np.where(colored, term, 0.0)[stars.unit] * used
    return magnitude, stars.variance.astype(np.float64) + guessed, np.where(colored, error * np.abs(mean), 0.0)


def _stars_alone(stars: CampaignStars, solved: Float, tied: _Tied) -> tuple[Float, Float]:
    """Return what stars say of each unit: the joint solution, or the unit's own stars where that contradicts them.

    A unit that differs from others by more than the joint solution allows for is biased towards these, or its stars are
    left out. Too few stars do not contradict it: they may be other stars.
    """
    contradicted = tied.strained | disagree(solved, stars.sigma, tied.offset, tied.sigma)
    own = np.isnan(tied.offset) | (contradicted & np.isfinite(solved) & (stars.n_used >= LEAST_OWN))
    return np.where(own, solved, tied.offset), np.where(own, stars.sigma, tied.sigma)


def campaign_prior(
    stars: CampaignStars,
    level: Float,
    series: npt.NDArray[np.intp],
    telemetry: Mapping[str, npt.ArrayLike],
    settings: CampaignSettings,
) -> Prior:
    """Return what is known of each unit before its stars are looked at, as offsets against `level`.

    It is causal: memory, and the errors that scale sigma, are of exposures that began earlier.
    """
    n = stars.n_units
    conditions = {name: np.asarray(values, dtype=np.float64) for name, values in telemetry.items()}
    remembered = np.where(stars.n_used >= LEAST_STARS, stars.value, np.nan)
    memory = recent(stars.days, remembered, stars.sigma, last=MEMORY, series=series)
    inputs = PriorInputs(
        nominal=level,
        days=stars.days,
        telemetry=conditions,
        memory=memory,
        memory_telemetry={name: memory.of(values) for name, values in conditions.items()},
        stars=stars.lists,
    )
    network = settings.model != NO_MODEL and any(np.isfinite(values).any() for values in conditions.values())
    expected = predict_prior(inputs, model=settings.model, device=settings.device) if network else simple_prior(inputs)
    value, sigma, method = expected.value - level, expected.sigma.copy(), expected.method.astype("<U8")
    borrowed = method == "borrowed"
    if borrowed.any():
        mean, error = _local_level(stars.days, remembered - level, stars.sigma, series)
        better = borrowed & np.isfinite(mean) & np.isfinite(error)
        value[better], sigma[better] = mean[better], error[better]
    solved = remembered - level
    of_difference = np.where(method == "nominal", np.nan, np.hypot(sigma, stars.sigma))
    scale = online_scale(solved - value, of_difference, days=stars.days, groups=method) if n else np.ones(0)
    return Prior(value, np.where(method == "nominal", sigma, sigma * scale), method)


def _local_level(days: Float, value: Float, sigma: Float, series: npt.NDArray[np.intp]) -> tuple[Float, Float]:
    """Return what earlier zero points of a detector alone predict; NaN where they are too few to tell how it varies."""
    try:
        model: LocalLevel = fit_local_level(days, value, sigma, series, gap=GAP_DAYS, dof=DEGREES_OF_FREEDOM)
    except ValueError:  # no series of three
        return np.full(len(days), np.nan), np.full(len(days), np.inf)
    return model.predict(days, value, sigma, series=series)


def _posterior(
    stars: CampaignStars, value: Float, sigma: Float, prior: Prior
) -> tuple[Float, Float, npt.NDArray[np.str_]]:
    """Join what stars say with the network.

    Earlier zero points alone are not joined, for the joint solution knows them. They stand in where there are no stars,
    or few that contradict them.
    """
    solved = np.isfinite(value) & np.isfinite(sigma)
    few = stars.n_used < LEAST_OWN
    expected = solved & np.isfinite(prior.sigma) & ((prior.method == "prior") | (few & (prior.method == "borrowed")))
    joined, joined_sigma = join(value, sigma, prior)
    apart = expected & disagree(value, sigma, prior.value, prior.sigma)
    of_prior = ~solved | (apart & (prior.sigma < sigma))
    together = expected & (prior.method == "prior") & ~apart
    method = np.where(of_prior, prior.method, np.where(together, "joined", "solve"))
    return (
        np.where(of_prior, prior.value, np.where(together, joined, value)),
        np.where(of_prior, prior.sigma, np.where(together, joined_sigma, sigma)),
        method.astype("<U8"),
    )
