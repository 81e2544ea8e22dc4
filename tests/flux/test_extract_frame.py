"""Spectra of a frame, compared with the equations it was rendered with (`slitless_frame`)."""

import numpy as np
import pytest
from slitless_frame import made_up_seds, render

from csstdask.core.errors import InputError
from csstdask.flux.extract_frame import extract_frame
from csstdask.flux.flat_fit import flat_from_solution
from csstdask.flux.measure_ratios import measure_ratios
from csstdask.flux.predicted_spectra import PredictedSpectra
from csstdask.flux.ratios import StarRatios
from csstdask.flux.solve_flat import fit_ratios
from csstdask.flux.spectrum_flag import SpectrumFlag
from csstdask.instrument.dispersion import wavelength_grid

FRAME = (400, 1400)
X = np.array([700.0, 1150, 720.7, 1160.2, 700, 1155.5, 690, 1140])
Y = np.array([40.3, 60.7, 110.2, 150.9, 210, 240.4, 290, 330.5])


def sloped_flat(column, row, wavelength):
    return 1 + 0.03 * (column / 700 - 1) + 0.02 * (row / 200 - 1) + 0.01 * (wavelength / 5000 - 1)


def truth_of(spectra, counts):
    return np.array([
        np.interp(columns, *one, left=np.nan, right=np.nan) for columns, one in zip(spectra.column, counts, strict=True)
    ])  # fmt: skip


def field(rng, n=150, shape=(1600, 1600), level=(-16.8, -15.4), **options):
    x, y = rng.uniform(-100, shape[1] + 100, n), rng.uniform(-5, shape[0] + 5, n)
    seds = made_up_seds(n, rng, 10 ** rng.uniform(*level, n))
    return render(x, y, seds, shape=shape, rng=rng, **options)


@pytest.fixture(scope="module")
def crowded():
    """Noisy stars of all magnitudes with shifted traces, cosmic rays and bad pixels."""
    rng = np.random.default_rng(0)
    scene, counts = field(rng, dy=0.4, shift=0.3)
    mask = rng.random(scene.height.shape) < 2e-3
    hits = rng.random(scene.height.shape) < 3e-4
    scene.height[hits] += rng.uniform(60, 3000, hits.sum()).astype(np.float32)
    scene.height[mask] = np.where(rng.random(mask.sum()) < 0.5, np.nan, 1e5)
    arguments = (scene.height, scene.error, mask, *scene.inputs()[3:])
    return scene, counts, arguments, hits & ~mask


@pytest.mark.parametrize("band", ["GU", "GV", "GI"])
@pytest.mark.parametrize(("dy", "shift"), [(0.0, 0.0), (0.7, 0.4)])
def test_isolated_stars_without_noise(band, dy, shift):
    """Counts equal F S dl/dx times the flat to 1e-4; offset, shift and profile are recovered."""
    seds = made_up_seds(len(X), np.random.default_rng(1), 2e-16)
    scene, counts = render(X, Y, seds, band=band, shape=FRAME, flat=sloped_flat, dy=dy, shift=shift, zeroth=False)
    spectra = extract_frame(*scene.inputs()[:4], None, *scene.inputs()[5:], predicted=scene.predicted)
    error = spectra.counts / truth_of(spectra, counts) - 1
    assert np.nanmax(np.abs(error)) < 1e-4
    assert np.all(spectra.coverage == 1)
    assert not (spectra.flag[np.isfinite(spectra.counts)]).any()
    np.testing.assert_allclose(spectra.y_offset, dy, atol=0.01)
    np.testing.assert_allclose(spectra.shift, shift, atol=0.003)
    widths = np.array(spectra.profile.widths(5500.0))
    np.testing.assert_allclose(widths, [0.95, 2.3], rtol=2e-3)
    nominal = scene.dispersion.wavelength(X[:, None], Y[:, None], spectra.column - shift)
    inside = np.isfinite(spectra.counts)
    np.testing.assert_allclose(spectra.wavelength[inside], nominal[inside], atol=0.05)


def test_without_predictions_only_the_shift_is_missing():
    seds = made_up_seds(len(X), np.random.default_rng(1), 2e-16)
    scene, counts = render(X, Y, seds, shape=FRAME, zeroth=False)
    spectra = extract_frame(*scene.inputs()[:4], None, *scene.inputs()[5:])
    assert np.nanmax(np.abs(spectra.counts / truth_of(spectra, counts) - 1)) < 1e-4
    assert not spectra.shift.any()
    assert np.all(spectra.shift_sigma == np.inf)


