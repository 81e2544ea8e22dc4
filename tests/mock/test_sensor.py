"""The detector: photon transfer, charge that is conserved, defects that grow, trails that point the right way."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.mock.level_1 import calibrate, estimate_calibration
from csstdask.mock.recipe_tables import Sensor
from csstdask.mock.sensor import (
    apply_blooming,
    apply_cti,
    brighter_fatter,
    build_ccd,
    count_photons,
    digitise,
    fringes,
    read_noise_frame,
)

PLAIN = Sensor(
    **dict.fromkeys(("hot_fraction", "hot_growth", "warm_fraction", "bad_fraction", "prnu", "vignetting"), 0.0),
    **dict.fromkeys(("bias_structure", "brighter_fatter", "non_linearity", "cti"), 0.0),
    channels=False,
    bad_columns=0,
)
GAIN, READ_NOISE, FULL_WELL = 1.1, 5.0, 90_000.0


def ccd_of(settings: Sensor, shape=(256, 256), epoch=0.0):
    return build_ccd(settings, 8, shape, epoch, gain=GAIN, bias_level=500.0)


def flat_field(rng, settings: Sensor, level: float, shape=(512, 512)) -> np.ndarray:
    """Return a raw flat field of `level` e- a pixel [adu], through the whole read-out."""
    ccd = ccd_of(settings, shape)
    charge = brighter_fatter(count_photons(rng, np.full(shape, level, np.float32)), settings.brighter_fatter)
    noise = read_noise_frame(rng, settings, shape, READ_NOISE)
    return digitise(apply_cti(charge, ccd.cti), ccd, settings, noise, FULL_WELL) - ccd.bias


@pytest.mark.parametrize("level", [50.0, 2000.0, 30_000.0])
def test_photon_transfer(rng, level):
    """Variance = mean / gain + (read noise / gain)^2 + 1/12, in adu."""
    raw = flat_field(rng, PLAIN, level)
    wanted = level / GAIN**2 + (READ_NOISE / GAIN) ** 2 + 1 / 12
    assert raw.mean() == pytest.approx(level / GAIN, rel=2e-3)
    assert raw.var() == pytest.approx(wanted, rel=0.015)


def test_brighter_fatter_bends_the_photon_transfer_curve_and_conserves_charge(rng):
    """Each of four edges takes a share of the fluctuation: variance falls by 1 - 8 a Q to first order."""
    strength, level = 1.5e-7, 40_000.0
    charge = count_photons(rng, np.full((512, 512), level, np.float32)).astype(np.float32)
    moved = brighter_fatter(charge, strength)
    assert moved.sum(dtype=float) == pytest.approx(charge.sum(dtype=float), rel=1e-6)
    assert moved.var() / charge.var() == pytest.approx(1 - 8 * strength * level, abs=0.01)
    neighbours = np.corrcoef(moved[:, 1:].ravel(), moved[:, :-1].ravel())[0, 1]
    assert neighbours == pytest.approx(2 * strength * level, abs=0.004)
    star = np.zeros((21, 21), np.float32)
    star[10, 10], star[10, 9], star[9, 10], star[10, 11], star[11, 10] = 50_000, 2e4, 2e4, 2e4, 2e4
    assert brighter_fatter(star, strength)[10, 10] < star[10, 10]


def test_bleeding_conserves_charge_and_fills_columns_to_full_well():
    charge = np.full((300, 20), 100, np.float32)
    charge[150:153, 7] = 400_000
    total = charge.sum(dtype=float)
    full = apply_blooming(charge, FULL_WELL)
    assert charge.sum(dtype=float) == pytest.approx(total, rel=1e-6)
    assert charge.max() <= FULL_WELL
    rows = np.flatnonzero(full[:, 7])
    assert len(rows) == pytest.approx(1_200_000 / FULL_WELL, abs=2)
    assert (rows == np.arange(rows[0], rows[-1] + 1)).all()
    assert not full[:, :7].any()
    assert rows.mean() == pytest.approx(151, abs=1)


@pytest.mark.parametrize(("row", "behind"), [(60, 1), (196, -1)])
def test_trails_lie_behind_and_conserve_charge(row, behind):
    """The lower half is read downwards: trails point up; the upper half the other way."""
    charge = np.zeros((256, 8), np.float32)
    charge[row, 3] = 1000
    out = apply_cti(charge, 0.02)
    assert out.sum(dtype=float) == pytest.approx(1000, rel=1e-4)
    way = (row + 1 if behind > 0 else 256 - row) / 128
    assert 1000 - out[row, 3] == pytest.approx(1000 * 0.02 * way * (1000 / 1100) ** 0.4, rel=0.01)
    assert out[row + behind, 3] > out[row + 2 * behind, 3] > out[row + 6 * behind, 3] > 0
    assert out[row - behind, 3] == 0
    # Faint packets lose a larger share.
    faint = apply_cti(charge / 20, 0.02)
    assert 1 - faint[row, 3] / 50 > 1 - out[row, 3] / 1000
    assert np.array_equal(apply_cti(charge, 0.0), charge)


def test_hot_pixels_persist_and_grow_in_number():
    settings = PLAIN.model_copy(
        update={"hot_fraction": 1e-3, "hot_growth": 5e-4, "warm_fraction": 2e-3, "dark_growth": 0.1}
    )
    young, old = ccd_of(settings, (600, 600)), ccd_of(settings, (600, 600), 6.0)
    assert young.hot.mean() == pytest.approx(1e-3, rel=0.2)
    assert old.hot.mean() == pytest.approx(4e-3, rel=0.1)
    assert (old.hot | ~young.hot).all()
    assert old.warm.mean() == pytest.approx(8e-3, rel=0.1)
    assert np.median(old.dark) == pytest.approx(0.02 * 1.6)
    # A hot pixel's own current does not change as others turn hot.
    assert np.allclose(old.dark[young.hot] - old.dark.min(), young.dark[young.hot] - young.dark.min(), rtol=1e-4)
    # Log-normal currents: a median of exp(5.5) times the dark.
    assert np.median(old.dark[old.hot] - np.median(old.dark)) == pytest.approx(0.02 * np.exp(5.5), rel=0.2)
    assert young.known.mean() == pytest.approx(0.9, abs=0.01)


def test_sixteen_channels_have_separate_gains_and_levels():
    ccd = ccd_of(Sensor(bias_structure=0.0))
    assert len(np.unique(ccd.gain)) == 16
    assert len(np.unique(ccd.bias)) == 16
    assert np.std(ccd.gain) / GAIN == pytest.approx(0.015, rel=0.6)
    assert len(np.unique(ccd_of(PLAIN).gain)) == 1
    known = estimate_calibration(ccd, Sensor(), 8, READ_NOISE, 150.0, 0.0)
    errors = np.unique(np.round(known.gain / ccd.gain - 1, 6))
    assert len(errors) <= 16  # a channel's gain is wrong as a whole
    assert 2e-4 < np.std(errors) < 4e-3


def test_repulsion_saturates_at_full_well():
    """The centre of a star of 13 mag has twenty times full well; no pixel may become negative before bleeding."""
    axis = np.arange(21) - 10
    star = (3e6 * np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / 1.5)).astype(np.float32) + 50
    moved = brighter_fatter(star, 1e-6, FULL_WELL)
    assert moved.min() > 0
    assert moved.sum(dtype=float) == pytest.approx(star.sum(dtype=float), rel=1e-6)
    assert abs(moved / star - 1)[star > 1e6].max() < 0.05


def test_bad_columns_end_at_the_centre_of_the_detector():
    ccd = ccd_of(PLAIN.model_copy(update={"bad_columns": 8}), (200, 300))
    columns = np.flatnonzero(ccd.bad.any(axis=0))
    assert len(columns) == 8
    for x in columns:
        rows = np.flatnonzero(ccd.bad[:, x])
        assert (rows == np.arange(rows[0], rows[-1] + 1)).all()
        assert rows[-1] == 99 or rows[0] == 100


def test_level_1_recovers_the_light(rng):
    """With all effects but trails: rate and weight of a flat scene, to what calibration frames allow."""
    settings, shape = Sensor(bad_columns=0, bad_fraction=0.0), (512, 512)
    ccd = ccd_of(settings, shape, 2.0)
    rate = np.float32(3.0)
    charge = count_photons(rng, (rate * ccd.flat + ccd.dark) * np.float32(150))
    noise = read_noise_frame(rng, settings, shape, READ_NOISE)
    raw = digitise(brighter_fatter(charge, settings.brighter_fatter), ccd, settings, noise, FULL_WELL)
    known = estimate_calibration(ccd, settings, 8, READ_NOISE, 150.0, 2.0)
    found, weight = calibrate(raw, known, 150.0, FULL_WELL, np.ones(shape, bool))
    quiet = ~ccd.hot & ~ccd.warm
    assert np.median(found[quiet]) == pytest.approx(3.0, rel=3e-3)
    pull = ((found - 3.0) * np.sqrt(weight))[quiet]
    assert pull.std() == pytest.approx(1.0, abs=0.05)  # a little more: of bias, dark and flat frames
    assert abs(pull.mean()) < 0.1
    blind, none = calibrate(raw, known, 150.0, FULL_WELL, np.zeros(shape, bool))
    assert np.isfinite(blind).all()
    assert (none == 0).all()


def test_fringes_are_in_the_red_alone():
    settings = Sensor()
    assert fringes(settings, 8, (64, 64), 475.0) == 1.0
    z, y = (np.std(fringes(settings, 11, (256, 256), wavelength)) for wavelength in (910.0, 950.0))
    assert z == pytest.approx(0.02 / 2**0.5, rel=0.1)
    assert y == pytest.approx(2 * z, rel=0.05)


def test_foreign_noise_has_stripes_and_tails(rng):
    plain = read_noise_frame(rng, Sensor(), (400, 400), 5.0)
    foreign = read_noise_frame(rng, Sensor(noise="correlated"), (400, 400), 5.0)
    assert plain.std() == pytest.approx(5, rel=0.02)
    assert foreign.std() == pytest.approx(5, rel=0.1)
    assert foreign.mean(axis=1).std() > 3 * plain.mean(axis=1).std()
    assert abs(foreign).max() > 1.3 * abs(plain).max()
