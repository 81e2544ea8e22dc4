"""Step 6: spectra of catalogue stars on slitless frames, and what they contribute to the flat-field cube."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.instrument import Instrument, pixel_positions
from csstdask.instrument.dispersion import dispersion_of, nominal_sensitivity, wavelength_grid
from csstdask.numerics.spectral import interpolate_spectrum
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.step import Cost, Output, Step, Table
from csstdask.store.schema import NO_TIME

if TYPE_CHECKING:
    from csstdask.flux.catalogue import StarCatalogue
    from csstdask.flux.frame import FrameSpectra
    from csstdask.flux.predicted import PredictedLight
    from csstdask.flux.seds_table import SedTable
    from csstdask.pipeline.frame import Frame

Float = npt.NDArray[np.float64]

#: The file that a unit contributes to the flat-field cube.
STAR_RATIOS = "star_ratios"
_REACH_X, _REACH_Y = 450, 30
"""Stars so far off the frame may have a first or zeroth order on it [pixel]."""


@dataclass(frozen=True)
class StarsOnFrame:
    """Catalogue stars of one frame with what is known of their spectra."""

    catalogue: StarCatalogue
    x: Float
    """(n,) Without the grating, zero-based [pixel]."""
    y: Float
    flux_5556: Float
    """(n,) [erg s-1 cm-2 A-1]; NaN where unknown."""
    flux_5556_err: Float
    seds: SedTable | None
    """Those of the stars that the table holds."""
    row: npt.NDArray[np.intp]
    """(n,) In `seds`; -1 without an SED."""

    def __len__(self) -> int:
        return len(self.x)


def extract_stars(frame: Frame, config: RunConfig) -> Output:
    """Extract the spectra of the catalogue's stars, and compare them with their predicted counts."""
    from csstdask.flux.frame import extract_frame

    mesh, facts = frame.mesh, frame.facts
    stars = stars_on(frame, config)
    if not len(stars) or not np.isfinite(mesh.background).all() or not facts.exptime > 0:
        return Output(tables={"spectra": _table(frame, stars, None)}, metrics={"n_spectra": 0})
    where = frame.instrument, facts.detector, frame.data.shape
    predicted = predicted_light(frame, stars)
    spectra = extract_frame(
        frame.data - mesh.background_at(),
        frame.error,
        frame.ignore | frame.product("cr_mask"),
        dispersion_of(*where),
        dispersion_of(*where, order=0),
        stars.x,
        stars.y,
        predicted=predicted,
    )
    files = {} if predicted is None else {STAR_RATIOS: _ratios(frame, stars, spectra, predicted)}
    return Output(
        tables={"spectra": _table(frame, stars, spectra)},
        files={name: content for name, content in files.items() if content is not None},
        metrics=_metrics(spectra),
    )


@functools.lru_cache(maxsize=2)
def _catalogue(path: str, _checksum: str) -> StarCatalogue:
    from csstdask.flux.catalogue import read_catalogue

    return read_catalogue(Path(path))


def stars_on(frame: Frame, config: RunConfig) -> StarsOnFrame:
    """Return the stars whose light may fall on a frame, and their SEDs."""
    from csstdask.flux.photometry import flux_from_magnitude
    from csstdask.flux.seds_table import read_seds

    settings = config.extract
    catalogue = _catalogue(str(settings.catalogue), str(settings.catalogue_sha256))
    time = None if frame.facts.time == NO_TIME else frame.facts.time
    x, y = pixel_positions(frame.header, *catalogue.at(time))
    ny, nx = frame.data.shape
    near = (x > -_REACH_X) & (x < nx + _REACH_X) & (y > -_REACH_Y) & (y < ny + _REACH_Y)
    stars = catalogue.select(near)
    seds = None if settings.spectra is None else read_seds(Path(settings.spectra), [str(name) for name in stars.id])
    rows = {} if seds is None else {str(name): row for row, name in enumerate(seds.id)}
    row = np.array([rows.get(str(name), -1) for name in stars.id], dtype=np.intp)
    flux, flux_err = stars.flux_5556.copy(), stars.flux_5556_err.copy()
    for band in sorted({str(name) for name in stars.mag_band if str(name) in frame.instrument.bands}):
        some = (stars.mag_band == band) & (row >= 0) & ~np.isfinite(flux)
        if seds is not None and some.any():
            first, last = frame.instrument.bands[band].wavelength
            flux[some], flux_err[some] = flux_from_magnitude(
                stars.mag[some], stars.mag_err[some], (10 * first, 10 * last), seds.wavelength, seds.mean[row[some]]
            )
    positive = flux > 0
    return StarsOnFrame(
        stars, x[near], y[near], np.where(positive, flux, np.nan), np.where(positive, flux_err, np.nan), seds, row
    )


def predicted_light(frame: Frame, stars: StarsOnFrame) -> PredictedLight | None:
    """Return the light that is expected of the stars; None without SEDs."""
    from csstdask.flux.predicted import PredictedLight

    if stars.seds is None or not (stars.row >= 0).any():
        return None
    instrument, detector = frame.instrument, frame.facts.detector
    flux = np.full((len(stars), len(stars.seds.wavelength)), np.nan)
    known = stars.row >= 0
    flux[known] = stars.flux_5556[known, None] * stars.seds.mean[stars.row[known]]
    return PredictedLight(
        wavelength=stars.seds.wavelength,
        flux=flux,
        sensitivity=functools.partial(nominal_sensitivity, instrument, detector),
        exptime=frame.facts.exptime,
        zeroth_sensitivity=functools.partial(nominal_sensitivity, instrument, detector, order=0),
    )


