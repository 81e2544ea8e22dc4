"""Units, failures and provenance: what is linked exists, what is advised works, what is shown is the run's."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil

import numpy as np
import xarray as xr
from markupsafe import escape
from typer.testing import CliRunner

import csstdask
from csstdask.cli import app
from csstdask.nn.models import find_card
from csstdask.pipeline.config import RunConfig, load_config
from csstdask.pipeline.status import Summary, status
from csstdask.report import plots
from csstdask.report.colours import colour, text_colour
from csstdask.report.commands import changed_settings
from csstdask.report.images import stretch
from csstdask.report.provenance import planes_read
from csstdask.report.units import MAX_UNITS, show_units


def text_of(page, name):
    """Return a section without its tags."""
    section = page.split(f'<section id="{name}">')[1].split("</section>")[0]
    return re.sub(r"<[^>]*>", " ", section).replace("&#39;", "'")


def test_the_head_of_the_page(damaged):
    page = damaged[2]
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert "<title>r.zarr: csstdask report</title>" in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page


def test_links_have_targets(damaged):
    page = damaged[2]
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= set(names)
    assert {"unit-10100000002-7", "Units"} <= links


def test_a_failure_is_repeated_by_its_command(damaged, tmp_path):
    run, campaign, page = damaged
    command = re.search(r"<code>(csstdask run [^<]*--select[^<]*)</code>", page).group(1)
    words = shlex.split(html.unescape(command))
    assert words[:5] == ["csstdask", "run", str(campaign), "--to", str(run)]
    assert words[5:] == ["--select", "exposure=10100000002,detector=7", "--steps", "background",
                         "--config", str(run)]  # fmt: skip
    assert "[detect]\nmodel = &#34;unet-fast&#34;" in page
    assert "failed" in text_of(page, "Units")
    whole = f"--to {run} --steps background,detect,psf,repair,sources --config {run}"
    assert whole in html.unescape(page).replace("'", "")  # it resumes the run
    shutil.copytree(run, tmp_path / "r.zarr")
    words[4] = words[-1] = str(tmp_path / "r.zarr")
    result = CliRunner().invoke(app, [*words[1:], "--json"])
    assert result.exit_code == 1
    assert '"total": 1, "done": 0, "skipped": 0, "failed": 1' in result.output
    assert status(tmp_path / "r.zarr", campaign=campaign).failed == 1  # with its settings: the others are still done


def test_changed_settings_are_a_file_that_is_read_back(tmp_path):
    config = RunConfig.model_validate({"detect": {"threshold": 0.3, "rate": "frame"}, "repair": {"psf": False}})
    (tmp_path / "settings.toml").write_text(changed_settings(config))
    assert load_config(tmp_path / "settings.toml") == config
    assert changed_settings(RunConfig()) == ""


def test_provenance_is_that_of_the_run(damaged):
    run, campaign, page = damaged
    shown = text_of(page, "Provenance")
    assert str(campaign.resolve()) in shown
    assert status(run).fingerprint in shown
    assert f"csstdask {csstdask.__version__}" in shown
    assert f"numpy {np.__version__}" in shown
    for task, model in (("cosmicray", "unet-fast"), ("inpaint", "default")):
        assert find_card(task, model).sha256 in shown
    assert find_card("psf", "default").sha256 not in shown  # it fits no PSF
    assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d.* UTC", shown)
    assert "csstdask run" in shown


def test_where_planes_were_read_is_counted():
    plane = {"file": "a.fits", "hdu": 1, "name": "SCI", "found_by": "name"}
    weight = {"file": "a.fits", "hdu": 2, "name": "", "found_by": "position", "kind": "error"}
    records = [
        json.dumps({"sci": plane, "wht": weight}),
        json.dumps({"sci": plane, "not_used": ["HDU 4 SAMP (9, 9)"]}),
        "",
    ]
    found = planes_read(records)
    assert found == "not used: HDU 4 SAMP (9, 9) (1); sci from SCI by name (2); wht from HDU 2 by position (1)"
    assert planes_read([""]) == "not recorded"


def test_columns_have_units_and_all_metrics_are_there(damaged):
    run, _, page = damaged
    assert 'pixels hit <span class="unit">[%]</span>' in page
    assert 'sky <span class="unit">[electron s-1]</span>' in page
    dataset = csstdask.open_run(run)
    everything = page.split('id="units-all"')[1]
    for name in dataset.data_vars:
        if dataset[name].dims == ("exposure", "detector") and dataset[name].dtype == "f8":
            assert f'data-name="{name}"' in everything
    assert f"<td>{100 * float(dataset['cr_fraction'][0, 0]):.4g}</td>" in page


def test_large_runs_list_only_failed_units():
    n = MAX_UNITS + 10
    values = ("exposure", "detector"), np.ones((n, 1))
    coords = {"exposure": [f"<e{i}>" for i in range(n)], "detector": [1], "band": (values[0], np.full((n, 1), "r"))}
    dataset = xr.Dataset({"n_sources": values}, coords)
    failure = {"exposure": f"<e{n - 1}>", "detector": 1, "step": "detect", "reason": "x"}
    page = show_units(dataset, Summary(total=n, done=n - 1, failures=[failure]), "adu", None)
    main = page.split("All metrics")[0]
    assert main.count("<tr id=") == MAX_UNITS
    assert str(escape(f"<e{n - 1}>")) in main
    assert str(escape(f"<e{n - 2}>")) not in main
    assert "and 10 more" in main
    assert "<e1>" not in page


def test_digits_have_contrast_on_every_colour():
    def luminance(text):
        channels = np.array([int(text[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    for value in np.linspace(0, 1, 101):
        fill = colour(value, 0, 1)
        light, dark = sorted((luminance(fill), 1.0 if text_colour(fill) == "#fff" else 0.0), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_a_saturated_core_does_not_set_the_stretch(rng):
    """A star of 70,000 e- on a sky of 50 e- with a noise of 7 e-: the picture shows the sky's noise."""
    sky = rng.normal(50, 7, (160, 160))
    y, x = np.mgrid[:160, :160] - 80
    image = np.minimum(sky + 1e6 * np.exp(-np.hypot(x, y) / 4), 7e4)
    low, high = stretch(image, image >= 7e4)
    assert 50 - 5 * 7 - 1 <= low < 50 - 2 * 7
    assert 50 + 5 * 7 < high < 0.01 * 7e4
    assert stretch(np.full((4, 4), np.nan), np.zeros((4, 4), bool)) == (0.0, 1.0)
    assert stretch(np.ones((4, 4)), np.ones((4, 4), bool))[0] == 1.0


