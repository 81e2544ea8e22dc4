"""Libraries of SEDs: the shipped one, how it is made, and files that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest

from csstdask.core.errors import InputError
from csstdask.mock.sed_library import (
    SHIPPED,
    convolve_to_resolution,
    find_library,
    load_library,
    make_library,
    reference_mean,
    sed_grid,
)


def test_the_shipped_library_is_small_licensed_and_covers_the_bands():
    file = find_library(SHIPPED)
    assert file.stat().st_size < 300_000
    library = load_library(file)
    assert library.wavelength == pytest.approx(sed_grid(), rel=1e-12)
    assert len(library) == 90
    assert ((library.teff >= 5000) & (library.teff <= 9750)).all()
    assert reference_mean(library.wavelength, library.sed) == pytest.approx(1)
    with np.load(file, allow_pickle=False) as content:
        assert "BSD 3-Clause" in str(content["licence"])
        assert "redrock-templates" in str(content["provenance"])
    assert "Copyright (c) 2016-2026, DESI Collaboration" in (file.parent / "LICENSE-desi-templates.txt").read_text()


def test_seds_look_like_stars():
    """Hotter stars are bluer; Balmer lines are in vacuum and at rest; SEDs are continuous where two sources meet."""
    library = load_library(find_library(SHIPPED))
    wave = library.wavelength

    def at(low: float, high: float) -> np.ndarray:
        return library.sed[:, (wave > low) & (wave < high)].mean(axis=1)

    colour = at(3900, 4500) / at(7000, 8000)
    assert np.corrcoef(library.teff, np.log(colour))[0, 1] > 0.93
    hot = library.teff > 7000
    line = (wave > 4700) & (wave < 5030)
    mean = library.sed[hot][:, line].mean(axis=0)
    continuum = np.interp(wave[line], wave[line][[0, -1]], mean[[0, -1]])
    depth = 1 - mean / continuum
    assert (depth * wave[line]).sum() / depth.sum() == pytest.approx(4862.7, abs=4)
    step = abs(np.diff(np.log(library.sed), axis=1))
    seam = (wave[:-1] > 3010) & (wave[:-1] < 3200)
    assert step[:, seam].max() < 0.2


def test_degrading_a_line_keeps_its_area_and_gives_it_the_width_of_r_200():
    wave = 4000 + 0.1 * np.arange(20001)
    flux = 1 - 0.8 * np.exp(-0.5 * ((wave - 5000) / 0.5) ** 2)
    grid = np.arange(4600, 5400, 1.0)
    found = 1 - convolve_to_resolution(wave, flux, grid)
    assert found.sum() == pytest.approx(0.8 * 0.5 * np.sqrt(2 * np.pi), rel=2e-3)
    width = np.sqrt((found * (grid - 5000) ** 2).sum() / found.sum())
    assert width == pytest.approx(5000 / 200 / 2.3548, rel=0.01)
    assert np.isnan(convolve_to_resolution(wave, flux, np.array([3900.0]))).all()


def test_a_library_is_made_of_templates_and_models(tmp_path):
    """Of fabricated files: power laws of the temperature, so that templates and models meet."""
    rng = np.random.default_rng(1)
    wave = 3000 + np.arange(8001.0)
    n = 12

    def power(teff: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
        return (wavelength / 5556) ** (-(teff[:, None] - 4000) / 1500)

    desi: dict[str, object] = {"wave0": 3000.0, "dwave": 1.0, "nwave": 8001}
    for name in "AFGK":
        teff = rng.choice([5000.0, 6000.0, 7000.0, 8000.0], n)
        desi |= {
            f"basis_{name}": power(teff, wave),
            f"coeff_{name}": np.eye(n),
            f"teff_{name}": teff,
            f"logg_{name}": np.full(n, 4.3),
            f"mh_{name}": rng.uniform(-1, 0.3, n),
            f"fit_rms_{name}": np.full(n, 0.01),
            f"orig_index_{name}": np.arange(n),
        }
    np.savez(tmp_path / "desi.npz", **desi)
    grid = np.array([(t, g, m) for m in (-1.0, 0.0, 0.5) for g in (4.0, 4.5) for t in np.arange(4500, 9001, 250.0)])
    coarse = np.linspace(2000, 12000, 800)
    flux = 1e7 * power(grid[:, 0], coarse)
    np.savez(tmp_path / "atlas.npz", wave=coarse, flux=flux, teff=grid[:, 0], logg=grid[:, 1], mh=grid[:, 2])
    made = make_library(tmp_path / "desi.npz", tmp_path / "atlas.npz", stars=10)
    expected = power(made["teff"].astype(float), made["wavelength"])
    expected /= reference_mean(made["wavelength"], expected)[:, None]
    assert made["flux"] == pytest.approx(expected, rel=2e-3)
    np.savez(tmp_path / "made.npz", **made)
    assert len(load_library(tmp_path / "made.npz")) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": np.ones((2, 4))}, "flux of shape"),
        ({"flux": -np.ones((2, 5))}, "positive"),
        ({"flux": np.full((2, 5), np.nan)}, "finite"),
        ({"wavelength": np.array([5000, 5400, 5300, 5600, 6000.0])}, "do not ascend"),
        ({"wavelength": np.array([5600, 5700, 5800, 5900, 6000.0])}, "5526-5586"),
        ({"teff": None}, "no teff"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, change, message):
    good = {"wavelength": np.array([5000, 5530, 5560, 5600, 6000.0]), "flux": np.ones((2, 5))}
    good |= dict.fromkeys(("teff", "logg", "mh"), np.ones(2))
    np.savez(tmp_path / "good.npz", **good)
    assert len(load_library(tmp_path / "good.npz")) == 2
    arrays = {name: values for name, values in (good | change).items() if values is not None}
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(InputError, match=rf"wrong.npz.*{message}"):
        load_library(tmp_path / "wrong.npz")


def test_a_file_that_is_no_archive_is_named(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"text.npz.*no library"):
        load_library(tmp_path / "text.npz")
