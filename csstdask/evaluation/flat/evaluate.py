"""Evaluate flat-field cubes against the truth: from errors of SEDs alone, and end to end on mock exposures.

Section 5 of the UaRA-net paper fits polynomials of degree 2 to 400 stars and reports .005, .0003 and .0005 in GU, GV
and GI, from errors of the predicted SEDs alone. `sed_errors_alone` repeats that experiment. `end_to_end` runs the
pipeline on a mock with photon noise, cosmic rays, and errors of normalisation and wavelength, and compares cubes with
the truth and with the Cramer-Rao bound of the same stars.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.frame import ignored_pixels
from csstdask.engine.progress import progress_listener
from csstdask.engine.work_units import Unit
from csstdask.evaluation.runner import Measurement, Output, Results, Section, run_evaluation
from csstdask.flux.flat import Flat
from csstdask.flux.flat_fit import flat_from_solution
from csstdask.flux.ratios import StarRatios, uncorrelated_ratios
from csstdask.flux.solve_flat import fit_ratios
from csstdask.instrument.dispersion import dispersion_of, wavelength_grid
from csstdask.mock import Recipe, load_recipe
from csstdask.mock.slitless_camera import true_flat, true_sensitivity
from csstdask.numerics.polynomials import legendre_products
from csstdask.numerics.robust import mad_scale
from csstdask.pipeline.calibrations import current_flat
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.run import run
from csstdask.pipeline.steps.extract import STAR_RATIOS
from csstdask.store.campaign import Campaign
from csstdask.store.shards import read_shard
from csstdask.store.tables import unit_file_path

Float = npt.NDArray[np.float64]
Progress = Callable[[str], None]

PUBLISHED = {"GU": 0.005, "GV": 0.0003, "GI": 0.0005}
"""Precision of the cubes in the paper, section 5."""
PUBLISHED_SED = {"GU": 0.0425, "GV": 0.0025, "GI": 0.0029}
"""Error of the paper's SEDs at 6000 K and a signal-to-noise ratio of 20 (section 4.2)."""
N_STARS = 400
"""Stars of the experiment with errors of SEDs alone, as published."""
REALISATIONS = 400
"""Realisations of that experiment."""
BAD_STAR_SHARE = 0.05
"""Share of stars that are made wrong by 30 %."""
_GRID_POINTS = 15
"""Points along each axis at which cubes are compared with the truth."""
_EDGE_WAVELENGTHS = 5
"""Wavelengths left out at each end of a band, where the sensitivity is low."""


@dataclass(frozen=True)
class CubeScore:
    """Scores of the cube of one detector of a mock against the truth."""

    detector: int
    band: str
    n_stars: int
    n_exposures: int
    error: float
    """Root mean square of flat - truth over detector and wavelength."""
    formal: float
    """Root mean square of the quoted errors."""
    bound: float
    """Root mean square of the Cramer-Rao bound."""
    centre: float
    """Error at the centre, root mean square over wavelength."""
    corner: float
    """Error at the four corners."""
    pull: float
    """Root mean square of (flat - truth) / quoted error."""
    sensitivity_error: float
    """Root mean square of sensitivity / truth - 1."""
    truth_spread: float
    """Standard deviation of the true flat: the error of an uncalibrated spectrum."""


def sed_errors_alone(
    sigma: float, *, n_stars: int = N_STARS, degree: int = 2, realisations: int = REALISATIONS, seed: int = 1
) -> dict[str, float]:
    """Fit flats to stars whose only error is that of their SEDs; return scatter and formal error.

    Parameters
    ----------
    sigma : float
        Relative 1-sigma error of an SED at one wavelength.
    n_stars, degree, realisations, seed : int
        Number of stars, degree of the flat, number of realisations, and seed.

    Returns
    -------
    dict
        ``scatter`` (root mean square of flat - 1 over detector and realisations), ``formal``, ``centre``, ``corner``,
        and ``leverage``, ``formal / sigma``.
    """
    rng = np.random.default_rng(seed)
    shape = (1000, 1000)
    points = _points(shape)
    squared, formal = np.zeros(points[0].shape), np.zeros(points[0].shape)
    for _ in range(realisations):
        x, y = rng.uniform(-0.5, shape[1] - 0.5, (2, n_stars))
        ratio = 1 + sigma * rng.standard_normal((n_stars, 1))
        solution = fit_ratios(
            [uncorrelated_ratios([5000.0], x, y, ratio, np.full(ratio.shape, sigma**2), shape)], degree=degree
        )
        flat = flat_from_solution(solution, np.array([5000.0]), shape)
        squared += (flat.evaluate(*points, 5000.0) - 1) ** 2
        formal += flat.variance(*points, 5000.0)
    scatter, expected = np.sqrt(squared / realisations), np.sqrt(formal / realisations)
    middle = _GRID_POINTS // 2
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    return {
        "scatter": float(np.sqrt(np.mean(scatter**2))),
        "formal": float(np.sqrt(np.mean(expected**2))),
        "centre": float(scatter[middle, middle]),
        "corner": float(np.sqrt(np.mean([scatter[at] ** 2 for at in corners]))),
        "leverage": float(np.sqrt(np.mean(expected**2)) / sigma),
    }


