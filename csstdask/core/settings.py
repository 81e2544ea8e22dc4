"""Validated settings from TOML files, for cameras, recipes, runs and trainings, with uniform errors."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from csstdask.core.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


class FrozenSettings(BaseModel):
    """Settings that reject unknown keys and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_toml(path: Path, wanted: str) -> dict[str, Any]:
    """Read a TOML file; InputError names the file and what was `wanted`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"no readable text ({error})", wanted) from None
    return parse_toml(text, str(path), wanted)


def parse_toml(text: str, source: str, wanted: str) -> dict[str, Any]:
    """Parse the text of a TOML file, which errors call `source`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(source, f"text that is not TOML ({error})", wanted) from None


def _follows(item: Mapping[str, Any], wrong: Sequence[tuple[int | str, ...]]) -> bool:
    """Return whether an array is too short only because its elements are wrong, which other errors say."""
    length = len(item["loc"])
    return item["type"] == "too_short" and any(len(loc) > length and loc[:length] == item["loc"] for loc in wrong)


def validate_settings(model: type[Model], data: Mapping[str, object] | str, source: str, wanted: str) -> Model:
    """Return settings, a mapping or JSON text, as a model; InputError names missing and wrong keys."""
    try:
        return model.model_validate_json(data) if isinstance(data, str) else model.model_validate(data)
    except ValidationError as error:
        items = error.errors()
        wrong = [item["loc"] for item in items]
        found = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {item['msg']}"
            for item in items
            if not _follows(item, wrong)
        )
        raise InputError(source, found, wanted) from None


def read_settings(model: type[Model], path: Path | None, wanted: str, changes: Mapping[str, object]) -> Model:
    """Return settings from an optional TOML file; `changes` that are not None take precedence.

    Raises
    ------
    InputError
        If a key is unknown or wrong; the message names the file and all such keys.
    """
    fields = read_toml(path, wanted) if path is not None else {}
    fields |= {key: value for key, value in changes.items() if value is not None}
    return validate_settings(model, fields, str(path or "settings"), f"valid {wanted}")
