"""Fingerprints: everything that decides a unit's pixels, as one hash that chains from step to step.

A step's fingerprint covers its name and numerics version, its resolved configuration, the SHA-256 of its
model, the fingerprints of the steps it reads from and, at the root, the identity of the input and of the
instrument's values. Adding a step to a finished run therefore changes nothing upstream, and changing a
setting re-opens the steps below it and no others. Library versions are recorded, not fingerprinted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a mapping of plain values, independent of the order of its keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()
