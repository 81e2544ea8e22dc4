"""Reference catalogues, photometry of tables, and the file of a unit's stars."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csstdask.core.errors import InputError
from csstdask.zeropoint.matched_stars import MatchedStars
from csstdask.zeropoint.photometry import aperture_correction, fill_unknown_errors, instrumental_magnitude
from csstdask.zeropoint.reference import check_reference, read_reference


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_columns_sentinels_and_nulls(tmp_path: Path) -> None:
    path = write(
        tmp_path / "ref.parquet", ra=[10.0, -5.0, None], dec=[0.0, 1.0, 2.0], mag_g=[17.0, 99.0, None],
        mag_g_err=[0.01, 0.02, 0.0], mag_r=[16.5, 16.0, 15.0], mag_r_err=[0.01, -9999.0, 0.01],
        pmra=[1000.0, None, 0.0], pmdec=[0.0, 0.0, 0.0],
    )  # fmt: skip
    assert check_reference(path) == ["g", "r"]
    catalogue = read_reference(path)
    assert catalogue.ra[:2].tolist() == [10.0, 355.0]
    assert np.isnan([catalogue.ra[2], catalogue.magnitudes["g"][1], catalogue.errors["r"][1]]).all()
    color = catalogue.color()
    assert color is not None
    assert color[0] == pytest.approx(0.5)
    # One arcsecond a year along right ascension, ten years after 2016.
    ra, dec = catalogue.at((2026.0 - 2000.0) * 365.25)
    assert (ra[0] - 10.0) * 3600 == pytest.approx(10.0)
    assert dec[0] == 0.0
    assert catalogue.at(np.nan)[0][0] == 10.0


def test_errors_name_file_problem_and_cure(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_text("text")
    with pytest.raises(InputError, match=r"no\.parquet.*readable Parquet.*mag_BAND"):
        check_reference(tmp_path / "no.parquet")
    with pytest.raises(InputError, match="no column dec"):
        read_reference(write(tmp_path / "a.parquet", ra=[1.0], mag_g=[17.0]))
    with pytest.raises(InputError, match="no column of magnitudes"):
        read_reference(write(tmp_path / "b.parquet", ra=[1.0], dec=[1.0], mag_g_err=[0.1]))
    with pytest.raises(InputError, match="column mag_g of type string"):
        read_reference(write(tmp_path / "c.parquet", ra=[1.0], dec=[1.0], mag_g=["bright"]))
    with pytest.raises(InputError, match=r"no column mag_z \(bands: g\)"):
        read_reference(write(tmp_path / "d.parquet", ra=[1.0], dec=[1.0], mag_g=[17.0])).magnitude("z")


def test_magnitudes_of_fluxes() -> None:
    magnitude, error = instrumental_magnitude([100.0, 0.0, -1.0], [1.0, 1.0, 1.0])
    assert magnitude[0] == -5.0
    assert error[0] == pytest.approx(2.5 / np.log(10) * 0.01)
    assert np.isnan(magnitude[1:]).all()
    assert fill_unknown_errors([0.0, np.nan]).tolist() == [0.0, 0.0]


def test_aperture_correction_of_a_gaussian() -> None:
    # Light of a Gaussian within r: 1 - exp(-r^2 / 2 sigma^2), where sigma includes the pixel twice: once in the
    # effective PSF, once in the aperture sums over whole pixels.
    sigma, radius = 2.0, 4.0
    axis = (np.arange(64) - 32) / 2
    psf = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2))
    inside = 1 - np.exp(-(radius**2) / (2 * (sigma**2 + 1 / 12)))
    correction = aperture_correction(np.stack([psf, np.full((64, 64), np.nan)]), radius)
    assert correction[0] == pytest.approx(2.5 * np.log10(inside), abs=2e-3)
    assert np.isnan(correction[1])


def matched(n: int = 5) -> MatchedStars:
    rng = np.random.default_rng(0)
    numbers = {name: rng.normal(size=n) for name in ("ra", "dec", "inst_mag", "ref_mag", "weight", "residual")}
    return MatchedStars(
        id=np.arange(n), reference=np.arange(n) - 1, x=np.full(n, 99.5), y=np.full(n, 49.5), **numbers,
        inst_mag_err=np.full(n, 0.01), ref_mag_err=np.full(n, 0.01), color=np.array([np.nan, 0.5, 0.5, 0.7, 0.7])[:n],
        coefficients=np.array([0.01, 0.02]), exposure="1", detector=7, band="r", days=9000.5, shape=(100, 100),
        nominal=26.0, value=np.nan, sigma=np.inf, correction_err=0.001, color_term=0.1, color_term_err=0.0,
        scatter=0.01, n_matched=n, n_used=n,
    )  # fmt: skip


def test_unit_file_round_trip() -> None:
    stars = matched()
    back = MatchedStars.from_bytes(stars.to_bytes())
    for name in MatchedStars.__dataclass_fields__:
        assert np.array_equal(getattr(back, name), getattr(stars, name), equal_nan=name not in ("exposure", "band"))
    assert back.to_bytes() == stars.to_bytes()
    with pytest.raises(InputError, match="incomplete or foreign"):
        MatchedStars.from_bytes(stars.to_bytes()[:50], "stars.safetensors")


def test_corrected_magnitudes_add_position_and_color() -> None:
    stars = matched()
    magnitude, error = stars.corrected
    # u = 1 and v = 0 at these positions: F = 0.01. Colour .5 times a term of .1; the unknown colour is the mean, .6.
    assert magnitude - stars.inst_mag == pytest.approx([0.07, 0.06, 0.06, 0.08, 0.08])
    assert error[1] == 0.01
    assert error[0] == pytest.approx(np.hypot(0.01, 0.1 * 0.1))
    plain = replace(stars, color_term=np.nan, coefficients=np.zeros(0))
    assert (plain.corrected[0] == stars.inst_mag).all()


def test_proper_motions_over_a_pole_and_sentinels(tmp_path: Path) -> None:
    path = write(
        tmp_path / "ref.parquet", ra=[10.0, 20.0], dec=[89.9999, 0.0], mag_g=[17.0, 17.0], pmra=[0.0, -9999.0],
        pmdec=[1000.0, 1e20],
    )  # fmt: skip
    ra, dec = read_reference(path).at((2026.0 - 2000.0) * 365.25)
    # 10 arcsec northwards from 0.36 arcsec below the pole: 9.64 arcsec below it on the other side.
    assert ra.tolist() == [190.0, 20.0]
    assert (90 - dec[0]) * 3600 == pytest.approx(9.64)
    assert dec[1] == 0.0
