"""The step `zeropoint` on source tables with a known zero point: which stars count, and what a unit contributes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from astropy.wcs import WCS
from shell import csstdask_command

from csstdask.core.atomic_io import sha256_file
from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.nn.models import find_card
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.prepare import check_inputs, prepare, resolve_inputs
from csstdask.pipeline.steps.zeropoint import (
    MAX_REPAIRED_FRACTION,
    ZEROPOINT,
    ZEROPOINT_STARS,
    load_catalogue,
    solve_unit,
)
from csstdask.store.campaign import Campaign
from csstdask.store.schema import NO_TIME
from csstdask.store.tables import write_table
from csstdask.store.unit_metadata import UnitMetadata
from csstdask.zeropoint.matched_stars import MatchedStars
from csstdask.zeropoint.photometry import light_outside_box

ZERO_POINT = 25.7
SHAPE = (400, 500)
NOISE = 0.004
YEAR = 365.25 * 86400e6
"""[us]"""
T2026 = 820_454_400 * 10**6 + 946_728_000 * 10**6
"""2026-01-01T00:00 [us since 1970]: ten years after the epoch of the reference."""


def wcs():
    found = WCS(naxis=2)
    found.wcs.ctype, found.wcs.crval, found.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [250.5, 200.5]
    found.wcs.cdelt = [-0.074 / 3600, 0.074 / 3600]
    return found


class Unit:
    """A unit with 80 stars on a grid with noise, of which `write` makes a reference catalogue."""

    def __init__(self, n=80, seed=1):
        rng = np.random.default_rng(seed)
        side = int(np.ceil(np.sqrt(n)))
        place = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:n] + 0.5
        self.x, self.y = place.T * np.array([[SHAPE[1]], [SHAPE[0]]]) / max(side, 1) + rng.uniform(-5, 5, (2, n))
        self.mag, self.color = rng.uniform(17, 20, n), rng.normal(0.6, 0.3, n)
        flux = 10 ** (-0.4 * (self.mag - ZERO_POINT + rng.normal(0, NOISE, n)))
        self.psf = np.full((5, 5, 64, 64), np.nan, np.float32)
        self.ra, self.dec = wcs().pixel_to_world_values(self.x, self.y)
        seen = [values + rng.normal(0, 0.02 / 3600, n) for values in (self.ra, self.dec)]  # to 20 mas
        self.table = {
            "id": np.arange(n, dtype=np.int32), "x": self.x, "y": self.y, "ra": seen[0], "dec": seen[1],
            "flux_aperture": flux, "flux_aperture_err": NOISE * flux, "flag": np.zeros(n, np.int32),
            "repaired_fraction": np.zeros(n), "half_light_radius": np.full(n, 1.5),
        }  # fmt: skip

    def write(self, path, rows=slice(None), **columns):
        reference = {
            "ra": self.ra, "dec": self.dec, "mag_i": self.mag, "mag_i_err": np.full(len(self.mag), 0.002),
            "mag_g": self.mag + self.color, "mag_g_err": np.full(len(self.mag), 0.002),
        } | columns  # fmt: skip
        write_table(path, {name: values[rows] for name, values in reference.items()}, {})
        return path

    def solve(self, reference, *, time=T2026, header=None, **settings):
        metadata = UnitMetadata("101", 7, "imaging", "i", 150.0, time, 1.0, 5.0, "")
        text = header if header is not None else "\n".join(str(card) for card in wcs().to_header().cards)
        frame = Frame(
            metadata, load_instrument("csst"), "electron", lambda _: np.zeros(SHAPE, np.float32), lambda _: self.psf,
            lambda: text, lambda _: self.table,
        )  # fmt: skip
        config = RunConfig.model_validate({"zeropoint": {"reference": str(reference), "model": "none", **settings}})
        output = solve_unit(frame, config)
        assert set(output.metrics) == set(ZEROPOINT.metrics)
        return output.metrics, MatchedStars.from_bytes(output.files[ZEROPOINT_STARS])


def test_the_zero_point_of_a_unit_is_that_of_its_stars(tmp_path):
    unit = Unit()
    metrics, stars = unit.solve(unit.write(tmp_path / "reference.parquet"))
    # 80 stars of 4 mmag, and priors of F and the colour term; no PSF was fitted, so that the total light is not known.
    assert metrics["zp_solve_sigma"] == pytest.approx(0.1, rel=0.001)
    assert abs(metrics["zp_solve"] - ZERO_POINT) < 4 * 0.003
    assert (metrics["zp_n_matched"], len(stars)) == (80, 80)
    assert metrics["zp_wcs_shift"] < 0.02
    assert abs(metrics["zp_color_term"]) < 4 * metrics["zp_color_term_err"]
    assert metrics["zp_aperture_correction"] is None
    assert metrics["zp_aperture_correction_err"] == stars.correction_err == 0.1
    assert np.isnan(stars.correction)
    assert stars.coefficient_covariance.shape == (2, 2)
    assert (stars.exposure, stars.detector, stars.band, stars.shape) == ("101", 7, "i", SHAPE)
    assert stars.nominal == 25.85
    assert stars.value == metrics["zp_solve"]
    assert stars.days == pytest.approx((T2026 / 1e6 - 946_728_000) / 86400)
    np.testing.assert_allclose(stars.color, unit.color, atol=1e-12)


def test_the_aperture_is_corrected_to_all_light_of_the_psf(tmp_path):
    unit, sigma = Unit(), 2.0
    v, u = np.mgrid[:64, :64] - 32
    unit.psf[:] = np.exp(-(u**2 + v**2) / 4 / (2 * sigma**2))
    unit.psf /= unit.psf[0, 0].sum()
    metrics, _ = unit.solve(unit.write(tmp_path / "reference.parquet"))
    # Of a Gaussian, convolved with a pixel by the aperture's own edge: 1/12 pixel^2 more in each direction.
    expected = 2.5 * np.log10(1 - np.exp(-(4.0**2) / (2 * (sigma**2 + 1 / 12))))
    telescope = load_instrument("csst").telescope
    beyond = light_outside_box(16 * 0.074, 755.0, telescope.diameter, telescope.obscuration)  # i: 690 to 820 nm
    expected += 2.5 * np.log10(1 - beyond)
    assert metrics["zp_aperture_correction"] == pytest.approx(expected, abs=0.002)
    assert metrics["zp_solve"] == pytest.approx(ZERO_POINT - expected, abs=0.008)
    assert metrics["zp_solve_sigma"] < 0.003
    unit.psf[2:], unit.psf[:2, 1:] = np.nan, np.nan  # two nodes, which happen to agree
    metrics, stars = unit.solve(tmp_path / "reference.parquet")
    assert stars.correction == pytest.approx(expected, abs=0.002)
    assert metrics["zp_aperture_correction_err"] == 0.02


def test_a_unit_without_stars_contributes_that_it_has_none(tmp_path):
    nothing = Unit(0)
    metrics, stars = nothing.solve(Unit().write(tmp_path / "reference.parquet"))
    assert metrics["zp_solve"] is metrics["zp_solve_sigma"] is metrics["zp_scatter"] is None
    assert (metrics["zp_n_matched"], metrics["zp_n_used"], len(stars)) == (0, 0, 0)
    assert np.isnan(stars.value)
    assert np.isinf(stars.sigma)
    empty = Unit()
    metrics, stars = empty.solve(empty.write(tmp_path / "empty.parquet", slice(0)))
    assert metrics["zp_solve"] is None
    assert (stars.reference == -1).all()


def test_a_frame_without_a_wcs_has_no_stars(tmp_path):
    unit = Unit()
    reference = unit.write(tmp_path / "reference.parquet")
    unit.table |= {"ra": np.full(80, np.nan), "dec": np.full(80, np.nan)}
    metrics, stars = unit.solve(reference, header="")
    assert metrics["zp_solve"] is None
    assert len(stars) == 0


def test_stars_that_cannot_be_trusted_take_no_part(tmp_path):
    unit = Unit()
    reference = unit.write(tmp_path / "reference.parquet")
    table = unit.table
    table["flag"][0], table["repaired_fraction"][1] = 2, 2 * MAX_REPAIRED_FRACTION
    table["flux_aperture_err"][2] = table["flux_aperture"][2] / 10
    table["flux_aperture"][3], table["flux_aperture"][4] = np.nan, -5.0
    table["flux_aperture_err"][5] = 0.0
    _, stars = unit.solve(reference)
    assert stars.id.tolist() == list(range(6, 80))


@pytest.mark.parametrize("shift", [2.0, -3.5])
def test_a_wrong_pointing_is_found(tmp_path, shift):
    unit = Unit()
    reference = unit.write(tmp_path / "reference.parquet", dec=unit.dec + shift / 3600)
    metrics, stars = unit.solve(reference)
    assert metrics["zp_n_matched"] == 80
    assert metrics["zp_wcs_shift"] == pytest.approx(abs(shift), abs=0.02)
    np.testing.assert_allclose(stars.dec, unit.dec + shift / 3600, atol=0.1 / 3600)


def test_proper_motions_lead_to_the_time_of_the_exposure(tmp_path):
    unit, rng = Unit(), np.random.default_rng(5)
    motion = rng.normal(0, 400, (2, 80))  # [mas/yr]: 4 arcsec in ten years, in all directions
    cosine = np.cos(np.radians(unit.dec))
    columns = {"pmra": motion[0], "pmdec": motion[1]}
    columns |= {"ra": unit.ra - 10 * motion[0] / 3.6e6 / cosine, "dec": unit.dec - 10 * motion[1] / 3.6e6}
    reference = unit.write(tmp_path / "reference.parquet", **columns)
    assert unit.solve(reference)[0]["zp_n_matched"] == 80
    assert unit.solve(reference, time=NO_TIME)[0]["zp_n_matched"] < 40


def test_bright_isolated_stars_without_a_reference_are_for_overlaps(tmp_path):
    unit = Unit()
    reference = unit.write(tmp_path / "reference.parquet", slice(0, 40))
    unit.table["x"][50], unit.table["y"][50] = unit.table["x"][51] + 3, unit.table["y"][51]  # apertures touch
    unit.table["half_light_radius"][52] = 3.0  # a galaxy
    _, stars = unit.solve(reference, overlap_stars=10)
    assert (stars.reference >= 0).sum() == 40
    others = stars.id[stars.reference < 0]
    candidates = [i for i in range(40, 80) if i not in (50, 51, 52)]
    brightest = sorted(candidates, key=lambda i: -unit.table["flux_aperture"][i])[:10]
    assert sorted(others.tolist()) == sorted(brightest)


def test_a_reference_without_the_band_gives_no_zero_point_but_identities(tmp_path):
    unit = Unit()
    table = {"ra": unit.ra, "dec": unit.dec, "mag_g": unit.mag, "mag_g_err": np.full(80, 0.01)}
    write_table(tmp_path / "reference.parquet", table, {})
    metrics, stars = unit.solve(tmp_path / "reference.parquet")
    assert metrics["zp_solve"] is None
    assert (stars.reference >= 0).all()


def test_sentinels_of_the_reference_are_no_magnitudes(tmp_path):
    unit = Unit()
    mag, error = unit.mag.copy(), np.full(80, 0.002)
    mag[:3], error[3:6] = (99.0, -9999.0, 130.0), (0.0, -9999.0, 99.0)
    metrics, _ = unit.solve(unit.write(tmp_path / "reference.parquet", mag_i=mag, mag_i_err=error))
    assert metrics["zp_n_matched"] == 77
    assert abs(metrics["zp_solve"] - ZERO_POINT) < 4 * 0.003


def test_without_a_reference_the_step_is_left_out_or_refused(small_campaign, tmp_path):
    config = RunConfig.model_validate({"zeropoint": {"model": "none"}})
    plan, _, _ = prepare(small_campaign, tmp_path / "run.zarr", None, _everything(), config, "threads", 1)
    assert "zeropoint" not in [step.name for step in plan.steps]
    assert plan.reductions == ()
    wanted = "--steps zeropoint: found no reference stars; wanted --reference STARS.parquet"
    for steps in (["zeropoint"], ["zeropoints"]):
        with pytest.raises(InputError, match=wanted):
            prepare(small_campaign, tmp_path / "run.zarr", steps, _everything(), config, "threads", 1)


def test_unusable_tables_are_named_before_a_run(small_campaign, tmp_path):
    def start(**settings):
        config = RunConfig.model_validate({"zeropoint": {"model": "none", **settings}})
        prepare(small_campaign, tmp_path / "run.zarr", ["zeropoints"], _everything(), config, "threads", 1)

    reference = str(Unit().write(tmp_path / "reference.parquet"))
    start(reference=reference)
    with pytest.raises(InputError, match=r"none\.parquet: found no such file; wanted the Parquet table of --reference"):
        start(reference=str(tmp_path / "none.parquet"))
    with pytest.raises(InputError, match=r"\[zeropoint\] color: found u; wanted bands of .*\(i, g\)"):
        start(reference=reference, color=("u", "g"))
    with pytest.raises(InputError, match="found columns ra, dec"):
        start(reference=reference, telemetry=reference)
    write_table(tmp_path / "stars.parquet", {"ra": np.zeros(1), "dec": np.zeros(1)}, {})
    with pytest.raises(InputError, match="found no column of magnitudes"):
        start(reference=str(tmp_path / "stars.parquet"))
    text = np.full(80, "n/a", dtype=object)
    wanted = r"bad\.parquet: found column mag_z of type string; wanted numbers: convert the column or remove it"
    with pytest.raises(InputError, match=wanted):
        start(reference=str(Unit().write(tmp_path / "bad.parquet", mag_z=text, mag_z_err=np.ones(80))))
    stars = {"ra": np.zeros(1), "dec": np.zeros(1), "mag_NUV": np.full(1, 20.0), "mag_NUV_err": np.full(1, 0.01)}
    write_table(tmp_path / "uv.parquet", stars, {})
    wanted = r"uv\.parquet: found magnitudes in NUV alone; wanted mag_BAND of the campaign's images \(.*i.*\)"
    with pytest.raises(InputError, match=wanted):
        start(reference=str(tmp_path / "uv.parquet"))
    twice = {"exposure": np.array(["a", "a"], dtype=object), "focus": np.zeros(2)}
    write_table(tmp_path / "twice.parquet", twice, {})
    with pytest.raises(InputError, match="found several rows of exposure a; wanted one row an exposure"):
        start(reference=reference, telemetry=str(tmp_path / "twice.parquet"))
    write_table(tmp_path / "text.parquet", {"exposure": twice["exposure"][:1], "focus": text[:1]}, {})
    with pytest.raises(InputError, match="found column focus of type string; wanted numbers"):
        start(reference=reference, telemetry=str(tmp_path / "text.parquet"))


def test_suspicious_tables_are_warned_of_before_a_run(small_campaign, tmp_path, caplog):
    def start(**settings):
        config = RunConfig.model_validate({"zeropoint": {"model": "none", **settings}})
        caplog.clear()
        with caplog.at_level("WARNING", "csstdask"):
            prepare(small_campaign, tmp_path / "run.zarr", ["zeropoints"], _everything(), config, "threads", 1)
        return caplog.messages

    unit, exposures = Unit(), Campaign(small_campaign).exposures
    reference = str(unit.write(tmp_path / "reference.parquet"))
    table = {"exposure": np.array([exposures[0]], dtype=object), "focus": np.zeros(1)}
    write_table(tmp_path / "telemetry.parquet", table, {})
    known = start(reference=reference, telemetry=str(tmp_path / "telemetry.parquet"))
    write_table(tmp_path / "other.parquet", table | {"exposure": np.array(["b", "a"], dtype=object)[:1]}, {})
    messages = start(reference=reference, telemetry=str(tmp_path / "other.parquet"))
    assert len(messages) == len(known) + 1
    assert f"has no row of an exposure of the campaign, such as b: wanted ids such as {exposures[0]}" in messages[-1]
    (empty,) = set(start(reference=str(unit.write(tmp_path / "empty.parquet", rows=slice(0, 0))))) - set(known)
    assert empty == f"{tmp_path / 'empty.parquet'} has no stars: zero points come without them"
    bands = {"ra": unit.ra, "dec": unit.dec, "mag_i": unit.mag, "mag_i_err": np.full(80, 0.01)}
    write_table(tmp_path / "some.parquet", bands, {})
    assert any("has no magnitudes in " in message for message in start(reference=str(tmp_path / "some.parquet")))


def test_a_network_that_cannot_be_loaded_is_refused_before_a_run(small_campaign, tmp_path):
    """Weights that are not those of the card."""
    card = find_card("zeropoint", "default")
    description = card.weights.with_suffix(".json")
    shutil.copy(description, tmp_path / description.name)
    (tmp_path / card.weights.name).write_bytes(card.weights.read_bytes()[:-4] + b"\0\0\0\1")
    table = {"exposure": np.array(Campaign(small_campaign).exposures, dtype=object), "focus": np.zeros(2)}
    write_table(tmp_path / "telemetry.parquet", table, {})
    reference = str(Unit().write(tmp_path / "reference.parquet"))

    def start(**settings):
        config = RunConfig.model_validate(
            {"zeropoint": {"reference": reference, "model": str(tmp_path / description.name), **settings}}
        )
        prepare(small_campaign, tmp_path / "run.zarr", ["zeropoints"], _everything(), config, "threads", 1)

    start()  # without telemetry no network is asked
    wanted = r"\[zeropoint\] model: found .*SHA-256.*; wanted a model that can be loaded, or model = \"none\""
    with pytest.raises(InputError, match=wanted):
        start(telemetry=str(tmp_path / "telemetry.parquet"))


def test_a_reference_that_is_replaced_during_a_run_is_refused(tmp_path):
    """It would be recorded under the checksum of the first one."""
    unit = Unit()
    reference = unit.write(tmp_path / "reference.parquet")
    checksum = sha256_file(reference)
    unit.solve(reference, reference_sha256=checksum)
    unit.write(reference, mag_i=unit.mag + 1)
    load_catalogue.cache_clear()  # as another worker that starts later
    with pytest.raises(InputError, match=r"reference\.parquet: found a file that was replaced during the run"):
        unit.solve(reference, reference_sha256=checksum)


def test_the_reference_decides_the_step_and_the_telemetry_the_reduction(small_campaign, tmp_path):
    def plan_of(**settings):
        config = RunConfig.model_validate({"zeropoint": {"model": "none", **settings}})
        config = resolve_inputs(config, small_campaign)
        plan, _, _ = prepare(small_campaign, tmp_path / "run.zarr", ["zeropoints"], _everything(), config, "threads", 1)
        check_inputs(plan)
        metadata = plan.campaign.metadata(plan.campaign.exposures[0], 7)
        return plan.fingerprints(metadata)["zeropoint"], plan.reduction_parts(plan.reductions[0])

    unit = Unit()
    reference = str(unit.write(tmp_path / "reference.parquet"))
    other = str(unit.write(tmp_path / "other.parquet", mag_i=unit.mag + 0.1))
    copy = str(unit.write(tmp_path / "copy.parquet"))
    telemetry = tmp_path / "telemetry.parquet"
    write_table(telemetry, {"exposure": np.array(["a"], dtype=object), "focus": np.zeros(1)}, {})
    step, reduction = plan_of(reference=reference)
    assert plan_of(reference=copy) == (step, reduction)  # content counts, not where it lies
    assert plan_of(reference=other)[0] != step
    assert plan_of(reference=reference, match_radius=0.5)[0] != step
    assert plan_of(reference=reference, telemetry=str(telemetry))[0] == step
    assert plan_of(reference=reference, telemetry=str(telemetry))[1] != reduction
    assert plan_of(reference=reference, epoch_days=10.0)[0] == step
    assert plan_of(reference=reference, epoch_days=10.0)[1] != reduction


def _everything():
    from csstdask.engine.work_units import Selection

    return Selection()


def test_options_of_run_name_the_tables(small_campaign, tmp_path):
    run = ["run", small_campaign, "--to", tmp_path / "run.zarr", "--dry-run"]
    done = csstdask_command(*run, "--reference", tmp_path / "none.parquet")
    assert done.returncode == 2
    assert "none.parquet: found no such file; wanted the Parquet table of --reference" in done.stderr
    reference = Unit().write(tmp_path / "reference.parquet")
    (tmp_path / "quick.toml").write_text('[zeropoint]\nmodel = "none"\n')
    done = csstdask_command(*run, "--reference", reference, "--config", tmp_path / "quick.toml")
    assert "reduction zeropoints: pending, 0 partials recorded before" in done.stdout, done.stderr
    done = csstdask_command(*run, "--reference", reference, "--telemetry", tmp_path / "none.parquet")
    assert "wanted the Parquet table of --telemetry" in done.stderr
