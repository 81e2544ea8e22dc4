"""One spectrum of a rectified stamp."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf

import csstdask
from csstdask.core.errors import InputError
from csstdask.flux.spectrum_flag import SpectrumFlag

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "slitless" / "gd153_g141.npz"
HEIGHT, WIDTH = 24, 200
ROWS = np.arange(HEIGHT)[:, None]


def extract(*arguments, **options):
    return csstdask.flux.extract_spectrum(*arguments, **options)


def scene(tilt=0.0, level=30.0, flux=2000.0):
    """Return pixels, background, the row of the trace, and the counts within 4.5 pixels of it."""
    center = 11.3 + tilt * np.linspace(-1, 1, WIDTH)
    profile = sum(
        share * 0.5 * (erf((ROWS + 0.5 - center) / width / 2**0.5) - erf((ROWS - 0.5 - center) / width / 2**0.5))
        for share, width in ((0.9, 1.0), (0.1, 2.0))
    )
    light = flux * (1 + 0.5 * np.sin(np.arange(WIDTH) / 20)) * profile
    overlap = np.minimum(ROWS + 0.5, center + 4.5) - np.maximum(ROWS - 0.5, center - 4.5)
    within = (np.clip(overlap, 0, 1) * light).sum(axis=0)
    return light, level + 0.5 * (ROWS - center) * np.ones(WIDTH), center, within


def observed(rng, light, background):
    data = rng.poisson(light + background) + rng.normal(0, 5, light.shape)
    return data, np.sqrt(np.maximum(data, 0) + 25)


@pytest.mark.parametrize("method", ["box", "optimal"])
@pytest.mark.parametrize("tilt", [0.0, 1.5])
def test_counts_within_half_width_are_exact_without_noise(method, tilt):
    light, background, center, within = scene(tilt)
    found = extract(light + background, np.sqrt(light + 55), center=center, method=method)
    np.testing.assert_allclose(found.counts, within, rtol=2e-3)
    np.testing.assert_allclose(found.background, 30, atol=0.4)
    assert not found.flag.any()
    alone = extract(light, np.sqrt(light + 55), center=center, method=method, background=False)
    np.testing.assert_allclose(alone.counts, within, rtol=1e-12 if method == "box" else 2e-3)
    assert not alone.background.any()


def test_box_has_fractional_edges():
    stamp = np.ones((11, 6))
    assert extract(stamp, stamp, center=5.0, method="box", half_width=1.2, background=False).counts[0] == pytest.approx(
        2.4
    )
    assert extract(stamp, stamp, center=5.25, method="box", half_width=2.0, background=False).counts[
        0
    ] == pytest.approx(4)


@pytest.mark.parametrize("method", ["box", "optimal"])
@pytest.mark.parametrize("tilt", [0.0, 1.5])
def test_errors_match_scatter(method, tilt):
    rng = np.random.default_rng(1)
    light, background, center, within = scene(tilt)
    for known in (True, False):
        pulls = []
        for _ in range(12):
            data, error = observed(rng, light, background)
            found = extract(data, error if known else None, center=center, method=method)
            pulls.append((found.counts - within) / found.sigma)
        assert 0.9 < np.std(pulls) < 1.1
        assert abs(np.mean(pulls)) < 0.1


def test_optimal_is_more_precise_than_box_on_faint_spectra():
    rng = np.random.default_rng(2)
    light, background, center, within = scene(flux=150.0)
    scatter = {"box": [], "optimal": []}
    for _ in range(12):
        data, error = observed(rng, light, background)
        for method, errors in scatter.items():
            errors.append(extract(data, error, center=center, method=method).counts - within)
    assert np.std(scatter["optimal"]) < 0.9 * np.std(scatter["box"])
    assert abs(np.mean(scatter["optimal"])) < 0.1 * np.std(scatter["optimal"])


@pytest.mark.parametrize("method", ["box", "optimal"])
def test_cosmic_rays_and_masked_pixels_are_ignored(method):
    rng = np.random.default_rng(3)
    light, background, center, within = scene()
    hit = np.zeros(light.shape, dtype=bool)
    hit[rng.integers(7, 16, 40), rng.choice(WIDTH, 40, replace=False)] = True
    masked = np.zeros(light.shape, dtype=bool)
    masked[rng.integers(7, 16, 30), rng.choice(WIDTH, 30, replace=False)] = True
    data, error = observed(rng, light, background)
    data = data + hit * rng.uniform(500, 5000, light.shape)
    data[masked & (rng.random(light.shape) < 0.5)] = np.nan
    data[masked & np.isfinite(data)] = 1e6
    found = extract(data, error, masked, center=center, method=method)
    pulls = (found.counts - within) / found.sigma
    assert np.abs(pulls).max() < 6
    assert np.std(pulls) < 1.15
    rejected = (found.flag & SpectrumFlag.REJECTED) > 0
    assert np.mean(rejected[hit.any(axis=0) & ~masked.any(axis=0)]) > 0.95
    assert np.mean(rejected[~hit.any(axis=0)]) < 0.03


def test_columns_without_usable_pixels_are_flagged():
    light, background, center, _ = scene()
    masked = np.zeros(light.shape, dtype=bool)
    masked[:, 50] = True
    masked[10:13, 60] = True
    found = extract(light + background, np.sqrt(light + 55), masked, center=center)
    assert found.flag[50] & SpectrumFlag.NO_DATA
    assert np.isnan(found.counts[50])
    assert found.sigma[50] == np.inf
    assert found.flag[60] & SpectrumFlag.PARTIAL
    covered = extract(light, np.sqrt(light + 55), center=center, half_width=30.0)
    assert np.all(covered.flag & SpectrumFlag.NO_BACKGROUND)


def test_negative_counts_are_kept_and_flagged():
    light, background, center, within = scene()
    found = extract(background - light, np.sqrt(light + 55), center=center, method="box")
    np.testing.assert_allclose(found.counts, -within, rtol=5e-3)
    assert np.all(found.flag & SpectrumFlag.NEGATIVE)


def test_result_has_the_kind_of_array_of_the_input():
    light, background, center, _ = scene()
    error = np.sqrt(light + 55)
    expected = extract(light + background, error, center=center)
    tensor = extract(torch.tensor(light + background), torch.tensor(error), center=torch.tensor(center))
    assert isinstance(tensor.counts, torch.Tensor)
    np.testing.assert_allclose(tensor.counts.numpy(), expected.counts, rtol=1e-6)
    swapped = (light + background).astype(">f4")
    given = swapped.copy()
    assert extract(swapped, error, center=center).counts.dtype == np.float32
    np.testing.assert_array_equal(swapped, given)
    masked = np.ma.masked_array(light + background, mask=False)
    masked[:, 4] = np.ma.masked
    assert np.isnan(extract(masked, error, center=center).counts[4])


def test_unusable_inputs_raise():
    stamp = np.ones((9, 20))
    for options, name in (
        ({"center": 4.0, "method": "sum"}, "method"),
        ({"center": 4.0, "half_width": 0}, "half_width"),
        ({"center": np.ones(3)}, "center"),
        ({"center": np.nan}, "center"),
        ({"center": 40.0}, "center"),
    ):
        with pytest.raises(InputError, match=name):
            extract(stamp, stamp, **options)
    with pytest.raises(ValueError, match="shape"):
        extract(stamp, np.ones((3, 3)), center=4.0)
    with pytest.raises(ValueError, match="one frame"):
        extract(np.ones(5), center=0.0)


@pytest.mark.skipif(not REAL.is_file(), reason="needs the flux standard of ../shared/data/slitless")
def test_flux_standard_agrees_with_axe(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).resolve().parents[2] / "benchmarks"), *sys.path])
    import flux as benchmark

    found = benchmark.closure(REAL.parent)
    assert found["pixel_table"]["counts_over_axe"] == pytest.approx(1, abs=0.005)
    assert found["pixel_table"]["robust_sd_per_bin"] < 0.002
    box, optimal = (found["stamps"][f"{name}, background not fitted"] for name in ("box", "optimal"))
    assert np.all(np.abs(np.array(box["counts_over_axe"]) - 1) < 0.025)
    assert box["robust_sd_per_bin_of_axe"][1] < 0.01
    assert box["grey_sd"] < 0.008
    assert box["robust_sd_per_bin"] < 0.012
    assert optimal["robust_sd_per_bin"] <= 1.02 * box["robust_sd_per_bin"]
