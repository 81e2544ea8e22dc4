"""Find and read instruments: by name, from a TOML file, or from the headers of a FITS file."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from csstdask.core.errors import InputError
from csstdask.core.settings import parse_toml, read_toml, validate_settings
from csstdask.instrument.model import Instrument


def builtin_names() -> tuple[str, ...]:
    """Return the names of the built-in instruments.

    Examples
    --------
    >>> "csst" in builtin_names()
    True
    """
    folder = resources.files("csstdask.instrument")
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def load_instrument(name_or_path: str | Path) -> Instrument:
    """Read an instrument by its built-in name or from a TOML file.

    Parameters
    ----------
    name_or_path : str or Path
        Name of a built-in instrument, or path of a TOML file.

    Raises
    ------
    InputError
        If there is none, or a key is missing, unknown or wrong. The message names the file and each such key.

    Examples
    --------
    >>> load_instrument("csst").detector(8).band
    'g'
    """
    text = str(name_or_path)
    if text in builtin_names():
        return _load_builtin(text)
    path = Path(name_or_path)
    if path.suffix != ".toml" or not path.is_file():
        raise InputError(text, "no such instrument", f"one of {', '.join(builtin_names())}, or a .toml file")
    return _resolve_paths(validate_instrument(read_toml(path, "an instrument's TOML"), str(path)), path.parent)


@functools.cache
def _load_builtin(name: str) -> Instrument:
    text = resources.files("csstdask.instrument").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return parse_instrument(text, f"{name}.toml")


def parse_instrument(text: str, source: str) -> Instrument:
    """Validate the text of an instrument file; `source` names it in messages."""
    return validate_instrument(parse_toml(text, source, "a TOML file"), source)


def validate_instrument(data: Mapping[str, object], source: str) -> Instrument:
    """Validate an instrument given as a mapping.

    Raises
    ------
    InputError
        If a key is missing, unknown or wrong.
    """
    return validate_settings(Instrument, data, source, "a valid instrument")


def _resolve_paths(instrument: Instrument, folder: Path) -> Instrument:
    """Return the instrument with absolute paths of bad-pixel maps, which are relative to the TOML file."""

    def absolute(item: dict[str, object]) -> dict[str, object]:
        if item.get("bad_pixel_map"):
            item["bad_pixel_map"] = str((folder / str(item["bad_pixel_map"])).resolve())
        return item

    data = instrument.model_dump(exclude_none=True)
    data["electronics"] = absolute(data["electronics"])
    data["detectors"] = [absolute(item) for item in data["detectors"]]
    data["overrides"] = [absolute(item) for item in data["overrides"]]
    return Instrument.model_validate(data)


def recognise(file_name: str, header: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names of the built-in instruments that match a file.

    Parameters
    ----------
    file_name : str
        Name of the file, without folder.
    header : mapping
        Keywords of the primary header and of the first image HDU.
    """
    return tuple(name for name in builtin_names() if _matches(_load_builtin(name), file_name, header))


def _matches(instrument: Instrument, file_name: str, header: Mapping[str, object]) -> bool:
    """Return whether headers or file name match an instrument."""
    for wanted in instrument.recognise.headers:
        if all(re.fullmatch(pattern, str(header.get(key, "")).strip()) for key, pattern in wanted.items()):
            return True
    pattern = instrument.recognise.file_pattern
    return pattern is not None and re.match(pattern, file_name) is not None
