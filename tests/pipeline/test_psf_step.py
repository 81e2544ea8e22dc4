"""The step `psf`: a frame's PSF in the run, at its nodes; nothing where there are no stars, and no failure."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from store_equality import differences

import csstdask
from csstdask.core.errors import InputError
from csstdask.engine.work_units import parse_selection
from csstdask.mock import Recipe
from csstdask.mock.recipe_tables import Sky
from csstdask.nn.models import find_card
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.ingest import ingest
from csstdask.pipeline.mock_survey import mock
from csstdask.pipeline.run import run
from csstdask.pipeline.steps.psf import PSF, nodes_of
from csstdask.report import write_report
from csstdask.store.campaign import Campaign
from csstdask.store.tables import unit_file_path

CONFIG = RunConfig.model_validate({"detect": {"model": "unet-fast"}})


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("psf-step")
    recipe = Recipe(
        name="stars", seed=12, exposures=1, detectors=(7, 8), shape=(512, 512),
        sky=Sky(stars_per_mpix=400, galaxies_per_mpix=200, brightest=17.5),
    )  # fmt: skip
    mock(recipe, folder / "c.zarr")
    assert run(folder / "c.zarr", folder / "r.zarr", config=CONFIG, workers=1).failed == 0
    return folder


def test_psfs_lie_at_their_nodes(night):
    found = csstdask.open_run(night / "r.zarr")
    psf = found["psf"].isel(exposure=0, detector=0)
    assert psf.dims == ("y_psf", "x_psf", "v", "u")
    assert psf.shape == (5, 5, 64, 64)
    assert np.allclose(psf.sum(("v", "u")), 1, atol=1e-4)
    assert (found["psf_sigma"].isel(exposure=0, detector=0) > 0).all()
    peak = psf.isel(y_psf=2, x_psf=2).values
    assert np.unravel_index(peak.argmax(), peak.shape) == (32, 32)
    x, y = nodes_of((512, 512))
    assert np.array_equal(found["x_psf"], x[:5])
    assert np.array_equal(found["y_psf"], y[::5])
    assert (found["n_psf_stars"] > 10).all()
    assert (found["psf_chi2"] < 2).all()
    assert (np.abs(found["psf_size_residual"]) < 0.1).all()
    assert ((found["psf_wavefront_rms"] > 5) & (found["psf_wavefront_rms"] < 150)).all()


def test_stars_and_their_residuals_from_the_psf(night):
    table = pq.read_table(night / "r.zarr/tables/psf_stars/10100000001/7.parquet")
    stars = table.to_pandas()
    assert table.schema.field("size").metadata == {b"unit": b"pixel"}
    assert stars["held_out"].any()
    assert not stars["held_out"].all()
    detections = pq.read_table(night / "r.zarr/tables/detections/10100000001/7.parquet").to_pandas().set_index("id")
    assert np.array_equal(detections.loc[stars["id"], "x"], stars["x"])
    assert np.median(np.abs(stars["size"] / stars["model_size"] - 1)) < 0.1


def test_a_psf_between_nodes(night):
    run_ = csstdask.open_run(night / "r.zarr")
    x, y = nodes_of((512, 512))
    found = run_.csst.psf_at(x[[0, 12]], y[[0, 12]], detector=7)
    nodes = run_["psf"].isel(exposure=0, detector=0)
    assert found.dims == ("place", "v", "u")
    assert np.abs(found[0] - nodes[0, 0]).max() < 1e-4 * float(nodes.max())
    assert np.abs(found[1] - nodes[2, 2]).max() < 1e-4 * float(nodes.max())
    edge = run_.csst.psf_at([0.0], [511.0], detector=7)
    assert float(edge.sum()) == pytest.approx(1, abs=1e-3)
    with pytest.raises(InputError, match="no psf"):
        csstdask.open_campaign(night / "c.zarr").csst.psf_at(1, 1, detector=7)


def test_nothing_is_computed_twice_for_a_unit(night, tmp_path, monkeypatch):
    """One background, one fit of the PSF, one list of detections, one measurement of sources."""
    from csstdask.arrays.background import estimate_background
    from csstdask.arrays.sources import find_sources
    from csstdask.pipeline.steps import STEPS
    from csstdask.psf.fit_detector import fit_detector

    calls: Counter[str] = Counter()

    def counted(function):
        def count(*arguments, **settings):
            calls[function.__name__] += 1
            return function(*arguments, **settings)

        return count

    ours = [module for name, module in sys.modules.items() if name.startswith("csstdask")]
    for function in (estimate_background, find_sources, fit_detector):
        for module in ours:
            if getattr(module, function.__name__, None) is function:
                monkeypatch.setattr(module, function.__name__, counted(function))
    assert list(STEPS) == ["background", "detect", "psf", "repair", "sources", "extract", "zeropoint"]
    config = RunConfig.model_validate({"detect": {"model": "lacosmic"}})
    selection = parse_selection("detector=7")
    assert run(night / "c.zarr", tmp_path / "r.zarr", config=config, selection=selection, workers=1).done == 1
    assert calls == {"estimate_background": 1, "find_sources": 2, "fit_detector": 1}


def test_a_field_of_a_killed_attempt_is_not_used(night, tmp_path):
    """A file without a record, of a unit that has no stars now: deleted, and the repair does without a PSF."""
    path = tmp_path / "r.zarr"
    assert run(night / "c.zarr", path, config=CONFIG, steps=["detect"], workers=1).failed == 0
    left_over = unit_file_path(path, "psf_field", "10100000001", 7)
    left_over.parent.mkdir(parents=True)
    left_over.write_bytes(unit_file_path(night / "r.zarr", "psf_field", "10100000001", 7).read_bytes())
    starless = RunConfig.model_validate({"detect": {"model": "unet-fast"}, "psf": {"least_snr": 1e9}})
    assert run(night / "c.zarr", path, config=starless, workers=1).failed == 0
    assert not left_over.exists()
    assert run(night / "c.zarr", tmp_path / "clean.zarr", config=starless, workers=1).failed == 0
    assert differences(path, tmp_path / "clean.zarr") == []


def test_a_model_of_single_stars_is_refused():
    with pytest.raises(ValueError, match="no PSF field"):
        RunConfig.model_validate({"psf": {"model": "psfnet"}})


def test_the_report_shows_them(night, tmp_path):
    page = write_report(night / "r.zarr", tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Point spread functions" in page
    assert "PSF at each detector" in page
    assert "wavefront in a detector" in page
    assert "rho1" in page


def test_bands_that_the_model_does_not_support_have_no_psf(night):
    campaign = Campaign(night / "c.zarr")
    metadata = campaign.metadata("10100000001", 7)
    flat, none = np.ones((64, 64), np.float32), np.full((64, 64), np.nan, np.float32)
    planes = {"sci": flat, "wht": flat, "flag": np.zeros((64, 64), np.int32)}
    products = {"background": flat[:1, :1], "noise": flat[:1, :1], "cr_mask": np.zeros((64, 64), bool)}
    products |= {"repair": none, "repair_variance": none}
    another = campaign.instrument.model_copy(update={"name": "another"})
    frame = Frame(metadata, another, "electron s-1", lambda name: planes[name].copy(), lambda name: products[name])
    output = PSF.body(frame, RunConfig.model_validate({"psf": {"model": "principal"}}))
    assert np.isnan(output.arrays["psf"]).all()
    assert output.metrics["n_psf_stars"] == 0
    assert len(output.tables["psf_stars"]["id"]) == 0
    assert output.files == {}


def test_empirical_model_is_used_where_the_default_does_not_apply(night, tmp_path):
    """Both models make a run's identity; here the second is asked for, of frames that the first knows as well."""
    empirical = find_card("psf", "empirical").identity
    assert PSF.model(CONFIG).split()[-1] == empirical
    alone = RunConfig.model_validate({"detect": {"model": "unet-fast"}, "psf": {"model": "empirical"}})
    assert PSF.model(alone).split()[1:] == [empirical]
    assert run(night / "c.zarr", tmp_path / "r.zarr", config=alone, workers=1).failed == 0
    found, known = (csstdask.open_run(folder / "r.zarr") for folder in (tmp_path, night))
    difference = found["psf"].isel(y_psf=2, x_psf=2) - known["psf"].isel(y_psf=2, x_psf=2)
    assert float(np.abs(difference).max()) < 0.1 * float(known["psf"].max())
    assert (found["psf_chi2"] < 2).all()
    assert found["psf_wavefront_rms"].isnull().all()
    assert "wavefront in a detector" not in write_report(tmp_path / "r.zarr", tmp_path / "r.html").read_text("utf-8")


def test_real_frame_of_a_camera_without_a_simulator(real_images, tmp_path):
    """CFHT WIRCam, from the file to the PSF, compared with held-out stars."""
    frame = real_images / "cfht_wircam/wircam_H2_1592961p.fits.fz"
    ingest([frame], tmp_path / "c.zarr")
    assert run(tmp_path / "c.zarr", tmp_path / "r.zarr", config=CONFIG, workers=1).failed == 0
    found = csstdask.open_run(tmp_path / "r.zarr")
    assert float(found["n_psf_stars"].max()) > 60
    assert float(found["psf_chi2"].max()) < 2
    assert float(np.abs(found["psf_size_residual"]).max()) < 0.02
