"""Evaluate detection on real frames, on real events in other scenes, and on scenes without cosmic rays.

* the pair of STIS frames that is not used in training, with the truth of its stack;
* events of held-out exposures and rows, and simulated tracks, injected into scenes that are not used in training;
* the same scenes without cosmic rays.

The network is evaluated at the threshold of its card; on real frames also at the threshold that on the validation pair
leads L.A.Cosmic most in both precision and recall. L.A.Cosmic is tuned for each kind of input on frames of all pairs
but that of the test. Parameters that end at a limit of their range are listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from csstdask.arrays.frame import poisson_variance
from csstdask.arrays.morphology import dilate
from csstdask.core.warnings import suppress_warnings
from csstdask.datasets import stis_1999
from csstdask.datasets.scenes import Scene, draw_mock_scene
from csstdask.evaluation.cosmicray.methods import (
    Tuned,
    best_threshold_against,
    card_threshold,
    lacosmic_detector,
    network_probability,
    parameters_at_limit,
    tune_lacosmic,
)
from csstdask.evaluation.runner import ProgressCallback
from csstdask.instrument import electrons_per_unit, load_instrument
from csstdask.metrics.detection import RECALL_CHARGE, Bool, DetectionCase, Float, score, visible_pixels
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.event_libraries import STIS_PAIRS, EventLibrary, pair_exposures
from csstdask.mock.recipe_tables import CosmicRays, Split
from csstdask.numerics.robust import mad_scale
from csstdask.training.cosmicray.frames import ContaminatedFrame, add_cosmic_rays
from csstdask.training.cosmicray.material import load_material

_SEED = 1999
#: Number and side of the mock skies of each kind of injection [pixel].
N_SKIES, _SIZE = 6, 512
#: Fraction of pixels with injected charge.
_PIXEL_FRACTION = 0.025
#: Keys of the results of `evaluate_real`.
REAL = ("seed", "stis", "injected", "false_pixels_per_mpix")
_HELD_OUT: tuple[Split, ...] = ("validation", "test")


def compare_methods(
    tests: Sequence[DetectionCase], model: str, parameters: dict[str, Any], tuned_cut: float | None = None
) -> dict[str, Any]:
    """Score a network at the threshold of its card and at a tuned one, and L.A.Cosmic, on the same frames."""
    probabilities = [network_probability(case, model) for case in tests]
    cuts = {"network": card_threshold(model)}
    if tuned_cut is not None:
        cuts["network, threshold tuned"] = tuned_cut
    result: dict[str, Any] = {
        name: {"threshold": cut} | asdict(score(tests, [probability >= cut for probability in probabilities]))
        for name, cut in cuts.items()
    }
    found = [lacosmic_detector(parameters)(case) for case in tests]
    facts = {"parameters": parameters, "at the edge of its range": parameters_at_limit(parameters)}
    return result | {"L.A.Cosmic, tuned": facts | asdict(score(tests, found))}


# --- real frames -----------------------------------------------------------------------------------------------

#: Inputs of a detection on STIS frames: name, whether the reference is subtracted, whether hot pixels are flagged.
INPUTS = (
    ("image", False, False),
    ("image, hot pixels flagged", False, True),
    ("reference subtracted", True, False),
    ("reference subtracted, hot pixels flagged", True, True),
)


#: Frames that L.A.Cosmic is tuned on: one of each development pair.
_TUNED_ON = ("o56502020_1", "o56502030_2", "o56502040_1")


def stis_case(
    frame: stis_1999.StisFrame, reference: stis_1999.StisReference, *, subtract: bool, flag: bool
) -> DetectionCase:
    """Return a STIS frame in the form in which a pipeline passes it to detection."""
    residual = frame.image - reference.expected(frame)
    variance = poisson_variance(frame.image, float(frame.sigma))
    if subtract:
        variance = variance + reference.variance(frame)
    nothing = np.zeros(frame.image.shape, dtype=bool)
    ignore = reference.hot.copy() if flag else nothing
    return DetectionCase(
        data=residual if subtract else frame.image,
        error=np.sqrt(variance),
        ignore=ignore,
        hit=frame.hit,
        faint=nothing,
        use=frame.valid & ~ignore,
        visible=frame.hit,
        charge=np.where(frame.hit, residual, 0),
    )


def threshold_control(frame: stis_1999.StisFrame, reference: stis_1999.StisReference) -> Bool:
    """Return the residuals above 6 sigma, grown twice to 3 sigma: the definition of the truth."""
    expected = reference.rate * np.float32(frame.exptime)
    z = (frame.image - expected - frame.offset) / np.sqrt(poisson_variance(expected, frame.sigma))
    found: Bool = z > 6
    for _ in range(2):
        found = found | (dilate(found) & (z > 3))
    return found


def evaluate_stis(folder: Path, model: str, tuned: Tuned, on_progress: ProgressCallback) -> dict[str, Any]:
    """Score methods on the held-out pair, for each kind of input.

    The reference of a development frame is built from the other development pairs, so that methods are tuned on
    residuals as noisy as those of the test.
    """
    known = [stis_1999.read_frame(folder, name) for name in pair_exposures(stis_1999.DEVELOPMENT_PAIRS)]
    tests = [stis_1999.read_frame(folder, name) for name in pair_exposures(STIS_PAIRS["test"])]
    references = [stis_1999.reference_without_pair(frame, known) for frame in known]
    reference = stis_1999.build_reference(known)
    results: dict[str, Any] = {}
    for name, subtract, flag in INPUTS:
        on_progress(f"STIS, {name}: tuning, scoring")
        given = {"subtract": subtract, "flag": flag}
        cases = [stis_case(frame, own, **given) for frame, own in zip(known, references, strict=True)]
        validation = [case for case, frame in zip(cases, known, strict=True) if frame.pair in STIS_PAIRS["validation"]]
        half = [case for case, frame in zip(cases, known, strict=True) if frame.name in _TUNED_ON]
        parameters = tune_lacosmic(half, tuned)
        held_out = [stis_case(frame, reference, **given) for frame in tests]
        results[name] = compare_methods(
            held_out, model, parameters, best_threshold_against(validation, model, parameters)
        )
    held_out = [stis_case(frame, reference, subtract=True, flag=False) for frame in tests]
    controls = [threshold_control(frame, reference) for frame in tests]
    results["the truth's own definition, with the rebuilt reference"] = {"control": asdict(score(held_out, controls))}
    return results


# --- injected events -------------------------------------------------------------------------------------------


def real_scenes(data: Path) -> dict[str, Scene]:
    """Return real frames without cosmic rays that are not used in training [e-].

    Gains are those of the cameras; for M51 it is an estimate, 4 e-/adu.
    """
    scenes: dict[str, Scene] = {}
    path = data / "m51_inpaint" / "m51_org.fits"
    if path.is_file():
        counts = _image(path, 0) * np.float32(4.0)
        scenes["M51 (KPNO, B)"] = _scene(counts, np.zeros(counts.shape, dtype=bool), None)
    path = data / "nicmos" / "n8q624e8q_cal.fits"
    if path.is_file():
        with suppress_warnings():
            exptime = float(fits.getval(path, "EXPTIME"))
        gain = load_instrument("hst_nicmos").electronics.gain or 1.0
        scale = np.float32(electrons_per_unit("adu s-1", exptime, gain))
        error = _image(path, 2) * scale
        scenes["Galactic Centre (NICMOS, F160W)"] = _scene(_image(path, 1) * scale, error <= 0, error)
    path = data / "hsc_maskedimage" / "HSC-0908120-056-small.fits"
    if path.is_file():
        per_adu = np.float32(load_instrument("hsc").electronics.gain or 1.0)
        error = np.sqrt(_image(path, 3), dtype=np.float32) * per_adu
        scenes["HSC cut-out"] = _scene(_image(path, 1) * per_adu, ~(error > 0), error)
    return scenes


def _image(path: Path, hdu: int) -> Float:
    with suppress_warnings(), fits.open(path) as hdus:
        return np.asarray(hdus[hdu].data, dtype=np.float32)


def _scene(counts: Float, ignore: Bool, error: Float | None) -> Scene:
    """Return a scene with the noise of its error plane, or of its sky."""
    ignore = ignore | ~np.isfinite(counts)
    counts = np.where(ignore, 0, counts).astype(np.float32)
    sky = float(np.median(counts[~ignore]))
    if error is not None:
        noise = float(np.median(error[~ignore]))
        # What the error plane holds beyond the counts' own Poisson noise and the typical noise.
        hidden = np.where(ignore, 0, error**2 - noise**2 - np.maximum(counts, 0)).astype(np.float32)
        return Scene(counts, counts, sky, noise, ignore, hidden)
    noise = float(mad_scale(counts[~ignore], center=sky))
    return Scene(counts, counts, sky, noise, ignore)


def make_case(scene: Scene, made: ContaminatedFrame, faintest: float) -> DetectionCase:
    """Return a contaminated scene as a case whose hits are the pixels with more than `faintest` electrons."""
    own = np.sqrt(np.maximum(scene.data + scene.unreported_variance, 0) + np.float32(scene.read_noise**2))
    hit = made.charge > faintest
    return DetectionCase(
        data=made.data,
        error=made.error,
        ignore=made.ignore,
        hit=hit,
        faint=(made.charge > 0) & ~hit,
        use=~made.ignore,
        visible=visible_pixels(made.charge, own, faintest),
        charge=made.charge,
    )


def charge_scale(scene: Scene) -> float:
    """Return a factor on the charge of events that keeps their contrast with the noise of the scene."""
    return max(1.0, scene.read_noise / 5)


def _draw_charge(
    rng: np.random.Generator, library: EventLibrary | None, shape: tuple[int, ...], brightness: float = 1.0
) -> Float:
    ny, nx = shape
    if library is None:
        return draw_cosmic_rays(rng, CosmicRays(pixel_fraction=(_PIXEL_FRACTION,)), (ny, nx)).astype(np.float32)
    return library.scatter(rng, (ny, nx), _PIXEL_FRACTION, brightness=brightness)


def mock_cases(split: Split, library: EventLibrary | None) -> list[DetectionCase]:
    """Return mock skies of a split with simulated tracks (no library) or real events.

    Recall includes pixels above 5 e- of simulated tracks, as in the paper, and all pixels of real events.
    """
    number = list(STIS_PAIRS).index(split)
    rng = np.random.default_rng([_SEED, number, 0 if library is None else 1 + len(library)])
    cases = []
    for index in range(N_SKIES):
        scene = draw_mock_scene(rng, _SEED * 10 + number, index, _SIZE)
        made = add_cosmic_rays(scene, _draw_charge(rng, library, scene.data.shape), full_well=8e4)
        cases.append(make_case(scene, made, RECALL_CHARGE if library is None else 0.0))
    return cases


def evaluate_injected(data: Path | None, model: str, tuned: Tuned, on_progress: ProgressCallback) -> dict[str, Any]:
    """Score methods on injected cosmic rays of the test split.

    L.A.Cosmic is tuned on the same kind of cosmic rays on the validation split's mock skies.
    """
    libraries = {split: _libraries(split, data) for split in _HELD_OUT}
    scenes = {} if data is None else real_scenes(data)
    rng = np.random.default_rng([_SEED, 3])
    results: dict[str, Any] = {}
    for position, library in enumerate((None, *libraries["test"])):
        validation = None if position == 0 else libraries["validation"][position - 1]
        kind = "generated tracks" if library is None else f"{library.name} events"
        on_progress(f"{kind}: tuning, scoring")
        parameters = tune_lacosmic(mock_cases("validation", validation), tuned)
        results[f"{kind} on mock skies"] = compare_methods(mock_cases("test", library), model, parameters)
        if library is None:
            continue
        for name, scene in scenes.items():
            made = add_cosmic_rays(scene, _draw_charge(rng, library, scene.data.shape, charge_scale(scene)))
            results[f"{kind} on {name}"] = compare_methods([make_case(scene, made, 0.0)], model, parameters)
    return results


def _libraries(split: Split, data: Path | None) -> tuple[EventLibrary, ...]:
    return load_material(split, _SEED, 1, data).libraries


# --- negative controls -----------------------------------------------------------------------------------------


def evaluate_controls(data: Path | None, model: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the number of false pixels per million on scenes without cosmic rays."""
    scenes = {"mock skies": _empty_mock_cases()}
    if data is not None:
        for name, scene in real_scenes(data).items():
            nothing = np.zeros(scene.data.shape, dtype=np.float32)
            scenes[name] = [make_case(scene, add_cosmic_rays(scene, nothing), 0.0)]
    cut = card_threshold(model)
    results: dict[str, Any] = {}
    for name, cases in scenes.items():
        pixels = sum(int(case.use.sum()) for case in cases) / 1e6
        network = sum(int((network_probability(case, model) >= cut).sum()) for case in cases)
        classical = sum(int((lacosmic_detector(parameters)(case) & case.use).sum()) for case in cases)
        results[name] = {"network": network / pixels, "lacosmic": classical / pixels, "Mpix": pixels}
    return results


