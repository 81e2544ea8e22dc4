"""`csstdask.zeropoint.solve` and the command `csstdask zeropoint`, on real stars and on unusable input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from shell import csstdask_command as shell

import csstdask
from csstdask.core.errors import InputError
from csstdask.numerics.robust import mad_scale
from csstdask.zeropoint.fit_stars import bootstrap_sigma

LCO = Path(__file__).resolve().parents[3] / "shared/data/images/banzai/cpt1m012-fa06-20200113-0102-matched-cat.fits"
needs_lco = pytest.mark.skipif(not LCO.is_file(), reason="needs the LCO catalogue of ../shared/data/images")


def table(n: int = 40, zero_point: float = 26.0, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    inst = rng.uniform(-10, -6, n)
    error = np.full(n, 0.01)
    noise = rng.normal(0, 0.014, n)
    return {"inst_mag": inst, "inst_mag_err": error, "ref_mag": inst + zero_point + noise, "ref_mag_err": error}


EMPTY: dict[str, Any] = {name: [] for name in ("inst_mag", "inst_mag_err", "ref_mag", "ref_mag_err")}


def test_stars_alone() -> None:
    found = csstdask.zeropoint.solve(table())
    assert found.method == "solve"
    assert abs(found.value - 26.0) < 3 * found.sigma
    assert found.prior is None
    assert json.loads(json.dumps(found.to_dict()))["n_used"] == found.n_used == 40


def test_tables_of_any_kind() -> None:
    columns = table()
    first = csstdask.zeropoint.solve(columns)
    for other in (Table(columns), pa.table(columns)):
        assert csstdask.zeropoint.solve(other).value == first.value


def test_no_information_gives_nan() -> None:
    found = csstdask.zeropoint.solve(EMPTY)
    assert found.method == "nominal"
    assert np.isnan(found.value)
    assert found.sigma == np.inf
    assert found.to_dict()["zp"] is None
    nominal = csstdask.zeropoint.solve(EMPTY, nominal=26.04)
    assert (nominal.value, nominal.method) == (26.04, "nominal")
    assert nominal.sigma >= 0.1


def test_recent_zero_points_are_borrowed_with_a_growing_error() -> None:
    history = {"days": [0.0, 0.1, 0.2], "value": [26.0, 26.001, 25.999], "sigma": [0.003] * 3}
    soon = csstdask.zeropoint.solve(EMPTY, history=history, time=0.21, model="none")
    late = csstdask.zeropoint.solve(EMPTY, history=history, time=300.0, model="none")
    assert soon.method == late.method == "borrowed"
    assert soon.value == pytest.approx(26.0, abs=0.005)
    assert late.sigma > 3 * soon.sigma


def test_later_zero_points_are_ignored() -> None:
    history = {"days": [0.0, 0.1, 5.0], "value": [26.0, 26.0, 20.0], "sigma": [0.003] * 3}
    first = {name: values[:2] for name, values in history.items()}
    found = [csstdask.zeropoint.solve(EMPTY, history=one, time=0.2, model="none") for one in (history, first)]
    assert found[0].value == found[1].value
    only_later = csstdask.zeropoint.solve(EMPTY, history=history, time=-1.0, model="none")
    assert only_later.method == "nominal"


def test_stars_and_history_are_combined() -> None:
    history = {
        "time": np.array(["2027-06-01T00:00", "2027-06-01T00:10"], "M8[s]"),
        "value": [26.0, 26.0],
        "sigma": [0.003] * 2,
    }
    few = {name: values[:2] for name, values in table(seed=4).items()}
    found = csstdask.zeropoint.solve(few, history=history, time="2027-06-01T00:20", model="none")
    assert found.method == "joined"
    assert found.sigma < found.solved.sigma
    assert not found.alarm
    off = csstdask.zeropoint.solve(table(zero_point=25.5), history=history, time="2027-06-01T00:20", model="none")
    assert off.alarm
    assert off.tension < -4


def test_bad_tables_are_refused() -> None:
    with pytest.raises(InputError, match="no column ref_mag, ref_mag_err"):
        csstdask.zeropoint.solve({"inst_mag": [1.0], "inst_mag_err": [0.1]})
    with pytest.raises(InputError, match=r"columns of lengths \[1, 2\]"):
        csstdask.zeropoint.solve({**table(2), "inst_mag": [1.0]})
    with pytest.raises(InputError, match="no time of the exposure"):
        csstdask.zeropoint.solve(EMPTY, history={"days": [0.0], "value": [26.0], "sigma": [0.01]})
    with pytest.raises(InputError, match="column inst_mag without numbers"):
        csstdask.zeropoint.solve({**table(1), "inst_mag": ["bright"]})


def test_plot_has_one_panel_per_column() -> None:
    pytest.importorskip("matplotlib")
    stars = table() | {"color": np.full(40, 0.5), "x": np.arange(40.0), "y": np.arange(40.0)}
    assert len(csstdask.zeropoint.solve(stars).plot().axes) == 3


def lco_stars(band: str) -> dict[str, Any]:
    found = Table.read(LCO)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = found[(found["flag"] == 0) & (found["flux"] / found["fluxerr"] > 20)]
    column = {name: np.asarray(found[name], dtype=np.float64) for name in found.colnames}
    return {
        "inst_mag": -2.5 * np.log10(column["flux"]), "inst_mag_err": 1.0857 * column["fluxerr"] / column["flux"],
        "ref_mag": column[f"{band}mag"], "ref_mag_err": column[f"{band}magerr"],
        "color": column["gmag"] - column["rmag"], "x": column["x"], "y": column["y"],
    }  # fmt: skip


@needs_lco
def test_real_stars_and_the_wrong_band() -> None:
    found = csstdask.zeropoint.solve(lco_stars("i"))
    assert found.value == pytest.approx(29.093, abs=0.01)
    assert float(mad_scale(found.fit.residuals)) == pytest.approx(0.048, abs=0.003)
    assert abs(found.color_term) < 3 * found.color_term_err
    assert found.sigma == pytest.approx(bootstrap_sigma(200, 1, **lco_stars("i")), rel=0.2)
    slopes = {band: csstdask.zeropoint.solve(lco_stars(band)) for band in "grz"}
    assert slopes["g"].color_term > 1
    assert slopes["r"].color_term > 0.4
    assert slopes["z"].color_term < -0.3
    assert all(one.scatter > 1.3 * found.scatter for one in slopes.values())


@pytest.fixture
def field(tmp_path: Path) -> tuple[Path, Path]:
    """Return a table of sources, 2 arcsec off in its WCS, and a reference in two bands; r is the right one."""
    rng = np.random.default_rng(1)
    n = 200
    ra, dec, color = 150 + rng.uniform(-0.05, 0.05, n), 2 + rng.uniform(-0.05, 0.05, n), rng.normal(0.7, 0.3, n)
    inst = rng.uniform(-10, -6, n)
    flux = 10 ** (-0.4 * inst)
    sources = tmp_path / "sources.parquet"
    columns = {
        "ra": ra + 2 / 3600,
        "dec": dec,
        "flux_aperture": flux,
        "flux_aperture_err": 0.01 * flux,
        "flag": np.zeros(n, int),
    }
    pq.write_table(pa.table(columns), sources)
    r = inst + 26.0 + rng.normal(0, 0.015, n)
    reference = tmp_path / "reference.parquet"
    bands = {"mag_g": r + color, "mag_g_err": np.full(n, 0.01), "mag_r": r, "mag_r_err": np.full(n, 0.01)}
    pq.write_table(pa.table({"ra": ra, "dec": dec, **bands, "pmra": np.zeros(n), "pmdec": np.zeros(n)}), reference)
    return sources, reference


def test_command_finds_offset_and_band(field: tuple[Path, Path], tmp_path: Path) -> None:
    sources, reference = field
    done = shell("zeropoint", sources, "--reference", reference, "--to", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["band"] == "r"
    assert found["band_from"] == "least spread"
    assert found["zp"] == pytest.approx(26.0, abs=0.02)
    assert found["wcs_shift_arcsec"] == pytest.approx([-2.0, 0.0], abs=0.05)
    assert found["n_matched"] == 200
    assert found["bands"]["g"]["color_term"] == pytest.approx(1.0, abs=0.05)


def test_command_without_a_match_writes_null_and_fails(field: tuple[Path, Path], tmp_path: Path) -> None:
    sources, reference = field
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(reference).slice(0, 0), empty)
    done = shell("zeropoint", sources, "--reference", empty, "--to", tmp_path / "out.json", "--band", "r")
    assert done.returncode == 1
    assert "0 of 200 usable sources match one of 0 reference stars" in done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["zp"] is None
    assert found["method"] == "nominal"


def test_a_band_of_few_stars_is_not_chosen(field: tuple[Path, Path], tmp_path: Path) -> None:
    sources, reference = field
    table = pq.read_table(reference)
    few = np.where(np.arange(table.num_rows) < 2, table["mag_r"].to_numpy() + 0.3, np.nan)
    pq.write_table(table.append_column("mag_u", pa.array(few, from_pandas=True)), reference)
    done = shell("zeropoint", sources, "--reference", reference, "--to", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["band"] == "r"


@pytest.mark.parametrize(
    "problem", ["no table", "no reference", "no column", "no band", "no option", "no time", "a folder"]
)
def test_command_reports_errors_in_one_line(field: tuple[Path, Path], tmp_path: Path, problem: str) -> None:
    sources, reference = field
    arguments: list[object] = [sources, "--reference", reference, "--to", tmp_path / "out.json"]
    if problem == "no table":
        arguments[0] = tmp_path / "absent.parquet"
    elif problem == "no reference":
        arguments[2] = tmp_path / "absent.parquet"
    elif problem == "no column":
        arguments += ["--flux", "counts"]
    elif problem == "no band":
        arguments += ["--band", "z"]
    elif problem == "no time":
        arguments += ["--time", "yesterday"]
    elif problem == "a folder":
        arguments[-1] = tmp_path
    else:
        arguments = arguments[:1] + arguments[3:]
    done = shell("zeropoint", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    expected = {
        "no column": "counts",
        "no band": "mag_z",
        "no option": "--reference",
        "no time": "yesterday",
        "a folder": "a folder",
    }.get(problem, "absent.parquet")
    assert expected in done.stderr


def test_a_history_with_gaps_sentinels_and_texts() -> None:
    history = {
        "days": [0.0, 0.1, 0.2, 0.3], "value": [26.0, -9999.0, 26.002, np.nan], "sigma": [0.003, 0.003, 0.003, 0.003],
        "method": ["solve", "solve", "solve", ""],
    }  # fmt: skip
    found = csstdask.zeropoint.solve(EMPTY, history=history, time=0.4, model="none")
    assert found.method == "borrowed"
    assert found.value == pytest.approx(26.001, abs=0.003)
    with pytest.raises(InputError, match=r"columns of lengths \[1, 2\]"):
        csstdask.zeropoint.solve(EMPTY, history={"days": [0.0, 1.0], "value": [26.0, 26.0], "sigma": [0.1]}, time=2.0)
    with pytest.raises(InputError, match="time: found 'yesterday'"):
        csstdask.zeropoint.solve(EMPTY, history=history, time="yesterday")


def test_a_history_table_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    history = pandas.DataFrame({"days": [0.0, 0.1], "value": [26.0, 26.0], "sigma": [0.003, 0.003]})
    found = csstdask.zeropoint.solve(EMPTY, history=history, time=0.2, model="none")
    assert found.value == pytest.approx(26.0)


CONDITIONS = {"detector_temperature": 188.0, "focus": 1.0, "jitter": 0.033, "contamination": 20.0}


def test_telemetry_gives_a_prior_that_is_combined_with_stars() -> None:
    alone = csstdask.zeropoint.solve(EMPTY, CONDITIONS, nominal=25.85)
    assert alone.method == "prior"
    assert alone.sigma < 0.1
    stars = {name: values[:3] for name, values in table(zero_point=alone.value).items()}
    joined = csstdask.zeropoint.solve(stars, CONDITIONS, np.full((256, 256), 0.2), nominal=25.85)
    assert joined.method == "joined"
    assert joined.sigma < joined.solved.sigma
    history = {"days": [9800.0, 9800.1], "value": [25.8, 25.8], "sigma": [0.004, 0.004]}
    known = csstdask.zeropoint.solve(EMPTY, CONDITIONS, history=history, time=9800.2)
    assert known.method == "prior"
    assert known.sigma < alone.sigma


def test_unusable_telemetry_and_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown focsu.*detector_temperature"):
        csstdask.zeropoint.solve(EMPTY, {"focsu": 1.0}, nominal=25.85)
    with pytest.raises(InputError, match="telemetry focus: found 'near'"):
        csstdask.zeropoint.solve(EMPTY, {"focus": "near"}, nominal=25.85)
    with pytest.raises(InputError, match=r"image: found shape \(4,\)"):
        csstdask.zeropoint.solve(EMPTY, None, np.zeros(4), nominal=25.85)
    with pytest.raises(InputError, match="reads the level of the stars"):
        csstdask.zeropoint.solve(EMPTY, CONDITIONS, nominal=25.85, model="azprc")
