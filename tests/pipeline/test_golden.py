"""Pixels do not change by accident: a step whose results change must raise its numerics version.

Digests are of results rounded to four significant digits, so that another processor's last bit is no change.
After a deliberate change and a raised version: ``python tests/pipeline/test_golden.py`` writes new ones.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from csstdask.instrument import load_instrument
from csstdask.mock import Recipe, render_unit
from csstdask.mock.unit_digest import NUMERICS_VERSION
from csstdask.pipeline.config import RunConfig
from csstdask.pipeline.frame import Frame
from csstdask.pipeline.steps import STEPS
from csstdask.store.unit_metadata import UnitMetadata

GOLDEN = Path(__file__).with_name("golden.json")
#: PSFs and zero points come of systems of equations, whose digits differ between processors: tests/psf and
#: tests/zeropoint hold them.
CONFIG = RunConfig.model_validate({"psf": {"model": "none"}, "detect": {"precision": "float32"}})
SOLVED = {"psf", "zeropoint"}
RECIPE = Recipe(name="golden", seed=7, exposures=1, detectors=(8,), shape=(256, 256))


def digest(*arrays: np.ndarray) -> str:
    total = hashlib.sha256()
    for array in arrays:
        if array.dtype.kind == "f":
            values = array.astype(np.float64)
            size = np.where(np.isfinite(values) & (values != 0), np.abs(values), 1.0)
            unit = 10.0 ** (np.floor(np.log10(size)) - 3)
            values = np.where(np.isfinite(values), np.rint(values / unit) * unit, values)
            total.update(np.char.mod("%.3e", values).tobytes())
        elif array.dtype == object:
            total.update("\n".join(array.tolist()).encode())
        else:
            total.update(array.tobytes())
    return total.hexdigest()[:16]


def measure() -> dict[str, list[object]]:
    instrument = load_instrument("csst")
    unit = render_unit(RECIPE, instrument, 0, 8)
    planes = {"sci": unit.sci, "wht": unit.wht, "flag": unit.flag}
    metadata = UnitMetadata("e", 8, "imaging", "g", 150.0, unit.time, 1.1, 5.0, "golden")
    frame = Frame(metadata, instrument, "electron s-1", lambda name: planes[name].copy(), lambda name: planes[name])
    found: dict[str, list[object]] = {"mock": [NUMERICS_VERSION, digest(unit.sci, unit.wht, unit.flag, unit.truth_cr)]}
    for name, step in STEPS.items():
        if name in SOLVED or metadata.kind not in step.kinds:
            continue
        output = step.body(frame, CONFIG)
        frame.add_results(output.arrays, output.tables)
        parts = [output.arrays[product.name] for product in step.products]
        for table in output.tables.values():
            columns = ("x", "y", "flux_aperture", "flag", "n_cr_pixels", "charge", "length", "kind")
            parts += [table[column] for column in columns if column in table]
        found[name] = [step.numerics_version, digest(*parts)]
    return found


def libraries() -> dict[str, str]:
    """Return major and minor versions of the libraries that decide the digests."""
    return {name: ".".join(version(name).split(".")[:2]) for name in ("numpy", "scipy", "torch")}


def test_results_change_only_with_their_version():
    golden = json.loads(GOLDEN.read_text())
    if (of := golden.pop("libraries")) != libraries():
        pytest.skip(f"digests are of {of}; found {libraries()}")
    found = measure()
    assert set(golden) == set(found)
    for name, (numerics, value) in found.items():
        known_version, known = golden[name]
        if value != known:
            assert numerics > known_version, f"{name}: other pixels with the same numerics_version {numerics}"
            raise AssertionError(f"{name}: version {numerics} is new; write its digest with python {__file__}")
        assert numerics == known_version, f"{name}: version {numerics}, but the same pixels as {known_version}"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({"libraries": libraries(), **measure()}, indent=1) + "\n")
