"""Zero points of all exposures and detectors of a campaign at once, from overlaps and reference stars.

The zero point of a unit (one detector in one exposure) is

    zp(exposure, detector) = e(exposure) + d(detector) + g(detector, epoch) + s(exposure, detector)

with a free exposure term e, a constant of the detector d ~ N(0, detector_sigma^2), a grey term g ~ N(0, grey_sigma^2)
and a small term s ~ N(0, small_sigma^2). A star of magnitude M observed in unit u has the instrumental magnitude
m = M - zp_u - c_u + noise, with a variance v + t: v as quoted, t the intrinsic one. The error c_u of all magnitudes of
a unit, such as that of an aperture correction, is N(0, unit_sigma_u^2). M is free, or has a reference magnitude with an
error that all observations of the star share.

Magnitudes are eliminated star by star (`normal_equations`), which leaves one sparse positive definite system. Robust
weights, scale and intrinsic scatter are iterated (`robust`). Errors are elements of the inverse of the matrix
(`linear_algebra`). Exposures that no chain of common stars ties to a reference star have no zero point, only values
relative to each other (`components`). The result does not depend on the order of the observations or on the labels of
the stars.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from csstdask.zeropoint.joint.components import Components, exposure_components
from csstdask.zeropoint.joint.linear_algebra import Factor, factorise, sampled_variance, solve_iteratively
from csstdask.zeropoint.joint.normal_equations import (
    Overlaps,
    StarEquations,
    find_overlaps,
    precision_matrix,
    star_equations,
)
from csstdask.zeropoint.joint.observations import GroupedObservations, group_by_star
from csstdask.zeropoint.joint.prior_terms import PriorTerms, unit_terms
from csstdask.zeropoint.joint.robust import (
    Loss,
    Precision,
    drop_inconsistent_exposures,
    intrinsic_scatter,
    measurement_precision,
    residual_scale,
    weighted_chi2,
)
from csstdask.zeropoint.joint.solution import JointSettings, JointSolution, StarObservations, check_arguments

Float = npt.NDArray[np.float64]


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

    Zero points may be relative to nominal values: if these are added to the magnitudes, all detectors share the
    exposure term, whatever their band. Stars of different bands are different stars.

    Parameters
    ----------
    observations : StarObservations
        Detections in any order.
    reference, reference_variance : array-like (star,)
        Reference magnitude of each star label [mag] and its variance [mag^2]; inf or NaN for none.
    exposure, detector, epoch : array-like (unit,)
        Labels of the units: numbers or names.
    settings : JointSettings, optional
        Priors and iterations.
    unit_sigma : array-like (unit,), optional
        1 sigma of the error that all magnitudes of a unit share, such as that of an aperture correction [mag]. The
        zero point is that of magnitudes without it. Errors below 0.1 mmag are neglected.
    small_sigma : array-like (unit,), optional
        Prior error of the term of each unit [mag]; by default that of `settings`.
    reference_scatter : array-like (star,), optional
        Scatter of observations about reference magnitudes beyond quoted errors, as single units show it [mag]. The part
        that observations of one star do not show among themselves is an error of its reference magnitude, which does
        not average down. By default all of the scatter is that of observations.

    Returns
    -------
    JointSolution
        Zero points and terms of the units, in the order given.

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
    >>> observations = StarObservations(unit, star, magnitude, np.full(600, 0.005**2))
    >>> reference = np.where(np.arange(400) < 50, sky, np.nan)
    >>> solution = solve_joint(observations, reference, np.full(400, 1e-6), ["a", "b", "c"], [7, 7, 7], [0, 0, 0])
    >>> solution.value.round(2).tolist(), solution.anchored.tolist()
    ([25.0, 25.1, nan], [True, True, False])
    """
    settings = JointSettings() if settings is None else settings
    check_arguments(observations, reference, reference_variance, exposure, detector, epoch, settings)
    order, prior = unit_terms(exposure, detector, epoch, unit_sigma, small_sigma, settings)
    position = np.empty(len(order), dtype=np.int32)  # of each of the caller's units in the canonical order
    position[order] = np.arange(len(order), dtype=np.int32)
    grouped = group_by_star(
        observations.unit, observations.star, observations.magnitude, observations.variance,
        reference, reference_variance, reference_floor=settings.reference_floor, position=position,
    )  # fmt: skip
    if reference_scatter is not None:
        reference_scatter = np.asarray(reference_scatter, dtype=np.float64)[grouped.label]
    solution = _iterate(_System(grouped, prior, find_overlaps(grouped, prior.n_units), settings), reference_scatter)
    in_caller_order: dict[str, Any] = {
        name: value[position] for name, value in vars(solution).items() if isinstance(value, np.ndarray)
    }
    return replace(solution, **in_caller_order)


@dataclass(frozen=True)
class _System:
    """Observations and priors in canonical order."""

    grouped: GroupedObservations
    prior: PriorTerms
    pairs: Overlaps
    settings: JointSettings


@dataclass(frozen=True)
class _WeightedSolution:
    """Solution of the normal equations for given weights."""

    precision: Precision
    components: Components
    equations: StarEquations
    matrix: sp.csc_array
    factor: Factor | None
    unknowns: Float
    """Levels y of the units, e, g, and zero points where they differ from the levels."""


