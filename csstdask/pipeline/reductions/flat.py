"""Reduction `flat`: fit the 3-D flat-field cube and the sensitivity of each slitless detector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from csstdask.core.errors import InputError
from csstdask.flux.flat_solution import MAX_NODES
from csstdask.instrument.dispersion import N_WAVELENGTHS, nominal_sensitivity, slitless_order, wavelength_grid
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.reduction import Reduced, Reduction, ReductionProduct, read_result
from csstdask.pipeline.steps.extract import EXTRACT, STAR_RATIOS, slitless_description
from csstdask.store.campaign import Campaign

if TYPE_CHECKING:
    from csstdask.engine.partials import Partial
    from csstdask.engine.reduce import Pass
    from csstdask.flux.flat import Flat
    from csstdask.flux.flat_solution import FlatSolution
    from csstdask.flux.flat_sums import FlatSums
    from csstdask.pipeline.plan import Plan

SENSITIVITY_UNITS = "(electron s-1 Angstrom-1) / (erg s-1 cm-2 Angstrom-1)"


@dataclass(frozen=True)
class FlatAlgorithm:
    """Least-squares fit of polynomials to ratios of counts, with robust weights from the previous pass."""

    degree: int

    def map(self, partials: Iterable[tuple[Partial, bytes]], solution: FlatSolution | None) -> FlatSums:
        """Return the normal equations of some exposures."""
        from csstdask.flux.flat_sums import normal_equations
        from csstdask.flux.ratios import StarRatios

        total: FlatSums | None = None
        for partial, content in partials:
            sums = normal_equations(StarRatios.from_bytes(content, partial.path), solution, degree=self.degree)
            total = sums if total is None else total + sums
        if total is None:
            raise ValueError("a group without partials")
        return total

    def combine(self, first: FlatSums, second: FlatSums) -> FlatSums:
        """Add the normal equations of two groups."""
        return first + second

    def solve(self, total: FlatSums, solution: FlatSolution | None) -> Pass[FlatSolution]:
        """Solve for the coefficients at all wavelengths."""
        from csstdask.engine.reduce import Pass
        from csstdask.flux.solve_flat import solve_sums

        found = solve_sums(total, solution)
        return Pass(found, found.finished)


def products_of(solution: FlatSolution, config: RunConfig, campaign: Campaign, detectors: tuple[int, ...]) -> Reduced:
    """Return the products of a detector from the last solution."""
    from csstdask.flux.flat_fit import flat_from_solution

    (detector,) = detectors
    wavelength = wavelength_grid(slitless_order(campaign.instrument, detector).wavelength)
    flat = flat_from_solution(
        solution, wavelength, campaign.shape, detector=detector, common_variance=config.flat.common_error**2
    )
    nominal = nominal_sensitivity(campaign.instrument, detector, wavelength)
    first = np.where(flat.degree >= 0, flat.sensitivity, np.nan)
    nodes = flat.nodes
    return Reduced(
        arrays={
            "flat": flat.relative_coefficients,
            "flat_variance": flat.covariance / (first**2)[:, None, None],
            "sensitivity": first * nominal,
            "sensitivity_variance": flat.sensitivity_variance * nominal**2,
            "flat_wavelength": wavelength,
            "flat_degree": flat.degree.astype(np.int32),
            "flat_flag": flat.flags.astype(np.int32),
            "flat_n_stars": flat.n_stars.astype(np.int32),
            "flat_n_kept": flat.n_kept.astype(np.int32),
            "flat_scale": flat.scale,
            "flat_node": nodes.astype(np.int32),
            "flat_node_covariance": flat.node_covariance
            / (first[nodes][:, None] * first[nodes][None, :])[:, :, None, None],
        },
        metrics={
            "n_stars": int(np.median(flat.n_stars)),
            "flat_sigma": float(np.sqrt(np.median(flat.mean_variance))),
            "lowest_degree": int(flat.degree.min()),
            "rows": campaign.shape[0],
            "columns": campaign.shape[1],
        },
    )


def flat_of_detector(values: Mapping[str, Any], shape: tuple[int, int], detector: int) -> Flat:
    """Return the flat and sensitivity of a detector from its arrays in a run: the inverse of `products_of`.

    Parameters
    ----------
    values : mapping
        Arrays of one detector, by name.
    shape : (int, int)
        (y, x) of the detector.
    detector : int
        Its id.
    """
    from csstdask.flux.flat import Flat

    sensitivity, degree = np.asarray(values["sensitivity"]), np.asarray(values["flat_degree"], dtype=np.int64)
    relative, covariance = np.asarray(values["flat"]), np.asarray(values["flat_variance"])
    nodes = np.asarray(values["flat_node"], dtype=np.int64)
    nodes = nodes[nodes >= 0]
    known = degree >= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        of_fit = covariance[:, 0, 0]
        common = np.where(known, np.asarray(values["sensitivity_variance"]) / sensitivity**2 - of_fit, 0.0)
    at_nodes = sensitivity[nodes]
    between = np.asarray(values["flat_node_covariance"])[: len(nodes), : len(nodes)]
    return Flat(
        wavelength=np.asarray(values["flat_wavelength"]),
        coefficients=relative * sensitivity[:, None],
        covariance=np.where(known[:, None, None], covariance * (sensitivity**2)[:, None, None], np.inf),
        shape=shape,
        degree=degree,
        flags=np.asarray(values["flat_flag"], dtype=np.int64),
        n_stars=np.asarray(values["flat_n_stars"], dtype=np.int64),
        n_kept=np.asarray(values["flat_n_kept"], dtype=np.int64),
        scale=np.asarray(values["flat_scale"]),
        common_variance=np.maximum(common, 0.0),
        nodes=nodes,
        node_covariance=between * (at_nodes[:, None] * at_nodes[None, :])[:, :, None, None],
        detector=detector,
    )


def read_cube(root: Path, detector: int, wanted: str | None) -> Flat | None:
    """Read the flat-field cube of a detector; None if the run has none of its present units.

    Parameters
    ----------
    root : Path
        The run's store.
    detector : int
        Its id.
    wanted : str or None
        Fingerprint of the result of the present partials (`csstdask.pipeline.reduction_status.current_fingerprints`).
        A cube counts if it is recorded under it and all arrays are on disk as recorded.

    Raises
    ------
    StoreError
        If an array is damaged.
    """
    found = read_result(root, FLAT, detector, wanted)
    if found is None:
        return None
    arrays, record = found
    rows, columns = (int(record.metrics[name] or 0) for name in ("rows", "columns"))
    return flat_of_detector(arrays, (rows, columns), detector)


def sizes(config: RunConfig, _campaign: Campaign) -> Mapping[str, int]:
    """Return the lengths of the dimensions of the cube."""
    terms = (config.flat.degree + 1) * (config.flat.degree + 2) // 2
    return {
        "flat_wave": N_WAVELENGTHS,
        "flat_term": terms,
        "flat_term_2": terms,
        "flat_node_index": MAX_NODES,
        "flat_node_index_2": MAX_NODES,
    }


def _check_spectra(plan: Plan) -> None:
    """Raise InputError without SEDs to compare spectra with."""
    if plan.config.extract.spectra is None:
        raise InputError("--steps flat", "no SEDs", "--spectra SEDS.parquet, from csstdask sed")


_NAN = float("nan")
_WAVE = ("flat_wave",)
FLAT = Reduction(
    name="flat",
    step=EXTRACT.name,
    partial=STAR_RATIOS,
    kinds=frozenset({"slitless"}),
    numerics_version=2,
    settings=lambda config: config.flat.decisive(),
    inputs=("spectra",),
    check=_check_spectra,
    panel="slitless",
    camera=slitless_description,
    algorithm=lambda config, _campaign, _detectors: FlatAlgorithm(config.flat.degree),
    result=products_of,
    sizes=sizes,
    without_inputs=lambda config: (
        f"{config.extract.catalogue}: found no star with an SED on any frame; wanted stars of the observed fields, "
        f"with ids of {config.extract.spectra or '--spectra SEDS.parquet'}"
    ),
    products=(
        ReductionProduct(
            "flat", ("flat_wave", "flat_term"), "float64", _NAN, None,
            "flat-field cube: coefficients of products of Legendre polynomials, of which the first is 1",
        ),
        ReductionProduct(
            "flat_variance", ("flat_wave", "flat_term", "flat_term_2"), "float64", _NAN, None,
            "covariance of sensitivity times flat, over the squared sensitivity",
        ),
        ReductionProduct("sensitivity", _WAVE, "float64", _NAN, SENSITIVITY_UNITS, "sensitivity, detector mean"),
        ReductionProduct(
            "sensitivity_variance", _WAVE, "float64", _NAN, f"({SENSITIVITY_UNITS})^2", "with the error of all SEDs"
        ),
        ReductionProduct("flat_wavelength", _WAVE, "float64", _NAN, "Angstrom", "wavelength of the cube, vacuum"),
        ReductionProduct("flat_degree", _WAVE, "int32", -1, None, "total degree fitted; -1: no usable star"),
        ReductionProduct("flat_flag", _WAVE, "int32", 0, None, "1: lower degree, 2: no stars, 4: few kept"),
        ReductionProduct("flat_n_stars", _WAVE, "int32", 0, None, "usable star images"),
        ReductionProduct("flat_n_kept", _WAVE, "int32", 0, None, "star images with a positive robust weight"),
        ReductionProduct("flat_scale", _WAVE, "float64", _NAN, None, "scatter of residuals over quoted errors"),
        ReductionProduct("flat_node", ("flat_node_index",), "int32", -1, None, "wavelengths of flat_node_covariance"),
        ReductionProduct(
            "flat_node_covariance", ("flat_node_index", "flat_node_index_2", "flat_term", "flat_term_2"), "float64",
            _NAN, None, "as flat_variance, between wavelengths",
        ),
    ),
)  # fmt: skip
