"""Zero points in the report: histories, alarms with links, residuals; and nothing where there are none."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr

from csstdask.pipeline.reduction_status import ReductionSummary
from csstdask.pipeline.status import Summary
from csstdask.pipeline.steps.zeropoint import ZEROPOINT_STARS
from csstdask.report import zeropoint as section
from csstdask.report.zeropoint import draw_zero_points
from csstdask.store.tables import unit_file_path
from csstdask.zeropoint.matched_stars import MatchedStars

NUMBERED = "exposure, as numbered in the campaign"
N, DETECTORS, NOISE = 12, [7, 8], 0.002
SUMMARY = Summary(reductions=[ReductionSummary("zeropoints", "done", 24, remarks=["3 units in 1 unanchored parts"])])


def stars_of(exposure, detector, n=40):
    rng = np.random.default_rng([exposure, detector])
    x, y = rng.uniform(0, 499, (2, n))
    mag = rng.uniform(17, 21, n)
    residual = rng.normal(0, 0.01, n)
    residual[0] = np.nan
    return MatchedStars(
        id=np.arange(n), reference=np.arange(n), x=x, y=y, ra=x, dec=y, inst_mag=mag - 25,
        inst_mag_err=np.full(n, 0.01),
        ref_mag=mag, ref_mag_err=np.full(n, 0.01), color=np.where(np.arange(n) % 5, 0.6, np.nan),
        weight=(np.arange(n) > 0).astype(float), residual=residual, coefficients=np.zeros(2), exposure=f"e{exposure}",
        detector=detector, band="i", days=9000.0, shape=(500, 500), nominal=25.0, value=25.0, sigma=0.002,
        correction_err=0.0, color_term=0.0, color_term_err=0.01, scatter=0.002, n_matched=n, n_used=n - 1,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of twelve exposures, of which one of detector 8 contradicts what was expected."""
    rng = np.random.default_rng(3)
    solve = 25.0 + rng.normal(0, NOISE, (N, 2))
    prior = np.full((N, 2), 25.0)
    prior[4, 1] -= 0.03
    sigma, method = np.full((N, 2), NOISE), np.full((N, 2), "joined", dtype=object)
    method[0] = "solve"
    arrays = {"zp": solve, "zp_sigma": sigma, "zp_method": method, "zp_prior": prior, "zp_prior_sigma": sigma}
    monkeypatch.setattr(section, "current_zero_points", lambda _root, _plan: arrays)
    monkeypatch.setattr(section, "load_plan", lambda _root, _campaign: None)
    dims = ("exposure", "detector")
    dataset = xr.Dataset(
        {"zp_solve": (dims, solve), "zp_solve_sigma": (dims, sigma), "zp_n_used": (dims, np.full((N, 2), 39.0))},
        {
            "exposure": [f"e{row}" for row in range(N)],
            "detector": DETECTORS,
            "time": ("exposure", np.datetime64("2028-01-01", "ns") + np.arange(N) * np.timedelta64(1, "D")),
        },
        {"campaign_path": str(tmp_path)},
    )
    for row in range(N):
        for detector in DETECTORS:
            path = unit_file_path(tmp_path, ZEROPOINT_STARS, f"e{row}", detector)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stars_of(row, detector).to_bytes())
    return dataset, tmp_path


def test_histories_alarms_and_residuals_are_shown(run):
    page = draw_zero_points(*run, SUMMARY)
    assert "reduction zeropoints: done, 24 inputs, 3 units in 1 unanchored parts" in page
    assert page.count("<svg") == 2 + 3  # detectors; radius, colour, magnitude
    cells = re.findall(r"<td>(.*?)</td>", page)
    assert cells[:4] == ["solve", "2", "2", "2"]
    assert cells[4:8] == ["joined", "22", "2", "2"]
    alarms = cells[8:]
    assert alarms[0] == '<a href="#unit-e4-8">e4/8</a>'
    assert alarms[1] == "disagreement"
    assert float(alarms[2]) == pytest.approx(30, abs=8)
    assert len(alarms) == 5


def test_a_quiet_run_says_so(run, monkeypatch):
    dataset, root = run
    page = draw_zero_points(
        dataset.isel(exposure=slice(0, N)).assign(zp_solve=dataset["zp_solve"] * 0 + 25.0), root, SUMMARY
    )
    assert "disagreement" in page  # the prior of e4/8 is still off
    monkeypatch.setattr(section, "alarms_of", lambda _: [])
    assert "No alarms" in draw_zero_points(dataset, root, SUMMARY)


def test_times_may_be_unknown_and_files_absent(run):
    dataset, root = run
    dataset = dataset.assign_coords(time=("exposure", np.full(N, np.datetime64("NaT", "ns"))))
    for path in root.rglob("*.safetensors"):
        path.unlink()
    page = draw_zero_points(dataset, root, SUMMARY)
    assert page.count("<svg") == 2
    assert page.count(NUMBERED) == 2
    assert "[day]" not in page


def test_the_axis_of_time_says_what_it_counts(run):
    """Two exposures of one time, such as imsets, are numbered."""
    dataset, root = run
    page = draw_zero_points(dataset, root, SUMMARY)
    assert (page.count("time since the first exposure [day]"), page.count(NUMBERED)) == (2, 0)
    times = dataset["time"].values.copy()
    times[1] = times[0]
    page = draw_zero_points(dataset.assign_coords(time=("exposure", times)), root, SUMMARY)
    assert (page.count("time since the first exposure [day]"), page.count(NUMBERED)) == (0, 2)


def test_without_zero_points_there_is_no_section(run, monkeypatch):
    dataset, root = run
    assert draw_zero_points(dataset, root, Summary()) == ""
    assert draw_zero_points(dataset.drop_vars("zp_solve"), root, SUMMARY) == ""
    monkeypatch.setattr(section, "current_zero_points", lambda _root, _plan: None)
    pending = Summary(reductions=[ReductionSummary("zeropoints", "pending", 3)])
    assert draw_zero_points(dataset, root, pending) == "<p>reduction zeropoints: pending, 3 inputs</p>"