def test_dispersion_of_opposite_sign():
    seds = made_up_seds(len(X), np.random.default_rng(1), 2e-16)
    scene, counts = render(X, Y, seds, shape=FRAME, flat=sloped_flat, shift=0.3, zeroth=False, mirrored=True)
    spectra = extract_frame(*scene.inputs()[:4], None, X, Y, predicted=scene.predicted)
    assert np.nanmax(np.abs(spectra.counts / truth_of(spectra, counts) - 1)) < 1e-4
    assert np.all(np.diff(spectra.wavelength, axis=1) < 0)
    np.testing.assert_allclose(spectra.shift, 0.3, atol=0.003)
    grid = wavelength_grid(scene.dispersion.limits)
    ratios = measure_ratios(spectra, grid, scene.predicted, star=np.arange(len(X)))
    assert np.isfinite(ratios.ratio).mean() > 0.97
    assert np.nanmax(np.abs(ratios.ratio - sloped_flat(ratios.x, ratios.y, grid))) < 2e-3


@pytest.mark.parametrize("known", [True, False])
def test_errors_match_scatter(crowded, known):
    scene, counts, arguments, _ = crowded
    spectra = extract_frame(*arguments, predicted=scene.predicted if known else None)
    pulls = (spectra.counts - truth_of(spectra, counts)) / spectra.sigma
    usable = np.isfinite(pulls) & ((spectra.flag & SpectrumFlag.UNRELIABLE) == 0)
    assert usable.sum() > 15000
    clean = usable & (spectra.contaminated < 0.02)[:, None]
    for selected in (usable, clean, clean & (spectra.snr > 20)[:, None], clean & (spectra.snr < 8)[:, None]):
        assert 0.95 < np.std(pulls[selected]) < 1.05
        assert abs(np.mean(pulls[selected])) < 0.1
    assert np.mean(np.abs(pulls[usable]) > 5) < 2e-4
    assert np.nanmedian(spectra.chi2) == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(spectra.y_offset, 0.4, atol=0.02)


def test_errors_of_shifts_match_scatter(crowded):
    scene, _, arguments, _ = crowded
    spectra = extract_frame(*arguments, predicted=scene.predicted)
    measured = np.isfinite(spectra.shift_measured) & (spectra.contaminated < 0.05)
    pulls = ((spectra.shift_measured - 0.3) / spectra.shift_measured_sigma)[measured]
    assert 0.8 < np.std(pulls) < 1.25
    faint = measured & (spectra.snr < 8)
    assert faint.sum() > 5
    assert np.std(spectra.shift[faint]) < 0.3 * np.std(spectra.shift_measured[faint])
    assert np.median(np.abs(spectra.shift - 0.3)) < 0.05


def test_cosmic_rays_are_rejected_but_not_stars(crowded):
    scene, _, arguments, hits = crowded
    spectra = extract_frame(*arguments, predicted=scene.predicted)
    usable = np.isfinite(spectra.counts)
    assert np.mean((spectra.flag[usable] & SpectrumFlag.REJECTED) > 0) < 0.03
    bright = (spectra.snr > 20)[:, None] & usable & (spectra.contaminated < 0.02)[:, None]
    assert np.mean((spectra.flag[bright] & (SpectrumFlag.REJECTED | SpectrumFlag.UNRELIABLE)) > 0) < 0.02
    on_trace = np.zeros(hits.shape, dtype=bool)
    for column, row, fine in zip(spectra.column, spectra.row, usable, strict=True):
        for offset in (-2, -1, 0, 1, 2):
            on_trace[np.round(row[fine]).astype(int).clip(2, 1597) + offset, column[fine]] = True
    found = spectra.rejected[hits & on_trace]
    assert found.size > 20
    assert found.mean() > 0.9


def test_partial_columns_have_unbiased_counts():
    """With half of the profile masked, a column is partial and its counts are unbiased."""
    seds = made_up_seds(len(X), np.random.default_rng(1), 2e-16)
    scene, counts = render(X, Y, seds, shape=FRAME, zeroth=False)
    plain = extract_frame(*scene.inputs()[:4], None, *scene.inputs()[5:], predicted=scene.predicted)
    mask = np.zeros(FRAME, dtype=bool)
    at = plain.column[0, 100]
    mask[: int(np.round(plain.row[0, 100])) + 1, at] = True
    mask[:, plain.column[1, 50]] = True
    spectra = extract_frame(*scene.inputs()[:2], mask, scene.dispersion, None, X, Y, predicted=scene.predicted)
    assert spectra.flag[0, 100] == SpectrumFlag.PARTIAL
    assert spectra.counts[0, 100] == pytest.approx(truth_of(spectra, counts)[0, 100], rel=1e-4)
    assert spectra.sigma[0, 100] > 1.3 * plain.sigma[0, 100]
    assert spectra.flag[1, 50] & SpectrumFlag.NO_DATA
    assert np.isnan(spectra.counts[1, 50])


