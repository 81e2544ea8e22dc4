"""Step 7: solve for the zero point of a unit, and select the stars for the joint solution of the campaign."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csstdask.arrays.psf_grid import OVERSAMPLED_SIZE
from csstdask.instrument import Instrument, sky_positions
from csstdask.instrument.geometry import angle_between, unit_vectors
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.step import Cost, Output, Step, Table
from csstdask.pipeline.zeropoint_inputs import check_unchanged, check_zeropoint_inputs

if TYPE_CHECKING:
    from csstdask.pipeline.frame import Frame
    from csstdask.zeropoint.fit_stars import StarFit
    from csstdask.zeropoint.matching import Match
    from csstdask.zeropoint.reference import ReferenceCatalogue

Float = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

#: Partial of a unit for the zero points of the campaign.
ZEROPOINT_STARS = "zeropoint_stars"
MAX_REPAIRED_FRACTION = 0.1
"""Maximum fraction of repaired pixels in the ellipse of a star: the repair of a core has errors of some percent."""
MARGIN = 10.0
"""Distance outside the frame up to which reference stars are matched, for errors of the pointing [arcsec]."""
ISOLATION = 2.0
"""Minimum distance of an overlap star from other sources [aperture radius]: apertures do not touch."""
SIZE_TOLERANCE = 0.25
"""Maximum relative deviation of its half-light radius from that of stars: fluxes of galaxies depend on the PSF."""
UNKNOWN_CORRECTION_ERROR = 0.1
"""Error of magnitudes with an unknown aperture correction [mag]: about 10 % of the light is outside the aperture."""
MIN_NODES = 3
"""Minimum number of PSF nodes whose scatter measures the error of the aperture correction."""
FEW_NODES_ERROR = 0.02
"""Minimum error of an aperture correction from fewer nodes [mag]."""
MIN_STARS_FOR_SIZE = 5
"""Minimum number of matched stars that define the size of stars; with fewer there is no cut on size."""


@dataclass(frozen=True)
class UnitStars:
    """Stars of one frame with instrumental magnitudes of their total light."""

    row: Rows
    """(n,) Row in the source table."""
    x: Float
    y: Float
    ra: Float
    dec: Float
    inst_mag: Float
    inst_mag_err: Float
    size: Float
    """(n,) Half-light radius [pixel]."""
    isolated: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.row)


def solve_unit(frame: Frame, config: RunConfig) -> Output:
    """Match the stars of a frame to the reference, and fit its zero point."""
    from csstdask.zeropoint.fit_stars import fit_stars
    from csstdask.zeropoint.matched_stars import MatchedStars
    from csstdask.zeropoint.matching import apply_shift, match_sources
    from csstdask.zeropoint.solve import days_of

    settings, metadata = config.zeropoint, frame.metadata
    correction, correction_err = _aperture_correction(frame, config)
    stars = select_stars(frame.table("sources"), correction if np.isfinite(correction) else 0.0, config)
    catalogue = load_catalogue(str(settings.reference), settings.reference_sha256)
    days = days_of(metadata.when)
    near, ref_ra, ref_dec = _near(frame, catalogue, days)
    match = match_sources(stars.ra, stars.dec, ref_ra, ref_dec, radius=settings.match_radius)
    matched = match.reference >= 0
    reference = np.where(matched, near[match.reference] if len(near) else -1, -1).astype(np.int64)
    known = _reference_columns(catalogue, metadata.band, settings.color, reference)
    shape = (int(frame.data.shape[0]), int(frame.data.shape[1]))
    fit = fit_stars(
        stars.inst_mag,
        stars.inst_mag_err,
        known["ref_mag"],
        known["ref_mag_err"],
        None if np.isnan(known["color"]).all() else known["color"],
        stars.x,
        stars.y,
        degree=settings.degree,
        shape=shape,
        color_term=(settings.color_term, settings.color_term_sigma),
    )
    kept = _contributed(stars, matched, settings.overlap_stars)
    ra, dec = apply_shift(stars.ra, stars.dec, match.shift)
    partial = MatchedStars(
        id=np.asarray(frame.table("sources")["id"])[stars.row[kept]].astype(np.int64),
        reference=reference[kept],
        x=stars.x[kept],
        y=stars.y[kept],
        ra=ra[kept],
        dec=dec[kept],
        inst_mag=stars.inst_mag[kept],
        inst_mag_err=stars.inst_mag_err[kept],
        ref_mag=known["ref_mag"][kept],
        ref_mag_err=known["ref_mag_err"][kept],
        color=known["color"][kept],
        weight=fit.weights[kept],
        residual=fit.residuals[kept],
        coefficients=fit.coefficients,
        exposure=metadata.exposure,
        detector=metadata.detector,
        band=metadata.band,
        days=days,
        shape=shape,
        nominal=nominal_zero_point(frame.instrument, metadata.band),
        value=fit.value,
        sigma=float(np.hypot(fit.sigma, correction_err)),
        coefficient_covariance=fit.coefficient_covariance,
        correction=correction,
        correction_err=correction_err,
        color_term=fit.color_term,
        color_term_err=fit.color_term_err,
        scatter=fit.scatter,
        n_matched=fit.n_matched,
        n_used=fit.n_used,
    )
    return Output(files={ZEROPOINT_STARS: partial.to_bytes()}, metrics=_metrics(fit, match, correction, correction_err))


def nominal_zero_point(instrument: Instrument, band: str) -> float:
    """Return the nominal zero point of a camera in a band [mag]; NaN where unknown."""
    return instrument.bands[band].zero_point if band in instrument.bands else float("nan")


def select_stars(sources: Table, correction: float, config: RunConfig) -> UnitStars:
    """Select the sources for a zero point: unflagged, hardly repaired, bright enough.

    Parameters
    ----------
    sources : mapping of str to array
        Source table of a unit.
    correction : float
        From the aperture to the total light of a star [mag].
    config : RunConfig
    """
    from scipy.spatial import cKDTree

    from csstdask.zeropoint.photometry import instrumental_magnitude

    columns = {name: np.asarray(sources[name], dtype=np.float64) for name in _COLUMNS}
    flux, error = columns["flux_aperture"], columns["flux_aperture_err"]
    with np.errstate(invalid="ignore"):
        good = (np.asarray(sources["flag"]) == 0) & (columns["repaired_fraction"] <= MAX_REPAIRED_FRACTION)
        good &= (error > 0) & (flux >= config.zeropoint.min_snr * error)
    good &= np.isfinite([columns[name] for name in ("x", "y", "ra", "dec")]).all(axis=0)
    row = np.flatnonzero(good)
    isolated = np.ones(len(row), dtype=bool)
    located = np.isfinite(columns["x"]) & np.isfinite(columns["y"])
    if len(row) and located.sum() > 1:
        positions = np.stack([columns["x"], columns["y"]], axis=1)
        distance, _ = cKDTree(positions[located]).query(positions[row], k=2)
        isolated = distance[:, 1] > ISOLATION * config.sources.aperture_radius
    magnitude, magnitude_error = instrumental_magnitude(flux[row], error[row])
    positions_of = {name: columns[name][row] for name in ("x", "y", "ra", "dec")}
    size = columns["half_light_radius"][row]
    return UnitStars(
        row=row,
        **positions_of,
        inst_mag=magnitude + correction,
        inst_mag_err=magnitude_error,
        size=size,
        isolated=isolated,
    )


_COLUMNS = ("x", "y", "ra", "dec", "flux_aperture", "flux_aperture_err", "repaired_fraction", "half_light_radius")


def _aperture_correction(frame: Frame, config: RunConfig) -> tuple[float, float]:
    """Return the correction to the total light and its error [mag]; NaN where there is no PSF.

    The correction is the median over the nodes of the PSF, and its error their scatter: small for frames with many PSF
    stars, large for those with few. It includes the diffracted light outside the box of the PSF, for cameras whose
    optics are described.
    """
    from csstdask.numerics.robust import mad_scale
    from csstdask.zeropoint.photometry import aperture_correction

    corrections = aperture_correction(frame.product("psf"), config.sources.aperture_radius)
    known = corrections[np.isfinite(corrections)]
    if not len(known):
        return np.nan, UNKNOWN_CORRECTION_ERROR
    outside = 2.5 * np.log10(1 - _light_outside_box(frame.instrument, frame.metadata.band))
    floor = FEW_NODES_ERROR if len(known) < MIN_NODES else 0.0
    return float(np.median(known)) + outside, float(mad_scale(known, floor=floor))


def _light_outside_box(instrument: Instrument, band: str) -> float:
    """Return the fraction of light outside the box of the PSF; 0 for cameras whose optics are not described."""
    from csstdask.zeropoint.photometry import light_outside_box

    telescope, geometry = instrument.telescope, instrument.geometry
    if telescope is None or geometry is None or band not in instrument.bands:
        return 0.0
    half_width = OVERSAMPLED_SIZE / 4 * geometry.pixel_scale
    wavelength = sum(instrument.bands[band].wavelength) / 2
    return light_outside_box(half_width, wavelength, telescope.diameter, telescope.obscuration)


@functools.lru_cache(maxsize=1)
def load_catalogue(path: str, checksum: str | None) -> ReferenceCatalogue:
    """Return the reference, read once a process; InputError if it was relocated since the run began."""
    from csstdask.zeropoint.reference import read_reference

    catalogue = read_reference(Path(path))
    check_unchanged(Path(path), checksum)  # last, so that a replacement during the reading is noticed too
    return catalogue


def _near(frame: Frame, catalogue: ReferenceCatalogue, days: float) -> tuple[Rows, Float, Float]:
    """Return the rows of the reference that may lie on a frame, and their positions at its time [deg]."""
    ny, nx = frame.data.shape
    middle = sky_positions(frame.header, [(nx - 1) / 2, 0.0], [(ny - 1) / 2, 0.0])
    if not np.isfinite(middle).all() or not len(catalogue):  # no source has a position then
        return np.zeros(0, dtype=np.intp), np.zeros(0), np.zeros(0)
    ra, dec = catalogue.at(days)
    centre, corner = unit_vectors(*middle)
    half = 1.1 * angle_between(centre, corner) + np.radians(MARGIN / 3600)
    known = np.isfinite(ra) & np.isfinite(dec)
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero(known & (unit_vectors(ra, dec) @ centre > np.cos(min(half, np.pi))))
    return rows, ra[rows], dec[rows]


def _reference_columns(
    catalogue: ReferenceCatalogue, band: str, color: tuple[str, str] | None, reference: npt.NDArray[np.int64]
) -> dict[str, Float]:
    """Return magnitude, its error and the colour of matched stars; NaN without a match, or without magnitudes."""
    unknown = np.full(len(reference), np.nan)
    found = {"ref_mag": unknown.copy(), "ref_mag_err": unknown.copy(), "color": unknown.copy()}
    matched = reference >= 0
    if not matched.any():
        return found
    if band in catalogue.bands:
        magnitude, error = catalogue.magnitude(band)
        found["ref_mag"][matched] = magnitude[reference[matched]]
        found["ref_mag_err"][matched] = error[reference[matched]]
    colors = catalogue.color(color)
    if colors is not None:
        found["color"][matched] = colors[reference[matched]]
    return found


def _contributed(stars: UnitStars, matched: npt.NDArray[np.bool_], max_overlap: int) -> Rows:
    """Return the rows of all matched stars and of the brightest isolated unmatched ones, in order."""
    free = ~matched & stars.isolated
    if matched.sum() >= MIN_STARS_FOR_SIZE:
        typical = float(np.median(stars.size[matched]))
        free &= np.abs(stars.size / typical - 1) < SIZE_TOLERANCE
    others = np.flatnonzero(free)
    brightest = others[np.lexsort((others, stars.inst_mag[others]))][:max_overlap]
    return np.sort(np.concatenate([np.flatnonzero(matched), brightest]))


def _metrics(fit: StarFit, match: Match, correction: float, correction_err: float) -> dict[str, float | int | None]:
    known: dict[str, Any] = {
        "zp_solve": fit.value,
        "zp_solve_sigma": float(np.hypot(fit.sigma, correction_err)),
        "zp_n_matched": fit.n_matched,
        "zp_n_used": fit.n_used,
        "zp_chi2": fit.chi2,
        "zp_color_term": fit.color_term,
        "zp_color_term_err": fit.color_term_err,
        "zp_scatter": fit.scatter,
        "zp_aperture_correction": correction,
        "zp_aperture_correction_err": correction_err,
        "zp_wcs_shift": float(np.hypot(*match.shift)),
    }
    if not fit.solved:
        known |= dict.fromkeys(("zp_solve", "zp_solve_sigma", "zp_chi2", "zp_color_term", "zp_color_term_err"))
    return {name: value if value is None or np.isfinite(value) else None for name, value in known.items()}


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide the zero point: the content of the reference, not its path."""
    names = {
        "match_radius", "color", "color_term", "color_term_sigma", "degree", "min_snr", "overlap_stars",
        "reference_sha256",
    }  # fmt: skip
    return config.zeropoint.decisive(names) | {"aperture": config.sources.aperture_radius}


def _camera(instrument: Instrument) -> dict[str, Any]:
    outside = {name: _light_outside_box(instrument, name) for name in instrument.bands}
    return {"zero_points": {name: band.zero_point for name, band in instrument.bands.items()}, "beyond_psf": outside}


ZEROPOINT = Step(
    name="zeropoint",
    requires=("psf", "sources"),
    kinds=frozenset({"imaging"}),
    numerics_version=1,
    body=solve_unit,
    settings=_settings,
    camera=_camera,
    partials=(ZEROPOINT_STARS,),
    metrics=(
        "zp_solve", "zp_solve_sigma", "zp_n_matched", "zp_n_used", "zp_chi2", "zp_color_term", "zp_color_term_err",
        "zp_scatter", "zp_aperture_correction", "zp_aperture_correction_err", "zp_wcs_shift",
    ),
    cost=lambda _config, _instrument: Cost(seconds_per_mpix=0.01, fixed_seconds=0.1, fixed_bytes=100 << 20),
    inputs=("reference",),
    check=check_zeropoint_inputs,
)  # fmt: skip
