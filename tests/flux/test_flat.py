"""The fit of sensitivity and flat."""

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest

import csstdask
from csstdask.core.errors import InputError
from csstdask.flux.flat import Flat
from csstdask.flux.flat_fit import fit_flat, flat_from_solution
from csstdask.flux.flat_solution import PASSES, FlatFlag, FlatSolution
from csstdask.flux.flat_sums import FlatSums, normal_equations
from csstdask.flux.ratios import StarRatios
from csstdask.flux.residual_histogram import bin_edges, histogram_quantile
from csstdask.flux.solve_flat import fit_ratios, solve_sums
from csstdask.numerics.polynomials import legendre_products

SHAPE = (1000, 1200)
TRUTH = np.array([1.0, 0.03, -0.02, 0.01, 0.005, -0.008])


def true_flat(x, y):
    return legendre_products(x, y, 2, SHAPE) @ TRUTH


def measured(rng, n=400, wave=40, sigma=0.02, sensitivity=1.0):
    x, y = rng.uniform(-0.5, SHAPE[1] - 0.5, n), rng.uniform(-0.5, SHAPE[0] - 0.5, n)
    ratio = true_flat(x, y)[:, None] * sensitivity + sigma * rng.normal(size=(n, wave))
    return x, y, np.linspace(4000, 6500, wave), ratio, np.full((n, wave), sigma**-2)


def made_ratios(rng, n=60, wave=12, rank=2, start=0, detector=2):
    x, y, grid, ratio, weight = measured(rng, n, wave)
    return StarRatios(
        grid, np.arange(start, start + n), *(np.repeat(one[:, None], wave, 1).astype(np.float32) for one in (x, y)),
        ratio.astype(np.float32), (1 / weight).astype(np.float32), np.full(ratio.shape, 1e-4, np.float32),
        np.full(n, 0.01, np.float32), (0.005 * rng.normal(size=(n, rank, wave))).astype(np.float32), SHAPE, detector,
    )  # fmt: skip


def plain(x, y, grid, ratio, variance, grey=0.0, modes=None):
    n, wave = ratio.shape
    spread = (np.repeat(one[:, None], wave, 1) for one in (x, y))
    modes = np.zeros((n, 0, wave)) if modes is None else modes
    return StarRatios(grid, np.arange(n), *spread, ratio, variance, 0 * ratio, np.full(n, grey), modes, SHAPE)


def test_exact_ratios_give_exact_flat_at_any_scale():
    rng = np.random.default_rng(0)
    x, y, grid, ratio, weight = measured(rng, sigma=1e-9)
    sensitivity = 1e15 * (1 + 0.3 * np.sin(grid / 500))
    flat = csstdask.flux.fit_flat(x, y, grid, ratio * sensitivity, weight / sensitivity**2, shape=SHAPE)
    np.testing.assert_allclose(flat.sensitivity, sensitivity, rtol=1e-8)
    expected = np.repeat(true_flat(x, y)[:9, None], 40, axis=1)
    np.testing.assert_allclose(flat.evaluate(x[:9, None], y[:9, None], grid), expected, rtol=1e-7)
    assert not flat.flags.any()


def test_detector_mean_is_1():
    flat = fit_flat(*measured(np.random.default_rng(1)), shape=SHAPE)
    node, weight = np.polynomial.legendre.leggauss(6)
    x, y = (node + 1) / 2 * SHAPE[1] - 0.5, (node + 1) / 2 * SHAPE[0] - 0.5
    values = flat.evaluate(x, y[:, None], flat.wavelength[:, None, None])
    np.testing.assert_allclose(np.einsum("wyx,y,x->w", values, weight / 2, weight / 2), 1, atol=1e-12)


def test_batched_fit_equals_least_squares_per_wavelength():
    """Without outliers, robust and plain least squares agree to a fraction of their error."""
    x, y, grid, ratio, weight = measured(np.random.default_rng(2), wave=20)
    flat = fit_flat(x, y, grid, ratio, weight, shape=SHAPE)
    terms = legendre_products(x, y, 2, SHAPE)
    plain = np.linalg.lstsq(terms, ratio, rcond=None)[0].T
    sigma = np.sqrt(np.diagonal(flat.covariance, 0, 1, 2))
    assert np.abs((flat.coefficients - plain) / sigma).max() < 1
    normal = np.linalg.inv(terms.T @ terms) * 0.02**2
    np.testing.assert_allclose(np.median(sigma, axis=0), np.sqrt(np.diag(normal)), rtol=0.05)


