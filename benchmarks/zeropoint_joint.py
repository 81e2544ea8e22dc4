"""Time, memory and errors of the joint solve of zero points: 1,000 exposures of 18 detectors.

``python benchmarks/zeropoint_joint.py`` writes ``results/zeropoint_joint.json``. Each figure comes from a separate
process that reads one simulated survey from disk: pointings that step by half of the focal plane in both directions,
so that each detector shares 200 stars with each of four neighbouring exposures and 100 with four others, at 5 mmag of
noise. One star in a hundred has a reference magnitude with an error of 10 mmag, one observation in a hundred is wrong
by 0.5 mag, and ten exposures elsewhere have no reference star. `corner` has reference stars in 1 % of the area only;
`large` has twice as many stars.

The peer is `scipy.sparse.linalg.lsmr` on the design matrix with the magnitudes of all stars as unknowns, with columns
scaled to length 1, the same observations, weights and priors; it gives values without errors, so it is compared with
one solution of the normal equations, in seconds of one core (neither uses a second one).

`load_average` is that of the machine at the end: above 1, other processes took time from the single thread that this
needs, and `cpu_seconds` are nearer to `seconds` of an idle one.

Floor: a reweighting reads each observation (unit, magnitude, variance: 20 bytes) three times and writes and reads its
precision (8 bytes) once each; the time that this takes at the bandwidth of the memory is in the result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import save

N_EXPOSURES, N_ISLAND, N_EPOCHS = 1000, 10, 5
COLUMNS, ROWS, DETECTOR_SIZE = 3, 6, 0.19  # detectors of the focal plane, and their size [deg]
NOISE, CATALOGUE_ERROR, GREY, SMALL, EXPOSURE_SPREAD = 0.005, 0.010, 0.02, 0.002, 0.05  # [mag]
POSITION_ERROR, OUTLIERS, OUTLIER_SIZE, KNOWN = 0.05 / 3600, 0.01, 0.5, 0.01
BYTES_A_STEP = 3 * 20 + 2 * 8
SURVEYS = {
    "main": {"stars": 400, "corner": 0},
    "corner": {"stars": 400, "corner": 1},
    "large": {"stars": 830, "corner": 0},
}


def simulate(path: Path, stars: int, corner: int) -> None:
    rng = np.random.default_rng(25)
    step = np.array([COLUMNS, ROWS]) / 2 * DETECTOR_SIZE
    side = int(np.ceil(np.sqrt(N_EXPOSURES - N_ISLAND)))
    grid = np.array([(i, j) for i in range(side) for j in range(side)])[: N_EXPOSURES - N_ISLAND]
    island = np.stack([side + 10 + np.arange(N_ISLAND), np.zeros(N_ISLAND)], axis=1)
    pointing = (np.concatenate([grid, island]) + rng.normal(0, 0.02, (N_EXPOSURES, 2))) * step
    low, high = pointing.min(axis=0), pointing.max(axis=0) + 2 * step
    n_stars = int(stars * np.prod((high - low) / DETECTOR_SIZE))
    x, y = np.sort(rng.uniform(low[0], high[0], n_stars)), rng.uniform(low[1], high[1], n_stars)
    sky = rng.uniform(18, 22, n_stars)
    in_grid = x < (side + 5) * step[0]
    share = 0.1 * (high - low) if corner else high - low
    listed = (rng.random(n_stars) < KNOWN) & in_grid & (x - low[0] < share[0]) & (y - low[1] < share[1])
    exposure = np.repeat(np.arange(N_EXPOSURES), COLUMNS * ROWS)
    detector = np.tile(np.arange(COLUMNS * ROWS), N_EXPOSURES)
    epoch = exposure * N_EPOCHS // N_EXPOSURES
    grey = rng.normal(0, GREY, (N_EPOCHS, COLUMNS * ROWS))
    truth = rng.normal(0, EXPOSURE_SPREAD, N_EXPOSURES)[exposure] + grey[epoch, detector]
    truth += rng.normal(0, SMALL, len(truth))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for number, (left, bottom) in enumerate(pointing):
        first, last = np.searchsorted(x, [left, left + COLUMNS * DETECTOR_SIZE])
        seen = first + np.flatnonzero((y[first:last] >= bottom) & (y[first:last] < bottom + ROWS * DETECTOR_SIZE))
        column = ((x[seen] - left) / DETECTOR_SIZE).astype(int).clip(0, COLUMNS - 1)
        row = ((y[seen] - bottom) / DETECTOR_SIZE).astype(int).clip(0, ROWS - 1)
        unit = number * COLUMNS * ROWS + row * COLUMNS + column
        order = np.argsort(unit, kind="stable")
        parts.append((unit[order].astype(np.int32), seen[order].astype(np.int32)))
    unit, star = (np.concatenate(one) for one in zip(*parts, strict=True))
    n = len(unit)
    magnitude = sky[star] - truth[unit] + NOISE * rng.standard_normal(n)
    magnitude += (rng.random(n) < OUTLIERS) * OUTLIER_SIZE * rng.standard_normal(n)
    reference = np.where(listed, np.cumsum(listed) - 1, -1).astype(np.int32)
    arrays = {
        "unit": unit,
        "reference": reference[star],
        "ra": (150 + x[star] + POSITION_ERROR * rng.standard_normal(n)) % 360,
        "dec": y[star] - (low[1] + high[1]) / 2 + POSITION_ERROR * rng.standard_normal(n),
        "magnitude": magnitude,
        "true_star": star,
        "catalogue": (sky + CATALOGUE_ERROR * rng.standard_normal(n_stars))[listed],
        "exposure": exposure,
        "detector": detector,
        "epoch": epoch,
        "truth": truth,
    }
    for name, values in arrays.items():
        np.save(path / f"{name}.npy", values)


def read(path: Path, *names: str) -> list[Any]:
    return [np.load(path / f"{name}.npy") for name in names]


class Stages:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, owner: Any, name: str) -> None:
        """Measure the calls of a function of a module or class."""
        inner = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            found = inner(*args, **options)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            return found

        setattr(owner, name, timed)

    @property
    def rounded(self) -> dict[str, float]:
        """Seconds by stage, for the result."""
        return {name: round(value, 2) for name, value in self.seconds.items()}


def peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def compile_kernels() -> None:
    """Solve a few stars, so that times are without the compilation of the first call of an installation."""
    from csstdask.zeropoint import joint

    unit = np.array([0, 1, 2], dtype=np.int32)
    star = joint.identify_stars(np.full(3, 10.0), np.zeros(3), np.full(3, -1), unit)
    seen = joint.StarObservations(unit, star, np.full(3, 20.0), np.full(3, 1e-4))
    for most in (10_000, 0):
        settings = joint.JointSettings(max_nonzeros=most)
        joint.solve_joint(seen, [20.0], [1e-4], [0, 1, 2], [0, 0, 0], [0, 0, 0], settings)


def observations(path: Path, shuffled: bool) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return the observations with their stars identified, and the reference magnitude of each star."""
    from csstdask.zeropoint import joint

    ra, dec, reference, unit, magnitude, catalogue = read(
        path, "ra", "dec", "reference", "unit", "magnitude", "catalogue"
    )
    if shuffled:
        order = np.random.default_rng(1).permutation(len(unit))
        ra, dec, reference, unit, magnitude = (one[order] for one in (ra, dec, reference, unit, magnitude))
    star = joint.identify_stars(ra, dec, reference, unit)
    known, variance = np.full(int(star.max()) + 1, np.nan), np.full(int(star.max()) + 1, np.inf)
    listed = reference >= 0
    known[star[listed]] = catalogue[reference[listed]]
    variance[star[listed]] = CATALOGUE_ERROR**2
    return joint.StarObservations(unit, star, magnitude, np.full(len(unit), NOISE**2)), known, variance


