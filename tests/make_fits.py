"""FITS files for tests, in the layouts that cameras use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

NAME = "CSST_MSC_MS_SCIE_20280301000000_20280301000230_{obsid}_{chip:02d}_L1_V01.fits"


def planes(shape: tuple[int, int] = (64, 48), seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a plausible science, weight and flag plane."""
    rng = np.random.default_rng(seed)
    sci = rng.normal(0.2, 0.05, shape).astype(np.float32)
    wht = rng.uniform(300, 500, shape).astype(np.float32)
    flag = np.where(rng.random(shape) < 0.02, 4, 0).astype(np.int32)
    return sci, wht, flag


def primary(chip: int = 8, obsid: str = "10100000001", **more: Any) -> fits.Header:
    header = fits.Header()
    header["TELESCOP"] = "CSST"
    header["OBSID"] = obsid
    header["DETECTOR"] = f"MSC_{chip:02d}"
    header["EXPTIME"] = 150.0
    header["DATE-OBS"] = "2028-03-01T00:00:00"
    for key, value in more.items():
        if value is None:
            header.remove(key, ignore_missing=True)
        else:
            header[key] = value
    return header


def science_header() -> fits.Header:
    header = fits.Header()
    header["BUNIT"] = "e/s"
    header["GAIN1"] = 1.1
    header["RDNOISE1"] = 5.0
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = 60.0, -30.0
    header["CRPIX1"], header["CRPIX2"] = 24.5, 32.5
    header["CD1_1"], header["CD2_2"] = -0.074 / 3600, 0.074 / 3600
    header["CD1_2"] = header["CD2_1"] = 0.0
    header["MYKEY"] = ("kept", "a user keyword")
    return header


def level_1(
    folder: Path,
    chip: int = 8,
    obsid: str = "10100000001",
    arrays: tuple[Any, Any, Any] | None = None,
    **more: Any,
) -> Path:
    """Write one CSST Level 1 imaging file: SCI, WHT, FLG."""
    sci, wht, flag = planes(seed=chip) if arrays is None else arrays
    path = folder / NAME.format(obsid=obsid, chip=chip)
    fits.HDUList(
        [
            fits.PrimaryHDU(header=primary(chip, obsid, **more)),
            fits.ImageHDU(sci, header=science_header(), name="SCI"),
            fits.ImageHDU(wht, name="WHT"),
            fits.ImageHDU(flag, name="FLG"),
        ]
    ).writeto(path, overwrite=True)
    return path
