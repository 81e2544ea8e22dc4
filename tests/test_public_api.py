"""The public names, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import csstdask


def test_public_names():
    assert {"open_campaign", "open_run", "cosmicray", "psf"} <= set(csstdask.__all__) <= set(dir(csstdask))
    assert callable(csstdask.open_campaign)
    assert callable(csstdask.cosmicray.detect)
    assert callable(csstdask.psf.reconstruct)
    assert callable(csstdask.zeropoint.solve)
    with pytest.raises(AttributeError, match="astrometry"):
        _ = csstdask.astrometry


@pytest.mark.parametrize("first", ["import csstdask.zeropoint.solve", "from csstdask.zeropoint.solve import days_of"])
def test_solve_is_a_function_after_its_module_was_imported(first):
    """Steps of a run import the module."""
    code = f"import csstdask; {first}; print(callable(csstdask.zeropoint.solve))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"


def test_import_is_light():
    """No network library, no cluster and no CUDA at import."""
    code = "import sys, csstdask; print([m for m in ('torch', 'cupy', 'distributed', 'zarr') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
