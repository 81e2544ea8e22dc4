"""Errors about settings name the file, the key and the cure."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from csstdask.core.errors import InputError
from csstdask.core.settings import FrozenSettings, validate_settings
from csstdask.pipeline.config import RunConfig


class Lens(FrozenSettings):
    kind: Literal["lens"] = "lens"
    focal_length: float = 1.0


class Mirror(FrozenSettings):
    kind: Literal["mirror"] = "mirror"
    radius: float = 1.0


class Telescope(FrozenSettings):
    diameter: float = 2.0
    since: str = Field("", alias="from")
    optics: tuple[Lens | Mirror, ...] = ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"diametre": 2}, "diametre: unknown key (did you mean diameter?)"),
        ({"colour": 2}, "colour: unknown key (valid: diameter, from, optics)"),
        ({"form": "2027"}, "form: unknown key (did you mean from?)"),
        ({"optics": [{"kind": "mirror", "radios": 3}]}, "radios: unknown key (did you mean radius?)"),
    ],
)
def test_unknown_keys(data, message):
    with pytest.raises(InputError) as error:
        validate_settings(Telescope, data, "t.toml", "a telescope")
    assert message in str(error.value)
    assert "t.toml" in str(error.value)


def test_unknown_keys_of_a_step():
    with pytest.raises(InputError, match=r"detect.thresholds: unknown key \(did you mean threshold\?\)"):
        validate_settings(RunConfig, {"detect": {"thresholds": 0.3}}, "run.toml", "valid settings")