def _points(shape: tuple[int, int]) -> tuple[Float, Float]:
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(-0.5, nx - 0.5, _GRID_POINTS), np.linspace(-0.5, ny - 0.5, _GRID_POINTS))
    return x, y


def end_to_end(recipe: Recipe, folder: Path, *, config: RunConfig | None = None) -> dict[str, Any]:
    """Render a mock, run the pipeline, and compare its cubes with the truth.

    Both stores are kept in the folder; existing ones are resumed.

    Returns
    -------
    dict
        ``detectors`` (one `CubeScore` each), ``bands`` (their root mean squares), ``bad_stars`` and ``traces``.
    """
    campaign, product = folder / f"{recipe.name}.zarr", folder / f"{recipe.name}-run.zarr"
    rendered = mock(recipe, campaign, listeners=[progress_listener()])
    summary = run(campaign, product, config=config, listeners=[progress_listener()])
    if rendered.failures or summary.failures or summary.failed_reductions:
        raise RuntimeError(f"{product}: {len(summary.failures)} units failed")
    scores = [score_cube(recipe, campaign, product, detector) for detector in recipe.detectors]
    return {
        "recipe": recipe.name,
        "detectors": [asdict(score) for score in scores],
        "bands": _by_band(scores),
        "bad_stars": bad_stars(recipe, campaign, product),
        "traces": flagged_traces(recipe, campaign, product),
    }


def score_cube(recipe: Recipe, campaign: Path, product: Path, detector: int) -> CubeScore:
    """Compare the cube of a detector with the truth."""
    store = Campaign(campaign)
    shape = recipe.frame_shape
    flat = current_flat(product, detector)
    if flat is None:
        raise RuntimeError(f"{product}: no cube of detector {detector}")
    chosen = slice(_EDGE_WAVELENGTHS, -_EDGE_WAVELENGTHS)
    wavelength = flat.wavelength[chosen]
    x, y = _points(shape)
    at = x[None], y[None], wavelength[:, None, None]
    found, variance = flat.evaluate(*at), flat.variance(*at)
    truth = true_flat(recipe, store.instrument, detector, *at)
    error = found - truth
    ratios = _ratios(recipe, product, detector)
    bound = _bound(ratios, flat, chosen, at[:2], shape)
    corner = np.ix_(range(len(wavelength)), [0, -1], [0, -1])
    middle = _GRID_POINTS // 2
    sensitivity = _true_sensitivity(campaign, recipe, detector, wavelength)
    return CubeScore(
        detector=detector,
        band=str(store.instrument.detector(detector).band),
        n_stars=int(np.median(flat.n_stars)),
        n_exposures=recipe.exposures,
        error=_rms(error),
        formal=_rms(np.sqrt(variance)),
        bound=_rms(np.sqrt(bound)),
        centre=_rms(error[:, middle, middle]),
        corner=_rms(error[corner]),
        pull=_rms(error / np.sqrt(variance)),
        sensitivity_error=_rms(flat.sensitivity[chosen] / sensitivity - 1),
        truth_spread=float(truth.std()),
    )


def _ratios(recipe: Recipe, product: Path, detector: int) -> StarRatios:
    """Return the ratios of all exposures of a detector."""
    parts = []
    for exposure in recipe.exposure_ids:
        path = unit_file_path(product, STAR_RATIOS, exposure, detector)
        parts.append(StarRatios.from_bytes(path.read_bytes(), path))
    return StarRatios.concatenate(parts)


