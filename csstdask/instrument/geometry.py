"""Sky coordinates: nominal WCS of detectors, usable WCS of headers, footprints, and conversions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from csstdask.core.warnings import suppress_warnings
from csstdask.instrument.model import Instrument

if TYPE_CHECKING:  # astropy takes half a second to import, and few commands look at the sky
    from astropy.coordinates import SkyCoord
    from astropy.io.fits import Header
    from astropy.wcs import WCS

Float = npt.NDArray[np.float64]


def nominal_header(
    instrument: Instrument, detector: int, pointing: tuple[float, float], shape: tuple[int, int]
) -> Header:
    """Return the nominal WCS keywords of a detector for a pointing of the focal plane.

    Parameters
    ----------
    instrument : Instrument
        Camera with a table ``[geometry]``.
    detector : int
        Detector id.
    pointing : (float, float)
        Right ascension and declination of the centre of the focal plane [deg].
    shape : (int, int)
        Shape (y, x) of the frame; a smaller frame is the centre of the detector.

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
    scale = geometry.pixel_scale / 3600  # [deg]
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


LOOKUP_KEYWORDS = re.compile(r"(CPDIS|CPERR|D2IMDIS|D2IMERR)\d|(DP|D2IM)\d(\.|$)|D2IMEXT|D2IMARR|WCSDVARR")
"""Keywords of look-up distortions, also record-valued ones (``DP1.EXTVER``). A campaign does not store the tables."""
WORLD_KEYWORDS = re.compile(
    r"(CTYPE|CRVAL|CRPIX|CUNIT|CDELT|CROTA|CNAME|CRDER|CSYER)\d[A-Z]?|(CD|PC)\d_\d[A-Z]?|P[VS]\d_\d+[A-Z]?"
    r"|(A|B|AP|BP)_(ORDER|DMAX|\d_\d)|LTV\d|LTM\d_\d|(RADESYS|EQUINOX|WCSAXES|WCSNAME|LONPOLE|LATPOLE)[A-Z]?|RADECSYS"
)
"""Keywords of world coordinate systems."""

_NUMBER = re.compile(r"(CRVAL|CRPIX|CDELT)[12]|(CD|PC)[12]_[12]")
"""Keywords of a WCS with numeric values."""


def shifted_header(header: Header, x: int, y: int) -> Header:
    """Return the header of a frame without its first `x` columns and `y` rows, with shifted reference pixels."""
    shifted = header.copy()
    for card in header.cards:
        match = re.fullmatch(r"(CRPIX|LTV)([12])([A-Z]?)", card.keyword)
        if match is not None and isinstance(card.value, int | float):
            shifted[card.keyword] = card.value - (x if match[2] == "1" else y)
    return shifted


def celestial_wcs(header: Header) -> WCS | None:
    """Return the celestial WCS of a header, or None if it has no usable one.

    Polynomial distortions (SIP, TPV) are applied. Look-up tables (HST's ``D2IM`` and ``CPDIS``, below 0.1 pixel) are
    not, because a campaign does not store them. A WCS that consists of a table (``-TAB``) is not usable.
    """
    from astropy.coordinates import ICRS  # noqa: PLC0415
    from astropy.wcs.utils import wcs_to_celestial_frame  # noqa: PLC0415

    wcs = readable_wcs(header)
    if wcs is None or not wcs.has_celestial:
        return None
    try:
        with suppress_warnings():
            reference = np.asarray(wcs.wcs.crpix) - 1  # a corner may be outside the projection
            usable = bool(np.isfinite(wcs.wcs_pix2world([[1.0, 1.0], reference], 0)).all(axis=1).any())
            wcs_to_celestial_frame(wcs).is_transformable_to(ICRS())
    except (ValueError, KeyError):  # singular matrices, and frames that are not on the sky
        return None
    return wcs if usable else None


def readable_wcs(header: Header) -> WCS | None:
    """Return the WCS of a header without look-up tables, or None if it cannot be read without them."""
    from astropy.io.fits import Header  # noqa: PLC0415
    from astropy.wcs import WCS  # noqa: PLC0415

    if any("-TAB" in str(header.get(f"CTYPE{axis}", "")) for axis in (1, 2)):
        return None
    kept = Header([card for card in header.cards if not LOOKUP_KEYWORDS.match(card.keyword)])
    if any(_NUMBER.fullmatch(card.keyword) and not isinstance(card.value, int | float) for card in kept.cards):
        return None  # astropy would use a default instead
    _repair_wcs(kept)
    try:
        with suppress_warnings():
            wcs = WCS(kept, naxis=2)
            wcs.wcs.set()
    except (ValueError, KeyError, MemoryError):  # includes singular matrices and invalid keywords
        return None
    return wcs


def _repair_wcs(header: Header) -> None:
    """Correct common unambiguous errors: the unit ``degree``, and PV terms in addition to SIP terms."""
    for axis in (1, 2):
        if str(header.get(f"CUNIT{axis}", "")).strip().lower() in {"degree", "degrees"}:
            header[f"CUNIT{axis}"] = "deg"
    if all("-SIP" in str(header.get(f"CTYPE{axis}", "")) for axis in (1, 2)):
        for keyword in [card.keyword for card in header.cards if re.fullmatch(r"PV[12]_\d+", card.keyword)]:
            header.remove(keyword, ignore_missing=True)  # the same distortion as the SIP terms


