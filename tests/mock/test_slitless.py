"""Slitless frames: light by its definition, known flat, sensitivity and stars, and what a reduction is given."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from astropy.io.fits import Header
from astropy.wcs import WCS
from scipy.integrate import quad

from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.instrument.dispersion import dispersion_of, slitless_order
from csstdask.mock import Recipe, load_recipe, render_unit
from csstdask.mock.cost import estimate_cost
from csstdask.mock.recipe_checks import check_recipe
from csstdask.mock.recipe_tables import CosmicRays, Pointing, Sensor, Sky, SkyField, Slitless
from csstdask.mock.slitless import (
    TracedStars,
    add_first_orders,
    add_zeroth_orders,
    expected_spectra,
    unit_stars,
)
from csstdask.mock.slitless_camera import band_flat, flat_coefficients, flat_terms, true_flat, true_sensitivity
from csstdask.mock.slitless_stars import (
    catalogue_columns,
    dispersion_shift,
    field_stars,
    order_extent,
    recipe_library,
    sed_mode,
    spectra_columns,
    truth_columns,
    unit_positions,
)
from csstdask.mock.unit_digest import unit_digest
from csstdask.mock.unit_headers import unit_headers
from csstdask.numerics.spectral import interpolate_spectrum

CSST = load_instrument("csst")
SHAPE = (256, 768)
IDEAL = Sensor(
    dark=0.0, hot_fraction=0.0, hot_growth=0.0, warm_fraction=0.0, bad_fraction=0.0, bad_columns=0, cti=0.0,
    brighter_fatter=0.0, non_linearity=0.0, prnu=0.0, vignetting=0.0, channels=False, bias_structure=0.0,
    gain_error=0.0,
)  # fmt: skip


def recipe_of(**slitless: object) -> Recipe:
    settings = Slitless.model_validate({"stars": 12, **slitless})
    return Recipe(name="grating", seed=5, exposures=3, detectors=(1, 2, 3), shape=SHAPE, slitless=settings)


def one_star(recipe: Recipe, x: float = 380.3, y: float = 120.7, *, sed: int = 40) -> tuple[TracedStars, np.ndarray]:
    library = recipe_library(recipe)
    star = TracedStars(np.array([x]), np.array([y]), np.array([3e-15]), library.sed[sed : sed + 1])
    return star, library.wavelength


@pytest.mark.parametrize("detector", [1, 2, 3])
def test_without_noise_a_spectrum_is_sed_times_flat(detector):
    """Rate / (d wavelength / d x) / sensitivity = SED x flat, to 1e-4 in every column; measured: 2e-6."""
    recipe = recipe_of(flat_degree=3)
    star, grid = one_star(recipe)
    light = np.zeros(SHAPE, dtype=np.float32)
    add_first_orders(light, recipe, CSST, detector, star, grid)
    relation = dispersion_of(CSST, detector, SHAPE)
    column = np.flatnonzero(light.any(axis=0))
    wave = relation.wavelength(380.3, 120.7, column)
    inside = (wave >= relation.limits[0]) & (wave <= relation.limits[1])
    column, wave = column[inside], wave[inside]
    rate = light[:, column].sum(axis=0, dtype=np.float64)
    rate /= relation.angstrom_per_pixel(380.3, 120.7, wave) * true_sensitivity(recipe, CSST, detector, wave)
    trace = relation.position(380.3, 120.7, wave)[1]
    expected = 3e-15 * interpolate_spectrum(grid, star.sed[0], wave)
    expected *= true_flat(recipe, CSST, detector, column, trace, wave)
    assert len(column) > 180
    assert abs(rate / expected - 1).max() < 1e-5
    # Light beyond the nominal limits is drawn as far as the throughput reaches.
    points = slitless_order(CSST, detector).throughput
    ends = relation.position(380.3, 120.7, [max(points[0][0], grid[0]), points[-1][0]])[0]
    seen = np.flatnonzero(light.any(axis=0))
    assert seen[0] == pytest.approx(ends[0], abs=2)
    assert seen[-1] == pytest.approx(ends[1], abs=2)


def test_a_profile_is_centred_on_the_trace_and_as_wide_as_stated():
    recipe = recipe_of(flat_amplitude=0.0)
    star, grid = one_star(recipe)
    light = np.zeros(SHAPE, dtype=np.float32)
    add_first_orders(light, recipe, CSST, 2, star, grid)
    relation = dispersion_of(CSST, 2, SHAPE)
    columns = np.array([310, 380, 450])
    wave = relation.wavelength(380.3, 120.7, columns)
    trace = relation.position(380.3, 120.7, wave)[1]
    rows = np.arange(SHAPE[0])
    share = light[:, columns] / light[:, columns].sum(axis=0)
    assert rows @ share == pytest.approx(trace, abs=1e-4)
    # Variance of the mixture, and 1/12 of the pixel.
    variance = ((rows[:, None] - trace) ** 2 * share).sum(axis=0)
    expected = (0.85 * 0.95**2 + 0.15 * 2.3**2) * (wave / 5500) ** 0.6 + 1 / 12
    assert variance == pytest.approx(expected, rel=1e-4)


def test_a_shift_moves_a_spectrum_along_x():
    recipe = recipe_of(flat_amplitude=0.0)
    star, grid = one_star(recipe)
    still, moved = np.zeros(SHAPE, dtype=np.float32), np.zeros(SHAPE, dtype=np.float32)
    add_first_orders(still, recipe, CSST, 2, star, grid)
    add_first_orders(moved, recipe, CSST, 2, star, grid, shift=3.0)
    assert np.allclose(moved[:, 3:], still[:, :-3], atol=1e-6)
    shifts = [dispersion_shift(recipe_of(dispersion_shift=0.2), index) for index in range(3)]
    assert len(set(shifts)) == 3
    assert dispersion_shift(recipe_of(), 0) == 0


def test_the_zeroth_order_holds_the_light_of_the_band():
    recipe = recipe_of()
    star, grid = one_star(recipe, x=500.2)
    light = np.zeros(SHAPE, dtype=np.float32)
    add_zeroth_orders(light, recipe, CSST, 2, star, grid)
    points = slitless_order(CSST, 2, 0).throughput

    def rate(wave: float) -> float:
        sed = float(interpolate_spectrum(grid, star.sed[0], wave))
        return 3e-15 * sed * float(true_sensitivity(recipe, CSST, 2, wave, 0))

    edges = np.linspace(points[0][0], points[-1][0], 9)
    expected = sum(quad(rate, a, b, epsrel=1e-4, limit=200)[0] for a, b in itertools.pairwise(edges))
    assert light.sum(dtype=np.float64) == pytest.approx(expected, rel=1e-3)
    x, y = dispersion_of(CSST, 2, SHAPE, 0).position(500.2, 120.7, 5000.0)
    assert light.sum(axis=0) @ np.arange(SHAPE[1]) / light.sum() == pytest.approx(float(x), abs=1e-3)
    assert light.sum(axis=1) @ np.arange(SHAPE[0]) / light.sum() == pytest.approx(float(y), abs=1e-3)


@pytest.mark.parametrize("x", [-60.0, -350.0, 810.0, 1050.0, 380.0])
@pytest.mark.parametrize("y", [-6.0, 0.0, 255.0, 262.0])
def test_spectra_at_the_edges_are_cut_there(x, y):
    """On a frame of the same detector that is larger on all sides the same light falls on the same pixels."""
    recipe = recipe_of(flat_amplitude=0.0)
    star, grid = one_star(recipe, x, y)
    around = TracedStars(star.x + 600, star.y + 40, star.flux_5556, star.sed)
    small, large = np.zeros(SHAPE, np.float32), np.zeros((SHAPE[0] + 80, SHAPE[1] + 1200), np.float32)
    for add in (add_first_orders, add_zeroth_orders):
        add(small, recipe, CSST, 1, star, grid)
        add(large, recipe, CSST, 1, around, grid)
    assert np.allclose(small, large[40:-40, 600:-600], rtol=1e-4, atol=1e-5)
    assert large.any()


def test_the_flat_has_mean_one_at_every_wavelength():
    recipe = recipe_of(flat_degree=3, flat_amplitude=0.05)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    for wave in (4000.0, 5000.0, 6500.0):
        flat = true_flat(recipe, CSST, 2, x, y, wave)
        assert flat.mean() == pytest.approx(1, abs=2e-5)  # of pixel centres; of the integral exactly
        assert 0.02 < flat.std() < 0.3
    waves = np.linspace(4000, 6500, 400)
    mean = true_flat(recipe, CSST, 2, 10.0, 20.0, (waves[1:] + waves[:-1]) / 2).mean()
    assert band_flat(recipe, 2)[20, 10] == pytest.approx(mean, abs=1e-5)


def test_a_higher_degree_adds_terms_and_changes_none():
    assert flat_terms(1) == ((0, 0), (1, 0), (0, 1))
    low, high = (flat_coefficients(recipe_of(flat_degree=d), CSST, 3, [2550.0, 3000.0]) for d in (2, 3))
    assert low.shape == (2, 6)
    assert high.shape == (2, 10)
    assert np.array_equal(high[:, :6], low)
    assert (low[:, 0] == 1).all()
    assert true_flat(recipe_of(), CSST, 3, 1, 2, 3000.0).shape == ()
    assert true_flat(recipe_of(), CSST, 3, [1, 5], 2, [[3000.0]]).shape == (1, 2)


def test_recipes_with_one_seed_share_one_camera():
    first, second = recipe_of(), recipe_of(stars=3).model_copy(update={"seed": 99})
    assert true_flat(first, CSST, 1, 5, 6, 7000) == true_flat(second, CSST, 1, 5, 6, 7000)
    assert true_sensitivity(first, CSST, 1, 7000) == true_sensitivity(second, CSST, 1, 7000)
    other = recipe_of(seed=575)
    assert true_flat(first, CSST, 1, 5, 6, 7000) != true_flat(other, CSST, 1, 5, 6, 7000)


def test_positions_follow_from_the_catalogue_and_the_header():
    """As in a reduction: from the catalogue of J2016.0, proper motions, and the WCS in the header."""
    fields = (SkyField(pointing=(150.0, 60.0)),)
    recipe = recipe_of(proper_motion=300.0).model_copy(
        update={"fields": fields, "pointing": Pointing(dither=30.0), "span": 4.0, "epoch": 1.0}
    )
    library = recipe_library(recipe)
    for index in (0, 2):
        given = catalogue_columns(recipe.slitless, field_stars(recipe, CSST, index, 2, library))
        truth = truth_columns(recipe, CSST, index, 2, library)
        years = 4168.5 / 365.25 + recipe.epoch_of(index)  # from J2016.0 to 2027 June 1
        ra = given["ra"] + given["pmra"] * years / 3.6e6 / np.cos(np.radians(given["dec"]))
        dec = given["dec"] + given["pmdec"] * years / 3.6e6
        x, y = WCS(unit_headers(recipe, CSST, index, 2)[0]).all_world2pix(ra, dec, 0)
        assert x == pytest.approx(truth["x"], abs=1e-5)
        assert y == pytest.approx(truth["y"], abs=1e-5)
    first, last = (unit_positions(recipe, CSST, i, 2, field_stars(recipe, CSST, i, 2, library)) for i in (0, 2))
    move = np.hypot(*(b - a for a, b in zip(first, last, strict=True)))
    assert np.ptp(move) > 3  # dithers alone would move all alike


def test_stars_off_the_frame_whose_spectra_fall_on_it_are_drawn():
    recipe = recipe_of(stars=300)
    reach = order_extent(CSST, 2, SHAPE)
    assert reach[0][1] < -300
    assert -115 < reach[1][0] < -100
    stars = unit_stars(recipe, CSST, 0, 2, recipe_library(recipe))
    inside = (abs(stars.x - 383.5) < 384) & (abs(stars.y - 127.5) < 128)
    assert inside.sum() == pytest.approx(300, abs=3)  # proper motions carry some over the edge
    assert (stars.x > SHAPE[1] + 320).any()
    assert (stars.x < -90).any()
    density = inside.sum() / (SHAPE[0] * SHAPE[1])
    around = (~inside).sum() / ((SHAPE[0] + 33) * (np.ptp(stars.x)) - SHAPE[0] * SHAPE[1])
    assert around == pytest.approx(density, rel=0.15)


def test_separated_stars_do_not_overlap():
    recipe = recipe_of(stars=60, separation=9.0, proper_motion=0.0)
    stars = unit_stars(recipe, CSST, 0, 2, recipe_library(recipe))
    dx, dy = (abs(part[:, None] - part) for part in (stars.x, stars.y))
    pairs = np.triu(np.ones_like(dx, dtype=bool), 1)
    assert not (pairs & (dy < 9) & (dx < 200)).any()
    assert not (pairs & (dy < 9) & (dx > 250) & (dx < 440)).any()  # a zeroth order on another's first
    assert (pairs & (dy < 9)).any()


def test_given_fluxes_and_seds_are_off_as_stated():
    recipe = recipe_of(stars=2000, flux_error=0.02, sed_sigma=0.05, bad_share=0.1)
    library = recipe_library(recipe)
    stars = field_stars(recipe, CSST, 0, 3, library)
    given = catalogue_columns(recipe.slitless, stars)
    seds = spectra_columns(recipe.slitless, stars, library)
    good = ~stars.bad
    assert stars.bad.mean() == pytest.approx(0.1, abs=0.02)
    error = given["flux_5556"] / stars.flux_5556 - 1
    assert error[good].std() == pytest.approx(0.02, rel=0.1)
    assert given["flux_5556_err"] == pytest.approx(0.02 * given["flux_5556"])
    truth = library.sed[stars.sed]
    at = int(np.argmin(abs(library.wavelength - 3400)))
    ratio = np.log(seds["mean"] / truth)
    assert ratio[good, at].std() == pytest.approx(0.05, rel=0.1)
    assert seds["sigma"][good, at] == pytest.approx(0.05 * seds["mean"][good, at], rel=0.01)
    z = ratio[good] / sed_mode(recipe.slitless, library.wavelength)
    away = abs(library.wavelength - 5556) > 300
    assert np.ptp(z[:, away], axis=1) == pytest.approx(0, abs=0.02)  # one number a star: fully correlated
    assert seds["mean"][:, 317:322].mean(axis=1) == pytest.approx(1, rel=1e-6)
    wrong = (abs(error) > 0.1) | (abs(ratio).max(axis=1) > 0.4)
    assert wrong[stars.bad].mean() > 0.6
    assert wrong[good].mean() < 0.01


def test_counts_of_a_unit_equal_the_light_of_its_stars():
    """Through photon noise, read-out and calibration: isolated stars hold their expected electrons."""
    # Faint enough that no zeroth order saturates.
    recipe = recipe_of(stars=14, separation=24.0, flux_5556=(2e-15, 3e-15)).model_copy(
        update={"sensor": IDEAL, "cosmic_rays": CosmicRays(pixel_fraction=(0.0,)), "sky": Sky(gradient=0.0)}
    )
    unit = render_unit(recipe, CSST, 0, 2)
    expected = expected_spectra(recipe, CSST, 0, 2)
    stars = unit_stars(recipe, CSST, 0, 2, recipe_library(recipe))
    bright = expected > 1.0
    z = (unit.sci[bright] - expected[bright]) * np.sqrt(unit.wht[bright])
    assert len(stars) > 14
    assert bright.sum() > 5000
    assert abs(z.mean()) < 0.15  # weights come from the counts themselves: -0.5 / sqrt(N) on average
    assert z.std() == pytest.approx(1, abs=0.05)
    assert unit.sci[bright].sum() == pytest.approx(expected[bright].sum(), rel=5e-4)  # photon noise: 1.5e-4
    assert len(unit.catalogue) == 0


def test_units_do_not_depend_on_other_units():
    recipe = recipe_of()
    first = render_unit(recipe, CSST, 1, 2)
    expected_spectra(recipe, CSST, 0, 3)
    again = render_unit(recipe, CSST, 1, 2)
    assert np.array_equal(first.sci, again.sci)
    assert not np.array_equal(first.sci, render_unit(recipe, CSST, 0, 2).sci)


def test_identities_of_imaging_units_are_as_before():
    """Recipes without [slitless] have the digests that campaigns in use were made with."""
    recipe = Recipe(name="small", seed=11, exposures=2, detectors=(7, 8), shape=(192, 160))
    assert unit_digest(recipe, CSST, 1, 8) == IMAGING_DIGEST
    gratings = CSST.model_copy(update={"slitless": {}})
    assert unit_digest(recipe, gratings, 1, 8) == IMAGING_DIGEST


IMAGING_DIGEST = "eaeeb1bacd3ba96cc2eccd377d0a18530b4cdf99ec2b26095f32d1f9593647f7"


def test_identities_of_slitless_units_hold_all_that_decides_them(tmp_path):
    recipe = recipe_of()
    known = unit_digest(recipe, CSST, 0, 2)
    assert unit_digest(recipe_of(stars=13), CSST, 0, 2) != known
    assert unit_digest(recipe, CSST, 1, 2) != known
    order = CSST.slitless["GV"].orders[0].model_copy(update={"wavelength": (4000.0, 6501.0)})
    band = CSST.slitless["GV"].model_copy(update={"orders": (order, CSST.slitless["GV"].orders[1])})
    assert unit_digest(recipe, CSST.model_copy(update={"slitless": CSST.slitless | {"GV": band}}), 0, 2) != known
    other_band = CSST.model_copy(update={"slitless": CSST.slitless | {"GU": band}})
    assert unit_digest(recipe, other_band, 0, 2) == known
    library = recipe_library(recipe)
    np.savez(
        tmp_path / "desi-atlas9.npz",
        wavelength=library.wavelength,
        flux=library.sed[:5],
        teff=library.teff[:5],
        logg=library.logg[:5],
        mh=library.mh[:5],
    )
    assert unit_digest(recipe, CSST, 0, 2, tmp_path) != known


def test_recipe_that_cannot_be_rendered_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"7 \(band i\) in a recipe with \[slitless\].*GI, GU, GV"):
        check_recipe(recipe_of().model_copy(update={"detectors": (1, 7)}), CSST)
    imaging = Recipe(name="im", seed=1, detectors=(2,))
    with pytest.raises(InputError, match=r"2 \(band GV\).*table \[slitless\]"):
        check_recipe(imaging, CSST)
    with pytest.raises(InputError, match=r"nowhere.npz.*no such file.*desi-atlas9.npz"):
        check_recipe(recipe_of(seds="nowhere.npz"), CSST)
    stamps = Recipe.model_validate({**recipe_of().model_dump(), "stamps": {"kind": "isolated"}})
    with pytest.raises(InputError, match="stamps"):
        check_recipe(stamps, CSST)
    library = recipe_library(recipe_of())
    red = library.wavelength > 4500
    labels = {"teff": library.teff, "logg": library.logg, "mh": library.mh}
    np.savez(tmp_path / "red.npz", wavelength=library.wavelength[red], flux=library.sed[:, red], **labels)
    with pytest.raises(InputError, match=r"red.npz.*from 45.* to .*cover G[UV]"):
        check_recipe(recipe_of(seds="red.npz"), CSST, tmp_path)
    check_recipe(recipe_of(seds="red.npz").model_copy(update={"detectors": (1,)}), CSST, tmp_path)


def test_a_library_next_to_the_recipe_is_found(tmp_path):
    library = recipe_library(recipe_of())
    labels = {"teff": library.teff, "logg": library.logg, "mh": library.mh}
    np.savez(tmp_path / "own.npz", wavelength=library.wavelength, flux=7 * library.sed, **labels)
    file = tmp_path / "own.toml"
    file.write_text('name = "own"\nseed = 1\ndetectors = [1]\n[slitless]\nstars = 3\nseds = "own.npz"\n')
    found = recipe_library(load_recipe(file))
    assert found.sed == pytest.approx(library.sed, rel=1e-6)
    assert found.sha256 != library.sha256


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "stars_per_mpix"),
        ("stars = 3\nstars_per_mpix = 2.0", "stars_per_mpix"),
        ("stars = 3\nflux_5556 = [2e-15, 1e-15]", "flux_5556"),
        ("stars = 3\nflat_degree = 9", "flat_degree"),
        ("stars = 3\ncolour = 1", "colour"),
    ],
)
def test_wrong_keys_are_named(tmp_path, table, message):
    file = tmp_path / "wrong.toml"
    file.write_text(f'name = "wrong"\nseed = 1\ndetectors = [1]\n[slitless]\n{table}\n')
    with pytest.raises(InputError, match=message):
        load_recipe(file)


def test_densities_instead_of_numbers():
    recipe = recipe_of(stars=None, stars_per_mpix=1000.0)
    stars = unit_stars(recipe, CSST, 0, 1, recipe_library(recipe))
    inside = (abs(stars.x - 383.5) < 384) & (abs(stars.y - 127.5) < 128)
    assert inside.sum() == pytest.approx(197, abs=60)
    assert estimate_cost(recipe).seconds > estimate_cost(recipe_of()).seconds


def test_headers_of_slitless_units_name_their_band():
    header, primary = unit_headers(recipe_of(), CSST, 0, 2)
    assert isinstance(header, Header)
    assert primary["FILTER"] == "GV"
