"""Observations, settings and solution of the joint solve, and the checks of its arguments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class StarObservations:
    """Instrumental magnitudes of stars, one row per detection."""

    unit: npt.NDArray[np.int32]
    """(n,) Unit of each detection."""
    star: npt.NDArray[np.int32]
    """(n,) Label of the star, from 0, as `identify_stars` returns it."""
    magnitude: Float
    """(n,) Instrumental magnitude with flat field and colour term applied [mag]; NaN or a sentinel: ignored."""
    variance: Float
    """(n,) Quoted variance [mag^2]."""


@dataclass(frozen=True)
class JointSettings:
    """Priors and iterations of the joint solve."""

    detector_sigma: float = 0.0
    """Prior error of the constant of a detector [mag]; 0: no such term."""
    grey_sigma: float = 0.02
    """Prior error of the term of a detector in an epoch [mag]."""
    small_sigma: float = 0.002
    """Prior error of the term of one unit [mag]."""
    scatter: float | None = None
    """Intrinsic scatter of an observation [mag]; estimated by default."""
    scatter_floor: float = 0.001
    """Smallest intrinsic scatter [mag]: quoted errors of 0 must not decide alone."""
    reference_floor: float = 0.001
    """Smallest error of a reference magnitude [mag]."""
    n_steps: int = 12
    """Largest number of reweightings. The first third uses Huber's weights, the others Tukey's; 0: least squares."""
    tolerance: float = 1e-5
    """Change of all zero points at which the iteration ends [mag]."""
    max_nonzeros: int = 4_000_000
    """Matrices with more elements are not factorised: conjugate gradients, with errors from `n_samples`."""
    n_samples: int = 64
    """Random right-hand sides for the errors of such matrices: a sigma is then accurate to 9 % or better."""


@dataclass(frozen=True, repr=False)
class JointSolution:
    """Zero points with errors, and their terms; arrays (unit,)."""

    value: Float
    """Zero point [mag]; NaN where no reference star anchors it."""
    sigma: Float
    """Error [mag]; inf where no reference star anchors it."""
    anchored: Bool
    """Whether a chain of common stars leads to a reference star."""
    component: Int
    """Connected component of the overlap graph, numbered by first exposure."""
    relative: Float
    """Zero point minus the mean of its component [mag], for components without reference stars; else NaN."""
    n_stars: Int
    """Number of observations with a positive weight."""
    exposure_term: Float
    """Term e of the exposure [mag]; NaN where not anchored."""
    grey: Float
    """Terms d + g of the detector and of the detector in an epoch [mag]."""
    small: Float
    """Term s of the unit [mag]."""
    shared: Float
    """Error c common to the magnitudes of the unit [mag]."""
    scatter: float
    """Intrinsic scatter [mag]."""
    chi2: float
    """Minimum of the objective: squared residuals of measurements, with robust weights w and over E[w z^2], and
    squares of the prior terms."""
    dof: int
    """Expectation of `chi2` for normal errors: measurements of positive weight minus free parameters."""
    n_iterations: int
    """Number of reweightings."""

    @property
    def unanchored(self) -> dict[int, Int]:
        """Units of each component without reference stars."""
        labels = np.unique(self.component[~self.anchored])
        return {int(label): np.flatnonzero(self.component == label) for label in labels}

    def __repr__(self) -> str:
        """Summarise the solution in one line."""
        unanchored = self.unanchored
        sigma = f"{np.median(self.sigma[self.anchored]):.2g} mag" if self.anchored.any() else "unknown"
        n_unanchored = sum(map(len, unanchored.values()))
        suffix = f", {n_unanchored} units in {len(unanchored)} unanchored components" if unanchored else ""
        ratio = self.chi2 / self.dof if self.dof > 0 else np.nan
        return (
            f"JointSolution({np.count_nonzero(self.anchored)} of {len(self.value)} units anchored, "
            f"median sigma {sigma}, scatter {self.scatter:.2g} mag, chi2/dof {ratio:.2f}{suffix})"
        )


def check_arguments(
    observations: StarObservations,
    reference: npt.ArrayLike,
    reference_variance: npt.ArrayLike,
    exposure: npt.ArrayLike,
    detector: npt.ArrayLike,
    epoch: npt.ArrayLike,
    settings: JointSettings,
) -> None:
    """Check that the arguments of `solve_joint` fit together.

    Raises
    ------
    InputError
        If arrays differ in length, labels are out of range, or a setting is not positive.
    """
    n, n_units, n_stars = (len(np.asarray(column)) for column in (observations.star, exposure, reference))
    for name in ("unit", "magnitude", "variance"):
        size = len(getattr(observations, name))
        if size != n:
            raise InputError(f"observations.{name}", f"{size} values", f"{n}, one for each star label")
    for name, values, expected in (
        ("reference_variance", reference_variance, n_stars),
        ("detector", detector, n_units),
        ("epoch", epoch, n_units),
    ):
        if len(np.asarray(values)) != expected:
            raise InputError(name, f"{len(np.asarray(values))} values", f"{expected}")
    for name, labels, size in (("unit", observations.unit, n_units), ("star", observations.star, n_stars)):
        if n and (np.min(labels) < 0 or np.max(labels) >= size):
            raise InputError(f"observations.{name}", f"{np.min(labels)} to {np.max(labels)}", f"0 to {size - 1}")
    if not 0 <= settings.detector_sigma < np.inf:
        raise InputError("detector_sigma", f"{settings.detector_sigma}", "0, or a positive number [mag]")
    for name in ("grey_sigma", "small_sigma", "scatter_floor", "reference_floor"):
        if not 0 < getattr(settings, name) < np.inf:
            raise InputError(name, f"{getattr(settings, name)}", "a positive number [mag]")
