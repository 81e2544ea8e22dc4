"""Serialisation of arrays and metadata as safetensors with a kind and a version; equal content gives equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from csstdask.core.errors import InputError

VERSION = 1
_HEADER_LENGTH = 8
"""Number of bytes that hold the length of a safetensors header."""


def pack(kind: str, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> bytes:
    """Return arrays and metadata (JSON) as bytes.

    The metadata is one entry of the safetensors header, because several entries would be written in arbitrary order.
    """
    about = json.dumps({"kind": kind, "version": VERSION, **facts}, sort_keys=True)
    return save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}, {"csstdask": about})


def unpack(kind: str, data: bytes, source: object) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return the arrays and the metadata that `pack` wrote.

    Parameters
    ----------
    kind : str
        Expected kind.
    data : bytes
        Content of a file.
    source : object
        Name of the file, for error messages.

    Raises
    ------
    InputError
        If the bytes are incomplete or have another kind or version.
    """
    wanted = f"{kind} (delete the file and run the units that own it again)"
    try:
        arrays = load(data)
        length = int.from_bytes(data[:_HEADER_LENGTH], "little")
        header = json.loads(data[_HEADER_LENGTH : _HEADER_LENGTH + length])
        facts = json.loads(header.get("__metadata__", {}).get("csstdask", "{}"))
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(source, f"an incomplete or foreign file of {len(data)} bytes ({error})", wanted) from None
    if facts.get("kind") != kind or facts.get("version") != VERSION:
        found = f"{facts.get('kind', 'no csstdask file')}, version {facts.get('version')}"
        raise InputError(source, found, f"{wanted}, version {VERSION}")
    return arrays, facts


def get_array(arrays: Mapping[str, npt.NDArray[Any]], name: str, source: object) -> npt.NDArray[Any]:
    """Return an array by name; InputError if it is absent."""
    if name not in arrays:
        raise InputError(source, f"no array {name}", "a complete file (delete it and run its unit again)")
    return arrays[name]
