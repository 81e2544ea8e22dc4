"""Stars that do not look like the PSF of a model: another model takes its place, or its sigmas are widened."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import csstdask
from csstdask.cosmicray.straight_features import StraightFeatures
from csstdask.instrument import load_instrument
from csstdask.metrics.psf import psf_errors, psf_pulls
from csstdask.nn.models import find_card
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.steps import STEPS
from csstdask.psf.field_file import card_of, read_field, write_field
from csstdask.psf.misfit import MISFIT, stacked_misfit
from csstdask.store.unit_metadata import UnitMetadata

DETECTOR = 7


def moffat(dy, dx, fwhm=2.0, tail=0.25):
    """Light of a telescope that no model knows: an elongated Moffat profile with a companion, of unit sum."""
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / 3) - 1)

    def one(y, x):
        return (1 + (y**2 + (x / 1.3) ** 2) / alpha**2) ** -3.0

    light = one(dy, dx) + tail * one(dy - 2.5, dx - 1.5)
    return light / (np.pi * alpha**2 / 2 * 1.3 * (1 + tail))


@pytest.fixture(scope="module")
def foreign():
    """Stamps, errors, positions and true PSFs (64 x 64 half pixels) of 40 such stars."""
    rng = np.random.default_rng(4)
    x, y = rng.uniform(100, 1000, (2, 40))
    steps, half = np.arange(32) - 16.0, (np.arange(64) - 32) / 2
    off_x, off_y = (place - np.floor(place + 0.5) for place in (x, y))
    light = 2e5 * np.stack([moffat(steps[:, None] - b, steps - a) for a, b in zip(off_x, off_y, strict=True)])
    error = np.sqrt(light + 100)
    truth = moffat(half[:, None], half)
    stamps = rng.normal(light, error)
    return stamps.astype("f4"), error.astype("f4"), x, y, np.stack([truth / truth.sum()] * 40).astype("f4")


def test_noise_alone_is_no_misfit(psf_stars, psf_model, caplog):
    stars = psf_stars
    found = csstdask.psf.reconstruct(
        stars.stamps, np.full(len(stars.x), DETECTOR), stars.x, stars.y,
        error=stars.error, mask=stars.mask, model=str(psf_model),
    )  # fmt: skip
    assert 0.3 < found.fields[DETECTOR].misfit < MISFIT
    assert "look like" not in caplog.text
    variance = np.where(stars.mask, np.inf, stars.error**2).astype("f4")
    nothing = stacked_misfit(found.fields[DETECTOR], stars.stamps[:0], variance[:0], stars.x[:0], stars.y[:0])
    assert np.isnan(nothing)


@pytest.mark.parametrize("noise_known", [True, False])
def test_sigmas_are_widened_by_the_misfit(foreign, psf_model, caplog, noise_known):
    """A model selected by name is kept; its sigmas are multiplied by the square root of the misfit."""
    stamps, error, x, y, truth = foreign
    with caplog.at_level(logging.WARNING):
        found = csstdask.psf.reconstruct(
            stamps, np.full(40, DETECTOR), x, y, error=error if noise_known else None, model=str(psf_model)
        )
    field = found.fields[DETECTOR]
    assert field.misfit > MISFIT
    assert "do not look like the PSF" in caplog.text
    narrow = psf_pulls(found.image, found.sigma / np.sqrt(field.misfit), truth).std()
    assert psf_pulls(found.image, found.sigma, truth).std() == pytest.approx(narrow / np.sqrt(field.misfit), rel=1e-3)
    assert field.model == find_card("psf", str(psf_model)).name


def test_default_falls_back_to_the_empirical_model(foreign, caplog):
    stamps, error, x, y, truth = foreign
    given = stamps, np.full(40, DETECTOR), x, y
    with caplog.at_level(logging.WARNING):
        found = csstdask.psf.reconstruct(*given, error=error)
    assert found.fields[DETECTOR].model == "empirical"
    assert "learnt by empirical instead" in caplog.text
    assert "model empirical" in repr(found)
    kept = csstdask.psf.reconstruct(*given, error=error, model="principal")
    assert kept.fields[DETECTOR].model == "principal"
    assert psf_errors(found.image, truth)["psnr"].mean() > psf_errors(kept.image, truth)["psnr"].mean() + 3


def test_default_stays_where_it_fits(psf_stars, caplog):
    stars = psf_stars.take(slice(0, 20))
    found = csstdask.psf.reconstruct(
        stars.stamps, np.full(20, DETECTOR), stars.x, stars.y, error=stars.error, mask=stars.mask
    )
    assert found.fields[DETECTOR].model == "principal"
    assert found.fields[DETECTOR].misfit < MISFIT
    assert "look like" not in caplog.text


def test_a_stored_field_keeps_its_misfit(foreign, psf_model):
    stamps, error, x, y, _ = foreign
    for model in (str(psf_model), "empirical"):
        card = find_card("psf", model)
        found = csstdask.psf.reconstruct(
            stamps, np.full(40, DETECTOR), x, y, error=error, model=model, shape=(1200, 1200)
        )
        field = found.fields[DETECTOR]
        stored = write_field(field, card)
        again = read_field(stored, card)
        assert again.misfit == pytest.approx(field.misfit)
        assert (again.n_stars, again.model) == (40, card.name) == (field.n_stars, field.model)
        np.testing.assert_allclose(again(x, y)[1], field(x, y)[1], rtol=0.02, atol=1e-6)
        assert card_of(stored, [find_card("psf", "principal"), card]) is card
    with pytest.raises(csstdask.core.errors.InputError, match="run the step psf again"):
        card_of(stored, [find_card("psf", "principal")])


def test_the_step_falls_back_and_repair_follows(rng):
    """A frame that claims to be CSST's, with stars of another telescope: both steps use the same model."""
    shape = (420, 420)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    truth = np.full(shape, 100.0)
    for y, x in rng.uniform(20, 400, (45, 2)):
        window = np.hypot(rows - y, columns - x) < 20
        truth[window] += rng.uniform(3e4, 2e5) * moffat(rows[window] - y, columns[window] - x)
    data = rng.poisson(truth) + rng.normal(0, 5, shape)
    hit = rng.random(shape) < 0.01
    data[hit] += 2000
    planes = {
        "sci": data.astype("f4"),
        "wht": (1 / (np.maximum(data, 0) + 25)).astype("f4"),
        "flag": np.zeros(shape, "i4"),
    }
    metadata = UnitMetadata("e", DETECTOR, "imaging", "i", 1.0, np.datetime64("2026-01-01"), 1.0, 5.0, "")
    csst = load_instrument("csst")
    frame = Frame(metadata, csst, "electron", lambda name: planes[name].copy(), lambda name: planes[name])
    config = RunConfig.model_validate({"detect": {"model": "unet-fast"}})
    frame.add_results(STEPS["background"].body(frame, config).arrays)
    frame.add_results({"cr_mask": hit}, {"straight_features": StraightFeatures(hit.shape).table()})
    output = STEPS["psf"].body(frame, config)
    assert output.metrics["psf_misfit"] < 3
    assert card_of(output.files["psf_field"], [find_card("psf", "empirical")]).name == "empirical"
    frame.add_results(output.arrays, output.tables, output.files)
    by_psf = STEPS["repair"].body(frame, config).arrays["repair"]
    frame = Frame(metadata, csst, "electron", lambda name: planes[name].copy(), lambda name: planes[name])
    frame.add_results(STEPS["background"].body(frame, config).arrays)
    features = {"straight_features": StraightFeatures(hit.shape).table()}
    frame.add_results({"cr_mask": hit} | output.arrays, features | output.tables, output.files)
    without = RunConfig.model_validate({"detect": {"model": "unet-fast"}, "repair": {"psf": False}})
    plain = STEPS["repair"].body(frame, without)
    of_stars = hit & (by_psf != plain.arrays["repair"])
    errors = [np.sqrt(np.mean((one - truth)[of_stars] ** 2)) for one in (by_psf, plain.arrays["repair"])]
    assert of_stars.sum() > 20
    assert errors[0] < 0.5 * errors[1]
