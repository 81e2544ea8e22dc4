"""Training of principal PSFs: learning telescopes, resuming, and refusing cards that do not match the weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.nn.models import find_card
from csstdask.psf.basis import BASIS_SIZE, load_basis
from csstdask.training.psf.basis import basis_psnr
from csstdask.training.psf.train import load_psf_config, train_psf

TINY = {"bands": ("i",), "telescopes": 5, "held_out": 2, "nodes": 3, "degree": 1, "images": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    lines = []
    path = train_psf(load_psf_config(None, **TINY), tmp_path_factory.mktemp("psf"), on_progress=lines.append)
    assert lines[0] == "i: 8 images from 3 telescopes"
    assert lines[1].startswith("i: PSFs of held-out telescopes, PSNR ")
    return path


def test_principal_images_tell_what_they_have_seen(trained):
    """Each PSF sums to one; sources lie at the middle, whatever the optics."""
    card = find_card("psf", str(trained))
    psfs = load_basis(card, "i")
    assert psfs.images.shape == (8, BASIS_SIZE, BASIS_SIZE)
    assert abs(psfs.mean.sum() / 16 - 1) < 0.01
    peak = np.unravel_index(psfs.mean.argmax(), psfs.mean.shape)
    assert max(abs(place - BASIS_SIZE // 2) for place in peak) <= 2
    assert (np.linalg.eigvalsh(psfs.field_covariance) > 0).all()
    assert card.metrics["psnr_i"] > 45


def test_a_training_goes_on_where_it_was(trained):
    """Telescopes that were drawn are read again; the same weights come of it."""
    before = json.loads(trained.read_text())["sha256"]
    times = {path.name: path.stat().st_mtime_ns for path in (trained.parent / "telescopes").glob("*.npz")}
    assert len(times) == 5
    (trained.parent / "telescopes" / "i-0003.npz").unlink()
    train_psf(load_psf_config(None, **TINY), trained.parent, on_progress=lambda _: None)
    after = {path.name: path.stat().st_mtime_ns for path in (trained.parent / "telescopes").glob("*.npz")}
    assert {name for name in times if times[name] != after[name]} == {"i-0003.npz"}
    assert json.loads(trained.read_text())["sha256"] == before
    with pytest.raises(InputError, match="telescopes drawn by"):
        train_psf(load_psf_config(None, **TINY | {"nodes": 4}), trained.parent)


def test_bands_that_were_not_learnt_and_other_weights_are_refused(trained, tmp_path):
    card = find_card("psf", str(trained))
    with pytest.raises(InputError, match="band g; wanted one of the bands that it was trained on: i"):
        load_basis(card, "g")
    copy = tmp_path / trained.name
    copy.write_bytes(trained.read_bytes())
    weights = copy.with_suffix(".safetensors")
    weights.write_bytes(trained.with_suffix(".safetensors").read_bytes() + b"x")
    with pytest.raises(InputError, match="SHA-256"):
        load_basis(find_card("psf", str(copy)), "i")
    with pytest.raises(InputError, match="telescope"):
        load_psf_config(None, telescope=3)


def test_larger_basis_is_more_accurate(trained):
    """More components fit an unseen telescope better; a training telescope is fitted better than an unseen one."""
    from csstdask.datasets.psf_samples import PsfSamples
    from csstdask.training.psf.basis import learn_basis

    seen = []
    for number in range(5):
        with np.load(trained.parent / "telescopes" / f"i-{number:04d}.npz") as kept:
            seen.append(PsfSamples(*(kept[name] for name in ("images", "u", "v", "temperature"))))
    few, many = (learn_basis(seen[1:], count, 1, (690.0, 820.0)) for count in (3, 10))
    assert basis_psnr(many, seen[:1]).mean() > basis_psnr(few, seen[:1]).mean() + 1
    assert basis_psnr(many, seen[1:]).mean() > basis_psnr(many, seen[:1]).mean() + 5
