"""Evaluation of cosmic-ray detection: ``csstdask evaluate cosmicray``.

Three questions, each asked of every method on the same pixels with the same ignore mask:

* real frames: the STIS pair that nothing learnt from, against the truth of its stack;
* events of held-out exposures and rows, and generated tracks, injected into scenes that no training saw;
* negative controls: the same scenes without any cosmic ray.

L.A.Cosmic is tuned over sigclip, sigfrac and objlim for every kind of input, on the pairs and scenes that are
not the test's, and so is the network's second threshold; its first is its card's. Intervals are bootstrapped
over blocks of pixels, for neighbours are not independent.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from scipy.ndimage import binary_dilation

from csstdask.cosmicray import stis
from csstdask.cosmicray.card import find_card
from csstdask.cosmicray.detect import detect
from csstdask.cosmicray.events import EventLibrary
from csstdask.cosmicray.examples import SPLITS, contaminate, gather_material
from csstdask.cosmicray.lacosmic import lacosmic
from csstdask.cosmicray.scenes import Scene, draw_mock_scene
from csstdask.cosmicray.scoring import Bool, Case, Float, f1_of, score
from csstdask.cosmicray.view import view_frame
from csstdask.durable import write_atomic
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.recipe import CosmicRays
from csstdask.quiet import no_warnings

_SEED = 1999
#: Frames of each kind of injection, and their size [pixel].
_SKIES, _SIZE = 6, 512
_GRID = {"sigclip": (3.0, 4.5, 6.0, 8.0), "sigfrac": (0.1, 0.3, 0.5), "objlim": (1.0, 3.0, 8.0)}
_FIXED = {"niter": 4, "sepmed": True, "cleantype": "meanmask", "fsmode": "median"}
_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_EIGHT = np.ones((3, 3), dtype=int)
_COLUMNS = ("precision", "recall", "recall_visible", "precision_without_skirt", "events_found")


Detector = Callable[[Case], Bool]


# --- methods ---------------------------------------------------------------------------------------------------


def probability_of(case: Case, model: str) -> Float:
    """Return a network's probabilities on one frame."""
    return np.asarray(detect(case.data, case.error, case.ignore, model=model).probability)


def by_lacosmic(parameters: dict[str, float]) -> Detector:
    """Return L.A.Cosmic with given parameters."""

    def find(case: Case) -> Bool:
        variance = None if case.error is None else case.error**2
        view = view_frame(case.data, variance, case.ignore)
        return lacosmic(view, _FIXED | parameters) & ~case.ignore

    return find


def tune_lacosmic(cases: Sequence[Case]) -> dict[str, float]:
    """Return the parameters of the grid with the best F1."""
    grid = [dict(zip(_GRID, values, strict=True)) for values in itertools.product(*_GRID.values())]
    return max(grid, key=lambda values: f1_of(cases, [by_lacosmic(values)(case) for case in cases]))


def tune_threshold(cases: Sequence[Case], probabilities: Sequence[Float]) -> float:
    """Return the threshold with the best F1."""
    return max(_THRESHOLDS, key=lambda cut: f1_of(cases, [probability >= cut for probability in probabilities]))


# --- real frames -----------------------------------------------------------------------------------------------

#: What a detection is given of a STIS frame: (name, is the reference subtracted, are hot pixels flagged).
INPUTS = (
    ("image", False, False),
    ("image, hot pixels flagged", False, True),
    ("reference subtracted", True, False),
    ("reference subtracted, hot pixels flagged", True, True),
)


def stis_case(frame: stis.StisFrame, reference: stis.Reference, *, subtract: bool, flag: bool) -> Case:
    """Return a STIS frame as a pipeline would hand it over."""
    expected = reference.rate * np.float32(frame.exptime)
    data = frame.image - expected - np.float32(frame.offset) if subtract else frame.image
    # The noise of a frame without cosmic rays is what the reference says; with them, what its counts say.
    error = np.sqrt(np.maximum(frame.image, 0) + np.float32(frame.sigma**2))
    ignore = reference.hot.copy() if flag else np.zeros(data.shape, dtype=bool)
    nothing = np.zeros(data.shape, dtype=bool)
    use = frame.valid & ~ignore
    return Case(data.astype(np.float32), error.astype(np.float32), ignore, frame.hit, nothing, use, frame.hit)


def threshold_control(frame: stis.StisFrame, reference: stis.Reference) -> Bool:
    """Return 6 sigma on the residual, grown twice to 3 sigma: how the truth was made."""
    expected = reference.rate * np.float32(frame.exptime)
    residual = frame.image - expected - frame.offset
    z = residual / np.sqrt(frame.sigma**2 + np.maximum(expected, 0))
    found: Bool = z > 6
    for _ in range(2):
        found = found | (binary_dilation(found, _EIGHT) & (z > 3))
    return found


