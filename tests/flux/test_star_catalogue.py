"""Catalogues of stars: valid and invalid tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.time import Time

from csstdask.core.errors import InputError
from csstdask.flux.catalogue import check_catalogue, read_catalogue

COLUMNS = {"id": ["a", "b"], "ra": [10.0, 359.9999], "dec": [-60.0, 80.0]}
FLUX = {"flux_5556": [1e-15, 2e-15], "flux_5556_err": [1e-17, 2e-17]}


def written(tmp_path, **columns):
    path = tmp_path / "stars.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_proper_motions_agree_with_astropy(tmp_path):
    path = written(tmp_path, **COLUMNS, **FLUX, pmra=[2000.0, 500.0], pmdec=[-700.0, None])
    stars = read_catalogue(path)
    when = Time("2024-03-01T00:00:00")
    ra, dec = stars.positions_at(int(when.unix * 1e6))
    expected = SkyCoord(
        [10.0, 359.9999] * u.deg,
        [-60.0, 80.0] * u.deg,
        pm_ra_cosdec=[2000.0, 500.0] * u.mas / u.yr,
        pm_dec=[-700.0, 0.0] * u.mas / u.yr,
        distance=[10, 10] * u.pc,
        obstime=Time(2016.0, format="jyear"),
    ).apply_space_motion(when)
    assert SkyCoord(ra * u.deg, dec * u.deg).separation(expected).mas == pytest.approx(0, abs=5)
    assert ra[1] < 1  # past 360 degrees
    assert np.isnan(stars.mag).all()


def test_positions_stay_without_a_time(tmp_path):
    stars = read_catalogue(written(tmp_path, **COLUMNS, mag=[17.0, 18.0], mag_err=[0.01, 0.02], mag_band=["r", "r"]))
    assert stars.positions_at(None)[0] is stars.ra
    assert np.isnan(stars.flux_5556).all()
    assert stars.select(np.array([False, True])).id.tolist() == ["b"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({**COLUMNS}, "found no column flux_5556 with flux_5556_err, or mag with mag_err and mag_band; wanted"),
        ({"id": ["a"], "ra": [1.0], **{k: v[:1] for k, v in FLUX.items()}}, "found no column dec; wanted"),
        ({**COLUMNS, **FLUX, "id": ["a", "a"]}, r"found duplicate ids \(a\); wanted each star once"),
        ({**COLUMNS, **FLUX, "dec": [100.0, None]}, r"found 2 stars without a position \(first: a\); wanted"),
    ],
    ids=["no-flux", "no-dec", "twice", "position"],
)
def test_invalid_catalogues_raise_one_line(tmp_path, columns, message):
    with pytest.raises(InputError, match=message) as caught:
        read_catalogue(written(tmp_path, **columns))
    assert str(tmp_path / "stars.parquet") in str(caught.value)


def test_catalogue_in_other_format_raises(tmp_path):
    path = tmp_path / "stars.parquet"
    path.write_text("id,ra,dec\n")
    with pytest.raises(
        InputError, match=r"stars.parquet: found no readable Parquet table \(Arrow\w+\); wanted columns id"
    ):
        check_catalogue(path)


def test_bands_unknown_to_the_camera_raise(tmp_path):
    path = written(tmp_path, **COLUMNS, mag=[17.0, 18.0], mag_err=[0.01, 0.02], mag_band=["r", "G"])
    check_catalogue(path, {"r": None, "G": None})
    with pytest.raises(InputError, match="found mag_band G; wanted filters of the camera, or flux_5556"):
        check_catalogue(path, {"r": None})
