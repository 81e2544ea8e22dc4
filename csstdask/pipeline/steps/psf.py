"""Step 5: the point spread function of a frame, from its stars: anywhere on it, and how it stands beside them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csstdask.arrays.moments import adaptive_moments
from csstdask.nn.models import find_card
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.step import Cost, Output, Product, Step, Table
from csstdask.psf import fit_frame
from csstdask.psf.field import HALF_PIXELS, NODES, nodes
from csstdask.psf.frame import FramePsf, judge, model_for
from csstdask.psf.reconstruct import EMPIRICAL

_COLUMNS = ("flux", "chi2", "size", "e1", "e2", "model_size", "model_e1", "model_e2")


def fit_psf(frame: Frame, config: RunConfig) -> Output:
    """Fit the PSF of a frame to its stars; nothing where there are none, or the asked model does not know the band."""
    seen = frame.repaired()
    model = model_for(frame.instrument.name, frame.facts.detector, frame.facts.band, config.psf.model)
    if seen is None or model is None:
        return _nothing(frame)
    sources = frame.table("sources")
    unknown = seen.mask | frame.product("cr_mask")  # what was repaired is no observation
    psf = fit_frame(
        seen.height,
        seen.error,
        unknown,
        sources,
        frame.facts.detector,
        model=model,
        least_snr=config.psf.least_snr,
    )
    if psf is None:
        return _nothing(frame)
    image, sigma = psf.field(*nodes_of(frame.data.shape))
    shape = (NODES, NODES, HALF_PIXELS, HALF_PIXELS)
    stars = judge(psf, seen.height, seen.error, unknown, sources)
    return Output(
        arrays={"psf": image.reshape(shape), "psf_sigma": sigma.reshape(shape)},
        table=_table(frame, sources, stars),
        metrics=_metrics(psf, image, stars),
    )


def model_identity(config: RunConfig) -> str:
    """Return the identity of the model that is asked for, and of the one that stands in for the default one."""
    models = [config.psf.model, *([EMPIRICAL] if config.psf.model == "default" else [])]
    return " ".join(find_card("psf", model).identity for model in models)


def cost_of_psf(config: RunConfig) -> Cost:
    """Return the cost of the configured model: what learns from the stars at hand does so for each frame."""
    learns = config.psf.model == EMPIRICAL
    return Cost(bytes_per_pixel=60.0, pixels_per_second=1e6 if learns else 6e6)


def nodes_of(shape: tuple[int, ...]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return x and y of the nodes of a frame, row by row [pixel]."""
    y, x = np.meshgrid(*(nodes(length) for length in shape), indexing="ij")
    return x.ravel(), y.ravel()


def _metrics(psf: FramePsf, images: npt.NDArray[np.float32], stars: Table) -> dict[str, float | int | None]:
    """Return numbers of a frame: its PSF's usual shape, and of stars in reserve how far they are from it."""
    reserve = stars["reserve"] & (stars["model_size"] > 0) & (stars["size"] > 0)
    change = stars["size"][reserve] / stars["model_size"][reserve] - 1
    found: dict[str, float | int | None] = {"n_psf_stars": int(psf.fit.used.sum()), "n_psf_reserve": int(reserve.sum())}
    moments = adaptive_moments(images)
    for name, values in (("size", moments.sigma / 2), ("e1", moments.e1), ("e2", moments.e2)):
        found[f"psf_{name}"] = float(np.median(values[moments.converged])) if moments.converged.any() else None
    wavefront, middle = psf.fit.wavefront, np.zeros(1)
    found["psf_wavefront_rms"] = None if wavefront is None else float(wavefront.rms(middle, middle)[0])
    found["psf_chi2"] = float(np.median(stars["chi2"][reserve])) if reserve.any() else None
    found["psf_size_residual"] = float(np.median(change)) if reserve.any() else None
    return found


def _table(frame: Frame, sources: Table, stars: Table) -> Table:
    which = stars["star"]
    n = len(which)
    exptime = frame.facts.exptime if frame.facts.exptime > 0 else np.nan
    table: Table = {
        "exposure": np.full(n, frame.facts.exposure, dtype=object),
        "detector": np.full(n, frame.facts.detector, dtype=np.int32),
        **{name: np.asarray(sources[name])[which] for name in ("id", "x", "y")},
        "reserve": stars["reserve"],
        **{name: np.asarray(stars[name], dtype=np.float64) for name in _COLUMNS},
    }
    table["flux"] = table["flux"] / exptime
    return table


def _nothing(frame: Frame) -> Output:
    shape = (NODES, NODES, HALF_PIXELS, HALF_PIXELS)
    none = {name: np.empty(0) for name in ("id", "x", "y", *_COLUMNS)}
    stars: Table = {"star": np.empty(0, np.int64), "reserve": np.empty(0, bool), **none}
    stars["id"] = np.empty(0, np.int32)
    empty = np.full(shape, np.nan, np.float32)
    return Output(
        arrays={"psf": empty, "psf_sigma": empty},
        table=_table(frame, stars, stars),
        metrics={"n_psf_stars": 0, "n_psf_reserve": 0},
    )


PSF = Step(
    name="psf",
    requires=("background", "detect", "repair", "sources"),
    kinds=frozenset({"imaging"}),
    numerics_version=6,
    body=fit_psf,
    settings=lambda config: {"least_snr": config.psf.least_snr},
    model=model_identity,
    products=(
        Product("psf", "float32", float("nan"), grid="psf", long_name="effective PSF in half pixels, sums to 1"),
        Product("psf_sigma", "float32", float("nan"), grid="psf", long_name="1 sigma of it, for a star of any colour"),
    ),
    table="psf_stars",
    metrics=(
        "n_psf_stars", "n_psf_reserve", "psf_size", "psf_e1", "psf_e2", "psf_chi2", "psf_size_residual",
        "psf_wavefront_rms",
    ),
    cost=cost_of_psf,
)  # fmt: skip
