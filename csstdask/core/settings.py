"""Validated settings from TOML files, for cameras, recipes, runs and trainings, with uniform errors."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

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
            f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {_reason(item, model)}"
            for item in items
            if not _follows(item, wrong)
        )
        raise InputError(source, found, wanted) from None


def _reason(item: ErrorDetails, model: type[BaseModel]) -> str:
    """Return what is wrong with a value; for an unknown key the keys with similar names, else all valid keys."""
    if item["type"] != "extra_forbidden":
        return item["msg"]
    *path, unknown = (str(part) for part in item["loc"])
    valid = _keys_at(model, path)
    similar = get_close_matches(unknown, valid, n=2)
    if similar:
        return f"unknown key (did you mean {' or '.join(similar)}?)"
    return f"unknown key (valid: {', '.join(sorted(valid))})" if valid else "unknown key"


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the keys of the part of some settings at a path, of all alternatives where there are several."""
    models = [model]
    for part in path:
        fields = [field for one in models for name, field in one.model_fields.items() if part in (name, field.alias)]
        if fields:  # otherwise a part is the index of an array, the key of a table, or the tag of an alternative
            models = [found for field in fields for found in _models_in(field.annotation)]
    return [field.alias or name for one in models for name, field in one.model_fields.items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings in a type, such as those in a list or an alternative."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


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
