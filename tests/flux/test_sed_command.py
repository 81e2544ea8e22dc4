"""``csstdask sed``, ``train sed`` and ``evaluate sed``: results, and bad usage in one line with exit code 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from shell import csstdask_command

from csstdask.flux.sed_table import read_seds

WAVE = np.arange(3980.0, 7020.0, 1.0)


def write_star(path: Path, wave: np.ndarray = WAVE) -> None:
    columns = [fits.Column(name, "D", array=one) for name, one in (("WAVELENGTH", wave), ("FLUX", 1 + 0 * wave))]
    fits.BinTableHDU.from_columns(columns).writeto(path)


def test_spectra_become_a_table(small_card: str, tmp_path: Path) -> None:
    write_star(tmp_path / "good.fits")
    write_star(tmp_path / "short.fits", WAVE[WAVE > 4100])
    done = csstdask_command("sed", "good.fits", "--to", "seds.parquet", "--model", small_card, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert read_seds(tmp_path / "seds.parquet").id.tolist() == ["good"]
    both = ("sed", "good.fits", "short.fits", "--to", "both.parquet", "--model", small_card, "--medium", "air")
    done = csstdask_command(*both, cwd=tmp_path)
    assert done.returncode == 1
    assert "failed short.fits: found wavelengths of" in done.stderr
    assert len(read_seds(tmp_path / "both.parquet")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sed", "x.fits"), "--to"),
        (("sed", "x.fits", "--to", "y.parquet"), "x.fits"),
        (("sed", "x.fits", "--to", "y.parquet", "--medium", "water"), "wanted vacuum or air"),
        (("sed", "x.fits", "--to", "y.parquet", "--model", "none"), "--model"),
        (("sed", "x.fits", "--to", "y.parquet", "--resolution", "300"), "found 300; wanted at least 1500"),
        (("train", "sed", "--to", "t"), "data: Field required"),
        (("train", "sed", "--to", "t", "--data", "nowhere"), "desi_templates.npz"),
        (
            ("train", "sed", "--to", "t", "--campaign", "c.zarr"),
            "no such option: --campaign (see `csstdask train sed --help`)",
        ),
        (("evaluate", "sed"), "--data"),
        (("evaluate", "sed", "--data", "nowhere"), "no such folder"),
    ],
)
def test_bad_usage_is_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = csstdask_command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def write_lamost(path: Path, redshift: object) -> None:
    columns = [
        fits.Column(name=name, format=f"{len(WAVE)}D", array=[one])
        for name, one in (("FLUX", 1 + 0 * WAVE), ("IVAR", 1e4 + 0 * WAVE), ("WAVELENGTH", WAVE))
    ]
    primary = fits.PrimaryHDU()
    primary.header["OBSID"] = path.stem
    if redshift is not None:
        primary.header["Z"] = redshift
    fits.HDUList([primary, fits.BinTableHDU.from_columns(columns)]).writeto(path)


def test_failed_files_are_reported_and_others_kept(small_card: str, tmp_path: Path) -> None:
    write_star(tmp_path / "good.fits")
    write_lamost(tmp_path / "star.fits", 1e-4)
    for name, redshift in (("none", None), ("missing", -9999.0), ("text", "null")):
        write_lamost(tmp_path / f"{name}.fits", redshift)
    (tmp_path / "torn.fits").write_bytes((tmp_path / "star.fits").read_bytes()[:20000])
    text = [fits.Column("WAVELENGTH", "5A", array=["blue"] * 9), fits.Column("FLUX", "D", array=np.ones(9))]
    fits.BinTableHDU.from_columns(text).writeto(tmp_path / "words.fits")
    (tmp_path / "h_stis_ngsl_x_v2.fits").write_bytes((tmp_path / "good.fits").read_bytes())
    names = sorted(path.name for path in tmp_path.glob("*.fits"))
    done = csstdask_command("sed", *names, "--to", "seds.parquet", "--model", small_card, cwd=tmp_path)
    assert done.returncode == 1
    assert sorted(read_seds(tmp_path / "seds.parquet").id) == ["good", "star"]
    failed = dict(line.removeprefix("failed ").split(": ", 1) for line in done.stderr.splitlines() if "failed" in line)
    assert sorted(failed) == sorted(set(names) - {"good.fits", "star.fits"})
    for name in ("none", "missing", "text"):
        assert "found no redshift of a star (Z = " in failed[f"{name}.fits"]
    assert failed["h_stis_ngsl_x_v2.fits"] == "found 740; wanted a resolving power of at least 1500"
