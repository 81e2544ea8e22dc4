"""Settings of mock zero points: the table ``[zeropoint]`` of a recipe.

The numbers are invented: no space telescope publishes telemetry and zero points of single exposures together. Their
sizes follow what is known in general: HST repeats to a few mmag; Gaia and Euclid lost some per cent of their throughput
to ice and regained it by decontamination; an orbit at 400 km takes some 94 minutes.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Response(_Part):
    """How the zero point of a survey depends on true conditions.

    See `csstdask.mock.telemetry.explained_offset` for the formula. All amplitudes are in mag.
    """

    contamination: float = Field(0.0018, description="loss for each nm of ice [mag/nm]")
    contamination_cold: float = Field(-0.12, description="relative change of that loss for 1 K above nominal [1/K]")
    temperature: float = Field(0.010, description="gain for 1 K above nominal: quantum efficiency [mag/K]")
    temperature_square: float = Field(-0.003, description="[mag/K^2]")
    focus: float = Field(0.012, description="loss at 10 um from best focus, quadratic [mag]")
    focus_jitter: float = Field(0.012, description="the same for each unit of ln(jitter / nominal) [mag]")
    jitter: float = Field(0.015, description="loss for each unit of ln(jitter / nominal) [mag]")
    limb: float = Field(0.025, description="loss near the Earth's limb [mag]")
    limb_scale: float = Field(15.0, gt=0, description="e-folding angle of that loss [deg]")
    sun: float = Field(0.012, description="amplitude of the dependence on the Sun angle [mag]")
    background: float = Field(0.012, description="gain for each unit of ln(background / nominal) [mag]")
    ageing: float = Field(0.010, description="loss a year [mag/yr]")


class Survey(_Part):
    """One survey: when it observes, how deep and dense its fields are, and how its throughput responds."""

    name: str
    nominal: float = Field(25.85, description="zero point in the camera's description [mag]")
    exposures: int = Field(8000, ge=1, description="number made by `mock_surveys`")
    years: float = Field(3.0, gt=0, description="length of the survey [yr]")
    start: float = Field(0.25, ge=0, description="of the survey after launch [yr]")
    visit: int = Field(4, ge=1, description="exposures of one field, one after another")
    cadence: float = Field(210.0, gt=0, description="between exposures of one visit [s]")
    exptime: float = Field(150.0, gt=0, description="exposure time [s]")
    n_stars: float = Field(500.0, ge=1, description="most reference stars of a field")
    empty_share: float = Field(0.1, ge=0, le=1, description="share of fields without a reference star")
    color_term: float = Field(0.01, description="C in m = zp + F + C color + inst_mag")
    color_term_scatter: float = Field(0.002, ge=0, description="of C between exposures, one sigma")
    flat_sigma: float = Field(0.006, ge=0, description="of linear terms of F(x, y) [mag]; quadratic terms: a quarter")
    white: float = Field(0.003, ge=0, description="per exposure, explained by nothing, one sigma [mag]")
    walk: float = Field(0.002, ge=0, description="random walk [mag / sqrt(day)]")
    response: Response = Response()


class Conditions(_Part):
    """Telescope and camera, as they are in orbit."""

    orbit: float = Field(94.0, gt=0, description="period of the orbit [min]")
    temperature: float = Field(188.0, gt=0, description="nominal detector temperature [K]")
    temperature_orbit: float = Field(0.35, ge=0, description="amplitude over an orbit [K]")
    temperature_year: float = Field(0.6, ge=0, description="amplitude over a year [K]")
    temperature_slow: float = Field(0.5, ge=0, description="amplitude of a wave of 210 days [K]")
    focus_slope: float = Field(4.0, description="of focus with temperature [um/K]")
    focus_slow: float = Field(4.0, ge=0, description="amplitude of a wave of 160 days [um]")
    focus_scatter: float = Field(1.0, ge=0, description="between exposures, one sigma [um]")
    jitter: float = Field(0.033, gt=0, description="nominal, one sigma an axis, as `optics.jitter` [arcsec]")
    jitter_scatter: float = Field(0.3, ge=0, description="between exposures, one sigma of its natural log")
    background: float = Field(0.2, gt=0, description="nominal sky [electron s-1 pixel-1]")
    contamination: float = Field(40.0, ge=0, description="thickness at which ice stops growing [nm]")
    contamination_days: float = Field(70.0, gt=0, description="e-folding time of the growth [d]")
    decontamination: tuple[float, float] = Field((90.0, 150.0), description="time between decontaminations [d]")
    decontamination_jump: tuple[float, float] = Field(
        (0.004, 0.014), description="upward jump at a decontamination beyond that of the ice [mag]"
    )
    step_days: float = Field(120.0, gt=0, description="mean time between steps that nothing shows [d]")
    step: tuple[float, float] = Field((-0.012, -0.004), description="size of those steps [mag]")
    late_from: float = Field(0.7, ge=0, le=1, description="share of a survey after which conditions drift")
    late_temperature: float = Field(1.0, description="change of the detector temperature by the end [K]")
    late_background: float = Field(0.3, ge=-0.9, description="relative change of the background by the end")


class Reported(_Part):
    """How telemetry reports conditions: noisy, late, with gaps. Noise is one sigma."""

    lag: float = Field(2.0, ge=0, description="age of the reported values [min]")
    detector_temperature: float = Field(0.03, ge=0, description="noise [K]")
    focus: float = Field(0.5, ge=0, description="noise [um]")
    jitter: float = Field(0.04, ge=0, description="relative noise")
    earth_limb_angle: float = Field(0.2, ge=0, description="noise [deg]")
    sun_angle: float = Field(0.2, ge=0, description="noise [deg]")
    background: float = Field(0.03, ge=0, description="relative noise")
    contamination: float = Field(0.08, ge=0, description="relative error, the same between two decontaminations")
    contamination_step: float = Field(1.0, gt=0, description="resolution of the reported thickness [nm]")
    contamination_days: float = Field(1.0, gt=0, description="time between updates of the reported thickness [d]")
    gap_share: float = Field(0.015, ge=0, le=1, description="share of single values that are missing")
    outage_days: float = Field(120.0, gt=0, description="mean time between outages of a channel [d]")
    outage_length: float = Field(1.5, gt=0, description="mean length of an outage [d]")


class ReferenceStars(_Part):
    """Reference stars and their catalogue."""

    magnitudes: tuple[float, float] = Field((16.0, 21.5), description="of reference stars, in the band [mag]")
    slope: float = Field(0.2, gt=0, description="d log10 N / d mag of reference stars")
    errors: tuple[float, float] = Field((0.005, 0.05), description="catalogue errors, brightest and faintest [mag]")
    missing_share: float = Field(0.03, ge=0, le=1, description="stars whose magnitude is missing or a sentinel")
    zero_error_share: float = Field(0.01, ge=0, le=1, description="stars whose catalogue error is 0")
    scatter: float = Field(0.004, ge=0, description="of stars about the model, quoted by no error, one sigma [mag]")
    outlier_share: float = Field(0.05, ge=0, le=1, description="stars that are variable or blended")
    outlier_size: float = Field(0.2, ge=0, description="of their difference, one sigma [mag]")
    color: tuple[float, float] = Field((0.8, 0.5), description="mean and scatter of colours [mag]")
    proper_motion: float = Field(10.0, ge=0, description="one sigma an axis [mas/yr]")
    bands: tuple[str, ...] = Field(
        ("g", "r", "i", "z"), min_length=1, description="of the catalogue of rendered fields"
    )
    position_error: float = Field(0.01, ge=0, description="of catalogue positions, one sigma an axis [arcsec]")


def _survey_b() -> Survey:
    """Return the second survey: bluer, shallower, sparser, on another telescope.

    Its coefficients differ from those of the first by up to a factor of 2, in both directions, and the background acts
    the other way.
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


