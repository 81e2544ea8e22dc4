"""Evaluation on tables of zero points: inputs, folds, baselines, a small table, and the real one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.datasets.zeropoint_table import read_exposures, split_by_night
from csstdask.evaluation.zeropoint.baselines import (
    boosted_trees,
    linear_regression,
    local_level,
    previous,
    random_forest,
    recalibrated,
    recent_scatter,
    tree_features,
)
from csstdask.evaluation.zeropoint.table import TableSettings, evaluate_table
from csstdask.evaluation.zeropoint.table_inputs import TableInputs, table_inputs
from csstdask.evaluation.zeropoint.table_methods import METHODS, MethodSettings, in_folds, predict
from csstdask.metrics.zeropoint import coverage
from csstdask.training.zeropoint.table import TableFit
from csstdask.zeropoint.memory import build_memory

REAL_TABLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "zeropoints" / "obsbot_2014_2016.csv.gz"
QUICK = MethodSettings(folds=2, fit=TableFit(epochs=1), framings=("recent", "newest"), width=8, latent=4)


def _write(path: Path, rng: np.random.Generator, campaigns: dict[str, tuple[str, ...]], n_nights: int = 6) -> Path:
    """Write exposures whose zero points follow airmass and a walk within each night, with clouds in every third."""
    lines = ["campaign,band,mjd_obs,exptime,airmass,ebv,seeing,sky,nmatched,zeropoint"]
    for campaign, bands in campaigns.items():
        for night in range(n_nights):
            mjd = 57000.9 + night + np.sort(rng.uniform(0, 0.4, 30))
            walk = rng.normal(0, 0.02) + np.cumsum(rng.normal(0, 0.005, 30))
            cloud = -np.abs(np.cumsum(rng.normal(0, 0.1, 30))) * (night % 3 == 2)
            for k in range(30):
                band, airmass = bands[k % len(bands)], rng.uniform(1, 2)
                zero_point = 26 + 0.3 * bands.index(band) - 0.1 * (airmass - 1) + walk[k] + cloud[k]
                lines.append(
                    f"{campaign},{band},{mjd[k]:.6f},90,{airmass:.4f},0.05,{rng.uniform(0.8, 1.5):.3f},"
                    f"{20 + 0.5 * cloud[k]:.3f},100,{zero_point:.5f}"
                )
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def small_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(7)
    return _write(tmp_path_factory.mktemp("table") / "small.csv", rng, {"one": ("g", "z"), "two": ("zd",)})


@pytest.fixture(scope="module")
def inputs(small_table: Path) -> TableInputs:
    tables = read_exposures(small_table)
    return table_inputs(tables, {name: split_by_night(table) for name, table in tables.items()})


def test_extinction_fit_recovers_the_simulation(inputs: TableInputs) -> None:
    clear = inputs.offset > -0.1
    assert np.median(inputs.offset[clear]) == pytest.approx(0, abs=0.02)
    for one in np.unique(inputs.campaign):
        rows = inputs.campaign == one
        assert abs(np.corrcoef(inputs.conditions["airmass"][rows & clear], inputs.offset[rows & clear])[0, 1]) < 0.35


def test_memory_is_of_the_same_night_and_earlier(inputs: TableInputs) -> None:
    index = inputs.memory.index
    row, column = np.nonzero(index >= 0)
    assert (inputs.night[index[row, column]] == inputs.night[row]).all()
    assert (inputs.days[index[row, column]] < inputs.days[row]).all()
    firsts = np.unique(inputs.night, return_index=True)[1]
    assert (inputs.memory.count[firsts] == 0).all()  # the first of a night has no memory, and is predicted
    assert (inputs.persistence[firsts] == 0).all()


def test_inputs_do_not_contain_the_zero_point(small_table: Path, inputs: TableInputs) -> None:
    tables = read_exposures(small_table)
    last = {name: table.take(np.arange(len(table))) for name, table in tables.items()}
    changed = {name: table.zero_point.copy() for name, table in last.items()}
    changed["one"][-1] += 1.0  # the last exposure is in no memory
    other = {
        name: type(table)(**{**vars(table), "zero_point": changed[name]}) for name, table in last.items()
    }  # fmt: skip
    again = table_inputs(other, {name: split_by_night(table) for name, table in other.items()})
    assert np.array_equal(again.features, inputs.features, equal_nan=True)
    assert all(np.array_equal(again.conditions[k], inputs.conditions[k], equal_nan=True) for k in inputs.conditions)


def test_bands_without_exposures_take_a_fit_of_the_same_letter(small_table: Path) -> None:
    tables = read_exposures(small_table)
    train = {"one": split_by_night(tables["one"]), "two": np.zeros(len(tables["two"]), dtype=bool)}
    found = table_inputs(tables, train)
    of_z, of_zd = found.campaign == "one", found.campaign == "two"
    expected = 26.3 - 0.1 * (found.conditions["airmass"] - 1)
    assert found.level[of_zd] == pytest.approx(expected[of_zd], abs=0.05)
    assert found.train[of_z].any()
    assert not found.train[of_zd].any()
    with pytest.raises(ValueError, match="no training exposure"):
        table_inputs(tables, {name: np.zeros(len(table), dtype=bool) for name, table in tables.items()})


def test_folds_predict_nights_outside_their_training(inputs: TableInputs) -> None:
    fold = inputs.folds(3)
    assert sorted(np.unique(fold).tolist()) == [-1, 0, 1, 2]
    for night in np.unique(inputs.night):
        assert len(np.unique(fold[inputs.night == night])) == 1
    seen = []

    def learn(rows: np.ndarray, k: int) -> tuple[np.ndarray, None]:
        seen.append(rows)
        return np.full(len(inputs), float(k)), None

    value, sigma = in_folds(inputs, learn, 3)
    assert sigma is None
    assert value[inputs.train].tolist() == fold[inputs.train].tolist()
    assert (value[~inputs.train] == 1.0).all()  # mean of 0, 1 and 2
    assert not any(rows[fold == k].any() for k, rows in enumerate(seen))


def test_regression_ignores_clouds_and_fills_gaps(rng: np.random.Generator) -> None:
    airmass = rng.uniform(1, 2, 400)
    value = 25 - 0.1 * airmass + rng.normal(0, 0.005, 400)
    value[:60] -= rng.uniform(0.2, 3, 60)
    train = np.arange(400) < 300
    found = linear_regression(airmass, value, train)
    assert np.abs(found - (25 - 0.1 * airmass)).max() < 0.01
    gap = airmass.copy()
    gap[350] = np.nan
    middle = 25 - 0.1 * np.median(airmass[train])
    assert linear_regression(gap, value, train)[350] == pytest.approx(middle, abs=0.01)
    groups = np.where(np.arange(400) == 399, "rare", "common")
    assert linear_regression(airmass, value, train, groups=groups)[399] == pytest.approx(np.median(value[train]))


def test_persistence_of_values_and_of_offsets() -> None:
    days, value, level = np.arange(3.0), np.array([25.0, 24.5, 25.2]), np.array([25.1, 24.4, 25.0])
    memory = build_memory(days, value, np.full(3, 0.01))
    assert previous(memory, level).tolist() == [25.1, 25.0, 24.5]
    assert previous(memory, level, fallback_then=level) == pytest.approx([25.1, 24.3, 25.1])


def test_trees_learn_from_memory_and_conditions(rng: np.random.Generator) -> None:
    n = 1500
    cloud = np.abs(np.cumsum(rng.normal(0, 0.05, n))) % 1
    sky = cloud + rng.normal(0, 0.02, n)
    days = np.arange(n) * 0.001
    memory = build_memory(days, -cloud, np.full(n, 0.01))
    features = tree_features(sky, memory)
    train = np.arange(n) < 1000
    base = np.nan_to_num(memory.value[:, 0])
    errors = {
        "persistence": np.abs(base + cloud)[~train].mean(),
        "trees": np.abs(boosted_trees(features, -cloud, train, base=base) + cloud)[~train].mean(),
        "forest": np.abs(random_forest(features, -cloud, train, base=base) + cloud)[~train].mean(),
    }
    assert errors["trees"] < 0.7 * errors["persistence"]
    assert errors["forest"] < 0.8 * errors["persistence"]
    mean, _, model = local_level(days, -cloud, np.full(n, 1e-3), train)
    assert np.isfinite(mean[1:]).all()
    assert model.walk == pytest.approx(0.05 / np.sqrt(0.001), rel=0.5)  # reflections at 0 and 1 add to it


def test_intervals_from_recent_errors_cover(rng: np.random.Generator) -> None:
    n = 6000
    size = np.repeat(rng.choice([0.005, 0.05], n // 50), 50)
    error, days = size * rng.normal(size=n), np.arange(n) * 0.001
    train = np.arange(n) < 2000
    sigma = recent_scatter(days, error, train)
    groups = np.searchsorted(np.quantile(sigma[train], [0.25, 0.5, 0.75]), sigma)
    intervals = recalibrated(days, error, sigma, groups=groups)
    found = coverage(error[~train], intervals.sigma_68[~train], intervals.sigma_95[~train])
    assert found["coverage_68"] == pytest.approx(0.6827, abs=0.02)
    assert found["coverage_95"] == pytest.approx(0.9545, abs=0.015)
    assert np.median(sigma[size == 0.05]) > 5 * np.median(sigma[size == 0.005])


@pytest.mark.parametrize("name", ["lut", "previous", "kalman", "trees_conditions", "azprc", "ours"])
def test_predictions_are_causal(small_table: Path, inputs: TableInputs, name: str) -> None:
    tables = read_exposures(small_table)
    late = {one: np.flatnonzero(table.night == table.nights[-1])[15:] for one, table in tables.items()}
    changed = {}
    for one, table in tables.items():
        zero_point = table.zero_point.copy()
        zero_point[late[one]] -= 0.5
        changed[one] = type(table)(**{**vars(table), "zero_point": zero_point})
    again = table_inputs(changed, {one: split_by_night(table) for one, table in changed.items()})
    moved = again.zero_point != inputs.zero_point
    first = min(inputs.days[moved & (inputs.campaign == one)].min() for one in tables)
    before = inputs.days < first
    one, two = predict(name, inputs, QUICK), predict(name, again, QUICK)
    assert np.isfinite(one.value).all()
    assert one.value[before].tolist() == two.value[before].tolist()
    for kind in ("sigma_68", "sigma_95"):
        assert getattr(one.intervals, kind)[before].tolist() == getattr(two.intervals, kind)[before].tolist()
        assert (getattr(one.intervals, kind) > 0).all()


def test_evaluation_of_a_small_table(small_table: Path, tmp_path: Path) -> None:
    settings = TableSettings(methods=QUICK, transfer_nights=(0, 3), threads=1)
    lines: list[str] = []
    evaluate_table(small_table, tmp_path, settings=settings, on_progress=lines.append)
    result = json.loads((tmp_path / "zeropoint_table.json").read_text())
    assert sorted(result["campaigns"]) == ["one", "two"]
    one = result["campaigns"]["one"]
    assert (one["n_train"], one["n_test"], one["n_nights_train"], one["n_nights_test"]) == (90, 90, 3, 3)
    assert list(one["methods"]) == list(METHODS)
    for scores in one["methods"].values():
        assert scores["all"]["n"] == 90
        assert 0 < scores["clear"]["n"] < 90
        assert all(scores[part][key] >= 0 for part in ("all", "clear") for key in ("rmse", "mae", "mad", "failures"))
        assert 0 <= scores["coverage_68"] <= scores["coverage_95"] <= 1
        assert len(scores["quartiles"]) == 4
    assert one["methods"]["previous"]["clear"]["mad"] < 0.02 < one["methods"]["lut"]["all"]["mae"]
    assert "telemetry branch" in one["methods"]["azprc"]["label"]
    assert one["paired"]["ours_against_previous"]["n_nights"] == 3
    assert set(one["row_split"]["trees"]) == {"rows", "nights"}
    assert one["row_split"]["previous"]["rows"]["all"]["n"] == one["row_split"]["ours"]["nights"]["all"]["n"] < 90
    assert list(result["transfer"]) == ["two"] or list(result["transfer"]) == ["one"]
    (transfer,) = result["transfer"].values()
    assert list(transfer["nights"]) == ["0", "3"]
    assert transfer["nights"]["0"]["n_train"] == 0
    assert transfer["nights"]["3"]["n_train"] == 90
    assert (tmp_path / "zeropoint_table.md").read_text().startswith("# Zero points of small.csv")
    assert len(list(tmp_path.glob("zeropoint-*.png"))) == 2
    assert any("ours: mean absolute error" in line for line in lines)


def test_a_single_night_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = _write(tmp_path / "night.csv", rng, {"one": ("g",)}, n_nights=1)
    with pytest.raises(InputError, match="no campaign with two nights"):
        evaluate_table(path)


@pytest.mark.slow
def test_real_exposures(tmp_path: Path) -> None:
    if not REAL_TABLE.is_file():
        pytest.skip(f"the table of real zero points is not here ({REAL_TABLE})")
    result = evaluate_table(REAL_TABLE, tmp_path, settings=TableSettings(row_split=False, transfer_nights=(3,)))
    decam, mosaic = (result["campaigns"][name] for name in ("decam_2014_16", "mosaic3_2015_16"))
    assert (decam["n_train"] + decam["n_test"], mosaic["n_train"] + mosaic["n_test"]) == (10_128, 6_480)
    # Baselines measured independently on the same table
    assert decam["methods"]["lut"]["all"]["rmse"] == pytest.approx(0.334, rel=0.02)
    assert decam["methods"]["previous"]["all"]["mae"] == pytest.approx(0.043, rel=0.05)
    assert mosaic["methods"]["previous"]["all"]["mae"] == pytest.approx(0.039, rel=0.03)
    assert decam["methods"]["trees"]["all"]["mae"] < 0.038
    for target in ("not_worse_than_trees", "gain_over_persistence"):
        assert result["targets"]["decam_2014_16"][target]["met"]
    assert all(one["met"] for one in result["targets"]["decam_2014_16"]["coverage"].values())
    assert result["targets"]["mosaic3_2015_16"]["mae_after_three_nights"]["met"]
