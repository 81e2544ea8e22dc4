"""Recognise the camera of a FITS file by its name and its first two headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from astropy.io import fits

from csstdask.instrument import recognise
from csstdask.store.fits_file import header_value, open_fits


def recognise_file(path: Path) -> tuple[str, ...]:
    """Return the names of the built-in instruments that match a file.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    with open_fits(path) as hdus:
        return recognise_hdus(path, hdus)


def recognise_hdus(path: Path, hdus: fits.HDUList) -> tuple[str, ...]:
    """Return the names of the built-in instruments that match an open file."""
    images = [hdu.header for hdu in hdus[:2] if not isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
    return recognise(path.name, _FirstOf(images))


class _FirstOf(Mapping[str, Any]):
    """Several headers as one mapping: the first header with a keyword counts; invalid cards are skipped."""

    def __init__(self, headers: Sequence[fits.Header]) -> None:
        self._headers = headers

    def __getitem__(self, name: str) -> Any:
        for header in self._headers:
            value = header_value(header, name)
            if value is not None:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter({name for header in self._headers for name in header})

    def __len__(self) -> int:
        return len(set(self))
