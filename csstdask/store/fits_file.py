"""Open a FITS file, check its length, and read pixels and keywords with clear errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.core.warnings import suppress_warnings

_COMPRESSED = {".gz", ".fz", ".bz2", ".xz"}


@contextmanager
def open_fits(path: Path) -> Iterator[fits.HDUList]:
    """Open a FITS file, plain or compressed.

    Raises
    ------
    InputError
        If it is missing, unreadable or truncated.
    """
    try:
        with suppress_warnings():
            hdus = fits.open(path, memmap=False, lazy_load_hdus=False)
    except FileNotFoundError:
        raise InputError(path, "no such file", "a FITS file") from None
    except IsADirectoryError:
        raise InputError(path, "a directory", "a FITS file") from None
    except (OSError, EOFError, ValueError, TypeError, IndexError, KeyError) as error:
        raise InputError(path, f"a file that cannot be read ({error})", "an intact FITS file") from None
    with hdus:
        if path.suffix not in _COMPRESSED or path.suffix == ".fz":
            _check_length(path, hdus)
        yield hdus


def _check_length(path: Path, hdus: fits.HDUList) -> None:
    if not len(hdus) or not hasattr(hdus[-1], "fileinfo"):
        raise InputError(path, "HDUs that astropy does not know", "images and tables of the FITS standard")
    info = hdus[-1].fileinfo()
    if info is None:
        return
    header = hdus[-1].header
    padded = info["datLoc"] + info["datSpan"]
    actual = path.stat().st_size
    if actual < padded:
        raise InputError(
            path,
            f"{actual} bytes, a truncated file",
            f"{padded} bytes (HDU {len(hdus) - 1}, {header.get('EXTNAME', '')})",
        )


def plane_data(
    path: Path, hdus: fits.HDUList, index: int, section: tuple[slice, slice] | None = None
) -> npt.NDArray[Any]:
    """Return the pixels of one HDU. BLANK pixels of an integer image become NaN in a float image.

    Parameters
    ----------
    path : Path
        Name of the file, for messages.
    hdus : HDUList
        The open file.
    index : int
        Index of the HDU.
    section : (slice, slice), optional
        Rows and columns to read; default: all.

    Raises
    ------
    InputError
        If the HDU has no pixels, or they are not 2-D or unreadable.
    """
    header = hdus[index].header
    blank = _blank_value(header)
    shape = tuple(int(header[f"NAXIS{axis}"]) for axis in range(int(header.get("NAXIS", 0)), 0, -1))
    if not shape:
        raise InputError(f"{path}[{index}]", "an HDU without data", "an image")
    if len(shape) != 2:
        raise InputError(f"{path}[{index}]", f"{len(shape)}-D data of shape {shape}", "a 2-D image")
    try:
        data = np.asarray(hdus[index].data if section is None else hdus[index].section[section])
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise InputError(f"{path}[{index}]", f"pixels that cannot be read ({error})", "an intact image") from None
    if blank is None or data.dtype.kind not in "iu":
        return data
    return np.where(data == blank, np.nan, data) if (data == blank).any() else data


def _blank_value(header: fits.Header) -> int | None:
    """Return the value of blank pixels of an integer image after scaling, or None.

    astropy converts them to NaN in images that become float, but not in unsigned integers.
    """
    blank = header_value(header, "BLANK")
    if not isinstance(blank, int) or isinstance(blank, bool) or int(header.get("BITPIX", 0)) < 0:
        return None
    return int(blank * float(header.get("BSCALE", 1)) + float(header.get("BZERO", 0)))


def header_value(header: Mapping[str, Any], name: str) -> Any:
    """Return the value of a keyword; None if it is absent or its card violates the FITS standard."""
    try:
        return header.get(name)
    except (fits.VerifyError, ValueError):
        return None