def _bound(ratios: StarRatios, flat: Flat, chosen: slice, points: tuple[Float, Float], shape: tuple[int, int]) -> Float:
    """Return the Cramer-Rao bound of the flat's variance (wave, y, x) for a detector's stars.

    Ratios are normal with the stated variances, photon noise and errors of prediction together; the bound is
    P^T (sum P P^T / v)^-1 P per wavelength, less the part along the mean.
    """
    columns = range(len(flat.wavelength))
    model = np.stack([flat.evaluate(ratios.x[:, w], ratios.y[:, w], flat.wavelength[w]) for w in columns], axis=1)
    relative = ratios.variance_sed + ratios.grey_error[:, None] ** 2 + (ratios.modes**2).sum(axis=1)
    variance = ratios.variance_observed + relative * model**2
    weight = np.where(np.isfinite(ratios.ratio) & (variance > 0), 1 / variance, 0.0)
    terms = legendre_products(ratios.x, ratios.y, flat.requested_degree, shape)
    matrix = np.einsum("nw,nwk,nwl->wkl", weight, np.nan_to_num(terms), np.nan_to_num(terms))[chosen]
    inverse = np.linalg.inv(matrix)
    at = legendre_products(*points, flat.requested_degree, shape)
    values = np.einsum("...k,wk->w...", at[0], flat.relative_coefficients[chosen])
    gradient = np.broadcast_to(at[0], (*values.shape, at.shape[-1])).copy()
    gradient[..., 0] -= values
    return np.asarray(np.einsum("wyxk,wkl,wyxl->wyx", gradient, inverse, gradient))


def _true_sensitivity(campaign: Path, recipe: Recipe, detector: int, wavelength: Float) -> Float:
    return np.asarray(true_sensitivity(recipe, Campaign(campaign).instrument, detector, wavelength))


def _by_band(scores: list[CubeScore]) -> dict[str, dict[str, float]]:
    bands: dict[str, dict[str, float]] = {}
    for band in ("GU", "GV", "GI"):
        of_band = [score for score in scores if score.band == band]
        if of_band:
            bands[band] = {
                name: _rms(np.array([getattr(score, name) for score in of_band]))
                for name in (
                    "error",
                    "formal",
                    "bound",
                    "centre",
                    "corner",
                    "pull",
                    "sensitivity_error",
                    "truth_spread",
                )
            }
            exposures = of_band[0].n_exposures * (bands[band]["formal"] / PUBLISHED[band]) ** 2
            bands[band]["exposures_for_published"] = float(np.ceil(exposures))
    return bands


def bad_stars(
    recipe: Recipe, campaign: Path, product: Path, *, share: float = BAD_STAR_SHARE, seed: int = 5
) -> dict[str, float]:
    """Return the error of cubes with some stars wrong by 30 % over the error without them, by band."""
    rng = np.random.default_rng(seed)
    instrument = Campaign(campaign).instrument
    found: dict[str, list[tuple[float, float]]] = {}
    for detector in recipe.detectors:
        ratios = _ratios(recipe, product, detector)
        shape = recipe.frame_shape
        names = np.unique(ratios.star)
        wrong = np.isin(ratios.star, rng.choice(names, round(share * len(names)), replace=False))
        factor = np.where(wrong, 1 + 0.3 * rng.choice([-1, 1], len(ratios)), 1.0)[:, None]
        corrupted = StarRatios(**{**ratios.__dict__, "ratio": ratios.ratio * factor})
        x, y = _points(shape)
        wavelength = ratios.wavelength[_EDGE_WAVELENGTHS:-_EDGE_WAVELENGTHS]
        at = x[None], y[None], wavelength[:, None, None]
        truth = true_flat(recipe, instrument, detector, *at)
        errors = []
        for one in (ratios, corrupted):
            flat = flat_from_solution(fit_ratios([one], degree=2), ratios.wavelength, shape)
            errors.append(_rms(flat.evaluate(*at) - truth))
        found.setdefault(str(instrument.detector(detector).band), []).append((errors[0], errors[1]))
    return {
        band: float(_rms(np.array([b for _, b in pairs])) / _rms(np.array([a for a, _ in pairs])))
        for band, pairs in found.items()
    }


def flagged_traces(recipe: Recipe, campaign: Path, product: Path) -> dict[str, dict[str, float]]:
    """Return the false positive rate of the cosmic-ray mask on pixels of spectra, by band and order.

    A false positive has no charge of a cosmic ray on or next to it.

    Pixels of a first order lie within 3 rows of a trace; those of a zeroth order within 4 pixels of its position. Only
    pixels where the star's light is above 3 sigma of the sky count.
    """
    from scipy.ndimage import maximum_filter  # noqa: PLC0415

    store = Campaign(campaign)
    count: dict[str, dict[str, list[int]]] = {}
    for exposure in recipe.exposure_ids:
        for detector in recipe.detectors:
            row, column = store.index(exposure, detector)
            light = read_shard(campaign, "truth/sci", row, column)
            charge = read_shard(campaign, "truth/cr", row, column)
            hit = read_shard(product, "cr_mask", row, column)
            ignore = ignored_pixels(read_shard(campaign, "flag", row, column), store.instrument.flags.ignore_mask)
            level = np.median(light)
            noise = float(mad_scale(light, center=level))
            bright = (light > level + 3 * noise) & ~ignore
            near = maximum_filter(charge, 3) > 0
            for name, region in _regions(recipe, store, Unit(exposure, detector)).items():
                pixels = region & bright & ~near
                band = str(store.instrument.detector(detector).band)
                counts = count.setdefault(band, {}).setdefault(name, [0, 0])
                counts[0] += int((hit & pixels).sum())
                counts[1] += int(pixels.sum())
    return {band: {name: a / max(b, 1) for name, (a, b) in orders.items()} for band, orders in count.items()}


