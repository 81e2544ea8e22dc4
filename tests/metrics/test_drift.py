"""What has changed is noticed, what has not raises nothing; what recurs is no cosmic ray."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from astropy.wcs import WCS
from scipy.stats import ks_1samp, ks_2samp

from csstdask.core.errors import InputError
from csstdask.metrics.consistency import CHARGE_BINS, detector_recurrence, injection_recovery, sky_recurrence
from csstdask.metrics.drift import (
    EDGES,
    UnitEvents,
    count_events,
    derive_expectations,
    find_drift,
    rates,
    spectrum_distance,
    sum_by_exposure,
)
from csstdask.mock.cosmic_rays import draw_cosmic_rays
from csstdask.mock.recipe_tables import CosmicRays
from csstdask.nn.card import ModelCard, read_card, write_card

CARD = ModelCard("unet", "cosmicray", "3", "", "", "", "0" * 64)
CM2_S = 150.0


def night(rng, n_exposures=8, *, detectors=(7, 8), factor=(), charge=3.3):
    """Return units with one event a second and square centimetre on average; some exposures have more."""
    units = []
    for i in range(n_exposures):
        for detector in detectors:
            n = rng.poisson(CM2_S * 4 * dict(factor).get(i, 1.0))
            length = np.where(rng.random(n) < 0.4, 0.0, rng.exponential(12, n))
            events = count_events(10 ** rng.normal(charge, 0.25, n), length, 4 * CM2_S)
            time = np.datetime64("2028-03-01T00:00:00", "us") + np.timedelta64(i, "h")
            units.append(UnitEvents(f"{100 + i}", detector, time, events))
    return units


def test_an_undisturbed_night_raises_nothing(rng):
    units = night(rng, 24)
    assert find_drift(units) == ()
    card = replace(
        CARD,
        valid={"detectors": [7, 8], "from": "2028-01-01", "until": "2028-04-01"},
        expects=derive_expectations(list(sum_by_exposure(night(np.random.default_rng(1))).values())),
    )
    assert find_drift(units, card) == ()


def test_rates_have_a_poisson_error(rng):
    units = night(rng, 40)
    table = rates(units[::-1])
    assert table["exposure"] == [f"{100 + i}" for i in range(40)]
    pull = (np.array(table["rate"]) - 1) / np.array(table["rate_err"])
    assert abs(pull.mean()) < 0.5
    assert 0.7 < pull.std() < 1.3
    n = np.array(table["n_events"])
    np.testing.assert_allclose(table["rate_err"], np.sqrt(n) / (8 * CM2_S))
    unknown = [replace(unit, events=replace(unit.events, cm2_s=float("nan"))) for unit in units]
    assert np.isnan(rates(unknown)["rate"]).all()
    assert find_drift(unknown) == ()


def test_a_doubled_rate_is_one_sentence_with_advice(rng):
    alarms = find_drift(night(rng, factor=((5, 2.0),)), advice="look at it")
    assert [(alarm.exposure, alarm.what) for alarm in alarms] == [("105", "rate")]
    sentence = alarms[0].sentence
    assert sentence.startswith("exposure 105: found ")
    assert "events/cm^2/s, expected " in sentence
    assert "from the run's first 2 exposures" in sentence
    assert sentence == f"{alarms[0].finding}: look at it"
    quiet = replace(CARD, expects={"rate": [0.8, 1.2]})
    found = find_drift(night(rng, factor=((0, 0.3),)), quiet)
    assert [(alarm.exposure, alarm.what) for alarm in found] == [("100", "rate")]  # a card knows the first exposure too
    assert "expected 0.8 to 1.2 by the card of unet 3" in found[0].sentence


def test_another_spectrum_is_noticed(rng):
    before, after = night(rng, 4), night(rng, 1, charge=3.6)
    late = [replace(unit, exposure="200", time=np.datetime64("2030-01-01", "us")) for unit in after]
    alarms = find_drift([*late, *before])
    assert [(alarm.exposure, alarm.what) for alarm in alarms] == [("200", "charge")]
    assert "Kolmogorov-Smirnov distance" in alarms[0].sentence
    found, expected = (
        float(alarms[0].sentence.split(word)[1].split()[0]) for word in ("charges about ", "expected about ")
    )
    assert found == pytest.approx(10**3.6, rel=0.1)
    assert expected == pytest.approx(10**3.3, rel=0.1)


def test_a_card_out_of_date_or_for_other_detectors(rng):
    units = night(rng)
    card = replace(CARD, valid={"detectors": [8, 9], "until": "2028-03-01"})
    alarms = find_drift(units, card)
    assert [(alarm.exposure, alarm.what) for alarm in alarms] == [("100", "detector"), ("100", "date")]
    assert "found detector 7, expected one of 8, 9" in alarms[0].sentence
    assert "exposure 100 and 7 more: found the date 2028-03-01, expected a date before 2028-03-01" in alarms[1].sentence
    assert find_drift(units, replace(CARD, valid={"from": "2028-03-01"})) == ()
    assert [alarm.exposure for alarm in find_drift(units, replace(CARD, valid={"from": "2028-03-02"}))] == ["100"]


def test_distance_is_that_of_scipy(rng):
    """Histograms instead of samples, quantiles instead of a distribution: to a bin's content."""
    edges = EDGES["charge"]
    sample, other = rng.normal(3.3, 0.3, 400), rng.normal(3.4, 0.3, 900)
    counts, reference = (count_events(10**values, np.ones(len(values)), 1.0) for values in (sample, other))
    quantiles = derive_expectations([reference])["log_charge"]
    distance, chance = spectrum_distance(counts.charge, edges, quantiles, 900)
    twin = ks_2samp(sample, other)
    assert distance == pytest.approx(twin.statistic, abs=0.02)
    assert np.log10(chance) == pytest.approx(np.log10(twin.pvalue), abs=1.0)
    distance, chance = spectrum_distance(counts.charge, edges, np.quantile(other, np.linspace(0, 1, 51)))
    twin = ks_1samp(sample, lambda value: np.searchsorted(np.sort(other), value) / 900)
    assert distance == pytest.approx(twin.statistic, abs=0.02)
    assert spectrum_distance(np.zeros(110, int), edges, quantiles) == (0.0, 1.0)