class ZeroPoints(_Part):
    """Zero points that follow the conditions of each exposure: a recipe with this table has telemetry."""

    conditions: Conditions = Conditions()
    reported: Reported = Reported()
    stars: ReferenceStars = ReferenceStars()
    surveys: tuple[Survey, ...] = Field((Survey(name="A"), _survey_b()), min_length=1)
    rendered: str = Field("A", description="survey whose conditions the rendered frames have")
    grey_sigma: float = Field(0.01, ge=0, description="of a detector's constant share of the offset [mag]")
    small_sigma: float = Field(0.002, ge=0, description="of a unit's own share of the offset [mag]")
    rendered_gap_share: float = Field(0.2, ge=0, le=1, description="as `gap_share`, of the few rendered exposures")
    sparse_detectors: tuple[int, ...] = Field((), description="rendered detectors with few stars")
    sparse_share: float = Field(0.1, ge=0, le=1, description="of the density of stars on those detectors")

    @model_validator(mode="after")
    def _names(self) -> ZeroPoints:
        names = [survey.name for survey in self.surveys]
        if len(set(names)) != len(names):
            raise ValueError(f"surveys: found the names {names}; wanted each once")
        if self.rendered not in names:
            raise ValueError(f"rendered: found {self.rendered!r}; wanted one of {', '.join(names)}")
        return self

    def survey(self, name: str) -> Survey:
        """Return a survey by its name."""
        return self.surveys[self.number(name)]

    def number(self, name: str) -> int:
        """Return the position of a survey, which is part of the key of its random streams."""
        return [survey.name for survey in self.surveys].index(name)