def sky_positions(header: str, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Float, Float]:
    """Return the sky positions of pixels.

    Parameters
    ----------
    header : str
        FITS header of the frame, one card per line, with any celestial frame and axis order.
    x, y : array-like (n,)
        Zero-based positions [pixel].

    Returns
    -------
    ra, dec : float64 arrays (n,)
        ICRS [deg], ``0 <= ra < 360``; NaN without a celestial WCS.
    """
    from astropy.io.fits import Header  # noqa: PLC0415

    columns, rows = (np.atleast_1d(np.asarray(part, dtype=np.float64)) for part in (x, y))
    unknown = np.full(columns.shape, np.nan)
    if not header or not len(columns):
        return unknown, unknown.copy()
    with suppress_warnings():
        wcs = celestial_wcs(Header.fromstring(header, sep="\n"))
        if wcs is None:
            return unknown, unknown.copy()
        found = wcs.pixel_to_world(columns, rows).icrs
    return np.asarray(found.ra.wrap_at("360d").deg), np.asarray(found.dec.deg)


def pixel_positions(header: str, ra: npt.ArrayLike, dec: npt.ArrayLike) -> tuple[Float, Float]:
    """Return the pixel positions of sky positions: the inverse of `sky_positions`.

    Parameters
    ----------
    header : str
        FITS header of the frame, one card per line, with any celestial frame and axis order.
    ra, dec : array-like (n,)
        ICRS [deg].

    Returns
    -------
    x, y : float64 arrays (n,)
        Zero-based positions [pixel]; NaN without a celestial WCS, or if a position cannot be projected.
    """
    from astropy.coordinates import SkyCoord  # noqa: PLC0415
    from astropy.io.fits import Header  # noqa: PLC0415

    first, second = (np.atleast_1d(np.asarray(part, dtype=np.float64)) for part in (ra, dec))
    unknown = np.full(first.shape, np.nan)
    with suppress_warnings():
        wcs = celestial_wcs(Header.fromstring(header, sep="\n")) if header else None
        if wcs is None or not len(first):
            return unknown, unknown.copy()
        found = wcs.world_to_pixel(SkyCoord(first, second, unit="deg", frame="icrs"))
    return np.asarray(found[0], dtype=np.float64), np.asarray(found[1], dtype=np.float64)


@dataclass(frozen=True)
class Footprint:
    """Footprint of a frame on the sky, with the names of IVOA ObsCore."""

    s_ra: float
    """Right ascension of the centre, ICRS [deg]; NaN if unknown."""
    s_dec: float
    """Declination of the centre, ICRS [deg]; NaN if unknown."""
    s_fov: float
    """Diameter of the circle around the frame [deg]; 0 without a usable WCS, NaN if unknown."""
    s_region: str
    """Corners, ``POLYGON ICRS ra dec ra dec ...`` [deg]."""


EDGE_MARGIN = 1.05
"""Diameter of the circle around a frame relative to that through its corners, because edges may be curved."""


def footprint(header: str, shape: tuple[int, int]) -> Footprint:
    """Return the footprint of a frame on the sky.

    Parameters
    ----------
    header : str
        FITS header of the frame, one card per line.
    shape : (int, int)
        Shape (y, x) of the frame.
    """
    x = np.array([0, shape[1], shape[1], 0]) - 0.5
    y = np.array([0, 0, shape[0], shape[0]]) - 0.5
    ra, dec = sky_positions(header, x, y)
    if np.isnan(ra).all():
        return Footprint(np.nan, np.nan, 0.0, "")
    corners = unit_vectors(ra, dec)
    middle = corners.mean(axis=0)
    if not np.isfinite(middle).all() or not np.linalg.norm(middle):
        return Footprint(np.nan, np.nan, np.nan, "")  # part of the frame is outside the projection
    centre = middle / np.linalg.norm(middle)
    fov = 2 * EDGE_MARGIN * np.degrees(angle_between(corners, centre).max())
    region = " ".join(f"{a:.7f} {d:.7f}" for a, d in zip(ra, dec, strict=True))
    s_ra, s_dec = np.degrees(np.arctan2(centre[1], centre[0])) % 360, np.degrees(np.arcsin(centre[2]))
    return Footprint(float(s_ra), float(s_dec), float(fov), f"POLYGON ICRS {region}")


def unit_vectors(ra: npt.ArrayLike, dec: npt.ArrayLike) -> Float:
    """Return the Cartesian unit vectors (..., 3) of positions [deg].

    Examples
    --------
    >>> unit_vectors(90.0, 0.0).round(3)
    array([0., 1., 0.])
    """
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def angle_between(first: Float, second: Float) -> Float:
    """Return the angle between unit vectors (..., 3) [rad], accurate for small angles."""
    chord = np.linalg.norm(first - second, axis=-1)
    return np.asarray(2 * np.arcsin(np.minimum(chord / 2, 1)))


def pixel_of(wcs: WCS, position: SkyCoord, shape: tuple[int, int]) -> tuple[float, float] | None:
    """Return the zero-based pixel (x, y) of a sky position, or None if it is far outside the frame.

    Parameters
    ----------
    wcs : WCS
        WCS of the frame, from `celestial_wcs`.
    position : SkyCoord
        Position, in any celestial frame.
    shape : (int, int)
        Shape (y, x) of the frame.

    Notes
    -----
    Distortions are undefined far outside a frame, so the position is first computed without them.
    """
    from astropy.wcs.utils import wcs_to_celestial_frame  # noqa: PLC0415

    native = position.transform_to(wcs_to_celestial_frame(wcs)).spherical
    world = [native.lon.deg, native.lat.deg]
    near = wcs.wcs_world2pix([world if wcs.wcs.lng == 0 else world[::-1]], 0)[0]
    if not np.isfinite(near).all() or np.abs(near).max() > 2 * max(shape):
        return None
    x, y = (float(value) for value in wcs.world_to_pixel(position))
    return x, y