def test_what_a_card_expects_survives_half_of_the_events_being_points(rng):
    """Points are a step in the distribution of lengths: a card's quantiles keep its height."""
    events = sum_by_exposure(night(rng, 2)).values()
    quantiles = derive_expectations(list(events))["log_length"]
    for one in events:
        assert spectrum_distance(one.length, EDGES["length"], quantiles)[0] < 0.03


def test_cards_keep_what_they_are_for_and_old_ones_are_read(tmp_path):
    card = replace(CARD, valid={"detectors": [7], "until": "2030-01-01"}, expects={"rate": [0.5, 2.0]})
    assert card.identity == CARD.identity
    write_card(tmp_path / "new.json", card)
    read = read_card(tmp_path / "new.json")
    assert (read.valid, read.expects) == (card.valid, card.expects)
    fields = json.loads((tmp_path / "new.json").read_text())
    del fields["valid"], fields["expects"]
    (tmp_path / "old.json").write_text(json.dumps(fields))
    assert read_card(tmp_path / "old.json").valid == {}
    for wrong in ({"until": "soon"}, {"detector": [7]}, {"detectors": ["7"]}):
        (tmp_path / "wrong.json").write_text(json.dumps(fields | {"valid": wrong}))
        with pytest.raises(InputError, match="no readable model card"):
            read_card(tmp_path / "wrong.json")


def test_a_hot_pixel_is_in_all_exposures_and_cosmic_rays_are_not(rng):
    shape, n = (200, 220), 200
    events = [(rng.uniform(0, 219, n), rng.uniform(0, 199, n)) for _ in range(8)]
    clean = detector_recurrence(events, shape)
    # Of 44,000 pixels that three of eight exposures share one is no surprise: 44,000 * 56 * (200 / 44,000)^3 = 0.23.
    assert clean.min_exposures == 4
    assert len(clean.table["x"]) == 0
    assert abs(clean.share) < 3 * clean.share_err
    assert clean.by_chance == pytest.approx(8 * n * (1 - (1 - n / 44_000) ** 7), rel=0.03)  # seven others to meet
    hot = [(np.append(x, 31.0 + rng.normal(0, 0.1)), np.append(y, 77.0)) for x, y in events]
    found = detector_recurrence(hot, shape)
    assert [found.table[name].tolist() for name in ("x", "y", "n_exposures")] == [[31], [77], [8]]
    assert found.n_shared - clean.n_shared == pytest.approx(8, abs=2)
    assert found.share == pytest.approx(8 / (8 * n), abs=2 * found.share_err)
    few = detector_recurrence(hot[:2], shape)
    assert few.min_exposures is None
    assert len(few.table["x"]) == 0


def dithered(offset):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = (60.0, -30.0), (100.0 + offset[0], 100.0 + offset[1])
    wcs.wcs.cdelt = (-0.074 / 3600, 0.074 / 3600)
    return wcs