def _regions(recipe: Recipe, store: Campaign, unit: Unit) -> dict[str, npt.NDArray[np.bool_]]:
    """Return which pixels belong to first and to zeroth orders of a unit's stars."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    chosen = [("exposure", "=", unit.exposure), ("detector", "=", unit.detector)]
    table = pq.read_table(store.path / "tables" / "truth_spectra.parquet", columns=["x", "y"], filters=chosen)
    x, y = (table[name].to_numpy() for name in ("x", "y"))
    shape = recipe.frame_shape
    regions = {name: np.zeros(shape, dtype=bool) for name in ("first", "zeroth")}
    first = dispersion_of(store.instrument, unit.detector, shape)
    wavelength = wavelength_grid(first.limits)
    at_x, at_y = first.position(x[:, None], y[:, None], wavelength[None, :])
    for offset in range(-3, 4):
        _mark(regions["first"], np.rint(at_x).ravel(), np.rint(at_y).ravel() + offset)
    zeroth = dispersion_of(store.instrument, unit.detector, shape, order=0)
    at_x, at_y = zeroth.position(x, y, float(np.mean(zeroth.limits)))
    for dx in range(-4, 5):
        for dy in range(-4, 5):
            if np.hypot(dx, dy) <= 4:
                _mark(regions["zeroth"], np.rint(at_x) + dx, np.rint(at_y) + dy)
    return regions


def _mark(region: npt.NDArray[np.bool_], x: Float, y: Float) -> None:
    inside = (x >= 0) & (y >= 0) & (x < region.shape[1]) & (y < region.shape[0])
    region[y[inside].astype(int), x[inside].astype(int)] = True


def _rms(values: npt.ArrayLike) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(values, dtype=np.float64)))))


def evaluate_flat(
    to: Path, *, recipe: str | Path = "slitless-400", scale: float | None = None, on_progress: Progress = print
) -> Path:
    """Evaluate flat-field cubes, and write ``flat.json`` and its figures.

    Parameters
    ----------
    to : Path
        Output folder; the mock and the run are kept in it.
    recipe : str or Path
        Name or path of a slitless recipe.
    scale : float, optional
        Linear scale of the recipe's shape.
    on_progress : callable
        Receives progress messages.

    Returns
    -------
    Path
        The JSON file.
    """
    from csstdask.evaluation.flat.figures import draw_flat_figures  # noqa: PLC0415  matplotlib

    to.mkdir(parents=True, exist_ok=True)
    chosen = load_recipe(recipe, scale=scale)
    results: Results = {}

    def alone() -> Measurement:
        bands = {
            band: sed_errors_alone(sigma) | {"published": PUBLISHED[band]} for band, sigma in PUBLISHED_SED.items()
        }
        return Measurement(bands)

    def number_of_stars() -> Measurement:
        counts = (25, 50, 100, 200, 400, 800, 1600)
        return Measurement({str(n): sed_errors_alone(1.0e-2, n_stars=n, realisations=100) for n in counts})

    def whole_pipeline() -> Measurement:
        return Measurement(end_to_end(chosen, to), lambda folder: draw_flat_figures(results, chosen, folder))

    sections = (
        Section(("sed_errors_alone",), alone, title="errors of SEDs alone"),
        Section(("number_of_stars",), number_of_stars, title="number of stars"),
        Section(("end_to_end",), whole_pipeline, title=f"end to end on {chosen.name}"),
    )
    run_evaluation(sections, Output(to, "flat"), results, on_progress=on_progress)
    for band, score in results["end_to_end"]["bands"].items():
        on_progress(
            f"{band}: error {score['error']:.5f}, quoted {score['formal']:.5f}, bound {score['bound']:.5f}, "
            f"pull {score['pull']:.2f}"
        )
    return to / "flat.json"
