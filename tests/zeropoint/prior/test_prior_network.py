"""The prior network: invariances, gaps, and its Gaussian process against that of scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from csstdask.core.errors import InputError
from csstdask.zeropoint.memory import build_memory
from csstdask.zeropoint.prior import (
    IMAGE_STATISTICS,
    TELEMETRY_NAMES,
    PriorArrays,
    PriorInputs,
    build_star_lists,
    concatenate_arrays,
    image_statistics,
    prior_arrays,
)
from csstdask.zeropoint.prior.azprc import AzpRc, normalise_patch, published_tensors
from csstdask.zeropoint.prior.build import build_network
from csstdask.zeropoint.prior.gaussian_process import predict_residual
from csstdask.zeropoint.prior.network import PriorNetwork, PriorTensors

K = 5


def some_stars(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    magnitude = rng.uniform(16, 21, n)
    return {
        "inst_mag": magnitude - 25.8 + rng.normal(0, 0.01, n), "inst_mag_err": np.full(n, 0.01),
        "ref_mag": magnitude, "ref_mag_err": np.full(n, 0.01), "color": rng.normal(0.8, 0.5, n),
        "x": rng.uniform(0, 9000, n), "y": rng.uniform(0, 9000, n),
    }  # fmt: skip


def some_inputs(n: int = 12, *, stars: bool = True, image: bool = True, seed: int = 4) -> PriorInputs:
    rng = np.random.default_rng(seed)
    days = np.sort(rng.uniform(9000, 9010, n))
    telemetry = {name: rng.uniform(1, 2, n) for name in TELEMETRY_NAMES}
    value = 25.8 + rng.normal(0, 0.02, n)
    memory = build_memory(days, value, np.full(n, 0.004), length=K)
    return PriorInputs(
        np.full(n, 25.8), days, telemetry, memory, {name: memory.lookup(column) for name, column in telemetry.items()},
        build_star_lists([some_stars(rng, 6) for _ in range(n)], shape=(9232, 9216)) if stars else None,
        rng.normal(0.2, 0.02, (n, 64, 64)).astype(np.float32) if image else None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def network() -> PriorNetwork:
    """A network whose weights are random everywhere, also where a new one begins with zeros."""
    torch.manual_seed(7)
    made = PriorNetwork(memory=K, members=2, width=12, latent=6)
    arrays = prior_arrays(some_inputs(200), TELEMETRY_NAMES, memory=K)
    made.normalise_by(arrays, np.random.default_rng(1).normal(0, 0.03, 200))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def predicted(network: PriorNetwork, arrays: PriorArrays) -> np.ndarray:
    with torch.inference_mode():
        return np.stack([one.double().numpy() for one in network.predict(PriorTensors.from_arrays(arrays))])


def test_order_of_stars_does_not_matter(network: PriorNetwork) -> None:
    rng = np.random.default_rng(2)
    table = some_stars(rng, 40)
    order = rng.permutation(40)
    shuffled = {name: column[order] for name, column in table.items()}
    inputs = some_inputs(1)
    found = [
        predicted(
            network,
            prior_arrays(replace(inputs, stars=build_star_lists([one], shape=(9232, 9216))), TELEMETRY_NAMES, memory=K),
        )
        for one in (table, shuffled)
    ]
    assert np.array_equal(found[0], found[1])


def test_stars_matter_but_not_their_level(network: PriorNetwork) -> None:
    """Adding 0.3 mag to every instrumental magnitude is another zero point: the prior must not follow it."""
    rng = np.random.default_rng(3)
    table = some_stars(rng, 20)
    brighter = table | {"inst_mag": table["inst_mag"] - 0.3}
    noisy = table | {"inst_mag": table["inst_mag"] + rng.normal(0, 0.05, 20)}
    inputs = some_inputs(1)
    base, moved, other = (
        predicted(network, prior_arrays(replace(inputs, stars=build_star_lists([one])), TELEMETRY_NAMES, memory=K))
        for one in (table, brighter, noisy)
    )
    assert np.allclose(base, moved, atol=2e-6)
    assert not np.allclose(base, other, atol=2e-6)


def test_star_level_network_reads_the_level() -> None:
    torch.manual_seed(8)
    seeing = PriorNetwork(memory=K, star_level=True, width=12, latent=6).eval()
    with torch.no_grad():
        for parameter in seeing.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    table = some_stars(np.random.default_rng(3), 20)
    brighter = table | {"inst_mag": table["inst_mag"] - 0.1}
    inputs = some_inputs(1)
    base, moved = (
        predicted(seeing, prior_arrays(replace(inputs, stars=build_star_lists([one])), TELEMETRY_NAMES, memory=K))
        for one in (table, brighter)
    )
    assert not np.allclose(base, moved, atol=1e-5)


def test_every_input_is_optional(network: PriorNetwork) -> None:
    arrays = prior_arrays(some_inputs(), TELEMETRY_NAMES, memory=K)
    n = len(arrays)
    for name in ("telemetry", "memory", "memory_telemetry", "stars", "image"):
        without = replace(arrays, **{name: np.full_like(getattr(arrays, name), np.nan)})
        if name == "stars":
            without = replace(without, n_stars=np.zeros(n, np.float32))
        found = predicted(network, without)
        assert np.isfinite(found).all(), name
        assert (found[1] > 0).all(), name
    gap = arrays.telemetry.copy()
    gap[:, 2] = np.nan
    assert np.isfinite(predicted(network, replace(arrays, telemetry=gap))).all()


def test_gap_is_filled_from_the_memory() -> None:
    """A missing value is a fraction of the older one, half before any training; a flag marks it."""
    network = PriorNetwork(("focus",), memory=2, stars=False, image=False)
    arrays = PriorArrays(
        np.array([[np.nan]], np.float32), np.zeros((1, 2, 3)), np.array([[[np.nan], [1.5]]], np.float32),
        np.zeros((1, 1, 7), np.float32), np.zeros(1, np.float32), np.zeros((1, len(IMAGE_STATISTICS)), np.float32),
        np.array([25.0], np.float32),
    )  # fmt: skip
    with torch.inference_mode():
        linear, found = network._conditions(PriorTensors.from_arrays(arrays))
    assert linear[0, :, 0].tolist() == [0.375, 0.75, 1.5]
    assert linear[0, 2].tolist() == [1.5, 1.5**2 / 2]
    value, change, known, there = found[0].T.tolist()
    assert value == [0.375, 0.75, 1.5]
    assert change == [-0.375, -0.75, 0.0]
    assert known == [0.0, 0.0, 1.0]
    assert there == [1.0, 1.0, 1.0]


def test_clock_does_not_enter(network: PriorNetwork) -> None:
    arrays = prior_arrays(some_inputs(), TELEMETRY_NAMES, memory=K)
    later = arrays.telemetry.copy()
    later[:, TELEMETRY_NAMES.index("days_since_launch")] += 1000
    assert np.allclose(predicted(network, arrays), predicted(network, replace(arrays, telemetry=later)))


def test_gaussian_process_equals_scikit_learn() -> None:
    """The prediction without outliers is that of scikit-learn's regression with the same kernel."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    rng = np.random.default_rng(5)
    age = np.sort(rng.uniform(0.1, 5, 6))
    value, noise = rng.normal(0, 0.1, 6), np.full(6, 0.3**2)
    mean, variance = predict_residual(
        *(torch.from_numpy(one)[None] for one in (value, noise, age)), torch.ones((1, 6), dtype=torch.bool),
        torch.tensor([0.5]), torch.tensor([2.0]),
    )  # fmt: skip
    kernel = ConstantKernel(0.5, "fixed") * Matern(2.0, "fixed", nu=0.5)
    twin = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(age[:, None], value)
    expected, sigma = twin.predict(np.zeros((1, 1)), return_std=True)
    assert float(mean) == pytest.approx(expected[0], abs=1e-6)
    assert float(variance) == pytest.approx(sigma[0] ** 2, abs=1e-6)


