"""Zero points of all exposures and detectors of a campaign at once, from overlaps and reference stars.

The zero point of a unit (one detector in one exposure) is

    zp(exposure, detector) = e(exposure) + d(detector) + g(detector, epoch) + s(exposure, detector)

with a free exposure term e, a constant of the detector d ~ N(0, detector_sigma^2), a grey term g ~ N(0, grey_sigma^2)
and a small term s ~ N(0, small_sigma^2). A star of magnitude M observed in unit u has the instrumental magnitude
m = M - zp_u - c_u + noise, with a variance v + t: v as quoted, t the intrinsic one. The error c_u of all magnitudes of
a unit, such as that of an aperture correction, is N(0, unit_sigma_u^2). M is free, or has a reference magnitude with an
error that all observations of the star share.

Magnitudes are eliminated star by star (`joint_normal`), which leaves one sparse positive definite system; robust
weights, scale and intrinsic scatter come from iterations (`joint_robust`); errors are elements of the inverse of the
matrix (`joint_linear`).
Exposures that no chain of common stars ties to a reference star have no zero point, only values relative to each other
(`joint_graph`). The result does not depend on the order of the observations or on the labels of the stars.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from csstdask.zeropoint.joint_checks import check_joint_arguments
from csstdask.zeropoint.joint_graph import Components, exposure_components
from csstdask.zeropoint.joint_identify import identify_stars
from csstdask.zeropoint.joint_linear import Factor, factorise, sampled_variance, solve_iteratively
from csstdask.zeropoint.joint_normal import (
    Overlaps,
    PriorTerms,
    StarEquations,
    find_overlaps,
    precision_matrix,
    star_equations,
)
from csstdask.zeropoint.joint_observations import StarRows, group_by_star
from csstdask.zeropoint.joint_robust import (
    Loss,
    Precision,
    drop_inconsistent_exposures,
    intrinsic_scatter,
    measurement_precision,
    residual_scale,
    weighted_chi2,
)

__all__ = ["JointSettings", "JointSolution", "StarObservations", "identify_stars", "solve_joint"]

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

LEAST_SHARED = 1e-4
"""Errors common to the magnitudes of a unit that are taken into account [mag]: smaller ones cost precision."""


@dataclass(frozen=True)
class StarObservations:
    """Instrumental magnitudes of stars, one row per detection."""

    unit: npt.NDArray[np.int32]
    """(n,) Unit of each."""
    star: npt.NDArray[np.int32]
    """(n,) Label of the star, from 0, as `identify_stars` returns it."""
    magnitude: Float
    """(n,) Instrumental magnitude with flat and colour term applied; NaN or a sentinel: ignored."""
    variance: Float
    """(n,) Quoted variance [mag^2]."""


@dataclass(frozen=True)
class JointSettings:
    """Priors and iterations of the joint solve."""

    detector_sigma: float = 0.0
    """Prior error of the constant of a detector [mag]; 0: there is none."""
    grey_sigma: float = 0.02
    """Prior error of the term of a detector in an epoch [mag]."""
    small_sigma: float = 0.002
    """Prior error of the term of one unit [mag]."""
    scatter: float | None = None
    """Intrinsic scatter of an observation [mag]; estimated by default."""
    scatter_floor: float = 0.001
    """Least intrinsic scatter [mag]: quoted errors of 0 do not decide alone."""
    reference_floor: float = 0.001
    """Least error of a reference magnitude [mag]."""
    n_steps: int = 12
    """Most reweightings, of which the first third have Huber's weights and the others Tukey's; 0: least squares."""
    tolerance: float = 1e-5
    """Change of all zero points at which Tukey's weights are final [mag]."""
    max_nonzeros: int = 4_000_000
    """Matrices with more elements are not factored: solved by conjugate gradients, with errors from `n_samples`."""
    n_samples: int = 64
    """Random right-hand sides for errors of such matrices: a sigma is then known to 9 % or better."""