def test_contaminated_pixels_are_rejected():
    """With a neighbour 7 rows away and a zeroth order on the trace, remaining columns are unbiased and flagged."""
    x = np.array([700.0, 720.0, 700.0, 700.0, 300])
    y = np.array([50.0, 57.0, 150.0, 250.0, 350])
    seds = made_up_seds(5, np.random.default_rng(2), np.array([1e-16, 1e-15, 3e-16, 3e-16, 3e-16]))
    scene, counts = render(x, y, seds, shape=FRAME)
    zeroth = scene.zeroth.position(x, y, 5000.0)
    x[4], y[4] = 700 - (zeroth[0][2] - x[2]), 150.0 + (y[2] - zeroth[1][2])  # its zeroth order on the trace of star 2
    scene, counts = render(x, y, seds, shape=FRAME)
    spectra = extract_frame(*scene.inputs(), predicted=scene.predicted)
    assert spectra.contaminated[0] > 0.01
    assert spectra.contaminated[3] < 1e-3
    assert 0 < spectra.contaminated[2] < 0.2
    hit = (spectra.flag[2] & SpectrumFlag.CONTAMINATED) > 0
    assert 3 < hit.sum() < 40
    assert np.any(spectra.flag[0] & SpectrumFlag.CONTAMINATED)
    pulls = (spectra.counts - truth_of(spectra, counts)) / spectra.sigma
    assert np.nanmax(np.abs(pulls[[0, 2, 3]])) < 1
    without = extract_frame(*scene.inputs())  # zeroth orders of unknown brightness
    assert np.any(without.flag[2] & SpectrumFlag.CONTAMINATED)


def test_stars_off_the_detector_and_traces_leaving_it():
    x = np.array([30.0, 1390, -90, 700, 3000, np.nan, 700])
    y = np.array([100.0, 200, 300, 2, 100, 50, -300])
    seds = made_up_seds(len(x), np.random.default_rng(3), 2e-16)
    visible = np.isfinite(x)
    scene, counts = render(x[visible], y[visible], (seds[0], seds[1][visible]), shape=FRAME, zeroth=False)
    predicted = PredictedSpectra(seds[0], seds[1], scene.predicted.sensitivity, scene.predicted.exptime)
    spectra = extract_frame(*scene.inputs()[:3], scene.dispersion, None, x, y, predicted=predicted)
    assert np.all(spectra.coverage[:2] > 0.3)
    assert np.all(spectra.coverage[:2] < 0.8)
    assert 0 < spectra.coverage[2] < 0.1
    assert spectra.coverage[3] > 0.9
    for gone in (4, 5, 6):
        assert np.isnan(spectra.counts[gone]).all()
        assert np.all(spectra.flag[gone] & SpectrumFlag.NO_DATA)
        assert np.isnan(spectra.snr[gone])
        assert spectra.coverage[gone] == 0
    truth = np.full(spectra.counts.shape, np.nan)
    for index, one in zip(np.flatnonzero(visible), counts, strict=True):
        truth[index] = np.interp(spectra.column[index], *one)
    assert np.nanmax(np.abs(spectra.counts / truth - 1)[:2]) < 2e-4
    off = (spectra.column < 0) | (spectra.column >= FRAME[1])
    assert np.isnan(spectra.counts[off]).all()


def test_negative_counts_are_kept_and_flagged():
    seds = made_up_seds(len(X), np.random.default_rng(1), 2e-16)
    scene, counts = render(X, Y, seds, shape=FRAME, zeroth=False)
    spectra = extract_frame(-scene.height, scene.error, None, scene.dispersion, None, X, Y, predicted=scene.predicted)
    bright = np.isfinite(spectra.counts)
    assert np.mean((spectra.flag[bright] & SpectrumFlag.NEGATIVE) > 0) > 0.9
    assert np.nanmedian(spectra.counts / truth_of(spectra, counts)) == pytest.approx(-1, abs=0.05)


