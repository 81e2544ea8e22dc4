"""Priors of zero points: the network, borrowed and nominal values, causality, combination with stars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.zeropoint.memory import build_memory
from csstdask.zeropoint.prior import (
    NOMINAL_SIGMA,
    TELEMETRY_NAMES,
    PriorInputs,
    fallback_prior,
    predict_from_memory,
    predict_prior,
)

TYPICAL = {
    "detector_temperature": 188.0, "focus": 1.0, "jitter": 0.033, "earth_limb_angle": 60.0, "sun_angle": 95.0,
    "background": 0.2, "days_since_launch": 300.0, "contamination": 20.0,
}  # fmt: skip


def inputs_of(n: int, value: np.ndarray | None = None, *, telemetry: bool = True, last: int = 8) -> PriorInputs:
    days = 9800 + np.arange(n) * 0.1
    solved = np.full(n, 25.80) if value is None else value
    memory = build_memory(days, solved, np.full(n, 0.004), length=last)
    known = {name: np.full(n, number) for name, number in TYPICAL.items()} if telemetry else {}
    return PriorInputs(
        np.full(n, 25.85), days, known, memory, {name: memory.lookup(column) for name, column in known.items()}
    )


def test_prior_follows_the_memory() -> None:
    prior = predict_prior(inputs_of(30))
    assert set(prior.method) == {"prior"}
    assert prior.value[-1] == pytest.approx(25.80, abs=0.01)
    assert prior.sigma[-1] < 0.01 < prior.sigma[0]
    fainter = predict_prior(inputs_of(30, np.full(30, 25.75)))
    assert fainter.value[-1] == pytest.approx(25.75, abs=0.01)


def test_very_old_memory_is_ignored() -> None:
    one = inputs_of(30).take(slice(29, 30))
    assert one.memory is not None
    aged = replace(one, memory=replace(one.memory, age=one.memory.age + 40_000.0))
    never = replace(one, memory=None, memory_telemetry=None)
    old, none = predict_prior(aged), predict_prior(never)
    assert old.value[0] == pytest.approx(none.value[0], abs=0.02)
    assert old.sigma[0] > 2 * predict_prior(one).sigma[0]


def test_priors_do_not_depend_on_later_exposures() -> None:
    rng = np.random.default_rng(1)
    value = 25.8 + rng.normal(0, 0.01, 40)
    before = predict_prior(inputs_of(40, value))
    changed = value.copy()
    changed[25:] += 0.5
    after = predict_prior(inputs_of(40, changed))
    assert np.array_equal(before.value[:26], after.value[:26])
    assert np.array_equal(before.sigma[:26], after.sigma[:26])
    assert abs(before.value[-1] - after.value[-1]) > 0.1


def test_batches_do_not_matter() -> None:
    inputs = inputs_of(20)
    whole = predict_prior(inputs)
    single = predict_prior(inputs.take(slice(11, 12)))
    assert single.value[0] == pytest.approx(whole.value[11], abs=1e-6)
    assert single.sigma[0] == pytest.approx(whole.sigma[11], rel=1e-4)


def test_gaps_and_unknown_columns() -> None:
    inputs = inputs_of(20)
    some = {name: column.copy() for name, column in inputs.telemetry.items()}
    some["focus"][:] = np.nan
    del some["sun_angle"]
    some["colour of the sky"] = np.ones(20)
    prior = predict_prior(replace(inputs, telemetry=some))
    assert np.isfinite(prior.value).all()
    assert set(prior.method) == {"prior"}


def test_methods_without_inputs() -> None:
    """Nothing but memory: borrowed. Not even that: nominal. Without a nominal value: NaN and inf."""
    inputs = inputs_of(3, telemetry=False)
    prior = predict_prior(inputs)
    assert prior.method.tolist() == ["nominal", "borrowed", "borrowed"]
    assert prior.value[0] == 25.85
    assert prior.sigma[0] == NOMINAL_SIGMA
    unknown = predict_prior(replace(inputs, nominal=np.full(3, np.nan), memory=None, memory_telemetry=None))
    assert np.isnan(unknown.value).all()
    assert np.isinf(unknown.sigma).all()
    assert set(unknown.method) == {"nominal"}


def test_borrowed_error_grows_with_age() -> None:
    ages = np.array([0.01, 1.0, 30.0, 1000.0, 1e6])
    memory = build_memory([0.0], [26.0], [0.003], at=ages)
    value, sigma = predict_from_memory(memory, np.full(5, 25.0))
    assert (np.diff(sigma) > 0).all()
    assert value[0] == pytest.approx(26.0, abs=0.01)
    assert value[-1] == pytest.approx(25.0, abs=0.01)
    assert sigma[-1] == pytest.approx(NOMINAL_SIGMA, rel=0.01)
    alone, _ = predict_from_memory(memory, np.full(5, np.nan))
    assert alone == pytest.approx(26.0, abs=1e-3)


def test_borrowed_value_is_an_inverse_variance_mean() -> None:
    """Two measurements at the same age: their mean, by inverse variance."""
    memory = build_memory([0.0, 1e-9], [25.0, 25.1], [0.02, 0.02], at=[1e-6])
    value, _ = predict_from_memory(memory, [np.nan])
    assert value[0] == pytest.approx(25.05, abs=1e-4)


def test_networks_that_read_the_level_of_stars_are_refused() -> None:
    with pytest.raises(InputError, match="model azprc: found a network that reads the level of the stars"):
        predict_prior(inputs_of(3), model="azprc")


@pytest.mark.parametrize(
    "telemetry", [{"focsu": 1.0}, {"days_since_launch": 300.0}, {"focus": -9999.0}, {"detector_temperature": 208.0}]
)
def test_network_is_not_used_without_telemetry_values(telemetry: dict[str, float]) -> None:
    inputs = PriorInputs(
        np.array([25.85]), np.array([9800.0]), {name: np.array([one]) for name, one in telemetry.items()}
    )
    assert predict_prior(inputs).method.tolist() == ["nominal"]


def test_network_is_not_used_with_an_unusable_image() -> None:
    for image in (np.full((1, 64, 64), np.nan), np.zeros((1, 5, 5))):
        assert predict_prior(PriorInputs(np.array([25.85]), np.array([9800.0]), {}, image=image)).method[0] == "nominal"


def test_no_exposures() -> None:
    empty = PriorInputs(np.zeros(0), np.zeros(0), {name: np.zeros(0) for name in TELEMETRY_NAMES})
    assert len(predict_prior(empty)) == 0
    assert len(fallback_prior(empty)) == 0


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match="model: found 'hair'"):
        predict_prior(inputs_of(2), model="hair")
    with pytest.raises(InputError):
        predict_prior(inputs_of(2), model="absent.json")