@dataclass(frozen=True, repr=False)
class JointSolution:
    """Zero points with errors, and what they consist of; arrays (unit,)."""

    value: Float
    """Zero point [mag]; NaN where no reference star anchors it."""
    sigma: Float
    """[mag]; inf where no reference star anchors it."""
    anchored: Bool
    """Whether a chain of common stars leads to a reference star."""
    component: Int
    """Connected component of the overlap graph, numbered by first exposure."""
    relative: Float
    """Zero point against the mean of its component [mag], for components without reference stars; else NaN."""
    n_stars: Int
    """Observations of positive weight."""
    exposure_term: Float
    """e of the unit's exposure [mag]; NaN where not anchored."""
    grey: Float
    """d + g of the unit's detector and epoch [mag]."""
    small: Float
    """s [mag]."""
    shared: Float
    """c, the error common to the magnitudes of the unit [mag]."""
    scatter: float
    """Intrinsic scatter [mag]."""
    chi2: float
    """Minimum of the objective: squares of measurements, with robust weights w and over E[w z^2], and of priors."""
    dof: int
    """Its expectation for normal errors: number of measurements of positive weight less that of free parameters."""
    n_iterations: int
    """Reweightings done."""

    @property
    def unanchored(self) -> dict[int, Int]:
        """Units of each component without reference stars."""
        labels = np.unique(self.component[~self.anchored])
        return {int(label): np.flatnonzero(self.component == label) for label in labels}

    def __repr__(self) -> str:
        """Return one line: how many units are solved, and how well."""
        alone = self.unanchored
        sigma = f"{np.median(self.sigma[self.anchored]):.2g} mag" if self.anchored.any() else "unknown"
        missing = f", {sum(map(len, alone.values()))} units in {len(alone)} unanchored components" if alone else ""
        ratio = self.chi2 / self.dof if self.dof > 0 else np.nan
        return (
            f"JointSolution({np.count_nonzero(self.anchored)} of {len(self.value)} units anchored, "
            f"median sigma {sigma}, scatter {self.scatter:.2g} mag, chi2/dof {ratio:.2f}{missing})"
        )


def solve_joint(
    observations: StarObservations,
    reference: npt.ArrayLike,
    reference_variance: npt.ArrayLike,
    exposure: npt.ArrayLike,
    detector: npt.ArrayLike,
    epoch: npt.ArrayLike,
    settings: JointSettings | None = None,
    *,
    unit_sigma: npt.ArrayLike | None = None,
    small_sigma: npt.ArrayLike | None = None,
    reference_scatter: npt.ArrayLike | None = None,
) -> JointSolution:
    """Solve for the zero points of all units.

    Zero points may be given against nominal values: add these to the magnitudes, and all detectors share the exposure
    term whatever their band. Stars of different bands are different stars.

    Parameters
    ----------
    observations : StarObservations
        Detections in any order.
    reference, reference_variance : array-like (star,)
        Reference magnitude of each star label and its variance; inf (or NaN) for none.
    exposure, detector, epoch : array-like (unit,)
        Labels of the units: numbers or names.
    settings : JointSettings, optional
        Priors and iterations.
    unit_sigma : array-like (unit,), optional
        1 sigma of the error that all magnitudes of a unit share, such as that of an aperture correction [mag]. The
        zero point is that of magnitudes without it. Errors below 0.1 mmag are left out.
    small_sigma : array-like (unit,), optional
        Prior error of the term of each unit [mag]; by default that of `settings`.
    reference_scatter : array-like (star,), optional
        Scatter of observations against reference magnitudes that quoted errors do not explain [mag], as single units
        show it. What observations of one star do not show among themselves is an error of its reference magnitude,
        which does not decrease with their number. Without it all of the scatter is that of observations.

    Returns
    -------
    JointSolution

    Raises
    ------
    InputError
        If arrays differ in length, labels are out of range, or a setting is not positive.

    Notes
    -----
    The error of a unit grows with its distance from reference stars in the overlap graph. A unit without stars in an
    anchored exposure has the error of the exposure and of the grey and small term.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> truth, sky = np.array([25.0, 25.1, 24.9]), rng.uniform(18, 22, 400)
    >>> star = np.concatenate([np.arange(200), np.arange(300), np.arange(300, 400)])
    >>> unit = np.repeat([0, 1, 2], [200, 300, 100])
    >>> magnitude = sky[star] - truth[unit] + 0.005 * rng.standard_normal(600)
    >>> seen = StarObservations(unit, star, magnitude, np.full(600, 0.005**2))
    >>> known = np.where(np.arange(400) < 50, sky, np.nan)
    >>> solution = solve_joint(seen, known, np.full(400, 1e-6), ["a", "b", "c"], [7, 7, 7], [0, 0, 0])
    >>> solution.value.round(2).tolist(), solution.anchored.tolist()
    ([25.0, 25.1, nan], [True, True, False])
    """
    settings = JointSettings() if settings is None else settings
    check_joint_arguments(observations, reference, reference_variance, exposure, detector, epoch, settings)
    units, prior = unit_terms(exposure, detector, epoch, unit_sigma, small_sigma, settings)
    position = np.empty(len(units), dtype=np.int32)
    position[units] = np.arange(len(units), dtype=np.int32)
    rows = group_by_star(
        observations.unit, observations.star, observations.magnitude, observations.variance,
        reference, reference_variance, reference_floor=settings.reference_floor, position=position,
    )  # fmt: skip
    spread = None if reference_scatter is None else np.asarray(reference_scatter, dtype=np.float64)[rows.label]
    return _solve(rows, prior, settings, position, spread)