def test_gaussian_process_forgets_and_ignores_outliers() -> None:
    known = torch.ones((1, 5), dtype=torch.bool)
    power, time = torch.tensor([1.0]), torch.tensor([10.0])
    age = torch.linspace(0.1, 0.5, 5)[None].double()
    value, noise = torch.full((1, 5), 0.3, dtype=torch.float64), torch.full((1, 5), 1e-4, dtype=torch.float64)
    near, _ = predict_residual(value, noise, age, known, power, time)
    far, variance = predict_residual(value, noise, age + 1000, known, power, time)
    assert float(near) == pytest.approx(0.3, abs=0.02)
    assert float(far) == pytest.approx(0, abs=1e-9)
    assert float(variance) == pytest.approx(1, abs=1e-9)
    wrong = value.clone()
    wrong[0, 2] = -2.0
    robust, _ = predict_residual(wrong, noise, age, known, power, time)
    assert float(robust) == pytest.approx(0.3, abs=0.05)


def test_image_statistics_by_hand() -> None:
    rng = np.random.default_rng(6)
    sky = rng.normal(0.2, 0.01, (64, 64))
    found = dict(zip(IMAGE_STATISTICS, image_statistics(sky), strict=True))
    assert np.exp(found["mean"]) == pytest.approx(sky.mean(), rel=1e-4)
    assert np.exp(found["median"]) == pytest.approx(np.median(sky), rel=1e-4)
    assert np.exp(found["std"]) == pytest.approx(sky.std(), rel=1e-3)
    # White noise: |F|^2 / n has the mean sigma^2, |F| of a complex normal the mean sqrt(pi)/2 of it.
    assert np.exp(found["amplitude_3"]) == pytest.approx(0.01 * np.sqrt(np.pi) / 2, rel=0.1)
    y, x = np.mgrid[:64, :64]
    sharp, wide = (sky + 9 * np.exp(-((x - 30) ** 2 + (y - 31) ** 2) / 2 / s**2) / s**2 for s in (0.8, 1.6))
    place = IMAGE_STATISTICS.index("sharpness")
    assert image_statistics(sharp)[place] > image_statistics(wide)[place] + 0.1
    assert np.isnan(image_statistics(np.full((64, 64), np.nan))).all()


