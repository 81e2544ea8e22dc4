"""The tables of a recipe: sky, telescope, sensor, cosmic rays, stamps, slitless spectra.

The description of each field states its meaning and unit. The order of the fields is part of the digest of a unit.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from csstdask.core.settings import FrozenSettings

Split = Literal["training", "validation", "test"]
"""What the data of a recipe or field may be used for."""
Generator = Literal["tracks", "slab", "stis", "itl"]
"""Source of cosmic-ray events."""


class Sky(FrozenSettings):
    """Stars and galaxies of a field of ordinary density. Magnitudes are AB in r."""

    stars_per_mpix: float = Field(300.0, ge=0, description="Stars between the magnitude limits per million pixels.")
    galaxies_per_mpix: float = Field(
        500.0, ge=0, description="Galaxies between the magnitude limits per million pixels."
    )
    large_galaxies_per_mpix: float = Field(
        0.02, ge=0, description="Large resolved galaxies (half-light radius of 35 to 90 pixels) per million pixels."
    )
    brightest: float = Field(16.0, description="Bright magnitude limit [mag].")
    faintest: float = Field(26.0, description="Faint magnitude limit [mag].")
    star_slope: float = Field(0.15, gt=0, description="Slope of the star counts, d log10 N(<m) / dm.")
    galaxy_slope: float = Field(0.35, gt=0, description="Slope of the galaxy counts, d log10 N(<m) / dm.")
    morphology: Literal["smooth", "clumpy"] = Field(
        "smooth", description="Galaxy morphology; clumpy galaxies have arms of star-forming knots."
    )
    level: float = Field(1.0, ge=0, description="Sky level relative to that of the instrument.")
    gradient: float = Field(
        0.02, ge=0, le=0.5, description="Largest sky gradient over a detector, peak to peak relative to the mean."
    )

    @model_validator(mode="after")
    def _check_limits(self) -> Sky:
        if self.brightest >= self.faintest:
            raise ValueError(
                f"found brightest {self.brightest} and faintest {self.faintest}; wanted ascending magnitudes"
            )
        return self


class Cluster(FrozenSettings):
    """A globular cluster: an old population with a King profile."""

    centre: tuple[float, float] = Field(description="Right ascension and declination of the centre [deg].")
    core_radius: float = Field(gt=0, description="Core radius of the King profile [arcsec].")
    tidal_radius: float = Field(gt=0, description="Tidal radius of the King profile [arcsec].")
    stars: int = Field(gt=0, description="Number of members brighter than the faint limit of the sky.")
    turn_off: float = Field(description="Magnitude of the main-sequence turn-off in r [mag].")


class SkyField(FrozenSettings):
    """A pointing of the survey. Exposures take turns over the fields of a recipe."""

    name: str = Field("", description="Name of the field, written to OBJECT and to the truth tables.")
    pointing: tuple[float, float] = Field(
        description="Right ascension and declination of the centre of the focal plane [deg]."
    )
    stars: float = Field(1.0, ge=0, description="Star density relative to `sky.stars_per_mpix`.")
    galaxies: float = Field(1.0, ge=0, description="Galaxy density relative to `sky.galaxies_per_mpix`.")
    split: Split | None = Field(None, description="Permitted use of this field; default: that of the recipe.")
    cluster: Cluster | None = Field(None, description="Globular cluster in this field.")


class Pointing(FrozenSettings):
    """Differences between the exposures of one field."""

    dither: float = Field(0.0, ge=0, le=400, description="Largest dither along x and y [pixel].")
    wcs_error: float = Field(0.0, ge=0, description="Position error of the header WCS, 1 sigma per axis [arcsec].")


class Nodes(FrozenSettings):
    """Stars on a regular grid instead of a sky, one per node."""

    per_axis: int = Field(30, ge=2, description="Number of nodes along each axis.")
    snr: tuple[float, float] = Field(
        (300.0, 300.0), description="Range of the signal-to-noise ratio in 49 pixels, uniform in log."
    )


class Optics(FrozenSettings):
    """The telescope as built, and its drift. Recipes with the same seed have the same telescope."""

    seed: int = Field(2298, ge=0, description="Seed of the as-built wavefront.")
    wavefront: float = Field(70.0, ge=0, description="Typical wavefront error over the field, rms [nm].")
    orders: tuple[int, int] = Field((4, 11), description="First and last Noll index of the Zernike polynomials.")
    field_degree: int = Field(
        3, ge=0, le=6, description="Degree of the polynomials over the focal plane that give the Zernike coefficients."
    )
    detector_step: float = Field(
        0.35, ge=0, description="Wavefront difference between detectors, relative to `wavefront`."
    )
    band_step: float = Field(0.2, ge=0, description="Wavefront difference between filters, relative to `wavefront`.")
    mid_frequency: float = Field(0.0, ge=0, description="Mid-frequency polishing errors, rms [nm].")
    drift: float = Field(8.0, ge=0, description="Drift of defocus and astigmatism with time, rms [nm].")
    jitter: float = Field(0.033, ge=0, description="Jitter of the line of sight, 1 sigma per axis [arcsec].")
    jitter_scatter: float = Field(
        0.0, ge=0, le=1, description="Scatter of the jitter between exposures, 1 sigma of its natural log."
    )
    jitter_shape: Literal["gaussian", "line"] = Field(
        "gaussian", description="Distribution of the line of sight: Gaussian, or a uniform drift along a line."
    )
    diffusion: float = Field(0.25, ge=0, description="Charge diffusion, 1 sigma [pixel].")
    enlarge: tuple[float, ...] = Field(
        (0.0,),
        min_length=1,
        description="Relative growth of the PSF size R by a Gaussian blur; exposures take turns over the values.",
    )
    exact: bool = Field(
        False, description="Compute the PSF at the position of each star (true) or interpolate it (false)."
    )
    drawn: bool = Field(
        False, description="Draw a random telescope for each exposure; no other optics keys may be set then."
    )

    @model_validator(mode="after")
    def _check_drawn(self) -> Optics:
        fields = type(self).model_fields.items()
        given = {name for name, one in fields if getattr(self, name) != one.default} - {"seed", "drawn", "exact"}
        if self.drawn and given:
            raise ValueError(f"found drawn = true and {', '.join(sorted(given))}; wanted one or the other")
        return self

    @model_validator(mode="after")
    def _check_orders(self) -> Optics:
        if not 4 <= self.orders[0] <= self.orders[1] <= 66:
            raise ValueError(f"orders: found {self.orders}; wanted two Noll indices from 4 to 66, ascending")
        return self


class Sensor(FrozenSettings):
    """The CCDs: defects, ageing and read-out effects. Set an effect to 0 or false to switch it off."""

    seed: int = Field(290, ge=0, description="Seed of the defects; recipes with the same seed have the same camera.")
    dark: float = Field(0.02, ge=0, description="Dark current at launch [e-/s/pixel].")
    dark_growth: float = Field(0.1, ge=0, description="Growth of the dark current per year, relative to launch.")
    hot_fraction: float = Field(1e-4, ge=0, le=0.1, description="Fraction of pixels that are hot at launch.")
    hot_growth: float = Field(1e-4, ge=0, le=0.1, description="Fraction of pixels that become hot per year.")
    warm_fraction: float = Field(
        5e-4, ge=0, le=0.1, description="Fraction of pixels that are warm at launch; grows as the hot pixels do."
    )
    flagged_share: float = Field(
        0.9, ge=0, le=1, description="Fraction of hot, warm and bad pixels that is marked in the flags."
    )
    bad_fraction: float = Field(2e-5, ge=0, le=0.1, description="Fraction of dead pixels, in small clusters.")
    bad_columns: int = Field(2, ge=0, description="Number of bad columns per detector.")
    cti: float = Field(
        0.004, ge=0, description="Charge lost by a packet of 1000 e- over all rows, relative, per year since launch."
    )
    brighter_fatter: float = Field(
        1.5e-7, ge=0, le=1e-6, description="Shift of a pixel edge per charge difference of its neighbours [pixel/e-]."
    )
    non_linearity: float = Field(0.01, ge=0, le=0.1, description="Relative non-linearity at full well.")
    prnu: float = Field(0.008, ge=0, le=0.1, description="Pixel response non-uniformity, 1 sigma.")
    vignetting: float = Field(0.03, ge=0, le=0.5, description="Smooth part of the flat, peak to peak.")
    channels: bool = Field(True, description="Give each of the 16 read-out channels a separate gain and bias.")
    bias_structure: float = Field(1.5, ge=0, description="Column structure of the bias, 1 sigma [adu].")
    fringing: float = Field(
        0.02, ge=0, le=0.2, description="Fringe amplitude of the sky in z; half of it in i, twice in y."
    )
    noise: Literal["gaussian", "correlated"] = Field(
        "gaussian", description="Read noise: Gaussian, or with row offsets, slow waves along rows, and outliers."
    )
    calibration_frames: int = Field(
        16, ge=1, description="Number of bias, dark and flat frames from which Level 1 is calibrated."
    )
    gain_error: float = Field(1e-3, ge=0, le=0.1, description="Relative error of the gains used for Level 1, 1 sigma.")


class CosmicRays(FrozenSettings):
    """Cosmic rays, in whole electrons.

    Generators: ``tracks`` follows the CSST rejection paper (pixel fraction, lengths, log-normal charge); ``slab``
    propagates isotropic particles through a silicon layer; ``stis`` and ``itl`` inject real events of these libraries.
    """

    generators: tuple[Generator, ...] = Field(
        ("tracks",), min_length=1, description="Event generators; exposures take turns over them."
    )
    pixel_fraction: tuple[float, ...] = Field(
        (0.025,), description="Fractions of pixels with charge, 0 to 0.3; exposures take turns over them."
    )
    point_share: float = Field(0.4, ge=0, le=1, description="tracks: fraction of events of zero length.")
    mean_length: float = Field(
        12.0, gt=0, description="tracks: mean length of the others, exponential up to 100 pixels [pixel]."
    )
    worm_share: float = Field(0.2, ge=0, le=1, description="Fraction of curved tracks (in slab: half of it).")
    log_charge: float = Field(3.3, description="tracks: mean log10 of the charge of an event [e-].")
    log_charge_fwhm: float = Field(0.6, gt=0, description="tracks: FWHM of log10 of the charge [dex].")
    diffusion: float = Field(
        0.2, gt=0, le=2, description="Charge diffusion, 1 sigma; in slab that at the far side [pixel]."
    )
    thickness: float = Field(1.6, gt=0, description="slab: thickness of the silicon layer [pixel].")
    rate_scatter: float = Field(
        0.0, ge=0, le=2, description="Scatter of the rate between exposures, 1 sigma of its natural log."
    )
    anomaly_share: float = Field(0.0, ge=0, le=1, description="Fraction of exposures in the South Atlantic anomaly.")
    anomaly_factor: float = Field(4.0, ge=1, description="Rate in the anomaly relative to elsewhere.")
    solar_cycle: float = Field(
        0.0, ge=0, lt=1, description="Relative amplitude of the rate over the solar cycle of eleven years."
    )
    events_from: Split | None = Field(
        None, description="stis, itl: part of the event library to use; default: the split of the field or recipe."
    )

    @model_validator(mode="after")
    def _check_fractions(self) -> CosmicRays:
        if not self.pixel_fraction or not all(0 <= value <= 0.3 for value in self.pixel_fraction):
            raise ValueError(f"pixel_fraction: found {self.pixel_fraction}; wanted one or more, each from 0 to 0.3")
        return self


class Artefacts(FrozenSettings):
    """Light that is neither a source nor a cosmic ray."""

    satellites: float = Field(0.1, ge=0, description="Mean number of satellite trails per detector and exposure.")
    ghosts_above: float = Field(15.5, description="Stars brighter than this magnitude have a ghost [mag].")
    ghost_share: float = Field(2e-4, ge=0, le=0.1, description="Light of a ghost relative to its star.")


class Stamps(FrozenSettings):
    """Cut-outs of sources. A recipe with this table stores stamps instead of frames."""

    kind: Literal["isolated", "brightness", "injected"] = Field(
        description="Content of the stamps. isolated: all isolated stars. injected: sources with one cosmic ray aimed "
        "at each. brightness: sources of given magnitudes, with many cosmic rays each."
    )
    size: int = Field(64, ge=16, le=256, description="Side length of a stamp [pixel].")
    per_unit: int = Field(150, ge=1, description="Largest number of stamps per unit.")
    snr: float = Field(20.0, ge=0, description="Smallest signal-to-noise ratio of a source in 49 pixels.")
    separation: float = Field(
        12.0, ge=0, description="isolated: smallest distance to any source with 1 % of the light [pixel]."
    )
    extent: int = Field(10, ge=1, description="injected: smallest number of pixels of the source above the noise.")
    magnitudes: tuple[float, ...] = Field(
        (17.0, 19.0, 21.0, 23.0), description="brightness: magnitudes of the sources in the band [mag]."
    )
    cosmic_rays_each: int = Field(100, ge=1, description="brightness: number of cosmic rays per source.")
    offset: tuple[float, float] = Field(
        (0.0, 10.0), description="Range of the distance between cosmic ray and source [pixel]."
    )


class Slitless(FrozenSettings):
    """Slitless spectra of stars. A recipe with this table renders detectors with gratings."""

    seed: int = Field(574, ge=0, description="Seed of flat and sensitivity; same seed, same camera.")
    stars: int | None = Field(
        None, ge=0, description="Number of stars on a frame; the area around it has the same density."
    )
    stars_per_mpix: float | None = Field(None, ge=0, description="Stars per million pixels, instead of `stars`.")
    separation: float = Field(
        0.0,
        ge=0,
        description="Smallest distance along y of stars whose spectra overlap along x; 0: no restriction [pixel].",
    )
    flux_5556: tuple[float, float] = Field(
        (1e-15, 1e-14),
        description="Range of the mean flux in 5526-5586 A, uniform in log [erg s-1 cm-2 A-1].",
    )
    proper_motion: float = Field(10.0, ge=0, description="Proper motion, 1 sigma per axis [mas/yr].")
    seds: str = Field(
        "desi-atlas9.npz",
        description="SED library: a file next to the recipe, in --data DIR, or one that comes with csstdask.",
    )
    flat_amplitude: float = Field(0.02, ge=0, le=0.1, description="Amplitude of each term of the flat, 1 sigma.")
    flat_degree: int = Field(2, ge=0, le=6, description="Total degree of the flat in x and y.")
    sensitivity_error: float = Field(
        0.03, ge=0, le=0.2, description="Smooth deviation from the nominal sensitivity, relative, 1 sigma."
    )
    dispersion_shift: float = Field(
        0.0, ge=0, description="Shift of the first orders of an exposure along x, 1 sigma [pixel]."
    )
    sed_sigma: float = Field(0.0, ge=0, le=0.5, description="Relative error of the SEDs at 3400 A, 1 sigma.")
    flux_error: float = Field(0.0, ge=0, le=0.5, description="Relative error of the catalogue's flux_5556, 1 sigma.")
    bad_share: float = Field(0.0, ge=0, le=1, description="Fraction of stars that are variable or misidentified.")

    @model_validator(mode="after")
    def _check_ranges(self) -> Slitless:
        if (self.stars is None) == (self.stars_per_mpix is None):
            raise ValueError("found both or none of stars and stars_per_mpix; wanted one of them")
        if not 0 < self.flux_5556[0] <= self.flux_5556[1]:
            raise ValueError(f"flux_5556: found {self.flux_5556}; wanted two positive fluxes, ascending")
        return self