def statistics(error: np.ndarray, sigma: np.ndarray) -> dict[str, float]:
    pull = error / sigma
    return {
        "rms_mmag": round(1e3 * float(np.sqrt(np.mean(error**2))), 4),
        "largest_mmag": round(1e3 * float(np.abs(error).max()), 3),
        "median_sigma_mmag": round(1e3 * float(np.median(sigma)), 4),
        "largest_sigma_mmag": round(1e3 * float(sigma.max()), 4),
        "rms_pull": round(float(np.sqrt(np.mean(pull**2))), 3),
        "within_1_sigma": round(float(np.mean(np.abs(pull) < 1)), 3),
        "within_2_sigma": round(float(np.mean(np.abs(pull) < 2)), 3),
    }


def measure(path: Path, shuffled: bool) -> dict[str, Any]:
    from csstdask.zeropoint import joint
    from csstdask.zeropoint.joint import solve
    from csstdask.zeropoint.joint.linear_algebra import Factor

    compile_kernels()
    stages = Stages()
    stages.wrap(joint, "identify_stars")
    for name in (
        "group_by_star", "find_overlaps", "residual_scale", "intrinsic_scatter", "measurement_precision",
        "exposure_components", "star_equations", "precision_matrix", "factorise",
    ):  # fmt: skip
        stages.wrap(solve, name)
    stages.wrap(Factor, "inverse_diagonal")
    units = read(path, "exposure", "detector", "epoch")
    start, busy = time.perf_counter(), time.process_time()
    seen, known, variance = observations(path, shuffled)
    prepared = time.perf_counter() - start
    solution = joint.solve_joint(seen, known, variance, *units)
    solved = time.perf_counter() - start - prepared
    busy = time.process_time() - busy
    peak = peak_mib()
    (truth,) = read(path, "truth")
    at = solution.anchored
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in (solution.value, solution.sigma)))
    result: dict[str, Any] = {
        "observations": len(seen.star),
        "stars": len(known),
        "reference_stars": int(np.isfinite(variance).sum()),
        "seconds_identify": round(prepared, 2),
        "seconds_solve": round(solved, 2),
        "seconds": round(prepared + solved, 2),
        "cpu_seconds": round(busy, 2),
        "load_average": round(os.getloadavg()[0], 1),
        "peak_MiB": peak,
        "stages_s": stages.rounded,
        "reweightings": solution.n_iterations,
        "scatter_mmag": round(1e3 * solution.scatter, 3),
        "chi2_per_dof": round(solution.chi2 / solution.dof, 4),
        "anchored_units": int(at.sum()),
        "unanchored": {str(label): len(of) for label, of in solution.unanchored.items()},
        "recovery": statistics((solution.value - truth)[at], solution.sigma[at]),
        "sha256": digest.hexdigest(),
    }
    free = ~at
    if free.any():
        against = truth[free] - truth[free].mean()
        result["unanchored_relative_rms_mmag"] = round(1e3 * float(np.std(solution.relative[free] - against)), 3)
    if not shuffled:
        (true_star,) = read(path, "true_star")
        pairs = len(np.unique(true_star.astype(np.int64) * len(known) + seen.star))
        result["stars_split_or_joined"] = pairs - len(np.unique(true_star)) + abs(len(known) - pairs)
        source, target = np.ones(50_000_000), np.ones(50_000_000)
        start = time.perf_counter()
        np.copyto(target, source)
        bandwidth = 2 * source.nbytes / (time.perf_counter() - start)
        result["floor"] = {
            "memory_GB_a_second": round(bandwidth / 1e9, 1),
            "bytes_an_observation_a_reweighting": BYTES_A_STEP,
            "seconds": round(BYTES_A_STEP * len(seen.star) * max(solution.n_iterations, 1) / bandwidth, 2),
        }
    return result