def test_star_lists_drop_sentinels_and_concatenate() -> None:
    table = some_stars(np.random.default_rng(1), 5)
    table["ref_mag"][:3] = [-9999.0, np.nan, 99.0]
    lists = build_star_lists([table, None, {}])
    assert lists.count.tolist() == [2, 0, 0]
    one, two = (prior_arrays(some_inputs(3, stars=stars), TELEMETRY_NAMES, memory=K) for stars in (True, False))
    both = concatenate_arrays([one, two])
    assert len(both) == 6
    assert both.stars.shape[1] == max(one.stars.shape[1], two.stars.shape[1])


def test_published_network_has_its_layers() -> None:
    network = AzpRc()
    shapes = {name: tuple(value.shape) for name, value in network.named_parameters()}
    assert shapes["image.0.weight"] == (64, 1, 3, 3)
    assert shapes["image.3.weight"] == (128, 64, 3, 3)
    assert shapes["image.7.weight"] == (64, 128)
    assert shapes["rnn.weight_hh_l0_reverse"] == (3 * 64, 64)
    assert [size for name, size in shapes.items() if name.startswith("head") and "weight" in name] == [
        (128, 64 + len(IMAGE_STATISTICS) + 128 + 32), (64, 128), (32, 64), (1, 32),
    ]  # fmt: skip


def test_published_network_without_stars_and_with_features() -> None:
    """No star gives a finite answer; features of a patch give the answer of the patch."""
    torch.manual_seed(2)
    network = AzpRc().eval()
    arrays = prior_arrays(some_inputs(3), network.telemetry, memory=0)
    stars = arrays.stars.copy()
    stars[1] = np.nan
    patches = np.stack([normalise_patch(one) for one in some_inputs(3).image])
    with torch.inference_mode():
        whole = network(published_tensors(network, patches, arrays.image, stars, arrays.telemetry))
        features = network.image(torch.from_numpy(patches)[:, None]).numpy()
        again = network(published_tensors(network, features, arrays.image, stars, arrays.telemetry))
    assert torch.isfinite(whole).all()
    assert torch.allclose(whole, again, atol=1e-6)


def test_unknown_kind_is_refused() -> None:
    assert isinstance(build_network("azprc"), AzpRc)
    with pytest.raises(InputError, match="'zeropoint' or 'azprc'"):
        build_network("hair")
