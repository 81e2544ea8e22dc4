"""Hash everything that decides the result of a step.

The fingerprint of a step covers its name and numerics version, its resolved settings, the SHA-256 of its model and the
fingerprints of the steps it requires; that of a first step also the identity of the input and of the instrument's
values. Adding a step to a finished run therefore changes no earlier step, and changing a setting reopens the steps that
depend on it and no others. Versions of libraries are recorded, not fingerprinted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a mapping of plain values, independent of the order of its keys.

    Examples
    --------
    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()