def _iterate(system: _System, reference_scatter: Float | None) -> JointSolution:
    """Iterate weights and scatter, then compute errors; return the solution in canonical order."""
    settings, prior, n = system.settings, system.prior, system.prior.n_units
    quoted = system.grouped.reference_variance
    scatter = settings.scatter_floor if settings.scatter is None else settings.scatter
    system = _with_reference_scatter(system, quoted, reference_scatter, scatter)
    scale, loss, step = 1.0, Loss.SQUARE, 0
    precision = measurement_precision(system.grouped, np.zeros(n), scatter=scatter, scale=1.0, loss=loss)
    state = _solve_weighted(system, precision, None)
    for step in range(1, settings.n_steps + 1):
        zero_point = state.unknowns[:n]
        loss = Loss.HUBER if 3 * step <= settings.n_steps + 2 else Loss.TUKEY
        scale = residual_scale(system.grouped, zero_point, scatter=scatter, scale=scale, loss=loss)
        if settings.scatter is None and loss is Loss.TUKEY:
            scatter = intrinsic_scatter(
                system.grouped, zero_point, scatter=scatter, scale=scale, floor=settings.scatter_floor,
                with_reference=reference_scatter is None,
            )  # fmt: skip
            system = _with_reference_scatter(system, quoted, reference_scatter, scatter)
        precision = measurement_precision(system.grouped, zero_point, scatter=scatter, scale=scale, loss=loss)
        state = _solve_weighted(system, precision, state)
        anchored = state.components.anchored[state.components.label][prior.exposure]
        change = np.abs(state.unknowns[:n] - zero_point)[anchored].max(initial=0.0)
        if loss is Loss.TUKEY and change < settings.tolerance:
            break
    if loss is Loss.TUKEY:
        consistent = drop_inconsistent_exposures(system.grouped, precision, prior.exposure)
        state = state if consistent is None else _solve_weighted(system, consistent, state)
    return replace(_joint_solution(system, state, loss), scatter=float(scatter), n_iterations=step)


def _with_reference_scatter(system: _System, quoted: Float, scatter: Float | None, intrinsic: float) -> _System:
    """Add the scatter about the reference that is not one of observations to the variance of the reference."""
    if scatter is None:
        return system
    variance = quoted + np.maximum(scatter**2 - intrinsic**2, 0.0)
    return replace(system, grouped=replace(system.grouped, reference_variance=variance))


def _solve_weighted(system: _System, precision: Precision, previous: _WeightedSolution | None) -> _WeightedSolution:
    """Solve the normal equations for given weights."""
    prior, pairs = system.prior, system.pairs
    components = exposure_components(system.grouped, precision, prior.exposure, prior.n_exposures)
    equations = star_equations(system.grouped, precision, pairs)
    matrix = precision_matrix(equations, pairs, prior, components.free)
    vector = np.zeros(matrix.shape[0])
    vector[: prior.n_units] = equations.vector
    if matrix.nnz <= system.settings.max_nonzeros:
        factor = factorise(matrix)
        return _WeightedSolution(precision, components, equations, matrix, factor, factor.solve(vector))
    start = None if previous is None else previous.unknowns
    unknowns = solve_iteratively(matrix, vector, start)[0]
    return _WeightedSolution(precision, components, equations, matrix, None, unknowns)


def _joint_solution(system: _System, state: _WeightedSolution, loss: Loss) -> JointSolution:
    """Compute values, errors and terms of the units in canonical order."""
    prior, components = system.prior, state.components
    n, n_exposures = prior.n_units, prior.n_exposures
    label = components.label[prior.exposure]
    anchored = components.anchored[label]
    level, by_exposure, by_term, _ = np.split(state.unknowns, np.cumsum([n, n_exposures, prior.n_terms]))
    value = state.unknowns[prior.zero_point]
    deviation = prior.design @ state.unknowns
    if state.factor is not None:
        variance = state.factor.inverse_diagonal()
    else:
        variance = sampled_variance(
            state.matrix, state.equations, system.pairs, prior, components.free, system.settings.n_samples
        )
    component_mean = np.bincount(label, value) / np.maximum(np.bincount(label), 1)
    used = state.precision.observation > 0
    penalty = ((deviation / prior.sigma) ** 2).sum() + ((by_term / prior.term_sigma) ** 2).sum()
    chi2, n_measurements = weighted_chi2(system.grouped, state.precision, level, loss)
    return JointSolution(
        value=np.where(anchored, value, np.nan),
        sigma=np.where(anchored, np.sqrt(variance[prior.zero_point]), np.inf),
        anchored=anchored,
        component=label,
        relative=np.where(anchored, np.nan, value - component_mean[label]),
        n_stars=np.bincount(system.grouped.unit[used], minlength=n).astype(np.int64),
        exposure_term=np.where(anchored, by_exposure[prior.exposure], np.nan),
        grey=by_term[prior.terms].sum(axis=1),
        small=deviation[:n],
        shared=level - value,
        scatter=0.0,
        chi2=float(chi2 + penalty),
        dof=n_measurements - n_exposures + int(np.count_nonzero(~components.anchored)),
        n_iterations=0,
    )
