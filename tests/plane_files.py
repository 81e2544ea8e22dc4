"""Small FITS files with given planes, and the description of a camera with four chips."""

from __future__ import annotations

import numpy as np
from astropy.io import fits
from make_fits import NAME, primary, science_header

from csstdask.instrument.registry import parse_instrument

SHAPE = (6, 5)
SCI = np.full(SHAPE, 3.0, np.float32)
ERR = np.full(SHAPE, 0.5, np.float32)
FLAG = np.full(SHAPE, 4, np.int32)
VALUES = {"SCI": SCI, "ERR": ERR, "VAR": ERR**2, "WHT": ERR**-2.0, "FLG": FLAG}

CHIPS = """
name = "mef"
units = "electron"
[electronics]
gain = 1.0
read_noise = 3.0
[flags]
bits = { bad = 1, cosmic_ray = 2, inpainted = 4 }
[keywords]
detector = ["CCDNUM"]
[[detectors]]
ids = "1-4"
[[layouts]]
name = "planes"
sci = { hdu = ["SCI"] }
weight = { hdu = ["ERR"], kind = "error" }
flag = { hdu = ["DQ"] }
"""
MEF = parse_instrument(CHIPS, "mef.toml")


def csst_file(folder, *planes):
    """Write a CSST file of HDUs given as (name, what they hold); no name: no EXTNAME."""
    hdus = [fits.PrimaryHDU(header=primary())]
    for name, what in planes:
        hdu = fits.ImageHDU(VALUES[what], header=science_header() if what == "SCI" else None)
        if name:
            hdu.header["EXTNAME"] = name
        hdus.append(hdu)
    path = folder / NAME.format(obsid="10100000001", chip=8)
    fits.HDUList(hdus).writeto(path)
    return path