def evaluate_stis(folder: Path, model: str) -> dict[str, Any]:
    """Score methods on the held-out pair; tune them on the others; rebuild the reference from the others."""
    tuning_pairs = [pair for pair in stis.PAIRS if pair not in stis.TEST_PAIRS]
    learnt = [stis.read_frame(folder, name) for name in stis.exposures_of(tuning_pairs)]
    held_out = [stis.read_frame(folder, name) for name in stis.exposures_of(stis.TEST_PAIRS)]
    reference = stis.build_reference(learnt)
    results: dict[str, Any] = {}
    for name, subtract, flag in INPUTS:
        known = [stis_case(frame, reference, subtract=subtract, flag=flag) for frame in learnt]
        tests = [stis_case(frame, reference, subtract=subtract, flag=flag) for frame in held_out]
        results[name] = _compare(known, tests, model, tune_on=known[1::2])
    controls = [threshold_control(frame, reference) for frame in held_out]
    tests = [stis_case(frame, reference, subtract=True, flag=False) for frame in held_out]
    results["control: the truth's own definition, with the rebuilt reference"] = asdict(score(tests, controls))
    results["frames"] = [frame.name for frame in held_out]
    results["tuned on"] = [frame.name for frame in learnt]
    return results


def _compare(
    known: Sequence[Case], tests: Sequence[Case], model: str, *, tune_on: Sequence[Case] | None = None
) -> dict[str, Any]:
    """Score the network at its card's threshold and at one tuned like L.A.Cosmic, and L.A.Cosmic."""
    card = find_card("cosmicray", model)
    tuned = tune_threshold(known, [probability_of(case, model) for case in known])
    parameters = tune_lacosmic(known if tune_on is None else tune_on)
    probabilities = [probability_of(case, model) for case in tests]
    cuts = {"network": float(card.threshold or 0.5), "network, threshold tuned": tuned}
    result: dict[str, Any] = {
        name: {"threshold": cut} | asdict(score(tests, [probability >= cut for probability in probabilities]))
        for name, cut in cuts.items()
    }
    found = [by_lacosmic(parameters)(case) for case in tests]
    return result | {"L.A.Cosmic, tuned": parameters | asdict(score(tests, found))}


# --- injected events -------------------------------------------------------------------------------------------


def real_scenes(data: Path) -> dict[str, Scene]:
    """Return real frames without cosmic rays that no training saw, in electrons."""
    scenes: dict[str, Scene] = {}
    readers = {
        "M51 (KPNO, B)": ("m51_inpaint/m51_org.fits", 0, 1.0, None),
        "Galactic Centre (NICMOS, F160W)": ("nicmos/n8q624e8q_cal.fits", 1, 1407.892 * 5.4, 2),
        "HSC cut-out": ("hsc_maskedimage/HSC-0908120-056-small.fits", 1, 1.0, 3),
    }
    for name, (file, hdu, scale, error_hdu) in readers.items():
        if not (data / file).is_file():
            continue
        with no_warnings(), fits.open(data / file) as hdus:
            counts = np.asarray(hdus[hdu].data, dtype=np.float32) * np.float32(scale)
            noise_plane = None if error_hdu is None else np.asarray(hdus[error_hdu].data, dtype=np.float32)
        ignore = ~np.isfinite(counts)
        if noise_plane is not None:
            ignore |= ~np.isfinite(noise_plane) | (noise_plane <= 0)
        counts[ignore] = 0
        sky = float(np.median(counts[~ignore]))
        noise = 1.4826 * float(np.median(np.abs(counts[~ignore] - sky)))
        scenes[name] = Scene(counts, counts, sky, noise, ignore)
    return scenes


def injected(rng: np.random.Generator, scene: Scene, charge: Float, *, poisson: bool, faintest: float) -> Case:
    """Return a scene with cosmic rays on it."""
    made = contaminate(rng, scene, charge)
    error = made.error if poisson else None
    view = view_frame(scene.data, None, scene.ignore)
    own = np.sqrt(np.maximum(view.variance, 1e-6))
    hit = charge > faintest
    harmless = (charge > 0) & ~hit
    return Case(made.data, error, made.ignore, hit, harmless, ~made.ignore, hit & (charge > 3 * own))


def injection_cases(split: str, data: Path | None, libraries: Sequence[EventLibrary]) -> Iterator[tuple[str, Case]]:
    """Yield (kind, frame) of a split: generated tracks and real events on mock skies and on real scenes."""
    seed = list(SPLITS).index(split)
    rng = np.random.default_rng([_SEED, seed])
    shape = (_SIZE, _SIZE)
    for _ in range(_SKIES):
        scene = draw_mock_scene(rng, _SEED * 10 + seed, _SKIES, _SIZE)
        tracks = draw_cosmic_rays(rng, CosmicRays(), shape).astype(np.float32)
        yield "generated tracks on mock skies", injected(rng, scene, tracks, poisson=True, faintest=5.0)
    for library in libraries:
        for _ in range(_SKIES):
            scene = draw_mock_scene(rng, _SEED * 10 + seed, _SKIES, _SIZE)
            events = library.scatter(rng, shape, 0.025)
            kind = f"{library.name} events on mock skies"
            yield kind, injected(rng, scene, events, poisson=True, faintest=0.0)
    if data is None or split != "test":
        return
    for name, scene in real_scenes(data).items():
        for library in libraries:
            # Brightness follows the noise, so that events stand out as they do on their own detector.
            events = library.scatter(rng, scene.data.shape, 0.025) * np.float32(max(1.0, scene.read_noise / 5))
            kind = f"{library.name} events on {name}"
            yield kind, injected(rng, scene, events, poisson=False, faintest=0.0)


