"""Step 6: extract the spectra of catalogue stars on slitless frames, and their partial for the flat-field cube."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.core.errors import InputError
from csstdask.instrument import Instrument, pixel_positions, sky_positions
from csstdask.instrument.dispersion import (
    dispersion_of,
    nominal_sensitivity,
    slitless_order,
    slitless_orders,
    wavelength_grid,
)
from csstdask.instrument.geometry import angle_between, unit_vectors
from csstdask.numerics.spectral import interpolate_spectrum
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.step import Cost, Output, Product, Step, Table
from csstdask.store.schema import NO_TIME

if TYPE_CHECKING:
    from csstdask.flux.catalogue import StarCatalogue
    from csstdask.flux.extract_frame import FrameSpectra
    from csstdask.flux.predicted_spectra import PredictedSpectra
    from csstdask.flux.sed_table import SedTable
    from csstdask.pipeline.frame import Frame
    from csstdask.pipeline.plan import Plan

Float = npt.NDArray[np.float64]

#: Partial of a unit for the flat-field cube.
STAR_RATIOS = "star_ratios"
#: Array of pixels rejected by the extraction that no earlier step had flagged.
REJECTED = "extract_mask"
SPECTRUM_UNITS = {
    "x": "pixel", "y": "pixel", "ra": "deg", "dec": "deg", "flux_5556": "erg s-1 cm-2 Angstrom-1",
    "flux_5556_err": "erg s-1 cm-2 Angstrom-1", "shift": "pixel", "shift_err": "pixel", "shift_measured": "pixel",
    "shift_measured_err": "pixel", "y_offset": "pixel", "column": "pixel", "row": "pixel", "wavelength": "Angstrom",
    "rate": "electron s-1 Angstrom-1", "rate_err": "electron s-1 Angstrom-1", "background": "electron pixel-1",
}  # fmt: skip
"""Units of the columns of ``tables/spectra``."""
_MARGIN = 30.0
"""Distance outside the frame from which the light of a star still reaches it [pixel]."""


@dataclass(frozen=True)
class StarsOnFrame:
    """Catalogue stars of one frame, with their fluxes and SEDs."""

    catalogue: StarCatalogue
    x: Float
    """(n,) Position without the grating, zero-based [pixel]."""
    y: Float
    flux_5556: Float
    """(n,) Flux at 5556 Angstrom [erg s-1 cm-2 A-1]; NaN where unknown."""
    flux_5556_err: Float
    """(n,) 1 sigma of it; NaN where unknown."""
    seds: SedTable | None
    """Usable SEDs of the stars."""
    row: npt.NDArray[np.intp]
    """(n,) Row in `seds`; -1 without an SED."""
    band_modes: Float
    """(n, rank) Relative change of the flux by each mode of the SED if scaled to a magnitude; else 0."""

    def __len__(self) -> int:
        return len(self.x)

    @property
    def predictable(self) -> npt.NDArray[np.bool_]:
        """Return which stars (n,) have an SED, and a flux with a known error."""
        known = (self.row >= 0) & np.isfinite(self.flux_5556)
        return np.asarray(known & np.isfinite(self.flux_5556_err) & (self.flux_5556_err > 0))


def extract_stars(frame: Frame, config: RunConfig) -> Output:
    """Extract the spectra of catalogue stars, and compare them with predicted counts.

    Raises
    ------
    InputError
        If the frame has no usable WCS, or no exposure time.
    """
    from csstdask.flux.extract_frame import extract_frame

    mesh, metadata = frame.mesh, frame.metadata
    if not metadata.exptime > 0:
        raise InputError(
            f"{metadata.exposure}/{metadata.detector}: EXPTIME", f"{metadata.exptime}", "a positive number of seconds"
        )
    stars = stars_on(frame, config)
    if not len(stars) or not np.isfinite(mesh.background).all():
        none = np.zeros(frame.data.shape, dtype=bool)
        return Output({REJECTED: none}, {"spectra": _table(frame, stars, None)}, metrics={"n_spectra": 0})
    where = frame.instrument, metadata.detector, frame.data.shape
    predicted = predicted_light(frame, stars)
    spectra = extract_frame(
        frame.data - mesh.background_at(),
        frame.error,
        frame.ignore | frame.product("cr_mask"),
        dispersion_of(*where),
        dispersion_of(*where, order=0) if _has_zeroth_order(frame) else None,
        stars.x,
        stars.y,
        predicted=predicted,
    )
    content = None if predicted is None else _ratios(frame, stars, spectra, predicted)
    return Output(
        arrays={REJECTED: spectra.rejected},
        tables={"spectra": _table(frame, stars, spectra)},
        files={} if content is None else {STAR_RATIOS: content},
        metrics=_metrics(stars, spectra),
    )


def _has_zeroth_order(frame: Frame) -> bool:
    return 0 in slitless_orders(frame.instrument, frame.metadata.detector)


@functools.lru_cache(maxsize=2)
def _catalogue(path: str, _checksum: str) -> StarCatalogue:
    from csstdask.flux.catalogue import read_catalogue

    return read_catalogue(Path(path))


def stars_on(frame: Frame, config: RunConfig) -> StarsOnFrame:
    """Return the stars whose light may reach a frame, and their SEDs.

    Raises
    ------
    InputError
        If the frame has no usable WCS.
    """
    from csstdask.flux.photometry import band_flux_density, flux_from_magnitude
    from csstdask.flux.sed_table import read_seds

    settings, metadata = config.extract, frame.metadata
    catalogue = _catalogue(str(settings.catalogue), str(settings.catalogue_sha256))
    stars, x, y = _near(frame, catalogue.positions_at(None if metadata.time == NO_TIME else metadata.time), catalogue)
    seds = None if settings.spectra is None else read_seds(Path(settings.spectra), [str(name) for name in stars.id])
    rows = {} if seds is None else {str(seds.id[row]): int(row) for row in np.flatnonzero(seds.usable)}
    row = np.array([rows.get(str(name), -1) for name in stars.id], dtype=np.intp)
    row[~np.isfinite(stars.ebv)] = -1
    seds = seds if seds is None else _reddened(seds, stars, row)
    flux, flux_err = stars.flux_5556.copy(), stars.flux_5556_err.copy()
    band_modes = np.zeros((len(stars), 0 if seds is None else seds.modes.shape[1]))
    for band in sorted({str(name) for name in stars.mag_band if str(name) in frame.instrument.bands}):
        selected = (stars.mag_band == band) & (row >= 0) & ~np.isfinite(flux)
        if seds is None or not selected.any():
            continue
        first, last = frame.instrument.bands[band].wavelength
        limits, grid, rows_of_band = (10 * first, 10 * last), seds.wavelength, row[selected]
        flux[selected], flux_err[selected] = flux_from_magnitude(
            stars.mag[selected], stars.mag_err[selected], limits, grid, seds.mean[rows_of_band]
        )
        in_band = band_flux_density(limits, grid, seds.mean[rows_of_band])
        band_modes[selected] = band_flux_density(limits, grid, seds.modes[rows_of_band]) / in_band[:, None]
    positive = flux > 0
    flux, flux_err = np.where(positive, flux, np.nan), np.where(positive, flux_err, np.nan)
    return StarsOnFrame(stars, x, y, flux, flux_err, seds, row, band_modes)


def _reddened(seds: SedTable, stars: StarCatalogue, row: npt.NDArray[np.intp]) -> SedTable:
    """Return the SEDs, reddened as the catalogue states."""
    from csstdask.flux.extinction import redden

    known = row >= 0
    if not (np.any(stars.ebv[known]) or np.any(stars.ebv_err[known])):
        return seds
    ebv, ebv_err = np.zeros(len(seds)), np.zeros(len(seds))
    ebv[row[known]], ebv_err[row[known]] = stars.ebv[known], stars.ebv_err[known]
    mean, sigma, modes = redden(seds.wavelength, seds.mean, seds.sigma, seds.modes, ebv, ebv_err)
    return replace(seds, mean=mean, sigma=sigma, modes=modes)


def _near(frame: Frame, positions: tuple[Float, Float], catalogue: StarCatalogue) -> tuple[StarCatalogue, Float, Float]:
    """Return the stars whose first or zeroth order may fall on a frame, and their positions [pixel]."""
    metadata, (ny, nx) = frame.metadata, frame.data.shape
    middle = sky_positions(frame.header, [(nx - 1) / 2, 0.0], [(ny - 1) / 2, 0.0])
    if not np.isfinite(middle).all():
        raise InputError(
            f"{metadata.exposure}/{metadata.detector}", "no usable WCS in the header", "one: stars are placed by it"
        )
    # A source is displaced from the frame by at most the offset of its trace.
    shifts_x, shifts_y = [0.0], [0.0]
    for order in slitless_orders(frame.instrument, metadata.detector):
        trace = dispersion_of(frame.instrument, metadata.detector, (ny, nx), order)
        at_x, at_y = trace.position((nx - 1) / 2, (ny - 1) / 2, np.array(trace.limits))
        shifts_x += (at_x - (nx - 1) / 2).tolist()
        shifts_y += (at_y - (ny - 1) / 2).tolist()
    reach_x, reach_y = (max(map(abs, shifts)) + _MARGIN for shifts in (shifts_x, shifts_y))
    centre, corner = unit_vectors(*middle)
    half = angle_between(centre, corner) * (1 + 2 * np.hypot(reach_x, reach_y) / np.hypot(nx, ny))
    close = np.flatnonzero(unit_vectors(*positions) @ centre > np.cos(min(1.1 * half, np.pi)))
    x, y = pixel_positions(frame.header, positions[0][close], positions[1][close])
    near = (x > -reach_x) & (x < nx + reach_x) & (y > -reach_y) & (y < ny + reach_y)
    return catalogue.select(close[near]), x[near], y[near]


def predicted_light(frame: Frame, stars: StarsOnFrame) -> PredictedSpectra | None:
    """Return the predicted light of the stars; None without SEDs."""
    from csstdask.flux.predicted_spectra import PredictedSpectra

    if stars.seds is None or not (stars.row >= 0).any():
        return None
    instrument, detector = frame.instrument, frame.metadata.detector
    flux = np.full((len(stars), len(stars.seds.wavelength)), np.nan)
    known = stars.row >= 0
    flux[known] = stars.flux_5556[known, None] * stars.seds.mean[stars.row[known]]
    zeroth = functools.partial(nominal_sensitivity, instrument, detector, order=0)
    return PredictedSpectra(
        wavelength=stars.seds.wavelength,
        flux=flux,
        sensitivity=functools.partial(nominal_sensitivity, instrument, detector),
        exptime=frame.metadata.exptime,
        zeroth_sensitivity=zeroth if _has_zeroth_order(frame) else None,
    )


def _ratios(frame: Frame, stars: StarsOnFrame, spectra: FrameSpectra, predicted: PredictedSpectra) -> bytes | None:
    """Return the content of the partial; None if no star has both a spectrum and an SED."""
    from csstdask.flux.measure_ratios import measure_ratios

    seds = stars.seds
    known = np.flatnonzero(stars.predictable & np.isfinite(spectra.snr))
    if seds is None or not len(known):
        return None
    grid = wavelength_grid(slitless_order(frame.instrument, frame.metadata.detector).wavelength)
    mean, sigma, modes = (
        interpolate_spectrum(seds.wavelength, values[stars.row[known]], grid)
        for values in (seds.mean, seds.sigma, seds.modes)
    )
    n = len(stars)
    relative, independent, grey = np.zeros((n, *modes.shape[1:])), np.zeros((n, len(grid))), np.zeros(n)
    # The error of a flux that was scaled to a magnitude includes that of the SED in that band.
    relative[known] = modes / mean[:, None, :] - stars.band_modes[known, :, None]
    independent[known] = np.maximum((sigma / mean) ** 2 - ((modes / mean[:, None, :]) ** 2).sum(axis=1), 0.0)
    grey[known] = stars.flux_5556_err[known] / stars.flux_5556[known]
    ratios = measure_ratios(
        spectra,
        grid,
        replace(predicted, flux=np.where(stars.predictable[:, None], predicted.flux, np.nan)),
        star=stars.catalogue.id.astype(str),
        grey_error=grey,
        variance_sed=independent,
        modes=relative,
        detector=frame.metadata.detector,
    )
    return ratios.to_bytes() if len(ratios) else None


def _metrics(stars: StarsOnFrame, spectra: FrameSpectra) -> dict[str, float | int | None]:
    measured = np.isfinite(spectra.snr)
    shifted = np.isfinite(spectra.shift_measured)
    return {
        "n_spectra": int(measured.sum()),
        "n_unpredicted": int((measured & ~stars.predictable).sum()),
        "spectrum_snr": float(np.median(spectra.snr[measured])) if measured.any() else None,
        "spectrum_shift": float(np.median(spectra.shift_measured[shifted])) if shifted.any() else None,
        "trace_offset": float(np.median(spectra.y_offset[measured])) if measured.any() else None,
        "contaminated_fraction": float(np.mean(spectra.contaminated[measured])) if measured.any() else None,
    }


def _table(frame: Frame, stars: StarsOnFrame, spectra: FrameSpectra | None) -> Table:
    """Return the table of the stars with a measured spectrum, sorted by id."""
    chosen = np.flatnonzero(np.isfinite(spectra.snr)) if spectra is not None else np.zeros(0, dtype=np.intp)
    chosen = chosen[np.argsort(stars.catalogue.id[chosen].astype(str), kind="stable")]
    n = len(chosen)
    ra, dec = stars.catalogue.ra[chosen], stars.catalogue.dec[chosen]
    table: Table = {
        "exposure": np.full(n, frame.metadata.exposure, dtype=object),
        "detector": np.full(n, frame.metadata.detector, dtype=np.int32),
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
    per_second = 1 / (frame.metadata.exptime * spectra.angstrom_per_pixel[chosen])
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
    """Return the settings that decide the spectra: contents of tables, not their paths."""
    return config.extract.decisive(exclude=("catalogue", "spectra"))


def slitless_description(instrument: Instrument) -> dict[str, Any]:
    """Return the properties of the camera that decide the spectra: gratings, telescope, shape of detectors."""
    gratings = {band: grating.model_dump(mode="json") for band, grating in instrument.slitless.items()}
    pupil = None if instrument.telescope is None else instrument.telescope.model_dump(mode="json")
    return {"slitless": gratings, "telescope": pupil, "shape": instrument.shape}


def _cost(_config: RunConfig, _instrument: Instrument) -> Cost:
    return Cost(seconds_per_mpix=0.05, fixed_seconds=0.6, bytes_per_pixel=48.0, fixed_bytes=200 << 20)


def _check_tables(plan: Plan) -> None:
    """Raise InputError if there is no catalogue, or a table cannot be used."""
    from csstdask.flux.catalogue import check_catalogue
    from csstdask.flux.sed_table import check_seds

    settings = plan.config.extract
    if settings.catalogue is None:
        raise InputError("--steps extract", "no catalogue", "--catalogue STARS.parquet")
    check_catalogue(Path(settings.catalogue), plan.campaign.instrument.bands)
    if settings.spectra is not None:
        check_seds(Path(settings.spectra))


EXTRACT = Step(
    name="extract",
    requires=("background", "detect"),
    kinds=frozenset({"slitless"}),
    numerics_version=3,
    body=extract_stars,
    settings=_settings,
    camera=slitless_description,
    products=(
        Product(
            REJECTED,
            "bool",
            False,
            codec="mask",
            long_name="rejected by the extraction: outliers, light of other stars",
        ),
    ),
    tables={"spectra": SPECTRUM_UNITS},
    partials=(STAR_RATIOS,),
    metrics=("n_spectra", "n_unpredicted", "spectrum_snr", "spectrum_shift", "trace_offset", "contaminated_fraction"),
    cost=_cost,
    inputs=("catalogue",),
    check=_check_tables,
    panel="slitless",
)