@dataclass(frozen=True)
class _State:
    """One solution of the weighted normal equations."""

    precision: Precision
    components: Components
    equations: StarEquations
    matrix: sp.csc_array
    factor: Factor | None
    unknowns: Float
    """Levels y of the units, e, g, and zero points where they differ from the levels."""


def _solve(
    rows: StarRows,
    prior: PriorTerms,
    settings: JointSettings,
    position: npt.NDArray[np.int32],
    spread: Float | None,
) -> JointSolution:
    """Iterate weights and scatter; return the solution with the units in the caller's order."""
    n = prior.n_units
    pairs = find_overlaps(rows, n)
    scatter = settings.scatter_floor if settings.scatter is None else settings.scatter
    quoted = rows.reference_variance
    rows = _with_reference_scatter(rows, quoted, spread, scatter)
    scale, loss, step = 1.0, Loss.SQUARE, 0
    precision = measurement_precision(rows, np.zeros(n), scatter=scatter, scale=1.0, loss=loss)
    state = _weighted(rows, precision, prior, pairs, settings, None)
    for step in range(1, settings.n_steps + 1):
        zero_point = state.unknowns[:n]
        loss = Loss.HUBER if 3 * step <= settings.n_steps + 2 else Loss.TUKEY
        scale = residual_scale(rows, zero_point, scatter=scatter, scale=scale, loss=loss)
        if settings.scatter is None and loss is Loss.TUKEY:
            scatter = intrinsic_scatter(
                rows, zero_point, scatter=scatter, scale=scale, floor=settings.scatter_floor,
                with_reference=spread is None,
            )  # fmt: skip
            rows = _with_reference_scatter(rows, quoted, spread, scatter)
        precision = measurement_precision(rows, zero_point, scatter=scatter, scale=scale, loss=loss)
        state = _weighted(rows, precision, prior, pairs, settings, state)
        anchored = state.components.anchored[state.components.label][prior.exposure]
        change = np.abs(state.unknowns[:n] - zero_point)[anchored].max(initial=0.0)
        if loss is Loss.TUKEY and change < settings.tolerance:
            break
    consistent = drop_inconsistent_exposures(rows, precision, prior.exposure) if loss is Loss.TUKEY else None
    if consistent is not None:
        state = _weighted(rows, consistent, prior, pairs, settings, state)
    solution = _result(rows, state, prior, pairs, settings, loss)
    changed: dict[str, Any] = {
        name: value[position] for name, value in vars(solution).items() if isinstance(value, np.ndarray)
    }
    return replace(solution, **changed, scatter=float(scatter), n_iterations=step)


def _with_reference_scatter(rows: StarRows, quoted: Float, spread: Float | None, scatter: float) -> StarRows:
    """Return the stars with the scatter against the reference that is not one of observations, in its variance."""
    if spread is None:
        return rows
    return replace(rows, reference_variance=quoted + np.maximum(spread**2 - scatter**2, 0.0))