def peer_system(rows: Any, precision: Any, prior: Any, components: Any) -> tuple[Any, np.ndarray]:
    """Return design matrix and right-hand side of the magnitudes of all stars, units, exposures and grey terms."""
    import scipy.sparse as sp

    from csstdask.zeropoint import joint

    n, u = len(rows.unit), prior.n_units
    size = u + prior.n_exposures + prior.n_terms
    star = np.repeat(np.arange(rows.n_stars), np.diff(rows.start))
    listed = np.flatnonzero(precision.reference > 0)
    of_star = sp.csr_array((np.ones(n), star, np.arange(n + 1)), shape=(n, rows.n_stars))
    of_unit = sp.csr_array((-np.ones(n), rows.unit, np.arange(n + 1)), shape=(n, size))
    k = 1 / joint.JointSettings().small_sigma
    fixed = sp.csr_array(
        (np.ones(len(components.free)), (np.arange(len(components.free)), u + components.free)),
        shape=(len(components.free), size),
    )
    grey = sp.csr_array(
        (np.ones(prior.n_terms), (np.arange(prior.n_terms), size - prior.n_terms + np.arange(prior.n_terms))),
        shape=(prior.n_terms, size),
    )
    root = np.sqrt(precision.observation)
    of_reference = np.sqrt(precision.reference[listed])
    catalogue = sp.csr_array(
        (of_reference, (np.arange(len(listed)), listed)), shape=(len(listed), rows.n_stars)
    )  # fmt: skip
    design = sp.block_array(
        [
            [sp.diags_array(root) @ of_star, sp.diags_array(root) @ of_unit],
            [catalogue, None],
            [None, k * prior.design],
            [None, k * fixed],
            [None, grey / joint.JointSettings().grey_sigma],
        ]
    ).tocsr()
    target = np.zeros(design.shape[0])
    target[:n] = root * rows.magnitude
    target[n : n + len(listed)] = of_reference * rows.reference[listed]
    return design, target


