"""Files for other programs say what the field says."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

import csstdask
from csstdask.psf.export import write_psf, write_stdpsf
from csstdask.training.psf.psfex import read_psf

PLACES = (np.array([4000.0, 4608.0, 5200.0]), np.array([4100.0, 4616.0, 5000.0]))


@pytest.fixture(scope="module")
def field(psf_stars, psf_model):
    stars = psf_stars
    detectors = np.full(len(stars), stars.detector)
    return csstdask.psf.reconstruct(
        stars.stamps, detectors, stars.x, stars.y, error=stars.error, model=str(psf_model)
    ).fields[stars.detector]


def test_psfex_files_hold_the_same_polynomial(field, tmp_path):
    write_psf(tmp_path / "a.psf", field)
    model = read_psf(tmp_path / "a.psf")
    assert model.degree == field.basis.degree
    image, _ = field(*PLACES)
    assert np.abs(model(*PLACES) - image).max() < 1e-4 * image.max()


def test_galsim_reads_them(field, tmp_path):
    """Its PSF is drawn without a pixel: the native one is in it."""
    galsim, des = (pytest.importorskip(name) for name in ("galsim", "galsim.des"))
    write_psf(tmp_path / "a.psf", field)
    theirs = des.DES_PSFEx(str(tmp_path / "a.psf"))
    x, y = (float(place[2]) for place in PLACES)
    profile = theirs.getPSF(galsim.PositionD(x + 1, y + 1))
    drawn = profile.drawImage(nx=31, ny=31, scale=0.5, method="no_pixel").array
    image, _ = field(x, y)
    middle = image[0, 32 - 15 : 32 + 16, 32 - 15 : 32 + 16]
    assert np.abs(drawn / drawn.sum() - middle / middle.sum()).max() < 0.002 * middle.max()


def test_stdpsf_is_on_a_grid_with_places_from_one(field, tmp_path):
    write_stdpsf(tmp_path / "a.fits", field, nodes=3)
    with fits.open(tmp_path / "a.fits") as hdus:
        cube, header = hdus[0].data, hdus[0].header
    ny, nx = field.shape
    assert cube.shape == (9, 129, 129)
    assert [header[f"IPSFX{number:02d}"] for number in (1, 2, 3)] == [1, nx // 2 + 1, nx]
    assert (header["NXPSFS"], header["NYPSFS"], header["JPSFY03"]) == (3, 3, ny)
    assert np.allclose(cube.sum(axis=(1, 2)) / 16, 1, atol=0.01)
    corner, _ = field(nx - 1, 0)
    found = cube[2, 64 - 62 : 64 + 63 : 2, 64 - 62 : 64 + 63 : 2]
    assert np.abs(found / 4 - corner[0, 1:, 1:] * cube[2].sum() / 16).max() < 0.02 * corner.max()
    with pytest.raises(ValueError, match="nodes: found 1"):
        write_stdpsf(tmp_path / "b.fits", field, nodes=1)
