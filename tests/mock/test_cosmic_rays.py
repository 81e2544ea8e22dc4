"""Cosmic rays: whole electrons, and the laws of length, charge and density that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.ndimage import label

from csstdask.core.errors import InputError
from csstdask.instrument import load_instrument
from csstdask.mock import Recipe, render_unit
from csstdask.mock.charge_deposition import Paths, deposit
from csstdask.mock.cosmic_rays import (
    aimed_cosmic_rays,
    draw_cosmic_rays,
    pixel_fraction,
    track_events,
    track_lengths,
    unit_cosmic_rays,
)
from csstdask.mock.event_libraries import STIS_EVENTS, STIS_PAIRS, load_event_library, pair_exposures, read_stis_events
from csstdask.mock.recipe_tables import CosmicRays
from csstdask.mock.silicon_tracks import landau, slab_events

EIGHT = np.ones((3, 3))


def one_path(x, y, electrons, sigma=0.2) -> Paths:
    n = len(x)
    return Paths(
        np.array([0, n]), np.array(x), np.array(y), np.ones(n), np.full(n, sigma), np.array([electrons], dtype=np.int64)
    )


def test_every_electron_is_dealt(rng):
    image = np.zeros((64, 64), dtype=np.int32)
    lost = deposit(rng, one_path(np.linspace(20, 40, 80), np.linspace(30, 35, 80), 12_345), image)
    assert (image.sum(), lost) == (12_345, 0)
    edge = np.zeros((64, 64), dtype=np.int32)
    lost = deposit(rng, one_path([-0.5], [10.0], 10_000), edge)
    assert edge.sum() + lost == 10_000
    assert lost == pytest.approx(5000, abs=300)


def test_charge_diffuses_as_a_gaussian_over_square_pixels(rng):
    """Mean charges of many points against the integral of a Gaussian over each pixel, by scipy."""
    image = np.zeros((9, 9), dtype=np.int32)
    deposit(rng, one_path([4.2], [3.9], 2_000_000, sigma=0.3), image)
    edges = np.arange(10) - 0.5
    in_x, in_y = (np.diff(stats.norm.cdf(edges, centre, 0.3)) for centre in (4.2, 3.9))
    wanted = 2e6 * np.outer(in_y, in_x)
    strong = wanted > 50
    assert abs((image - wanted)[strong] / np.sqrt(wanted[strong])).max() < 4.5


def test_fraction_of_pixels_and_faint_deposits(rng):
    """The density that was asked for; about a tenth of the pixels hold a single electron."""
    charge = draw_cosmic_rays(rng, CosmicRays(pixel_fraction=(0.03,)), (700, 600))
    assert charge.dtype == np.int32
    assert np.count_nonzero(charge) / charge.size == pytest.approx(0.03, rel=0.02)
    assert 0.06 < (charge == 1).sum() / np.count_nonzero(charge) < 0.14


def test_lengths_and_charges_follow_their_laws(rng):
    """KS against an exponential cut at 100 pixels, and a log-Gaussian of FWHM 0.6 dex about 10^3.3 e-."""
    settings = CosmicRays()
    length = track_lengths(rng, settings, 20_000)
    assert (length == 0).mean() == pytest.approx(settings.point_share, abs=0.01)
    assert stats.kstest(length[length > 0], stats.truncexpon(b=100 / 12, scale=12).cdf).pvalue > 1e-3
    paths = track_events(rng, settings, (500, 500), 20_000)
    log_charge = np.log10(paths.electrons + rng.uniform(-0.5, 0.5, 20_000))
    assert stats.kstest(log_charge, stats.norm(3.3, 0.6 / 2.3548).cdf).pvalue > 1e-3


def test_rendered_events_have_the_lengths_of_their_paths(rng):
    """Isolated tracks, measured by their extent in pixels, have the lengths that were drawn."""
    settings = CosmicRays(point_share=0.0, mean_length=20.0, worm_share=0.0)
    paths = track_events(rng, settings, (1, 1), 300)
    measured, drawn = [], []
    for i in range(300):
        some = slice(paths.offset[i], paths.offset[i + 1])
        image = np.zeros((256, 256), dtype=np.int32)
        n = some.stop - some.start
        x, y = paths.x[some] + 128, paths.y[some] + 128
        deposit(rng, Paths(np.array([0, n]), x, y, paths.share[some], paths.sigma[some], np.array([50_000])), image)
        rows, columns = np.nonzero(image > 0.2 * image.max())
        measured.append(np.hypot(np.ptp(rows), np.ptp(columns)))
        drawn.append(np.hypot(np.ptp(x), np.ptp(y)))
    assert np.median(abs(np.array(measured) - drawn)) < 1.0
    assert stats.pearsonr(measured, drawn).statistic > 0.99


def test_a_slab_gives_landaus_charges_and_chords_of_isotropic_flux(rng):
    # Landau's law by its transform: E exp(itX) for scale 1 is exp(-|t| - 2i/pi t ln|t|).
    x = landau(rng, 400_000)
    for t in (0.3, 1.0):
        wanted = np.exp(-t - 2j / np.pi * t * np.log(t))
        assert abs(np.exp(1j * t * x).mean() - wanted) < 0.01
    settings = CosmicRays(worm_share=0.0, thickness=2.0)
    paths = slab_events(rng, settings, (1, 1), 4000)
    points = np.diff(paths.offset)[:4000]
    first, last = paths.offset[:4000], paths.offset[1:4001] - 1
    run = np.hypot(paths.x[last] - paths.x[first], paths.y[last] - paths.y[first]) * points / np.maximum(points - 1, 1)
    # Flux through a surface: cos^2(theta) is uniform, and the run is thickness * tan(theta).
    wanted = 2.0 * np.sqrt(1 / rng.random(40_000) - 1)
    usual = (run > 1) & (run < 100)
    assert stats.ks_2samp(run[usual], wanted[(wanted > 1) & (wanted < 100)]).pvalue > 1e-3
    assert np.median(paths.electrons[:4000]) > 800 * 2.0


def test_aimed_events_hit_their_positions():
    recipe = Recipe(name="aim", seed=3, shape=(256, 256), cosmic_rays=CosmicRays(point_share=1.0))
    x, y = np.array([40.0, 120.0, 200.0]), np.array([50.0, 130.0, 60.0])
    charge, electrons = aimed_cosmic_rays(recipe, 0, 8, x, y)
    assert charge.sum() == electrons.sum()
    _, events = label(charge > 0, EIGHT)
    assert events == 3
    for place in zip(y, x, strict=True):
        box = tuple(slice(int(at) - 4, int(at) + 5) for at in place)
        assert charge[box].sum() > 100
        middle = (np.indices((9, 9)) * charge[box]).sum(axis=(1, 2)) / charge[box].sum()
        assert middle == pytest.approx([4, 4], abs=0.15)
    slab = recipe.model_copy(update={"cosmic_rays": CosmicRays(generators=("slab",))})
    assert aimed_cosmic_rays(slab, 0, 8, x, y)[0][:, 70:90].sum() == 0


def test_rates_follow_exposure_orbit_and_sun():
    plain = Recipe(name="r", seed=1, exposures=6, cosmic_rays=CosmicRays(pixel_fraction=(0.01, 0.02)))
    assert sorted(pixel_fraction(plain, i) for i in range(6)) == [0.01] * 3 + [0.02] * 3
    wild = CosmicRays(pixel_fraction=(0.01,), rate_scatter=0.3, anomaly_share=0.5)
    rates = [pixel_fraction(plain.model_copy(update={"cosmic_rays": wild, "exposures": 200}), i) for i in range(200)]
    assert np.std(np.log(rates)) > 0.5
    sun = CosmicRays(pixel_fraction=(0.01,), solar_cycle=0.3)
    decade = plain.model_copy(update={"cosmic_rays": sun, "exposures": 3, "span": 11.0})
    assert [round(pixel_fraction(decade, i), 4) for i in range(3)] == [0.007, 0.013, 0.007]


def test_real_events_keep_their_charges_and_sizes(real_images):
    """Injected STIS events against the library: charge of isolated events by KS, and whole electrons."""
    settings = CosmicRays(generators=("stis",), pixel_fraction=(0.004,))
    recipe = Recipe(name="real", seed=5, split="test", shape=(1200, 1200), cosmic_rays=settings)
    charge = unit_cosmic_rays(recipe, 0, 8, real_images)
    assert np.count_nonzero(charge) / charge.size == pytest.approx(0.004, rel=0.1)
    regions, n = label(charge > 0, EIGHT)
    found = np.bincount(regions.ravel(), charge.ravel())[1:]
    library = read_stis_events(real_images / STIS_EVENTS, pair_exposures(STIS_PAIRS["test"]))
    drawn = np.random.default_rng(1).choice(len(library), n * 4, p=library.weight)
    wanted = np.add.reduceat(library.charge, library.offset[:-1])[drawn]
    # Some two per cent overlap or are cut by the edge.
    assert stats.ks_2samp(np.log10(found), np.log10(wanted)).statistic < 0.06


def test_libraries_are_asked_for_and_split(real_images):
    sizes = {split: len(load_event_library("stis", split, real_images)) for split in STIS_PAIRS}
    assert sizes["training"] != sizes["test"]
    settings = CosmicRays(generators=("itl",))
    with pytest.raises(InputError, match="--data FOLDER"):
        render_unit(
            Recipe(name="x", seed=1, split="test", shape=(64, 64), cosmic_rays=settings), load_instrument("csst"), 0, 8
        )
    with pytest.raises(InputError, match="without split"):
        load_event_library("stis", None, real_images)


def test_cosmic_rays_are_as_many_at_the_edge_as_in_the_middle(rng):
    for settings in (CosmicRays(pixel_fraction=(0.04,)), CosmicRays(generators=("slab",), pixel_fraction=(0.04,))):
        total = np.zeros((160, 160))
        for index in range(12):
            recipe = Recipe(name="e", seed=index, shape=(160, 160), cosmic_rays=settings)
            total += unit_cosmic_rays(recipe, 0, 8, None) > 0
        edge = np.ones((160, 160), dtype=bool)
        edge[8:-8, 8:-8] = False
        assert total[edge].mean() == pytest.approx(total[~edge].mean(), rel=0.15)
