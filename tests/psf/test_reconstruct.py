"""The public function: what goes in, what comes out, and what it says to what cannot go in."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import csstdask
from csstdask.core.errors import InputError
from csstdask.metrics.psf import psf_errors, psf_pulls
from csstdask.psf.reconstruct import border_error


@pytest.fixture(scope="module")
def found(psf_stars, psf_model):
    stars = psf_stars
    detectors = np.full(len(stars), stars.detector)
    return csstdask.psf.reconstruct(
        stars.stamps, detectors, stars.x, stars.y, error=stars.error, mask=stars.mask, model=str(psf_model)
    )


def test_stars_of_a_telescope_outside_the_training_set(found, psf_stars):
    """The basis is learnt from twelve telescopes; the stars determine the rest."""
    errors = psf_errors(found.image, psf_stars.truth)
    assert found.image.shape == found.sigma.shape == (len(psf_stars), 64, 64)
    assert np.allclose(found.image.sum(axis=(1, 2)), 1, atol=1e-4)
    assert errors["psnr"].mean() > 58
    assert errors["ssim"].mean() > 0.999
    assert abs(errors["size"].mean()) < 0.005
    assert errors["e1"].std() < 0.01
    assert np.median(found.chi2) < 1.5
    assert found.used.mean() > 0.9
    assert 0.3 < psf_pulls(found.image, found.sigma, psf_stars.truth).std() < 4


def test_flux_and_sky_do_not_matter_and_inputs_are_not_changed(found, psf_stars, psf_model):
    stars = psf_stars
    detectors = np.full(len(stars), stars.detector)
    stamps, error = 0.01 * (stars.stamps + 500), 0.01 * stars.error
    before = stamps.copy()
    again = csstdask.psf.reconstruct(
        stamps, detectors, stars.x, stars.y, error=error, mask=stars.mask, model=str(psf_model)
    )
    assert np.array_equal(before, stamps)
    assert np.abs(again.image - found.image).max() < 1e-3 * found.image.max()


def test_stars_are_kept_in_order_and_detectors_apart(psf_stars, psf_model):
    """Two detectors of a band: each is fitted alone, whatever the order."""
    stars = psf_stars.take(slice(0, 12))
    detectors = np.array([7, 24] * 6)
    both = csstdask.psf.reconstruct(stars.stamps, detectors, stars.x, stars.y, error=stars.error, model=str(psf_model))
    of_one = stars.take(detectors == 24)
    alone = csstdask.psf.reconstruct(
        of_one.stamps, np.full(6, 24), of_one.x, of_one.y, error=of_one.error, model=str(psf_model)
    )
    assert np.allclose(both.image[detectors == 24], alone.image, atol=1e-7)
    assert set(both.fields) == {7, 24}
    image, sigma = both.fields[7](stars.x[:3], stars.y[:3])
    assert image.shape == sigma.shape == (3, 64, 64)


def test_tensors_are_returned_and_noise_is_estimated_from_the_edge(psf_stars, psf_model):
    stars = psf_stars.take(slice(0, 10))
    found = csstdask.psf.reconstruct(
        torch.from_numpy(stars.stamps), torch.full((10,), 7), stars.x, stars.y, model=str(psf_model)
    )
    assert isinstance(found.image, torch.Tensor)
    assert psf_errors(found.image.numpy(), stars.truth)["psnr"].mean() > 50


@pytest.mark.parametrize("way", ["masked", "NaN", "no error"])
def test_stamps_without_usable_pixels(psf_stars, psf_model, way):
    """They are not used, and their sigma is inf; the field can still be evaluated there."""
    stars = psf_stars.take(slice(0, 8))
    mask, stamps, error = stars.mask.copy(), stars.stamps.copy(), stars.error.copy()
    {"masked": mask, "NaN": stamps, "no error": error}[way][2:4] = {"masked": True, "NaN": np.nan, "no error": 0}[way]
    args = np.full(8, 7), stars.x, stars.y
    found = csstdask.psf.reconstruct(stamps, *args, error=error, mask=mask, model=str(psf_model))
    empty = np.isin(np.arange(8), [2, 3])
    assert np.isinf(found.sigma[empty]).all()
    assert np.isnan(found.image[empty]).all()
    assert np.isnan(found.chi2[empty]).all()
    assert not found.used[empty].any()
    assert np.isfinite(found.sigma[~empty]).all()
    assert np.isfinite(found.fields[7](stars.x[empty], stars.y[empty])[1]).all()
    expected = csstdask.psf.reconstruct(stamps, *args, error=error, mask=mask, model=str(psf_model), empty="expected")
    assert np.isfinite(expected.sigma).all()
    assert not expected.used[empty].any()
    assert np.allclose(expected.image[~empty], found.image[~empty])


@pytest.mark.parametrize("model", ["empirical", "principal", "psfnet"])
@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_only_empty_stamps(psf_model, model, value):
    """There is no field; stamps that are 0 everywhere have no noise, so none of their pixels is usable."""
    place = np.array([500.0, 700.0])
    card = str(psf_model) if model == "principal" else model
    found = csstdask.psf.reconstruct(np.full((2, 32, 32), value), [7, 7], place, place, model=card, shape=(1200, 1200))
    assert np.isinf(found.sigma).all()
    assert not found.used.any()
    assert found.fields == {}
    assert "inf" in repr(found)


def test_psf_of_a_single_star_raises_a_warning(psf_stars, psf_model, caplog):
    """Its sigma is wider than that of many stars, the result shows their number, and a warning is given."""
    args = {"error": psf_stars.error, "mask": psf_stars.mask}
    one = {name: plane[:1] for name, plane in args.items()}
    alone = csstdask.psf.reconstruct(
        psf_stars.stamps[:1], [7], psf_stars.x[:1], psf_stars.y[:1], model=str(psf_model), **one
    )
    assert "of detector 7 rests on 1 star" in caplog.text
    assert alone.n_stars == {7: 1}
    assert "n_stars {7: 1}" in repr(alone)
    caplog.clear()
    together = csstdask.psf.reconstruct(
        psf_stars.stamps, np.full(len(psf_stars.x), 7), psf_stars.x, psf_stars.y, model=str(psf_model), **args
    )
    assert "rests on" not in caplog.text
    assert together.n_stars[7] == together.used.sum() > 40
    assert together.fields[7].n_stars == together.n_stars[7]
    assert together.sigma[0].sum() < alone.sigma[0].sum()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stamps": np.zeros((2, 31, 32))}, r"stamps: found shape \(2, 31, 32\); wanted \(n, 32, 32\)"),
        ({"detector": np.array([7])}, r"detector: found shape \(1,\); wanted \(2,\)"),
        ({"detector": np.array([7, 99])}, "detector: found 99; wanted one of"),
        ({"detector": np.array([7, 7.5])}, "detector: found 7.5; wanted ids"),
        ({"y": np.array([1.0, 9300.0])}, "y: found 9300; wanted a position on the detector, 0 to 9231"),
        ({"stamps": np.zeros((32, 32))}, "data: found 2-D"),
        ({"x": np.array([1.0, np.nan])}, "x: found a value that is not finite"),
        ({"error": np.zeros((2, 3, 3))}, "error: found shape"),
        ({"mask": np.zeros((2, 3, 3), bool)}, "mask: found shape"),
    ],
)
def test_unusable_arguments_are_named(change, said, psf_model):
    given = {"stamps": np.zeros((2, 32, 32)), "detector": np.array([7, 7]), "x": np.ones(2), "y": np.ones(2)} | change
    with pytest.raises(ValueError, match=said):
        csstdask.psf.reconstruct(**given, model=str(psf_model))


def test_unknown_models_are_named(tmp_path):
    given = {"stamps": np.zeros((2, 32, 32)), "detector": np.array([7, 7]), "x": np.ones(2), "y": np.ones(2)}
    with pytest.raises(ValueError, match="model: found 'nonsense'"):
        csstdask.psf.reconstruct(**given, model="nonsense")
    with pytest.raises(InputError, match="no readable model card"):
        csstdask.psf.reconstruct(**given, model=str(tmp_path / "absent.json"))


@pytest.mark.parametrize("unit", [1e-18, 1e18])
def test_units_do_not_matter(psf_stars, psf_model, unit):
    stars = psf_stars.take(slice(0, 10))
    args = (np.full(10, 7), stars.x, stars.y)
    plain, other = (
        csstdask.psf.reconstruct(
            stars.stamps.astype(float) * scale, *args, error=stars.error.astype(float) * scale, mask=stars.mask,
            model=str(psf_model),
        )
        for scale in (1.0, unit)
    )  # fmt: skip
    assert np.abs(plain.image - other.image).max() < 1e-4 * plain.image.max()


def test_stamps_without_noise_need_no_error(psf_stars, psf_model):
    """Rounded to whole numbers, their edges have no scatter at all; one has no finite pixel."""
    stars = psf_stars.take(slice(0, 10))
    stamps = np.round(stars.stamps / 100) * 100
    stamps[9] = np.nan
    found = csstdask.psf.reconstruct(stamps, np.full(10, 7), stars.x, stars.y, model=str(psf_model))
    assert psf_errors(found.image, stars.truth)["psnr"][:9].mean() > 45
    assert np.isnan(found.chi2[9])
    assert not found.used[9]
    assert np.isfinite(found.sigma[:9]).all()
    assert np.isinf(found.sigma[9]).all()


def test_no_stars_are_no_error(psf_model):
    none = np.zeros(0)
    found = csstdask.psf.reconstruct(np.zeros((0, 32, 32)), none, none, none, model=str(psf_model))
    assert found.image.shape == (0, 64, 64)


def test_fit_does_not_import_torch():
    """It takes seconds to import, and only networks need it."""
    told = "import sys, csstdask; csstdask.psf.reconstruct; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0


def test_error_from_the_border_is_the_scatter_of_its_usable_pixels(rng):
    """A stamp without a usable pixel on its border has no known error; one without noise has a share of its light."""
    stamps = rng.normal(5.0, 2.0, (4, 32, 32))
    stamps[:, 10:22, 10:22] = 100.0
    stamps[1, :2] = np.nan
    stamps[2] = np.where(stamps[2] == 100.0, 100.0, np.nan)
    stamps[3] = np.where(stamps[3] == 100.0, 100.0, 0.0)
    error = border_error(stamps)
    assert error.shape == stamps.shape
    assert error[:2, 0, 0] == pytest.approx([2.0, 2.0], rel=0.25)
    assert error[2, 0, 0] == 0
    assert 0 < error[3, 0, 0] < 1