def test_empty_frame_and_no_stars():
    scene, _ = render(X[:0], Y[:0], made_up_seds(0, np.random.default_rng(0)), shape=FRAME)
    none = extract_frame(*scene.inputs(), predicted=scene.predicted)
    assert len(none) == 0
    everything_masked = np.ones(FRAME, dtype=bool)
    spectra = extract_frame(scene.height, scene.error, everything_masked, scene.dispersion, scene.zeroth, X, Y)
    assert np.isnan(spectra.counts).all()
    dark = extract_frame(scene.height, scene.error, None, scene.dispersion, scene.zeroth, X, Y)
    assert np.nanmax(np.abs(dark.counts)) < 1e-3
    assert dark.n_profile_stars == 0


def test_mismatched_inputs_raise():
    scene, _ = render(X, Y, made_up_seds(len(X), np.random.default_rng(0)), shape=FRAME)
    arguments = list(scene.inputs())
    with pytest.raises(InputError, match="error"):
        extract_frame(arguments[0], np.ones((3, 3)), *arguments[2:])
    with pytest.raises(InputError, match="mask"):
        extract_frame(*arguments[:2], np.zeros((3, 3), bool), *arguments[3:])
    with pytest.raises(InputError, match="x, y"):
        extract_frame(*arguments[:6], Y[:3])
    with pytest.raises(InputError, match=r"predicted\.flux.*one per star"):
        extract_frame(*arguments[:5], X[:3], Y[:3], predicted=scene.predicted)
    with pytest.raises(InputError, match="exptime"):
        PredictedSpectra(scene.predicted.wavelength, scene.predicted.flux, scene.predicted.sensitivity, 0.0)
    spectra = extract_frame(*arguments, predicted=scene.predicted)
    grid = wavelength_grid(scene.dispersion.limits)
    with pytest.raises(InputError, match="star"):
        measure_ratios(spectra, grid, scene.predicted, star=np.arange(3))
    with pytest.raises(InputError, match="grey_error"):
        measure_ratios(spectra, grid, scene.predicted, star=np.arange(len(X)), grey_error=np.zeros(2))


def test_ratios_equal_the_flat():
    """Without noise, ratios equal the flat at the position of each wavelength."""
    seds = made_up_seds(len(X), np.random.default_rng(1), 2e-16)
    scene, _ = render(X, Y, seds, shape=FRAME, flat=sloped_flat, zeroth=False, shift=0.2)
    spectra = extract_frame(*scene.inputs()[:4], None, X, Y, predicted=scene.predicted)
    grid = wavelength_grid(scene.dispersion.limits)
    assert 195 <= len(grid) <= 205
    ratios = measure_ratios(spectra, grid, scene.predicted, star=np.arange(len(X)) + 7, detector=2)
    assert ratios.star.tolist() == list(range(7, 15))
    assert ratios.ratio.dtype == np.float32
    assert np.isfinite(ratios.ratio).mean() > 0.97
    # the column is the nearest to the grid's wavelength, so the flat there differs by less than its change in a pixel
    error = ratios.ratio - sloped_flat(ratios.x, ratios.y, grid)
    assert np.nanmax(np.abs(error)) < 2e-3
    assert np.nanmedian(np.abs(error)) < 3e-4
    assert StarRatios.from_bytes(ratios.to_bytes()).to_bytes() == ratios.to_bytes()
    wide = measure_ratios(
        spectra, grid, scene.predicted, star=np.arange(len(X)), origin=(100.0, 50.0), shape=(9232, 9216)
    )
    np.testing.assert_allclose(wide.x - ratios.x, 100)
    assert wide.shape == (9232, 9216)


def test_flat_from_frames():
    """The flat of two noisy frames agrees with the truth within its errors."""
    rng = np.random.default_rng(4)
    shape = (1600, 1600)

    def flat(column, row, wavelength):
        return 1 + 0.03 * (2 * (column + 0.5) / 1600 - 1) - 0.02 * (2 * (row + 0.5) / 1600 - 1) + 0 * wavelength

    parts = []
    for _ in range(2):
        scene, _ = field(rng, 120, shape, (-16.0, -15.2), flat=flat, dy=0.2)
        spectra = extract_frame(*scene.inputs(), predicted=scene.predicted)
        grid = wavelength_grid(scene.dispersion.limits)
        parts.append(measure_ratios(spectra, grid, scene.predicted, star=np.arange(120), min_snr=5))
    found = flat_from_solution(fit_ratios(parts), grid, shape)
    for x, y in ((800.0, 800.0), (1599.0, 1599.0), (0.0, 1000.0)):
        pulls = (found.evaluate(x, y, grid) - flat(x, y, grid)) / np.sqrt(found.variance(x, y, grid))
        assert 0.85 < np.std(pulls) < 1.15
        assert abs(np.mean(pulls)) < 0.3
    assert np.median(found.sensitivity) == pytest.approx(1, abs=2e-3)