def _empty_mock_cases() -> list[DetectionCase]:
    number = list(STIS_PAIRS).index("test")
    rng = np.random.default_rng([_SEED, 9])
    scenes = [draw_mock_scene(rng, _SEED * 10 + number, index, _SIZE) for index in range(N_SKIES)]
    nothing = np.zeros((_SIZE, _SIZE), dtype=np.float32)
    return [make_case(scene, add_cosmic_rays(scene, nothing, full_well=8e4), 0.0) for scene in scenes]


def evaluate_real(data: Path | None, model: str, tuned: Tuned, on_progress: ProgressCallback) -> dict[str, Any]:
    """Evaluate detection on real frames, on injected events, and on scenes without cosmic rays.

    Parameters
    ----------
    data : Path, optional
        Folder of real events and frames. Without it, only mock skies with simulated tracks are evaluated.
    model : str
        Name or card of the network.
    tuned : dict
        Stored parameters of L.A.Cosmic, as for `tune_lacosmic`.
    on_progress : callable
        Receives lines about the progress.
    """
    results: dict[str, Any] = {"seed": _SEED}
    if data is not None and (data / "hst_stis").is_dir():
        results["stis"] = evaluate_stis(data / "hst_stis", model, tuned, on_progress)
    results["injected"] = evaluate_injected(data, model, tuned, on_progress)
    parameters = results["injected"]["generated tracks on mock skies"]["L.A.Cosmic, tuned"]["parameters"]
    results["false_pixels_per_mpix"] = evaluate_controls(data, model, parameters)
    return results
