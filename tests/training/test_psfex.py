"""PSFEx's files, and PSFEx itself where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.metrics.psf import psf_errors
from csstdask.training.psf import psfex
from csstdask.training.psf.psfex import PsfexModel, read_psf, run_psfex, sky_of, write_ldac


def write_model(path, terms, degree):
    table = fits.BinTableHDU.from_columns(
        [fits.Column("PSF_MASK", f"{terms.size}E", dim=str(terms.shape[::-1]), array=terms[None])], name="PSF_DATA"
    )
    table.header.update(
        {"POLNAXIS": 2, "POLZERO1": 101.0, "POLZERO2": 51.0, "POLSCAL1": 100.0, "POLSCAL2": 50.0, "POLDEG1": degree,
         "PSF_SAMP": 0.5}
    )  # fmt: skip
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)


def test_models_are_read_as_psfex_means_them(tmp_path, rng):
    """Terms in its order: 1, x, x2, y, xy, y2; places one-based; the middle sample is the source."""
    terms = rng.uniform(0, 1, (6, 65, 65)).astype(np.float32)
    write_model(tmp_path / "a.psf", terms, 2)
    model = read_psf(tmp_path / "a.psf")
    image = model([150.0], [75.0])[0]
    u, v = 0.5, 0.5
    wanted = np.tensordot([1, u, u * u, v, u * v, v * v], terms, 1)[:64, :64]
    assert np.allclose(image, wanted / wanted.sum(), rtol=1e-4)


def test_catalogues_are_padded_with_spaces(tmp_path, rng):
    """A header of NULs kills PSFEx without a message."""
    stamps = rng.normal(size=(5, 32, 32)).astype(np.float32)
    mask = np.zeros(stamps.shape, bool)
    mask[0, 16, 16] = True
    x = np.arange(5.0) + 100
    write_ldac(tmp_path / "stars.cat", stamps, x, x + 7, mask=mask, noise=3.0)
    with fits.open(tmp_path / "stars.cat") as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "LDAC_IMHEAD", "LDAC_OBJECTS"]
        assert hdus[2].data["VIGNET"].shape == (5, 31, 31)
        assert hdus[2].data["VIGNET"][0, 15, 15] < -1e29
        assert np.allclose(hdus[2].data["VIGNET"][1, 15, 15], stamps[1, 16, 16])
        assert hdus[2].data["X_IMAGE"][0] == 101
    raw = (tmp_path / "stars.cat").read_bytes()
    start = raw.index(b"SIMPLE  =", 2880)
    cards = raw[start : raw.index(b"END", start) + 80]
    assert len(cards) % 80 == 0
    assert b"\0" not in cards
    assert b"SEXBKDEV=                  3.0" in cards


def test_what_is_no_model_is_named(tmp_path):
    (tmp_path / "a.psf").write_text("nothing")
    with pytest.raises(InputError, match="no PSFEx model"):
        read_psf(tmp_path / "a.psf")


def test_without_the_program_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(psfex, "PROGRAM", "no-such-program")
    none = np.zeros(0)
    with pytest.raises(InputError, match="no such program"):
        run_psfex(tmp_path, np.zeros((0, 32, 32), np.float32), none, none)


@pytest.mark.skipif(not psfex.is_installed(), reason="PSFEx is not installed")
def test_psfex_sees_the_very_same_stars(tmp_path, psf_stars):
    stars = psf_stars
    model = run_psfex(
        tmp_path, stars.stamps - np.median(stars.stamps), stars.x, stars.y, mask=stars.mask, basis_number=10, degree=1
    )
    assert isinstance(model, PsfexModel)
    assert model.degree == 1
    errors = psf_errors(model(stars.x, stars.y), stars.truth)
    assert errors["psnr"].mean() > 40
    assert abs(errors["size"].mean()) < 0.1


def test_common_sky_is_that_of_all_borders(rng):
    """The sky and its noise pool the borders of all stamps; masked pixels do not count."""
    stamps = rng.normal(20.0, 2.0, (5, 32, 32)).astype(np.float32)
    mask = np.zeros(stamps.shape, bool)
    stamps[:, 8:24, 8:24] = 1e4
    stamps[:, 0], mask[:, 0] = 500, True
    assert sky_of(stamps, mask) == pytest.approx((20.0, 2.0), rel=0.1)
    assert sky_of(stamps, np.ones_like(mask)) == (0.0, 1.0)