def test_stars_are_at_one_place_of_the_sky_and_hot_pixels_are_not(rng):
    n, dithers = 150, ((0.0, 0.0), (20.0, 5.0), (-8.0, 31.0), (14.0, -22.0))
    events = [(rng.uniform(0, 199, n), rng.uniform(0, 199, n)) for _ in dithers]
    events = [(np.append(x, 50.0), np.append(y, 60.0)) for x, y in events]  # a hot pixel
    wcs = [dithered(offset) for offset in dithers]
    clean = sky_recurrence(events, wcs)
    assert len(clean.table["ra"]) == 0
    assert abs(clean.share) < 3 * clean.share_err
    # By chance: three other exposures, each with n events on the frame.
    assert clean.by_chance == pytest.approx(4 * n * 3 * n * np.pi / 200**2, rel=0.25)
    star = dithered((0, 0)).pixel_to_world_values(90.0, 95.0)
    places = [one.world_to_pixel_values(*star) for one in wcs]
    added = [(np.append(x, a + 0.2), np.append(y, b)) for (x, y), (a, b) in zip(events, places, strict=True)]
    found = sky_recurrence(added, wcs)
    assert found.table["n_exposures"].tolist() == [4]
    assert found.table["ra"][0] == pytest.approx(star[0], abs=1e-4)
    assert found.table["dec"][0] == pytest.approx(star[1], abs=1e-4)
    assert found.n_shared - clean.n_shared == pytest.approx(4, abs=2)
    assert sky_recurrence(events[:2], [wcs[0], wcs[0]]) is None
    elsewhere = wcs[1].deepcopy()
    elsewhere.wcs.crval = (wcs[0].wcs.crval[0] + 150) % 360, -wcs[0].wcs.crval[1]
    assert sky_recurrence(events[:2], [wcs[0], elsewhere]) is None


def test_known_events_are_found_by_a_perfect_method_and_missed_by_none(rng):
    shape = (256, 256)
    data = rng.normal(100, 10, shape).astype(np.float32)
    error, ignore, flagged = np.full(shape, 10, np.float32), np.zeros(shape, bool), np.zeros(shape, bool)
    flagged[40:44, 50:90] = True
    ignore[:, 128] = True
    data[flagged] += 500
    charge = draw_cosmic_rays(rng, CosmicRays(pixel_fraction=(0.01,)), shape)

    def bright(frame, sigma):
        return frame > 100 + 3 * 10

    found = injection_recovery(data, error, ignore, flagged, charge, bright)
    assert found.recall > 0.9
    assert found.n_events_found.sum() > 0.9 * found.n_events.sum() > 10
    assert len(found.n_events) == len(CHARGE_BINS) - 1
    assert (found.n_flagged, found.n_lost) == (160, 0)
    chance = 0.00135 * data.size
    assert found.n_gained == pytest.approx(chance, abs=5 * np.sqrt(chance))
    blind = injection_recovery(data, error, ignore, flagged, charge, lambda frame, _: np.zeros(frame.shape, bool))
    assert (blind.recall, blind.n_lost, blind.n_gained, blind.n_events_found.sum()) == (0.0, 160, 0, 0)
    both = found + blind
    assert both.n_visible == found.n_visible + blind.n_visible
    assert both.recall == pytest.approx(found.recall / 2)


def test_places_on_the_sky_are_icrs_whatever_the_frame_of_the_header(rng):
    """A star in two exposures, one with a WCS in galactic coordinates whose axes are swapped."""
    first = dithered((0.0, 0.0))
    centre = first.pixel_to_world(99.0, 99.0).galactic
    second = WCS(naxis=2)
    second.wcs.ctype = ["GLAT-TAN", "GLON-TAN"]
    second.wcs.crval, second.wcs.crpix = (centre.b.deg, centre.l.deg), (120.0, 90.0)
    second.wcs.cdelt = (0.074 / 3600, 0.074 / 3600)
    star = first.pixel_to_world(70.0, 80.0)
    x, y = (float(value) for value in second.world_to_pixel(star))
    events = [(np.append(rng.uniform(0, 199, 5), 70.0), np.append(rng.uniform(0, 199, 5), 80.0))]
    events.append((np.append(rng.uniform(0, 199, 5), x), np.append(rng.uniform(0, 199, 5), y)))
    found = sky_recurrence(events, [first, second])
    assert found.n_shared == 2
    assert found.table["ra"] == pytest.approx([star.ra.deg], abs=1e-5)
    assert found.table["dec"] == pytest.approx([star.dec.deg], abs=1e-5)