def compare(path: Path) -> dict[str, Any]:
    """Solve once with the same weights by the normal equations, and by `lsmr` with all magnitudes as unknowns."""
    import scipy.sparse as sp
    from scipy.sparse.linalg import lsmr

    from csstdask.zeropoint import joint
    from csstdask.zeropoint.joint.components import exposure_components
    from csstdask.zeropoint.joint.linear_algebra import factorise, solve_iteratively
    from csstdask.zeropoint.joint.normal_equations import find_overlaps, precision_matrix, star_equations
    from csstdask.zeropoint.joint.observations import group_by_star
    from csstdask.zeropoint.joint.prior_terms import unit_terms
    from csstdask.zeropoint.joint.robust import Loss, measurement_precision

    compile_kernels()
    seen, known, variance = observations(path, False)
    exposure, detector, epoch = read(path, "exposure", "detector", "epoch")
    _, prior = unit_terms(exposure, detector, epoch, None, None, joint.JointSettings())
    rows = group_by_star(seen.unit, seen.star, seen.magnitude, seen.variance, known, variance)
    u = prior.n_units
    precision = measurement_precision(rows, np.zeros(u), scatter=0.001, scale=1.0, loss=Loss.SQUARE)
    components = exposure_components(rows, precision, prior.exposure, prior.n_exposures)
    times = {}
    start = time.process_time()
    pairs = find_overlaps(rows, u)
    equations = star_equations(rows, precision, pairs)
    matrix = precision_matrix(equations, pairs, prior, components.free)
    vector = np.zeros(matrix.shape[0])
    vector[:u] = equations.vector
    made = time.process_time() - start
    start = time.process_time()
    factors = factorise(matrix)
    direct = factors.solve(vector)
    times["normal_equations_factored"] = made + time.process_time() - start
    start = time.process_time()
    iterated, steps = solve_iteratively(matrix, vector)
    times["normal_equations_jacobi_cg"] = made + time.process_time() - start
    start = time.process_time()
    factors.inverse_diagonal()
    errors = time.process_time() - start

    start = time.process_time()
    design, target = peer_system(rows, precision, prior, components)
    length = np.sqrt(np.asarray(design.multiply(design).sum(axis=0)).ravel())
    design = (design @ sp.diags_array(1 / length)).tocsr()
    found = lsmr(design, target, atol=1e-8, btol=1e-8, conlim=0, maxiter=3000)
    times["lsmr_all_unknowns"] = time.process_time() - start
    peer = (found[0] / length)[rows.n_stars :][:u]
    at = components.anchored[components.label][prior.exposure]
    return {
        "cpu_seconds": {name: round(value, 2) for name, value in times.items()},
        "errors_cpu_seconds": round(errors, 2),
        "jacobi_cg_iterations": steps,
        "jacobi_cg_difference_mmag": float(f"{1e3 * np.abs(iterated - direct)[:u][at].max():.2g}"),
        "lsmr_iterations": int(found[2]),
        "lsmr_difference_mmag": float(f"{1e3 * np.abs(peer - direct[:u])[at].max():.2g}"),
        "lsmr_over_factored": round(times["lsmr_all_unknowns"] / times["normal_equations_factored"], 1),
        "unknowns": {"normal_equations": matrix.shape[0], "lsmr": design.shape[1]},
        "nonzeros": {"normal_equations": int(matrix.nnz), "factor": int(factors.lu.L.nnz), "lsmr": int(design.nnz)},
        "peak_MiB": peak_mib(),
    }


def child(*arguments: str) -> Any:
    options = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True, env=os.environ | options
    )
    return json.loads(done.stdout) if done.stdout else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", choices=("simulate", "measure", "shuffled", "compare"))
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("survey", nargs="?", choices=tuple(SURVEYS), default="main")
    options = parser.parse_args()
    if options.task == "simulate":
        simulate(options.path, **SURVEYS[options.survey])
        return
    if options.task is not None:
        task = compare if options.task == "compare" else lambda path: measure(path, options.task == "shuffled")
        print(json.dumps(task(options.path)))
        return
    result: dict[str, Any] = {"noise_mmag": 1e3 * NOISE, "catalogue_error_mmag": 1e3 * CATALOGUE_ERROR}
    for name in SURVEYS:
        with tempfile.TemporaryDirectory() as folder:
            child("simulate", folder, name)
            result[name] = child("measure", folder)
            if name == "main":
                result["same_bits_shuffled"] = child("shuffled", folder)["sha256"] == result[name]["sha256"]
                result["peer"] = child("compare", folder)
    save("zeropoint_joint", result)


if __name__ == "__main__":
    main()
