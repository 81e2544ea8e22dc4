"""The sky over a focal plane: a linear TAN solution for each detector, from the instrument's geometry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csstdask.instrument.model import Instrument

if TYPE_CHECKING:  # astropy takes half a second to import, and few commands look at the sky
    from astropy.io.fits import Header
    from astropy.wcs import WCS


def nominal_header(
    instrument: Instrument, detector: int, pointing: tuple[float, float], shape: tuple[int, int]
) -> Header:
    """Return the WCS keywords of a detector for a pointing of the focal plane's centre.

    Parameters
    ----------
    instrument : Instrument
        With ``geometry``.
    detector : int
        Its id.
    pointing : (float, float)
        Right ascension and declination of the focal plane's centre [deg].
    shape : (int, int)
        (y, x) of the frame; a frame smaller than the detector is its centre.

    Returns
    -------
    astropy.io.fits.Header
        CTYPE, CRVAL, CRPIX and CD of a tangential projection.
    """
    from astropy.io.fits import Header  # noqa: PLC0415

    if instrument.geometry is None:
        raise ValueError(f"instrument {instrument.name} has no geometry")
    geometry = instrument.geometry
    x_centre, y_centre = geometry.centres[detector]
    scale = geometry.pixel_scale / 3600
    header = Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    header["CRVAL1"], header["CRVAL2"] = pointing
    header["CRPIX1"] = shape[1] / 2 - x_centre
    header["CRPIX2"] = shape[0] / 2 - y_centre
    for row in (0, 1):
        for column in (0, 1):
            header[f"CD{row + 1}_{column + 1}"] = geometry.orientation[row][column] * scale
    return header


#: Keywords of table look-up distortions, which need arrays that a campaign does not keep.
_LOOKUP = ("CPDIS1", "CPDIS2", "CPERR1", "CPERR2", "D2IMDIS1", "D2IMDIS2", "D2IMERR1", "D2IMERR2", "D2IMEXT")


def celestial_wcs(header: Header) -> WCS | None:
    """Return the celestial WCS of a header, or None if it has none.

    Polynomial distortions (SIP, TPV) are applied; look-up tables (HST's ``D2IM`` and ``CPDIS``, below 0.1
    pixel) are not, for their arrays are not part of a campaign.
    """
    from astropy.wcs import WCS  # noqa: PLC0415

    clean = header.copy()
    for keyword in _LOOKUP:
        clean.remove(keyword, ignore_missing=True, remove_all=True)
    for keyword in ("DP1", "DP2", "D2IM1", "D2IM2"):
        clean.remove(keyword, ignore_missing=True, remove_all=True)
    wcs = WCS(clean, naxis=2)
    return wcs if wcs.has_celestial else None