def test_formal_errors_match_scatter():
    """Pulls of 400 uniform stars have unit scatter; leverages at centre and corner are as expected."""
    rng = np.random.default_rng(3)
    points = {"centre": (599.5, 499.5), "corner": (1199.0, 999.0), "edge": (0.0, 499.5)}
    pulls = {name: [] for name in points}
    of_sensitivity, leverage = [], {name: [] for name in points}
    for _ in range(12):
        flat = fit_flat(*measured(rng, wave=100), shape=SHAPE)
        for name, (x, y) in points.items():
            error = flat.evaluate(x, y, flat.wavelength) - true_flat(x, y)
            pulls[name].append(error / np.sqrt(flat.variance(x, y, flat.wavelength)))
            terms = legendre_products(x, y, 2, SHAPE)
            leverage[name].append(np.sqrt(np.median(terms @ flat.covariance @ terms)) / 0.02)
        of_sensitivity.append((flat.sensitivity - 1) / np.sqrt(flat.sensitivity_variance))
    for values in (*pulls.values(), of_sensitivity):
        assert 0.93 < np.std(values) < 1.07
        assert abs(np.mean(values)) < 0.1
    assert np.mean(leverage["centre"]) == pytest.approx(0.094, rel=0.07)
    assert np.mean(leverage["corner"]) == pytest.approx(0.264, rel=0.07)
    assert np.mean(leverage["edge"]) == pytest.approx(0.162, rel=0.07)


def test_outliers_hardly_increase_scatter():
    rng = np.random.default_rng(4)
    x, y, grid, ratio, weight = measured(rng, wave=200)
    bad = rng.random(len(x)) < 0.05
    spoilt = ratio * np.where(bad, np.exp(rng.normal(0, 0.5, len(x))), 1)[:, None]
    expected = true_flat(1199.0, 999.0)
    scatter = [
        np.std(fit_flat(x, y, grid, one, weight, shape=SHAPE).evaluate(1199.0, 999.0, grid) - expected)
        for one in (ratio, spoilt)
    ]
    assert scatter[1] < 1.2 * scatter[0]


def test_ignored_samples_change_nothing():
    x, y, grid, ratio, weight = measured(np.random.default_rng(5), n=50)
    kept = fit_flat(x[:40], y[:40], grid, ratio[:40], weight[:40], shape=SHAPE)
    weight[40:44], ratio[44:47], weight[47:] = 0, np.nan, -1
    flat = fit_flat(x, y, grid, ratio, weight, shape=SHAPE)
    np.testing.assert_allclose(flat.coefficients, kept.coefficients, rtol=1e-12)
    assert set(flat.n_stars) == {40}


@pytest.mark.parametrize(("n", "degree"), [(0, -1), (1, 0), (5, 0), (6, 1), (8, 1), (9, 2)])
def test_few_stars_lower_the_degree_with_a_flag(n, degree):
    x, y, grid, ratio, weight = measured(np.random.default_rng(6), n=20, wave=3)
    weight[n:, 1] = 0
    flat = fit_flat(x, y, grid, ratio, weight, shape=SHAPE)
    assert flat.degree.tolist() == [2, degree, 2]
    assert bool(flat.flags[1] & FlatFlag.LOWER_DEGREE) == (degree < 2)
    assert bool(flat.flags[1] & FlatFlag.NO_STARS) == (n == 0)
    if n == 0:
        assert np.isnan(flat.sensitivity[1])
        assert flat.sensitivity_variance[1] == np.inf
        assert flat.evaluate(3.0, 4.0, grid[1]) == 1
        assert flat.variance(3.0, 4.0, grid[1]) == np.inf


def test_stars_on_a_line_lower_the_degree():
    x, _, grid, ratio, weight = measured(np.random.default_rng(7), n=30, wave=2)
    flat = fit_flat(x, np.full(30, 200.0), grid, ratio, weight, shape=SHAPE)
    assert flat.degree.tolist() == [0, 0]


