"""The page: numbers on it are those of the run, and pictures show what they say."""

from __future__ import annotations

import base64
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import csstdask
from csstdask.instrument import load_instrument
from csstdask.pipeline.run import run
from csstdask.pipeline.score import score_run
from csstdask.report import write_report
from csstdask.report.colours import colour
from csstdask.report.document import table
from csstdask.report.focal_plane import draw_focal_plane
from csstdask.report.images import grey_levels, png


@pytest.fixture(scope="module")
def finished(small_campaign, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(small_campaign, folder / "c.zarr")
    run(folder / "c.zarr", folder / "r.zarr")
    return folder / "r.zarr", write_report(folder / "r.zarr", folder / "r.html").read_text()


def decoded(page):
    """Return the pictures of a page as arrays."""
    for data in re.findall(r'<img[^>]* src="data:image/png;base64,([^"]+)"', page):
        yield np.array(Image.open(io.BytesIO(base64.b64decode(data))))


def test_page_lists_the_content_of_the_run(finished):
    path, page = finished
    dataset = csstdask.open_run(path)
    assert "4 done" in page
    for line in score_run(path).lines():
        assert line in page
    # Events a second and square centimetre: 10 um pixels.
    events = dataset["n_cr_events"].sel(detector=7).values
    usable = 192 * 160 - dataset["n_ignored_pixels"].sel(detector=7).values
    rate = (events / (150 * usable * 1e-6)).mean()
    assert f"<td>{rate:.4g}</td>" in page
    assert f"<td>{int(dataset['n_cr_pixels'].sel(detector=8).sum())}</td>" in page
    assert "Mpix/s" in page
    assert page.count("<svg") == 12  # four of the night, two spectra, rates over time, five of the PSF
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []


def test_pictures_are_before_mask_and_after(finished):
    path, page = finished
    pictures = list(decoded(page))
    assert len(pictures) == 8
    mask = pictures[1]
    assert set(np.unique(mask)) == {0, 255}
    run_mask = csstdask.open_run(path)["cr_mask"]
    assert any(np.array_equal(mask[::-1] == 255, run_mask.values[i, j][:160, :160]) for i in range(2) for j in range(2))
    before, after = pictures[0].astype(int), pictures[2].astype(int)
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert before[mask == 255].mean() > after[mask == 255].mean() + 20


def test_focal_plane_has_each_detector_at_its_place():
    csst = load_instrument("csst")
    drawing = draw_focal_plane(csst, {7: 1.0, 8: 2.0}, "a < b")
    assert drawing.count("<title>detector") == 30
    assert "detector 7: 1<" in drawing
    assert "detector 9: no data" in drawing
    assert "a &lt; b" in drawing
    assert draw_focal_plane(load_instrument("hst_stis"), {1: 1.0}, "x") == ""


def test_text_from_files_is_escaped():
    """The reason of a failure may contain any text."""
    page = table(["reason"], [["<td><script>alert(1)</script>"]], 3)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "and 2 more" in page


def test_colours_run_from_dark_to_light_and_missing_is_grey():
    def light(text):
        return sum(int(text[i : i + 2], 16) for i in (1, 3, 5))

    shades = [light(colour(value, 0, 1)) for value in np.linspace(0, 1, 9)]
    assert shades == sorted(shades)
    assert colour(np.nan, 0, 1) == "#e6e6e6"
    assert colour(5.0, 0, 1) == colour(1.0, 0, 1)


def test_a_png_holds_the_grey_levels(rng):
    grey = rng.integers(0, 256, (31, 17)).astype(np.uint8)
    assert np.array_equal(np.array(Image.open(io.BytesIO(png(grey)))), grey)
    assert grey_levels(np.array([[0.0, np.nan], [1.0, 2.0]]), 0, 1).tolist() == [[255, 255], [0, 0]]


def test_detectors_of_a_focal_plane_link_to_their_units():
    csst = load_instrument("csst")
    drawing = draw_focal_plane(csst, {7: 1.0, 8: np.nan}, "sky", "Units")
    assert re.findall(r'<a href="([^"]+)" data-find="([^"]+)"><g id="([^"]+)">', drawing) == [
        ("#Units", "detector=7", "plane-sky-detector-7")
    ]
    assert "<a " not in draw_focal_plane(csst, {7: 1.0}, "sky")
    assert len(drawing) < 20_000
