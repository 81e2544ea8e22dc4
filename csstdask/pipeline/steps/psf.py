"""Step 3: detect sources on the masked frame, and fit the point spread function (PSF) field to its stars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.psf_grid import FIELD_FORMAT, N_NODES, OVERSAMPLED_SIZE, node_positions
from csstdask.instrument import Instrument
from csstdask.nn.models import EMPIRICAL, find_card
from csstdask.pipeline.config import NO_PSF, RunConfig
from csstdask.pipeline.step import Cost, Output, Product, Step, Table

if TYPE_CHECKING:
    from csstdask.pipeline.frame import Frame
    from csstdask.psf.frame import FramePsf

#: File of the fitted PSF field of a unit.
PSF_FIELD = "psf_field"
PSF_GRID = ("y_psf", "x_psf", "v", "u")
"""Dimensions of the PSFs of a frame: nodes of the field along y and x, half pixels along y and x."""
PSF_SHAPE = (N_NODES, N_NODES, OVERSAMPLED_SIZE, OVERSAMPLED_SIZE)
DETECTION_UNITS = {
    "x": "pixel", "y": "pixel", "half_light_radius": "pixel", "flux": "electron", "flux_err": "electron",
    "peak": "electron",
}  # fmt: skip
"""Units of the columns of ``tables/detections``."""
STAR_UNITS = {"x": "pixel", "y": "pixel", "flux": "electron s-1", "size": "pixel", "model_size": "pixel"}
"""Units of the columns of ``tables/psf_stars``."""
PSF_BYTES = 180 << 20
"""Memory that the fit of PSFs, with the libraries it imports, adds to a process [byte]."""
_STAR_COLUMNS = ("flux", "chi2", "size", "e1", "e2", "model_size", "model_e1", "model_e2")
#: Columns of the detections that the selection of stars and the repair read; x and y in pixels, fluxes in electrons.
_DETECTION_COLUMNS = ("x", "y", "flux", "flux_err", "peak", "half_light_radius", "ellipticity", "flag")


def fit_psf(frame: Frame, config: RunConfig) -> Output:
    """Detect the sources of the masked frame, and fit its PSF field to the stars among them.

    There is no PSF if the frame has no stars, or the requested model does not support the band.
    """
    from csstdask.psf.field_file import read_field, write_field
    from csstdask.psf.frame import compare_stars, fit_frame

    model = psf_model(frame, config)
    masked = frame.masked if config.psf.model != NO_PSF else None
    if masked is None:
        return _without_psf(frame, None)
    detections = _in_order(masked.measure_sources())
    if model is None:
        return _without_psf(frame, detections)
    planes = masked.height, masked.error, masked.unobserved
    psf = fit_frame(*planes, detections, frame.metadata.detector, model=model, min_snr=config.psf.min_snr)
    if psf is None:
        return _without_psf(frame, detections)
    card = find_card("psf", model if psf.field.model != EMPIRICAL else EMPIRICAL)
    stored = write_field(psf.field, card)
    field = read_field(stored, card)  # rounded like the file, as a resumed run reads it
    image, sigma = field(*nodes_of(frame.data.shape))
    stars = compare_stars(field, psf.fitted, psf.selection, *planes, detections)
    return Output(
        arrays={"psf": image.reshape(PSF_SHAPE), "psf_sigma": sigma.reshape(PSF_SHAPE)},
        tables={"detections": _detections(frame, detections), "psf_stars": _stars(frame, detections, stars)},
        files={PSF_FIELD: stored},
        metrics=_metrics(psf, image, stars),
    )


def psf_model(frame: Frame, config: RunConfig) -> str | None:
    """Return the name of the model for the PSF of a frame; None if there is none."""
    if config.psf.model == NO_PSF:
        return None
    from csstdask.psf.frame import choose_model

    return choose_model(frame.instrument.name, frame.metadata.detector, frame.metadata.band, config.psf.model)


def model_identity(config: RunConfig) -> str:
    """Return the identities of the requested model, and of its fallback for other cameras."""
    if config.psf.model == NO_PSF:
        return NO_PSF
    models = [config.psf.model, *([EMPIRICAL] if config.psf.model == "default" else [])]
    cards = [find_card("inpaint", "median"), *(find_card("psf", model) for model in models)]
    return " ".join(card.identity for card in cards)


def cost_of_psf(config: RunConfig, instrument: Instrument) -> Cost:
    """Return the cost of the model for frames of an instrument."""
    memory: dict[str, Any] = {"bytes_per_pixel": 56.0, "fixed_bytes": 100 << 20}
    if config.psf.model == NO_PSF:
        return Cost()
    card = find_card("psf", config.psf.model)
    if card.architecture.get("instrument") != instrument.name:  # learnt from the stars of the frame
        return Cost(seconds_per_mpix=0.4, fixed_seconds=1.6, **memory)
    return Cost(seconds_per_mpix=0.155, fixed_seconds=0.85, **memory)


def nodes_of(shape: tuple[int, ...]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return x and y (node,) of the nodes of a frame, row by row [pixel]."""
    y, x = np.meshgrid(*(node_positions(length) for length in shape), indexing="ij")
    return x.ravel(), y.ravel()