def test_robust_weights_cannot_collapse():
    """Half of the stars agree exactly, the others do not; at least half, and p + 3, keep a weight."""
    rng = np.random.default_rng(8)
    for n in (9, 12, 40):
        x, y, grid, ratio, weight = measured(rng, n=n, wave=30, sigma=1e-6)
        ratio[: n // 2] *= rng.uniform(0.3, 3, (n // 2, 30))
        flat = fit_flat(x, y, grid, ratio, weight, shape=SHAPE)
        assert np.all(flat.n_kept >= max(9, n // 2))
        assert np.isfinite(flat.coefficients).all()


def test_underestimated_errors_are_scaled():
    x, y, grid, ratio, weight = measured(np.random.default_rng(9), wave=100)
    flat = fit_flat(x, y, grid, ratio, 16 * weight, shape=SHAPE)
    pull = (flat.evaluate(600.0, 500.0, grid) - true_flat(600.0, 500.0)) / np.sqrt(flat.variance(600.0, 500.0, grid))
    assert np.median(flat.scale) == pytest.approx(4, rel=0.05)
    assert 0.8 < np.std(pull) < 1.2


def test_sums_of_groups_give_the_same_flat():
    rng = np.random.default_rng(10)
    parts = [made_ratios(rng, start=60 * index) for index in range(4)]
    together = fit_ratios([StarRatios.concatenate(parts)])
    apart = fit_ratios(parts)
    np.testing.assert_allclose(apart.coefficients, together.coefficients, rtol=1e-12)
    # A star may occur in several groups; its shared errors are then estimated.
    diagonal = np.einsum("wkk->wk", apart.covariance) / np.einsum("wkk->wk", together.covariance)
    assert diagonal == pytest.approx(1, abs=0.25)
    variances = [np.einsum("iikk->ik", one.node_covariance) for one in (apart, together)]
    np.testing.assert_allclose(variances[0], diagonal[apart.nodes] * variances[1], rtol=1e-9)
    solution = None
    for _ in PASSES:  # as a distributed reduction does: bytes in between
        sums = [FlatSums.from_bytes(normal_equations(one, solution).to_bytes()) for one in parts]
        solution = FlatSolution.from_bytes(solve_sums(reduce(FlatSums.__add__, sums), solution).to_bytes())
    assert solution.finished
    assert solution.to_bytes() == apart.to_bytes()


@pytest.mark.parametrize("dither", [0.0, 60.0])
def test_errors_shared_by_images_of_a_star_do_not_average_out(dither):
    """In ten exposures of one field, errors of fluxes and SEDs are as large as in one."""
    n, exposures, grid = 60, 10, np.array([4000.0, 5000.0, 6000.0])
    pulls, covariances = [], []
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        x, y = rng.uniform(0, 1000, (2, n, 1))
        grey, mode = 0.02 * rng.standard_normal((n, 1)), np.array([[0.03, 0.01, -0.02]])
        error = grey + rng.standard_normal((n, 1)) * mode
        parts = []
        for _ in range(exposures):
            dx, dy = rng.uniform(-dither, dither, 2)
            noise = 0.003 * rng.standard_normal((n, 3))
            parts.append(
                StarRatios(
                    grid,
                    np.array([f"s{i}" for i in range(n)]),
                    np.broadcast_to(x + dx, (n, 3)),
                    np.broadcast_to(y + dy, (n, 3)),
                    1 + error + noise,
                    np.full((n, 3), 0.003**2),
                    np.zeros((n, 3)),
                    np.full(n, 0.02),
                    np.broadcast_to(mode[None], (n, 1, 3)),
                    (1000, 1000),
                )
            )
        flat = flat_from_solution(fit_ratios(parts), grid, (1000, 1000))
        places = np.array([[200.0], [900.0], [500.0]]), np.array([[300.0], [900.0], [500.0]])
        pulls.append((flat.evaluate(*places, grid) - 1) / np.sqrt(flat.variance(*places, grid)))
        covariances.append(flat.covariance_between(200.0, 300.0))
    assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1, abs=0.12)
    found = np.mean(covariances, axis=0)
    correlation = found[0, 2] / np.sqrt(found[0, 0] * found[2, 2])
    expected = (0.02**2 - 0.03 * 0.02) / np.sqrt((0.02**2 + 0.03**2) * (0.02**2 + 0.02**2))
    assert correlation == pytest.approx(expected, abs=0.1)


def test_fit_flat_equals_fit_ratios():
    x, y, grid, ratio, weight = measured(np.random.default_rng(11), wave=12)
    found = fit_flat(x, y, grid, ratio, weight, shape=SHAPE)
    np.testing.assert_allclose(
        found.coefficients, fit_ratios([plain(x, y, grid, ratio, 1 / weight)]).coefficients, atol=1e-4
    )
    unit = np.median(ratio, axis=0)  # fit_flat measures ratios in these
    scaled = fit_ratios([plain(x, y, grid, ratio / unit, 1 / weight / unit**2)])
    np.testing.assert_allclose(found.coefficients, scaled.coefficients * unit[:, None], rtol=1e-12)


def test_prediction_errors_propagate_with_covariance():
    """Grey errors and modes: pulls at a wavelength, and the covariance between wavelengths."""
    rng = np.random.default_rng(12)
    grey, size, n, wave = 0.02, 0.015, 200, 10
    mode = np.sin(np.arange(wave) / 2)
    solutions = []
    for _ in range(150):
        x, y, grid, ratio, weight = measured(rng, n, wave, sigma=0.01)
        ratio = ratio * (1 + grey * rng.normal(size=(n, 1)) + size * rng.normal(size=(n, 1)) * mode)
        ratios = plain(x, y, grid, ratio, 1 / weight, grey, np.broadcast_to(size * mode, (n, 1, wave)))
        solutions.append(flat_from_solution(fit_ratios([ratios]), grid, SHAPE))
    values = np.array([one.evaluate(1100.0, 100.0, grid) for one in solutions]) - true_flat(1100.0, 100.0)
    variances = np.array([one.variance(1100.0, 100.0, grid) for one in solutions])
    assert np.std(values / np.sqrt(variances)) == pytest.approx(1, abs=0.1)
    expected = np.mean([one.covariance_between(1100.0, 100.0) for one in solutions], axis=0)
    found = values.T @ values / len(values)
    np.testing.assert_allclose(np.diag(expected), variances.mean(axis=0), rtol=1e-6)
    correlation = [c / np.sqrt(np.outer(np.diag(c), np.diag(c))) for c in (expected, found)]
    assert np.abs(correlation[0] - correlation[1]).max() < 0.15
    assert correlation[0][0, -1] > 0.3


def test_bias_common_to_all_stars_affects_only_sensitivity():
    x, y, grid, ratio, weight = measured(np.random.default_rng(13))
    bias = 1 + 0.1 * np.sin(grid / 300)
    plain, biased = (fit_flat(x, y, grid, ratio * b, weight / b**2, shape=SHAPE) for b in (np.ones(40), bias))
    np.testing.assert_allclose(biased.evaluate(50.0, 900.0, grid), plain.evaluate(50.0, 900.0, grid), rtol=1e-9)
    np.testing.assert_allclose(biased.sensitivity, plain.sensitivity * bias, rtol=1e-9)
    solution = fit_ratios([made_ratios(np.random.default_rng(14))])
    without, with_bias = (flat_from_solution(solution, np.arange(12.0), SHAPE, common_variance=v) for v in (0, 1e-2))
    assert np.all(with_bias.sensitivity_variance > without.sensitivity_variance + 0.009)
    np.testing.assert_array_equal(with_bias.variance(1.0, 2.0, 3.0), without.variance(1.0, 2.0, 3.0))


def test_out_of_range_is_1_and_flagged():
    flat = fit_flat(*measured(np.random.default_rng(15)), shape=SHAPE)
    wave = flat.wavelength
    assert flat.evaluate(5.0, 5.0, wave[0] - 1) == 1
    assert flat.flag(5.0, 5.0, wave[-1] + 1) == FlatFlag.OUTSIDE_WAVELENGTH
    assert flat.variance(5.0, 5.0, wave[-1] + 1) == np.inf
    assert flat.evaluate(-0.6, 5.0, wave[0]) == 1
    assert flat.flag(5.0, SHAPE[0] - 0.4, wave[0]) == FlatFlag.OUTSIDE_FRAME
    assert flat.flag([-0.5, SHAPE[1] - 0.5], 0.0, wave[[0, -1]]).tolist() == [0, 0]
    assert flat.evaluate(np.nan, 5.0, wave[0]) == 1


def test_intermediate_wavelengths_are_interpolated():
    flat = fit_flat(*measured(np.random.default_rng(16)), shape=SHAPE)
    low, high = flat.wavelength[3:5]
    values = flat.evaluate(100.0, 200.0, [low, high, 0.75 * low + 0.25 * high])
    assert values[2] == pytest.approx(0.75 * values[0] + 0.25 * values[1], abs=1e-12)


def test_apply_propagates_errors():
    flat = fit_flat(*measured(np.random.default_rng(17)), shape=SHAPE)
    counts, variance = np.array([100.0, 100.0]), np.array([4.0, 4.0])
    wave = np.array([flat.wavelength[5], 1.0])
    found = flat.apply(counts, 30.0, 40.0, wave, variance, small_scale=2.0)
    value = flat.evaluate(30.0, 40.0, wave[0])
    assert found.counts.tolist() == pytest.approx([50 / value, 50])
    expected = 1 / value**2 + (50 / value**2) ** 2 * flat.variance(30.0, 40.0, wave[0])
    assert found.variance.tolist() == pytest.approx([expected, np.inf])
    assert found.flag.tolist() == [0, FlatFlag.OUTSIDE_WAVELENGTH]


def test_lazy_array_equals_evaluate():
    flat = fit_flat(*measured(np.random.default_rng(18)), shape=SHAPE)
    array = flat.to_dataarray(detector=7, chunks=(16, 256, 512))
    assert array.shape == (40, *SHAPE)
    assert array.dims == ("wavelength", "y", "x")
    assert int(array.detector) == 7
    some = array[3:20, 250:260, 500:520]
    expected = flat.evaluate(np.arange(500.0, 520), np.arange(250.0, 260)[:, None], flat.wavelength[3:20, None, None])
    np.testing.assert_allclose(some.values, expected, rtol=1e-6)
    whole = fit_flat(*measured(np.random.default_rng(18))).to_dataarray()  # 9232 x 9216: nothing is computed
    assert whole.nbytes > 1e10


def test_files_round_trip():
    rng = np.random.default_rng(19)
    ratios = made_ratios(rng)
    flat = flat_from_solution(fit_ratios([ratios]), ratios.wavelength, SHAPE, detector=2)
    assert Flat.from_bytes(flat.to_bytes()).to_bytes() == flat.to_bytes()
    again = StarRatios.from_bytes(ratios.to_bytes())
    assert again.to_bytes() == ratios.to_bytes()
    assert (again.detector, again.shape, len(again)) == (2, SHAPE, 60)
    named = replace(ratios, star=np.array([f"s{index}" for index in range(60)]))
    assert StarRatios.from_bytes(named.to_bytes()).star[3] == "s3"


@pytest.mark.parametrize(
    "spoil", [lambda b: b[: len(b) // 2], lambda b: b[:4], lambda _: b"no safetensors at all", lambda _: b""]
)
def test_damaged_files_raise(spoil):
    data = spoil(made_ratios(np.random.default_rng(20)).to_bytes())
    with pytest.raises(InputError, match=r"unit7\.safetensors.*incomplete or foreign.*run the units"):
        StarRatios.from_bytes(data, "unit7.safetensors")


def test_file_of_another_kind_raises():
    rng = np.random.default_rng(21)
    sums = normal_equations(made_ratios(rng))
    with pytest.raises(InputError, match="found flat sums"):
        StarRatios.from_bytes(sums.to_bytes())


def test_mismatched_inputs_raise():
    rng = np.random.default_rng(22)
    x, y, grid, ratio, weight = measured(rng, n=20, wave=5)
    for arguments, name in (
        ((x, y, grid[:4], ratio, weight), "ratio"),
        ((x[:5], y, grid, ratio, weight), "x"),
        ((x, y, grid, ratio, weight[:, :3]), "weight"),
        ((x, y, grid[::-1], ratio, weight), "wavelength"),
    ):
        with pytest.raises(InputError, match=name):
            fit_flat(*arguments, shape=SHAPE)
    with pytest.raises(InputError, match="degree"):
        fit_flat(x, y, grid, ratio, weight, degree=-1, shape=SHAPE)
    parts = [made_ratios(rng), made_ratios(rng, detector=3)]
    with pytest.raises(InputError, match="detector 3"):
        StarRatios.concatenate(parts)
    with pytest.raises(InputError, match="wavelength grid"):
        StarRatios.concatenate([made_ratios(rng), made_ratios(rng, wave=13)])
    flat = flat_from_solution(fit_ratios(parts[:1]), grid, SHAPE, detector=2)
    with pytest.raises(InputError, match="the flat of detector 4"):
        flat.check(detector=4)
    with pytest.raises(InputError, match="shape"):
        flat.check(shape=(1000, 1000))
    flat.check(detector=2, shape=SHAPE)


def test_quantiles_of_histograms():
    values = np.abs(np.random.default_rng(23).normal(size=5000))
    counts = np.histogram(values, bin_edges())[0]
    assert histogram_quantile(counts, np.array(2500.0)) == pytest.approx(np.median(values), rel=0.01)


def test_plot():
    figure = fit_flat(*measured(np.random.default_rng(24)), shape=SHAPE).plot()
    assert len(figure.axes) >= 6
    import matplotlib.pyplot as plt

    plt.close(figure)


def test_repr_is_one_line():
    assert "degree 2, 400 stars" in repr(fit_flat(*measured(np.random.default_rng(25)), shape=SHAPE))
