"""Settings of mock zero points: the table ``[zeropoint]`` of a recipe.

The numbers are invented, because no space telescope publishes telemetry and zero points of single exposures together.
Their sizes are typical: HST repeats to a few mmag; Gaia and Euclid lost some per cent of their throughput to ice and
regained it by decontamination; an orbit at 400 km takes about 94 minutes.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from csstdask.core.settings import FrozenSettings


class Response(FrozenSettings):
    """Dependence of the zero point of a survey on the true conditions.

    See `csstdask.mock.throughput.explained_offset` for the formula. Amplitudes are in mag.
    """

    contamination: float = Field(0.0018, description="Throughput loss per nm of ice [mag/nm].")
    contamination_cold: float = Field(
        -0.12, description="Relative change of the ice loss per kelvin above nominal [1/K]."
    )
    temperature: float = Field(0.010, description="Gain per kelvin above nominal (quantum efficiency) [mag/K].")
    temperature_square: float = Field(-0.003, description="Quadratic temperature term [mag/K^2].")
    focus: float = Field(0.012, description="Loss at 10 um from best focus, quadratic in the distance [mag].")
    focus_jitter: float = Field(0.012, description="Change of the focus loss per unit of ln(jitter / nominal) [mag].")
    jitter: float = Field(0.015, description="Loss per unit of ln(jitter / nominal) [mag].")
    limb: float = Field(0.025, description="Loss at 15 deg from the Earth's limb [mag].")
    limb_scale: float = Field(15.0, gt=0, description="E-folding angle of the limb loss [deg].")
    sun: float = Field(0.012, description="Amplitude of the dependence on the Sun angle [mag].")
    background: float = Field(0.012, description="Gain per unit of ln(background / nominal) [mag].")
    ageing: float = Field(0.010, description="Loss per year since launch [mag/yr].")


class Survey(FrozenSettings):
    """A survey: schedule, fields, depth and response of the throughput."""

    name: str = Field(description="Name of the survey.")
    nominal: float = Field(25.85, description="Nominal zero point of the camera [mag].")
    exposures: int = Field(
        8000, ge=1, description="Number of exposures made by `csstdask.datasets.zeropoint_surveys.make_surveys`."
    )
    years: float = Field(3.0, gt=0, description="Length of the survey [yr].")
    start: float = Field(0.25, ge=0, description="Start of the survey after launch [yr].")
    visit: int = Field(4, ge=1, description="Number of consecutive exposures of one field.")
    cadence: float = Field(210.0, gt=0, description="Time between the starts of exposures of one visit [s].")
    exptime: float = Field(150.0, gt=0, description="Exposure time [s].")
    n_stars: float = Field(500.0, ge=1, description="Largest expected number of reference stars of a field.")
    empty_share: float = Field(0.1, ge=0, le=1, description="Fraction of fields without reference stars.")
    color_term: float = Field(0.01, description="Colour term C in m = zp + F(x, y) + C color + inst_mag.")
    color_term_scatter: float = Field(0.002, ge=0, description="Scatter of the colour term between exposures, 1 sigma.")
    flat_sigma: float = Field(
        0.006,
        ge=0,
        description="Linear terms of the flat residual F(x, y), 1 sigma; a quarter of it for quadratic terms [mag].",
    )
    white: float = Field(0.003, ge=0, description="Independent scatter of each exposure, 1 sigma [mag].")
    walk: float = Field(0.002, ge=0, description="Step size of the random walk [mag / sqrt(day)].")
    response: Response = Field(Response(), description="Response of the throughput to conditions.")


class Conditions(FrozenSettings):
    """True conditions of telescope and camera in orbit."""

    orbit: float = Field(94.0, gt=0, description="Period of the orbit [min].")
    temperature: float = Field(188.0, gt=0, description="Nominal detector temperature [K].")
    temperature_orbit: float = Field(0.35, ge=0, description="Temperature amplitude over an orbit [K].")
    temperature_year: float = Field(0.6, ge=0, description="Temperature amplitude over a year [K].")
    temperature_slow: float = Field(0.5, ge=0, description="Temperature amplitude with a period of 210 days [K].")
    focus_slope: float = Field(4.0, description="Slope of focus with temperature [um/K].")
    focus_slow: float = Field(4.0, ge=0, description="Focus amplitude with a period of 160 days [um].")
    focus_scatter: float = Field(1.0, ge=0, description="Focus scatter between exposures, 1 sigma [um].")
    jitter: float = Field(0.033, gt=0, description="Nominal jitter, 1 sigma per axis, as `optics.jitter` [arcsec].")
    jitter_scatter: float = Field(
        0.3, ge=0, description="Jitter scatter between exposures, 1 sigma of its natural log."
    )
    background: float = Field(0.2, gt=0, description="Nominal sky background [e-/s/pixel].")
    contamination: float = Field(40.0, ge=0, description="Ice thickness at which growth saturates [nm].")
    contamination_days: float = Field(70.0, gt=0, description="E-folding time of the ice growth [d].")
    decontamination: tuple[float, float] = Field(
        (90.0, 150.0), description="Range of the time between decontaminations [d]."
    )
    decontamination_jump: tuple[float, float] = Field(
        (0.004, 0.014),
        description="Range of the zero-point jump at a decontamination, in addition to that of the ice [mag].",
    )
    step_days: float = Field(120.0, gt=0, description="Mean time between steps that telemetry does not report [d].")
    step: tuple[float, float] = Field((-0.012, -0.004), description="Range of the size of these steps [mag].")
    late_from: float = Field(0.7, ge=0, le=1, description="Fraction of a survey after which conditions drift.")
    late_temperature: float = Field(1.0, description="Change of the detector temperature at the end of the survey [K].")
    late_background: float = Field(
        0.3, ge=-0.9, description="Relative change of the background at the end of the survey."
    )


class Reported(FrozenSettings):
    """Properties of the telemetry: noise (1 sigma), delay and gaps."""

    lag: float = Field(2.0, ge=0, description="Age of the reported values [min].")
    detector_temperature: float = Field(0.03, ge=0, description="Noise of the detector temperature, 1 sigma [K].")
    focus: float = Field(0.5, ge=0, description="Noise of the focus, 1 sigma [um].")
    jitter: float = Field(0.04, ge=0, description="Relative noise of the jitter, 1 sigma.")
    earth_limb_angle: float = Field(0.2, ge=0, description="Noise of the Earth-limb angle, 1 sigma [deg].")
    sun_angle: float = Field(0.2, ge=0, description="Noise of the Sun angle, 1 sigma [deg].")
    background: float = Field(0.03, ge=0, description="Relative noise of the background, 1 sigma.")
    contamination: float = Field(
        0.08, ge=0, description="Relative error of the ice thickness, constant between decontaminations."
    )
    contamination_step: float = Field(1.0, gt=0, description="Resolution of the reported ice thickness [nm].")
    contamination_days: float = Field(1.0, gt=0, description="Time between updates of the reported ice thickness [d].")
    gap_share: float = Field(0.015, ge=0, le=1, description="Fraction of single values that are missing.")
    outage_days: float = Field(120.0, gt=0, description="Mean time between outages of a channel [d].")
    outage_length: float = Field(1.5, gt=0, description="Mean length of an outage [d].")


class ReferenceStars(FrozenSettings):
    """Reference stars and their catalogue."""

    magnitudes: tuple[float, float] = Field(
        (16.0, 21.5), description="Magnitude range of the reference stars in the band [mag]."
    )
    slope: float = Field(0.2, gt=0, description="Slope of the counts of reference stars, d log10 N(<m) / dm.")
    errors: tuple[float, float] = Field(
        (0.005, 0.05), description="Catalogue errors of the brightest and faintest stars [mag]."
    )
    missing_share: float = Field(
        0.03, ge=0, le=1, description="Fraction of stars whose magnitude is missing or a sentinel."
    )
    zero_error_share: float = Field(0.01, ge=0, le=1, description="Fraction of stars whose catalogue error is 0.")
    scatter: float = Field(
        0.004, ge=0, description="Scatter of stars about the model that no quoted error includes, 1 sigma [mag]."
    )
    outlier_share: float = Field(0.05, ge=0, le=1, description="Fraction of stars that are variable or blended.")
    outlier_size: float = Field(0.2, ge=0, description="Magnitude change of these stars, 1 sigma [mag].")
    color: tuple[float, float] = Field((0.8, 0.5), description="Mean and scatter of the colours [mag].")
    proper_motion: float = Field(10.0, ge=0, description="Proper motion, 1 sigma per axis [mas/yr].")
    bands: tuple[str, ...] = Field(
        ("g", "r", "i", "z"), min_length=1, description="Bands of the reference catalogue of rendered fields."
    )
    position_error: float = Field(0.01, ge=0, description="Error of catalogue positions, 1 sigma per axis [arcsec].")


def _survey_b() -> Survey:
    """Return the second survey: bluer, shallower, sparser, on another telescope.

    Its coefficients differ from those of the first by up to a factor of 2 in either direction, and the background has
    the opposite sign.
    """
    response = Response(
        contamination=0.0025,
        contamination_cold=-0.06,
        temperature=0.006,
        temperature_square=-0.004,
        focus=0.018,
        focus_jitter=0.006,
        jitter=0.021,
        limb=0.015,
        limb_scale=20.0,
        sun=0.018,
        background=-0.008,
        ageing=0.014,
    )
    return Survey(
        name="B",
        nominal=24.0,
        exposures=4000,
        visit=6,
        start=1.0,
        n_stars=250.0,
        empty_share=0.2,
        color_term=-0.015,
        walk=0.0025,
        response=response,
    )


class ZeroPoints(FrozenSettings):
    """Zero points that follow the conditions of each exposure. A recipe with this table has telemetry."""

    conditions: Conditions = Field(Conditions(), description="True conditions.")
    reported: Reported = Field(Reported(), description="Telemetry.")
    stars: ReferenceStars = Field(ReferenceStars(), description="Reference stars and their catalogue.")
    surveys: tuple[Survey, ...] = Field((Survey(name="A"), _survey_b()), min_length=1, description="Surveys.")
    rendered: str = Field("A", description="Survey whose conditions apply to the rendered frames.")
    grey_sigma: float = Field(0.01, ge=0, description="Constant offset of each detector, 1 sigma [mag].")
    small_sigma: float = Field(0.002, ge=0, description="Independent offset of each unit, 1 sigma [mag].")
    rendered_gap_share: float = Field(
        0.2, ge=0, le=1, description="Fraction of missing telemetry values of rendered exposures."
    )
    sparse_detectors: tuple[int, ...] = Field((), description="Rendered detectors with few stars.")
    sparse_share: float = Field(0.1, ge=0, le=1, description="Star density on these detectors, relative to the others.")

    @model_validator(mode="after")
    def _check_names(self) -> ZeroPoints:
        names = [survey.name for survey in self.surveys]
        if len(set(names)) != len(names):
            raise ValueError(f"surveys: found the names {names}; wanted each once")
        if self.rendered not in names:
            raise ValueError(f"rendered: found {self.rendered!r}; wanted one of {', '.join(names)}")
        return self

    def survey(self, name: str) -> Survey:
        """Return a survey by name."""
        return self.surveys[self.number(name)]

    def number(self, name: str) -> int:
        """Return the index of a survey, which is part of the keys of its random streams."""
        return [survey.name for survey in self.surveys].index(name)