def _metrics(psf: FramePsf, images: npt.NDArray[np.float32], stars: Table) -> dict[str, float | int | None]:
    """Return the metrics of a frame: median shape of its PSF, and residuals of held-out stars."""
    from csstdask.arrays.moments import adaptive_moments

    held_out = stars["held_out"] & (stars["model_size"] > 0) & (stars["size"] > 0)
    change = stars["size"][held_out] / stars["model_size"][held_out] - 1
    found: dict[str, float | int | None] = {
        "n_psf_stars": int(psf.fit.used.sum()),
        "n_psf_held_out": int(held_out.sum()),
    }
    moments = adaptive_moments(images)
    for name, values in (("size", moments.sigma / 2), ("e1", moments.e1), ("e2", moments.e2)):
        found[f"psf_{name}"] = float(np.median(values[moments.converged])) if moments.converged.any() else None
    wavefront, middle = psf.fit.wavefront, np.zeros(1)
    found["psf_wavefront_rms"] = None if wavefront is None else float(wavefront.rms(middle, middle)[0])
    found["psf_misfit"] = psf.field.misfit if np.isfinite(psf.field.misfit) else None
    found["psf_chi2"] = float(np.median(stars["chi2"][held_out])) if held_out.any() else None
    found["psf_size_residual"] = float(np.median(change)) if held_out.any() else None
    return found


def _in_order(found: Table) -> Table:
    """Return the columns of the detections, sorted by y, then x."""
    order = np.lexsort((found["x"], found["y"]))
    return {"id": np.arange(len(order), dtype=np.int32)} | {name: found[name][order] for name in _DETECTION_COLUMNS}


def _detections(frame: Frame, found: Table | None) -> Table:
    """Return the table of detections."""
    if found is None:
        none: dict[str, npt.NDArray[Any]] = {name: np.empty(0) for name in _DETECTION_COLUMNS}
        found = {"id": np.empty(0, np.int32), **none, "flag": np.empty(0, np.int32)}
    return _of_unit(frame, len(found["id"])) | found


def _stars(frame: Frame, detections: Table, stars: Table) -> Table:
    """Return the table of PSF stars; fluxes in electron s-1, `id` is that of the detection."""
    which = stars["star"]
    exptime = frame.metadata.exptime if frame.metadata.exptime > 0 else np.nan
    table: Table = {
        **_of_unit(frame, len(which)),
        **{name: np.asarray(detections[name])[which] for name in ("id", "x", "y")},
        "held_out": stars["held_out"],
        **{name: np.asarray(stars[name], dtype=np.float64) for name in _STAR_COLUMNS},
    }
    table["flux"] = table["flux"] / exptime
    return table


def _of_unit(frame: Frame, n: int) -> Table:
    return {
        "exposure": np.full(n, frame.metadata.exposure, dtype=object),
        "detector": np.full(n, frame.metadata.detector, dtype=np.int32),
    }


def _without_psf(frame: Frame, detections: Table | None) -> Output:
    """Return the output for a frame without a PSF: its detections, if its sky is known."""
    none = {name: np.empty(0) for name in ("x", "y", *_STAR_COLUMNS)}
    no_stars: Table = {"star": np.empty(0, np.int64), "held_out": np.empty(0, bool), "id": np.empty(0, np.int32)} | none
    empty = np.full(PSF_SHAPE, np.nan, np.float32)
    return Output(
        arrays={"psf": empty, "psf_sigma": empty},
        tables={"detections": _detections(frame, detections), "psf_stars": _stars(frame, no_stars, no_stars)},
        metrics={"n_psf_stars": 0, "n_psf_held_out": 0},
    )


PSF = Step(
    name="psf",
    requires=("background", "detect"),
    kinds=frozenset({"imaging"}),
    numerics_version=9,
    body=fit_psf,
    settings=lambda config: config.psf.decisive(exclude=["model"]) | {"field_format": FIELD_FORMAT},
    model=model_identity,
    products=(
        Product("psf", "float32", float("nan"), dims=PSF_GRID, long_name="effective PSF in half pixels, sums to 1"),
        Product(
            "psf_sigma", "float32", float("nan"), dims=PSF_GRID, long_name="1 sigma of it, for a star of any colour"
        ),
    ),
    sizes=lambda _config, _shape: dict(zip(PSF_GRID, PSF_SHAPE, strict=True)),
    coordinates=lambda shape: {"y_psf": node_positions(shape[0]), "x_psf": node_positions(shape[1])},
    tables={"detections": DETECTION_UNITS, "psf_stars": STAR_UNITS},
    files=(PSF_FIELD,),
    metrics=(
        "n_psf_stars", "n_psf_held_out", "psf_size", "psf_e1", "psf_e2", "psf_chi2", "psf_size_residual",
        "psf_wavefront_rms", "psf_misfit",
    ),
    cost=cost_of_psf,
    libraries=lambda config: {} if config.psf.model == NO_PSF else {"psf": PSF_BYTES},
    panel="psf",
)  # fmt: skip