def evaluate_injected(data: Path | None, model: str) -> dict[str, Any]:
    """Score methods on injected cosmic rays of the test split; tune on the validation split."""
    known = [case for _, case in injection_cases("validation", data, _libraries("validation", data))]
    parameters = tune_lacosmic(known)
    card = find_card("cosmicray", model)
    cut = float(card.threshold or 0.5)
    kinds: dict[str, list[Case]] = {}
    for kind, case in injection_cases("test", data, _libraries("test", data)):
        kinds.setdefault(kind, []).append(case)
    results: dict[str, Any] = {}
    for kind, cases in kinds.items():
        masks = [probability_of(case, model) >= cut for case in cases]
        results[kind] = {
            "network": {"threshold": cut} | asdict(score(cases, masks)),
            "L.A.Cosmic, tuned": parameters | asdict(score(cases, [by_lacosmic(parameters)(case) for case in cases])),
        }
    return results


def _libraries(split: str, data: Path | None) -> tuple[EventLibrary, ...]:
    return gather_material(split, _SEED, 1, data).libraries


# --- negative controls -----------------------------------------------------------------------------------------


def evaluate_controls(data: Path | None, model: str) -> dict[str, Any]:
    """Count what methods find where there is nothing to find [pixel / Mpix]."""
    rng = np.random.default_rng([_SEED, 9])
    scenes = {"mock skies": [draw_mock_scene(rng, _SEED * 10 + 2, _SKIES, _SIZE) for _ in range(_SKIES)]}
    if data is not None:
        scenes |= {name: [scene] for name, scene in real_scenes(data).items()}
    cut = float(find_card("cosmicray", model).threshold or 0.5)
    parameters = dict(find_card("cosmicray", "lacosmic").parameters)
    results: dict[str, Any] = {}
    for name, some in scenes.items():
        nothing = [np.zeros(scene.data.shape, dtype=np.float32) for scene in some]
        cases = [
            injected(rng, scene, none, poisson=False, faintest=0.0) for scene, none in zip(some, nothing, strict=True)
        ]
        pixels = sum(int(case.use.sum()) for case in cases) / 1e6
        network = sum(int((probability_of(case, model) >= cut).sum()) for case in cases)
        classical = sum(int((by_lacosmic(parameters)(case) & case.use).sum()) for case in cases)
        results[name] = {"network": network / pixels, "lacosmic": classical / pixels, "Mpix": pixels}
    return results


# --- all of it -------------------------------------------------------------------------------------------------


def evaluate_cosmicray(model: str = "default", data: Path | None = None, to: Path | None = None) -> dict[str, Any]:
    """Evaluate a network beside L.A.Cosmic.

    Parameters
    ----------
    model : str
        A network's name, or the path of its card.
    data : Path, optional
        Folder of real events and frames; without it only mock skies with generated tracks are looked at.
    to : Path, optional
        Folder for ``cosmicray_evaluation.json``.

    Returns
    -------
    dict
        What is written there.
    """
    card = find_card("cosmicray", model)
    results: dict[str, Any] = {"model": {"name": card.name, "version": card.version, "sha256": card.sha256}}
    results["seed"] = _SEED
    if data is not None and (data / "hst_stis").is_dir():
        results["stis"] = evaluate_stis(data / "hst_stis", model)
    results["injected"] = evaluate_injected(data, model)
    results["false_pixels_per_mpix"] = evaluate_controls(data, model)
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        write_atomic(to / "cosmicray_evaluation.json", (json.dumps(results, indent=2) + "\n").encode())
    return results


def table(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a table of an evaluation, for people."""
    yield f"{'':<66} " + " ".join(f"{name:>9}" for name in ("precision", "recall", "visible", "no skirt", "events"))
    for part in ("stis", "injected"):
        for kind, methods in results.get(part, {}).items():
            if not isinstance(methods, dict):
                continue
            rows = {"": methods} if "precision" in methods else methods
            for method, row in rows.items():
                name = f"{kind}: {method}" if method else kind
                yield f"{name:<66} " + " ".join(f"{row[key]:>9.3f}" for key in _COLUMNS)
    for kind, row in results["false_pixels_per_mpix"].items():
        yield f"nothing there: {kind}: {row['network']:.0f} false pixels per Mpix, L.A.Cosmic {row['lacosmic']:.0f}"