def _ratios(frame: Frame, stars: StarsOnFrame, spectra: FrameSpectra, predicted: PredictedLight) -> bytes | None:
    """Return the content of the unit's partial; None if no star has a spectrum and an SED."""
    from csstdask.flux.observed import star_ratios

    seds = stars.seds
    known = np.flatnonzero((stars.row >= 0) & np.isfinite(stars.flux_5556) & np.isfinite(spectra.snr))
    if seds is None or not len(known):
        return None
    grid = wavelength_grid(frame.instrument, frame.facts.detector)
    mean, sigma, modes = (
        interpolate_spectrum(seds.wavelength, values[stars.row[known]], grid)
        for values in (seds.mean, seds.sigma, seds.modes)
    )
    relative = np.zeros((len(stars), *modes.shape[1:]))
    independent = np.zeros((len(stars), len(grid)))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative[known] = modes / mean[:, None, :]
        independent[known] = np.maximum((sigma / mean) ** 2 - (relative[known] ** 2).sum(axis=1), 0.0)
    ratios = star_ratios(
        spectra,
        grid,
        predicted,
        star=stars.catalogue.id.astype(str),
        grey_error=np.nan_to_num(stars.flux_5556_err / stars.flux_5556),
        variance_sed=independent,
        modes=relative,
        detector=frame.facts.detector,
    )
    return ratios.to_bytes() if len(ratios) else None


def _metrics(spectra: FrameSpectra) -> dict[str, float | int | None]:
    measured = np.isfinite(spectra.snr)
    shifted = np.isfinite(spectra.shift_measured)
    return {
        "n_spectra": int(measured.sum()),
        "spectrum_snr": float(np.median(spectra.snr[measured])) if measured.any() else None,
        "spectrum_shift": float(np.median(spectra.shift_measured[shifted])) if shifted.any() else None,
        "trace_offset": float(np.median(spectra.y_offset[measured])) if measured.any() else None,
        "contaminated_fraction": float(np.mean(spectra.contaminated[measured])) if measured.any() else None,
    }


def _table(frame: Frame, stars: StarsOnFrame, spectra: FrameSpectra | None) -> Table:
    """Return the columns of the table: the stars of which some column was measured, sorted by id."""
    chosen = np.flatnonzero(np.isfinite(spectra.snr)) if spectra is not None else np.zeros(0, dtype=np.intp)
    chosen = chosen[np.argsort(stars.catalogue.id[chosen].astype(str), kind="stable")]
    n = len(chosen)
    ra, dec = stars.catalogue.ra[chosen], stars.catalogue.dec[chosen]
    table: Table = {
        "exposure": np.full(n, frame.facts.exposure, dtype=object),
        "detector": np.full(n, frame.facts.detector, dtype=np.int32),
        "id": stars.catalogue.id[chosen],
        "x": stars.x[chosen],
        "y": stars.y[chosen],
        "ra": ra,
        "dec": dec,
        "flux_5556": stars.flux_5556[chosen],
        "flux_5556_err": stars.flux_5556_err[chosen],
    }
    single = {
        "snr": "snr", "shift": "shift", "shift_err": "shift_sigma", "shift_measured": "shift_measured",
        "shift_measured_err": "shift_measured_sigma", "y_offset": "y_offset", "chi2": "chi2",
        "contaminated": "contaminated", "coverage": "coverage",
    }  # fmt: skip
    for name, attribute in single.items():
        values = getattr(spectra, attribute)[chosen] if spectra is not None else np.zeros(0)
        table[name] = np.where(np.isfinite(values), values, np.nan)
    if spectra is None:
        empty = np.zeros((0, 0), dtype=np.float32)
        lists = ("column", "row", "wavelength", "rate", "rate_err", "background", "flag")
        return table | dict.fromkeys(lists, empty)
    per_second = 1 / (frame.facts.exptime * spectra.angstrom_per_pixel[chosen])
    sigma = spectra.sigma[chosen]
    return table | {
        "column": spectra.column[chosen].astype(np.int32),
        "row": spectra.row[chosen].astype(np.float32),
        "wavelength": spectra.wavelength[chosen].astype(np.float32),
        "rate": (spectra.counts[chosen] * per_second).astype(np.float32),
        "rate_err": np.where(np.isfinite(sigma), sigma * per_second, np.nan).astype(np.float32),
        "background": spectra.background[chosen].astype(np.float32),
        "flag": spectra.flag[chosen].astype(np.int32),
    }


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return what decides the spectra: the content of the tables, not where they lie."""
    return config.extract.model_dump(exclude={"catalogue", "spectra"})


def _cost(_config: RunConfig, _instrument: Instrument) -> Cost:
    return Cost(seconds_per_mpix=0.05, fixed_seconds=0.6, bytes_per_pixel=48.0, fixed_bytes=200 << 20)


EXTRACT = Step(
    name="extract",
    requires=("background", "detect"),
    kinds=frozenset({"slitless"}),
    numerics_version=1,
    body=extract_stars,
    settings=_settings,
    model=lambda _: None,
    tables=("spectra",),
    files=(STAR_RATIOS,),
    metrics=("n_spectra", "spectrum_snr", "spectrum_shift", "trace_offset", "contaminated_fraction"),
    cost=_cost,
)