def test_plots_are_the_same_each_time_and_have_the_colour_of_the_page():
    rates = np.array([[1.0], [2.0], [np.nan]])
    times = np.array(["2028-01-01T00:00", "2028-01-01T01:00", "NaT"], "datetime64[us]")
    first, second = (plots.plot_rates(times, rates, [7], (0.5, 3.0)) for _ in range(2))
    assert first == second
    assert "currentColor" in first
    assert "detector 7" in first
    assert plots.plot_rates(times[:1], rates[:1], [7], None) == ""
    many = times[0] + np.arange(5000) * np.timedelta64(1, "h")
    large = plots.plot_rates(many, np.ones((5000, 1)), [7], None)
    assert "one exposure in 10" in large
    assert len(large) < 200_000


def test_rho_statistics_of_too_few_stars_are_not_plotted():
    """A logarithmic axis needs a value: pairs without moments give none."""
    separation, nothing = np.array([1.0, 2.0]), np.array([np.nan, 0.0])
    assert plots.plot_rho({"rho1": nothing, "rho2": nothing}, ("rho1", "rho2"), separation, "pixel") == ""
    one = plots.plot_rho({"rho1": nothing, "rho2": -separation}, ("rho1", "rho2"), separation, "pixel")
    assert "ρ2" in one
    assert "ρ1" not in one