def _weighted(
    rows: StarRows,
    precision: Precision,
    prior: PriorTerms,
    pairs: Overlaps,
    settings: JointSettings,
    before: _State | None,
) -> _State:
    """Solve the normal equations of given weights."""
    components = exposure_components(rows, precision, prior.exposure, prior.n_exposures)
    equations = star_equations(rows, precision, pairs)
    matrix = precision_matrix(equations, pairs, prior, components.free)
    vector = np.zeros(matrix.shape[0])
    vector[: prior.n_units] = equations.vector
    if matrix.nnz <= settings.max_nonzeros:
        factored = factorise(matrix)
        return _State(precision, components, equations, matrix, factored, factored.solve(vector))
    start = None if before is None else before.unknowns
    return _State(precision, components, equations, matrix, None, solve_iteratively(matrix, vector, start)[0])


def _result(
    rows: StarRows, state: _State, prior: PriorTerms, pairs: Overlaps, settings: JointSettings, loss: Loss
) -> JointSolution:
    """Return values and errors, in the order of the prior's units."""
    n, exposures = prior.n_units, prior.n_exposures
    components = state.components
    label = components.label[prior.exposure]
    anchored = components.anchored[label]
    level, by_exposure, by_term, _ = np.split(state.unknowns, np.cumsum([n, exposures, prior.n_terms]))
    value = state.unknowns[prior.zero_point]
    deviation = prior.design @ state.unknowns
    if state.factor is not None:
        variance = state.factor.inverse_diagonal()
    else:
        variance = sampled_variance(state.matrix, state.equations, pairs, prior, components.free, settings.n_samples)
    mean = np.bincount(label, value) / np.maximum(np.bincount(label), 1)
    kept = state.precision.observation > 0
    penalty = ((deviation / prior.sigma) ** 2).sum() + ((by_term / prior.term_sigma) ** 2).sum()
    chi2, measurements = weighted_chi2(rows, state.precision, level, loss)
    return JointSolution(
        value=np.where(anchored, value, np.nan),
        sigma=np.where(anchored, np.sqrt(variance[prior.zero_point]), np.inf),
        anchored=anchored,
        component=label,
        relative=np.where(anchored, np.nan, value - mean[label]),
        n_stars=np.bincount(rows.unit[kept], minlength=n).astype(np.int64),
        exposure_term=np.where(anchored, by_exposure[prior.exposure], np.nan),
        grey=by_term[prior.terms].sum(axis=1),
        small=deviation[:n],
        shared=level - value,
        scatter=0.0,
        chi2=float(chi2 + penalty),
        dof=measurements - exposures + int(np.count_nonzero(~components.anchored)),
        n_iterations=0,
    )


def unit_terms(
    exposure: npt.ArrayLike,
    detector: npt.ArrayLike,
    epoch: npt.ArrayLike,
    unit_sigma: npt.ArrayLike | None,
    small_sigma: npt.ArrayLike | None,
    settings: JointSettings,
) -> tuple[Int, PriorTerms]:
    """Return the order of the units by exposure, detector and epoch, and their prior in this order."""
    exposures, of_exposure = np.unique(np.asarray(exposure), return_inverse=True)
    detectors, of_detector = np.unique(np.asarray(detector), return_inverse=True)
    _, of_epoch = np.unique(np.asarray(epoch), return_inverse=True)
    order = np.lexsort((of_epoch, of_detector, of_exposure)).astype(np.int64)
    grey_labels, grey = np.unique(of_epoch * max(len(detectors), 1) + of_detector, return_inverse=True)
    terms, term_sigma = [grey], [np.full(len(grey_labels), settings.grey_sigma)]
    if settings.detector_sigma > 0:
        terms.append(len(grey_labels) + of_detector)
        term_sigma.append(np.full(len(detectors), settings.detector_sigma))
    shared = np.zeros(len(order)) if unit_sigma is None else np.asarray(unit_sigma, dtype=np.float64)[order]
    small = settings.small_sigma if small_sigma is None else np.asarray(small_sigma, dtype=np.float64)[order]
    prior = PriorTerms(
        exposure=of_exposure[order].astype(np.int64),
        terms=np.column_stack(terms)[order].astype(np.int64),
        n_exposures=len(exposures),
        term_sigma=np.concatenate(term_sigma),
        unit_sigma=np.broadcast_to(np.asarray(small, dtype=np.float64), len(order)),
        shared_sigma=np.where(shared >= LEAST_SHARED, shared, 0.0),
        pin=settings.small_sigma,
    )
    return order, prior
