"""Libraries of spectra, synthetic stars and Gaussian processes of labels."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.datasets.gaussian_process import clean_stars, fit_labels
from csstdask.datasets.spectra import (
    load_calspec,
    load_miles,
    read_bosz,
    read_lamost,
    read_ngsl,
    split_by_star,
    star_key,
)
from csstdask.datasets.stellar_population import TEFF_RANGE, cells_of, population
from csstdask.datasets.synthetic_spectra import mixtures, synthetic_stars
from csstdask.datasets.template_bank import TemplateBank, load_templates
from csstdask.flux.normalised_spectra import moving_average
from csstdask.flux.spectral_grids import INPUT_WAVELENGTH, REFERENCE_PIXELS, SED_WAVELENGTH, air_to_vacuum
from csstdask.flux.spectrum_files import read_spectrum

SPLITS = ("train", "validation", "calibration", "test")


@pytest.fixture(scope="module")
def bank(real_spectra: Path) -> TemplateBank:
    return load_templates(real_spectra)


def test_no_cell_is_in_two_splits(bank: TemplateBank) -> None:
    cells = {split: set(bank.cell[bank.split == split]) for split in SPLITS}
    assert sum(map(len, cells.values())) == len(set(bank.cell))
    assert all(len(one) >= 10 for one in cells.values())


def test_training_stars_use_only_training_templates(bank: TemplateBank) -> None:
    rng = np.random.default_rng(1)
    weights = mixtures(bank, "train", 500, rng)
    assert np.allclose(weights.sum(axis=1), 1)
    assert weights.toarray()[:, bank.split != "train"].max() == 0
    test = mixtures(bank, "test", 500, rng).toarray()
    assert (test[:, bank.split == "test"].sum(axis=1) >= 0.6).all()
    assert test[:, np.isin(bank.split, ["validation", "calibration"])].max() == 0


def test_synthetic_stars_are_scaled_and_at_rest(bank: TemplateBank) -> None:
    stars = synthetic_stars(bank, "train", 300, np.random.default_rng(2))
    assert np.allclose(stars.sed[:, REFERENCE_PIXELS].mean(axis=1), 1, atol=1e-5)
    assert (stars.flux > 0).all()
    assert (stars.sed > 0).all()
    hot = (stars.flux / moving_average(stars.flux))[stars.teff > 8000].mean(axis=0)
    near = np.abs(INPUT_WAVELENGTH - 4862.68) < 20
    assert INPUT_WAVELENGTH[near][hot[near].argmin()] == pytest.approx(4862.68, abs=0.8)  # H-beta, vacuum
    assert stars.teff.min() > TEFF_RANGE[0] - 150


def test_augmentation_leaves_the_sed_and_broadens_lines(bank: TemplateBank) -> None:
    plain = synthetic_stars(bank, "train", 200, np.random.default_rng(3))
    other = synthetic_stars(bank, "train", 200, np.random.default_rng(3), augment=True)
    assert np.array_equal(plain.sed, other.sed)
    x, y = (one.flux / moving_average(one.flux) for one in (plain, other))
    assert np.abs(x - y).max() > 0.02
    broad = other.fwhm[:, 0] > 2.4
    assert (y[broad].std(axis=1) < x[broad].std(axis=1)).all()


def test_population_is_realistic() -> None:
    teff, logg, mh = population(5000, np.random.default_rng(4))
    assert 0.5 < ((logg > 3.3) & (logg < 5)).mean() < 0.95
    assert np.median(mh) == pytest.approx(-0.4, abs=0.15)
    assert cells_of(teff, logg, mh).min() >= 0


def test_miles_is_in_vacuum(real_spectra: Path) -> None:
    stars = load_miles(real_spectra)
    assert len(stars) == 406
    near = np.abs(INPUT_WAVELENGTH - 6564.6) < 20
    hot = stars.flux[stars.teff > 7500].mean(axis=0)
    assert INPUT_WAVELENGTH[near][hot[near].argmin()] == pytest.approx(6564.61, abs=1.7)
    assert np.isnan(stars.sed[:, (SED_WAVELENGTH < 3540) | (SED_WAVELENGTH > 7420)]).all()
    test = split_by_star(stars)
    assert 0.35 < test.mean() < 0.45
    assert np.array_equal(test, split_by_star(stars))


def test_calspec_is_at_rest_and_ends_where_data_end(real_spectra: Path) -> None:
    stars = load_calspec(real_spectra)
    assert "SUN" not in stars.name
    assert np.isnan(stars.sed[:, SED_WAVELENGTH > 10_100]).all()
    assert np.isfinite(stars.sed[:, 200:500]).all()
    assert ((stars.teff >= TEFF_RANGE[0]) & (stars.teff <= TEFF_RANGE[1])).all()


def test_star_keys_match_between_libraries() -> None:
    assert star_key("HD009051") == star_key("HD 9051")
    assert star_key("BD+541216") == star_key("BD54D1216")
    assert star_key("BD-122669") != star_key("BD+122669")


def test_gaussian_process_predicts_and_cleans() -> None:
    rng = np.random.default_rng(5)
    labels = np.stack([rng.uniform(5000, 9000, 80), rng.uniform(3, 5, 80), rng.uniform(-1, 0.3, 80)], axis=1)
    slope = (labels[:, :1] / 6000 - 1) * np.linspace(-1, 1, 60)
    spectra = np.exp(slope + 0.1 * labels[:, 2:]) * (1 + rng.normal(0, 0.005, (80, 60)))
    process = fit_labels(labels[:60], np.log(spectra[:60]))
    assert np.abs(np.exp(process(labels[60:])) / spectra[60:] - 1).std() < 0.03
    spectra[7] *= np.linspace(0.8, 1.3, 60)
    clean = clean_stars(labels, spectra)
    assert not clean[7]
    assert clean.mean() > 0.9


def test_bosz_files(tmp_path: Path) -> None:
    wave = np.linspace(2000, 11_000, 50)
    np.savetxt(tmp_path / "bosz2024_wave_r2000.txt", wave)
    path = tmp_path / "bosz2024_mp_t5000_g+4.5_m-0.25_a+0.25_c+0.00_v2_r2000_resam.txt.gz"
    path.write_bytes(gzip.compress("\n".join(f"{1 + i} 2.0" for i in range(50)).encode()))
    found = read_bosz(path)
    assert found.labels == {"teff": 5000, "logg": 4.5, "mh": -0.25, "alpha": 0.25, "carbon": 0, "vmicro": 2}
    assert np.allclose(found.flux, 4 * np.pi * np.arange(1, 51))
    with pytest.raises(InputError, match="not of BOSZ 2024"):
        read_bosz(tmp_path / "amm00cm00om00t5000g45v20modrt0b2000rs.fits")
    (tmp_path / "bosz2024_wave_r2000.txt").write_text("1\n2\n")
    with pytest.raises(InputError, match="wanted \\(2, 2\\)"):
        read_bosz(path)


def test_ngsl_files_are_in_air(tmp_path: Path) -> None:
    wave = np.linspace(2000, 10_200, 40)
    columns = [
        fits.Column(name, "D", array=one)
        for name, one in (
            ("WAVELENGTH", wave),
            ("FLUX", wave / 5000),
            ("STATERR", 0.03 + 0 * wave),
            ("SYSERR", 0.04 + 0 * wave),
        )
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "h_stis_ngsl_hd000319_v2.fits")
    for found in (
        read_ngsl(tmp_path / "h_stis_ngsl_hd000319_v2.fits"),
        read_spectrum(tmp_path / "h_stis_ngsl_hd000319_v2.fits"),
    ):
        assert found.name == "hd000319"
        assert np.allclose(found.wavelength, air_to_vacuum(wave))
        assert np.allclose(found.error, 0.05)


@pytest.mark.parametrize("layout", ["table", "image"])
def test_lamost_files_of_both_layouts(tmp_path: Path, layout: str) -> None:
    wave = 10 ** (3.568 + 1e-4 * np.arange(3909))
    flux, ivar = wave / 5000, np.full(3909, 400.0)
    ivar[5] = 0
    mask = np.zeros(3909)
    mask[9] = 1
    path = tmp_path / "spec-1.fits"
    if layout == "image":
        header = fits.Header({"OBSID": 77, "Z": 0.0002})
        fits.PrimaryHDU(np.stack([flux, ivar, wave, mask, mask]).astype(np.float32), header).writeto(path)
    else:
        columns = [
            fits.Column(name, "3909E", array=one[None])
            for name, one in (("FLUX", flux), ("IVAR", ivar), ("WAVELENGTH", wave), ("ANDMASK", mask))
        ]
        table = fits.BinTableHDU.from_columns(columns, name="COADD")
        fits.HDUList([fits.PrimaryHDU(header=fits.Header({"OBSID": 77, "Z": 0.0002})), table]).writeto(path)
    for found in (read_lamost(path), read_spectrum(path)):
        assert found.name == "77"
        assert np.allclose(found.wavelength, wave / 1.0002)
        assert np.flatnonzero(np.isinf(found.error)).tolist() == [5, 9]
        assert found.error[0] == pytest.approx(0.05)
    assert np.allclose(read_lamost(path, rest_frame=False).wavelength, wave)


def test_missing_libraries_raise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"desi_templates\.npz.*folder of spectra"):
        load_templates(tmp_path)
    (tmp_path / "x.fits").write_text("nothing")
    with pytest.raises(InputError, match="no readable FITS"):
        read_spectrum(tmp_path / "x.fits")
